/* EVA02's tower under the training repository's names. Source: spec 4.4; llm2clip/eva_clip
 * eva_vit_model.py, rope.py. Traps: k has no bias; rotation pairs are interleaved; the stored
 * rotary tables are rounded to f16 and are recomputed here. */
#include "encoders/tower.h"

#include <stdio.h>

static l2cdb_status init_block(l2c_block *k, l2c_blocks *b, size_t i, const l2c_tensors *set,
                               l2c_precision precision, l2cdb_error *err) {
    const char *base = "visual.blocks";
    const struct {
        l2c_norm *norm;
        const char *name;
    } norms[] = {
        { &k->before_attention, "norm1" },
        { &k->inside_attention, "attn.inner_attn_ln" },
        { &k->before_mlp, "norm2" },
        { &k->inside_mlp, "mlp.ffn_ln" },
    };
    const struct {
        l2c_linear **linear;
        const char *names[3];
    } linears[] = {
        { &k->qkv, { "attn.q_proj", "attn.k_proj", "attn.v_proj" } },
        { &k->proj, { "attn.proj" } },
        { &k->up, { "mlp.w1", "mlp.w2" } },
        { &k->down, { "mlp.w3" } },
    };
    l2cdb_status rc = L2CDB_OK;
    for (size_t n = 0; rc == L2CDB_OK && n < sizeof norms / sizeof *norms; n++) {
        rc =
            l2c_load_norm(norms[n].norm, set, &b->params, err, "%s.%zu.%s", base, i, norms[n].name);
    }
    for (size_t n = 0; rc == L2CDB_OK && n < sizeof linears / sizeof *linears; n++) {
        char full[3][96];
        const char *prefixes[4] = { NULL };
        for (size_t part = 0; part < 3 && linears[n].names[part] != NULL; part++) {
            snprintf(full[part], sizeof full[part], "%s.%zu.%s", base, i, linears[n].names[part]);
            prefixes[part] = full[part];
        }
        rc = l2c_load_linear(linears[n].linear, set, precision, prefixes, err);
    }
    return rc;
}

l2cdb_status l2c_eva_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                          l2cdb_error *err) {
    l2c_arena *params = &t->blocks.params;
    t->blocks.gated = true;
    t->blocks.rope = &t->rope;
    l2cdb_status rc =
        l2c_rope_init_eva(&t->rope, t->config.grid, t->config.rope_grid, t->config.head_width, err);
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&t->patches, set, precision,
                             (const char *[]){ "visual.patch_embed.proj", NULL }, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&t->class_embedding, set, params, err, "visual.cls_token");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&t->positions, set, params, err, "visual.pos_embed");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&t->after, set, params, err, "visual.norm");
    }
    for (size_t i = 0; rc == L2CDB_OK && i < t->blocks.count; i++) {
        rc = init_block(&t->blocks.items[i], &t->blocks, i, set, precision, err);
    }
    return rc;
}
