/* The tile instructions behind gemm_amx.c and attention_amx.c: a product of 32 (or 16) rows with a
 * panel of 32 columns, and the layout of panels. x86-64 only; call where l2c_amx_usable() is true,
 * between l2c_tiles_begin and l2c_tiles_end.
 *
 * A panel holds a matrix B [K, 32] as a run of pairs of tiles, one pair for every 64 bytes of K (32
 * bf16 or 64 int8). Row r of a tile holds, for each of 16 columns, the 4 bytes along K that the
 * instruction multiplies at once.
 *
 *        tiles    0 1   sums of rows 0–15, columns 0–15 and 16–31
 *                 2 3   sums of rows 16–31
 *                 4 5   rows of A, 6 7 of B
 *
 * Source: Intel SDM vol. 2, TDPBF16PS and TDPBSSD. */
#ifndef L2C_AMX_TILES_H
#define L2C_AMX_TILES_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define L2C_TILE                                                                                   \
    __attribute__((                                                                                \
        target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

enum { L2C_PANEL = 32, L2C_TILE_BYTES = 1024, L2C_STEP_BYTES = 64 };

/* All eight tiles: 16 rows of 64 bytes. */
L2C_TILE static inline void l2c_tiles_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = { .palette = 1 };
    for (size_t t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = 16;
    }
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&c);
}

L2C_TILE static inline void l2c_tiles_end(void) {
    _tile_release();
}

/* c [32, 32] of 4-byte sums, c_bytes between rows, += 32 rows at `a` times a panel; = if `fresh`.
 * With every step ahead_bytes from `ahead` on are called into the second-level cache: the next
 * panel, while this one is multiplied (measured: 1,750 → 2,300 GOP/s a core in bf16 when weights
 * come from memory). */
#define L2C_TILES_PRODUCT(name, multiply)                                                          \
    L2C_TILE static inline void name(void *c, size_t c_bytes, const void *a, size_t a_bytes,       \
                                     const void *panel, size_t steps, bool fresh,                  \
                                     const char *ahead, size_t ahead_bytes) {                      \
        const char *a0 = a, *a1 = a0 + 16 * a_bytes, *b = panel;                                   \
        char *to = c;                                                                              \
        __asm__ volatile("" ::: "memory");                                                         \
        if (fresh) {                                                                               \
            _tile_zero(0);                                                                         \
            _tile_zero(1);                                                                         \
            _tile_zero(2);                                                                         \
            _tile_zero(3);                                                                         \
        } else {                                                                                   \
            _tile_loadd(0, to, c_bytes);                                                           \
            _tile_loadd(1, to + 64, c_bytes);                                                      \
            _tile_loadd(2, to + 16 * c_bytes, c_bytes);                                            \
            _tile_loadd(3, to + 16 * c_bytes + 64, c_bytes);                                       \
        }                                                                                          \
        for (size_t k = 0; k < steps; k++) {                                                       \
            _tile_loadd(4, a0, a_bytes);                                                           \
            _tile_loadd(6, b, 64);                                                                 \
            _tile_loadd(7, b + L2C_TILE_BYTES, 64);                                                \
            multiply(0, 4, 6);                                                                     \
            _tile_loadd(5, a1, a_bytes);                                                           \
            multiply(1, 4, 7);                                                                     \
            multiply(2, 5, 6);                                                                     \
            multiply(3, 5, 7);                                                                     \
            a0 += L2C_STEP_BYTES;                                                                  \
            a1 += L2C_STEP_BYTES;                                                                  \
            b += 2 * L2C_TILE_BYTES;                                                               \
            for (size_t i = 0; i < ahead_bytes; i += 64) {                                         \
                _mm_prefetch(ahead + i, _MM_HINT_T1);                                              \
            }                                                                                      \
            ahead += ahead_bytes;                                                                  \
        }                                                                                          \
        _tile_stored(0, to, c_bytes);                                                              \
        _tile_stored(1, to + 64, c_bytes);                                                         \
        _tile_stored(2, to + 16 * c_bytes, c_bytes);                                               \
        _tile_stored(3, to + 16 * c_bytes + 64, c_bytes);                                          \
    }                                                                                              \
    /* The upper 16 rows only. */                                                                  \
    L2C_TILE static inline void name##_few(void *c, size_t c_bytes, const void *a, size_t a_bytes, \
                                           const void *panel, size_t steps, bool fresh,            \
                                           const char *ahead, size_t ahead_bytes) {                \
        const char *a0 = a, *b = panel;                                                            \
        char *to = c;                                                                              \
        __asm__ volatile("" ::: "memory");                                                         \
        if (fresh) {                                                                               \
            _tile_zero(0);                                                                         \
            _tile_zero(1);                                                                         \
        } else {                                                                                   \
            _tile_loadd(0, to, c_bytes);                                                           \
            _tile_loadd(1, to + 64, c_bytes);                                                      \
        }                                                                                          \
        for (size_t k = 0; k < steps; k++) {                                                       \
            _tile_loadd(4, a0, a_bytes);                                                           \
            _tile_loadd(6, b, 64);                                                                 \
            _tile_loadd(7, b + L2C_TILE_BYTES, 64);                                                \
            multiply(0, 4, 6);                                                                     \
            multiply(1, 4, 7);                                                                     \
            a0 += L2C_STEP_BYTES;                                                                  \
            b += 2 * L2C_TILE_BYTES;                                                               \
            for (size_t i = 0; i < ahead_bytes; i += 64) {                                         \
                _mm_prefetch(ahead + i, _MM_HINT_T1);                                              \
            }                                                                                      \
            ahead += ahead_bytes;                                                                  \
        }                                                                                          \
        _tile_stored(0, to, c_bytes);                                                              \
        _tile_stored(1, to + 64, c_bytes);                                                         \
    }

L2C_TILES_PRODUCT(l2c_tiles_bf16, _tile_dpbf16ps)
L2C_TILES_PRODUCT(l2c_tiles_int8, _tile_dpbssd)

/* Columns of B come as rows: 16 of them (fewer: the rest is zero), 64 bytes each, into one tile. */
static inline void l2c_tiles_pack(void *tile, const void *rows, size_t row_bytes, size_t count) {
    uint32_t *out = tile;
    for (size_t n = 0; n < 16; n++) {
        uint32_t words[16] = { 0 };
        if (n < count) {
            __builtin_memcpy(words, (const char *)rows + n * row_bytes, sizeof words);
        }
        for (size_t r = 0; r < 16; r++) {
            out[r * 16 + n] = words[r];
        }
    }
}

#endif
