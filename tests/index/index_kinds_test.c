/* Every kind with every storage: recall, the check that the index itself answered, files that come
 * back as they were, and kernels that agree with the plain ones. */
#include "tests/test.h"

#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "index/codes.h"
#include "index/index.h"
#include "index_model.h"

#define WIDTH 96
#define ROWS 4000
#define QUERIES 100

static l2cdb_error err;
static model m;

typedef struct kind_case {
    l2c_index_kind kind;
    l2c_quant quant;
    double least; /* recall@10 at the tuned setting */
} kind_case;

static const kind_case cases[] = {
    { L2C_INDEX_FLAT, L2C_QUANT_F32, 1.0 },   { L2C_INDEX_HNSW, L2C_QUANT_F32, 0.95 },
    { L2C_INDEX_HNSW, L2C_QUANT_FP16, 0.95 }, { L2C_INDEX_HNSW, L2C_QUANT_SQ8, 0.95 },
    { L2C_INDEX_HNSW, L2C_QUANT_SQ4, 0.93 },  { L2C_INDEX_IVF, L2C_QUANT_F32, 0.93 },
    { L2C_INDEX_IVF, L2C_QUANT_FP16, 0.93 },  { L2C_INDEX_IVF, L2C_QUANT_SQ8, 0.93 },
    { L2C_INDEX_IVF, L2C_QUANT_SQ4, 0.9 },    { L2C_INDEX_IVF, L2C_QUANT_PQ, 0.85 },
};

static int setup(void **state) {
    (void)state;
    model_init(&m, WIDTH, ROWS + 200, 30, 11);
    float v[WIDTH];
    for (int64_t id = 1; id <= ROWS; id++) {
        model_vector(&m, v);
        model_put(&m, id, v);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    model_fini(&m);
    return 0;
}

static l2c_index *open_kind(const kind_case *c, const char *path) {
    l2c_index *ix;
    l2c_index_config config = { .path = path,
                                .width = WIDTH,
                                .generation = 1,
                                .change = (int64_t)m.log_count,
                                .params = { .kind = c->kind,
                                            .quant = c->quant,
                                            .m = 16,
                                            .nlist = c->kind == L2C_INDEX_IVF ? 50 : 0 },
                                .source = model_source(&m) };
    assert_ok(l2c_index_open(&ix, &config, &err), &err);
    return ix;
}

static double recall_of(l2c_index *ix, l2c_index_kind expected) {
    double sum = 0;
    uint64_t seed = m.seed;
    m.seed = 99;
    for (int q = 0; q < QUERIES; q++) {
        float v[WIDTH];
        int64_t ids[10];
        float distances[10];
        size_t found;
        l2c_search_plan plan;
        model_vector(&m, v);
        assert_ok(l2c_index_search(ix, ids, distances, &found, v, 10, NULL, NULL, &plan, &err),
                  &err);
        assert_int_equal(plan.kind, expected);
        sum += model_check(&m, ids, distances, found, v, 10, NULL);
    }
    m.seed = seed;
    return sum / QUERIES;
}

/* Breaks if a kind with a storage finds too little, answers by brute force instead of by the index,
 * or comes back different from its file. */
static void every_kind_recalls(void **state) {
    (void)state;
    char path[4200];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/k.idx", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kind_case *c = &cases[i];
        if (getenv("L2CDB_CPU") != NULL && c->quant != L2C_QUANT_SQ8) {
            continue; // an older processor's kernels in one graph and in lists
        }
        l2c_index *ix = open_kind(c, path);
        assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
        double before = recall_of(ix, c->kind);
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        assert_int_equal(st.kind, c->kind);
        assert_int_equal(st.quant, c->quant);
        assert_true(st.file_bytes > ROWS * WIDTH * sizeof(float));
        printf("%s %s: recall@10 %.3f, ef %zu, nprobe %zu, %.0f bytes a row\n",
               l2c_index_kind_name(c->kind), l2c_quant_name(c->quant), before, st.params.ef_search,
               st.params.nprobe, (double)st.memory_bytes / ROWS);
        assert_true(before >= c->least);
        l2c_index_close(ix);
        size_t pulls = m.pulls;
        ix = open_kind(c, path);
        assert_int_equal(m.pulls, pulls);
        assert_true(recall_of(ix, c->kind) == before);
        l2c_recall_result r;
        assert_ok(l2c_index_recall(ix, &r, 10, 50, 0.9, 5, &err), &err);
        assert_true(r.recall >= c->least - 0.1);
        assert_true(c->kind == L2C_INDEX_FLAT || r.wanted_param > 0);
        l2c_index_set_search_params(ix, 77, 7);
        l2c_index_close(ix);
        ix = open_kind(c, path); // kept in the file
        l2c_index_get_status(ix, &st);
        assert_int_equal(st.params.ef_search, 77);
        assert_int_equal(st.params.nprobe, 7);
        assert_int_equal(st.rows, m.count);
        l2c_index_close(ix);
        unlink(path);
    }
    rmdir(dir);
}

/* Breaks if a stored vector does not find itself at distance 0 through a 4-bit graph. */
static void four_bits_answer_in_full_precision(void **state) {
    (void)state;
    l2c_index *ix = open_kind(&cases[4], NULL);
    assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
    size_t missed = 0;
    for (int64_t id = 1; id <= ROWS; id += 17) {
        int64_t got;
        float d;
        size_t found;
        l2c_search_plan plan;
        assert_ok(l2c_index_search(ix, &got, &d, &found, m.vectors + (size_t)id * WIDTH, 1, NULL,
                                   NULL, &plan, &err),
                  &err);
        assert_int_equal(plan.quant, L2C_QUANT_SQ4);
        missed += got != id || d != 0.0f;
    }
    assert_true(missed <= 4);
    l2c_index_close(ix);
}

static bool stop_at_build(void *ctx, const char *phase, size_t done, size_t total) {
    (void)done;
    (void)total;
    return strcmp(phase, ctx) != 0;
}

/* Breaks if a cancelled build leaves anything behind or disturbs what answered before. */
static void builds_can_be_cancelled(void **state) {
    (void)state;
    const char *phases[] = { "read", "train", "build", "tune" };
    for (size_t i = 0; i < 4; i++) {
        l2c_index *ix = open_kind(&cases[3], NULL);
        assert_int_equal(
            l2c_index_build(ix, NULL, stop_at_build, (void *)(uintptr_t)phases[i], &err),
            L2CDB_E_CANCELLED);
        assert_true(recall_of(ix, L2C_INDEX_FLAT) == 1.0);
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        assert_false(st.building);
        l2c_index_close(ix);
    }
}

/* Value i of a row of codes. */
static double decode(const l2c_codes *c, const uint8_t *row, size_t i) {
    float f;
    switch (c->quant) {
    case L2C_QUANT_SQ8:
        return (double)c->min[i] + (double)c->step[i] * row[i];
    case L2C_QUANT_SQ4:
        return (double)c->min[i] + (double)c->step[i] * (i % 2 ? row[i / 2] >> 4 : row[i / 2] & 15);
    case L2C_QUANT_FP16:
        return ldexp(1 + (row[2 * i] | (row[2 * i + 1] & 3) << 8) / 1024.0,
                     (row[2 * i + 1] >> 2) - 15);
    default:
        memcpy(&f, row + 4 * i, 4);
        return (double)f;
    }
}

static float random_value(void) {
    return ((float)model_below(&m, 2001) - 1000) / 1000;
}

/* Seven rows of finite numbers in any storage, of norm at most 1 where they are codes. */
static void random_rows(uint8_t *rows, size_t n, l2c_quant quant) {
    for (size_t i = 0; i < 28 * n; i++) {
        rows[i] = (uint8_t)model_below(&m, 256);
    }
    for (size_t i = 0; i < 7 * n; i++) {
        float x = random_value();
        if (quant == L2C_QUANT_F32) {
            memcpy(rows + 4 * i, &x, 4);
        } else if (quant == L2C_QUANT_FP16) {
            rows[2 * i + 1] = (uint8_t)(0x30 + model_below(&m, 8));
        }
    }
}

static void check_dots(const l2c_codes_query *query, const double *x, const char *what) {
    const l2c_codes *c = query->codes;
    const int32_t order[7] = { 3, 0, 6, 1, 5, 2, 4 };
    float dots[7];
    l2c_codes_dots(dots, query, order, 7);
    for (size_t r = 0; r < 7; r++) {
        double dot = 0, size = 0;
        for (size_t i = 0; i < c->width; i++) {
            double y = decode(c, c->rows + (size_t)order[r] * c->row_bytes, i);
            dot += x[i] * y;
            size += fabs(x[i] * y);
        }
        if (fabs(dot - (double)dots[r]) > 1e-3 * size + 2e-4) {
            fail_msg("%s, quantiser %s, width %zu: %.7f, expected %.7f", what,
                     l2c_quant_name(c->quant), c->width, (double)dots[r], dot);
        }
    }
}

/* Breaks if a form of the kernels for this processor is wrong in any storage, at any width. Run
 * again by kernels_agree_everywhere with fewer features. */
static void kernels_agree(void **state) {
    (void)state;
    const size_t widths[] = { 1, 2, 15, 31, 64, 96, 130, 768, 1000 };
    const l2c_quant quants[] = { L2C_QUANT_SQ8, L2C_QUANT_SQ4, L2C_QUANT_FP16, L2C_QUANT_F32 };
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        size_t n = widths[w];
        float *min = calloc(n, 4), *step = calloc(n, 4), *q = calloc(n, 4);
        double *x = calloc(n, sizeof *x), norm = 0;
        uint8_t *rows = calloc(7, 4 * n);
        for (size_t i = 0; i < n; i++) {
            q[i] = random_value() + 0.01f;
            norm += (double)q[i] * (double)q[i];
        }
        for (size_t i = 0; i < n; i++) {
            q[i] = (float)((double)q[i] / sqrt(norm));
        }
        for (size_t k = 0; k < 4; k++) {
            for (size_t i = 0; i < n; i++) {
                float levels = quants[k] == L2C_QUANT_SQ8 ? 255 : 15;
                min[i] = (-0.7f + 0.2f * random_value()) / sqrtf((float)n);
                step[i] = (1.2f + 0.3f * random_value()) / levels / sqrtf((float)n);
            }
            random_rows(rows, n, quants[k]);
            l2c_codes c;
            l2c_codes_init(&c, quants[k], n, rows, min, step);
            l2c_codes_query query;
            void *memory = aligned_alloc(64, (c.query_bytes + 63) / 64 * 64);
            l2c_codes_prepare(&query, &c, q, memory);
            for (size_t i = 0; i < n; i++) {
                x[i] = (double)q[i];
            }
            check_dots(&query, x, "vector as query");
            if (quants[k] == L2C_QUANT_SQ8 || quants[k] == L2C_QUANT_SQ4) {
                l2c_codes_prepare_row(&query, &c, 2, memory);
                for (size_t i = 0; i < n; i++) {
                    x[i] = decode(&c, rows + 2 * c.row_bytes, i);
                }
                check_dots(&query, x, "row as query");
            }
            free(memory);
        }
        free(min);
        free(step);
        free(q);
        free(x);
        free(rows);
    }
}

/* Breaks if a kernel for an older processor is wrong: the test runs itself with features hidden. */
static void kernels_agree_everywhere(void **state) {
    (void)state;
    const char *levels[] = { "plain", "avx2", "avx512" };
    for (size_t i = 0; i < 3; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            setenv("L2CDB_CPU", levels[i], 1);
            execl("/proc/self/exe", "index_kinds_test", (char *)NULL);
            _exit(127);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fail_msg("with L2CDB_CPU=%s the tests fail", levels[i]);
        }
    }
}

/* For index_faiss_test.py: one file of every kind that FAISS has a part in. */
static int write_files(const char *folder) {
    setup(NULL);
    for (size_t i = 1; i < sizeof cases / sizeof *cases; i++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/%s-%s.idx", folder, l2c_index_kind_name(cases[i].kind),
                 l2c_quant_name(cases[i].quant));
        l2c_index *ix = open_kind(&cases[i], path);
        if (l2c_index_build(ix, NULL, NULL, NULL, &err) != L2CDB_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        l2c_index_close(ix);
    }
    return teardown(NULL);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        return write_files(argv[2]);
    }
    const struct CMUnitTest few[] = {
        cmocka_unit_test(kernels_agree),
        cmocka_unit_test(every_kind_recalls),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_agree),
        cmocka_unit_test(every_kind_recalls),
        cmocka_unit_test(four_bits_answer_in_full_precision),
        cmocka_unit_test(builds_can_be_cancelled),
        cmocka_unit_test(kernels_agree_everywhere),
    };
    return getenv("L2CDB_CPU") != NULL ? cmocka_run_group_tests(few, setup, teardown)
                                       : cmocka_run_group_tests(tests, setup, teardown);
}
