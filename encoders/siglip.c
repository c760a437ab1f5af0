/* SigLIP2's tower under timm's names: no class token, pooling by one learnt query. Source:
 * spec 4.5; timm models/vision_transformer.py, layers/attention_pool.py. */
#include "encoders/tower.h"

#include <stdio.h>
#include <string.h>

static l2cdb_status init_block(l2c_block *k, l2c_blocks *b, size_t i, const l2c_tensors *set,
                               l2c_precision precision, l2cdb_error *err) {
    const char *base = "visual.trunk.blocks";
    const struct {
        l2c_linear **linear;
        const char *name;
    } linears[] = {
        { &k->qkv, "attn.qkv" },
        { &k->proj, "attn.proj" },
        { &k->up, "mlp.fc1" },
        { &k->down, "mlp.fc2" },
    };
    l2cdb_status rc =
        l2c_load_norm(&k->before_attention, set, &b->params, err, "%s.%zu.norm1", base, i);
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&k->before_mlp, set, &b->params, err, "%s.%zu.norm2", base, i);
    }
    for (size_t n = 0; rc == L2CDB_OK && n < sizeof linears / sizeof *linears; n++) {
        char name[96];
        snprintf(name, sizeof name, "%s.%zu.%s", base, i, linears[n].name);
        rc =
            l2c_load_linear(linears[n].linear, set, precision, (const char *[]){ name, NULL }, err);
    }
    return rc;
}

/* Wq latent + bq does not depend on the photo: one product at init. */
static l2cdb_status init_query(l2c_tower *t, const l2c_tensors *set, l2cdb_error *err) {
    l2c_arena *params = &t->blocks.params;
    size_t W = t->config.width;
    const float *latent;
    l2c_linear *q = NULL;
    float *out = l2c_arena_alloc(params, W, sizeof *out);
    l2cdb_status rc = out != NULL ? L2CDB_OK : l2c_fail_nomem(err, W * sizeof *out);
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&latent, set, params, err, "visual.trunk.attn_pool.latent");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&q, set, L2C_PRECISION_F32,
                             (const char *[]){ "visual.trunk.attn_pool.q", NULL }, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_linear_apply(q, &(l2c_product){ .x = latent, .rows = 1, .y = out }, params, err);
        t->pool_q = out;
    }
    l2c_linear_free(q);
    return rc;
}

static l2cdb_status init_pool(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                              l2cdb_error *err) {
    // One row a photo after the attention: cheap, and next to the result, so it stays in f32.
    const struct {
        l2c_linear **linear;
        const char *name;
        l2c_precision precision;
    } linears[] = {
        { &t->pool_kv, "visual.trunk.attn_pool.kv", precision },
        { &t->pool_proj, "visual.trunk.attn_pool.proj", L2C_PRECISION_F32 },
        { &t->pool_up, "visual.trunk.attn_pool.mlp.fc1", L2C_PRECISION_F32 },
        { &t->pool_down, "visual.trunk.attn_pool.mlp.fc2", L2C_PRECISION_F32 },
    };
    l2cdb_status rc =
        l2c_load_norm(&t->pool_norm, set, &t->blocks.params, err, "visual.trunk.attn_pool.norm");
    for (size_t n = 0; rc == L2CDB_OK && n < sizeof linears / sizeof *linears; n++) {
        rc = l2c_load_linear(linears[n].linear, set, linears[n].precision,
                             (const char *[]){ linears[n].name, NULL }, err);
    }
    return rc == L2CDB_OK ? init_query(t, set, err) : rc;
}

l2cdb_status l2c_siglip_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                             l2cdb_error *err) {
    l2cdb_status rc =
        l2c_load_linear(&t->patches, set, precision,
                        (const char *[]){ "visual.trunk.patch_embed.proj", NULL }, err);
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&t->positions, set, &t->blocks.params, err, "visual.trunk.pos_embed");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&t->after, set, &t->blocks.params, err, "visual.trunk.norm");
    }
    for (size_t i = 0; rc == L2CDB_OK && i < t->blocks.count; i++) {
        rc = init_block(&t->blocks.items[i], &t->blocks, i, set, precision, err);
    }
    return rc == L2CDB_OK ? init_pool(t, set, precision, err) : rc;
}

typedef struct keying {
    const l2c_tower *t;
    float *x, *kv;
} keying;

static l2cdb_status norm_and_key(void *ctx, size_t first, size_t count, l2c_arena *arena,
                                 l2cdb_error *err) {
    const keying *p = ctx;
    size_t W = p->t->config.width;
    float *x = p->x + first * W;
    for (size_t r = 0; r < count; r++) {
        l2c_norm_row(&p->t->blocks, &p->t->after, x + r * W, x + r * W, W);
    }
    return l2c_linear_apply(p->t->pool_kv,
                            &(l2c_product){ .x = x, .rows = count, .y = p->kv + first * 2 * W },
                            arena, err);
}

/* out = o + mlp(LN(o)), o = proj(heads): one row a photo, on the whole team. */
static l2cdb_status finish(const l2c_tower *t, float *out, const float *heads, size_t n,
                           l2c_arena *arena, l2cdb_error *err) {
    size_t W = t->config.width;
    float *normed = l2c_arena_alloc(arena, n * W, sizeof *normed);
    l2c_rows hidden = l2c_linear_rows(t->pool_down, n, arena);
    if (normed == NULL || hidden.data == NULL) {
        return l2c_fail_nomem(err, n * t->config.pool_hidden * sizeof *normed);
    }
    l2cdb_status rc = l2c_linear_apply(
        t->pool_proj, &(l2c_product){ .x = heads, .rows = n, .y = out }, arena, err);
    for (size_t i = 0; rc == L2CDB_OK && i < n; i++) {
        l2c_norm_row(&t->blocks, &t->pool_norm, normed + i * W, out + i * W, W);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_linear_apply(
            t->pool_up,
            &(l2c_product){ .x = normed, .rows = n, .y_rows = &hidden, .post = t->blocks.post },
            arena, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_linear_apply(
            t->pool_down,
            &(l2c_product){ .x_rows = &hidden, .rows = n, .y = out, .accumulate = true }, arena,
            err);
    }
    return rc;
}

l2cdb_status l2c_siglip_pool(const l2c_tower *t, float *out, float *x, size_t n, l2c_workspace *ws,
                             l2cdb_error *err) {
    size_t W = t->config.width, rows = n * t->tokens;
    l2c_arena *arena = &ws->shared;
    float *kv = l2c_arena_alloc(arena, rows * 2 * W, sizeof *kv);
    float *q = l2c_arena_alloc(arena, n * W, sizeof *q);
    float *heads = l2c_arena_alloc(arena, n * W, sizeof *heads);
    size_t *offsets = l2c_arena_alloc(arena, 2 * (n + 1), sizeof *offsets);
    if (kv == NULL || q == NULL || heads == NULL || offsets == NULL) {
        return l2c_fail_nomem(err, rows * 2 * W * sizeof *kv);
    }
    for (size_t i = 0; i <= n; i++) {
        offsets[i] = i;
        offsets[n + 1 + i] = i * t->tokens;
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(q + i * W, t->pool_q, W * sizeof *q);
    }
    keying p = { .t = t, .x = x, .kv = kv };
    l2cdb_status rc = l2c_deal_rows(ws, rows, 128, norm_and_key, &p, err);
    if (rc == L2CDB_OK) {
        rc = l2c_attention(&(l2c_attention_args){ .q = q,
                                                  .k = kv,
                                                  .v = kv + W,
                                                  .q_stride = W,
                                                  .k_stride = 2 * W,
                                                  .v_stride = 2 * W,
                                                  .out = heads,
                                                  .out_stride = W,
                                                  .heads = t->config.heads,
                                                  .kv_heads = t->config.heads,
                                                  .head_dim = t->config.head_width,
                                                  .sequences = n,
                                                  .q_offset = offsets,
                                                  .kv_offset = offsets + n + 1 },
                           ws, err);
    }
    return rc == L2CDB_OK ? finish(t, out, heads, n, arena, err) : rc;
}
