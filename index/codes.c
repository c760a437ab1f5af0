/* Dot products with coded rows; see codes.h.
 *
 * Each form takes four codes at once, as in kernels.c. VNNI multiplies unsigned by signed bytes, so
 * a weight is split into w = 256*high + low and the two halves are summed apart: a memory-bound
 * search does not feel the second multiplication, and dimensions beside an outlier keep their
 * precision. Sums wrap modulo 2^32 on the way and are right at the end, since the total fits.
 *
 * Layout of a prepared query; every array is padded with zeros to 64 bytes:
 *   with VNNI     high[n] and low[n] as int8
 *   otherwise     w[n] as int16
 * with n = width for SQ8. For SQ4 there are two such sets, of the even and of the odd dimensions:
 * the low four bits of a code are the even one, as FAISS stores it. */
#include "index/codes.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/base/cpu.h"
#include "engine/base/vec.h"
#include "index/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define WEIGHT_MOST 32000.0f
#define SUM_MOST 2.1e9f

static size_t pad64(size_t n) {
    return (n + 63) & ~(size_t)63;
}

/* Bytes of one set, the same in both layouts. */
static size_t set_bytes(size_t n) {
    return 2 * pad64(n);
}

static bool split_weights(void) {
    return l2c_cpu_get()->avx512_vnni;
}

static void set_put(void *set, size_t n, size_t i, int32_t w) {
    if (split_weights()) {
        int32_t high = (w + 128) >> 8;
        ((int8_t *)set)[i] = (int8_t)high;
        ((int8_t *)set)[pad64(n) + i] = (int8_t)(w - 256 * high);
    } else {
        ((int16_t *)set)[i] = (int16_t)w;
    }
}

static const uint8_t *vector_of(const l2c_codes_query *q) {
    const uint8_t *query;
    memcpy(&query, q->memory, sizeof query);
    return query;
}

static void f32_dots4(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    const float *vectors[4];
    for (size_t r = 0; r < 4; r++) {
        vectors[r] = (const float *)(const void *)rows[r];
    }
    l2c_kernel_dots(out, (const float *)(const void *)vector_of(q), vectors, 4, q->codes->width);
}

static void fp16_dots4_plain(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    const float *query = (const float *)(const void *)vector_of(q);
    for (size_t r = 0; r < 4; r++) {
        float sum = 0;
        for (size_t i = 0; i < q->codes->width; i++) {
            uint16_t h;
            memcpy(&h, rows[r] + 2 * i, sizeof h);
            sum += query[i] * l2c_f16_to_f32(h);
        }
        out[r] = sum;
    }
}

static void finish4(float out[4], const l2c_codes_query *q, const int32_t sums[4]) {
    for (size_t r = 0; r < 4; r++) {
        out[r] = q->offset + q->factor * (float)sums[r];
    }
}

static void sq8_dots4_plain(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    const int16_t *w = q->memory;
    int32_t sums[4] = { 0 };
    for (size_t r = 0; r < 4; r++) {
        for (size_t i = 0; i < q->codes->width; i++) {
            sums[r] += w[i] * rows[r][i];
        }
    }
    finish4(out, q, sums);
}

static void sq4_dots4_plain(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    size_t half = q->codes->row_bytes;
    const int16_t *even = q->memory;
    const int16_t *odd = (const int16_t *)(const void *)((const char *)q->memory + set_bytes(half));
    int32_t sums[4] = { 0 };
    for (size_t r = 0; r < 4; r++) {
        for (size_t i = 0; i < half; i++) {
            sums[r] += even[i] * (rows[r][i] & 15) + odd[i] * (rows[r][i] >> 4);
        }
    }
    finish4(out, q, sums);
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define AVX2 __attribute__((target("avx2,fma,f16c")))

AVX512 static void fp16_dots4_avx512(float out[4], const l2c_codes_query *q,
                                     const uint8_t *const rows[4]) {
    const float *query = (const float *)(const void *)vector_of(q);
    size_t n = q->codes->width;
    __m512 s[4];
    for (size_t r = 0; r < 4; r++) {
        s[r] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = (__mmask16)(n - i >= 16 ? 0xFFFFu : (1u << (n - i)) - 1);
        __m512 x = _mm512_maskz_loadu_ps(m, query + i);
        for (size_t r = 0; r < 4; r++) {
            __m256i h = _mm256_maskz_loadu_epi16(m, rows[r] + 2 * i);
            s[r] = _mm512_fmadd_ps(x, _mm512_cvtph_ps(h), s[r]);
        }
    }
    for (size_t r = 0; r < 4; r++) {
        out[r] = _mm512_reduce_add_ps(s[r]);
    }
}

VNNI static inline __m512i weighted(__m512i high, __m512i low) {
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

VNNI static inline __m128i lanes(__m512i v) {
    __m256i h = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}

/* The four sums of the lanes of a, b, c, d as floats. */
VNNI static inline void finish4_vnni(float out[4], const l2c_codes_query *q, __m512i a, __m512i b,
                                     __m512i c, __m512i d) {
    __m128i ab = _mm_hadd_epi32(lanes(a), lanes(b)), cd = _mm_hadd_epi32(lanes(c), lanes(d));
    __m128 sums = _mm_cvtepi32_ps(_mm_hadd_epi32(ab, cd));
    sums = _mm_mul_ps(_mm_set1_ps(q->factor), sums);
    _mm_storeu_ps(out, _mm_add_ps(_mm_set1_ps(q->offset), sums));
}

VNNI static void sq8_dots4_vnni(float out[4], const l2c_codes_query *q,
                                const uint8_t *const rows[4]) {
    size_t n = q->codes->width;
    const int8_t *high = q->memory, *low = high + pad64(n);
    const uint8_t *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    __m512i ah = _mm512_setzero_si512(), al = ah, bh = ah, bl = ah, ch = ah, cl = ah, dh = ah,
            dl = ah;
    for (size_t i = 0; i < n; i += 64) {
        __mmask64 m = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
        __m512i h = _mm512_load_si512((const void *)(high + i));
        __m512i l = _mm512_load_si512((const void *)(low + i));
        __m512i x = _mm512_maskz_loadu_epi8(m, a + i);
        ah = _mm512_dpbusd_epi32(ah, x, h);
        al = _mm512_dpbusd_epi32(al, x, l);
        x = _mm512_maskz_loadu_epi8(m, b + i);
        bh = _mm512_dpbusd_epi32(bh, x, h);
        bl = _mm512_dpbusd_epi32(bl, x, l);
        x = _mm512_maskz_loadu_epi8(m, c + i);
        ch = _mm512_dpbusd_epi32(ch, x, h);
        cl = _mm512_dpbusd_epi32(cl, x, l);
        x = _mm512_maskz_loadu_epi8(m, d + i);
        dh = _mm512_dpbusd_epi32(dh, x, h);
        dl = _mm512_dpbusd_epi32(dl, x, l);
    }
    finish4_vnni(out, q, weighted(ah, al), weighted(bh, bl), weighted(ch, cl), weighted(dh, dl));
}

VNNI static void sq4_dots4_vnni(float out[4], const l2c_codes_query *q,
                                const uint8_t *const rows[4]) {
    size_t n = q->codes->row_bytes;
    const int8_t *even_high = q->memory, *even_low = even_high + pad64(n);
    const int8_t *odd_high = even_high + set_bytes(n), *odd_low = odd_high + pad64(n);
    const __m512i four = _mm512_set1_epi8(15);
    __m512i high[4], low[4];
    for (size_t r = 0; r < 4; r++) {
        high[r] = low[r] = _mm512_setzero_si512();
    }
    for (size_t i = 0; i < n; i += 64) {
        __mmask64 m = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
        __m512i eh = _mm512_load_si512((const void *)(even_high + i));
        __m512i el = _mm512_load_si512((const void *)(even_low + i));
        __m512i oh = _mm512_load_si512((const void *)(odd_high + i));
        __m512i ol = _mm512_load_si512((const void *)(odd_low + i));
        for (size_t r = 0; r < 4; r++) {
            __m512i x = _mm512_maskz_loadu_epi8(m, rows[r] + i);
            __m512i e = _mm512_and_si512(x, four);
            __m512i o = _mm512_and_si512(_mm512_srli_epi16(x, 4), four);
            high[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(high[r], e, eh), o, oh);
            low[r] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(low[r], e, el), o, ol);
        }
    }
    finish4_vnni(out, q, weighted(high[0], low[0]), weighted(high[1], low[1]),
                 weighted(high[2], low[2]), weighted(high[3], low[3]));
}

AVX2 static void fp16_dots4_avx2(float out[4], const l2c_codes_query *q,
                                 const uint8_t *const rows[4]) {
    const float *query = (const float *)(const void *)vector_of(q);
    size_t n = q->codes->width, i;
    for (size_t r = 0; r < 4; r++) {
        __m256 s = _mm256_setzero_ps();
        for (i = 0; i + 8 <= n; i += 8) {
            __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(rows[r] + 2 * i));
            s = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), _mm256_cvtph_ps(h), s);
        }
        __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
        t = _mm_add_ps(t, _mm_movehl_ps(t, t));
        out[r] = _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
        for (; i < n; i++) {
            uint16_t h;
            memcpy(&h, rows[r] + 2 * i, sizeof h);
            out[r] += query[i] * l2c_f16_to_f32(h);
        }
    }
}

AVX2 static int32_t sum_avx2(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

AVX2 static void sq8_dots4_avx2(float out[4], const l2c_codes_query *q,
                                const uint8_t *const rows[4]) {
    const int16_t *w = q->memory;
    size_t n = q->codes->width;
    int32_t sums[4];
    for (size_t r = 0; r < 4; r++) {
        __m256i s = _mm256_setzero_si256();
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(rows[r] + i));
            __m256i x = _mm256_load_si256((const __m256i *)(const void *)(w + i));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(x, _mm256_cvtepu8_epi16(c)));
        }
        sums[r] = sum_avx2(s);
        for (; i < n; i++) {
            sums[r] += w[i] * rows[r][i];
        }
    }
    finish4(out, q, sums);
}

AVX2 static void sq4_dots4_avx2(float out[4], const l2c_codes_query *q,
                                const uint8_t *const rows[4]) {
    size_t n = q->codes->row_bytes;
    const int16_t *even = q->memory;
    const int16_t *odd = (const int16_t *)(const void *)((const char *)q->memory + set_bytes(n));
    const __m256i four = _mm256_set1_epi16(15);
    int32_t sums[4];
    for (size_t r = 0; r < 4; r++) {
        __m256i s = _mm256_setzero_si256();
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(rows[r] + i));
            __m256i x = _mm256_cvtepu8_epi16(c);
            __m256i e = _mm256_load_si256((const __m256i *)(const void *)(even + i));
            __m256i o = _mm256_load_si256((const __m256i *)(const void *)(odd + i));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(e, _mm256_and_si256(x, four)));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(o, _mm256_srli_epi16(x, 4)));
        }
        sums[r] = sum_avx2(s);
        for (; i < n; i++) {
            sums[r] += even[i] * (rows[r][i] & 15) + odd[i] * (rows[r][i] >> 4);
        }
    }
    finish4(out, q, sums);
}
#endif

#if defined(__aarch64__)
static void fp16_dots4_neon(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    const float *query = (const float *)(const void *)vector_of(q);
    size_t n = q->codes->width, i;
    for (size_t r = 0; r < 4; r++) {
        float32x4_t s = vdupq_n_f32(0);
        for (i = 0; i + 4 <= n; i += 4) {
            float16x4_t h = vreinterpret_f16_u8(vld1_u8(rows[r] + 2 * i));
            s = vfmaq_f32(s, vld1q_f32(query + i), vcvt_f32_f16(h));
        }
        out[r] = vaddvq_f32(s);
        for (; i < n; i++) {
            uint16_t h;
            memcpy(&h, rows[r] + 2 * i, sizeof h);
            out[r] += query[i] * l2c_f16_to_f32(h);
        }
    }
}

static int32x4_t madd_neon(int32x4_t s, uint8x8_t codes, const int16_t *w) {
    int16x8_t c = vreinterpretq_s16_u16(vmovl_u8(codes)), x = vld1q_s16(w);
    s = vmlal_s16(s, vget_low_s16(c), vget_low_s16(x));
    return vmlal_s16(s, vget_high_s16(c), vget_high_s16(x));
}

static void sq8_dots4_neon(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    const int16_t *w = q->memory;
    size_t n = q->codes->width;
    int32_t sums[4];
    for (size_t r = 0; r < 4; r++) {
        int32x4_t s = vdupq_n_s32(0);
        size_t i = 0;
        for (; i + 8 <= n; i += 8) {
            s = madd_neon(s, vld1_u8(rows[r] + i), w + i);
        }
        sums[r] = vaddvq_s32(s);
        for (; i < n; i++) {
            sums[r] += w[i] * rows[r][i];
        }
    }
    finish4(out, q, sums);
}

static void sq4_dots4_neon(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]) {
    size_t n = q->codes->row_bytes;
    const int16_t *even = q->memory;
    const int16_t *odd = (const int16_t *)(const void *)((const char *)q->memory + set_bytes(n));
    int32_t sums[4];
    for (size_t r = 0; r < 4; r++) {
        int32x4_t s = vdupq_n_s32(0);
        size_t i = 0;
        for (; i + 8 <= n; i += 8) {
            uint8x8_t c = vld1_u8(rows[r] + i);
            s = madd_neon(s, vand_u8(c, vdup_n_u8(15)), even + i);
            s = madd_neon(s, vshr_n_u8(c, 4), odd + i);
        }
        sums[r] = vaddvq_s32(s);
        for (; i < n; i++) {
            sums[r] += even[i] * (rows[r][i] & 15) + odd[i] * (rows[r][i] >> 4);
        }
    }
    finish4(out, q, sums);
}
#endif

typedef void (*dots4_fn)(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]);

typedef struct forms {
    dots4_fn fp16, sq8, sq4;
} forms;

static forms forms_choose(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    if (cpu->avx512_vnni) {
        return (forms){ fp16_dots4_avx512, sq8_dots4_vnni, sq4_dots4_vnni };
    }
    if (cpu->avx512) {
        return (forms){ fp16_dots4_avx512, sq8_dots4_avx2, sq4_dots4_avx2 };
    }
    if (cpu->avx2_fma) {
        return (forms){ fp16_dots4_avx2, sq8_dots4_avx2, sq4_dots4_avx2 };
    }
#elif defined(__aarch64__)
    return (forms){ fp16_dots4_neon, sq8_dots4_neon, sq4_dots4_neon };
#endif
    return (forms){ fp16_dots4_plain, sq8_dots4_plain, sq4_dots4_plain };
}

size_t l2c_codes_row_bytes(l2c_quant quant, size_t width) {
    switch (quant) {
    case L2C_QUANT_F32:
        return width * 4;
    case L2C_QUANT_FP16:
        return width * 2;
    case L2C_QUANT_SQ4:
        return (width + 1) / 2;
    default:
        return width;
    }
}

/* One scale for all queries and rows: no value is beyond 1 or the codes' own range, and
 * Σ|x|step ≤ |x||step| (Cauchy and Schwarz), where decoding may add a little to |x| = 1. Rounding
 * adds at most a half to each weight. */
static void set_scale(l2c_codes *codes, float levels) {
    float most = 1e-30f, squares = 1e-30f;
    for (size_t i = 0; i < codes->width; i++) {
        float low = fabsf(codes->min[i]), high = fabsf(codes->min[i] + levels * codes->step[i]);
        most = fmaxf(most, codes->step[i] * fmaxf(1.0f, fmaxf(low, high)));
        squares += codes->step[i] * codes->step[i];
    }
    float fits = (SUM_MOST / levels - (float)codes->width) / (1.2f * sqrtf(squares));
    codes->unit_scale = fminf(WEIGHT_MOST / most, fits);
}

void l2c_codes_init(l2c_codes *codes, l2c_quant quant, size_t width, const uint8_t *rows,
                    const float *min, const float *step) {
    *codes = (l2c_codes){ .quant = quant,
                          .width = width,
                          .row_bytes = l2c_codes_row_bytes(quant, width),
                          .query_bytes = 64,
                          .rows = rows,
                          .min = min,
                          .step = step,
                          .dots4 = f32_dots4 };
    forms f = forms_choose();
    if (quant == L2C_QUANT_FP16) {
        codes->dots4 = f.fp16;
    } else if (quant == L2C_QUANT_SQ8) {
        codes->dots4 = f.sq8;
        codes->query_bytes = set_bytes(width);
        set_scale(codes, 255);
    } else if (quant == L2C_QUANT_SQ4) {
        codes->dots4 = f.sq4;
        codes->query_bytes = 2 * set_bytes(codes->row_bytes);
        set_scale(codes, 15);
    }
}

/* Weights round(scale*x*step) of the vector x, or of what `code` decodes to if x is NULL, into
 * `memory`; returns Σ x*min. */
static float weights_plain(void *memory, const l2c_codes *c, const float *x, const uint8_t *code,
                           float scale) {
    float offset = 0;
    bool bytes = c->quant == L2C_QUANT_SQ8;
    memset(memory, 0, c->query_bytes);
    for (size_t i = 0; i < c->width; i++) {
        int value = x != NULL ? 0 : bytes ? code[i] : i % 2 ? code[i / 2] >> 4 : code[i / 2] & 15;
        float v = x != NULL ? x[i] : c->min[i] + c->step[i] * (float)value;
        int32_t w = (int32_t)lrintf(v * c->step[i] * scale);
        offset += v * c->min[i];
        if (bytes) {
            set_put(memory, c->width, i, w);
        } else {
            set_put((char *)memory + (i % 2) * set_bytes(c->row_bytes), c->row_bytes, i / 2, w);
        }
    }
    return offset;
}

#if defined(__x86_64__)
/* Sixteen values of a code from dimension i on. */
AVX512 static inline __m512i values16(const l2c_codes *c, const uint8_t *code, size_t i,
                                      __mmask16 m, bool bytes) {
    if (bytes) {
        return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, code + i));
    }
    __mmask16 half = (__mmask16)(i / 2 + 8 <= c->row_bytes ? 0xFFu
                                 : i / 2 < c->row_bytes    ? (1u << (c->row_bytes - i / 2)) - 1
                                                           : 0);
    __m128i v = _mm_maskz_loadu_epi8(half, code + i / 2), four = _mm_set1_epi8(15);
    v = _mm_unpacklo_epi8(_mm_and_si128(v, four), _mm_and_si128(_mm_srli_epi16(v, 4), four));
    return _mm512_cvtepu8_epi32(v);
}

AVX512 static inline void put8(int8_t *to, __m128i v) {
    _mm_storel_epi64((__m128i *)(void *)to, v);
}

AVX512 static inline float weights_avx512(void *memory, const l2c_codes *c, const float *x,
                                          const uint8_t *code, float scale, bool bytes) {
    size_t n = c->width, set = pad64(bytes ? n : c->row_bytes), all = bytes ? set : 2 * set;
    int8_t *even = memory, *odd = even + 2 * set;
    const __m128i split = _mm_set_epi8(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512 offset = _mm512_setzero_ps(), s = _mm512_set1_ps(scale);
    for (size_t i = 0; i < all; i += 16) {
        __mmask16 m = (__mmask16)(i >= n ? 0 : n - i >= 16 ? 0xFFFFu : (1u << (n - i)) - 1);
        __m512 min = _mm512_maskz_loadu_ps(m, c->min + i);
        __m512 step = _mm512_maskz_loadu_ps(m, c->step + i);
        __m512 v;
        if (x != NULL) {
            v = _mm512_maskz_loadu_ps(m, x + i);
        } else {
            v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(values16(c, code, i, m, bytes)), step, min);
        }
        offset = _mm512_fmadd_ps(v, min, offset);
        __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(v, step), s));
        __m512i h = _mm512_srai_epi32(_mm512_add_epi32(w, _mm512_set1_epi32(128)), 8);
        __m128i high = _mm512_cvtepi32_epi8(h), low = _mm512_cvtepi32_epi8(w);
        if (bytes) {
            _mm_store_si128((__m128i *)(void *)(even + i), high);
            _mm_store_si128((__m128i *)(void *)(even + set + i), low);
        } else {
            high = _mm_shuffle_epi8(high, split);
            low = _mm_shuffle_epi8(low, split);
            put8(even + i / 2, high);
            put8(even + set + i / 2, low);
            put8(odd + i / 2, _mm_unpackhi_epi64(high, high));
            put8(odd + set + i / 2, _mm_unpackhi_epi64(low, low));
        }
    }
    return _mm512_reduce_add_ps(offset);
}

AVX512 static float weights_sq8_avx512(void *memory, const l2c_codes *c, const float *x,
                                       const uint8_t *code, float scale) {
    return weights_avx512(memory, c, x, code, scale, true);
}

AVX512 static float weights_sq4_avx512(void *memory, const l2c_codes *c, const float *x,
                                       const uint8_t *code, float scale) {
    return weights_avx512(memory, c, x, code, scale, false);
}
#endif

static float put_weights(void *memory, const l2c_codes *c, const float *x, const uint8_t *code,
                         float scale) {
#if defined(__x86_64__)
    if (split_weights()) {
        return c->quant == L2C_QUANT_SQ8 ? weights_sq8_avx512(memory, c, x, code, scale)
                                         : weights_sq4_avx512(memory, c, x, code, scale);
    }
#endif
    return weights_plain(memory, c, x, code, scale);
}

void l2c_codes_prepare(l2c_codes_query *q, const l2c_codes *codes, const float *query,
                       void *memory) {
    *q = (l2c_codes_query){ .codes = codes, .memory = memory };
    if (codes->quant == L2C_QUANT_F32 || codes->quant == L2C_QUANT_FP16) {
        memcpy(memory, &query, sizeof query);
        return;
    }
    q->offset = put_weights(memory, codes, query, NULL, codes->unit_scale);
    q->factor = 1.0f / codes->unit_scale;
}

void l2c_codes_prepare_row(l2c_codes_query *q, const l2c_codes *codes, size_t row, void *memory) {
    const uint8_t *code = codes->rows + row * codes->row_bytes;
    *q = (l2c_codes_query){ .codes = codes, .memory = memory };
    q->offset = put_weights(memory, codes, NULL, code, codes->unit_scale);
    q->factor = 1.0f / codes->unit_scale;
}

void l2c_codes_fetch(const l2c_codes_query *q, const int32_t *rows, size_t n) {
    size_t bytes = q->codes->row_bytes;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *row = q->codes->rows + (size_t)rows[i] * bytes;
        for (size_t at = 0; at < bytes; at += 64) {
            __builtin_prefetch(row + at);
        }
    }
}

void l2c_codes_dots4(float out[4], const l2c_codes_query *q, const int32_t *rows, size_t n) {
    const uint8_t *group[4];
    for (size_t r = 0; r < 4; r++) {
        group[r] = q->codes->rows + (size_t)rows[r < n ? r : n - 1] * q->codes->row_bytes;
    }
    q->codes->dots4(out, q, group);
}

void l2c_codes_dots(float *out, const l2c_codes_query *q, const int32_t *rows, size_t n) {
    l2c_codes_fetch(q, rows, n < 4 ? n : 4);
    for (size_t i = 0; i < n; i += 4) {
        size_t m = n - i < 4 ? n - i : 4, left = n - i - m;
        float dots[4];
        l2c_codes_fetch(q, rows + i + m, left < 4 ? left : 4);
        l2c_codes_dots4(dots, q, rows + i, m);
        memcpy(out + i, dots, m * sizeof *out);
    }
}

void l2c_codes_dots_block(float *out, const l2c_codes_query *q, const uint8_t *first, size_t n) {
    const uint8_t *group[4];
    size_t bytes = q->codes->row_bytes;
    for (size_t i = 0; i < n; i += 4) {
        for (size_t r = 0; r < 4; r++) {
            group[r] = first + (i + r < n ? i + r : n - 1) * bytes;
        }
        float dots[4];
        q->codes->dots4(dots, q, group);
        memcpy(out + i, dots, (n - i < 4 ? n - i : 4) * sizeof *out);
    }
}
