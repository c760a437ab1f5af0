/* PEFT LoRA adapters, merged into the Linear weights of an LLM: W += s B A with s = alpha/r, or
 * alpha/sqrt(r) for rank-stabilised ones. Source: design notes 1.1; Hu et al. 2021.
 *
 *   l2c_lora *lora;
 *   l2c_lora_open(&lora, dir, &bundle->llm_tensors, &err);
 *   l2c_lora_merge(lora, name, w, 0, out);        // w f32 [out,in]
 *   l2c_lora_close(lora); */
#ifndef L2C_LORA_H
#define L2C_LORA_H

#include "encoders/bundle.h"

typedef struct l2c_lora l2c_lora;

/* Reads adapter_config.json and adapter_model.safetensors of `dir` and checks every pair against
 * the base: E_FORMAT, E_MISMATCH (a layer or width the base lacks), E_UNSUPPORTED (DoRA, other PEFT
 * kinds, anything that would be ignored in silence). */
l2cdb_status l2c_lora_open(l2c_lora **out, const char *dir, const l2c_tensors *base,
                           l2cdb_error *err);
void l2c_lora_close(l2c_lora *l);
/* True if the adapter changes the tensor of this canonical name. */
bool l2c_lora_changes(const l2c_lora *l, const char *name);
/* w f32 [n,in] are rows [first, first+n) of the weight of that name: w += s B A, in f32. Does
 * nothing if the adapter leaves `name` alone. */
void l2c_lora_merge(const l2c_lora *l, const char *name, float *w, size_t first, size_t n);
/* Opens, merges into b->llm_tensors (new memory for the changed ones, in the base's own type, as
 * the reference merges) and closes. */
l2cdb_status l2c_lora_apply(l2c_bundle *b, const char *dir, l2cdb_error *err);

#endif
