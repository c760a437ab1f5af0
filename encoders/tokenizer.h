/* The inside of the tokenizer: opening from memory, and the text template of LLM2CLIP.
 *
 * The door (encoders.h) has l2c_tokenizer_open, _close and _encode. A tokenizer is immutable once
 * opened; any thread may use it. */
#ifndef L2C_TOKENIZER_H
#define L2C_TOKENIZER_H

#include "encoders/encoders.h"

#define L2C_TOKENS_MAX 512

/* From the n bytes of a tokenizer.json (copied as needed). `what` names it in messages. */
l2cdb_status l2c_tokenizer_read(l2c_tokenizer **out, const char *json, size_t n, const char *what,
                                l2cdb_error *err);
/* The compiled form: the same tokenizer as tables that are mapped, not parsed (9 MB of JSON take
 * 280 ms, this 5). Written by import beside tokenizer.json; little-endian machines only. */
l2cdb_status l2c_tokenizer_save(const l2c_tokenizer *t, l2c_buf *out, l2cdb_error *err);
/* From n bytes at an address divisible by 8, which the caller keeps valid until close. E_VERSION
 * for another layout (then read the JSON), E_CORRUPT for damage. */
l2cdb_status l2c_tokenizer_load(l2c_tokenizer **out, const void *bytes, size_t n, const char *what,
                                l2cdb_error *err);
/* The same from a file, which stays mapped. */
l2cdb_status l2c_tokenizer_load_file(l2c_tokenizer **out, const char *path, l2cdb_error *err);
/* Number of ids: the greatest id plus one. */
size_t l2c_tokenizer_vocab(const l2c_tokenizer *t);
/* True if the three chat tokens exist, so that l2c_prompt_encode can build the frame. */
bool l2c_tokenizer_has_template(const l2c_tokenizer *t);
/* What prompt.c builds the frame from; borrowed. */
typedef struct l2c_tokenizer_frame {
    const int32_t *prefix; /* what the template puts before a text: BOS, or nothing */
    size_t prefix_count;
    int32_t start_header, end_header, eot; /* -1 where the file has no such token */
} l2c_tokenizer_frame;
l2c_tokenizer_frame l2c_tokenizer_get_frame(const l2c_tokenizer *t);
/* Hash of everything that decides ids. */
l2c_hash l2c_tokenizer_fingerprint(const l2c_tokenizer *t);

/* The ids the LLM sees for one text (spec 3.1, 3.2): BOS where the file has one, frame, text, eot;
 * cut to L2C_TOKENS_MAX. The last *pooled of the *count ids are averaged.
 *   ids  int32 [L2C_TOKENS_MAX]
 * flags: L2C_TEXT_TRUSTED, or 0 (literal special tokens and separators are plain bytes).
 * E_INVALID for bad UTF-8 (offset set) or a text that pools nothing. */
l2cdb_status l2c_prompt_encode(const l2c_tokenizer *t, int32_t ids[L2C_TOKENS_MAX], size_t *count,
                               size_t *pooled, const char *text, size_t n, unsigned flags,
                               l2cdb_error *err);

#endif
