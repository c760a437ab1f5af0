/* Dot products of one query with many rows; see kernels.h.
 *
 * A form works on four rows at once, each with its own two accumulators: a register of the query
 * is loaded once for four rows, and eight independent sums hide the latency of the fused
 * multiply-add. A last group of fewer than four repeats a row and drops the surplus results. */
#include "index/kernels.h"

#include "engine/base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef void (*dots4_fn)(float out[4], const float *q, const float *const rows[4], size_t n);

static void dots4_plain(float out[4], const float *q, const float *const rows[4], size_t n) {
    for (size_t r = 0; r < 4; r++) {
        const float *v = rows[r];
        float s[4] = { 0 };
        size_t i = 0;
        for (; i + 4 <= n; i += 4) {
            for (size_t j = 0; j < 4; j++) {
                s[j] += q[i + j] * v[i + j];
            }
        }
        for (; i < n; i++) {
            s[0] += q[i] * v[i];
        }
        out[r] = (s[0] + s[1]) + (s[2] + s[3]);
    }
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void dots4_avx512(float out[4], const float *q,
                                                            const float *const rows[4], size_t n) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    __m512 a0 = _mm512_setzero_ps(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m512 q0 = _mm512_loadu_ps(q + i), q1 = _mm512_loadu_ps(q + i + 16);
        a0 = _mm512_fmadd_ps(q0, _mm512_loadu_ps(a + i), a0);
        b0 = _mm512_fmadd_ps(q0, _mm512_loadu_ps(b + i), b0);
        c0 = _mm512_fmadd_ps(q0, _mm512_loadu_ps(c + i), c0);
        d0 = _mm512_fmadd_ps(q0, _mm512_loadu_ps(d + i), d0);
        a1 = _mm512_fmadd_ps(q1, _mm512_loadu_ps(a + i + 16), a1);
        b1 = _mm512_fmadd_ps(q1, _mm512_loadu_ps(b + i + 16), b1);
        c1 = _mm512_fmadd_ps(q1, _mm512_loadu_ps(c + i + 16), c1);
        d1 = _mm512_fmadd_ps(q1, _mm512_loadu_ps(d + i + 16), d1);
    }
    for (; i < n; i += 16) {
        __mmask16 m = (__mmask16)(n - i >= 16 ? 0xFFFFu : (1u << (n - i)) - 1);
        __m512 q0 = _mm512_maskz_loadu_ps(m, q + i);
        a0 = _mm512_fmadd_ps(q0, _mm512_maskz_loadu_ps(m, a + i), a0);
        b0 = _mm512_fmadd_ps(q0, _mm512_maskz_loadu_ps(m, b + i), b0);
        c0 = _mm512_fmadd_ps(q0, _mm512_maskz_loadu_ps(m, c + i), c0);
        d0 = _mm512_fmadd_ps(q0, _mm512_maskz_loadu_ps(m, d + i), d0);
    }
    out[0] = _mm512_reduce_add_ps(_mm512_add_ps(a0, a1));
    out[1] = _mm512_reduce_add_ps(_mm512_add_ps(b0, b1));
    out[2] = _mm512_reduce_add_ps(_mm512_add_ps(c0, c1));
    out[3] = _mm512_reduce_add_ps(_mm512_add_ps(d0, d1));
}

__attribute__((target("avx2,fma"))) static float sum_avx2(__m256 s) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    h = _mm_add_ss(h, _mm_movehdup_ps(h));
    return _mm_cvtss_f32(h);
}

__attribute__((target("avx2,fma"))) static void dots4_avx2(float out[4], const float *q,
                                                           const float *const rows[4], size_t n) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    __m256 a0 = _mm256_setzero_ps(), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 q0 = _mm256_loadu_ps(q + i), q1 = _mm256_loadu_ps(q + i + 8);
        a0 = _mm256_fmadd_ps(q0, _mm256_loadu_ps(a + i), a0);
        b0 = _mm256_fmadd_ps(q0, _mm256_loadu_ps(b + i), b0);
        c0 = _mm256_fmadd_ps(q0, _mm256_loadu_ps(c + i), c0);
        d0 = _mm256_fmadd_ps(q0, _mm256_loadu_ps(d + i), d0);
        a1 = _mm256_fmadd_ps(q1, _mm256_loadu_ps(a + i + 8), a1);
        b1 = _mm256_fmadd_ps(q1, _mm256_loadu_ps(b + i + 8), b1);
        c1 = _mm256_fmadd_ps(q1, _mm256_loadu_ps(c + i + 8), c1);
        d1 = _mm256_fmadd_ps(q1, _mm256_loadu_ps(d + i + 8), d1);
    }
    out[0] = sum_avx2(_mm256_add_ps(a0, a1));
    out[1] = sum_avx2(_mm256_add_ps(b0, b1));
    out[2] = sum_avx2(_mm256_add_ps(c0, c1));
    out[3] = sum_avx2(_mm256_add_ps(d0, d1));
    for (; i < n; i++) {
        for (size_t r = 0; r < 4; r++) {
            out[r] += q[i] * rows[r][i];
        }
    }
}
#endif

#if defined(__aarch64__)
static void dots4_neon(float out[4], const float *q, const float *const rows[4], size_t n) {
    for (size_t r = 0; r < 4; r++) {
        const float *v = rows[r];
        float32x4_t s0 = vdupq_n_f32(0), s1 = s0, s2 = s0, s3 = s0;
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            s0 = vfmaq_f32(s0, vld1q_f32(q + i), vld1q_f32(v + i));
            s1 = vfmaq_f32(s1, vld1q_f32(q + i + 4), vld1q_f32(v + i + 4));
            s2 = vfmaq_f32(s2, vld1q_f32(q + i + 8), vld1q_f32(v + i + 8));
            s3 = vfmaq_f32(s3, vld1q_f32(q + i + 12), vld1q_f32(v + i + 12));
        }
        float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3)));
        for (; i < n; i++) {
            sum += q[i] * v[i];
        }
        out[r] = sum;
    }
}
#endif

static dots4_fn dots4_choose(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    if (cpu->avx512) {
        return dots4_avx512;
    }
    if (cpu->avx2_fma) {
        return dots4_avx2;
    }
#elif defined(__aarch64__)
    return dots4_neon;
#endif
    return dots4_plain;
}

void l2c_kernel_dots(float *out, const float *query, const float *const *rows, size_t n,
                     size_t width) {
    dots4_fn dots4 = dots4_choose();
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        dots4(out + i, query, rows + i, width);
    }
    if (i < n) {
        const float *last[4];
        float sums[4];
        for (size_t r = 0; r < 4; r++) {
            last[r] = rows[i + r < n ? i + r : n - 1];
        }
        dots4(sums, query, last, width);
        for (size_t r = 0; i + r < n; r++) {
            out[i + r] = sums[r];
        }
    }
}

void l2c_kernel_dots_block(float *out, const float *query, const float *rows, size_t n,
                           size_t width) {
    const float *group[64];
    for (size_t i = 0; i < n; i += 64) {
        size_t m = n - i < 64 ? n - i : 64;
        for (size_t r = 0; r < m; r++) {
            group[r] = rows + (i + r) * width;
        }
        l2c_kernel_dots(out + i, query, group, m, width);
    }
}

const char *l2c_kernel_name(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    return cpu->avx512     ? (cpu->avx512_vnni ? "avx512-vnni" : "avx512")
           : cpu->avx2_fma ? "avx2"
                           : "plain";
#elif defined(__aarch64__)
    return "neon";
#else
    return "plain";
#endif
}
