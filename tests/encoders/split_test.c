/* Products of f32 arrays on bf16 tiles, against sums in f64. In two terms, for training: for every
 * way of transposing, at sizes with edges, with alpha and beta, and alike for every number of
 * threads. In three, precision f32 of models: as exact as sums of f32, also for hostile numbers. */
#include <math.h>

#include "encoders/gemm_backend.h"
#include "tests/test.h"

static uint64_t state = 1;

static float draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(state >> 40) / 8388608.0 - 1.0);
}

static float *matrix(size_t n) {
    float *m = l2c_alloc_aligned(n, sizeof *m);
    assert_non_null(m);
    for (size_t i = 0; i < n; i++) {
        m[i] = draw() * expf(3 * draw());
    }
    return m;
}

static double element(const l2c_gemm_args *g, size_t i, size_t j, double *size) {
    double sum = 0;
    *size = 0;
    for (size_t k = 0; k < g->k; k++) {
        double a = (double)(g->transpose_a ? g->a[k * g->lda + i] : g->a[i * g->lda + k]);
        double b = (double)(g->transpose_b ? g->b[j * g->ldb + k] : g->b[k * g->ldb + j]);
        sum += a * b;
        *size += fabs(a * b);
    }
    return sum * (double)g->alpha;
}

/* The largest error in units of alpha Σ|a b|; looks at a part of a large result. */
static double error_of(const l2c_gemm_args *g, const float *before, const float *c) {
    double worst = 0;
    for (size_t i = 0; i<g->m; i += g->m> 100 ? 7 : 1) {
        for (size_t j = 0; j<g->n; j += g->n> 100 ? 11 : 1) {
            double size, want = element(g, i, j, &size);
            double add = g->beta != 0 ? (double)before[i * g->ldc + j] : 0;
            double found = (double)c[i * g->ldc + j];
            worst = fmax(worst, fabs(found - want - add) / (size * fabs((double)g->alpha)));
        }
    }
    return worst;
}

static void try_shape(size_t m, size_t n, size_t k) {
    l2cdb_error err;
    const size_t most = (m > n ? m : n) > k ? (m > n ? m : n) : k, stride = most + 5;
    float *a = matrix(stride * most), *b = matrix(stride * most), *before = matrix(m * stride);
    float *c = l2c_alloc_aligned(m * stride, sizeof *c);
    for (unsigned way = 0; way < 8; way++) {
        l2c_gemm_args g = { .transpose_a = (way & 1) != 0,
                            .transpose_b = (way & 2) != 0,
                            .m = m,
                            .n = n,
                            .k = k,
                            .alpha = way == 5 ? -2.5f : 1,
                            .a = a,
                            .lda = stride,
                            .b = b,
                            .ldb = stride,
                            .beta = (way & 4) != 0 ? 1.0f : 0,
                            .c = c,
                            .ldc = stride };
        memcpy(c, before, m * stride * sizeof *c);
        assert_ok(l2c_gemm_split(&g, &err), &err);
        double split = error_of(&g, before, c);
        // Nothing beside the result is touched.
        for (size_t i = 0; i < m; i++) {
            assert_memory_equal(c + i * stride + n, before + i * stride + n,
                                (stride - n) * sizeof *c);
        }
        memcpy(c, before, m * stride * sizeof *c);
        assert_ok(l2c_gemm_with(L2C_BACKEND_AUTO, &g, &err), &err);
        double plain = error_of(&g, before, c);
        if (way == 2) {
            print_message("%zu × %zu × %zu: error %.1e, of f32 %.1e\n", m, n, k, split, plain);
        }
        assert_true(split < (k < 300 ? 4.6e-5 : 1e-5)); // 3 · 2⁻¹⁶ at worst; sums cancel
    }
    l2c_free(a);
    l2c_free(b);
    l2c_free(before);
    l2c_free(c);
}

static void test_shapes(void **unused) {
    (void)unused;
    try_shape(1, 1, 1);
    try_shape(31, 33, 65);
    try_shape(32, 64, 32);
    try_shape(100, 70, 1030);
    try_shape(65, 600, 47);
    try_shape(250, 1100, 300);
}

static void test_threads(void **unused) {
    (void)unused;
    enum { M = 225, N = 1025, K = 700 };
    l2cdb_error err;
    float *a = matrix(M * K), *b = matrix(K * N);
    float *c = l2c_alloc(2 * M * N, sizeof *c);
    for (size_t t = 0; t < 2; t++) {
        l2c_team team = l2c_team_begin(t == 0 ? 1 : 3);
        l2c_gemm_args g = { .m = M,
                            .n = N,
                            .k = K,
                            .alpha = 1,
                            .a = a,
                            .lda = K,
                            .b = b,
                            .ldb = N,
                            .c = c + t * M * N,
                            .ldc = N };
        assert_ok(l2c_gemm_split(&g, &err), &err);
        l2c_team_end(team);
    }
    assert_memory_equal(c, c + M * N, M * N * sizeof *c);
    l2c_free(a);
    l2c_free(b);
    l2c_free(c);
    l2c_gemm_trim();
}

static void test_not_finite(void **unused) {
    (void)unused;
    enum { N = 64 };
    l2cdb_error err;
    float *a = matrix(N * N), *b = matrix(N * N), *c = matrix(N * N);
    a[5 * N + 7] = INFINITY;
    a[9 * N + 1] = NAN;
    l2c_gemm_args g = {
        .m = N, .n = N, .k = N, .alpha = 1, .a = a, .lda = N, .b = b, .ldb = N, .c = c, .ldc = N
    };
    assert_ok(l2c_gemm_split(&g, &err), &err);
    for (size_t i = 0; i < N; i++) {
        assert_true(isfinite(c[i * N]) == (i != 5 && i != 9));
    }
    l2c_free(a);
    l2c_free(b);
    l2c_free(c);
    l2c_gemm_trim();
}

/* ---- Three terms ---------------------------------------------------------------------------- */

enum { ROWS = 35, OUT = 33 };

static float normal(void) {
    return draw() + draw() + draw();
}

static float bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

typedef enum kind { NORMAL, POSITIVE, WIDE, OUTLIERS, ALL_ONES, TIES, LARGEST, KINDS } kind;

static const char *const kind_names[KINDS] = { "normal",   "positive", "wide",   "outliers",
                                               "all ones", "ties",     "largest" };

static float value(kind k, bool weight) {
    switch (k) {
    case POSITIVE: // errors of one sign would add up
        return fabsf(draw());
    case WIDE:
        return normal() * expf(12 * draw());
    case OUTLIERS:
        return draw() > 0.98f ? 1000 * normal() : normal();
    case ALL_ONES: // each term is rounded up
        return copysignf(bits(0x3fffffffu), draw());
    case TIES: // each term is half a step away from two bf16
        return copysignf(bits(0x3f808080u), draw());
    case LARGEST: // rounds to an infinite bf16
        return weight ? 1e-4f * normal() : copysignf(bits(0x7f7fffffu), draw());
    default:
        return normal();
    }
}

typedef struct error {
    double most, squares;
} error;

static void note(error *e, double found, double want, double size) {
    double off = fabs(found - want) / size;
    e->most = off <= e->most ? e->most : off;
    e->squares += off * off;
}

static double root_mean(const error *e) {
    return sqrt(e->squares / (ROWS * OUT));
}

/* y [ROWS, OUT] = x w^T in precision f32. */
static void multiply_f32(float *y, const float *x, const float *w, size_t in, l2c_backend backend) {
    l2cdb_error err;
    l2c_linear *l;
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    l2c_linear_part part = { .weight = w, .type = L2C_DTYPE_F32, .out = OUT };
    assert_ok(l2c_linear_new(&l, &part, 1, in, L2C_PRECISION_F32, backend, &err), &err);
    l2c_product p = { .x = x, .rows = ROWS, .y = y };
    assert_ok(l2c_linear_apply(l, &p, &arena, &err), &err);
    l2c_linear_free(l);
    l2c_arena_fini(&arena);
}

/* Errors in units of Σ|a b|, beside those of a plain loop of f32 FMA and of the library's f32. */
static void try_kind(kind k, size_t in) {
    float *x = matrix(ROWS * in), *w = matrix(OUT * in), y[ROWS * OUT], z[ROWS * OUT];
    for (size_t i = 0; i < ROWS * in; i++) {
        x[i] = value(k, false);
    }
    for (size_t i = 0; i < OUT * in; i++) {
        w[i] = value(k, true);
    }
    bool has_library = l2c_gemm_has(L2C_BACKEND_ONEDNN);
    multiply_f32(y, x, w, in, L2C_BACKEND_AMX);
    multiply_f32(z, x, w, in, has_library ? L2C_BACKEND_ONEDNN : L2C_BACKEND_OPENBLAS);
    error tiles = { 0 }, fma = { 0 }, library = { 0 };
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t o = 0; o < OUT; o++) {
            double sum = 0, size = 0;
            float plain = 0;
            for (size_t i = 0; i < in; i++) {
                float a = x[r * in + i], b = w[o * in + i];
                sum += (double)a * (double)b;
                size += fabs((double)a * (double)b);
                plain = fmaf(a, b, plain);
            }
            note(&tiles, (double)y[r * OUT + o], sum, size);
            note(&fma, (double)plain, sum, size);
            note(&library, (double)z[r * OUT + o], sum, size);
        }
    }
    double rms = root_mean(&tiles), rms_fma = root_mean(&fma);
    print_message("%-8s K %4zu: most %.1e, rms %.1e; f32 FMA %.1e, %.1e; %s %.1e, %.1e\n",
                  kind_names[k], in, tiles.most, rms, fma.most, rms_fma,
                  has_library ? "oneDNN" : "OpenBLAS", library.most, root_mean(&library));
    // Never worse than the loop by more than the last bit of the result, 2⁻²³ and half of it.
    assert_true(tiles.most <= fma.most + 1.2e-7);
    assert_true(rms <= rms_fma + 6e-8);
    l2c_free(x);
    l2c_free(w);
}

/* Broken: a term or one of the six products is missing, or a split overflows. */
static void test_f32(void **unused) {
    (void)unused;
    static const size_t depths[] = { 1, 64, 1030, 4096 };
    for (kind k = 0; k < KINDS; k++) {
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            try_kind(k, depths[d]);
        }
    }
}

/* Broken: numbers near the least normal one do worse than being rounded to 2⁻¹²⁶. */
static void test_f32_tiny(void **unused) {
    (void)unused;
    enum { IN = 256 };
    float *x = matrix(ROWS * IN), *w = matrix(OUT * IN), y[ROWS * OUT];
    for (size_t i = 0; i < ROWS * IN; i++) {
        x[i] = 1e-37f * normal();
    }
    for (size_t i = 0; i < OUT * IN; i++) {
        w[i] = draw();
    }
    multiply_f32(y, x, w, IN, L2C_BACKEND_AMX);
    for (size_t i = 0; i < ROWS * OUT; i++) {
        double sum = 0;
        for (size_t k = 0; k < IN; k++) {
            sum += (double)x[i / OUT * IN + k] * (double)w[i % OUT * IN + k];
        }
        assert_true(fabs((double)y[i] - sum) < IN * 4 * 0x1p-126);
    }
    l2c_free(x);
    l2c_free(w);
}

int main(void) {
    if (!l2c_amx_usable()) {
        printf("SKIP: this processor has no matrix tiles\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),     cmocka_unit_test(test_threads),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_f32),
        cmocka_unit_test(test_f32_tiny),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
