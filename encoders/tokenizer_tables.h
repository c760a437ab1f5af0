/* The inside of a tokenizer, for tokenizer.c and tokenizer_file.c. */
#ifndef L2C_TOKENIZER_TABLES_H
#define L2C_TOKENIZER_TABLES_H

#include "encoders/tokenizer.h"
#include "engine/base/file.h"

#define L2C_TOKENIZER_PREFIX_MAX 8

typedef struct l2c_word {
    uint32_t at;     /* in `bytes` */
    uint32_t length; /* 0: the slot is free */
    int32_t id;
} l2c_word;

typedef struct l2c_merge {
    int32_t left, right;
    int32_t id;    /* of the result */
    uint32_t rank; /* UINT32_MAX: the slot is free */
} l2c_merge;

typedef struct l2c_added {
    const char *content;
    size_t n;
    int32_t id;
    bool special, normalized;
} l2c_added;

struct l2c_tokenizer {
    l2c_arena arena;   /* contents of added tokens */
    l2c_buf owned;     /* the words, if they were read from JSON */
    l2c_map map;       /* the file they lie in, if it was compiled and this tokenizer opened it */
    bool borrowed;     /* words and merges belong to the map or to the caller */
    const char *bytes; /* all words, one after another */
    size_t bytes_count;
    l2c_word *words; /* open addressing, a power of two */
    size_t words_mask;
    l2c_merge *merges;
    size_t merges_mask;
    int32_t byte_ids[256];
    l2c_added *added; /* longest first */
    size_t added_count;
    bool added_first[256]; /* some added token begins with this byte */
    bool added_normalized; /* some are matched after normalisation */
    size_t vocab;          /* greatest id + 1 */
    bool nfc, ignore_merges, prefix_space;
    int32_t prefix[L2C_TOKENIZER_PREFIX_MAX]; /* BOS */
    size_t prefix_count;
    int32_t start_header, end_header, eot; /* -1 if absent */
    const char *rule;                      /* one of the known ones */
    struct pcre2_real_code_8 *regex;
    l2c_hash fingerprint;
};

/* The known rule of this text, or NULL. */
const char *l2c_tokenizer_find_rule(const char *text);
/* What follows from the tables: the regex, the ids of the frame. */
l2cdb_status l2c_tokenizer_ready(l2c_tokenizer *t, l2cdb_error *err);

#endif
