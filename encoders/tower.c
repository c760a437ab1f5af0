/* What the towers share: patches to tokens, blocks, and the choice of kind. Source: spec 4.3–4.5.
 */
#include "encoders/tower.h"

#include <string.h>

#include "engine/base/vec.h"

enum { PATCH_ROWS = 128 };

l2cdb_status l2c_tower_init(l2c_tower *t, const l2c_vision_config *c, const l2c_tensors *set,
                            l2c_precision precision, l2cdb_error *err) {
    *t = (l2c_tower){ .config = *c };
    l2cdb_status rc = l2c_blocks_init(&t->blocks, c->layers, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    t->tokens = c->grid * c->grid + (c->kind != L2C_VISION_SIGLIP2 ? 1 : 0);
    l2c_blocks *b = &t->blocks;
    b->width = c->width;
    b->heads = b->kv_heads = c->heads;
    b->head_dim = c->head_width;
    b->hidden = c->hidden;
    b->eps = (float)c->ln_eps;
    b->post = c->act == L2C_ACT_QUICK_GELU  ? L2C_POST_QUICK_GELU
              : c->act == L2C_ACT_GELU_TANH ? L2C_POST_GELU_TANH
                                            : L2C_POST_GELU;
    switch (c->kind) {
    case L2C_VISION_OPENAI:
        return l2c_vit_init(t, set, precision, err);
    case L2C_VISION_EVA02:
        return l2c_eva_init(t, set, precision, err);
    case L2C_VISION_SIGLIP2:
        return l2c_siglip_init(t, set, precision, err);
    }
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "vision tower of kind %d", (int)c->kind);
}

void l2c_tower_fini(l2c_tower *t) {
    l2c_blocks_fini(&t->blocks);
    l2c_rope_fini(&t->rope);
    l2c_linear_free(t->patches);
    l2c_linear_free(t->pool_kv);
    l2c_linear_free(t->pool_proj);
    l2c_linear_free(t->pool_up);
    l2c_linear_free(t->pool_down);
    *t = (l2c_tower){ 0 };
}

typedef struct patching {
    const l2c_tower *t;
    const float *pixels;
    float *x;
} patching;

/* Patch `p` of one photo as a row: channel, y, x. */
static void cut_patch(float *out, const l2c_vision_config *c, const float *photo, size_t p) {
    size_t S = c->image_side, P = c->patch;
    const float *corner = photo + p / c->grid * P * S + p % c->grid * P;
    for (size_t channel = 0; channel < 3; channel++) {
        for (size_t y = 0; y < P; y++) {
            memcpy(out, corner + channel * S * S + y * S, P * sizeof *out);
            out += P;
        }
    }
}

/* Tokens of rows [first, first+count) of x: patch embedding plus position, class token plus
 * position, and OpenAI's first norm. A class token's patch is a row of zeros whose product is not
 * used. */
static l2cdb_status embed(void *ctx, size_t first, size_t count, l2c_arena *arena,
                          l2cdb_error *err) {
    const patching *p = ctx;
    const l2c_tower *t = p->t;
    size_t W = t->config.width, patch_size = l2c_linear_in(t->patches);
    size_t photo_size = 3 * t->config.image_side * t->config.image_side;
    bool has_class = t->class_embedding != NULL;
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    float *rows = l2c_arena_alloc(arena, count * patch_size, sizeof *rows);
    if (rows == NULL) {
        return l2c_fail_nomem(err, count * patch_size * sizeof *rows);
    }
    for (size_t r = 0; r < count; r++) {
        size_t photo = (first + r) / t->tokens, token = (first + r) % t->tokens;
        if (has_class && token == 0) {
            memset(rows + r * patch_size, 0, patch_size * sizeof *rows);
        } else {
            cut_patch(rows + r * patch_size, &t->config, p->pixels + photo * photo_size,
                      token - (has_class ? 1 : 0));
        }
    }
    float *x = p->x + first * W;
    l2cdb_status rc = l2c_linear_apply(
        t->patches, &(l2c_product){ .x = rows, .rows = count, .y = x }, arena, err);
    for (size_t r = 0; rc == L2CDB_OK && r < count; r++) {
        size_t token = (first + r) % t->tokens;
        if (has_class && token == 0) {
            memcpy(x + r * W, t->class_embedding, W * sizeof *x);
        }
        l2c_vec_axpy(x + r * W, t->positions + token * W, 1, W);
        if (t->before.weight != NULL) {
            l2c_norm_row(&t->blocks, &t->before, x + r * W, x + r * W, W);
        }
    }
    l2c_arena_reset(arena, mark);
    return rc;
}

/* Everything but pooling: x f32 [n*tokens, W], the class tokens alone at its front if `only_class`.
 */
static l2cdb_status stream(const l2c_tower *t, float *x, const float *pixels, size_t n,
                           size_t blocks, bool only_class, l2c_workspace *ws, l2cdb_error *err) {
    patching p = { .t = t, .pixels = pixels, .x = x };
    size_t rows = n * t->tokens;
    l2cdb_status rc = l2c_deal_rows(ws, rows, PATCH_ROWS, embed, &p, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t *offset = l2c_arena_alloc(&ws->shared, n + 1, sizeof *offset);
    size_t *positions = l2c_arena_alloc(&ws->shared, rows, sizeof *positions);
    size_t *keep = l2c_arena_alloc(&ws->shared, 2 * n, sizeof *keep);
    if (offset == NULL || positions == NULL || keep == NULL) {
        return l2c_fail_nomem(err, (rows + 3 * n) * sizeof *offset);
    }
    for (size_t i = 0; i <= n; i++) {
        offset[i] = i * t->tokens;
    }
    for (size_t r = 0; r < rows; r++) {
        positions[r] = r % t->tokens;
    }
    for (size_t i = 0; i < n; i++) {
        keep[i] = 0;
        keep[n + i] = 1;
    }
    l2c_blocks some = t->blocks;
    some.count = blocks;
    return l2c_blocks_run(&some, x,
                          &(l2c_sequences){ .count = n,
                                            .offset = offset,
                                            .positions = positions,
                                            .keep_first = only_class ? keep : NULL,
                                            .keep_count = only_class ? keep + n : NULL },
                          ws, err);
}

l2cdb_status l2c_tower_features(const l2c_tower *t, float *out, const float *pixels, size_t n,
                                l2c_workspace *ws, l2cdb_error *err) {
    size_t W = t->config.width;
    bool by_class = t->class_embedding != NULL;
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    float *x = l2c_arena_alloc(&ws->shared, n * t->tokens * W, sizeof *x);
    l2cdb_status rc = x != NULL ? stream(t, x, pixels, n, t->blocks.count, by_class, ws, err)
                                : l2c_fail_nomem(err, n * t->tokens * W * sizeof *x);
    if (rc == L2CDB_OK && by_class) {
        for (size_t i = 0; i < n; i++) {
            l2c_norm_row(&t->blocks, &t->after, out + i * W, x + i * W, W);
        }
    } else if (rc == L2CDB_OK) {
        rc = l2c_siglip_pool(t, out, x, n, ws, err);
    }
    l2c_arena_reset(&ws->shared, mark);
    return rc;
}

l2cdb_status l2c_tower_tokens(const l2c_tower *t, float *out, const float *pixels, size_t n,
                              size_t blocks, l2c_workspace *ws, l2cdb_error *err) {
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    l2cdb_status rc = stream(t, out, pixels, n, blocks, false, ws, err);
    l2c_arena_reset(&ws->shared, mark);
    return rc;
}
