/* A vision tower: pixels in, one pooled vector a photo out (before the projection, which belongs to
 * the heads). The three kinds share patches and blocks; each file fills in its own parts. */
#ifndef L2C_TOWER_H
#define L2C_TOWER_H

#include "encoders/blocks.h"
#include "encoders/config.h"

typedef struct l2c_tower {
    l2c_vision_config config;
    l2c_blocks blocks;
    l2c_rope rope;                /* EVA02 */
    l2c_linear *patches;          /* [W, 3*P*P], patch order (channel, y, x) */
    const float *class_embedding; /* [W], or NULL (SigLIP2) */
    const float *positions;       /* [tokens, W] */
    size_t tokens;                /* G*G, plus one with a class token */
    l2c_norm before, after;       /* of the stream; before is OpenAI's alone */

    /* SigLIP2's attention pooling. */
    const float *pool_q; /* [W], Wq latent + bq: the same for every photo */
    l2c_linear *pool_kv, *pool_proj, *pool_up, *pool_down;
    l2c_norm pool_norm;
} l2c_tower;

/* The kind is the configuration's. E_FORMAT, E_NOMEM, E_INTERNAL; *t needs fini on every outcome.
 */
l2cdb_status l2c_tower_init(l2c_tower *t, const l2c_vision_config *c, const l2c_tensors *set,
                            l2c_precision precision, l2cdb_error *err);
void l2c_tower_fini(l2c_tower *t);

/* pixels f32 [n,3,S,S] → out f32 [n,W]. Memory grows with n: the caller cuts the batch. */
l2cdb_status l2c_tower_features(const l2c_tower *t, float *out, const float *pixels, size_t n,
                                l2c_workspace *ws, l2cdb_error *err);
/* The stream itself, out f32 [n, tokens, W], after `blocks` of the blocks and before any pooling
 * (spec 6.7); for the parity tests. */
l2cdb_status l2c_tower_tokens(const l2c_tower *t, float *out, const float *pixels, size_t n,
                              size_t blocks, l2c_workspace *ws, l2cdb_error *err);

/* Each kind's own: weights at init, and what follows the blocks. */
l2cdb_status l2c_vit_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                          l2cdb_error *err);
l2cdb_status l2c_eva_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                          l2cdb_error *err);
l2cdb_status l2c_siglip_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                             l2cdb_error *err);
/* x f32 [n*tokens, W], the stream after the blocks; overwritten. */
l2cdb_status l2c_siglip_pool(const l2c_tower *t, float *out, float *x, size_t n, l2c_workspace *ws,
                             l2cdb_error *err);

#endif
