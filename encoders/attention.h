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
} l2c_attention_args;

/* Called outside a parallel region; sequences and heads are dealt to the team of `ws`. E_NOMEM. */
l2cdb_status l2c_attention(const l2c_attention_args *a, l2c_workspace *ws, l2cdb_error *err);

#endif
