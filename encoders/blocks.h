/* The stack of transformer blocks that every trunk here is made of: norm, attention, norm, MLP,
 * each added to the stream. The towers and the LLM differ in the parts, not in the order:
 *
 *              norm       q,k,v biases   positions     after heads   MLP
 *   OpenAI     LayerNorm  all            (in input)    –             fc1, GELU, fc2
 *   EVA02      LayerNorm  q and v        2-D rotary    LayerNorm     SwiGLU, LayerNorm, w3
 *   SigLIP2    LayerNorm  all            (in input)    –             fc1, GELU, fc2
 *   Llama      RMSNorm    none           rotary        –             SwiGLU, down
 *
 * Sequences are concatenated without padding. Work between two attentions concerns single rows
 * only, so each thread takes a block of rows through projection, MLP and the next layer's q,k,v
 * while they are in its cache; only attention needs all rows at once. */
#ifndef L2C_BLOCKS_H
#define L2C_BLOCKS_H

#include "encoders/attention.h"
#include "encoders/bundle.h"
#include "encoders/gemm.h"
#include "encoders/rope.h"

typedef struct l2c_norm {
    const float *weight, *bias; /* weight NULL: no norm; bias NULL: RMSNorm in Llama */
} l2c_norm;

typedef struct l2c_block {
    l2c_norm before_attention, before_mlp;
    l2c_norm inside_attention, inside_mlp; /* EVA02's sub-LN */
    l2c_linear *qkv, *proj;
    l2c_linear *up; /* fc1; or gate and up, stacked, when gated */
    l2c_linear *down;
} l2c_block;

typedef struct l2c_blocks {
    size_t width, heads, kv_heads, head_dim, hidden;
    bool rms, gated;
    l2c_post post; /* of fc1 */
    float eps;
    const l2c_rope *rope; /* NULL: none; borrowed */
    l2c_block *items;
    size_t count;
    l2c_arena params; /* f32 vectors */
} l2c_blocks;

typedef struct l2c_sequences {
    size_t count;
    const size_t *offset;    /* [count+1] rows */
    const size_t *positions; /* [rows] row of the rotary table; NULL without rotation */
    /* The rows that are wanted at the end, a run in each sequence, [count] each; the last block
     * then computes no others. Both NULL: all. */
    const size_t *keep_first, *keep_count;
} l2c_sequences;

/* Zeroes, then allocates items. */
l2cdb_status l2c_blocks_init(l2c_blocks *b, size_t count, l2cdb_error *err);
void l2c_blocks_fini(l2c_blocks *b);

/* x f32 [rows, width], in place; with keep_first, its first sum(keep_count) rows are the kept ones
 * in order afterwards and the rest is unspecified. Runs in the team of `ws`. E_NOMEM, E_INTERNAL.
 */
l2cdb_status l2c_blocks_run(const l2c_blocks *b, float *x, const l2c_sequences *s,
                            l2c_workspace *ws, l2cdb_error *err);

/* out = norm(x) for one row of `width` features. */
void l2c_norm_row(const l2c_blocks *b, const l2c_norm *n, float *out, const float *x, size_t width);

/* ---- Reading weights ------------------------------------------------------------------------ */

/* The tensor `name` as f32 in `arena`; E_FORMAT if absent, E_NOMEM. */
l2cdb_status l2c_load_vector(const float **out, const l2c_tensors *set, l2c_arena *arena,
                             l2cdb_error *err, const char *fmt, ...) L2CDB_PRINTF(5, 6);
/* prefix.weight and, if there is one, prefix.bias. */
l2cdb_status l2c_load_norm(l2c_norm *out, const l2c_tensors *set, l2c_arena *arena,
                           l2cdb_error *err, const char *fmt, ...) L2CDB_PRINTF(5, 6);
/* What a Linear of a trunk is multiplied in when the model's precision is `precision`. int8 spares
 * the patches, since pixels have more than eight bits, and the second matrix of a tower's MLP,
 * whose input has outliers and no norm before it; on processors without bf16 products they are f32.
 * `name` is a canonical prefix (bundle.h). Import stores by the same rule; docs/model.md has what
 * it costs. */
l2c_precision l2c_linear_policy(l2c_precision precision, const char *name);
/* prefix.weight with prefix.bias and prefix.weight_scale where they exist, for up to four prefixes
 * (NULL-terminated list), stacked; in the precision that l2c_linear_policy gives the first. Weights
 * of more than two dimensions count as [out, rest]. */
l2cdb_status l2c_load_linear(l2c_linear **out, const l2c_tensors *set, l2c_precision precision,
                             const char *const *prefixes, l2cdb_error *err);

#endif
