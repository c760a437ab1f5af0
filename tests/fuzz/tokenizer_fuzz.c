/* Any bytes as a tokenizer.json; one that opens must encode whatever it is given into ids of its
 * own. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "encoders/tokenizer.h"

static const char text[] = "\n\n A man's 12345 dogs!  <|eot_id|> \xc3\xa9\xcc\x81 "
                           "\xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x98\x80\t\r\n  ";

/* Encodes with t, whatever it is. */
static void use(const l2c_tokenizer *t) {
    l2cdb_error err;
    int32_t ids[L2C_TOKENS_MAX];
    size_t count, pooled, vocab = l2c_tokenizer_vocab(t);
    for (unsigned flags = 0; flags < 2; flags++) {
        FUZZ_CHECK(l2c_tokenizer_encode(t, ids, L2C_TOKENS_MAX, &count, text, sizeof text - 1,
                                        flags, &err) == L2CDB_OK);
        FUZZ_CHECK(count > 0 && count <= L2C_TOKENS_MAX);
        for (size_t i = 0; i < count; i++) {
            FUZZ_CHECK(ids[i] >= 0 && (size_t)ids[i] < vocab);
        }
        if (l2c_tokenizer_has_template(t)) {
            FUZZ_CHECK(l2c_prompt_encode(t, ids, &count, &pooled, text, sizeof text - 1, flags,
                                         &err) == L2CDB_OK);
            FUZZ_CHECK(pooled > 0 && pooled <= count);
        }
    }
}

/* The compiled form with some bytes changed; where they lie depends on the input alone. In a
 * libFuzzer build the hash is not checked, so that the bounds must hold by themselves. */
static void use_compiled(const l2c_tokenizer *t, const uint8_t *data, size_t n) {
    l2cdb_error err;
    l2c_tokenizer *u;
    l2c_buf bytes;
    l2c_buf_init(&bytes);
    FUZZ_CHECK(l2c_tokenizer_save(t, &bytes, &err) == L2CDB_OK);
    FUZZ_CHECK(l2c_tokenizer_load(&u, bytes.data, bytes.size, "fuzz", &err) == L2CDB_OK);
    use(u);
    l2c_tokenizer_close(u);
    uint32_t state = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        state = state * 16777619u ^ data[i];
    }
    for (int i = 0; i < 4; i++) {
        state = state * 1664525u + 1013904223u;
        bytes.data[(state >> 4) % bytes.size] = (char)(state >> 24);
    }
    if (l2c_tokenizer_load(&u, bytes.data, bytes.size, "fuzz", &err) == L2CDB_OK) {
        size_t count;
        (void)l2c_tokenizer_encode(u, NULL, 0, &count, text, sizeof text - 1, 1, &err);
        l2c_tokenizer_close(u);
    }
    l2c_buf_fini(&bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    l2c_tokenizer *t;
    l2cdb_error err;
    if (l2c_tokenizer_read(&t, (const char *)data, n, "fuzz", &err) != L2CDB_OK) {
        FUZZ_CHECK(t == NULL && err.message[0] != '\0');
        return 0;
    }
    use(t);
    use_compiled(t, data, n);
    l2c_tokenizer_close(t);
    return 0;
}
