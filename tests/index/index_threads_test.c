/* Readers, a writer and a builder at once: under ThreadSanitizer a proof that they share nothing
 * unguarded, and everywhere a check that every answer is one that was right at some moment. */
#include "tests/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "index/index.h"
#include "index_model.h"

#define WIDTH 32
#define KEPT 1500 /* ids that never change */
#define IDS 3000
#define READERS 3

typedef struct shared {
    model m;
    l2c_index *ix;
    atomic_bool stop;
    atomic_size_t answers, builds;
} shared;

static void *read_all(void *ctx) {
    shared *s = ctx;
    l2cdb_error err;
    uint64_t x = 88172645463325252u + (uint64_t)(uintptr_t)&err;
    int64_t evens[KEPT];
    size_t n = 0;
    for (int64_t id = 2; id <= KEPT; id += 2) {
        evens[n++] = id;
    }
    l2c_index_filter filter = { .ids = evens, .count = n };
    while (!atomic_load(&s->stop)) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        int64_t id = 1 + (int64_t)(x % KEPT);
        float v[WIDTH], distances[30];
        int64_t ids[30];
        size_t found, got;
        memcpy(v, s->m.vectors + (size_t)id * WIDTH, sizeof v); // kept rows are never written
        bool filtered = x & 1024;
        l2c_search_params exact = { .exact = x & 2048 };
        if (l2c_index_search(s->ix, ids, distances, &found, v, 30, filtered ? &filter : NULL,
                             &exact, NULL, &err) != L2CDB_OK ||
            found != 30) {
            fail_msg("%zu rows: %s", found, err.message);
        }
        for (size_t i = 0; i < found; i++) {
            assert_true(i == 0 || distances[i] >= distances[i - 1]);
            assert_true(!filtered || (ids[i] % 2 == 0 && ids[i] <= KEPT));
            for (size_t j = 0; j < i; j++) {
                assert_true(ids[i] != ids[j]);
            }
        }
        if (exact.exact && (!filtered || id % 2 == 0)) {
            assert_true(ids[0] == id && distances[0] == 0.0f);
        }
        l2c_scan *scan;
        assert_int_equal(l2c_scan_open(&scan, s->ix, v, &filter, NULL, &err), L2CDB_OK);
        size_t total = 0;
        do {
            assert_int_equal(l2c_scan_next(scan, ids, distances, 30, &got, &err), L2CDB_OK);
            total += got;
        } while (got > 0 && total < 200);
        assert_true(total >= 200);
        l2c_scan_close(scan);
        l2c_index_status st;
        l2c_index_get_status(s->ix, &st);
        assert_true(st.rows >= KEPT);
        atomic_fetch_add(&s->answers, 1);
    }
    return NULL;
}

static void *build_all(void *ctx) {
    shared *s = ctx;
    l2cdb_error err;
    l2c_index_params p = { .kind = L2C_INDEX_HNSW, .m = 8, .ef_construction = 40, .threads = 2 };
    while (!atomic_load(&s->stop)) {
        p.quant = atomic_load(&s->builds) % 2 ? L2C_QUANT_SQ8 : L2C_QUANT_SQ4;
        if (l2c_index_build(s->ix, &p, NULL, NULL, &err) != L2CDB_OK) {
            fail_msg("build: %s", err.message);
        }
        atomic_fetch_add(&s->builds, 1);
    }
    return NULL;
}

/* Breaks if a build loses a change made while it ran, or if readers and writers race. */
static void all_at_once(void **state) {
    (void)state;
    static shared s;
    l2cdb_error err;
    char path[4200];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/t.idx", dir);
    model_init(&s.m, WIDTH, IDS, 20, 41);
    float v[WIDTH];
    for (int64_t id = 1; id <= KEPT; id++) {
        model_vector(&s.m, v);
        model_put(&s.m, id, v);
    }
    l2c_index_config c = { .path = path,
                           .width = WIDTH,
                           .generation = 1,
                           .change = (int64_t)s.m.log_count,
                           .source = model_source(&s.m) };
    assert_ok(l2c_index_open(&s.ix, &c, &err), &err);
    pthread_t readers[READERS], builder;
    for (size_t i = 0; i < READERS; i++) {
        assert_int_equal(pthread_create(&readers[i], NULL, read_all, &s), 0);
    }
    assert_int_equal(pthread_create(&builder, NULL, build_all, &s), 0);
    for (int i = 0; i < 4000 || atomic_load(&s.builds) < 4; i++) {
        int64_t id = KEPT + 1 + (int64_t)model_below(&s.m, IDS - KEPT), change;
        if (model_below(&s.m, 3) == 0) {
            change = model_drop(&s.m, id);
            assert_ok(l2c_index_remove(s.ix, &id, 1, change, &err), &err);
        } else {
            model_vector(&s.m, v);
            change = model_put(&s.m, id, v);
            assert_ok(l2c_index_add(s.ix, &id, v, 1, change, &err), &err);
        }
        if (i % 64 == 0) {
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        }
    }
    atomic_store(&s.stop, true);
    for (size_t i = 0; i < READERS; i++) {
        pthread_join(readers[i], NULL);
    }
    pthread_join(builder, NULL);
    for (int again = 0; again < 2; again++) { // in this handle, then in a new one
        l2c_index_status st;
        l2c_index_get_status(s.ix, &st);
        assert_int_equal(st.rows, s.m.count);
        int64_t ids[20];
        float distances[20];
        size_t found;
        for (int q = 0; q < 20; q++) {
            model_vector(&s.m, v);
            l2c_search_params exact = { .exact = true };
            assert_ok(
                l2c_index_search(s.ix, ids, distances, &found, v, 20, NULL, &exact, NULL, &err),
                &err);
            assert_true(model_check(&s.m, ids, distances, found, v, 20, NULL) == 1.0);
        }
        l2c_index_close(s.ix);
        c.change = (int64_t)s.m.log_count;
        if (again == 0) {
            assert_ok(l2c_index_open(&s.ix, &c, &err), &err);
        }
    }
    printf("%zu answers during %zu builds\n", atomic_load(&s.answers), atomic_load(&s.builds));
    unlink(path);
    rmdir(dir);
    model_fini(&s.m);
}

int main(int argc, char **argv) {
    (void)argc;
    model_one_thread(argv);
    const struct CMUnitTest tests[] = { cmocka_unit_test(all_at_once) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
