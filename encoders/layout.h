/* From whatever a checkpoint calls its tensors to the canonical sets of bundle.h. Private to
 * bundle.c, bundle_file.c and import.c. `what` names the part in messages. */
#ifndef L2C_LAYOUT_H
#define L2C_LAYOUT_H

#include "encoders/bundle.h"

/* The JSON files beside the weights of a vision part; NULL where there is none. */
typedef struct l2c_layout_json {
    const char *config, *pixels;
    size_t config_bytes, pixels_bytes;
    const char *config_what, *pixels_what;
} l2c_layout_json;

/* b->llm is filled already. Fills b->llm_tensors, which takes over the memory of `source`. */
l2cdb_status l2c_layout_take_llm(l2c_bundle *b, l2c_tensors *source, const char *what,
                                 l2cdb_error *err);
/* True if the tensors hold a tower of a known layout. */
bool l2c_layout_is_vision(const l2c_tensors *source);
/* Finds the layout (A to D), fills b->vision, b->heads, b->logit_scale and both sets; the vision
 * set takes over the memory of `source`. */
l2cdb_status l2c_layout_take_vision(l2c_bundle *b, l2c_tensors *source, const l2c_layout_json *json,
                                    const char *what, l2cdb_error *err);
/* The parts of an imported bundle: canonical names, configurations known, int8 allowed. */
l2cdb_status l2c_layout_take_stored(l2c_bundle *b, l2c_tensors *llm, l2c_tensors *vision,
                                    l2c_tensors *heads, const char *what, l2cdb_error *err);

/* Ids fit the embedding, and the chat frame can be built. */
l2cdb_status l2c_layout_check_tokenizer(const l2c_bundle *b, const char *what, l2cdb_error *err);
/* Adapter and LLM fit together. `has_lora`: the LLM is about to be adapted. */
l2cdb_status l2c_layout_check_pair(const l2c_bundle *b, bool has_lora, l2cdb_error *err);
/* Every value finite (by name), fingerprints, totals. */
l2cdb_status l2c_layout_finish(l2c_bundle *b, l2cdb_error *err);
/* Totals alone, for a bundle whose fingerprints are stored. */
void l2c_layout_count(l2c_bundle *b);

/* The hash that a set contributes to a fingerprint, tensor by tensor in the order of names; import
 * feeds it while it writes. */
void l2c_layout_hash_tensor(l2c_hasher *h, const l2c_tensor *t);
void l2c_layout_hash_llm(l2c_hasher *h, const l2c_bundle *b);
void l2c_layout_hash_vision(l2c_hasher *h, const l2c_bundle *b);
void l2c_layout_hash_heads(l2c_hasher *h, const l2c_bundle *b);

#endif
