/* Byte-level BPE from a tokenizer.json, id for id what Hugging Face's library gives.
 *
 * Steps (design notes 7.1): cut out added tokens, normalise (nothing or NFC), split by the file's
 * own regex, then merge bytes by rank inside every piece. The alphabet that such files write bytes
 * in (space as "Ġ") is undone once when the file is read, so that encoding works on plain bytes.
 *
 * Regex engines differ in small things, and a rule that is taken almost right changes ids in
 * silence. Therefore the rules are known by their text: those listed below were compared with the
 * reference, string by string, and anything else is refused, as is every other setting of the file
 * that would matter and is not built. They run in PCRE2; its \s is replaced by the exact set of
 * Unicode White_Space, because PCRE2 counts U+180E as a space and the reference does not.
 *
 * Source: github.com/huggingface/tokenizers, models/bpe and pre_tokenizers/byte_level (behaviour);
 * Sennrich et al. 2016 (BPE). */
#include "encoders/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "encoders/tokenizer_tables.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/utf8.h"

#define ID_MAX (1u << 24)
#define ADDED_MAX 65536
#define FILE_BYTES_MAX (64u << 20) /* the largest in use have 35 MB */
#define PROBES_MAX 4096            /* of an insertion; a file that needs more was made to */

static const char gpt2_rule[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static const char *const known_rules[] = {
    gpt2_rule,
    // Llama 3
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    // Qwen 2, 2.5, 3
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

typedef l2c_word word;
typedef l2c_merge merge;
typedef l2c_added added;

/* ---- Tables ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return x;
}

static uint64_t hash_bytes(const char *s, size_t n) {
    uint64_t h = 0x9e3779b97f4a7c15u ^ n, block;
    while (n >= 8) {
        memcpy(&block, s, 8);
        h = mix(h ^ block);
        s += 8;
        n -= 8;
    }
    block = 0;
    memcpy(&block, s, n);
    return mix(mix(h ^ block) + n);
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    return mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
}

/* Power of two with at most two thirds of the slots in use. */
static size_t slots_for(size_t count) {
    size_t slots = 64;
    while (slots < count + count / 2) {
        slots *= 2;
    }
    return slots;
}

static int32_t find_word(const l2c_tokenizer *t, const char *s, size_t n) {
    for (size_t i = hash_bytes(s, n) & t->words_mask; t->words[i].length != 0;
         i = (i + 1) & t->words_mask) {
        const word *w = &t->words[i];
        if (w->length == n && memcmp(t->bytes + w->at, s, n) == 0) {
            return w->id;
        }
    }
    return -1;
}

static const merge *find_merge(const l2c_tokenizer *t, int32_t left, int32_t right) {
    for (size_t i = hash_pair(left, right) & t->merges_mask; t->merges[i].rank != UINT32_MAX;
         i = (i + 1) & t->merges_mask) {
        if (t->merges[i].left == left && t->merges[i].right == right) {
            return &t->merges[i];
        }
    }
    return NULL;
}

/* ---- Reading the file ------------------------------------------------------------------------ */

typedef struct reader {
    l2c_tokenizer *t;
    const char *what;
    l2cdb_error *err;
    uint8_t *id_taken; /* a bit for every id */
    size_t id_taken_bytes;
    l2c_hasher *hasher;
} reader;

static l2cdb_status broken(reader *r, const char *why, const char *which) {
    return l2c_fail(r->err, L2CDB_E_FORMAT, "%s: %s%s%.80s%s", r->what, why,
                    which != NULL ? " \"" : "", which != NULL ? which : "",
                    which != NULL ? "\"" : "");
}

static l2cdb_status unsupported(reader *r, const char *why, const char *which) {
    l2c_fail(r->err, L2CDB_E_UNSUPPORTED, "%s: %s%s%.80s%s", r->what, why,
             which != NULL ? " \"" : "", which != NULL ? which : "", which != NULL ? "\"" : "");
    return l2c_hint(r->err, "only byte-level BPE as in GPT-2, Llama 3 and Qwen is read, because "
                            "anything else would give other ids than the reference");
}

/* Byte that a character of the byte-level alphabet stands for, or -1. */
static int byte_of(uint32_t code) {
    if ((code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code <= 0xac) ||
        (code >= 0xae && code <= 0xff)) {
        return (int)code;
    }
    // The other 68 bytes in increasing order, from U+0100.
    if (code >= 0x100 && code < 0x121) {
        return (int)(code - 0x100);
    }
    if (code >= 0x121 && code < 0x143) {
        return (int)(code - 0x121 + 0x7f);
    }
    return code == 0x143 ? 0xad : -1;
}

/* Undoes the alphabet: out has room for n bytes. False if s is not written in it. */
static bool decode_alphabet(char *out, size_t *out_n, const char *s, size_t n) {
    *out_n = 0;
    while (n > 0) {
        uint32_t code = 0;
        size_t k = l2c_utf8_decode(s, n, &code);
        int byte = k > 0 ? byte_of(code) : -1;
        if (byte < 0) {
            return false;
        }
        out[(*out_n)++] = (char)byte;
        s += k;
        n -= k;
    }
    return true;
}

static bool take_id(reader *r, size_t id) {
    uint8_t bit = (uint8_t)(1u << (id & 7));
    bool fresh = (r->id_taken[id >> 3] & bit) == 0;
    r->id_taken[id >> 3] |= bit;
    if (id >= r->t->vocab) {
        r->t->vocab = id + 1;
    }
    return fresh;
}

static l2cdb_status add_word(reader *r, const char *content, size_t n, const json_t *value,
                             l2c_buf *scratch) {
    l2c_tokenizer *t = r->t;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= (json_int_t)ID_MAX) {
        return broken(r, "expected a whole number as the id of token", content);
    }
    int32_t id = (int32_t)json_integer_value(value);
    if (!take_id(r, (size_t)id)) {
        return broken(r, "another token has the same id as", content);
    }
    size_t bytes_n;
    l2c_buf_clear(scratch);
    if (!l2c_buf_reserve(scratch, n + 1)) {
        return l2c_fail_nomem(r->err, n);
    }
    if (n == 0 || !decode_alphabet(scratch->data, &bytes_n, content, n)) {
        return L2CDB_OK; // out of reach of any text, as in the reference
    }
    size_t i = hash_bytes(scratch->data, bytes_n) & t->words_mask, probes = 0;
    while (t->words[i].length != 0) {
        if (++probes > PROBES_MAX) {
            return broken(r, "its tokens were made to collide", NULL);
        }
        i = (i + 1) & t->words_mask;
    }
    t->words[i] = (word){ (uint32_t)t->owned.size, (uint32_t)bytes_n, id };
    l2c_buf_append(&t->owned, scratch->data, bytes_n);
    t->bytes = t->owned.data;
    t->bytes_count = t->owned.size;
    if (bytes_n == 1) {
        t->byte_ids[(uint8_t)scratch->data[0]] = id;
    }
    return t->owned.failed ? l2c_fail_nomem(r->err, bytes_n) : L2CDB_OK;
}

static l2cdb_status read_vocab(reader *r, const json_t *vocab) {
    l2c_tokenizer *t = r->t;
    if (!json_is_object(vocab)) {
        return broken(r, "expected \"model\".\"vocab\" to be an object", NULL);
    }
    size_t slots = slots_for(json_object_size(vocab));
    t->words = l2c_calloc(slots, sizeof *t->words);
    if (t->words == NULL) {
        return l2c_fail_nomem(r->err, slots * sizeof *t->words);
    }
    t->words_mask = slots - 1;
    for (int i = 0; i < 256; i++) {
        t->byte_ids[i] = -1;
    }
    l2c_buf scratch;
    l2c_buf_init(&scratch);
    l2cdb_status rc = L2CDB_OK;
    void *it = json_object_iter((json_t *)(uintptr_t)vocab);
    while (rc == L2CDB_OK && it != NULL) {
        const char *key = json_object_iter_key(it);
        rc = add_word(r, key, json_object_iter_key_len(it), json_object_iter_value(it), &scratch);
        it = json_object_iter_next((json_t *)(uintptr_t)vocab, it);
    }
    l2c_buf_fini(&scratch);
    for (int i = 0; rc == L2CDB_OK && i < 256; i++) {
        if (t->byte_ids[i] < 0) {
            char hex[8];
            snprintf(hex, sizeof hex, "0x%02x", i);
            rc = broken(r, "the vocabulary lacks the byte", hex);
        }
    }
    return rc;
}

/* The two halves of a merge, which is "a b" or ["a", "b"]. */
static bool split_merge(const json_t *m, const char *half[2], size_t n[2]) {
    if (json_is_string(m)) {
        const char *s = json_string_value(m);
        size_t length = json_string_length(m);
        const char *space = memchr(s, ' ', length);
        if (space == NULL || memchr(space + 1, ' ', length - (size_t)(space - s) - 1) != NULL) {
            return false;
        }
        half[0] = s;
        n[0] = (size_t)(space - s);
        half[1] = space + 1;
        n[1] = length - n[0] - 1;
        return n[0] > 0 && n[1] > 0;
    }
    if (!json_is_array(m) || json_array_size(m) != 2) {
        return false;
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *part = json_array_get(m, i);
        half[i] = json_string_value(part);
        n[i] = json_string_length(part);
        if (half[i] == NULL || n[i] == 0) {
            return false;
        }
    }
    return true;
}

static l2cdb_status add_merge(reader *r, const json_t *m, uint32_t rank, l2c_buf *scratch) {
    l2c_tokenizer *t = r->t;
    const char *half[2];
    size_t n[2], bytes_n[2];
    char text[96];
    snprintf(text, sizeof text, "merge %u", rank);
    if (!split_merge(m, half, n)) {
        return broken(r, "expected two tokens in", text);
    }
    l2c_buf_clear(scratch);
    if (!l2c_buf_reserve(scratch, n[0] + n[1] + 1)) {
        return l2c_fail_nomem(r->err, n[0] + n[1]);
    }
    // Side by side, so that the result is in place too.
    if (!decode_alphabet(scratch->data, &bytes_n[0], half[0], n[0]) ||
        !decode_alphabet(scratch->data + bytes_n[0], &bytes_n[1], half[1], n[1])) {
        return broken(r, "characters that stand for no byte in", text);
    }
    int32_t left = find_word(t, scratch->data, bytes_n[0]);
    int32_t right = find_word(t, scratch->data + bytes_n[0], bytes_n[1]);
    int32_t id = find_word(t, scratch->data, bytes_n[0] + bytes_n[1]);
    if (left < 0 || right < 0 || id < 0) {
        return broken(r, "the vocabulary lacks a part or the result of", text);
    }
    size_t i = hash_pair(left, right) & t->merges_mask, probes = 0;
    while (t->merges[i].rank != UINT32_MAX &&
           (t->merges[i].left != left || t->merges[i].right != right)) {
        if (++probes > PROBES_MAX) {
            return broken(r, "its merges were made to collide", NULL);
        }
        i = (i + 1) & t->merges_mask;
    }
    // A repeated merge counts where it stands last, as in the reference.
    t->merges[i] = (merge){ left, right, id, rank };
    const int32_t record[3] = { left, right, id };
    l2c_hasher_add(r->hasher, record, sizeof record);
    return L2CDB_OK;
}

static l2cdb_status read_merges(reader *r, const json_t *merges) {
    l2c_tokenizer *t = r->t;
    if (!json_is_array(merges)) {
        return broken(r, "expected \"model\".\"merges\" to be a list", NULL);
    }
    size_t count = json_array_size(merges), slots = slots_for(count);
    t->merges = l2c_alloc(slots, sizeof *t->merges);
    if (t->merges == NULL) {
        return l2c_fail_nomem(r->err, slots * sizeof *t->merges);
    }
    t->merges_mask = slots - 1;
    memset(t->merges, 0xff, slots * sizeof *t->merges);
    l2c_buf scratch;
    l2c_buf_init(&scratch);
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < count; i++) {
        rc = add_merge(r, json_array_get(merges, i), (uint32_t)i, &scratch);
    }
    l2c_buf_fini(&scratch);
    return rc;
}

/* Strings that must be empty or absent. */
static l2cdb_status check_affix(reader *r, const json_t *model, const char *key) {
    const char *value = "";
    l2cdb_status rc = l2c_json_get_string(model, key, &value, false, r->what, r->err);
    return rc == L2CDB_OK && value[0] != '\0' ? unsupported(r, "a value is set for", key) : rc;
}

static l2cdb_status read_model(reader *r, const json_t *model) {
    const char *type = "";
    bool byte_fallback = false;
    double dropout = 0.0;
    l2cdb_status rc;
    if ((rc = l2c_json_get_string(model, "type", &type, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(model, "ignore_merges", &r->t->ignore_merges, false, r->what,
                                r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(model, "byte_fallback", &byte_fallback, false, r->what, r->err)) !=
            L2CDB_OK ||
        (rc = l2c_json_get_double(model, "dropout", &dropout, false, r->what, r->err)) !=
            L2CDB_OK ||
        (rc = check_affix(r, model, "continuing_subword_prefix")) != L2CDB_OK ||
        (rc = check_affix(r, model, "end_of_word_suffix")) != L2CDB_OK) {
        return rc;
    }
    if (strcmp(type, "BPE") != 0) {
        return unsupported(r, "the model is", type);
    }
    if (byte_fallback || dropout != 0.0) {
        return unsupported(r, "byte_fallback or dropout is set", NULL);
    }
    rc = read_vocab(r, json_object_get(model, "vocab"));
    return rc == L2CDB_OK ? read_merges(r, json_object_get(model, "merges")) : rc;
}

/* ---- Added tokens ---------------------------------------------------------------------------- */

static int longest_first(const void *a, const void *b) {
    const added *x = a, *y = b;
    if (x->n != y->n) {
        return x->n > y->n ? -1 : 1;
    }
    return memcmp(x->content, y->content, x->n);
}

static l2cdb_status check_added(reader *r, const json_t *o, added *a) {
    bool strip[3] = { false, false, false };
    static const char *const keys[] = { "lstrip", "rstrip", "single_word" };
    size_t id = 0;
    const char *content = NULL;
    a->normalized = true;
    l2cdb_status rc = l2c_json_get_string(o, "content", &content, true, r->what, r->err);
    for (int i = 0; rc == L2CDB_OK && i < 3; i++) {
        rc = l2c_json_get_bool(o, keys[i], &strip[i], false, r->what, r->err);
    }
    if (rc != L2CDB_OK ||
        (rc = l2c_json_get_size(o, "id", &id, 0, ID_MAX - 1, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "special", &a->special, false, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "normalized", &a->normalized, false, r->what, r->err)) !=
            L2CDB_OK) {
        return rc;
    }
    if (content[0] == '\0') {
        return broken(r, "an added token is empty", NULL);
    }
    if (strip[0] || strip[1] || strip[2]) {
        return unsupported(r, "lstrip, rstrip or single_word is set for the added token", content);
    }
    if (a->normalized && r->t->nfc) {
        return unsupported(r, "an added token is matched after NFC:", content);
    }
    a->n = strlen(content);
    char *copy = l2c_arena_alloc(&r->t->arena, a->n + 1, 1);
    if (copy == NULL) {
        return l2c_fail_nomem(r->err, a->n);
    }
    memcpy(copy, content, a->n + 1);
    a->content = copy;
    a->id = (int32_t)id;
    return L2CDB_OK;
}

static l2cdb_status read_added(reader *r, const json_t *list, const json_t *vocab) {
    l2c_tokenizer *t = r->t;
    if (list == NULL || json_is_null(list)) {
        return L2CDB_OK;
    }
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count > ADDED_MAX) {
        return broken(r, "expected \"added_tokens\" to be a list of at most 65536", NULL);
    }
    t->added = l2c_calloc(count, sizeof *t->added);
    if (t->added == NULL) {
        return l2c_fail_nomem(r->err, count * sizeof *t->added);
    }
    for (size_t i = 0; i < count; i++) {
        added *a = &t->added[i];
        l2cdb_status rc = check_added(r, json_array_get(list, i), a);
        if (rc != L2CDB_OK) {
            return rc;
        }
        // A token that the vocabulary lists as well must have the same id there.
        const json_t *same = json_object_get(vocab, a->content);
        bool listed = json_is_integer(same);
        if (listed ? json_integer_value(same) != a->id : !take_id(r, (size_t)a->id)) {
            return broken(r, "another token has the id of the added token", a->content);
        }
        t->added_count++;
    }
    if (count > 1) {
        qsort(t->added, count, sizeof *t->added, longest_first);
    }
    for (size_t i = 1; i < count; i++) {
        if (longest_first(&t->added[i - 1], &t->added[i]) == 0) {
            return broken(r, "two added tokens are", t->added[i].content);
        }
    }
    return L2CDB_OK;
}

/* ---- Normaliser, pre-tokeniser, post-processor ----------------------------------------------- */

static const char *type_of(const json_t *o) {
    const char *type = json_string_value(json_object_get(o, "type"));
    return type != NULL ? type : "(no type)";
}

static l2cdb_status read_normalizer(reader *r, const json_t *o) {
    if (o == NULL || json_is_null(o)) {
        return L2CDB_OK;
    }
    const json_t *list = json_object_get(o, "normalizers");
    if (strcmp(type_of(o), "Sequence") == 0 && json_is_array(list) && json_array_size(list) <= 1) {
        o = json_array_get(list, 0);
        if (o == NULL) {
            return L2CDB_OK;
        }
    }
    r->t->nfc = strcmp(type_of(o), "NFC") == 0;
    return r->t->nfc ? L2CDB_OK : unsupported(r, "the normaliser is", type_of(o));
}

const char *l2c_tokenizer_find_rule(const char *text) {
    for (size_t i = 0; i < sizeof known_rules / sizeof known_rules[0]; i++) {
        if (strcmp(known_rules[i], text) == 0) {
            return known_rules[i];
        }
    }
    return NULL;
}

static l2cdb_status use_rule(reader *r, const char *text) {
    r->t->rule = l2c_tokenizer_find_rule(text);
    return r->t->rule != NULL
               ? L2CDB_OK
               : unsupported(r,
                             "texts are split by a rule that was never compared with the "
                             "reference:",
                             text);
}

static l2cdb_status read_split(reader *r, const json_t *o) {
    const char *behavior = "";
    bool invert = false;
    l2cdb_status rc = l2c_json_get_string(o, "behavior", &behavior, true, r->what, r->err);
    if (rc == L2CDB_OK) {
        rc = l2c_json_get_bool(o, "invert", &invert, false, r->what, r->err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (strcmp(behavior, "Isolated") != 0 || invert) {
        return unsupported(r, "texts are split with the behaviour", invert ? "invert" : behavior);
    }
    const char *regex = json_string_value(json_object_get(json_object_get(o, "pattern"), "Regex"));
    return regex != NULL ? use_rule(r, regex) : unsupported(r, "the split has no regex", NULL);
}

/* `alone`: no split went before it. */
static l2cdb_status read_byte_level(reader *r, const json_t *o, bool alone) {
    bool use_regex = true;
    r->t->prefix_space = true;
    l2cdb_status rc =
        l2c_json_get_bool(o, "add_prefix_space", &r->t->prefix_space, false, r->what, r->err);
    if (rc == L2CDB_OK) {
        rc = l2c_json_get_bool(o, "use_regex", &use_regex, false, r->what, r->err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (use_regex != alone || (r->t->prefix_space && !alone)) {
        return unsupported(r, "this combination of Split and ByteLevel", NULL);
    }
    return use_regex ? use_rule(r, gpt2_rule) : L2CDB_OK;
}

static l2cdb_status read_pre_tokenizer(reader *r, const json_t *o) {
    if (strcmp(type_of(o), "ByteLevel") == 0) {
        return read_byte_level(r, o, true);
    }
    const json_t *list = json_object_get(o, "pretokenizers");
    const json_t *first = json_array_get(list, 0), *second = json_array_get(list, 1);
    if (strcmp(type_of(o), "Sequence") != 0) {
        return unsupported(r, "the pre-tokeniser is", type_of(o));
    }
    if (json_array_size(list) == 1 && strcmp(type_of(first), "ByteLevel") == 0) {
        return read_byte_level(r, first, true);
    }
    if (json_array_size(list) != 2 || strcmp(type_of(first), "Split") != 0 ||
        strcmp(type_of(second), "ByteLevel") != 0) {
        return unsupported(r, "the pre-tokeniser is not a Split followed by ByteLevel", NULL);
    }
    l2cdb_status rc = read_split(r, first);
    return rc == L2CDB_OK ? read_byte_level(r, second, false) : rc;
}

/* TemplateProcessing "single": special tokens, then the text. */
static l2cdb_status read_template(reader *r, const json_t *o) {
    l2c_tokenizer *t = r->t;
    const json_t *single = json_object_get(o, "single");
    const json_t *tokens = json_object_get(o, "special_tokens");
    bool text_seen = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *sequence =
            json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        if (sequence != NULL && strcmp(sequence, "A") == 0 && !text_seen) {
            text_seen = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(special, "id"));
        if (name == NULL) {
            return broken(r, "the template has a piece that is neither a token nor the text", NULL);
        }
        if (text_seen) {
            return unsupported(r, "the template adds after the text", name);
        }
        const json_t *ids = json_object_get(json_object_get(tokens, name), "ids");
        if (!json_is_array(ids) || json_array_size(ids) == 0) {
            return broken(r, "the template does not define", name);
        }
        for (size_t k = 0; k < json_array_size(ids); k++) {
            const json_t *id = json_array_get(ids, k);
            if (!json_is_integer(id) || json_integer_value(id) < 0 ||
                json_integer_value(id) >= (json_int_t)t->vocab ||
                t->prefix_count == L2C_TOKENIZER_PREFIX_MAX) {
                return broken(r, "no token has the id that the template gives to", name);
            }
            t->prefix[t->prefix_count++] = (int32_t)json_integer_value(id);
        }
    }
    return text_seen ? L2CDB_OK : broken(r, "the template leaves out the text", NULL);
}

static l2cdb_status read_post_processor(reader *r, const json_t *o, int depth) {
    if (o == NULL || json_is_null(o) || strcmp(type_of(o), "ByteLevel") == 0) {
        return L2CDB_OK; // ByteLevel changes offsets only
    }
    if (strcmp(type_of(o), "TemplateProcessing") == 0) {
        return r->t->prefix_count == 0 ? read_template(r, o)
                                       : unsupported(r, "there are two templates", NULL);
    }
    const json_t *list = json_object_get(o, "processors");
    if (strcmp(type_of(o), "Sequence") != 0 || !json_is_array(list) || depth > 2) {
        return unsupported(r, "the post-processor is", type_of(o));
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < json_array_size(list); i++) {
        rc = read_post_processor(r, json_array_get(list, i), depth + 1);
    }
    return rc;
}

/* ---- The regex ------------------------------------------------------------------------------- */

#define WHITE_SPACE                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"

/* The rule with \s and \S written out. */
static void spell_out(l2c_buf *out, const char *rule) {
    bool in_class = false;
    for (const char *p = rule; *p != '\0'; p++) {
        if (*p == '\\' && p[1] == 's') {
            l2c_buf_puts(out, in_class ? WHITE_SPACE : "[" WHITE_SPACE "]");
            p++;
        } else if (*p == '\\' && p[1] == 'S') {
            l2c_buf_puts(out, "[^" WHITE_SPACE "]");
            p++;
        } else if (*p == '\\' && p[1] != '\0') {
            l2c_buf_append(out, p, 2);
            p++;
        } else {
            in_class = *p == '[' || (in_class && *p != ']');
            l2c_buf_putc(out, *p);
        }
    }
}

static l2cdb_status compile_rule(l2c_tokenizer *t, l2cdb_error *err) {
    l2c_buf pattern;
    l2c_buf_init(&pattern);
    spell_out(&pattern, t->rule);
    int code = 0;
    PCRE2_SIZE at = 0;
    if (!pattern.failed) {
        t->regex = pcre2_compile((PCRE2_SPTR)pattern.data, pattern.size,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    }
    l2c_buf_fini(&pattern);
    if (t->regex == NULL) {
        return l2c_fail(err, L2CDB_E_NOMEM, "the split rule does not compile (PCRE2 error %d)",
                        code);
    }
    // Without a just-in-time compiler (a hardened kernel, another processor) matching still works.
    (void)pcre2_jit_compile(t->regex, PCRE2_JIT_COMPLETE);
    return L2CDB_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* The words in the order of their ids; merges were hashed as they were read. */
static l2cdb_status hash_words(reader *r) {
    l2c_tokenizer *t = r->t;
    uint32_t *slot_of = l2c_calloc(t->vocab, sizeof *slot_of);
    if (slot_of == NULL) {
        return l2c_fail_nomem(r->err, t->vocab * sizeof *slot_of);
    }
    for (size_t i = 0; i <= t->words_mask; i++) {
        if (t->words[i].length != 0) {
            slot_of[t->words[i].id] = (uint32_t)i + 1;
        }
    }
    for (size_t id = 0; id < t->vocab; id++) {
        if (slot_of[id] != 0) {
            const word *w = &t->words[slot_of[id] - 1];
            l2c_hasher_add(r->hasher, &w->id, sizeof w->id);
            l2c_hasher_add(r->hasher, t->bytes + w->at, w->length);
        }
    }
    l2c_free(slot_of);
    for (size_t i = 0; i < t->added_count; i++) {
        const added *a = &t->added[i];
        const int32_t record[3] = { a->id, a->special, a->normalized };
        l2c_hasher_add(r->hasher, record, sizeof record);
        l2c_hasher_add(r->hasher, a->content, a->n + 1);
    }
    l2c_hasher_add(r->hasher, t->prefix, t->prefix_count * sizeof t->prefix[0]);
    const char settings[4] = { t->nfc, t->ignore_merges, t->prefix_space, (char)t->prefix_count };
    l2c_hasher_add(r->hasher, settings, sizeof settings);
    l2c_hasher_add(r->hasher, t->rule, strlen(t->rule));
    t->fingerprint = l2c_hasher_get(r->hasher);
    return L2CDB_OK;
}

static int32_t find_added(const l2c_tokenizer *t, const char *content) {
    for (size_t i = 0; i < t->added_count; i++) {
        if (strcmp(t->added[i].content, content) == 0) {
            return t->added[i].id;
        }
    }
    return -1;
}

l2cdb_status l2c_tokenizer_ready(l2c_tokenizer *t, l2cdb_error *err) {
    for (size_t i = 0; i < t->added_count; i++) {
        t->added_first[(uint8_t)t->added[i].content[0]] = true;
        t->added_normalized = t->added_normalized || t->added[i].normalized;
    }
    t->start_header = find_added(t, "<|start_header_id|>");
    t->end_header = find_added(t, "<|end_header_id|>");
    t->eot = find_added(t, "<|eot_id|>");
    return compile_rule(t, err);
}

static l2cdb_status read_root(reader *r, const json_t *root) {
    if (!json_is_object(root)) {
        return broken(r, "expected a JSON object", NULL);
    }
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(model)) {
        return broken(r, "expected \"model\" to be an object", NULL);
    }
    r->id_taken = l2c_calloc(ID_MAX / 8, 1);
    r->hasher = l2c_hasher_new();
    if (r->id_taken == NULL || r->hasher == NULL) {
        return l2c_fail_nomem(r->err, ID_MAX / 8);
    }
    l2cdb_status rc;
    if ((rc = read_normalizer(r, json_object_get(root, "normalizer"))) != L2CDB_OK ||
        (rc = read_pre_tokenizer(r, json_object_get(root, "pre_tokenizer"))) != L2CDB_OK ||
        (rc = read_model(r, model)) != L2CDB_OK ||
        (rc = read_added(r, json_object_get(root, "added_tokens"),
                         json_object_get(model, "vocab"))) != L2CDB_OK ||
        (rc = read_post_processor(r, json_object_get(root, "post_processor"), 0)) != L2CDB_OK ||
        (rc = hash_words(r)) != L2CDB_OK) {
        return rc;
    }
    return l2c_tokenizer_ready(r->t, r->err);
}

l2cdb_status l2c_tokenizer_read(l2c_tokenizer **out, const char *json, size_t n, const char *what,
                                l2cdb_error *err) {
    *out = NULL;
    json_t *root;
    l2cdb_status rc = l2c_json_parse(&root, json, n, what, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    reader r = { .t = l2c_calloc(1, sizeof *r.t), .what = what, .err = err };
    if (r.t == NULL) {
        rc = l2c_fail_nomem(err, sizeof *r.t);
    } else {
        l2c_arena_init(&r.t->arena, 0);
        l2c_buf_init(&r.t->owned);
        rc = read_root(&r, root);
    }
    json_decref(root);
    l2c_free(r.id_taken);
    l2c_hasher_free(r.hasher);
    if (rc != L2CDB_OK) {
        l2c_tokenizer_close(r.t);
        return rc;
    }
    *out = r.t;
    return L2CDB_OK;
}

l2cdb_status l2c_tokenizer_open(l2c_tokenizer **out, const char *path, l2cdb_error *err) {
    *out = NULL;
    l2c_buf text;
    l2c_buf_init(&text);
    l2cdb_status rc = l2c_file_read(&text, path, FILE_BYTES_MAX, err);
    if (rc == L2CDB_OK) {
        rc = l2c_tokenizer_read(out, text.data != NULL ? text.data : "", text.size, path, err);
    }
    l2c_buf_fini(&text);
    return rc;
}

void l2c_tokenizer_close(l2c_tokenizer *t) {
    if (t == NULL) {
        return;
    }
    pcre2_code_free(t->regex);
    l2c_free(t->added);
    if (!t->borrowed) {
        l2c_free(t->merges);
        l2c_free(t->words);
    }
    l2c_map_close(&t->map);
    l2c_buf_fini(&t->owned);
    l2c_arena_fini(&t->arena);
    l2c_free(t);
}

size_t l2c_tokenizer_vocab(const l2c_tokenizer *t) {
    return t->vocab;
}

bool l2c_tokenizer_has_template(const l2c_tokenizer *t) {
    return t->start_header >= 0 && t->end_header >= 0 && t->eot >= 0;
}

l2c_tokenizer_frame l2c_tokenizer_get_frame(const l2c_tokenizer *t) {
    return (l2c_tokenizer_frame){ t->prefix, t->prefix_count, t->start_header, t->end_header,
                                  t->eot };
}

l2c_hash l2c_tokenizer_fingerprint(const l2c_tokenizer *t) {
    return t->fingerprint;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

typedef struct symbol {
    int32_t id;         /* -1: merged into the one before */
    int32_t prev, next; /* -1 at the ends */
} symbol;

typedef struct candidate {
    uint32_t rank, at;
    int32_t id; /* that the pair at `at` had become when this was queued */
} candidate;

typedef struct encoder {
    const l2c_tokenizer *t;
    bool specials; /* special tokens are recognised */
    int32_t *ids;
    size_t ids_max, count;
    pcre2_match_data *match;
    symbol *symbols; /* scratch for one piece */
    candidate *heap;
    size_t symbols_capacity, heap_capacity, heap_count;
    l2cdb_error *err;
} encoder;

static void emit(encoder *e, int32_t id) {
    if (e->count < e->ids_max) {
        e->ids[e->count] = id;
    }
    e->count++;
}

static bool comes_before(const candidate *a, const candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Queues the pair that begins at symbol `at`, if it is a merge. The heap has room: a piece of n
 * bytes queues at most 3n pairs. */
static void queue_pair(encoder *e, int32_t at) {
    if (at < 0 || e->symbols[at].next < 0) {
        return;
    }
    const merge *m = find_merge(e->t, e->symbols[at].id, e->symbols[e->symbols[at].next].id);
    if (m == NULL) {
        return;
    }
    candidate c = { m->rank, (uint32_t)at, m->id };
    size_t i = e->heap_count++;
    while (i > 0 && comes_before(&c, &e->heap[(i - 1) / 2])) {
        e->heap[i] = e->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    e->heap[i] = c;
}

static candidate pop_pair(encoder *e) {
    candidate top = e->heap[0], last = e->heap[--e->heap_count];
    size_t i = 0, n = e->heap_count;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && comes_before(&e->heap[child + 1], &e->heap[child])) {
            child++;
        }
        if (!comes_before(&e->heap[child], &last)) {
            break;
        }
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

static l2cdb_status reserve_piece(encoder *e, size_t n) {
    if (n > INT32_MAX / 4) {
        return l2c_fail(e->err, L2CDB_E_LIMIT, "a piece of %zu bytes without a break is too long",
                        n);
    }
    if (n > e->symbols_capacity) {
        size_t capacity = n < 256 ? 256 : n;
        symbol *symbols = l2c_realloc(e->symbols, capacity, sizeof *symbols);
        if (symbols == NULL) {
            return l2c_fail_nomem(e->err, capacity * sizeof *symbols);
        }
        e->symbols = symbols;
        candidate *heap = l2c_realloc(e->heap, 3 * capacity, sizeof *heap);
        if (heap == NULL) {
            return l2c_fail_nomem(e->err, 3 * capacity * sizeof *heap);
        }
        e->heap = heap;
        e->symbols_capacity = capacity;
    }
    return L2CDB_OK;
}

/* Merges the bytes of one piece by rank, leftmost first among equals. */
static l2cdb_status encode_piece(encoder *e, const char *s, size_t n) {
    const l2c_tokenizer *t = e->t;
    if (n == 1) {
        emit(e, t->byte_ids[(uint8_t)s[0]]);
        return L2CDB_OK;
    }
    if (t->ignore_merges) {
        int32_t id = find_word(t, s, n);
        if (id >= 0) {
            emit(e, id);
            return L2CDB_OK;
        }
    }
    l2cdb_status rc = reserve_piece(e, n);
    if (rc != L2CDB_OK) {
        return rc;
    }
    e->heap_count = 0;
    for (size_t i = 0; i < n; i++) {
        e->symbols[i] =
            (symbol){ t->byte_ids[(uint8_t)s[i]], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1 };
    }
    for (size_t i = 0; i + 1 < n; i++) {
        queue_pair(e, (int32_t)i);
    }
    while (e->heap_count > 0) {
        candidate c = pop_pair(e);
        symbol *left = &e->symbols[c.at];
        if (left->id < 0 || left->next < 0) {
            continue;
        }
        symbol *right = &e->symbols[left->next];
        const merge *m = find_merge(t, left->id, right->id);
        if (m == NULL || m->id != c.id) {
            continue; // the pair has changed since it was queued
        }
        left->id = m->id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) {
            e->symbols[left->next].prev = (int32_t)c.at;
        }
        queue_pair(e, left->prev);
        queue_pair(e, (int32_t)c.at);
    }
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next) {
        emit(e, e->symbols[i].id);
    }
    return L2CDB_OK;
}

/* Text without added tokens, normalised already: split by the rule; what lies between two matches
 * is a piece as well. */
static l2cdb_status encode_plain(encoder *e, const char *s, size_t n) {
    PCRE2_SIZE *span = pcre2_get_ovector_pointer(e->match);
    size_t at = 0;
    while (at < n) {
        int rc = pcre2_match(e->t->regex, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, e->match, NULL);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
            return l2c_fail(e->err, L2CDB_E_LIMIT, "splitting a text failed (PCRE2 error %d)", rc);
        }
        size_t start = rc < 0 ? n : span[0], end = rc < 0 ? n : span[1];
        l2cdb_status status = L2CDB_OK;
        if (start > at) {
            status = encode_piece(e, s + at, start - at);
        }
        if (status == L2CDB_OK && end > start) {
            status = encode_piece(e, s + start, end - start);
        }
        if (status != L2CDB_OK) {
            return status;
        }
        at = end > at ? end : n;
    }
    return L2CDB_OK;
}

/* With ByteLevel's add_prefix_space, a segment begins with a space. */
static l2cdb_status encode_segment(encoder *e, const char *s, size_t n) {
    if (!e->t->prefix_space || n == 0 || s[0] == ' ') {
        return encode_plain(e, s, n);
    }
    l2c_buf spaced;
    l2c_buf_init(&spaced);
    l2c_buf_putc(&spaced, ' ');
    l2c_buf_append(&spaced, s, n);
    l2cdb_status rc =
        spaced.failed ? l2c_fail_nomem(e->err, n) : encode_plain(e, spaced.data, spaced.size);
    l2c_buf_fini(&spaced);
    return rc;
}

/* The longest added token at s[0..n), of the wanted class; NULL if there is none. */
static const added *match_added(const encoder *e, const char *s, size_t n, bool normalized) {
    const l2c_tokenizer *t = e->t;
    if (!t->added_first[(uint8_t)s[0]]) {
        return NULL;
    }
    for (size_t i = 0; i < t->added_count; i++) {
        const added *a = &t->added[i];
        if (a->n <= n && a->normalized == normalized && (e->specials || !a->special) &&
            a->content[0] == s[0] && memcmp(a->content, s, a->n) == 0) {
            return a;
        }
    }
    return NULL;
}

typedef l2cdb_status (*segment_fn)(encoder *e, const char *s, size_t n);

/* Calls fn for what lies between the added tokens of one class, and emits the tokens. */
static l2cdb_status cut_added(encoder *e, const char *s, size_t n, bool normalized, segment_fn fn) {
    size_t start = 0, at = 0;
    while (at < n) {
        const added *a = match_added(e, s + at, n - at, normalized);
        if (a == NULL) {
            at++;
            continue;
        }
        l2cdb_status rc = at > start ? fn(e, s + start, at - start) : L2CDB_OK;
        if (rc != L2CDB_OK) {
            return rc;
        }
        emit(e, a->id);
        at += a->n;
        start = at;
    }
    return n > start ? fn(e, s + start, n - start) : L2CDB_OK;
}

static l2cdb_status encode_normalized(encoder *e, const char *s, size_t n) {
    return e->t->added_normalized ? cut_added(e, s, n, true, encode_segment)
                                  : encode_segment(e, s, n);
}

static bool is_ascii(const char *s, size_t n) {
    unsigned char any = 0;
    for (size_t i = 0; i < n; i++) {
        any |= (unsigned char)s[i];
    }
    return any < 0x80;
}

static l2cdb_status normalize_and_encode(encoder *e, const char *s, size_t n) {
    if (!e->t->nfc || is_ascii(s, n)) {
        return encode_normalized(e, s, n);
    }
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t length = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n,
                                           &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0) {
        return l2c_fail(e->err, L2CDB_E_INVALID, "a text cannot be normalised: %s",
                        utf8proc_errmsg(length));
    }
    l2cdb_status rc = encode_normalized(e, (const char *)composed, (size_t)length);
    free(composed); // utf8proc allocates with malloc
    return rc;
}

l2cdb_status l2c_tokenizer_encode(const l2c_tokenizer *t, int32_t *ids, size_t ids_max,
                                  size_t *count, const char *text, size_t n, unsigned flags,
                                  l2cdb_error *err) {
    size_t bad;
    *count = 0;
    if (!l2c_utf8_valid(text, n, &bad)) {
        l2c_fail(err, L2CDB_E_INVALID, "the text is not UTF-8 at byte %zu", bad);
        if (err != NULL) {
            err->offset = (int64_t)bad;
        }
        return L2CDB_E_INVALID;
    }
    encoder e = { .t = t,
                  .specials = (flags & L2C_TEXT_TRUSTED) != 0,
                  .ids = ids,
                  .ids_max = ids_max,
                  .match = pcre2_match_data_create(1, NULL),
                  .err = err };
    l2cdb_status rc = e.match != NULL ? cut_added(&e, text, n, false, normalize_and_encode)
                                      : l2c_fail_nomem(err, 256);
    pcre2_match_data_free(e.match);
    l2c_free(e.heap);
    l2c_free(e.symbols);
    *count = e.count;
    return rc;
}
