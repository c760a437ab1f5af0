/* From a caption to the ids that the LLM reads: LLM2CLIP's chat frame and its pooling count.
 *
 * The reference builds a string, "!@#$%^&*()" + text in a chat template, splits it again at that
 * separator and tokenises the halves. Trusted texts follow it literally, corner cases included.
 * Untrusted ones (the default: captions and queries come from anywhere) get the same ids for plain
 * text, but a literal special token or separator in them is only characters.
 * Source: design notes 3.1, 3.2; llm2vec/llm2vec.py of McGill-NLP/llm2vec and microsoft/LLM2CLIP.
 */
#include <string.h>

#include "encoders/tokenizer.h"
#include "engine/base/utf8.h"

static const char separator[] = "!@#$%^&*()";
static const char frame_start[] = "<|start_header_id|>user<|end_header_id|>\n\n";
static const char frame_end[] = "<|eot_id|>";

/* Python's str.strip set: Unicode White_Space and U+001C to U+001F. */
static bool is_python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Length without trailing white space. Leading space stays: in the reference the separator stands
 * before it. */
static size_t strip_end(const char *s, size_t n) {
    while (n > 0) {
        size_t start = n - 1;
        while (start > 0 && ((unsigned char)s[start] & 0xc0) == 0x80) {
            start--;
        }
        uint32_t code;
        if (l2c_utf8_decode(s + start, n - start, &code) == 0 || !is_python_space(code)) {
            break;
        }
        n = start;
    }
    return n;
}

typedef struct builder {
    const l2c_tokenizer *t;
    int32_t *ids;
    size_t count; /* may exceed L2C_TOKENS_MAX; ids past it are dropped */
    l2cdb_error *err;
} builder;

static void put(builder *b, int32_t id) {
    if (b->count < L2C_TOKENS_MAX) {
        b->ids[b->count] = id;
    }
    b->count++;
}

static l2cdb_status put_text(builder *b, const char *text, size_t n, unsigned flags) {
    size_t used = b->count < L2C_TOKENS_MAX ? b->count : L2C_TOKENS_MAX, more;
    l2cdb_status rc = l2c_tokenizer_encode(b->t, b->ids + used, L2C_TOKENS_MAX - used, &more, text,
                                           n, flags, b->err);
    b->count += more;
    return rc;
}

static l2cdb_status count_text(const builder *b, size_t *count, const char *text, size_t n,
                               unsigned flags) {
    return l2c_tokenizer_encode(b->t, NULL, 0, count, text, n, flags, b->err);
}

static l2cdb_status build_untrusted(builder *b, size_t *pooled, const char *text, size_t n) {
    l2c_tokenizer_frame frame = l2c_tokenizer_get_frame(b->t);
    l2c_buf body;
    l2c_buf_init(&body);
    l2c_buf_puts(&body, "\n\n");
    l2c_buf_append(&body, text, n);
    if (body.failed) {
        l2c_buf_fini(&body);
        return l2c_fail_nomem(b->err, n);
    }
    put(b, frame.start_header);
    l2cdb_status rc = put_text(b, "user", 4, 0);
    if (rc == L2CDB_OK) {
        put(b, frame.end_header);
        rc = put_text(b, body.data, body.size, 0);
    }
    if (rc == L2CDB_OK) {
        put(b, frame.eot);
        rc = count_text(b, pooled, text, n, 0);
        *pooled += 1;
    }
    l2c_buf_fini(&body);
    return rc;
}

/* Where the next separator begins at or after `at`; n if there is none. A text may hold NULs. */
static size_t find_separator(const char *s, size_t n, size_t at) {
    size_t m = strlen(separator);
    for (; at + m <= n; at++) {
        if (s[at] == separator[0] && memcmp(s + at, separator, m) == 0) {
            return at;
        }
    }
    return n;
}

/* The whole string as the reference makes it: separators cut out, the text between the first two of
 * them counted. */
static l2cdb_status build_trusted(builder *b, size_t *pooled, const char *text, size_t n) {
    l2c_buf whole, doc;
    l2c_buf_init(&whole);
    l2c_buf_init(&doc);
    l2c_buf_append(&doc, text, n);
    l2c_buf_puts(&doc, frame_end);
    l2c_buf_puts(&whole, frame_start);
    size_t doc_bytes = doc.size, at = 0;
    bool first = true;
    while (!doc.failed && at < doc.size) {
        size_t end = find_separator(doc.data, doc.size, at);
        l2c_buf_append(&whole, doc.data + at, end - at);
        if (first) {
            doc_bytes = end;
            first = false;
        }
        at = end < doc.size ? end + strlen(separator) : end;
    }
    l2cdb_status rc = doc.failed || whole.failed
                          ? l2c_fail_nomem(b->err, n)
                          : put_text(b, whole.data, whole.size, L2C_TEXT_TRUSTED);
    if (rc == L2CDB_OK) {
        rc = count_text(b, pooled, doc.data, doc_bytes, L2C_TEXT_TRUSTED);
    }
    l2c_buf_fini(&doc);
    l2c_buf_fini(&whole);
    return rc;
}

l2cdb_status l2c_prompt_encode(const l2c_tokenizer *t, int32_t ids[L2C_TOKENS_MAX], size_t *count,
                               size_t *pooled, const char *text, size_t n, unsigned flags,
                               l2cdb_error *err) {
    size_t bad;
    *count = *pooled = 0;
    if (!l2c_utf8_valid(text, n, &bad)) {
        l2c_fail(err, L2CDB_E_INVALID, "the text is not UTF-8 at byte %zu", bad);
        if (err != NULL) {
            err->offset = (int64_t)bad;
        }
        return L2CDB_E_INVALID;
    }
    if (!l2c_tokenizer_has_template(t)) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "this tokenizer lacks the tokens that frame a text");
    }
    l2c_tokenizer_frame frame = l2c_tokenizer_get_frame(t);
    builder b = { t, ids, 0, err };
    for (size_t i = 0; i < frame.prefix_count; i++) {
        put(&b, frame.prefix[i]);
    }
    n = strip_end(text, n);
    l2cdb_status rc = (flags & L2C_TEXT_TRUSTED) != 0 ? build_trusted(&b, pooled, text, n)
                                                      : build_untrusted(&b, pooled, text, n);
    if (rc != L2CDB_OK) {
        return rc;
    }
    *count = b.count < L2C_TOKENS_MAX ? b.count : L2C_TOKENS_MAX;
    *pooled = *pooled < *count ? *pooled : *count;
    if (*pooled == 0) {
        l2c_fail(err, L2CDB_E_INVALID,
                 "the text begins with the separator %s, so that nothing is left to pool",
                 separator);
        return l2c_hint(err, "encode it as untrusted text");
    }
    return L2CDB_OK;
}
