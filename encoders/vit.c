/* OpenAI's CLIP tower under Hugging Face's names. Source: spec 4.3; transformers
 * models/clip/modeling_clip.py. "pre_layrnorm" is upstream's spelling. */
#include "encoders/tower.h"

#include <stdio.h>

static l2cdb_status init_block(l2c_block *k, l2c_blocks *b, size_t i, const l2c_tensors *set,
                               l2c_precision precision, l2cdb_error *err) {
    const char *base = "vision_model.encoder.layers";
    char q[96], k_name[96], v[96], proj[96], fc1[96], fc2[96];
    snprintf(q, sizeof q, "%s.%zu.self_attn.q_proj", base, i);
    snprintf(k_name, sizeof k_name, "%s.%zu.self_attn.k_proj", base, i);
    snprintf(v, sizeof v, "%s.%zu.self_attn.v_proj", base, i);
    snprintf(proj, sizeof proj, "%s.%zu.self_attn.out_proj", base, i);
    snprintf(fc1, sizeof fc1, "%s.%zu.mlp.fc1", base, i);
    snprintf(fc2, sizeof fc2, "%s.%zu.mlp.fc2", base, i);

    l2cdb_status rc =
        l2c_load_norm(&k->before_attention, set, &b->params, err, "%s.%zu.layer_norm1", base, i);
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&k->before_mlp, set, &b->params, err, "%s.%zu.layer_norm2", base, i);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&k->qkv, set, precision, (const char *[]){ q, k_name, v, NULL }, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&k->proj, set, precision, (const char *[]){ proj, NULL }, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&k->up, set, precision, (const char *[]){ fc1, NULL }, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_linear(&k->down, set, precision, (const char *[]){ fc2, NULL }, err);
    }
    return rc;
}

l2cdb_status l2c_vit_init(l2c_tower *t, const l2c_tensors *set, l2c_precision precision,
                          l2cdb_error *err) {
    l2c_arena *params = &t->blocks.params;
    l2cdb_status rc =
        l2c_load_linear(&t->patches, set, precision,
                        (const char *[]){ "vision_model.embeddings.patch_embedding", NULL }, err);
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&t->class_embedding, set, params, err,
                             "vision_model.embeddings.class_embedding");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_vector(&t->positions, set, params, err,
                             "vision_model.embeddings.position_embedding.weight");
    }
    // Every CLIP tower has it; a plain ViT in these names does without.
    if (rc == L2CDB_OK && l2c_tensors_find(set, "vision_model.pre_layrnorm.weight") != NULL) {
        rc = l2c_load_norm(&t->before, set, params, err, "vision_model.pre_layrnorm");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&t->after, set, params, err, "vision_model.post_layernorm");
    }
    for (size_t i = 0; rc == L2CDB_OK && i < t->blocks.count; i++) {
        rc = init_block(&t->blocks.items[i], &t->blocks, i, set, precision, err);
    }
    return rc;
}
