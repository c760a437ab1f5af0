/* Products: every backend against the referee, over shapes that have corners, in every precision
 * and with every epilogue; OpenBLAS's choice of kernels; the deal of rows. */
#include "tests/test.h"

#include <math.h>
#include <omp.h>

#include "encoders/gemm.h"
#include "encoders/gemm_backend.h"
#include "encoders/layers.h"
#include "encoders/workspace.h"
#include "engine/base/cpu.h"
#include "engine/base/vec.h"

/* OpenBLAS exports them without a header. */
extern void gotoblas_dynamic_quit(void);
extern void gotoblas_dynamic_init(void);

static uint64_t seed = 1;

/* Roughly normal, deterministic. */
static float random_float(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(seed >> 40) / (float)(1 << 24) - 0.5F;
    }
    return sum * 1.7F;
}

static float *random_array(size_t n, float scale) {
    float *a = l2c_alloc(n, sizeof *a);
    assert_non_null(a);
    for (size_t i = 0; i < n; i++) {
        a[i] = scale * random_float();
    }
    return a;
}

static double max_difference(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        most = d > most ? d : most;
    }
    return most;
}

static const l2c_backend fast[] = { L2C_BACKEND_OPENBLAS, L2C_BACKEND_ONEDNN, L2C_BACKEND_AMX };
static const l2c_precision precisions[] = { L2C_PRECISION_F32, L2C_PRECISION_BF16,
                                            L2C_PRECISION_INT8 };

/* rows, in, out */
static const size_t shapes[][3] = {
    { 1, 1, 1 },       { 1, 7, 3 },       { 5, 66, 36 },     { 16, 64, 64 },
    { 17, 33, 50 },    { 197, 192, 70 },  { 40, 2730, 96 },  { 128, 129, 257 },
    { 3, 1024, 1280 }, { 26, 384, 1024 }, { 401, 4100, 33 }, // more rows and a longer K than tiles
                                                             // take at a time
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* OpenBLAS widens everything, oneDNN what the processor lacks: the referee then is f32. */
static l2c_precision multiplied_as(l2c_backend backend, l2c_precision precision) {
    const l2c_cpu *cpu = l2c_cpu_get();
    bool widened = backend == L2C_BACKEND_OPENBLAS;
    if (backend == L2C_BACKEND_ONEDNN) {
        widened = (precision == L2C_PRECISION_BF16 && !cpu->amx_bf16) ||
                  (precision == L2C_PRECISION_INT8 && !cpu->avx512_vnni);
    }
    return widened ? L2C_PRECISION_F32 : precision;
}

static void linear_case(l2c_backend backend, l2c_precision precision, const size_t *shape,
                        l2c_post post, bool bias, bool accumulate) {
    size_t rows = shape[0], in = shape[1], out = shape[2];
    float *w = random_array(in * out, 1 / sqrtf((float)in)), *x = random_array(rows * in, 1);
    float *b = random_array(out, 1), *want = random_array(rows * out, 1);
    float *got = l2c_alloc(rows * out, sizeof *got);
    memcpy(got, want, rows * out * sizeof *got);
    l2cdb_error err = { 0 };
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    l2c_linear *referee, *l;
    // Two parts, the second of one row, the first with the bias.
    l2c_linear_part parts[] = {
        { .weight = w, .type = L2C_DTYPE_F32, .bias = bias ? b : NULL, .out = out - 1 },
        { .weight = w + (out - 1) * in, .type = L2C_DTYPE_F32, .out = 1 },
    };
    size_t skip = out == 1 ? 1 : 0;
    l2c_precision real = multiplied_as(backend, precision);
    assert_ok(l2c_linear_new(&referee, parts + skip, 2 - skip, in, real, L2C_BACKEND_NAIVE, &err),
              &err);
    assert_ok(l2c_linear_new(&l, parts + skip, 2 - skip, in, precision, backend, &err), &err);
    assert_int_equal(l2c_linear_precision(l), real);
    assert_int_equal(l2c_linear_in(l), in);
    assert_int_equal(l2c_linear_out(l), out);
    l2c_product p = { .x = x, .rows = rows, .y = want, .post = post, .accumulate = accumulate };
    assert_ok(l2c_linear_apply(referee, &p, &arena, &err), &err);
    p.y = got;
    assert_ok(l2c_linear_apply(l, &p, &arena, &err), &err);
    double most = max_difference(want, got, rows * out);
    // The same rounded inputs: only the order of f32 sums differs.
    if (most > 3e-5) {
        fail_msg("%s %s %zux%zux%zu post %d bias %d add %d: off by %g", l2c_backend_name(backend),
                 l2c_precision_name(precision), rows, in, out, (int)post, bias, accumulate, most);
    }
    assert_int_equal(arena.used_bytes, 0);
    l2c_linear_free(l);
    l2c_linear_free(referee);
    l2c_arena_fini(&arena);
    l2c_free(got);
    l2c_free(want);
    l2c_free(b);
    l2c_free(x);
    l2c_free(w);
}

/* Broken: a backend multiplies another matrix than the referee, or forgets bias, activation,
 * residual or the padding of a row. */
static void linears_agree_with_the_referee(void **state) {
    (void)state;
    for (size_t b = 0; b < sizeof fast / sizeof *fast; b++) {
        for (size_t p = 0; l2c_gemm_has(fast[b]) && p < 3; p++) {
            for (size_t s = 0; s < SHAPES; s++) {
                l2c_post post = (l2c_post)((s + p) % (L2C_POST_SILU + 1));
                linear_case(fast[b], precisions[p], shapes[s], post, s % 2 == 0, s % 3 == 0);
                linear_case(fast[b], precisions[p], shapes[s], L2C_POST_NONE, true, true);
            }
        }
    }
}

/* Broken: a gate is taken for what it gates, or lies beside another output than its own. */
static void gates_agree_with_the_referee(void **state) {
    (void)state;
    enum { ROWS = 37, IN = 70, HALF = 53 };
    float *x = random_array(ROWS * IN, 1), *w = random_array(2 * HALF * IN, 0.1F);
    float *bias = random_array(HALF, 1), *both = random_array(ROWS * 2 * HALF, 0);
    float got[ROWS * (HALF + 3)];
    l2cdb_error err = { 0 };
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    const l2c_linear_part parts[] = {
        { .weight = w, .type = L2C_DTYPE_F32, .bias = bias, .out = HALF },
        { .weight = w + HALF * IN, .type = L2C_DTYPE_F32, .out = HALF },
    };
    for (int b = L2C_BACKEND_NAIVE; b <= L2C_BACKEND_AMX; b++) {
        for (size_t p = 0; l2c_gemm_has((l2c_backend)b) && p < 3; p++) {
            l2c_linear *referee, *l;
            l2c_precision real = multiplied_as((l2c_backend)b, precisions[p]);
            assert_ok(l2c_linear_new(&referee, parts, 2, IN, real, L2C_BACKEND_NAIVE, &err), &err);
            assert_ok(l2c_linear_new(&l, parts, 2, IN, precisions[p], (l2c_backend)b, &err), &err);
            l2c_product job = { .x = x, .rows = ROWS, .y = both };
            assert_ok(l2c_linear_apply(referee, &job, &arena, &err), &err);
            job.y = got;
            job.y_stride = HALF + 3;
            job.post = L2C_POST_SWIGLU;
            assert_ok(l2c_linear_apply(l, &job, &arena, &err), &err);
            for (size_t i = 0; i < ROWS * HALF; i++) {
                size_t r = i / HALF, o = i % HALF;
                double gate = (double)both[r * 2 * HALF + o];
                double want = gate / (1 + exp(-gate)) * (double)both[r * 2 * HALF + HALF + o];
                assert_true(fabs((double)got[r * (HALF + 3) + o] - want) < 3e-5);
            }
            l2c_linear_free(referee);
            l2c_linear_free(l);
        }
    }
    l2c_arena_fini(&arena);
    l2c_free(x);
    l2c_free(w);
    l2c_free(bias);
    l2c_free(both);
}

/* Broken: in int8, one large element of a row costs the others what they say; or the second int8 is
 * added to another row, or not to each kind of result. */
static void outliers_cost_the_others_nothing(void **state) {
    (void)state;
    enum { ROWS = 75, IN = 300, HALF = 40, OUT = 2 * HALF };
    float *x = random_array(ROWS * IN, 1), *w = random_array(OUT * IN, 0.1F);
    float *got = random_array(ROWS * OUT, 0);
    for (size_t r = 0; r < ROWS; r++) {
        if (r % 5 == 0 || r == ROWS - 1) {
            x[r * IN + r] = 200;
        }
    }
    for (size_t i = 0; i < OUT * IN; i++) {
        w[i] = i % IN < ROWS ? 0 : w[i]; // outliers meet nothing, so only the others show
    }
    l2cdb_error err = { 0 };
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    const l2c_linear_part parts[] = {
        { .weight = w, .type = L2C_DTYPE_F32, .out = HALF },
        { .weight = w + HALF * IN, .type = L2C_DTYPE_F32, .out = HALF },
    };
    for (int b = L2C_BACKEND_NAIVE; b <= L2C_BACKEND_AMX; b++) {
        for (int gated = 0; l2c_gemm_has((l2c_backend)b) && gated < 2; gated++) {
            l2c_linear *l;
            assert_ok(l2c_linear_new(&l, parts, 2, IN, L2C_PRECISION_INT8, (l2c_backend)b, &err),
                      &err);
            l2c_product job = { .x = x, .rows = ROWS, .y = got };
            job.post = gated ? L2C_POST_SWIGLU : L2C_POST_NONE;
            assert_ok(l2c_linear_apply(l, &job, &arena, &err), &err);
            const size_t width = gated ? HALF : OUT;
            double error = 0, all = 0;
            for (size_t i = 0; i < ROWS * width; i++) {
                size_t r = i / width, o = i % width;
                double sum[2] = { 0 };
                for (size_t k = 0; k < IN; k++) {
                    sum[0] += (double)x[r * IN + k] * (double)w[o * IN + k];
                    sum[1] += (double)x[r * IN + k] * (double)w[(o + HALF) % OUT * IN + k];
                }
                double want = gated ? sum[0] / (1 + exp(-sum[0])) * sum[1] : sum[0];
                error += pow((double)got[i] - want, 2);
                all += want * want;
            }
            // One int8 alone: 0.2 and more.
            if (sqrt(error / all) > 0.02) {
                fail_msg("%s gated %d: off by %g of the result", l2c_backend_name((l2c_backend)b),
                         gated, sqrt(error / all));
            }
            l2c_linear_free(l);
        }
    }
    l2c_arena_fini(&arena);
    l2c_free(x);
    l2c_free(w);
    l2c_free(got);
}

/* Broken: rows handed from one linear to the next differ from rows that went through f32. */
static void chains_keep_their_type(void **state) {
    (void)state;
    enum { ROWS = 37, IN = 96, HIDDEN = 170, OUT = 48 };
    float *w1 = random_array(2 * IN * HIDDEN, 0.1F), *w2 = random_array(HIDDEN * OUT, 0.1F);
    float *x = random_array(ROWS * IN, 1), *hidden = random_array(ROWS * HIDDEN, 0);
    float *by_f32 = random_array(ROWS * OUT, 0), *by_rows = random_array(ROWS * OUT, 0);
    for (size_t i = 0; i < IN; i++) {
        w1[7 * IN + i] *= 30; // some hidden rows have outliers, and take a second int8
    }
    l2cdb_error err = { 0 };
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    const l2c_linear_part first_parts[] = {
        { .weight = w1, .type = L2C_DTYPE_F32, .out = HIDDEN },
        { .weight = w1 + IN * HIDDEN, .type = L2C_DTYPE_F32, .out = HIDDEN },
    };
    // Every pair of precisions: a bundle may mix them; with and without a gate.
    for (size_t c = 0; c < 18; c++) {
        bool gated = c >= 9;
        l2c_linear *up, *down;
        assert_ok(l2c_linear_new(&up, first_parts, gated ? 2 : 1, IN, precisions[c / 3 % 3],
                                 L2C_BACKEND_AUTO, &err),
                  &err);
        assert_ok(l2c_linear_new(
                      &down, &(l2c_linear_part){ .weight = w2, .type = L2C_DTYPE_F32, .out = OUT },
                      1, HIDDEN, precisions[c % 3], L2C_BACKEND_AUTO, &err),
                  &err);
        l2c_product first = {
            .x = x, .rows = ROWS, .y = hidden, .post = gated ? L2C_POST_SWIGLU : L2C_POST_GELU
        };
        assert_ok(l2c_linear_apply(up, &first, &arena, &err), &err);
        assert_ok(l2c_linear_apply(down, &(l2c_product){ .x = hidden, .rows = ROWS, .y = by_f32 },
                                   &arena, &err),
                  &err);
        l2c_rows rows = l2c_linear_rows(down, ROWS, &arena);
        assert_non_null(rows.data);
        first.y = NULL;
        first.y_rows = &rows;
        assert_ok(l2c_linear_apply(up, &first, &arena, &err), &err);
        assert_ok(l2c_linear_apply(down,
                                   &(l2c_product){ .x_rows = &rows, .rows = ROWS, .y = by_rows },
                                   &arena, &err),
                  &err);
        assert_true(max_difference(by_f32, by_rows, ROWS * OUT) < 1e-5);
        l2c_linear_free(up);
        l2c_linear_free(down);
    }
    l2c_arena_fini(&arena);
    l2c_free(w1);
    l2c_free(w2);
    l2c_free(x);
    l2c_free(hidden);
    l2c_free(by_f32);
    l2c_free(by_rows);
}

/* Broken: stored f16, bf16 or int8 weights mean other numbers than the f32 they stand for. */
static void weights_of_every_type(void **state) {
    (void)state;
    enum { ROWS = 5, IN = 40, OUT = 24 };
    float *x = random_array(ROWS * IN, 1), wide[IN * OUT], scale[OUT];
    float want[ROWS * OUT], got[ROWS * OUT];
    uint16_t half[IN * OUT];
    char bytes[IN * OUT * 2 + 1], *odd = bytes + 1; // unaligned, as in a safetensors file
    l2cdb_error err = { 0 };
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    static const l2c_dtype types[] = { L2C_DTYPE_F16, L2C_DTYPE_BF16, L2C_DTYPE_I8 };
    for (size_t t = 0; t < 3; t++) {
        for (size_t i = 0; i < IN * OUT; i++) {
            float f = random_float();
            if (types[t] == L2C_DTYPE_I8) {
                scale[i / IN] = 0.01F + 0.001F * (float)(i / IN);
                ((int8_t *)odd)[i] = (int8_t)(f * 60);
                wide[i] = scale[i / IN] * (float)((int8_t *)odd)[i];
                continue;
            }
            half[i] = types[t] == L2C_DTYPE_F16 ? l2c_f32_to_f16(f) : l2c_f32_to_bf16(f);
            wide[i] =
                types[t] == L2C_DTYPE_F16 ? l2c_f16_to_f32(half[i]) : l2c_bf16_to_f32(half[i]);
            memcpy(odd + 2 * i, &half[i], 2);
        }
        for (size_t p = 0; p < 3; p++) {
            l2c_linear *a, *b;
            l2c_linear_part stored = {
                .weight = odd, .type = types[t], .scale = scale, .out = OUT
            };
            l2c_linear_part plain = { .weight = wide, .type = L2C_DTYPE_F32, .out = OUT };
            assert_ok(l2c_linear_new(&a, &plain, 1, IN, precisions[p], L2C_BACKEND_AUTO, &err),
                      &err);
            assert_ok(l2c_linear_new(&b, &stored, 1, IN, precisions[p], L2C_BACKEND_AUTO, &err),
                      &err);
            l2c_product job = { .x = x, .rows = ROWS, .y = want };
            assert_ok(l2c_linear_apply(a, &job, &arena, &err), &err);
            job.y = got;
            assert_ok(l2c_linear_apply(b, &job, &arena, &err), &err);
            // int8 kept as it is stored against int8 quantised again: half a step of a weight.
            double limit =
                types[t] == L2C_DTYPE_I8 && precisions[p] == L2C_PRECISION_INT8 ? 0.2 : 1e-5;
            double off = max_difference(want, got, ROWS * OUT);
            if (off > limit) {
                fail_msg("%s as %s: off by %g", l2c_dtype_name(types[t]),
                         l2c_precision_name(precisions[p]), off);
            }
            l2c_linear_free(a);
            l2c_linear_free(b);
        }
    }
    l2c_arena_fini(&arena);
    l2c_free(x);
}

/* Broken: a plain product mixes up transposition, strides, alpha or beta. */
static void plain_products_agree(void **state) {
    (void)state;
    enum { M = 37, N = 29, K = 45, LD = 50 };
    float *a = random_array(LD * LD, 1), *b = random_array(LD * LD, 1);
    float *start = random_array(M * LD, 1), want[M * LD], got[M * LD];
    l2cdb_error err = { 0 };
    for (int c = 0; c < 16; c++) {
        l2c_gemm_args g = { .transpose_a = c & 1,
                            .transpose_b = c & 2,
                            .m = M,
                            .n = N,
                            .k = K,
                            .alpha = c & 4 ? 0.5F : 1,
                            .a = a,
                            .lda = LD,
                            .b = b,
                            .ldb = LD,
                            .beta = c & 8 ? 0.25F : 0,
                            .ldc = LD };
        memcpy(want, start, sizeof want);
        g.c = want;
        assert_ok(l2c_gemm_with(L2C_BACKEND_NAIVE, &g, &err), &err);
        for (size_t i = 0; i < sizeof fast / sizeof *fast; i++) {
            if (l2c_gemm_has(fast[i])) {
                memcpy(got, start, sizeof got);
                g.c = got;
                assert_ok(l2c_gemm_with(fast[i], &g, &err), &err);
                assert_true(max_difference(want, got, M * LD) < 2e-5);
            }
        }
    }
    l2c_free(a);
    l2c_free(b);
    l2c_free(start);
}

/* Broken: OpenBLAS keeps kernels of 2004 on a processor it does not know (52 instead of 224
 * GFLOP/s), or a user's own choice is overridden. */
static void openblas_is_corrected(void **state) {
    (void)state;
    if (getenv("OPENBLAS_CORETYPE") != NULL || l2c_openblas_core()[0] == '\0') {
        print_message("not OpenBLAS, or its kernels are chosen by the environment\n");
        skip();
    }
    char good[64];
    snprintf(good, sizeof good, "%s", l2c_openblas_core());
    assert_string_not_equal(good, "Prescott"); // the constructor has run
    // What happens on an unknown processor, by OpenBLAS's own switch.

    setenv("OPENBLAS_CORETYPE", "PRESCOTT", 1);
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
    assert_string_equal(l2c_openblas_core(), "Prescott");
    assert_false(l2c_openblas_correct()); // the user's choice
    unsetenv("OPENBLAS_CORETYPE");
    assert_true(l2c_openblas_correct());
    assert_string_not_equal(l2c_openblas_core(), "Prescott");
    assert_null(getenv("OPENBLAS_CORETYPE"));
    plain_products_agree(NULL);
    l2c_buf about;
    l2c_buf_init(&about);
    l2c_gemm_describe(&about);
    assert_non_null(strstr(about.data, "Prescott"));
    l2c_buf_fini(&about);
}

/* ---- The deal ------------------------------------------------------------------------------- */

typedef struct tally {
    int *seen;
    size_t fail_at;
} tally;

static l2cdb_status count_rows(void *ctx, size_t first, size_t count, l2c_arena *arena,
                               l2cdb_error *err) {
    tally *t = ctx;
    assert_non_null(l2c_arena_alloc(arena, 10, 1));
    for (size_t r = first; r < first + count; r++) {
        t->seen[r]++;
        if (r == t->fail_at) {
            return l2c_fail(err, L2CDB_E_IO, "row %zu", r);
        }
    }
    return L2CDB_OK;
}

/* Broken: a row is computed twice or never, or an error in one thread is lost. */
static void rows_are_dealt_once(void **state) {
    (void)state;
    static const size_t sizes[] = { 1, 15, 16, 17, 47, 96, 97, 577, 1000, 4616 };
    for (size_t threads = 1; threads <= 5; threads++) {
        l2cdb_error err = { 0 };
        l2c_workspace *ws;
        assert_ok(l2c_workspace_new(&ws, threads, &err), &err);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            tally t = { .seen = calloc(sizes[s], sizeof(int)), .fail_at = SIZE_MAX };
            assert_ok(l2c_deal_rows(ws, sizes[s], 128, count_rows, &t, &err), &err);
            for (size_t r = 0; r < sizes[s]; r++) {
                assert_int_equal(t.seen[r], 1);
            }
            t.fail_at = sizes[s] / 2;
            assert_int_equal(l2c_deal_rows(ws, sizes[s], 128, count_rows, &t, &err), L2CDB_E_IO);
            char want[32];
            snprintf(want, sizeof want, "row %zu", sizes[s] / 2);
            assert_string_equal(err.message, want);
            free(t.seen);
        }
        l2c_workspace_free(ws);
    }
}

/* Broken: a run out of memory leaks, crashes or returns success. */
static void no_memory_is_an_error(void **state) {
    (void)state;
    enum { ROWS = 9, IN = 32, OUT = 16 };
    float *w = random_array(IN * OUT, 1), *x = random_array(ROWS * IN, 1), y[ROWS * OUT];
    for (size_t p = 0; p < 3; p++) {
        for (uint64_t n = 1;; n++) {
            l2cdb_error err = { 0 };
            l2c_linear *l;
            l2c_arena arena;
            l2c_arena_init(&arena, 0);
            l2c_alloc_fail_at(n);
            l2cdb_status rc = l2c_linear_new(
                &l, &(l2c_linear_part){ .weight = w, .type = L2C_DTYPE_F32, .bias = w, .out = OUT },
                1, IN, precisions[p], L2C_BACKEND_AUTO, &err);
            if (rc == L2CDB_OK) {
                rc = l2c_linear_apply(l, &(l2c_product){ .x = x, .rows = ROWS, .y = y }, &arena,
                                      &err);
            }
            l2c_alloc_fail_at(0);
            l2c_linear_free(l);
            l2c_arena_fini(&arena);
            if (rc == L2CDB_OK) {
                assert_true(n > 3);
                break;
            }
            assert_int_equal(rc, L2CDB_E_NOMEM);
        }
    }
    l2c_free(w);
    l2c_free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linears_agree_with_the_referee),
        cmocka_unit_test(gates_agree_with_the_referee),
        cmocka_unit_test(outliers_cost_the_others_nothing),
        cmocka_unit_test(chains_keep_their_type),
        cmocka_unit_test(weights_of_every_type),
        cmocka_unit_test(plain_products_agree),
        cmocka_unit_test(openblas_is_corrected),
        cmocka_unit_test(rows_are_dealt_once),
        cmocka_unit_test(no_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
