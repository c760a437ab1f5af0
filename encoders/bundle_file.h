/* The directory that import writes: bundle.json beside llm.safetensors, vision.safetensors,
 * heads.safetensors, tokenizer.json and its compiled form tokenizer.bin. Private to bundle.c and
 * import.c.
 *
 * Tensors stand under the canonical names of bundle.h and shapes are checked again when it is
 * opened; values are not read, the fingerprints stand in bundle.json. */
#ifndef L2C_BUNDLE_FILE_H
#define L2C_BUNDLE_FILE_H

#include "encoders/bundle.h"

#define L2C_BUNDLE_VERSION 1

/* True if `path` is a directory with a bundle.json. */
bool l2c_bundle_file_is(const char *path);
/* Fills a fresh bundle. E_VERSION for a newer manifest. */
l2cdb_status l2c_bundle_file_open(l2c_bundle *b, const char *path, l2cdb_error *err);
/* l2c_bundle_open_parts without reading values: no fingerprints, nothing checked for NaN, no LoRA
 * merged (`has_lora` only says that one will be). */
l2cdb_status l2c_bundle_load_parts(l2c_bundle **out, const char *vision, const char *llm,
                                   bool has_lora, l2cdb_error *err);
/* The manifest of `b`, appended to `out`. */
void l2c_bundle_file_manifest(l2c_buf *out, const l2c_bundle *b);

#endif
