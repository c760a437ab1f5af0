/* The loops of layers.c, included once per processor level with FN (a name's suffix), TARGET (the
 * function attribute), VECTOR and UNALIGNED (its register of floats, and one anywhere in an array)
 * defined. Written so that compilers vectorise them: no branches inside,
 * reductions marked. */

#include "encoders/math_kernels.h"

TARGET static void FN(layer_norm)(float *out, const float *x, const float *weight,
                                  const float *bias, size_t n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
    }
    float mean = sum / (float)n, squares = 0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < n; i++) {
        squares += (x[i] - mean) * (x[i] - mean);
    }
    float inverse = 1.0F / __builtin_sqrtf(squares / (float)n + eps);
    if (bias == NULL) {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            out[i] = (x[i] - mean) * inverse * weight[i];
        }
    } else {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
        }
    }
}

TARGET static void FN(rms_norm)(float *out, const float *x, const float *weight, size_t n,
                                float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < n; i++) {
        squares += x[i] * x[i];
    }
    float inverse = 1.0F / __builtin_sqrtf(squares / (float)n + eps);
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] * inverse * weight[i];
    }
}

TARGET static inline float FN(gelu)(float z) {
    return 0.5F * z * (1.0F + FN(erf)(z * 0.70710678F));
}

TARGET static inline float FN(sigmoid_times)(float z, float slope) {
    return z / (1.0F + FN(exp)(-slope * z));
}

TARGET static void FN(activate)(float *x, size_t n, l2c_post post) {
    switch (post) {
    case L2C_POST_GELU:
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            x[i] = FN(gelu)(x[i]);
        }
        break;
    case L2C_POST_GELU_TANH: // z (1 + tanh u) / 2 = z σ(2u)
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            float z = x[i];
            x[i] = z / (1.0F + FN(exp)(-1.59576912F * (z + 0.044715F * z * z * z)));
        }
        break;
    case L2C_POST_QUICK_GELU:
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            x[i] = FN(sigmoid_times)(x[i], 1.702F);
        }
        break;
    case L2C_POST_SILU:
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            x[i] = FN(sigmoid_times)(x[i], 1.0F);
        }
        break;
    case L2C_POST_SWIGLU: // of two rows
    case L2C_POST_NONE:
        break;
    }
}

TARGET static void FN(swiglu)(float *out, const float *gate, const float *up, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        out[i] = FN(sigmoid_times)(gate[i], 1.0F) * up[i];
    }
}

TARGET static float FN(softmax_exp)(float *x, size_t n) {
    // One more vector costs less than its elements one by one.
    const size_t all = (n + 15) / 16 * 16;
    for (size_t i = n; i < all; i++) {
        x[i] = -1e30F;
    }
    float most = x[0], sum = 0;
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < all; i++) {
        most = x[i] > most ? x[i] : most;
    }
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < all; i++) {
        x[i] = FN(exp)(x[i] - most);
        sum += x[i];
    }
    return sum;
}

TARGET static float FN(quantise_row)(int8_t *out, float *squares, const float *x, size_t n) {
    float most = 0, sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        float a = __builtin_fabsf(x[i]);
        most = a > most ? a : most;
        sum += a * a;
    }
    *squares = sum;
    float inverse = most > 0 ? 127.0F / most : 0.0F;
    const float magic = 12582912.0F; // 1.5 * 2^23: adding it rounds to the nearest whole number
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        union {
            float f;
            int32_t i;
        } v = { .f = x[i] * inverse + magic };
        out[i] = (int8_t)v.i;
    }
    return most / 127.0F;
}

TARGET static void FN(quantise_rest)(int8_t *rest, const int8_t *row, const float *x, float scale,
                                     size_t n) {
    float inverse = 1.0F / scale;
    const float magic = 12582912.0F; // as above
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        union {
            float f;
            int32_t i;
        } v = { .f = (x[i] * inverse - (float)row[i]) * L2C_REST_STEPS + magic };
        rest[i] = (int8_t)v.i;
    }
}

TARGET static void FN(add_rest)(int32_t *sums, const int32_t *rest, size_t n) {
    const float magic = 12582912.0F;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        union {
            float f;
            int32_t i;
        } v = { .f = (float)rest[i] * (1.0F / L2C_REST_STEPS) + magic };
        sums[i] += v.i - 0x4B400000;
    }
}

TARGET static void FN(dequantise_row)(float *y, const int32_t *sums, float x_scale,
                                      const float *scale, const float *bias, size_t n) {
    if (bias == NULL) {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            y[i] = (float)sums[i] * (x_scale * scale[i]);
        }
    } else {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            y[i] = (float)sums[i] * (x_scale * scale[i]) + bias[i];
        }
    }
}

TARGET static void FN(dequantise_add)(float *y, const int32_t *sums, float x_scale,
                                      const float *scale, const float *bias, size_t n) {
    if (bias == NULL) {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            y[i] += (float)sums[i] * (x_scale * scale[i]);
        }
    } else {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            y[i] += (float)sums[i] * (x_scale * scale[i]) + bias[i];
        }
    }
}

/* Round to nearest even; NaN keeps being NaN because its low bits are dropped only after the quiet
 * bit is set. */
TARGET static void FN(bf16_row)(uint16_t *out, const float *x, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        union {
            float f;
            uint32_t u;
        } v = { .f = x[i] };
        uint32_t rounded = (v.u + 0x7fffU + ((v.u >> 16) & 1U)) >> 16;
        uint32_t nan = (v.u >> 16) | 0x40U;
        // By its bits: this file is compiled as if no comparison met a NaN.
        out[i] = (uint16_t)((v.u & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
    }
}

/* Six rows by two of the level's vectors: twelve sums, two columns of b and one factor in
 * registers. n is a multiple of 32. */
TARGET static void FN(tile_rows)(float *c, size_t ldc, const float *a, size_t lda, const float *b,
                                 size_t ldb, size_t n, size_t k, const size_t rows) {
    const size_t lanes = sizeof(VECTOR) / sizeof(float);
    for (size_t j = 0; j < n; j += 2 * lanes) {
        VECTOR sum[6][2] = { { { 0 } } };
        for (size_t p = 0; p < k; p++) {
            VECTOR b0 = *(const UNALIGNED *)(b + p * ldb + j);
            VECTOR b1 = *(const UNALIGNED *)(b + p * ldb + j + lanes);
#pragma GCC unroll 6
            for (size_t i = 0; i < 6; i++) {
                if (i < rows) {
                    float f = a[i * lda + p];
                    sum[i][0] += f * b0;
                    sum[i][1] += f * b1;
                }
            }
        }
#pragma GCC unroll 6
        for (size_t i = 0; i < 6; i++) {
            if (i < rows) {
                *(UNALIGNED *)(c + i * ldc + j) = sum[i][0];
                *(UNALIGNED *)(c + i * ldc + j + lanes) = sum[i][1];
            }
        }
    }
}

TARGET static void FN(tile_product)(float *c, size_t ldc, const float *a, size_t lda,
                                    const float *b, size_t ldb, size_t m, size_t n, size_t k) {
    size_t i = 0;
    for (; i + 6 <= m; i += 6) {
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 6);
    }
    switch (m - i) {
    case 5:
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 5);
        break;
    case 4:
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 4);
        break;
    case 3:
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 3);
        break;
    case 2:
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 2);
        break;
    case 1:
        FN(tile_rows)(c + i * ldc, ldc, a + i * lda, lda, b, ldb, n, k, 1);
        break;
    default:
        break;
    }
}
