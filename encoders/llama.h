/* The LLM as an encoder: token ids in, one mean-pooled vector a text out. No causal mask, no cache,
 * no output head. Source: spec 3.3–3.6. */
#ifndef L2C_LLAMA_H
#define L2C_LLAMA_H

#include "encoders/blocks.h"
#include "encoders/config.h"

typedef struct l2c_llama {
    l2c_llm_config config;
    l2c_blocks blocks;
    l2c_rope rope;
    const l2c_tensor *embeddings; /* [vocab, d]; stays where it is mapped, read by row */
    l2c_norm last;
} l2c_llama;

/* `set` must outlive the llama. E_FORMAT, E_NOMEM, E_INTERNAL; needs fini on every outcome. */
l2cdb_status l2c_llama_init(l2c_llama *m, const l2c_llm_config *c, const l2c_tensors *set,
                            size_t tokens_max, l2c_precision precision, l2cdb_error *err);
void l2c_llama_fini(l2c_llama *m);

/* n texts, concatenated: ids int32 [offset[n]], offset [n+1], pooled [n] (≥ 1: the last that many
 * ids of each text are averaged) → out f32 [n, d]. Memory grows with offset[n]: the caller cuts.
 * E_INVALID for an id outside of the vocabulary. */
l2cdb_status l2c_llama_features(const l2c_llama *m, float *out, const int32_t *ids,
                                const size_t *offset, const size_t *pooled, size_t n,
                                l2c_workspace *ws, l2cdb_error *err);

#endif
