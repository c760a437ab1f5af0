/* Own vectors without photos or a model: in, found exactly, filtered, out again, and gone when
 * deleted. */
#define _GNU_SOURCE
#include "tests/test.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

#include "engine/base/file.h"
#include "engine/base/vec.h"
#include "engine/engine.h"
#include "engine/npy.h"

#define ROWS 5000
#define WIDTH 48

static _Thread_local l2cdb_error e;
static char dir[4100], path[4200];
static float *vectors; /* [ROWS, WIDTH], not normalised */

static const char *in_dir(const char *name) {
    static char out[4][4300];
    static unsigned turn;
    char *p = out[turn++ % 4];
    snprintf(p, sizeof out[0], "%s/%s", dir, name);
    return p;
}

static float noise(void) {
    return (float)rand() / (float)RAND_MAX - 0.5f;
}

static void write_npy(const char *name, const float *v, size_t rows, size_t width) {
    char header[L2C_NPY_HEADER_BYTES];
    l2c_npy_header(header, "<f4", rows, width);
    l2c_writer w;
    assert_ok(l2c_writer_open(&w, name, &e), &e);
    assert_ok(l2c_writer_write(&w, header, sizeof header, &e), &e);
    size_t count = rows * (width != 0 ? width : 1);
    assert_ok(l2c_writer_write(&w, v, count * sizeof *v, &e), &e);
    assert_ok(l2c_writer_commit(&w, &e), &e);
}

static l2cdb *open_db(const char *name) {
    l2cdb *db;
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.no_model = true;
    assert_ok(l2cdb_open(&db, name, &o, &e), &e);
    return db;
}

static l2cdb_results *search(l2cdb *db, const float *q, size_t k) {
    l2cdb_query query;
    l2cdb_query_init(&query);
    l2cdb_term t = { .kind = L2CDB_TERM_VECTOR, .data = q, .size = WIDTH * sizeof *q, .weight = 1 };
    query.terms = &t;
    query.terms_count = 1;
    query.k = k;
    l2cdb_results *r;
    assert_ok(l2cdb_search(db, &query, &r, &e), &e);
    return r;
}

static double cosine(const float *a, const float *b) {
    return (double)l2c_vec_dot(a, b, WIDTH) /
           ((double)l2c_vec_norm(a, WIDTH) * (double)l2c_vec_norm(b, WIDTH));
}

/* Broken: imported rows get other numbers than their place in the file, or a search misses one. */
static void imported_rows_are_found(void **state) {
    (void)state;
    write_npy(in_dir("x.npy"), vectors, ROWS, WIDTH);
    FILE *meta = fopen(in_dir("x.jsonl"), "w");
    for (int i = 0; i < ROWS; i++) {
        fprintf(meta, "{\"path\":\"row/%d\",\"tags\":\"t%d\",\"colour\":\"c%d\"}\n", i, i % 3,
                i % 7);
    }
    fclose(meta);
    l2cdb *db = open_db(path);
    uint64_t rows;
    assert_ok(l2cdb_import_vectors(db, in_dir("x.npy"), in_dir("x.jsonl"), &rows, NULL, NULL, &e),
              &e);
    assert_int_equal(rows, ROWS);
    for (int round = 0; round < 20; round++) {
        float q[WIDTH];
        for (int i = 0; i < WIDTH; i++) {
            q[i] = noise();
        }
        l2cdb_results *r = search(db, q, 10);
        assert_int_equal(l2cdb_results_count(r), 10);
        double tenth = (double)l2cdb_results_row(r, 9)->score;
        size_t better = 0;
        for (int i = 0; i < ROWS; i++) {
            better += cosine(q, vectors + i * WIDTH) > tenth + 1e-6 ? 1 : 0;
        }
        assert_true(better <= 9);
        for (size_t i = 0; i < 10; i++) {
            const l2cdb_row *row = l2cdb_results_row(r, i);
            double want = cosine(q, vectors + (row->id - 1) * WIDTH);
            assert_true(fabs(want - (double)row->score) < 1e-5);
            char name[32];
            snprintf(name, sizeof name, "row/%lld", (long long)row->id - 1);
            assert_string_equal(row->path, name);
        }
        l2cdb_results_free(r);
    }
    l2c_image_record record;
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    assert_ok(l2c_images_get(db->store, 9, &record, &arena, &e), &e);
    assert_string_equal(record.tags, "t2");
    assert_string_equal(record.meta, "{\"colour\":\"c1\"}");
    l2c_arena_fini(&arena);
    l2cdb_close(db);
}

/* Broken: a vector comes out other than it went in (but for its length). */
static void export_gives_them_back(void **state) {
    (void)state;
    l2cdb *db = open_db(path);
    uint64_t rows;
    assert_ok(l2cdb_export_vectors(db, L2CDB_IMAGES, in_dir("y.npy"), in_dir("ids.npy"), &rows, &e),
              &e);
    assert_int_equal(rows, ROWS);
    test_npy v = test_npy_load(in_dir("y.npy")), ids = test_npy_load(in_dir("ids.npy"));
    assert_int_equal(v.ndim, 2);
    assert_int_equal(v.shape[0], ROWS);
    assert_int_equal(ids.ndim, 1);
    assert_string_equal(ids.dtype, "<i8");
    for (int i = 0; i < ROWS; i++) {
        assert_int_equal(((int64_t *)ids.data)[i], i + 1);
        assert_true(cosine((float *)v.data + i * WIDTH, vectors + i * WIDTH) > 0.99999);
        assert_true(fabs((double)l2c_vec_norm((float *)v.data + i * WIDTH, WIDTH) - 1) < 1e-5);
    }
    free(v.data);
    free(ids.data);
    float *q;
    size_t n, width;
    write_npy(in_dir("q.npy"), vectors, WIDTH, 0);
    assert_ok(l2cdb_vectors_read(in_dir("q.npy"), &q, &n, &width, &e), &e);
    assert_int_equal(n, 1);
    assert_int_equal(width, WIDTH);
    assert_memory_equal(q, vectors, WIDTH * sizeof *q);
    l2cdb_vectors_free(q);
    l2cdb_close(db);
}

/* Broken: k, offset or the cuts by score give other rows than the full ranking has there. */
static void cuts_agree_with_the_ranking(void **state) {
    (void)state;
    l2cdb *db = open_db(path);
    l2cdb_results *all = search(db, vectors, 200);
    assert_true(fabs((double)l2cdb_results_row(all, 0)->score - 1) < 1e-6);
    l2cdb_term t = {
        .kind = L2CDB_TERM_VECTOR, .data = vectors, .size = WIDTH * sizeof(float), .weight = 2
    };
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = &t;
    q.terms_count = 1;
    q.k = 20;
    q.offset = 30;
    q.include_vector = true;
    l2cdb_results *r;
    assert_ok(l2cdb_search(db, &q, &r, &e), &e);
    assert_int_equal(l2cdb_results_count(r), 20);
    for (size_t i = 0; i < 20; i++) {
        const l2cdb_row *row = l2cdb_results_row(r, i);
        assert_int_equal(row->id, l2cdb_results_row(all, i + 30)->id);
        assert_true(cosine(row->vector, vectors + (row->id - 1) * WIDTH) > 0.99999);
    }
    l2cdb_results_free(r);
    q.k = 200;
    q.offset = 0;
    q.share_min = (double)l2cdb_results_row(all, 50)->score - 1e-7;
    assert_ok(l2cdb_search(db, &q, &r, &e), &e);
    assert_int_equal(l2cdb_results_count(r), 51);
    l2cdb_results_free(r);
    q.share_min = 0;
    q.score_min = (double)l2cdb_results_row(all, 100)->score - 1e-7;
    assert_ok(l2cdb_search(db, &q, &r, &e), &e);
    assert_int_equal(l2cdb_results_count(r), 101);
    l2cdb_results_free(r);
    l2cdb_results_free(all);
    // a − a is nothing to search for.
    l2cdb_term both[2] = { t, t };
    both[1].weight = -2;
    q.terms = both;
    q.terms_count = 2;
    assert_int_equal(l2cdb_search(db, &q, &r, &e), L2CDB_E_INVALID);
    assert_non_null(strstr(e.message, "cancel each other"));
    q.terms_count = 1;
    q.k = 10001;
    assert_int_equal(l2cdb_search(db, &q, &r, &e), L2CDB_E_LIMIT);
    q.k = 5;
    both[0].size -= sizeof(float);
    assert_int_equal(l2cdb_search(db, &q, &r, &e), L2CDB_E_MISMATCH);
    assert_non_null(strstr(e.message, "47 values, expected 48"));
    l2cdb_close(db);
}

static bool file_holds(const char *name, const void *bytes, size_t n) {
    l2c_map m;
    if (l2c_map_open(&m, name, &e) != L2CDB_OK) {
        return false;
    }
    bool found = m.size > 0 && memmem(m.data, m.size, bytes, n) != NULL;
    l2c_map_close(&m);
    return found;
}

/* Broken: a second handle, as another process has, does not see what the first one wrote; or a
 * deleted vector answers, or stays on disk after vacuum. */
static void handles_follow_each_other(void **state) {
    (void)state;
    l2cdb *a = open_db(path), *b = open_db(path);
    l2cdb_results *r = search(b, vectors + 7 * WIDTH, 1);
    assert_int_equal(l2cdb_results_row(r, 0)->id, 8);
    l2cdb_results_free(r);
    assert_ok(l2cdb_index_create(a, L2CDB_IMAGES, "kind=flat", NULL, NULL, &e), &e);
    float unit[WIDTH];
    memcpy(unit, vectors + 7 * WIDTH, sizeof unit);
    l2c_vec_normalize(unit, WIDTH);
    assert_ok(l2cdb_delete_images(a, (int64_t[]){ 8, 9 }, 2, &e), &e);
    for (int i = 0; i < 2; i++) {
        r = search(i == 0 ? a : b, vectors + 7 * WIDTH, 3);
        for (size_t k = 0; k < 3; k++) {
            assert_int_not_equal(l2cdb_results_row(r, k)->id, 8);
        }
        l2cdb_results_free(r);
    }
    assert_int_equal(l2cdb_delete_images(a, (int64_t[]){ 8 }, 1, &e), L2CDB_E_NOTFOUND);
    l2cdb_close(b);
    assert_ok(l2cdb_vacuum(a, &e), &e);
    char command[4400];
    snprintf(command, sizeof command, "%s-wal", path);
    char *index = l2c_view_index_path(a, 1, L2C_KIND_IMAGE);
    assert_false(file_holds(path, unit, sizeof unit));
    assert_false(file_holds(command, unit, sizeof unit));
    assert_false(file_holds(index, unit, sizeof unit));
    l2c_free(index);
    r = search(a, vectors + 10 * WIDTH, 1);
    assert_int_equal(l2cdb_results_row(r, 0)->id, 11);
    l2cdb_results_free(r);
    assert_ok(l2cdb_check(a, false, NULL, NULL, &e), &e);
    l2cdb_close(a);
}

typedef struct asker {
    l2cdb *db;
    atomic_bool stop;
    unsigned answers, wrong;
} asker;

/* Rows 1 to 100 are never deleted: the nearest of row i is row i, whatever else comes and goes. */
static void *ask(void *ctx) {
    asker *a = ctx;
    for (unsigned n = 0; !atomic_load(&a->stop); n++) {
        size_t i = n % 7 == 0 ? 99 : n % 5;
        l2cdb_results *r = search(a->db, vectors + i * WIDTH, 20);
        bool right = l2cdb_results_count(r) == 20 && l2cdb_results_row(r, 0)->id == (int64_t)i + 1;
        for (size_t k = 1; k < l2cdb_results_count(r); k++) {
            right =
                right && l2cdb_results_row(r, k)->distance >= l2cdb_results_row(r, k - 1)->distance;
        }
        a->wrong += right ? 0 : 1;
        a->answers++;
        l2cdb_results_free(r);
    }
    return NULL;
}

/* Broken: answers are torn, too short or out of order while rows come, go, and indexes are built.
 */
static void questions_beside_a_writer(void **state) {
    (void)state;
    l2cdb *writer = open_db(path), *other = open_db(path);
    asker askers[3] = { { .db = writer }, { .db = writer }, { .db = other } };
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, ask, &askers[i]), 0);
    }
    write_npy(in_dir("more.npy"), vectors + 1000 * WIDTH, 64, WIDTH);
    for (int round = 0; round < 12; round++) {
        uint64_t rows;
        l2cdb_stats stats;
        assert_ok(l2cdb_import_vectors(writer, in_dir("more.npy"), NULL, &rows, NULL, NULL, &e),
                  &e);
        assert_ok(l2cdb_delete_images(writer, (int64_t[]){ 200 + round, 300 + round }, 2, &e), &e);
        if (round % 4 == 1) {
            const char *kind = round == 5 ? "kind=hnsw m=16 quant=f32" : "kind=flat";
            assert_ok(l2cdb_index_create(writer, L2CDB_IMAGES, kind, NULL, NULL, &e), &e);
        }
        assert_ok(l2cdb_get_stats(other, &stats, &e), &e);
    }
    for (int i = 0; i < 3; i++) {
        atomic_store(&askers[i].stop, true);
        pthread_join(threads[i], NULL);
        printf("%u answers, %u wrong\n", askers[i].answers, askers[i].wrong);
        assert_int_equal(askers[i].wrong, 0);
    }
    l2cdb_close(other);
    assert_ok(l2cdb_check(writer, false, NULL, NULL, &e), &e);
    l2cdb_close(writer);
}

/* Broken: a large collection stays without a graph, or its rows are not all in it. */
static void graphs_come_by_themselves(void **state) {
    (void)state;
    enum { MANY = 24000, NARROW = 8 };
    float *v = malloc(MANY * NARROW * sizeof *v);
    for (size_t i = 0; i < MANY * NARROW; i++) {
        v[i] = noise();
    }
    write_npy(in_dir("many.npy"), v, MANY, NARROW);
    const char *name = in_dir("many.l2cdb");
    l2cdb *db = open_db(name);
    l2cdb_index_info info;
    assert_ok(l2cdb_import_vectors(db, in_dir("many.npy"), NULL, NULL, NULL, NULL, &e), &e);
    l2cdb_close(db); // waits for the build
    db = open_db(name);
    assert_ok(l2cdb_index_status(db, L2CDB_IMAGES, &info, &e), &e);
    printf("%s %s: %s\n", info.kind, info.quant, info.why);
    assert_string_equal(info.kind, "hnsw");
    assert_int_equal(info.base_rows, MANY);
    assert_int_equal(info.fresh_rows, 0);
    assert_ok(l2cdb_index_drop(db, L2CDB_IMAGES, &e), &e);
    assert_ok(l2cdb_index_status(db, L2CDB_IMAGES, &info, &e), &e);
    assert_string_equal(info.kind, "flat");
    l2cdb_close(db);
    db = open_db(name); // what was dropped stays dropped
    assert_ok(l2cdb_index_status(db, L2CDB_IMAGES, &info, &e), &e);
    assert_string_equal(info.kind, "flat");
    l2cdb_close(db);
    free(v);
}

/* Broken: a wrong file is taken, or the user is not told how to make a right one. */
static void wrong_files_are_refused(void **state) {
    (void)state;
    l2cdb *db = open_db(path);
    uint64_t rows;
    const char *bad = in_dir("bad.npy");
    write_npy(bad, vectors, 4, WIDTH - 1);
    assert_int_equal(l2cdb_import_vectors(db, bad, NULL, &rows, NULL, NULL, &e), L2CDB_E_MISMATCH);
    assert_non_null(strstr(e.message, "have 48 values, these have 47"));
    write_npy(bad, vectors, 4, WIDTH);
    assert_int_equal(truncate(bad, L2C_NPY_HEADER_BYTES + 100), 0);
    assert_int_equal(l2cdb_import_vectors(db, bad, NULL, &rows, NULL, NULL, &e), L2CDB_E_FORMAT);
    assert_non_null(strstr(e.message, "promises 4 rows"));
    assert_ok(l2c_file_replace(bad, "no array", 8, &e), &e);
    assert_int_equal(l2cdb_import_vectors(db, bad, NULL, &rows, NULL, NULL, &e), L2CDB_E_FORMAT);
    assert_true(e.hint[0] != '\0');
    float zero[WIDTH * 2];
    memcpy(zero, vectors, WIDTH * sizeof *zero);
    memset(zero + WIDTH, 0, WIDTH * sizeof *zero);
    write_npy(bad, zero, 2, WIDTH);
    assert_int_equal(l2cdb_import_vectors(db, bad, NULL, &rows, NULL, NULL, &e), L2CDB_E_INVALID);
    assert_non_null(strstr(e.message, "row 1 is zero"));
    l2cdb_term text = { .kind = L2CDB_TERM_TEXT, .text = "boat", .weight = 1 };
    float out[WIDTH];
    assert_int_equal(l2cdb_encode(db, &text, out, WIDTH, &e), L2CDB_E_UNSUPPORTED);
    l2cdb_close(db);
}

/* Broken: ":memory:" cannot be used from two threads' connections, or leaves files behind. */
static void memory_is_a_database_too(void **state) {
    (void)state;
    l2cdb *db = open_db(":memory:");
    uint64_t rows;
    assert_ok(l2cdb_import_vectors(db, in_dir("x.npy"), NULL, &rows, NULL, NULL, &e), &e);
    l2cdb_results *r = search(db, vectors + 3 * WIDTH, 2);
    assert_int_equal(l2cdb_results_row(r, 0)->id, 4);
    assert_null(l2cdb_results_row(r, 0)->path);
    l2cdb_results_free(r);
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s", db->temp_dir);
    assert_true(l2c_path_is_dir(temporary));
    l2cdb_close(db);
    assert_false(l2c_path_exists(temporary));
}

int main(void) {
    srand(3);
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    snprintf(path, sizeof path, "%s/v.l2cdb", dir);
    vectors = malloc(ROWS * WIDTH * sizeof *vectors);
    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        vectors[i] = noise();
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(imported_rows_are_found),     cmocka_unit_test(export_gives_them_back),
        cmocka_unit_test(cuts_agree_with_the_ranking), cmocka_unit_test(handles_follow_each_other),
        cmocka_unit_test(questions_beside_a_writer),   cmocka_unit_test(graphs_come_by_themselves),
        cmocka_unit_test(wrong_files_are_refused),     cmocka_unit_test(memory_is_a_database_too),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(vectors);
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command) != 0 || failed;
}
