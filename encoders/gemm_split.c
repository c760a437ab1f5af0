/* Products of f32 arrays on bf16 tiles (AMX): x = hi + lo, both bf16, and
 *
 *   A B ≈ hi(A) hi(B) + lo(A) hi(B) + hi(A) lo(B), summed in f32.
 *
 * A single product is off by 3 · 2⁻¹⁶ at most, a sum of a thousand by a few 10⁻⁶ of its terms
 * (tests/encoders/split_test.c measures it against f64), at three tile products for one. Used
 * where training multiplies large arrays, which are new each time: packing is part of the price.
 *
 * A is packed once a call, 32 rows by 32 of K: four tiles (hi 0–15, hi 16–31, lo 0–15, lo 16–31).
 * A thread then takes a run of columns, packs B for one stretch of K into a buffer that stays in
 * its second-level cache, and goes through all rows. Every sum is taken in the same order whatever
 * the number of threads. */
#include "encoders/gemm_backend.h"

#include <pthread.h>
#include <string.h>

#include "engine/base/cpu.h"

/* ---- Scratch: the last block is kept, since a fresh one is zeroed page by page each time ---- */

typedef struct scratch {
    char *at;
    size_t bytes;
} scratch;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static scratch kept;

static scratch take(size_t bytes) {
    pthread_mutex_lock(&kept_lock);
    scratch s = kept;
    kept = (scratch){ 0 };
    pthread_mutex_unlock(&kept_lock);
    if (s.bytes < bytes) {
        l2c_free(s.at);
        s = (scratch){ .at = l2c_alloc_aligned(bytes, 1), .bytes = bytes };
    }
    return s;
}

static void give(scratch s) {
    pthread_mutex_lock(&kept_lock);
    scratch other = kept;
    kept = s;
    pthread_mutex_unlock(&kept_lock);
    l2c_free(other.at);
}

void l2c_gemm_trim(void) {
    give((scratch){ 0 });
}

#if defined(__x86_64__)
#include <omp.h>

#include "encoders/amx_tiles.h"

/* STEP: of K, one tile. STRETCH of K times COLUMNS of B are a thread's buffer (1 MiB). */
enum { STEP = 32, STRETCH = 512, COLUMNS = 512, BLOCK = 32, QUAD = 4 * L2C_TILE_BYTES };

/* 32 values as bf16, a before b, rounded to nearest even; and what that leaves, as bf16 again. */
L2C_TILE static inline void split(__m512i *hi, __m512i *lo, __m512 a, __m512 b) {
    __m512i h = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(h));
    __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1));
    a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
    b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    *hi = h;
    *lo = (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

/* a0 b0 a1 b1 …: what a tile holds of two neighbours along K. */
L2C_TILE static inline __m512i interleave(__m512i ab) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, ab);
}

L2C_TILE static inline void transpose(__m512i r[16]) {
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

static __mmask16 first(size_t n) {
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
}

/* One operand: element (i, k) of A is at i, that of B is of column i. */
typedef struct operand {
    const float *x;
    size_t along, across; /* elements from k to k + 1, and from i to i + 1: one of them is 1 */
    size_t count, depth;  /* i and k end here; beyond is zero */
    float alpha;
} operand;

/* 16 of i by 32 of K into one pair of tiles. by_k: a tile's row is two of K (B), else one of i (A).
 */
L2C_TILE static void pack_tile(char *hi, char *lo, const operand *o, size_t i, size_t k,
                               bool by_k) {
    __m512i h[16], l[16];
    const __m512 alpha = _mm512_set1_ps(o->alpha);
    const float *x = o->x + i * o->across + k * o->along;
    size_t count = i < o->count ? o->count - i : 0, depth = k < o->depth ? o->depth - k : 0;
    bool rows_are_i = o->along == 1;
    for (size_t r = 0; r < 16; r++) {
        __m512 one = _mm512_setzero_ps(), two = one;
        if (!rows_are_i) { // two rows of memory, 16 of i each
            const float *row = x + 2 * r * o->along;
            if (2 * r < depth) {
                one = _mm512_maskz_loadu_ps(first(count), row);
            }
            if (2 * r + 1 < depth) {
                two = _mm512_maskz_loadu_ps(first(count), row + o->along);
            }
        } else if (r < count) { // one row of memory, 32 of K
            const float *row = x + r * o->across;
            one = _mm512_maskz_loadu_ps(first(depth), row);
            two = _mm512_maskz_loadu_ps(first(depth > 16 ? depth - 16 : 0), row + 16);
        }
        split(&h[r], &l[r], _mm512_mul_ps(one, alpha), _mm512_mul_ps(two, alpha));
        if (!rows_are_i) {
            h[r] = interleave(h[r]);
            l[r] = interleave(l[r]);
        }
    }
    if (rows_are_i == by_k) {
        transpose(h);
        transpose(l);
    }
    for (size_t r = 0; r < 16; r++) {
        _mm512_storeu_si512(hi + r * 64, h[r]);
        _mm512_storeu_si512(lo + r * 64, l[r]);
    }
}

/* 32 of i by 32 of K: four tiles at `to`. */
static void pack_quad(char *to, const operand *o, size_t i, size_t k, bool by_k) {
    for (size_t half = 0; half < 2; half++) {
        pack_tile(to + half * L2C_TILE_BYTES, to + (2 + half) * L2C_TILE_BYTES, o, i + 16 * half, k,
                  by_k);
    }
}

/* c [32, 32] += `steps` quads of A times as many of B; from zero if `fresh`. */
L2C_TILE static void multiply(float *c, size_t ldc, const char *a, const char *b, size_t steps,
                              bool fresh) {
    const size_t row = ldc * sizeof *c, T = L2C_TILE_BYTES;
    float *low = c + 16 * ldc;
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, row);
        _tile_loadd(1, c + 16, row);
        _tile_loadd(2, low, row);
        _tile_loadd(3, low + 16, row);
    }
    for (size_t s = 0; s < steps; s++, a += QUAD, b += QUAD) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + T, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + T, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a + 2 * T, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(4, a + 3 * T, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b + 2 * T, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + 3 * T, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, row);
    _tile_stored(1, c + 16, row);
    _tile_stored(2, low, row);
    _tile_stored(3, low + 16, row);
}

/* A block at the edge goes through a buffer of its own. */
static void multiply_edge(const l2c_gemm_args *g, size_t i, size_t j, const char *a, const char *b,
                          size_t steps, bool fresh) {
    float block[BLOCK * BLOCK] __attribute__((aligned(64))) = { 0 };
    size_t rows = g->m - i < BLOCK ? g->m - i : BLOCK,
           columns = g->n - j < BLOCK ? g->n - j : BLOCK;
    for (size_t r = 0; r < rows && !fresh; r++) {
        memcpy(block + r * BLOCK, g->c + (i + r) * g->ldc + j, columns * sizeof *block);
    }
    multiply(block, BLOCK, a, b, steps, fresh);
    for (size_t r = 0; r < rows; r++) {
        memcpy(g->c + (i + r) * g->ldc + j, block + r * BLOCK, columns * sizeof *block);
    }
}

typedef struct plan {
    const l2c_gemm_args *g;
    operand a, b;
    size_t steps, row_blocks, columns; /* columns a run, a multiple of 32 */
    const char *packed;                /* A: [row_blocks, steps] quads */
} plan;

L2C_TILE static void run_columns(const plan *p, size_t from, char *buffer) {
    const l2c_gemm_args *g = p->g;
    const size_t end = from + p->columns < g->n ? from + p->columns : g->n;
    l2c_tiles_begin();
    for (size_t s0 = 0; s0 < p->steps; s0 += STRETCH / STEP) {
        size_t steps = p->steps - s0 < STRETCH / STEP ? p->steps - s0 : STRETCH / STEP;
        char *to = buffer;
        for (size_t j = from; j < end; j += BLOCK) {
            for (size_t s = s0; s < s0 + steps; s++, to += QUAD) {
                pack_quad(to, &p->b, j, s * STEP, true);
            }
        }
        bool fresh = s0 == 0 && g->beta == 0;
        for (size_t r = 0; r < p->row_blocks; r++) {
            const char *a = p->packed + (r * p->steps + s0) * QUAD, *b = buffer;
            for (size_t j = from; j < end; j += BLOCK, b += steps * QUAD) {
                if ((r + 1) * BLOCK <= g->m && j + BLOCK <= g->n) {
                    multiply(g->c + r * BLOCK * g->ldc + j, g->ldc, a, b, steps, fresh);
                } else {
                    multiply_edge(g, r * BLOCK, j, a, b, steps, fresh);
                }
            }
        }
    }
    l2c_tiles_end();
}

/* Runs of columns: enough for every thread, none wider than the buffer. */
static size_t columns_for(size_t n) {
    size_t threads = omp_in_parallel() ? 1 : (size_t)omp_get_max_threads();
    size_t runs = (n + COLUMNS - 1) / COLUMNS;
    runs = (runs + threads - 1) / threads * threads;
    return ((n + runs - 1) / runs + BLOCK - 1) / BLOCK * BLOCK;
}

l2cdb_status l2c_gemm_split(const l2c_gemm_args *g, l2cdb_error *err) {
    plan p = { .g = g,
               .a = { .x = g->a,
                      .along = g->transpose_a ? g->lda : 1,
                      .across = g->transpose_a ? 1 : g->lda,
                      .count = g->m,
                      .depth = g->k,
                      .alpha = g->alpha },
               .b = { .x = g->b,
                      .along = g->transpose_b ? 1 : g->ldb,
                      .across = g->transpose_b ? g->ldb : 1,
                      .count = g->n,
                      .depth = g->k,
                      .alpha = 1 },
               .steps = (g->k + STEP - 1) / STEP,
               .row_blocks = (g->m + BLOCK - 1) / BLOCK,
               .columns = columns_for(g->n) };
    size_t runs = (g->n + p.columns - 1) / p.columns;
    size_t a_bytes = p.row_blocks * p.steps * QUAD;
    size_t b_bytes = p.columns / BLOCK * (STRETCH / STEP) * QUAD;
    size_t threads = omp_in_parallel() ? 1 : (size_t)omp_get_max_threads();
    scratch memory = take(a_bytes + threads * b_bytes);
    if (memory.at == NULL) {
        return l2c_fail_nomem(err, a_bytes + threads * b_bytes);
    }
    p.packed = memory.at;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < p.row_blocks; r++) {
        for (size_t s = 0; s < p.steps; s++) {
            pack_quad(memory.at + (r * p.steps + s) * QUAD, &p.a, r * BLOCK, s * STEP, false);
        }
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t run = 0; run < runs; run++) {
        run_columns(&p, run * p.columns,
                    memory.at + a_bytes + (size_t)omp_get_thread_num() * b_bytes);
    }
    give(memory);
    return L2CDB_OK;
}

/* Measured: below this packing costs more than the tiles save. */
bool l2c_gemm_split_pays(const l2c_gemm_args *g) {
    return l2c_amx_usable() && (g->beta == 0 || g->beta == 1) && g->m >= 64 && g->n >= 64 &&
           g->k >= 64 && (double)g->m * (double)g->n * (double)g->k >= 16e6;
}

#else

l2cdb_status l2c_gemm_split(const l2c_gemm_args *g, l2cdb_error *err) {
    (void)g;
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this processor has no matrix tiles");
}

bool l2c_gemm_split_pays(const l2c_gemm_args *g) {
    (void)g;
    return false;
}

#endif
