/* The text adapter: LLM vector in, joint space out. Residual MLP blocks, a LayerNorm, an output
 * matrix. The forward here runs packed weights; training's forward and backward, on plain matrices,
 * are in adapter_grad.c. Source: spec 5; llm2clip/eva_clip/model.py TextProj, LinearBlock. */
#ifndef L2C_ADAPTER_H
#define L2C_ADAPTER_H

#include "encoders/blocks.h"
#include "encoders/config.h"

#define L2C_ADAPTER_LN_EPS 1e-5F /* matters: the variance of a unit vector of d features is 1/d */

typedef struct l2c_adapter_block {
    l2c_norm norm;
    l2c_linear *up, *down; /* d → 2d → d */
} l2c_adapter_block;

typedef struct l2c_adapter {
    size_t width, text_width, hidden, blocks_count;
    bool normalize_input; /* false in the SigLIP2 variant */
    l2c_adapter_block *blocks;
    l2c_norm last;
    l2c_linear *out; /* f32 whatever the rest is */
    l2c_arena params;
} l2c_adapter;

/* Tensors under text_adapter.adaptor.*. E_FORMAT, E_NOMEM; needs fini on every outcome. */
l2cdb_status l2c_adapter_init(l2c_adapter *a, const l2c_heads_config *c, const l2c_tensors *set,
                              l2c_precision precision, l2cdb_error *err);
void l2c_adapter_fini(l2c_adapter *a);

/* v f32 [n, d] → y f32 [n, E], not normalised. Scratch from `arena`, released before return. */
l2cdb_status l2c_adapter_apply(const l2c_adapter *a, float *y, const float *v, size_t n,
                               l2c_arena *arena, l2cdb_error *err);

#endif
