/* f32 arrays on bf16 tiles: an f32 is a sum of bf16 terms, each the rest of those before it rounded
 * to nearest,
 *
 *   x = x0 + x1 + x2,  |x1| ≤ 2⁻⁸ |x|,  |x2| ≤ 2⁻¹⁷ |x|,
 *
 * exact with three of them (8 bits of mantissa each). A product is the sum, in f32, of the products
 * of terms i and j with i + j below their number; what is left out is at most 2⁻²⁴ of |a b| with
 * three terms (six tile products, "f32") and 2⁻¹⁶ with two (three tile products, for training).
 * tests/encoders/split_test.c measures both against f64, beside sums of f32 FMA.
 *
 * Tiles know no subnormal numbers: terms and sums below 2⁻¹²⁶ are zero, so an operand is exact to
 * 2⁻¹²⁶ and not, as an f32 is, to 2⁻¹⁵⁰. Infinite operands give NaN, where f32 may give infinity;
 * finite ones are all right up to the largest.
 *
 * Both operands lie in packs: 32 of A's rows (or B's columns) by 32 of K, the two tiles of the
 * first term before those of the next. Between l2c_tiles_begin and l2c_tiles_end, as amx_tiles.h.
 * Source: Henry, Tang, Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
 * Higher-Precision Computations". */
#ifndef L2C_AMX_SPLIT_H
#define L2C_AMX_SPLIT_H

#include "encoders/amx_tiles.h"

/* STEP: of K, one tile. MOST: terms, and PRODUCTS of them. */
enum { L2C_SPLIT_STEP = 32, L2C_SPLIT_MOST = 3, L2C_SPLIT_PRODUCTS = 6 };

static inline size_t l2c_split_pack_bytes(size_t terms) {
    return terms * 2 * L2C_TILE_BYTES;
}

/* The magnitude that still rounds to a finite bf16. */
L2C_TILE static inline __m512 l2c_split_limit(__m512 x) {
    const __m512 most = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f7f0000));
    return _mm512_range_ps(x, most, 2); // the lesser magnitude with the sign of x
}

/* What a term leaves of x; `bits` are its 16, on top. */
L2C_TILE static inline __m512 l2c_split_rest(__m512 x, __m512i bits) {
    return _mm512_sub_ps(x, _mm512_castsi512_ps(bits));
}

/* Terms of 32 values, a before b. */
L2C_TILE static inline void l2c_split(__m512i *out, __m512 a, __m512 b, const size_t terms) {
    __m512i t = (__m512i)_mm512_cvtne2ps_pbh(l2c_split_limit(b), l2c_split_limit(a));
    out[0] = t;
#pragma GCC unroll 2
    for (size_t i = 1; i < terms; i++) {
        __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(t));
        __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(t, 1));
        a = l2c_split_rest(a, _mm512_slli_epi32(low, 16));
        b = l2c_split_rest(b, _mm512_slli_epi32(high, 16));
        out[i] = t = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    }
}

/* The same as a0 b0 a1 b1 …: what a tile holds of two neighbours along K. */
L2C_TILE static inline void l2c_split_pairs(__m512i *out, __m512 a, __m512 b, const size_t terms) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i top = _mm512_set1_epi32((int)0xffff0000u);
    __m512i t = (__m512i)_mm512_cvtne2ps_pbh(l2c_split_limit(b), l2c_split_limit(a));
    out[0] = t = _mm512_permutexvar_epi16(order, t);
#pragma GCC unroll 2
    for (size_t i = 1; i < terms; i++) {
        a = l2c_split_rest(a, _mm512_slli_epi32(t, 16));
        b = l2c_split_rest(b, _mm512_and_si512(t, top));
        out[i] = t = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}

L2C_TILE static inline void l2c_split_transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static inline __mmask16 l2c_split_first(size_t n) {
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
}

/* One operand: element (i, k) of A is at row i, that of B is of column i. */
typedef struct l2c_split_operand {
    const float *x;
    size_t along, across; /* elements from k to k + 1, and from i to i + 1: one of them is 1 */
    size_t count, depth;  /* i and k end here; beyond is zero */
    float alpha;
} l2c_split_operand;

/* 16 of i by 32 of K: one tile for each term, two tiles apart. by_k: a tile's row is two of K (B),
 * else one of i (A). */
L2C_TILE static inline void l2c_split_tile(char *to, const l2c_split_operand *o, size_t i, size_t k,
                                           bool by_k, const size_t terms) {
    __m512i v[L2C_SPLIT_MOST][16];
    const __m512 alpha = _mm512_set1_ps(o->alpha);
    const float *x = o->x + i * o->across + k * o->along;
    size_t count = i < o->count ? o->count - i : 0, depth = k < o->depth ? o->depth - k : 0;
    bool rows_are_i = o->along == 1;
    for (size_t r = 0; r < 16; r++) {
        __m512i t[L2C_SPLIT_MOST];
        __m512 one = _mm512_setzero_ps(), two = one;
        if (!rows_are_i) { // two rows of memory, 16 of i each
            const float *row = x + 2 * r * o->along;
            if (2 * r < depth) {
                one = _mm512_maskz_loadu_ps(l2c_split_first(count), row);
            }
            if (2 * r + 1 < depth) {
                two = _mm512_maskz_loadu_ps(l2c_split_first(count), row + o->along);
            }
            l2c_split_pairs(t, _mm512_mul_ps(one, alpha), _mm512_mul_ps(two, alpha), terms);
        } else {
            if (r < count) { // one row of memory, 32 of K
                const float *row = x + r * o->across;
                one = _mm512_maskz_loadu_ps(l2c_split_first(depth), row);
                two = _mm512_maskz_loadu_ps(l2c_split_first(depth > 16 ? depth - 16 : 0), row + 16);
            }
            l2c_split(t, _mm512_mul_ps(one, alpha), _mm512_mul_ps(two, alpha), terms);
        }
        for (size_t n = 0; n < terms; n++) {
            v[n][r] = t[n];
        }
    }
    for (size_t n = 0; n < terms; n++, to += 2 * L2C_TILE_BYTES) {
        if (rows_are_i == by_k) {
            l2c_split_transpose(v[n]);
        }
        for (size_t r = 0; r < 16; r++) {
            _mm512_storeu_si512(to + r * 64, v[n][r]);
        }
    }
}

/* 32 of i by 32 of K. */
L2C_TILE static inline void l2c_split_pack(char *to, const l2c_split_operand *o, size_t i, size_t k,
                                           bool by_k, const size_t terms) {
    l2c_split_tile(to, o, i, k, by_k, terms);
    l2c_split_tile(to + L2C_TILE_BYTES, o, i + 16, k, by_k, terms);
}

/* An f32 panel [K, 32] that is split row of tiles by row of tiles (32 to a step) while the tiles
 * multiply another: `each` of [at, end) with every product of terms. A whole step of them at once
 * would be too much for the processor to look past (measured: 2,420 instead of 3,110 GOP/s of
 * bf16). The panel is packed as all others (amx_tiles.h), in words of one f32. What comes
 * L2C_SPLIT_AHEAD bytes later is called into the cache (measured: processor time of ViT-L/14-336 in
 * f32 1,900 → 1,620 ms). */
enum { L2C_SPLIT_AHEAD = 8192 };

typedef struct l2c_split_panel {
    const char *from;
    char *to; /* packs of three terms */
    size_t at, end, each;
} l2c_split_panel;

L2C_TILE static inline void l2c_split_panel_row(const l2c_split_panel *p, size_t at) {
    const size_t step = at / 32, half = at / 16 % 2, r = at % 16, terms = L2C_SPLIT_MOST;
    const char *from =
        p->from + step * 4 * L2C_TILE_BYTES + (r / 8 * 2 + half) * L2C_TILE_BYTES + r % 8 * 128;
    char *to = p->to + step * l2c_split_pack_bytes(terms) + half * L2C_TILE_BYTES + r * 64;
    __m512i t[L2C_SPLIT_MOST];
    _mm_prefetch(from + L2C_SPLIT_AHEAD, _MM_HINT_T0);
    _mm_prefetch(from + L2C_SPLIT_AHEAD + 64, _MM_HINT_T0);
    l2c_split_pairs(t, _mm512_loadu_ps(from), _mm512_loadu_ps(from + 64), terms);
    for (size_t n = 0; n < terms; n++) {
        _mm512_store_si512(to + n * 2 * L2C_TILE_BYTES, t[n]);
    }
}

/* c [32, 32], or its upper half if `few`, ldc elements between rows, += `steps` packs of A times as
 * many of B; from zero if `fresh`. Terms i, j come in an order where each pair shares one with the
 * pair before it. `aside` is split meanwhile; NULL: nothing. `terms` and `few` are constants. */
L2C_TILE static inline __attribute__((always_inline)) void
l2c_split_multiply(float *c, size_t ldc, const char *a, const char *b, size_t steps, bool fresh,
                   const size_t terms, const bool few, l2c_split_panel *aside) {
    enum { T = L2C_TILE_BYTES };
    const size_t row = ldc * sizeof *c, pack = l2c_split_pack_bytes(terms);
    float *low = c + 16 * ldc;
    __asm__ volatile("" ::: "memory");
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, row);
        _tile_loadd(1, c + 16, row);
        if (!few) {
            _tile_loadd(2, low, row);
            _tile_loadd(3, low + 16, row);
        }
    }
#define L2C_A(term)                                                                                \
    _tile_loadd(4, a + 2 * (term)*T, 64);                                                          \
    if (!few) {                                                                                    \
        _tile_loadd(5, a + (2 * (term) + 1) * T, 64);                                              \
    }
#define L2C_B(term)                                                                                \
    _tile_loadd(6, b + 2 * (term)*T, 64);                                                          \
    _tile_loadd(7, b + (2 * (term) + 1) * T, 64);
#define L2C_PRODUCT()                                                                              \
    _tile_dpbf16ps(0, 4, 6);                                                                       \
    _tile_dpbf16ps(1, 4, 7);                                                                       \
    if (!few) {                                                                                    \
        _tile_dpbf16ps(2, 5, 6);                                                                   \
        _tile_dpbf16ps(3, 5, 7);                                                                   \
    }                                                                                              \
    for (size_t n = 0; aside != NULL && n < aside->each && aside->at < aside->end; n++) {          \
        l2c_split_panel_row(aside, aside->at++);                                                   \
    }
    for (size_t s = 0; s < steps; s++, a += pack, b += pack) {
        if (terms == 3) {
            L2C_A(2) L2C_B(0) L2C_PRODUCT();
            L2C_A(1) L2C_PRODUCT();
            L2C_B(1) L2C_PRODUCT();
            L2C_A(0) L2C_PRODUCT();
            L2C_B(2) L2C_PRODUCT();
            L2C_B(0) L2C_PRODUCT();
        } else if (terms == 2) {
            L2C_A(1) L2C_B(0) L2C_PRODUCT();
            L2C_A(0) L2C_PRODUCT();
            L2C_B(1) L2C_PRODUCT();
        } else {
            L2C_A(0) L2C_B(0) L2C_PRODUCT();
        }
    }
#undef L2C_A
#undef L2C_B
#undef L2C_PRODUCT
    _tile_stored(0, c, row);
    _tile_stored(1, c + 16, row);
    if (!few) {
        _tile_stored(2, low, row);
        _tile_stored(3, low + 16, row);
    }
    __asm__ volatile("" ::: "memory");
}

#endif
