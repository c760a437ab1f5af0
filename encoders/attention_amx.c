/* Attention in tiles: the plan of attention.c with all operands of both products packed in bf16
 * terms (amx_split.h), one where bf16 is enough and three for f32; scores, softmax and sums are
 * f32. See attention.h. */
#include "encoders/attention.h"

#include "encoders/gemm_backend.h"

#if defined(__x86_64__)

#include <math.h>

#include "encoders/amx_split.h"
#include "encoders/layers.h"

enum { QUERY_ROWS = 32, BLOCK = L2C_PANEL };

static size_t blocks(size_t n) {
    return (n + BLOCK - 1) / BLOCK;
}

typedef struct tile {
    char *q, *weights;         /* packs of [32, D], [32, T] */
    const char *keys, *values; /* of [T, D] along D, [D, T] along T */
    float *scores, *out;       /* [32, T_blocks*32], [32, D_blocks*32] */
    size_t T, T_blocks, D, D_blocks;
} tile;

/* c [32, count*32] = packs of 32 rows times those of count*32 columns, `steps` along K. */
L2C_TILE static inline __attribute__((always_inline)) void product(float *c, size_t count,
                                                                   const char *a, const char *b,
                                                                   size_t steps, size_t rows,
                                                                   const size_t terms) {
    for (size_t n = 0; n < count; n++) {
        const char *columns = b + n * steps * l2c_split_pack_bytes(terms);
        float *to = c + n * BLOCK;
        if (rows <= 16) {
            l2c_split_multiply(to, count * BLOCK, a, columns, steps, true, terms, true, NULL);
        } else {
            l2c_split_multiply(to, count * BLOCK, a, columns, steps, true, terms, false, NULL);
        }
    }
}

L2C_TILE static inline __attribute__((always_inline)) void run_tile(const l2c_attention_args *a,
                                                                    const tile *t, size_t head,
                                                                    size_t row, size_t rows,
                                                                    const size_t terms) {
    const size_t pack = l2c_split_pack_bytes(terms), T_padded = t->T_blocks * BLOCK;
    const l2c_split_operand q = { .x = a->q + row * a->q_stride + head * t->D,
                                  .along = 1,
                                  .across = a->q_stride,
                                  .count = rows,
                                  .depth = t->D,
                                  .alpha = 1.0F / sqrtf((float)t->D) };
    for (size_t d = 0; d < t->D_blocks; d++) {
        l2c_split_pack(t->q + d * pack, &q, 0, d * BLOCK, false, terms);
    }
    product(t->scores, t->T_blocks, t->q, t->keys, t->D_blocks, rows, terms);
    float sums[QUERY_ROWS];
    for (size_t r = 0; r < rows; r++) {
        sums[r] = l2c_softmax_exp(t->scores + r * T_padded, t->T);
    }
    const l2c_split_operand weights = {
        .x = t->scores, .along = 1, .across = T_padded, .count = rows, .depth = t->T, .alpha = 1
    };
    for (size_t k = 0; k < t->T_blocks; k++) {
        l2c_split_pack(t->weights + k * pack, &weights, 0, k * BLOCK, false, terms);
    }
    product(t->out, t->D_blocks, t->weights, t->values, t->T_blocks, rows, terms);
    for (size_t r = 0; r < rows; r++) {
        float *out = a->out + (row + r) * a->out_stride + head * t->D;
        float inverse = 1.0F / sums[r];
        for (size_t d = 0; d < t->D; d++) {
            out[d] = t->out[r * t->D_blocks * BLOCK + d] * inverse;
        }
    }
}

/* [count, depth] in packs: block by block of rows, each along K. */
L2C_TILE static inline __attribute__((always_inline)) void
pack_all(char *to, const l2c_split_operand *o, const size_t terms) {
    for (size_t i = 0; i < o->count; i += BLOCK) {
        for (size_t k = 0; k < o->depth; k += BLOCK, to += l2c_split_pack_bytes(terms)) {
            l2c_split_pack(to, o, i, k, true, terms);
        }
    }
}

L2C_TILE static inline __attribute__((always_inline)) l2cdb_status
run_part(const l2c_attention_args *a, const l2c_attention_part *part, const size_t terms,
         l2c_arena *arena, l2cdb_error *err) {
    tile t = { .T = part->kv_rows, .D = a->head_dim };
    t.T_blocks = blocks(t.T);
    t.D_blocks = blocks(t.D);
    const size_t pack = l2c_split_pack_bytes(terms);
    char *keys = l2c_arena_alloc(arena, t.T_blocks * t.D_blocks, pack);
    char *values = l2c_arena_alloc(arena, t.T_blocks * t.D_blocks, pack);
    t.q = l2c_arena_alloc(arena, t.D_blocks, pack);
    t.weights = l2c_arena_alloc(arena, t.T_blocks, pack);
    t.scores = l2c_arena_alloc(arena, QUERY_ROWS * t.T_blocks * BLOCK, sizeof *t.scores);
    t.out = l2c_arena_alloc(arena, QUERY_ROWS * t.D_blocks * BLOCK, sizeof *t.out);
    if (keys == NULL || values == NULL || t.q == NULL || t.weights == NULL || t.scores == NULL ||
        t.out == NULL) {
        return l2c_fail_nomem(err, 2 * t.T_blocks * t.D_blocks * pack);
    }
    pack_all(keys,
             &(l2c_split_operand){ .x = a->k + part->kv_first * a->k_stride + part->kv_head * t.D,
                                   .along = 1,
                                   .across = a->k_stride,
                                   .count = t.T,
                                   .depth = t.D,
                                   .alpha = 1 },
             terms);
    pack_all(values,
             &(l2c_split_operand){ .x = a->v + part->kv_first * a->v_stride + part->kv_head * t.D,
                                   .along = a->v_stride,
                                   .across = 1,
                                   .count = t.D,
                                   .depth = t.T,
                                   .alpha = 1 },
             terms);
    t.keys = keys;
    t.values = values;
    size_t group = a->heads / a->kv_heads;
    l2c_tiles_begin();
    for (size_t h = part->kv_head * group; h < (part->kv_head + 1) * group; h++) {
        for (size_t r = 0; r < part->q_rows; r += QUERY_ROWS) {
            size_t rows = part->q_rows - r < QUERY_ROWS ? part->q_rows - r : QUERY_ROWS;
            run_tile(a, &t, h, part->q_first + r, rows, terms);
        }
    }
    l2c_tiles_end();
    return L2CDB_OK;
}

L2C_TILE static l2cdb_status run_bf16(const l2c_attention_args *a, const l2c_attention_part *part,
                                      l2c_arena *arena, l2cdb_error *err) {
    return run_part(a, part, 1, arena, err);
}

L2C_TILE static l2cdb_status run_f32(const l2c_attention_args *a, const l2c_attention_part *part,
                                     l2c_arena *arena, l2cdb_error *err) {
    return run_part(a, part, L2C_SPLIT_MOST, arena, err);
}

l2cdb_status l2c_attention_amx(const l2c_attention_args *a, const l2c_attention_part *part,
                               l2c_arena *arena, l2cdb_error *err) {
    return a->bf16 ? run_bf16(a, part, arena, err) : run_f32(a, part, arena, err);
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
