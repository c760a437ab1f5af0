/* What stands between the products: norms, activations, softmax, and the conversions of rows.
 *
 * All on f32, statistics included. The kernels are plain C loops compiled for AVX-512, AVX2 and the
 * base processor and chosen once (L2CDB_CPU lowers the choice); exp is a polynomial with relative
 * error 2e-7, erf a rational with absolute error 4e-7, so results agree with libm's to f32
 * rounding. Pointers may be unaligned. Any thread. */
#ifndef L2C_LAYERS_H
#define L2C_LAYERS_H

#include <stddef.h>
#include <stdint.h>

#include "encoders/gemm.h"

/* out = (x - mean) / sqrt(var + eps) * weight + bias over n features, biased variance. bias may be
 * NULL; out may be x. */
void l2c_layer_norm(float *out, const float *x, const float *weight, const float *bias, size_t n,
                    float eps);
/* out = x / sqrt(mean(x²) + eps) * weight; out may be x. */
void l2c_rms_norm(float *out, const float *x, const float *weight, size_t n, float eps);
/* x = post(x) */
void l2c_activate(float *x, size_t n, l2c_post post);
/* out = silu(gate) * up; out may be either. */
void l2c_swiglu(float *out, const float *gate, const float *up, size_t n);
/* x = exp(x - max x), unnormalised; returns the sum. What follows up to whole vectors of 16 belongs
 * to x and is overwritten with next to nothing. */
float l2c_softmax_exp(float *x, size_t n);

/* Steps of the second int8 in one of the first: half a step either way fits. */
#define L2C_REST_STEPS 254.0F

/* out = round(x / scale), scale = max|x| / 127; returns the scale (0 for a row of zeros). */
float l2c_quantise_row(int8_t *out, const float *x, size_t n);
/* The same; and if a few outliers set a scale that leaves the other elements too few steps, what
 * rounding lost as well: x ≈ scale * (out + rest / L2C_REST_STEPS). *fine: whether `rest` was
 * written. */
float l2c_quantise_row_fine(int8_t *out, int8_t *rest, bool *fine, const float *x, size_t n);
/* sums += round(rest / L2C_REST_STEPS); |rest| below 2^29. */
void l2c_add_rest(int32_t *sums, const int32_t *rest, size_t n);
/* y = post(sums * x_scale * scale[i] + bias[i]); or, if accumulate, y += sums * x_scale * scale[i]
 * + bias[i] (post is NONE then). bias may be NULL. */
void l2c_dequantise_row(float *y, const int32_t *sums, float x_scale, const float *scale,
                        const float *bias, size_t n, l2c_post post, bool accumulate);
void l2c_bf16_row(uint16_t *out, const float *x, size_t n);

/* c[m, n] = a[m, k] b[k, n], row-major. n is a multiple of 32 and b and c have that many readable
 * columns; for the small products of attention. */
void l2c_tile_product(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                      size_t m, size_t n, size_t k);

#endif
