/* Layers, rotary positions and attention against formulas in double, at every level of processor
 * that this one has (L2CDB_CPU, read once a process: the test runs itself again for each). */
#include "tests/test.h"

#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "encoders/attention.h"
#include "encoders/layers.h"
#include "encoders/rope.h"
#include "engine/base/cpu.h"
#include "engine/base/vec.h"

static uint64_t seed = 7;

static float random_float(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(seed >> 40) / (float)(1 << 24) - 0.5F;
    }
    return sum * 1.7F;
}

static void fill(float *x, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) {
        x[i] = scale * random_float();
    }
}

static void near(double want, float got, double limit, const char *what, size_t at) {
    if (!(fabs(want - (double)got) <= limit)) {
        fail_msg("%s [%zu]: %.9g, expected %.9g", what, at, (double)got, want);
    }
}

enum { MOST = 700 };
static const size_t widths[] = { 1, 3, 16, 31, 64, 72, 192, 577, MOST };
enum { WIDTHS = sizeof widths / sizeof *widths };

/* Broken: a norm uses another variance, forgets eps, or loses the last elements of a row. */
static void norms(void **state) {
    (void)state;
    float x[MOST], w[MOST], b[MOST], out[MOST];
    for (size_t c = 0; c < WIDTHS * 2; c++) {
        size_t n = widths[c % WIDTHS];
        fill(x, n, c < WIDTHS ? 1 : 1e-3F); // at 1e-3 eps is as large as the variance
        fill(w, n, 1);
        fill(b, n, 1);
        double sum = 0, squares = 0, around = 0;
        for (size_t i = 0; i < n; i++) {
            sum += (double)x[i];
            squares += (double)x[i] * (double)x[i];
        }
        double mean = sum / (double)n;
        for (size_t i = 0; i < n; i++) {
            around += ((double)x[i] - mean) * ((double)x[i] - mean);
        }
        double inverse = 1 / sqrt(around / (double)n + 1e-5);
        l2c_layer_norm(out, x, w, b, n, 1e-5F);
        for (size_t i = 0; i < n; i++) {
            near(((double)x[i] - mean) * inverse * (double)w[i] + (double)b[i], out[i], 1e-5, "LN",
                 i);
        }
        l2c_layer_norm(out, x, w, NULL, n, 1e-5F);
        near(((double)x[n - 1] - mean) * inverse * (double)w[n - 1], out[n - 1], 1e-5,
             "LN without bias", n - 1);
        l2c_rms_norm(out, x, w, n, 1e-5F);
        for (size_t i = 0; i < n; i++) {
            near((double)x[i] / sqrt(squares / (double)n + 1e-5) * (double)w[i], out[i], 1e-5,
                 "RMS", i);
        }
    }
}

/* Broken: an activation is the wrong one (tanh for erf), or its polynomial leaves its range. */
static void activations(void **state) {
    (void)state;
    enum { N = 4001 };
    static float x[N], y[N], up[N];
    for (size_t i = 0; i < N; i++) {
        x[i] = ((float)i - 2000) / 100; // -20 … 20
        up[i] = random_float();
    }
    for (int post = L2C_POST_NONE; post <= L2C_POST_SILU; post++) {
        memcpy(y, x, sizeof y);
        l2c_activate(y, N, (l2c_post)post);
        for (size_t i = 0; i < N; i++) {
            double z = (double)x[i], want = z;
            if (post == L2C_POST_GELU) {
                want = 0.5 * z * (1 + erf(z / sqrt(2)));
            } else if (post == L2C_POST_GELU_TANH) {
                want = 0.5 * z * (1 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)));
            } else if (post == L2C_POST_QUICK_GELU) {
                want = z / (1 + exp(-1.702 * z));
            } else if (post == L2C_POST_SILU) {
                want = z / (1 + exp(-z));
            }
            near(want, y[i], 2e-6 + fabs(want) * 5e-7, "activation", i);
        }
    }
    // The spec's own numbers.
    float one[] = { 1, -1, 3 };
    l2c_activate(one, 2, L2C_POST_QUICK_GELU);
    near(0.8457957659, one[0], 2e-7, "quick_gelu(1)", 0);
    near(-0.1542042341, one[1], 2e-7, "quick_gelu(-1)", 1);
    l2c_activate(one + 2, 1, L2C_POST_GELU);
    near(2.9959503, one[2], 5e-7, "gelu(3)", 2);
    l2c_swiglu(y, x, up, N);
    for (size_t i = 0; i < N; i++) {
        double z = (double)x[i];
        near(z / (1 + exp(-z)) * (double)up[i], y[i], 1e-5, "swiglu", i);
    }
}

/* Broken: large scores overflow, or short rows are summed past their end. */
static void softmax(void **state) {
    (void)state;
    float x[MOST + 15]; // whole vectors
    for (size_t c = 0; c < WIDTHS * 3; c++) {
        size_t n = widths[c % WIDTHS];
        fill(x, n, 5);
        float shift = c < WIDTHS ? 0 : c < 2 * WIDTHS ? 1e4F : -1e4F;
        double sum = 0, most = -INFINITY;
        double want[MOST];
        for (size_t i = 0; i < n; i++) {
            x[i] += shift;
            most = fmax(most, (double)x[i]);
        }
        for (size_t i = 0; i < n; i++) {
            want[i] = exp((double)x[i] - most);
            sum += want[i];
        }
        float got = l2c_softmax_exp(x, n);
        near(sum, got, sum * 1e-6, "sum", 0);
        for (size_t i = 0; i < n; i++) {
            near(want[i], x[i], 5e-7, "exp", i);
        }
    }
}

/* Broken: a row's scale is not its own maximum, rounding truncates, or -128 appears. */
static void rows_change_type(void **state) {
    (void)state;
    float x[MOST], y[MOST];
    int8_t q[MOST];
    uint16_t half[MOST];
    for (size_t c = 0; c < WIDTHS; c++) {
        size_t n = widths[c];
        fill(x, n, 3);
        float most = 0;
        for (size_t i = 0; i < n; i++) {
            most = fmaxf(most, fabsf(x[i]));
        }
        float scale = l2c_quantise_row(q, x, n);
        near((double)most / 127, scale, 1e-7, "scale", 0);
        for (size_t i = 0; i < n; i++) {
            assert_true(q[i] > -128);
            near((double)x[i], scale * (float)q[i], (double)scale * 0.5001, "int8", i);
        }
        l2c_bf16_row(half, x, n);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(half[i], l2c_f32_to_bf16(x[i]));
        }
        int32_t sums[MOST];
        float scales[MOST], bias[MOST];
        for (size_t i = 0; i < n; i++) {
            sums[i] = (int32_t)i * 37 - 400;
            scales[i] = 0.01F * (float)(i % 5 + 1);
            bias[i] = x[i];
            y[i] = 2;
        }
        l2c_dequantise_row(y, sums, 0.5F, scales, bias, n, L2C_POST_NONE, true);
        for (size_t i = 0; i < n; i++) {
            near(2 + 0.5 * (double)scales[i] * sums[i] + (double)bias[i], y[i], 1e-4, "int32", i);
        }
    }
    memset(x, 0, sizeof x);
    near(0, l2c_quantise_row(q, x, 10), 0, "zero row", 0);
    assert_int_equal(q[5], 0);
    const uint32_t low_nan = 0x7F800001; // a NaN by its last bit alone
    float odd[] = { 0, INFINITY, -INFINITY, 1e-41F };
    memcpy(odd, &low_nan, sizeof *odd);
    l2c_bf16_row(half, odd, 4);
    assert_true(isnan(l2c_bf16_to_f32(half[0])));
    assert_true(isinf(l2c_bf16_to_f32(half[1])));
    assert_true(isinf(l2c_bf16_to_f32(half[2])));
}

/* Broken: llama3 scaling moves a band boundary, or the two pair layouts are exchanged (spec 3.5).
 */
static void rotary_tables(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    double f[64];
    l2c_llm_config c = { .head_dim = 64,
                         .rope_theta = 500000,
                         .rope_llama3 = true,
                         .rope_factor = 32,
                         .rope_low = 1,
                         .rope_high = 4,
                         .rope_original = 8192 };
    l2c_rope_frequencies(&c, f);
    const double want_1b[] = { 1.29054793e-03, 4.29556797e-04, 9.7082878e-05 };
    assert_true(fabs(f[1] - 0.6636012377) < 1e-9);
    for (size_t i = 0; i < 3; i++) {
        assert_true(fabs(f[15 + i] / want_1b[i] - 1) < 1e-7);
    }
    assert_true(fabs(f[31] / 9.418306725e-08 - 1) < 1e-8);
    c.head_dim = 128;
    c.rope_factor = 8;
    l2c_rope_frequencies(&c, f);
    const double want_8b[] = { 2.16657076e-03, 1.37189357e-03, 8.56751413e-04,
                               5.24846161e-04, 3.1269375e-04,  1.78507813e-04 };
    for (size_t i = 0; i < 6; i++) {
        assert_true(fabs(f[29 + i] / want_8b[i] - 1) < 1e-7);
    }
    assert_true(fabs(f[63] / 3.068925989e-07 - 1) < 1e-8);
    c.rope_llama3 = false;
    l2c_rope_frequencies(&c, f);
    assert_true(fabs(f[1] - 0.8146172339) < 1e-9);
    assert_true(fabs(f[63] / 2.455140791e-06 - 1) < 1e-8);

    l2c_rope r;
    assert_ok(l2c_rope_init_eva(&r, 24, 16, 64, &err), &err);
    float x[64] = { 1 };
    l2c_rope_apply(&r, x, 1, 1 + 24); // row 1, column 0
    near(0.7858872608, x[0], 1e-7, "cos", 0);
    near(0.6183698031, x[1], 1e-7, "sin", 1);
    float y[64] = { [32] = 1 };
    l2c_rope_apply(&r, y, 1, 2); // row 0, column 1
    near(0.7858872608, y[32], 1e-7, "cos of x", 32);
    near(0.6183698031, y[33], 1e-7, "sin of x", 33);
    float cls[64] = { 1, 2 };
    l2c_rope_apply(&r, cls, 1, 0);
    near(1, cls[0], 0, "class token", 0);
    near(2, cls[1], 0, "class token", 1);
    l2c_rope_fini(&r);

    c = (l2c_llm_config){ .head_dim = 4, .rope_theta = 100 };
    assert_ok(l2c_rope_init_llama(&r, &c, 8, &err), &err);
    float z[8] = { 1, 2, 3, 4, 1, 2, 3, 4 };
    l2c_rope_apply(&r, z, 2, 5);
    for (size_t h = 0; h < 2; h++) { // pairs (0,2) and (1,3), frequencies 1 and 0.1
        near(cos(5) - 3 * sin(5), z[4 * h], 1e-6, "half-split", 0);
        near(3 * cos(5) + sin(5), z[4 * h + 2], 1e-6, "half-split", 2);
        near(2 * cos(0.5) - 4 * sin(0.5), z[4 * h + 1], 1e-6, "half-split", 1);
        near(4 * cos(0.5) + 2 * sin(0.5), z[4 * h + 3], 1e-6, "half-split", 3);
    }
    l2c_rope_fini(&r);
}

typedef struct shape {
    size_t heads, kv_heads, head_dim, threads;
    size_t lengths[4];
} shape;

/* bf16 has 8 bits: rounded queries, keys, weights and values. */
static const double attention_limit[] = { 3e-6, 3e-2 };

/* Broken: one text sees another, a query head reads the wrong key head, a tile's edge is lost. */
static void attention(void **state) {
    (void)state;
    static const shape cases[] = {
        { 1, 1, 64, 1, { 1, 0, 0, 0 } },     { 3, 3, 64, 2, { 197, 0, 0, 0 } },
        { 12, 12, 2, 2, { 50, 7, 0, 0 } },   { 8, 2, 16, 2, { 5, 33, 1, 64 } },
        { 2, 1, 72, 3, { 100, 31, 32, 0 } }, { 4, 4, 80, 2, { 48, 49, 96, 97 } },
    };
    for (size_t c = 0; c < 2 * sizeof cases / sizeof *cases; c++) {
        const shape *s = &cases[c / 2];
        l2cdb_error err = { 0 };
        size_t offset[5] = { 0 }, sequences = 0;
        while (sequences < 4 && s->lengths[sequences] > 0) {
            offset[sequences + 1] = offset[sequences] + s->lengths[sequences];
            sequences++;
        }
        size_t rows = offset[sequences], D = s->head_dim;
        size_t stride = (s->heads + 2 * s->kv_heads) * D, out_stride = s->heads * D;
        float *qkv = malloc(rows * stride * sizeof *qkv);
        float *out = malloc(rows * out_stride * sizeof *out);
        fill(qkv, rows * stride, 1);
        const float *k = qkv + s->heads * D, *v = k + s->kv_heads * D;
        l2c_workspace *ws;
        assert_ok(l2c_workspace_new(&ws, s->threads, &err), &err);
        assert_ok(l2c_attention(&(l2c_attention_args){ .q = qkv,
                                                       .k = k,
                                                       .v = v,
                                                       .q_stride = stride,
                                                       .k_stride = stride,
                                                       .v_stride = stride,
                                                       .out = out,
                                                       .out_stride = out_stride,
                                                       .heads = s->heads,
                                                       .kv_heads = s->kv_heads,
                                                       .head_dim = D,
                                                       .sequences = sequences,
                                                       .q_offset = offset,
                                                       .bf16 = c % 2 == 1 },
                                ws, &err),
                  &err);
        l2c_workspace_free(ws);
        for (size_t i = 0; i < sequences; i++) {
            for (size_t r = offset[i]; r < offset[i + 1]; r++) {
                for (size_t h = 0; h < s->heads; h++) {
                    size_t g = h / (s->heads / s->kv_heads);
                    double want[128] = { 0 }, sum = 0;
                    for (size_t t = offset[i]; t < offset[i + 1]; t++) {
                        double score = 0;
                        for (size_t d = 0; d < D; d++) {
                            score += (double)qkv[r * stride + h * D + d] *
                                     (double)k[t * stride + g * D + d];
                        }
                        double e = exp(score / sqrt((double)D));
                        sum += e;
                        for (size_t d = 0; d < D; d++) {
                            want[d] += e * (double)v[t * stride + g * D + d];
                        }
                    }
                    for (size_t d = 0; d < D; d++) {
                        near(want[d] / sum, out[r * out_stride + h * D + d], attention_limit[c % 2],
                             "attention", d);
                    }
                }
            }
        }
        free(qkv);
        free(out);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms),         cmocka_unit_test(activations),
        cmocka_unit_test(softmax),       cmocka_unit_test(rows_change_type),
        cmocka_unit_test(rotary_tables), cmocka_unit_test(attention),
    };
    (void)argc;
    int failed = 0;
    if (getenv("L2CDB_CPU") == NULL) {
        static const char *const levels[] = { "plain", "avx2" };
        for (size_t i = 0; i < 2; i++) {
            pid_t child = fork();
            if (child == 0) {
                setenv("L2CDB_CPU", levels[i], 1);
                execv(argv[0], argv);
                _exit(127);
            }
            int status = 1;
            waitpid(child, &status, 0);
            failed += status != 0;
        }
    }
    return failed + cmocka_run_group_tests_name("layers", tests, NULL, NULL);
}
