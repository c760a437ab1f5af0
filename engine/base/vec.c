/* Vector kernels; see vec.h. Each SIMD form is compiled with a target attribute, so that one
 * binary serves every processor, and is picked by l2c_cpu_get(). */
#include "engine/base/vec.h"

#include <math.h>
#include <string.h>

#include "engine/base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Weights in a mapped file start at any byte. */
static inline uint16_t load_u16(const uint16_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

float l2c_vec_dot_plain(const float *a, const float *b, size_t n) {
    float s[4] = { 0 };
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (size_t j = 0; j < 4; j++) {
            s[j] += a[i + j] * b[i + j];
        }
    }
    for (; i < n; i++) {
        s[0] += a[i] * b[i];
    }
    return (s[0] + s[1]) + (s[2] + s[3]);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float dot_avx2(const float *a, const float *b,
                                                          size_t n) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    for (; i + 8 <= n; i += 8) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
    }
    __m256 s = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    h = _mm_add_ss(h, _mm_movehdup_ps(h));
    float sum = _mm_cvtss_f32(h);
    for (; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

__attribute__((target("avx512f"))) static float dot_avx512(const float *a, const float *b,
                                                           size_t n) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), s1);
        s2 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 32), _mm512_loadu_ps(b + i + 32), s2);
        s3 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 48), _mm512_loadu_ps(b + i + 48), s3);
    }
    for (; i < n; i += 16) {
        __mmask16 m = (__mmask16)(n - i >= 16 ? 0xFFFFu : (1u << (n - i)) - 1);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

__attribute__((target("avx2,f16c"))) static void from_f16_f16c(float *out, const uint16_t *in,
                                                               size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(in + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
    }
    for (; i < n; i++) {
        out[i] = l2c_f16_to_f32(load_u16(in + i));
    }
}

__attribute__((target("avx2,f16c"))) static void to_f16_f16c(uint16_t *out, const float *in,
                                                             size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(out + i), h);
    }
    for (; i < n; i++) {
        out[i] = l2c_f32_to_f16(in[i]);
    }
}
#endif

#if defined(__aarch64__)
static float dot_neon(const float *a, const float *b, size_t n) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 = vfmaq_f32(s0, vld1q_f32(a + i), vld1q_f32(b + i));
        s1 = vfmaq_f32(s1, vld1q_f32(a + i + 4), vld1q_f32(b + i + 4));
        s2 = vfmaq_f32(s2, vld1q_f32(a + i + 8), vld1q_f32(b + i + 8));
        s3 = vfmaq_f32(s3, vld1q_f32(a + i + 12), vld1q_f32(b + i + 12));
    }
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3)));
    for (; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}
#endif

float l2c_vec_dot(const float *a, const float *b, size_t n) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    if (cpu->avx512) {
        return dot_avx512(a, b, n);
    }
    if (cpu->avx2_fma) {
        return dot_avx2(a, b, n);
    }
#elif defined(__aarch64__)
    return dot_neon(a, b, n);
#endif
    return l2c_vec_dot_plain(a, b, n);
}

float l2c_vec_norm(const float *a, size_t n) {
    return sqrtf(l2c_vec_dot(a, a, n));
}

float l2c_vec_normalize(float *x, size_t n) {
    float norm = l2c_vec_norm(x, n);
    float scale = 1.0f / fmaxf(norm, 1e-12f);
    for (size_t i = 0; i < n; i++) {
        x[i] *= scale;
    }
    return norm;
}

void l2c_vec_axpy(float *y, const float *x, float s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] += s * x[i];
    }
}

int l2c_vec_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        bad |= (u & 0x7F800000u) == 0x7F800000u;
    }
    return bad == 0;
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float l2c_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u;
    uint32_t mantissa = h & 1023u;
    if (exponent == 31) {
        // A NaN becomes quiet, as the hardware instruction does it.
        return float_of(sign | 0x7F800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    }
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t l2c_f32_to_f16(float f) {
    uint32_t u = bits_of(f);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    uint32_t a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u | ((a >> 13) & 0x3FFu));
    }
    if (a >= 0x477FF000u) { // 65,520 and above round to infinity
        return (uint16_t)(sign | 0x7C00u);
    }
    if (a < 0x38800000u) { // below 2^-14: subnormal; the addition does the rounding
        uint32_t r = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
        return (uint16_t)(sign | r);
    }
    uint32_t odd = (a >> 13) & 1u;
    return (uint16_t)(sign | ((a - 0x38000000u + 0xFFFu + odd) >> 13));
}

uint16_t l2c_f32_to_bf16(float f) {
    uint32_t u = bits_of(f);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

void l2c_vec_from_f16(float *out, const uint16_t *in, size_t n) {
#if defined(__x86_64__)
    if (l2c_cpu_get()->avx2_fma) {
        from_f16_f16c(out, in, n);
        return;
    }
#endif
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_f16_to_f32(load_u16(in + i));
    }
}

void l2c_vec_to_f16(uint16_t *out, const float *in, size_t n) {
#if defined(__x86_64__)
    if (l2c_cpu_get()->avx2_fma) {
        to_f16_f16c(out, in, n);
        return;
    }
#endif
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_f32_to_f16(in[i]);
    }
}

void l2c_vec_from_bf16(float *out, const uint16_t *in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_bf16_to_f32(load_u16(in + i));
    }
}

void l2c_vec_to_bf16(uint16_t *out, const float *in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = l2c_f32_to_bf16(in[i]);
    }
}
