/* Random inserts, replacements, deletes, merges, reopens and damaged files against the brute-force
 * model; every search and every scan with a filter must return exactly min(k, matches) right rows.
 *
 *   index_property_test [FILTERS [SEED]]     in ctest: 1500 filtered queries; by hand: 10000 */
#include "tests/test.h"

#include <fcntl.h>
#include <unistd.h>

#include "index/index.h"
#include "index_model.h"

#define WIDTH 32
#define IDS 4000
#define K_MOST 200

static l2cdb_error err;
static size_t filters_wanted = 1500;
static uint64_t seed = 20;

typedef struct world {
    model m;
    char path[4200];
    l2c_index *ix;
    l2c_index_params params;
    size_t filters, searches, approximate, scans, builds, reopens, damages, late_rows, scanned_rows;
    double recall;
} world;

static void open_index(world *w) {
    static const l2c_index_kind kinds[] = { L2C_INDEX_HNSW, L2C_INDEX_HNSW, L2C_INDEX_HNSW,
                                            L2C_INDEX_IVF,  L2C_INDEX_IVF,  L2C_INDEX_FLAT,
                                            L2C_INDEX_AUTO };
    static const l2c_quant quants[] = { L2C_QUANT_F32, L2C_QUANT_FP16, L2C_QUANT_SQ8,
                                        L2C_QUANT_SQ4 };
    model *m = &w->m;
    w->params = (l2c_index_params){ .kind = kinds[model_below(m, 7)],
                                    .quant = quants[model_below(m, 4)],
                                    .m = 8,
                                    .ef_construction = 40,
                                    .nlist = 1 + model_below(m, 40),
                                    .ef_search = model_below(m, 3) ? 16 : 0,
                                    .nprobe = model_below(m, 3) ? 2 : 0 };
    l2c_index_config c = { .path = model_below(m, 10) ? w->path : NULL,
                           .width = WIDTH,
                           .generation = 1,
                           .change = (int64_t)m->log_count,
                           .params = w->params,
                           .source = model_source(m) };
    assert_ok(l2c_index_open(&w->ix, &c, &err), &err);
    l2c_index_status st;
    l2c_index_get_status(w->ix, &st);
    assert_int_equal(st.rows, m->count);
}

static void change_some(world *w, bool tell) {
    model *m = &w->m;
    size_t n = 1 + model_below(m, 60);
    bool removal = model_below(m, 3) == 0;
    int64_t ids[60], change = 0;
    float vectors[60 * WIDTH];
    for (size_t i = 0; i < n; i++) { // the same id may come twice in a batch
        ids[i] = 1 + (int64_t)model_below(m, IDS);
        if (removal) {
            change = model_drop(m, ids[i]);
        } else {
            model_vector(m, vectors + i * WIDTH);
            change = model_put(m, ids[i], vectors + i * WIDTH);
        }
    }
    if (tell) {
        assert_ok(removal ? l2c_index_remove(w->ix, ids, n, change, &err)
                          : l2c_index_add(w->ix, ids, vectors, n, change, &err),
                  &err);
    }
}

/* From nothing to everything, also with ids that do not exist. */
static l2c_index_filter random_filter(world *w, int64_t *ids) {
    static const size_t shares[] = { 0, 1, 3, 10, 50, 100, 300, 600, 990, 1000 };
    size_t share = shares[model_below(&w->m, 10)];
    l2c_index_filter f = { .ids = ids };
    for (int64_t id = -3; id <= IDS + 50; id++) {
        if (model_below(&w->m, 1000) < share) {
            ids[f.count++] = id;
        }
    }
    w->filters++;
    return f;
}

static void query_of(world *w, float *v) {
    int64_t id = 1 + (int64_t)model_below(&w->m, IDS);
    if (model_below(&w->m, 3) == 0 && w->m.live[id]) {
        memcpy(v, w->m.vectors + (size_t)id * WIDTH, WIDTH * sizeof *v);
    } else {
        model_vector(&w->m, v);
    }
}

static void search_once(world *w) {
    static int64_t filter_ids[IDS + 100];
    float v[WIDTH], distances[K_MOST];
    int64_t ids[K_MOST];
    size_t found, k = 1 + model_below(&w->m, model_below(&w->m, 4) ? 20 : K_MOST);
    l2c_index_filter f = random_filter(w, filter_ids);
    const l2c_index_filter *filter = model_below(&w->m, 5) ? &f : NULL;
    l2c_search_params p = { .exact = model_below(&w->m, 20) == 0 };
    l2c_search_plan plan;
    query_of(w, v);
    assert_ok(l2c_index_search(w->ix, ids, distances, &found, v, k, filter, &p, &plan, &err), &err);
    double recall = model_check(&w->m, ids, distances, found, v, k, filter);
    w->searches++;
    if (plan.kind == L2C_INDEX_FLAT) {
        assert_true(recall == 1.0);
    } else {
        w->approximate++;
        w->recall += recall;
    }
}

typedef struct pair {
    float distance;
    int64_t id;
} pair;

static int compare_pairs(const void *a, const void *b) {
    const pair *x = a, *y = b;
    return x->distance < y->distance ? -1 : x->distance > y->distance;
}

static void scan_once(world *w) {
    static int64_t filter_ids[IDS + 100], ids[IDS];
    static float distances[IDS];
    static pair pairs[IDS];
    float v[WIDTH];
    l2c_index_filter f = random_filter(w, filter_ids);
    const l2c_index_filter *filter = model_below(&w->m, 4) ? &f : NULL;
    l2c_scan *scan;
    query_of(w, v);
    assert_ok(l2c_scan_open(&scan, w->ix, v, filter, NULL, &err), &err);
    size_t total = 0, got, wanted = model_below(&w->m, 2) ? IDS : model_below(&w->m, 300);
    do {
        size_t max = 1 + model_below(&w->m, 100);
        max = max < wanted - total ? max : wanted - total;
        assert_ok(l2c_scan_next(scan, ids + total, distances + total, max, &got, &err), &err);
        total += got;
    } while (got > 0 && total < wanted);
    l2c_scan_close(scan);
    float last = -1;
    for (size_t i = 0; i < total; i++) {
        w->late_rows += distances[i] < last;
        last = distances[i] > last ? distances[i] : last;
        pairs[i] = (pair){ .distance = distances[i], .id = ids[i] };
    }
    w->scanned_rows += total;
    qsort(pairs, total, sizeof *pairs, compare_pairs);
    for (size_t i = 0; i < total; i++) {
        ids[i] = pairs[i].id;
        distances[i] = pairs[i].distance;
    }
    model_check(&w->m, ids, distances, total, v, wanted, filter);
    w->scans++;
}

static void damage(world *w) {
    int fd = open(w->path, O_RDWR);
    if (fd < 0) {
        return;
    }
    off_t size = lseek(fd, 0, SEEK_END);
    off_t at = (off_t)model_below(&w->m, (size_t)size);
    uint8_t byte;
    if (model_below(&w->m, 4) == 0) {
        assert_int_equal(ftruncate(fd, at), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte = (uint8_t)(byte ^ (1u << model_below(&w->m, 8)));
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    w->damages++;
}

static void reopen(world *w) {
    l2c_index_close(w->ix);
    for (size_t i = model_below(&w->m, 3); i > 0; i--) {
        change_some(w, false); // the store moved on
    }
    if (model_below(&w->m, 4) == 0) {
        damage(w);
    }
    open_index(w);
    w->reopens++;
}

/* Breaks if any sequence of changes makes a filtered answer incomplete, wrong or out of date. */
static void random_walk(void **state) {
    (void)state;
    static world w;
    const char *dir = test_temp_dir();
    snprintf(w.path, sizeof w.path, "%s/p.idx", dir);
    model_init(&w.m, WIDTH, IDS, 25, seed);
    for (int i = 0; i < 40; i++) {
        open_index(&w);
        change_some(&w, true);
        l2c_index_close(w.ix);
    }
    open_index(&w);
    while (w.filters < filters_wanted) {
        size_t dice = model_below(&w.m, 100);
        if (dice < 30) {
            change_some(&w, true);
        } else if (dice < 82) {
            search_once(&w);
        } else if (dice < 90) {
            scan_once(&w);
        } else if (dice < 95) {
            assert_ok(l2c_index_build(w.ix, NULL, NULL, NULL, &err), &err);
            l2c_index_status st;
            l2c_index_get_status(w.ix, &st);
            assert_int_equal(st.rows, w.m.count);
            assert_int_equal(st.tombstones, 0);
            w.builds++;
        } else {
            reopen(&w);
        }
    }
    l2c_index_close(w.ix);
    double recall = w.recall / (double)(w.approximate > 0 ? w.approximate : 1);
    double late = (double)w.late_rows / (double)(w.scanned_rows > 0 ? w.scanned_rows : 1);
    printf(
        "seed %llu: %zu filters, %zu searches (%zu approximate, recall %.4f), %zu scans with %zu "
        "rows (%.4f late), %zu builds, %zu reopens, %zu damaged files; %zu rows\n",
        (unsigned long long)seed, w.filters, w.searches, w.approximate, recall, w.scans,
        w.scanned_rows, late, w.builds, w.reopens, w.damages, w.m.count);
    assert_true(w.approximate > w.searches / 20);
    assert_true(recall > 0.8); // ef 16 and nprobe 2, on purpose
    assert_true(late < 0.02);
    char command[8400];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
    model_fini(&w.m);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        filters_wanted = strtoul(argv[1], NULL, 10);
    }
    if (argc > 2) {
        seed = strtoull(argv[2], NULL, 10);
    }
    const struct CMUnitTest tests[] = { cmocka_unit_test(random_walk) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
