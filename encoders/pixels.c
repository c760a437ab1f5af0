/* Pillow's antialiased bicubic, and the normalisation around it; see pixels.h.
 *
 * For output index i of an axis in → out (Keys' kernel, a = -1/2, stretched by fs when shrinking):
 *   scale = in/out, fs = max(1, scale), c = (i + 1/2) scale
 *   w[k] = kernel((k + first - c + 1/2) / fs) over the taps within 2 fs of c, divided by their sum
 *   K[k] = w[k] 2^22, rounded half away from zero;  pixel = clamp((2^21 + Σ K[k] p[k]) >> 22)
 * Doubles are used in exactly this order, since the last bit of a weight decides a rounding.
 *
 * Fast forms. Bytes times weights of 23 bits do not fit the 16-bit multiply-add of x86, so each
 * weight is split, K = 2^15 high + low with 0 <= low < 2^15: two multiply-adds, and the sums join
 * as (Σ high p << 15) + Σ low p. Either sum may wrap around; their true total fits 32 bits, so the
 * wrapped total is the true one, and the result has the same integers as the plain loop. */
#include "encoders/pixels.h"

#include <math.h>
#include <string.h>

#include "engine/base/cpu.h"
#include "engine/base/mem.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define WEIGHT_BITS 22
#define WEIGHT_HALF (1 << (WEIGHT_BITS - 1))
#define SPLIT_BITS 15
#define TAPS_STEP 8 // the widest kernel takes 8 taps at a time

/* ---- Settings ------------------------------------------------------------------------------ */

void l2c_pixels_config_init(l2c_pixels_config *c, uint32_t side) {
    *c = (l2c_pixels_config){
        .resize_side = side,
        .crop_side = side,
        .rescale = 1.0f / 255.0f,
        .mean = { 0.48145466f, 0.4578275f, 0.40821073f },
        .std = { 0.26862954f, 0.26130258f, 0.27577711f },
    };
}

l2cdb_status l2c_pixels_config_check(const l2c_pixels_config *c, l2cdb_error *err) {
    if (c->resize_side == 0 || c->resize_side > L2C_PIXELS_SIDE_MAX) {
        return l2c_fail(err, L2CDB_E_INVALID, "preprocessing: resize side is %u, expected 1 to %d",
                        c->resize_side, L2C_PIXELS_SIDE_MAX);
    }
    if (c->crop_side == 0 || c->crop_side > c->resize_side) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "preprocessing: crop side is %u, expected 1 to the resize side %u",
                        c->crop_side, c->resize_side);
    }
    if (!isfinite(c->rescale) || c->rescale <= 0) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "preprocessing: rescale factor is %g, expected a positive number",
                        (double)c->rescale);
    }
    for (int i = 0; i < 3; i++) {
        if (!isfinite(c->mean[i])) {
            return l2c_fail(err, L2CDB_E_INVALID, "preprocessing: mean %d is not finite", i);
        }
        if (!isfinite(c->std[i]) || c->std[i] <= 0) {
            return l2c_fail(err, L2CDB_E_INVALID,
                            "preprocessing: std %d is %g, expected a positive number", i,
                            (double)c->std[i]);
        }
    }
    return L2CDB_OK;
}

l2c_pixels_window l2c_pixels_window_of(const l2c_pixels_config *c, uint32_t width,
                                       uint32_t height) {
    uint64_t side = c->resize_side;
    l2c_pixels_window w = {
        .full_width = side, .full_height = side, .width = c->crop_side, .height = c->crop_side
    };
    if (!c->squash && width < height) {
        w.full_height = side * height / width;
    } else if (!c->squash) {
        w.full_width = side * width / height;
    }
    w.left = (w.full_width - c->crop_side) / 2;
    w.top = (w.full_height - c->crop_side) / 2;
    return w;
}

/* ---- Taps ---------------------------------------------------------------------------------- */

/* The weighted inputs of outputs `start` to `start + count` of one axis. Row i of each array has
 * `stride` places, of which n[i] are used and the rest is zero. */
typedef struct taps {
    size_t count, stride;
    uint32_t *first, *n;
    int32_t *weights;    // [count, stride]
    int16_t *low, *high; // [count, stride]: weights split
    void *block;
} taps;

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) {
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    }
    if (x < 2) {
        return (((x - 5) * x + 8) * x - 4) * a;
    }
    return 0;
}

static bool taps_alloc(taps *t, size_t count, size_t stride) {
    size_t cells, weights, halves, heads, total;
    if (!l2c_mul_size(&cells, count, stride) || !l2c_mul_size(&weights, cells, sizeof(int32_t)) ||
        !l2c_mul_size(&halves, cells, 2 * sizeof(int16_t)) ||
        !l2c_mul_size(&heads, count, 2 * sizeof(uint32_t)) ||
        !l2c_add_size(&total, weights, halves) || !l2c_add_size(&total, total, heads)) {
        return false;
    }
    t->block = l2c_alloc_aligned(total, 1);
    if (t->block == NULL) {
        return false;
    }
    t->count = count;
    t->stride = stride;
    t->weights = t->block;
    t->low = (int16_t *)(t->weights + cells);
    t->high = t->low + cells;
    t->first = (uint32_t *)(t->high + cells);
    t->n = t->first + count;
    memset(t->block, 0, total);
    return true;
}

/* Fills taps for an axis of `in` pixels that becomes `out` pixels. */
static l2cdb_status taps_init(taps *t, uint32_t in, uint64_t out, uint64_t start, uint32_t count,
                              l2cdb_error *err) {
    double scale = (double)in / (double)out;
    double stretch = scale < 1 ? 1 : scale;
    double support = 2 * stretch;
    size_t most = (size_t)ceil(support) * 2 + 1;
    size_t stride = (most + TAPS_STEP - 1) / TAPS_STEP * TAPS_STEP;
    double *w = l2c_alloc(most, sizeof *w);
    if (w == NULL || !taps_alloc(t, count, stride)) {
        l2c_free(w);
        return l2c_fail_nomem(err, (uint64_t)count * stride * 8);
    }
    for (uint32_t i = 0; i < count; i++) {
        double centre = ((double)(start + i) + 0.5) * scale;
        int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > in ? in : high;
        size_t n = (size_t)(high - low);
        double sum = 0, inverse = 1 / stretch;
        for (size_t k = 0; k < n; k++) {
            w[k] = bicubic(((double)k + (double)low - centre + 0.5) * inverse);
            sum += w[k];
        }
        double reciprocal = 1 / sum;
        for (size_t k = 0; k < n; k++) {
            double unit = w[k] * reciprocal * (1 << WEIGHT_BITS);
            int32_t weight = (int32_t)(w[k] * reciprocal < 0 ? unit - 0.5 : unit + 0.5);
            size_t at = i * stride + k;
            t->weights[at] = weight;
            t->low[at] = (int16_t)(weight & ((1 << SPLIT_BITS) - 1));
            t->high[at] = (int16_t)(weight >> SPLIT_BITS);
        }
        t->first[i] = (uint32_t)low;
        t->n[i] = (uint32_t)n;
    }
    l2c_free(w);
    return L2CDB_OK;
}

static void taps_fini(taps *t) {
    l2c_free(t->block);
}

/* ---- Plain passes -------------------------------------------------------------------------- */

static inline uint8_t to_byte(int32_t sum) {
    int32_t v = sum >> WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Source and target of a pass; strides in bytes. */
typedef struct pass {
    uint8_t *out;
    const uint8_t *in;
    size_t out_stride, in_stride;
    size_t rows;    // horizontal: rows to make
    size_t columns; // vertical: bytes of a row
    size_t in_end;  // horizontal: bytes that may be read from `in`
} pass;

/* Row `y` of the horizontal pass, outputs from `x` on. */
static void horizontal_row(const pass *p, const taps *t, size_t y, size_t x) {
    const uint8_t *in = p->in + y * p->in_stride;
    uint8_t *out = p->out + y * p->out_stride;
    for (; x < t->count; x++) {
        const int32_t *w = t->weights + x * t->stride;
        const uint8_t *s = in + (size_t)t->first[x] * 3;
        int32_t r = WEIGHT_HALF, g = WEIGHT_HALF, b = WEIGHT_HALF;
        for (size_t k = 0; k < t->n[x]; k++) {
            r += w[k] * s[3 * k];
            g += w[k] * s[3 * k + 1];
            b += w[k] * s[3 * k + 2];
        }
        out[3 * x] = to_byte(r);
        out[3 * x + 1] = to_byte(g);
        out[3 * x + 2] = to_byte(b);
    }
}

static void horizontal_plain(const pass *p, const taps *t) {
    for (size_t y = 0; y < p->rows; y++) {
        horizontal_row(p, t, y, 0);
    }
}

/* Row `y` of the vertical pass, bytes from `x` on. */
static void vertical_row(const pass *p, const taps *t, size_t y, size_t x) {
    const int32_t *w = t->weights + y * t->stride;
    const uint8_t *in = p->in + t->first[y] * p->in_stride;
    for (; x < p->columns; x++) {
        int32_t sum = WEIGHT_HALF;
        for (size_t k = 0; k < t->n[y]; k++) {
            sum += w[k] * in[k * p->in_stride + x];
        }
        p->out[y * p->out_stride + x] = to_byte(sum);
    }
}

static void vertical_plain(const pass *p, const taps *t) {
    for (size_t y = 0; y < t->count; y++) {
        vertical_row(p, t, y, 0);
    }
}

/* ---- Fast passes --------------------------------------------------------------------------- */

#if defined(__x86_64__)

#define ROWS 4 // rows that share the loads of the weights

/* Where the loads of output x end that take `step` taps and `bytes` bytes at a time. */
static size_t load_end(const taps *t, size_t x, size_t step, size_t bytes) {
    size_t steps = (t->n[x] + step - 1) / step;
    return ((size_t)t->first[x] + (steps - 1) * step) * 3 + bytes;
}

/* The furthest such end of a row. It need not be that of the last output: one that the border clips
 * may take a step less than those before it. */
static size_t load_end_max(const taps *t, size_t step, size_t bytes) {
    size_t most = 0;
    for (size_t x = 0; x < t->count; x++) {
        size_t end = load_end(t, x, step, bytes);
        most = end > most ? end : most;
    }
    return most;
}

/* How many outputs of the row at `row_at` can be made without a load that leaves the source. */
static size_t outputs_within(const pass *p, const taps *t, size_t row_at, size_t most, size_t step,
                             size_t bytes) {
    size_t room = p->in_end - row_at, x = most <= room ? t->count : 0;
    while (x < t->count && load_end(t, x, step, bytes) <= room) {
        x++;
    }
    return x;
}

static inline void store_pixel(uint8_t *out, __m128i sum) {
    __m128i v = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(WEIGHT_HALF)), WEIGHT_BITS);
    v = _mm_packus_epi16(_mm_packs_epi32(v, v), v);
    int32_t rgb = _mm_cvtsi128_si32(v);
    memcpy(out, &rgb, 3);
}

/* Four taps a step: the low lane holds taps 0 and 1 as pairs (r0 r1)(g0 g1)(b0 b1)(0 0) of 16-bit
 * numbers, the high lane taps 2 and 3. */
__attribute__((target("avx2"), always_inline)) static inline void
horizontal_rows_avx2(const pass *p, const taps *t, size_t y, size_t rows, size_t count) {
    const __m256i pairs =
        _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7,
                         -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    for (size_t x = 0; x < count; x++) {
        const int16_t *low = t->low + x * t->stride, *high = t->high + x * t->stride;
        const uint8_t *in = p->in + y * p->in_stride + (size_t)t->first[x] * 3;
        __m256i sum_low[ROWS], sum_high[ROWS];
        for (size_t r = 0; r < rows; r++) {
            sum_low[r] = sum_high[r] = _mm256_setzero_si256();
        }
        for (size_t k = 0; k < t->n[x]; k += 4) {
            __m128i l = _mm_loadl_epi64((const __m128i *)(const void *)(low + k));
            __m128i h = _mm_loadl_epi64((const __m128i *)(const void *)(high + k));
            __m256i wl = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(l), spread);
            __m256i wh = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(h), spread);
            for (size_t r = 0; r < rows; r++) {
                const void *s = in + r * p->in_stride + 3 * k;
                __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(s));
                v = _mm256_shuffle_epi8(v, pairs);
                sum_low[r] = _mm256_add_epi32(sum_low[r], _mm256_madd_epi16(v, wl));
                sum_high[r] = _mm256_add_epi32(sum_high[r], _mm256_madd_epi16(v, wh));
            }
        }
        for (size_t r = 0; r < rows; r++) {
            __m256i v = _mm256_add_epi32(_mm256_slli_epi32(sum_high[r], SPLIT_BITS), sum_low[r]);
            store_pixel(p->out + (y + r) * p->out_stride + 3 * x,
                        _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
        }
    }
}

__attribute__((target("avx2"))) static void horizontal_avx2(const pass *p, const taps *t) {
    size_t y = 0, most = load_end_max(t, 4, 16);
    for (; y + ROWS <= p->rows; y += ROWS) {
        size_t count = outputs_within(p, t, (y + ROWS - 1) * p->in_stride, most, 4, 16);
        horizontal_rows_avx2(p, t, y, ROWS, count);
        for (size_t r = 0; r < ROWS; r++) {
            horizontal_row(p, t, y + r, count);
        }
    }
    for (; y < p->rows; y++) {
        size_t count = outputs_within(p, t, y * p->in_stride, most, 4, 16);
        horizontal_rows_avx2(p, t, y, 1, count);
        horizontal_row(p, t, y, count);
    }
}

/* Two rows a step, interleaved byte by byte into pairs of 16-bit numbers: 16 columns at a time. */
__attribute__((target("avx2"))) static void vertical_avx2(const pass *p, const taps *t) {
    const __m256i half = _mm256_set1_epi32(WEIGHT_HALF);
    for (size_t y = 0; y < t->count; y++) {
        if (p->columns < 16) {
            vertical_row(p, t, y, 0);
            continue;
        }
        const int16_t *low = t->low + y * t->stride, *high = t->high + y * t->stride;
        for (size_t x = 0; x < p->columns; x += 16) {
            x = x + 16 > p->columns ? p->columns - 16 : x; // the last block overlaps
            const uint8_t *in = p->in + t->first[y] * p->in_stride + x;
            __m256i l0 = _mm256_setzero_si256(), l1 = l0, h0 = l0, h1 = l0;
            for (size_t k = 0; k < t->n[y]; k += 2) {
                // an odd last tap is paired with itself; its partner's weight is zero
                size_t next = k + 1 < t->n[y] ? k + 1 : k;
                int32_t pl, ph;
                memcpy(&pl, low + k, sizeof pl);
                memcpy(&ph, high + k, sizeof ph);
                __m256i wl = _mm256_set1_epi32(pl), wh = _mm256_set1_epi32(ph);
                __m128i a = _mm_loadu_si128((const void *)(in + k * p->in_stride));
                __m128i b = _mm_loadu_si128((const void *)(in + next * p->in_stride));
                __m256i v0 = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
                __m256i v1 = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
                l0 = _mm256_add_epi32(l0, _mm256_madd_epi16(v0, wl));
                l1 = _mm256_add_epi32(l1, _mm256_madd_epi16(v1, wl));
                h0 = _mm256_add_epi32(h0, _mm256_madd_epi16(v0, wh));
                h1 = _mm256_add_epi32(h1, _mm256_madd_epi16(v1, wh));
            }
            __m256i s0 = _mm256_add_epi32(_mm256_slli_epi32(h0, SPLIT_BITS), l0);
            __m256i s1 = _mm256_add_epi32(_mm256_slli_epi32(h1, SPLIT_BITS), l1);
            s0 = _mm256_srai_epi32(_mm256_add_epi32(s0, half), WEIGHT_BITS);
            s1 = _mm256_srai_epi32(_mm256_add_epi32(s1, half), WEIGHT_BITS);
            // packs works by lane: 0–3 8–11 | 4–7 12–15, put right by the permutation
            __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(s0, s1), 0xd8);
            __m128i bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            _mm_storeu_si128((void *)(p->out + y * p->out_stride + x), bytes);
        }
    }
}

/* Eight taps a step, lanes as in the AVX2 form: taps 2j and 2j+1 lie in lane j. */
__attribute__((target("avx512f,avx512bw,avx512vl"), always_inline)) static inline void
horizontal_rows_avx512(const pass *p, const taps *t, size_t y, size_t rows, size_t count) {
    // lane j needs the bytes 6j to 6j+5: the double words from 6j/4 on, at byte offset 0 or 2
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 1, 2, 3, 4, 3, 4, 5, 6, 4, 5, 6, 7);
    const __m512i pairs = _mm512_broadcast_i64x4(
        _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
                         2, -1, 5, -1, 3, -1, 6, -1, 4, -1, 7, -1, -1, -1, -1, -1));
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (size_t x = 0; x < count; x++) {
        const int16_t *low = t->low + x * t->stride, *high = t->high + x * t->stride;
        const uint8_t *in = p->in + y * p->in_stride + (size_t)t->first[x] * 3;
        __m512i sum_low[ROWS], sum_high[ROWS];
        for (size_t r = 0; r < rows; r++) {
            sum_low[r] = sum_high[r] = _mm512_setzero_si512();
        }
        for (size_t k = 0; k < t->n[x]; k += 8) {
            __m128i l = _mm_loadu_si128((const void *)(low + k));
            __m128i h = _mm_loadu_si128((const void *)(high + k));
            __m512i wl = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(l));
            __m512i wh = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(h));
            for (size_t r = 0; r < rows; r++) {
                const void *s = in + r * p->in_stride + 3 * k;
                __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256(s));
                v = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, v), pairs);
                sum_low[r] = _mm512_add_epi32(sum_low[r], _mm512_madd_epi16(v, wl));
                sum_high[r] = _mm512_add_epi32(sum_high[r], _mm512_madd_epi16(v, wh));
            }
        }
        for (size_t r = 0; r < rows; r++) {
            __m512i v = _mm512_add_epi32(_mm512_slli_epi32(sum_high[r], SPLIT_BITS), sum_low[r]);
            __m256i w =
                _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
            store_pixel(p->out + (y + r) * p->out_stride + 3 * x,
                        _mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
        }
    }
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static void horizontal_avx512(const pass *p,
                                                                                   const taps *t) {
    size_t y = 0, most = load_end_max(t, 8, 32);
    for (; y + ROWS <= p->rows; y += ROWS) {
        size_t count = outputs_within(p, t, (y + ROWS - 1) * p->in_stride, most, 8, 32);
        horizontal_rows_avx512(p, t, y, ROWS, count);
        for (size_t r = 0; r < ROWS; r++) {
            horizontal_row(p, t, y + r, count);
        }
    }
    for (; y < p->rows; y++) {
        size_t count = outputs_within(p, t, y * p->in_stride, most, 8, 32);
        horizontal_rows_avx512(p, t, y, 1, count);
        horizontal_row(p, t, y, count);
    }
}

#endif

/* ---- Resize -------------------------------------------------------------------------------- */

l2c_pixels_kernel l2c_pixels_kernel_best(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    return cpu->avx512 ? L2C_PIXELS_AVX512 : cpu->avx2_fma ? L2C_PIXELS_AVX2 : L2C_PIXELS_PLAIN;
#else
    return L2C_PIXELS_PLAIN;
#endif
}

const char *l2c_pixels_kernel_name(l2c_pixels_kernel kernel) {
    static const char *const names[] = { "plain", "avx2", "avx512" };
    return names[kernel];
}

static void horizontal(l2c_pixels_kernel kernel, const pass *p, const taps *t) {
#if defined(__x86_64__)
    if (kernel == L2C_PIXELS_AVX512) {
        horizontal_avx512(p, t);
        return;
    }
    if (kernel == L2C_PIXELS_AVX2) {
        horizontal_avx2(p, t);
        return;
    }
#endif
    (void)kernel;
    horizontal_plain(p, t);
}

static void vertical(l2c_pixels_kernel kernel, const pass *p, const taps *t) {
#if defined(__x86_64__)
    // the vertical pass sees a fraction of the pixels: one fast form is enough
    if (kernel != L2C_PIXELS_PLAIN) {
        vertical_avx2(p, t);
        return;
    }
#endif
    (void)kernel;
    vertical_plain(p, t);
}

static l2cdb_status window_check(const l2c_pixels_window *w, uint32_t width, uint32_t height,
                                 l2cdb_error *err) {
    if (width == 0 || height == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "the picture is %ux%u pixels, expected at least 1x1",
                        width, height);
    }
    if (w->width == 0 || w->height == 0 || w->left > w->full_width || w->top > w->full_height ||
        w->full_width - w->left < w->width || w->full_height - w->top < w->height) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "resize: the window %ux%u at (%llu, %llu) is not within %llux%llu",
                        w->width, w->height, (unsigned long long)w->left,
                        (unsigned long long)w->top, (unsigned long long)w->full_width,
                        (unsigned long long)w->full_height);
    }
    return L2CDB_OK;
}

l2cdb_status l2c_pixels_resize_with(l2c_pixels_kernel kernel, uint8_t *out,
                                    const l2c_pixels_window *w, const uint8_t *rgb, uint32_t width,
                                    uint32_t height, l2cdb_error *err) {
    l2cdb_status rc = window_check(w, width, height, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    taps across = { 0 }, down = { 0 };
    uint8_t *middle = NULL;
    size_t out_stride = (size_t)w->width * 3, in_stride = (size_t)width * 3;
    bool shrink_x = w->full_width != width, shrink_y = w->full_height != height;

    // the rows that are wanted: of the window, or of all that the vertical pass reads
    size_t row = (size_t)w->top, rows = w->height;
    if (shrink_y) {
        rc = taps_init(&down, height, w->full_height, w->top, w->height, err);
        if (rc != L2CDB_OK) {
            goto done;
        }
        row = down.first[0];
        rows = down.first[down.count - 1] + down.n[down.count - 1] - row;
        for (size_t i = 0; i < down.count; i++) {
            down.first[i] -= (uint32_t)row;
        }
    }
    const uint8_t *in = rgb + row * in_stride;
    if (shrink_x) {
        rc = taps_init(&across, width, w->full_width, w->left, w->width, err);
        if (rc != L2CDB_OK) {
            goto done;
        }
        uint8_t *to = out;
        if (shrink_y) {
            middle = l2c_alloc(rows, out_stride);
            if (middle == NULL) {
                rc = l2c_fail_nomem(err, (uint64_t)rows * out_stride);
                goto done;
            }
            to = middle;
        }
        pass p = { .out = to,
                   .in = in,
                   .out_stride = out_stride,
                   .in_stride = in_stride,
                   .rows = rows,
                   .in_end = (height - row) * in_stride };
        horizontal(kernel, &p, &across);
        in = middle;
        in_stride = out_stride;
    } else {
        in += w->left * 3;
    }
    if (shrink_y) {
        pass p = { .out = out,
                   .in = in,
                   .out_stride = out_stride,
                   .in_stride = in_stride,
                   .columns = out_stride };
        vertical(kernel, &p, &down);
    } else if (!shrink_x) {
        for (size_t y = 0; y < rows; y++) {
            memcpy(out + y * out_stride, in + y * in_stride, out_stride);
        }
    }
done:
    l2c_free(middle);
    taps_fini(&across);
    taps_fini(&down);
    return rc;
}

l2cdb_status l2c_pixels_resize(uint8_t *out, const l2c_pixels_window *window, const uint8_t *rgb,
                               uint32_t width, uint32_t height, l2cdb_error *err) {
    return l2c_pixels_resize_with(l2c_pixels_kernel_best(), out, window, rgb, width, height, err);
}

/* ---- Normalise ----------------------------------------------------------------------------- */

/* Every byte has one answer per channel, so the arithmetic is done 768 times, not per pixel. */
static void normalise(const l2c_pixels_config *c, float *out, const uint8_t *rgb, size_t count) {
    float table[3][256];
    for (int i = 0; i < 3; i++) {
        for (int v = 0; v < 256; v++) {
            table[i][v] = (float)(((double)v * c->rescale - c->mean[i]) / c->std[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        out[i] = table[0][rgb[3 * i]];
        out[count + i] = table[1][rgb[3 * i + 1]];
        out[2 * count + i] = table[2][rgb[3 * i + 2]];
    }
}

l2cdb_status l2c_pixels_preprocess(const l2c_pixels_config *c, float *out, const uint8_t *rgb,
                                   uint32_t width, uint32_t height, l2cdb_error *err) {
    if (width == 0 || height == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "the picture is %ux%u pixels, expected at least 1x1",
                        width, height);
    }
    size_t count = (size_t)c->crop_side * c->crop_side;
    uint8_t *square = l2c_alloc(count, 3);
    if (square == NULL) {
        return l2c_fail_nomem(err, (uint64_t)count * 3);
    }
    l2c_pixels_window w = l2c_pixels_window_of(c, width, height);
    l2cdb_status rc = l2c_pixels_resize(square, &w, rgb, width, height, err);
    if (rc == L2CDB_OK) {
        normalise(c, out, square, count);
    }
    l2c_free(square);
    return rc;
}
