/* Small vector kernels on f32, chosen once by the processor (AVX-512, AVX2, NEON, plain C), and
 * half-precision conversions. The plain forms are exported too: they are the referee.
 *
 * Pointers may be unaligned. Sums are kept in f32 with several accumulators, so results of two
 * kernels differ by rounding only (relative 1e-6 at 4,096 elements). */
#ifndef L2C_VEC_H
#define L2C_VEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Σ a[i]*b[i] */
float l2c_vec_dot(const float *a, const float *b, size_t n);
float l2c_vec_dot_plain(const float *a, const float *b, size_t n);
/* L2 norm. */
float l2c_vec_norm(const float *a, size_t n);
/* x / max(||x||, 1e-12), the floor of torch.nn.functional.normalize; returns ||x||. */
float l2c_vec_normalize(float *x, size_t n);
/* y += s*x */
void l2c_vec_axpy(float *y, const float *x, float s, size_t n);
/* 1 if every value is finite. */
int l2c_vec_finite(const float *x, size_t n);

/* IEEE half and bfloat16 to f32 (exact, subnormals, infinities and NaN included), and back with
 * round to nearest even. */
float l2c_f16_to_f32(uint16_t h);
uint16_t l2c_f32_to_f16(float f);
static inline float l2c_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = { .u = (uint32_t)h << 16 };
    return v.f;
}
uint16_t l2c_f32_to_bf16(float f);
void l2c_vec_from_f16(float *out, const uint16_t *in, size_t n);
void l2c_vec_to_f16(uint16_t *out, const float *in, size_t n);
void l2c_vec_from_bf16(float *out, const uint16_t *in, size_t n);
void l2c_vec_to_bf16(uint16_t *out, const float *in, size_t n);

#ifdef __cplusplus
}
#endif
#endif
