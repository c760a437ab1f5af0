/* Attention over concatenated sequences: softmax(q k^T / sqrt(D)) v, each sequence on its own, no
 * causal mask. Queries are taken in tiles, so no more than a tile of scores exists at a time, never
 * [H,T,T]. Several query heads may share a key/value head (grouped queries). */
#ifndef L2C_ATTENTION_H
#define L2C_ATTENTION_H

#include <stddef.h>

#include "encoders/workspace.h"

typedef struct l2c_attention_args {
    const float *q, *k, *v;              /* f32 [rows, ...]: head h begins at column h*D */
    size_t q_stride, k_stride, v_stride; /* elements between rows */
    float *out;                          /* f32 [rows of q, heads*D] */
    size_t out_stride;
    size_t heads, kv_heads, head_dim; /* heads is a multiple of kv_heads */
    size_t sequences;
    /* [sequences+1] row offsets into q and out; and into k and v (NULL: the same). */
    const size_t *q_offset, *kv_offset;
    bool bf16; /* products may be rounded to bf16, where that is faster */
} l2c_attention_args;

/* One key/value head of one sequence and some of its queries: what one thread does at a time. */
typedef struct l2c_attention_part {
    size_t kv_head, kv_first, kv_rows, q_first, q_rows;
} l2c_attention_part;

/* attention_amx.c: one part on tiles, where l2c_amx_usable(). Scratch is not released. */
l2cdb_status l2c_attention_amx(const l2c_attention_args *a, const l2c_attention_part *part,
                               l2c_arena *arena, l2cdb_error *err);

/* Called outside a parallel region; sequences and heads are dealt to the team of `ws`. E_NOMEM. */
l2cdb_status l2c_attention(const l2c_attention_args *a, l2c_workspace *ws, l2cdb_error *err);

#endif
