/* The door of the index: opening, changing, searching, scanning, saving. */
#include "tests/test.h"

#include <unistd.h>

#include "index/index.h"
#include "index_model.h"

#define WIDTH 48
#define IDS 3000

static l2cdb_error err;

static void fill(model *m, int64_t from, int64_t to) {
    float v[WIDTH];
    for (int64_t id = from; id <= to; id++) {
        model_vector(m, v);
        model_put(m, id, v);
    }
}

static l2c_index *open_model(model *m, const char *path, l2c_index_params params) {
    l2c_index *ix;
    l2c_index_config c = { .path = path,
                           .width = m->width,
                           .generation = 1,
                           .change = (int64_t)m->log_count,
                           .params = params,
                           .source = model_source(m) };
    assert_ok(l2c_index_open(&ix, &c, &err), &err);
    return ix;
}

/* Breaks if the flat index loses, invents or misorders a row, with and without a filter. */
static void flat_is_exact(void **state) {
    (void)state;
    model m;
    model_init(&m, WIDTH, IDS, 20, 1);
    fill(&m, 1, 2000);
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ 0 });
    float v[WIDTH];
    for (int64_t id = 1500; id <= 2500; id++) { // replaced and new
        model_vector(&m, v);
        int64_t change = model_put(&m, id, v);
        assert_ok(l2c_index_add(ix, &id, v, 1, change, &err), &err);
    }
    for (int64_t id = 3; id <= 2500; id += 7) {
        int64_t change = model_drop(&m, id);
        assert_ok(l2c_index_remove(ix, &id, 1, change, &err), &err);
    }
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    assert_int_equal(st.rows, m.count);
    assert_int_equal(st.change, m.log_count);
    int64_t ids[IDS], filter_ids[IDS];
    float distances[IDS];
    for (int round = 0; round < 60; round++) {
        size_t found, k = 1 + model_below(&m, 40);
        l2c_index_filter f = { .ids = filter_ids };
        for (int64_t id = 1; id <= IDS; id++) {
            if (model_below(&m, 30) < (size_t)round / 2) {
                filter_ids[f.count++] = id;
            }
        }
        const l2c_index_filter *filter = round % 3 == 0 ? NULL : &f;
        model_vector(&m, v);
        assert_ok(l2c_index_search(ix, ids, distances, &found, v, k, filter, NULL, NULL, &err),
                  &err);
        assert_true(model_check(&m, ids, distances, found, v, k, filter) == 1.0);
        l2c_scan *scan;
        assert_ok(l2c_scan_open(&scan, ix, v, filter, NULL, &err), &err);
        size_t got, total = 0;
        do {
            assert_ok(l2c_scan_next(scan, ids + total, distances + total, 1 + (size_t)round * 7,
                                    &got, &err),
                      &err);
            total += got;
        } while (got > 0);
        l2c_scan_close(scan);
        assert_true(model_check(&m, ids, distances, total, v, IDS, filter) == 1.0);
    }
    l2c_index_close(ix);
    model_fini(&m);
}

/* Breaks if the shares of a scan that several threads split up leave out or repeat rows. */
static void long_scans_are_shared(void **state) {
    (void)state;
    const size_t width = 512;
    const int64_t rows = 40001;
    model m;
    model_init(&m, width, rows, 20, 6);
    float v[512];
    for (int64_t id = 1; id <= rows; id++) {
        model_vector(&m, v);
        model_put(&m, id, v);
    }
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ .kind = L2C_INDEX_FLAT });
    int64_t ids[100];
    float distances[100];
    for (int q = 0; q < 6; q++) {
        size_t found;
        model_vector(&m, v);
        assert_ok(l2c_index_search(ix, ids, distances, &found, v, 100, NULL, NULL, NULL, &err),
                  &err);
        assert_true(model_check(&m, ids, distances, found, v, 100, NULL) == 1.0);
        l2c_flag cancel = { true };
        l2c_search_params p = { .cancel = &cancel };
        assert_int_equal(l2c_index_search(ix, ids, distances, &found, v, 1, NULL, &p, NULL, &err),
                         L2CDB_E_CANCELLED);
        int64_t gone = ids[q]; // with a tombstone among the rows
        int64_t change = model_drop(&m, gone);
        assert_ok(l2c_index_remove(ix, &gone, 1, change, &err), &err);
    }
    l2c_index_close(ix);
    model_fini(&m);
}

/* Breaks if a stored vector does not find itself at exactly 0. */
static void equal_items_have_distance_zero(void **state) {
    (void)state;
    model m;
    model_init(&m, WIDTH, 500, 5, 2);
    fill(&m, 1, 500);
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ 0 });
    for (size_t id = 1; id <= 500; id++) {
        int64_t got;
        float d;
        size_t found;
        assert_ok(l2c_index_search(ix, &got, &d, &found, m.vectors + id * WIDTH, 1, NULL, NULL,
                                   NULL, &err),
                  &err);
        assert_int_equal(got, id);
        assert_true(d == 0.0f);
    }
    l2c_index_close(ix);
    model_fini(&m);
}

/* Breaks if a scan sees rows that came, or misses rows that went, after it was opened. */
static void scan_sees_its_moment(void **state) {
    (void)state;
    model m;
    model_init(&m, WIDTH, 2000, 5, 3);
    fill(&m, 1, 1000);
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ 0 });
    l2c_scan *scan;
    float v[WIDTH];
    model_vector(&m, v);
    assert_ok(l2c_scan_open(&scan, ix, v, NULL, NULL, &err), &err);
    int64_t ids[2000];
    float distances[2000], w[WIDTH];
    size_t got, total;
    assert_ok(l2c_scan_next(scan, ids, distances, 10, &total, &err), &err);
    model then = m;
    then.live = malloc(2001);
    memcpy(then.live, m.live, 2001);
    then.vectors = malloc(2001 * WIDTH * sizeof(float));
    memcpy(then.vectors, m.vectors, 2001 * WIDTH * sizeof(float));
    for (int64_t id = 500; id <= 1500; id++) {
        model_vector(&m, w);
        int64_t change = id % 3 == 0 ? model_drop(&m, id) : model_put(&m, id, w);
        assert_ok(id % 3 == 0 ? l2c_index_remove(ix, &id, 1, change, &err)
                              : l2c_index_add(ix, &id, w, 1, change, &err),
                  &err);
    }
    assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
    do {
        assert_ok(l2c_scan_next(scan, ids + total, distances + total, 50, &got, &err), &err);
        total += got;
    } while (got > 0);
    assert_true(model_check(&then, ids, distances, total, v, 2000, NULL) == 1.0);
    l2c_scan_close(scan);
    l2c_index_close(ix);
    free(then.live);
    free(then.vectors);
    model_fini(&m);
}

/* Breaks if a reopened file loses changes made after it was written, or if count after optimise and
 * reopen differs from what was acknowledged. */
static void reopen_replays(void **state) {
    (void)state;
    char path[4200];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/x.idx", dir);
    model m;
    model_init(&m, WIDTH, IDS, 20, 4);
    fill(&m, 1, 1500);
    l2c_index *ix = open_model(&m, path, (l2c_index_params){ 0 });
    assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
    assert_int_equal(access(path, F_OK), 0);
    float v[WIDTH];
    for (int64_t id = 1000; id <= 2200; id++) {
        model_vector(&m, v);
        int64_t change = model_put(&m, id, v);
        assert_ok(l2c_index_add(ix, &id, v, 1, change, &err), &err);
    }
    for (int64_t id = 10; id <= 2200; id += 3) {
        int64_t change = model_drop(&m, id);
        assert_ok(l2c_index_remove(ix, &id, 1, change, &err), &err);
    }
    l2c_index_close(ix);
    for (int again = 0; again < 3; again++) {
        size_t pulls = m.pulls;
        ix = open_model(&m, path, (l2c_index_params){ 0 });
        assert_int_equal(m.pulls, pulls); // from the file, not from the source
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        assert_int_equal(st.rows, m.count);
        int64_t ids[20];
        float distances[20];
        size_t found;
        for (int q = 0; q < 20; q++) {
            model_vector(&m, v);
            assert_ok(l2c_index_search(ix, ids, distances, &found, v, 20, NULL, NULL, NULL, &err),
                      &err);
            assert_true(model_check(&m, ids, distances, found, v, 20, NULL) == 1.0);
        }
        assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err); // optimise
        l2c_index_get_status(ix, &st);
        assert_int_equal(st.rows, m.count);
        assert_int_equal(st.tombstones, 0);
        l2c_index_close(ix);
    }
    m.log_first = (int64_t)m.log_count + 1; // the log no longer reaches back
    model_vector(&m, v);
    model_put(&m, 7, v);
    m.log_first = (int64_t)m.log_count;
    ix = open_model(&m, path, (l2c_index_params){ 0 });
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    assert_int_equal(st.rows, m.count);
    l2c_index_close(ix);
    unlink(path);
    rmdir(dir);
    model_fini(&m);
}

/* Breaks if bad input is taken, or refused without saying what is wrong. */
static void bad_input_is_refused(void **state) {
    (void)state;
    model m;
    model_init(&m, WIDTH, 10, 2, 5);
    fill(&m, 1, 10);
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ 0 });
    float v[WIDTH] = { 3.0f };
    int64_t id = 4;
    float d;
    size_t found;
    assert_int_equal(l2c_index_add(ix, &id, v, 1, 1, &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "row 4 has norm 3"));
    assert_int_equal(l2c_index_search(ix, &id, &d, &found, v, 1, NULL, NULL, NULL, &err),
                     L2CDB_E_INVALID);
    v[0] = __builtin_nanf("");
    assert_int_equal(l2c_index_add(ix, &id, v, 1, 1, &err), L2CDB_E_INVALID);
    l2c_index_close(ix);
    l2c_index_params p = { 0 };
    assert_ok(l2c_index_params_set(&p, "quant", "sq4", &err), &err);
    assert_ok(l2c_index_params_set(&p, "kind", "hnsw", &err), &err);
    assert_ok(l2c_index_params_set(&p, "m", "24", &err), &err);
    assert_int_equal(p.quant, L2C_QUANT_SQ4);
    assert_int_equal(p.kind, L2C_INDEX_HNSW);
    assert_int_equal(p.m, 24);
    assert_int_equal(l2c_index_params_set(&p, "quant", "sq5", &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "auto, f32, fp16, sq8, sq4, pq"));
    assert_int_equal(l2c_index_params_set(&p, "m", "-3", &err), L2CDB_E_INVALID);
    assert_int_equal(l2c_index_params_set(&p, "n", "3", &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.hint, "ef_construction"));
    p.quant = L2C_QUANT_PQ;
    assert_int_equal(
        l2c_index_open(
            &ix, &(l2c_index_config){ .width = WIDTH, .params = p, .source = model_source(&m) },
            &err),
        L2CDB_E_INVALID);
    model_fini(&m);
}

/* Breaks if auto never changes to a graph, or takes back what somebody asked for. */
static void wants_what_was_asked(void **state) {
    (void)state;
    model m;
    model_init(&m, 8, 21000, 5, 7);
    float v[8];
    for (int64_t id = 1; id <= 1000; id++) {
        model_vector(&m, v);
        model_put(&m, id, v);
    }
    l2c_index *ix = open_model(&m, NULL, (l2c_index_params){ .threads = 1 });
    l2c_index_status st;
    assert_false(l2c_index_wants_build(ix));
    l2c_index_params p = { .kind = L2C_INDEX_HNSW, .m = 8, .ef_construction = 20, .threads = 1 };
    assert_ok(l2c_index_build(ix, &p, NULL, NULL, &err), &err);
    assert_false(l2c_index_wants_build(ix)); // though auto would be flat
    for (int64_t id = 1; id <= 300; id++) {
        assert_ok(l2c_index_remove(ix, &id, 1, model_drop(&m, id), &err), &err);
    }
    assert_false(l2c_index_wants_build(ix));
    for (int64_t id = 1001; id <= 2500; id++) {
        model_vector(&m, v);
        assert_ok(l2c_index_add(ix, &id, v, 1, model_put(&m, id, v), &err), &err);
    }
    assert_true(l2c_index_wants_build(ix)); // fresh rows beyond their share
    assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
    l2c_index_get_status(ix, &st);
    assert_int_equal(st.kind, L2C_INDEX_HNSW);
    assert_int_equal(st.params.m, 8);
    assert_int_equal(st.fresh_rows, 0);
    assert_non_null(strstr(st.why, "as asked; 2200 rows"));
    l2c_index_close(ix);
    ix = open_model(&m, NULL, (l2c_index_params){ .threads = 1 });
    for (int64_t id = 2501; id <= 20500; id++) {
        model_vector(&m, v);
        assert_ok(l2c_index_add(ix, &id, v, 1, model_put(&m, id, v), &err), &err);
    }
    assert_true(l2c_index_wants_build(ix)); // 20,200 rows
    l2c_index_close(ix);
    model_fini(&m);
}

/* One life of an index with a graph; the first error, or OK. */
static l2cdb_status live(model *m, const char *path) {
    l2c_index *ix = NULL;
    l2c_scan *scan = NULL;
    int64_t ids[64], filter_ids[200];
    float distances[64], v[WIDTH];
    size_t found;
    l2c_index_filter f = { .ids = filter_ids };
    for (int64_t id = 1; id <= 600; id += 3) {
        filter_ids[f.count++] = id;
    }
    l2c_index_config c = { .path = path,
                           .width = WIDTH,
                           .generation = 1,
                           .change = (int64_t)m->log_count,
                           .params = { .kind = L2C_INDEX_HNSW, .m = 8, .threads = 1 },
                           .source = model_source(m) };
    model_vector(m, v);
    l2cdb_status rc = l2c_index_open(&ix, &c, &err);
    if (rc == L2CDB_OK) {
        rc = l2c_index_build(ix, NULL, NULL, NULL, &err);
    }
    for (int64_t id = 1; rc == L2CDB_OK && id < 5; id++) {
        rc = l2c_index_add(ix, &id, v, 1, 0, &err);
    }
    if (rc == L2CDB_OK) {
        int64_t id = 9;
        rc = l2c_index_remove(ix, &id, 1, 0, &err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_index_search(ix, ids, distances, &found, v, 10, &f, NULL, NULL, &err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_scan_open(&scan, ix, v, NULL, NULL, &err);
    }
    for (int i = 0; rc == L2CDB_OK && i < 5; i++) {
        rc = l2c_scan_next(scan, ids, distances, 64, &found, &err);
    }
    l2c_scan_close(scan);
    l2c_index_close(ix);
    return rc;
}

/* Breaks if a failed allocation crashes, leaks (under AddressSanitizer) or is not reported. */
static void every_allocation_may_fail(void **state) {
    (void)state;
    char path[4200];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/a.idx", dir);
    model m;
    model_init(&m, WIDTH, 600, 5, 8);
    fill(&m, 1, 600);
    size_t failed = 0;
    for (uint64_t n = 1;; n++) {
        unlink(path);
        l2c_alloc_fail_at(n);
        l2cdb_status rc = live(&m, path);
        l2c_alloc_fail_at(0);
        if (rc == L2CDB_OK && n > 300) {
            break;
        }
        if (rc != L2CDB_OK && rc != L2CDB_E_NOMEM) {
            fail_msg("allocation %llu: %s: %s", (unsigned long long)n, l2cdb_status_name(rc),
                     err.message);
        }
        failed += rc != L2CDB_OK;
    }
    assert_true(failed > 50);
    unlink(path);
    rmdir(dir);
    model_fini(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flat_is_exact),
        cmocka_unit_test(long_scans_are_shared),
        cmocka_unit_test(equal_items_have_distance_zero),
        cmocka_unit_test(scan_sees_its_moment),
        cmocka_unit_test(reopen_replays),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(wants_what_was_asked),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
