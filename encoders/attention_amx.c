/* Attention in bf16 tiles: the plan of attention.c with keys and values packed into panels and both
 * products on tiles; scores, softmax and sums stay f32. See attention.h. */
#include "encoders/attention.h"

#include "encoders/gemm_backend.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

#include "encoders/amx_tiles.h"

#define FN(name) name##_tile
#define TARGET L2C_TILE
#include "encoders/math_kernels.h"

enum { QUERY_ROWS = 32 };

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* out bf16 [n] = scale * x, zeros up to n_padded (a multiple of 32). */
L2C_TILE static void to_bf16(uint16_t *out, const float *x, size_t n, size_t n_padded,
                             float scale) {
    __m512 s = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n_padded; i += 16) {
        __mmask16 some = (__mmask16)(i + 16 <= n ? 0xffffu : i >= n ? 0 : (1u << (n - i)) - 1);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), s);
        _mm256_storeu_si256((__m256i *)(void *)(out + i), (__m256i)_mm512_cvtneps_pbh(v));
    }
}

/* k rows → panels of 32 keys along D. `row` is scratch for 16 rows of bf16 [D_padded]. */
static void pack_keys(char *out, uint16_t *rows, const float *k, size_t stride, size_t T,
                      size_t T_padded, size_t D, size_t D_padded) {
    for (size_t t = 0; t < T_padded; t += 16) {
        size_t count = t >= T ? 0 : T - t < 16 ? T - t : 16;
        for (size_t i = 0; i < count; i++) {
            to_bf16(rows + i * D_padded, k + (t + i) * stride, D, D_padded, 1);
        }
        char *panel = out + t / 32 * 32 * D_padded * 2 + t % 32 / 16 * L2C_TILE_BYTES;
        for (size_t d = 0; d < D_padded; d += 32) {
            l2c_tiles_pack(panel + d / 32 * 2 * L2C_TILE_BYTES, rows + d, D_padded * 2, count);
        }
    }
}

/* v rows → panels of 32 features along T: a pair of rows becomes the two halves of 32-bit words. */
L2C_TILE static void pack_values(char *out, const float *v, size_t stride, size_t T,
                                 size_t T_padded, size_t D, size_t D_padded) {
    for (size_t d = 0; d < D_padded; d += 16) {
        size_t n = d >= D ? 0 : D - d < 16 ? D - d : 16;
        __mmask16 some = (__mmask16)((1u << n) - 1);
        char *panel = out + d / 32 * 32 * T_padded * 2 + d % 32 / 16 * L2C_TILE_BYTES;
        for (size_t t = 0; t < T_padded; t += 2) {
            __m512 even = _mm512_maskz_loadu_ps(t < T ? some : 0, v + t * stride + d);
            __m512 odd = _mm512_maskz_loadu_ps(t + 1 < T ? some : 0, v + (t + 1) * stride + d);
            __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
            __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
            char *row = panel + t / 32 * 2 * L2C_TILE_BYTES + t % 32 / 2 * 64;
            _mm512_storeu_si512(row, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* weights bf16 [T_padded] = exp(scores - max), zeros past T; returns their sum. */
L2C_TILE static float softmax_row(uint16_t *weights, float *scores, size_t T, size_t T_padded) {
    float most = scores[0], sum = 0;
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < T; i++) {
        most = scores[i] > most ? scores[i] : most;
    }
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < T; i++) {
        scores[i] = exp_tile(scores[i] - most);
        sum += scores[i];
    }
    to_bf16(weights, scores, T, T_padded, 1);
    return sum;
}

typedef struct tile {
    uint16_t *q, *weights; /* [32, D_padded], [32, T_padded] */
    float *scores, *out;   /* [32, T_padded], [32, D_padded] */
    const char *keys, *values;
    size_t T, T_padded, D, D_padded;
} tile;

L2C_TILE static void run_tile(const l2c_attention_args *a, const tile *t, size_t head, size_t row,
                              size_t rows) {
    const float scale = 1.0F / sqrtf((float)t->D);
    size_t q_bytes = t->D_padded * 2, s_bytes = t->T_padded * 4, w_bytes = t->T_padded * 2;
    for (size_t r = 0; r < rows; r++) {
        to_bf16(t->q + r * t->D_padded, a->q + (row + r) * a->q_stride + head * t->D, t->D,
                t->D_padded, scale);
    }
    for (size_t k = 0; k < t->T_padded; k += 32) {
        const char *panel = t->keys + k * t->D_padded * 2;
        if (rows <= 16) {
            l2c_tiles_bf16_few(t->scores + k, s_bytes, t->q, q_bytes, panel, t->D_padded / 32, true,
                               NULL, 0);
        } else {
            l2c_tiles_bf16(t->scores + k, s_bytes, t->q, q_bytes, panel, t->D_padded / 32, true,
                           NULL, 0);
        }
    }
    float sums[QUERY_ROWS];
    for (size_t r = 0; r < rows; r++) {
        sums[r] = softmax_row(t->weights + r * t->T_padded, t->scores + r * t->T_padded, t->T,
                              t->T_padded);
    }
    for (size_t d = 0; d < t->D_padded; d += 32) {
        const char *panel = t->values + d * t->T_padded * 2;
        if (rows <= 16) {
            l2c_tiles_bf16_few(t->out + d, t->D_padded * 4, t->weights, w_bytes, panel,
                               t->T_padded / 32, true, NULL, 0);
        } else {
            l2c_tiles_bf16(t->out + d, t->D_padded * 4, t->weights, w_bytes, panel,
                           t->T_padded / 32, true, NULL, 0);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        float *out = a->out + (row + r) * a->out_stride + head * t->D;
        float inverse = 1.0F / sums[r];
        for (size_t d = 0; d < t->D; d++) {
            out[d] = t->out[r * t->D_padded + d] * inverse;
        }
    }
}

L2C_TILE l2cdb_status l2c_attention_amx(const l2c_attention_args *a, const l2c_attention_part *part,
                                        l2c_arena *arena, l2cdb_error *err) {
    tile t = { .T = part->kv_rows, .D = a->head_dim };
    t.T_padded = round_up(t.T, 32);
    t.D_padded = round_up(t.D, 32);
    char *keys = l2c_arena_alloc(arena, t.T_padded * t.D_padded, 2);
    char *values = l2c_arena_alloc(arena, t.T_padded * t.D_padded, 2);
    t.q = l2c_arena_alloc(arena, QUERY_ROWS * t.D_padded, sizeof *t.q);
    t.weights = l2c_arena_alloc(arena, QUERY_ROWS * t.T_padded, sizeof *t.weights);
    t.scores = l2c_arena_alloc(arena, QUERY_ROWS * t.T_padded, sizeof *t.scores);
    t.out = l2c_arena_alloc(arena, QUERY_ROWS * t.D_padded, sizeof *t.out);
    if (keys == NULL || values == NULL || t.q == NULL || t.weights == NULL || t.scores == NULL ||
        t.out == NULL) {
        return l2c_fail_nomem(err, t.T_padded * t.D_padded * 4);
    }
    pack_keys(keys, t.q, a->k + part->kv_first * a->k_stride + part->kv_head * t.D, a->k_stride,
              t.T, t.T_padded, t.D, t.D_padded);
    pack_values(values, a->v + part->kv_first * a->v_stride + part->kv_head * t.D, a->v_stride, t.T,
                t.T_padded, t.D, t.D_padded);
    t.keys = keys;
    t.values = values;
    size_t group = a->heads / a->kv_heads;
    l2c_tiles_begin();
    for (size_t h = part->kv_head * group; h < (part->kv_head + 1) * group; h++) {
        for (size_t r = 0; r < part->q_rows; r += QUERY_ROWS) {
            size_t rows = part->q_rows - r < QUERY_ROWS ? part->q_rows - r : QUERY_ROWS;
            run_tile(a, &t, h, part->q_first + r, rows);
        }
    }
    l2c_tiles_end();
    return L2CDB_OK;
}

#else

l2cdb_status l2c_attention_amx(const l2c_attention_args *a, const l2c_attention_part *part,
                               l2c_arena *arena, l2cdb_error *err) {
    (void)a;
    (void)part;
    (void)arena;
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this processor has no matrix tiles");
}

#endif
