/* An opened model: configurations, tensors under canonical names, tokenizer, fingerprints.
 *
 *   l2c_bundle *b;
 *   l2c_bundle_open(&b, NULL, &err);                  // the built-in l2c-mini
 *   const l2c_tensor *w = l2c_bundle_get(&b->llm_tensors, "layers.%zu.mlp.up_proj.weight", i);
 *   l2c_bundle_close(b);
 *
 * Whatever the files looked like (spec 1.3, layouts A to D, prefixes, nesting, fallback names), the
 * three tensor sets hold exactly the tensors below, each with the shape its configuration demands:
 * who reads a bundle may trust shapes and presence. Linear weights are [out, in]. Float tensors are
 * F32, F16 or BF16 (mixed sets occur).
 *
 * llm_tensors        embed_tokens.weight [vocab,d]
 *                    layers.{i}.input_layernorm.weight, .post_attention_layernorm.weight [d]
 *                    layers.{i}.self_attn.{q,k,v,o}_proj.weight
 *                    layers.{i}.mlp.{gate,up,down}_proj.weight
 *                    norm.weight [d]
 * vision_tensors     OPENAI: vision_model.embeddings.class_embedding [W],
 *                    vision_model.embeddings.patch_embedding.weight [W,3,P,P],
 *                    vision_model.embeddings.position_embedding.weight [N+1,W],
 *                    vision_model.pre_layrnorm.*, vision_model.post_layernorm.* [W],
 *                    vision_model.encoder.layers.{i}.layer_norm1.*, .layer_norm2.*,
 *                    .self_attn.{q,k,v,out}_proj.*, .mlp.fc1.*, .mlp.fc2.*
 *                    EVA02: visual.cls_token [W], visual.pos_embed [N+1,W],
 *                    visual.patch_embed.proj.*, visual.norm.*, visual.blocks.{i}.norm1.*, .norm2.*,
 *                    .attn.q_proj.*, .attn.k_proj.weight, .attn.v_proj.*, .attn.inner_attn_ln.*,
 *                    .attn.proj.*, .mlp.w1.*, .mlp.w2.*, .mlp.ffn_ln.*, .mlp.w3.*
 *                    SIGLIP2: visual.trunk.pos_embed [N,W], visual.trunk.patch_embed.proj.*,
 *                    visual.trunk.norm.*, visual.trunk.blocks.{i}.norm1.*, .attn.qkv.* ([3W,W]),
 *                    .attn.proj.*, .norm2.*, .mlp.fc1.*, .mlp.fc2.*, visual.trunk.attn_pool.latent
 *                    [W], .q.*, .kv.* ([2W,W], k first), .proj.*, .norm.*, .mlp.fc1.*, .mlp.fc2.*
 * head_tensors       text_adapter.adaptor.{b}.ln.*, .fn.0.* ([2d,d]), .fn.3.* ([d,2d]),
 *                    text_adapter.adaptor.{blocks}.* [d], text_adapter.adaptor.{blocks+1}.*
 * ([E,d]); visual_projection.weight [E,W] (and .bias [E]); never quantised below BF16
 *
 * A bundle stored as int8 keeps a Linear of a trunk as X.weight I8 [out,in] with X.weight_scale F32
 * [out]: row r stands for weight[r,:] * scale[r]. Every other tensor stays a float. Whether a given
 * Linear is int8 is told by its dtype alone (a few may stay BF16). */
#ifndef L2C_BUNDLE_H
#define L2C_BUNDLE_H

#include "encoders/config.h"
#include "encoders/encoders.h"
#include "encoders/tensors.h"
#include "encoders/tokenizer.h"

typedef struct l2c_bundle {
    char name[128];          /* "l2c-mini", or the directory's name */
    l2c_precision precision; /* of an imported bundle; AUTO for a directory in original layout */
    bool has_vision, has_llm, has_adapter;
    l2c_vision_config vision;
    l2c_llm_config llm;
    l2c_heads_config heads; /* widths are 0 where the part is absent */
    l2c_tensors vision_tensors, llm_tensors, head_tensors;
    l2c_tokenizer *tokenizer; /* NULL without an LLM */
    float logit_scale;        /* the stored logarithm; ln(1/0.07) where the file has none */
    l2c_hash text_trunk, image_trunk, heads_hash;
    uint64_t parameters, weights_bytes;
} l2c_bundle;

/* path NULL or "": the built-in model. Otherwise a bundle made by l2c_import, or a directory as in
 * l2c_model_options, or a single vision file. Files stay mapped until close. E_NOTFOUND, E_FORMAT,
 * E_MISMATCH (says which parts pair), E_UNSUPPORTED, E_NOMEM; weights that are not finite are
 * E_FORMAT and named. */
l2cdb_status l2c_bundle_open(l2c_bundle **out, const char *path, l2cdb_error *err);
/* Parts from different places, as import takes them; any may be NULL, not both. `lora` is merged
 * into the LLM (the merged matrices are held in memory). */
l2cdb_status l2c_bundle_open_parts(l2c_bundle **out, const char *vision, const char *llm,
                                   const char *lora, l2cdb_error *err);
void l2c_bundle_close(l2c_bundle *b);

/* The tensor of a formatted name; NULL if absent (optional biases, weight_scale). */
const l2c_tensor *l2c_bundle_get(const l2c_tensors *s, const char *fmt, ...) L2CDB_PRINTF(2, 3);

#endif
