/* The compiled form of a tokenizer: its tables in a row, used where they lie.
 *
 *   head | word slots | merge slots | word bytes | added tokens | their contents
 *
 * Each section begins at a multiple of 8. A hash over everything finds damage; bounds are checked
 * all the same, because whoever wrote the file could write the hash. */
#include <string.h>

#include "encoders/tokenizer_tables.h"

#define FORMAT_VERSION 1u
#define BYTE_ORDER_MARK 0x01020304u
#define RULE_BYTES 512

typedef struct head {
    char magic[8];
    uint32_t version, order;
    l2c_hash hash; /* of the file with this field zeroed */
    l2c_hash fingerprint;
    uint64_t words_slots, merges_slots, bytes_count, added_count, contents_bytes, vocab;
    uint32_t prefix_count;
    uint8_t nfc, ignore_merges, prefix_space, unused;
    int32_t prefix[L2C_TOKENIZER_PREFIX_MAX];
    int32_t byte_ids[256];
    char rule[RULE_BYTES];
} head;

typedef struct record {
    uint32_t at, n; /* in the contents, with a NUL behind it */
    int32_t id;
    uint8_t special, normalized, unused[2];
} record;

static const char magic[8] = "L2CTOKEN";

static uint64_t padded(uint64_t n) {
    return (n + 7) & ~(uint64_t)7;
}

static void put_section(l2c_buf *out, const void *data, size_t n) {
    l2c_buf_append(out, data, n);
    while (out->size % 8 != 0 && !out->failed) {
        l2c_buf_putc(out, '\0');
    }
}

static l2c_hash hash_file(const void *bytes, size_t n) {
    static const l2c_hash zero;
    const char *p = bytes;
    size_t at = offsetof(head, hash), behind = at + sizeof zero;
    l2c_hasher *h = l2c_hasher_new();
    if (h == NULL) {
        return zero;
    }
    l2c_hasher_add(h, p, at);
    l2c_hasher_add(h, &zero, sizeof zero);
    l2c_hasher_add(h, p + behind, n - behind);
    l2c_hash hash = l2c_hasher_get(h);
    l2c_hasher_free(h);
    return hash;
}

l2cdb_status l2c_tokenizer_save(const l2c_tokenizer *t, l2c_buf *out, l2cdb_error *err) {
    head h = { .version = FORMAT_VERSION,
               .order = BYTE_ORDER_MARK,
               .fingerprint = t->fingerprint,
               .words_slots = t->words_mask + 1,
               .merges_slots = t->merges_mask + 1,
               .bytes_count = t->bytes_count,
               .added_count = t->added_count,
               .vocab = t->vocab,
               .prefix_count = (uint32_t)t->prefix_count,
               .nfc = t->nfc,
               .ignore_merges = t->ignore_merges,
               .prefix_space = t->prefix_space };
    memcpy(h.magic, magic, sizeof magic);
    memcpy(h.prefix, t->prefix, sizeof h.prefix);
    memcpy(h.byte_ids, t->byte_ids, sizeof h.byte_ids);
    memcpy(h.rule, t->rule, strlen(t->rule));
    l2c_buf records, contents;
    l2c_buf_init(&records);
    l2c_buf_init(&contents);
    for (size_t i = 0; i < t->added_count; i++) {
        const l2c_added *a = &t->added[i];
        record r = { .at = (uint32_t)contents.size,
                     .n = (uint32_t)a->n,
                     .id = a->id,
                     .special = a->special,
                     .normalized = a->normalized };
        l2c_buf_append(&records, &r, sizeof r);
        l2c_buf_append(&contents, a->content, a->n + 1);
    }
    h.contents_bytes = contents.size;
    size_t start = out->size;
    l2c_buf_append(out, &h, sizeof h);
    put_section(out, t->words, (t->words_mask + 1) * sizeof *t->words);
    put_section(out, t->merges, (t->merges_mask + 1) * sizeof *t->merges);
    put_section(out, t->bytes, t->bytes_count);
    put_section(out, records.data, records.size);
    put_section(out, contents.data, contents.size);
    bool failed = out->failed || records.failed || contents.failed;
    l2c_buf_fini(&records);
    l2c_buf_fini(&contents);
    if (failed) {
        return l2c_fail_nomem(err, out->size);
    }
    h.hash = hash_file(out->data + start, out->size - start);
    memcpy(out->data + start + offsetof(head, hash), &h.hash, sizeof h.hash);
    return L2CDB_OK;
}

/* ---- Loading --------------------------------------------------------------------------------- */

static bool is_power_of_two(uint64_t n) {
    return n > 0 && (n & (n - 1)) == 0;
}

/* The head's own numbers, and that the sections fill the file exactly. */
static bool head_fits(const head *h, size_t n) {
    const uint64_t most = (uint64_t)1 << 32;
    if (!is_power_of_two(h->words_slots) || !is_power_of_two(h->merges_slots) ||
        h->words_slots > most || h->merges_slots > most || h->bytes_count > most ||
        h->added_count > 65536 || h->contents_bytes > most || h->vocab == 0 ||
        h->vocab > 1u << 24 || h->prefix_count > L2C_TOKENIZER_PREFIX_MAX) {
        return false;
    }
    uint64_t total = sizeof *h + padded(h->words_slots * sizeof(l2c_word)) +
                     padded(h->merges_slots * sizeof(l2c_merge)) + padded(h->bytes_count) +
                     padded(h->added_count * sizeof(record)) + padded(h->contents_bytes);
    if (total != n || memchr(h->rule, 0, RULE_BYTES) == NULL) {
        return false;
    }
    bool good = true;
    for (int i = 0; i < 256; i++) {
        good = good && h->byte_ids[i] >= 0 && (uint64_t)h->byte_ids[i] < h->vocab;
    }
    for (uint32_t i = 0; i < h->prefix_count; i++) {
        good = good && h->prefix[i] >= 0 && (uint64_t)h->prefix[i] < h->vocab;
    }
    return good;
}

/* Ids and places are in range, and both tables have a free slot, at which every search ends. */
static bool tables_fit(const l2c_tokenizer *t) {
    size_t free_words = 0, free_merges = 0;
    for (size_t i = 0; i <= t->words_mask; i++) {
        const l2c_word *w = &t->words[i];
        free_words += w->length == 0;
        if (w->length != 0 && ((uint64_t)w->at + w->length > t->bytes_count || w->id < 0 ||
                               (size_t)w->id >= t->vocab)) {
            return false;
        }
    }
    for (size_t i = 0; i <= t->merges_mask; i++) {
        const l2c_merge *m = &t->merges[i];
        free_merges += m->rank == UINT32_MAX;
        if (m->rank != UINT32_MAX && (m->id < 0 || (size_t)m->id >= t->vocab)) {
            return false;
        }
    }
    return free_words > 0 && free_merges > 0;
}

static bool read_records(l2c_tokenizer *t, const head *h, const record *records,
                         const char *contents) {
    for (size_t i = 0; i < h->added_count; i++) {
        const record *r = &records[i];
        if (r->n == 0 || (uint64_t)r->at + r->n >= h->contents_bytes ||
            strnlen(contents + r->at, (size_t)r->n + 1) != r->n || r->id < 0 ||
            (uint64_t)r->id >= h->vocab || (i > 0 && r->n > records[i - 1].n)) {
            return false;
        }
        t->added[i] =
            (l2c_added){ contents + r->at, r->n, r->id, r->special != 0, r->normalized != 0 };
        t->added_count++;
    }
    return true;
}

static l2cdb_status damaged(const char *what, l2cdb_error *err) {
    l2c_fail(err, L2CDB_E_CORRUPT, "%s is damaged", what);
    return l2c_hint(err, "remove it: tokenizer.json beside it serves as well, or import again");
}

static l2cdb_status load(l2c_tokenizer *t, const uint8_t *p, size_t n, const char *what,
                         l2cdb_error *err) {
    const head *h = (const head *)(const void *)p;
    l2c_hash hash;
    if (n < sizeof *h || (uintptr_t)p % 8 != 0 || memcmp(h->magic, magic, sizeof magic) != 0) {
        return damaged(what, err);
    }
    if (h->version != FORMAT_VERSION || h->order != BYTE_ORDER_MARK) {
        return l2c_fail(err, L2CDB_E_VERSION, "%s has version %u, this program reads %u", what,
                        h->version, FORMAT_VERSION);
    }
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    hash = h->hash; // so that the fuzzer reaches what lies behind
#else
    hash = hash_file(p, n);
#endif
    if (!head_fits(h, n) || memcmp(&hash, &h->hash, sizeof hash) != 0) {
        return damaged(what, err);
    }
    t->rule = l2c_tokenizer_find_rule(h->rule);
    if (t->rule == NULL) {
        return l2c_fail(err, L2CDB_E_VERSION, "%s splits texts by an unknown rule", what);
    }
    t->borrowed = true;
    t->words = (l2c_word *)(uintptr_t)(p + sizeof *h);
    t->words_mask = (size_t)h->words_slots - 1;
    const uint8_t *at = p + sizeof *h + padded(h->words_slots * sizeof(l2c_word));
    t->merges = (l2c_merge *)(uintptr_t)at;
    t->merges_mask = (size_t)h->merges_slots - 1;
    at += padded(h->merges_slots * sizeof(l2c_merge));
    t->bytes = (const char *)at;
    t->bytes_count = (size_t)h->bytes_count;
    at += padded(h->bytes_count);
    t->vocab = (size_t)h->vocab;
    t->nfc = h->nfc != 0;
    t->ignore_merges = h->ignore_merges != 0;
    t->prefix_space = h->prefix_space != 0;
    t->prefix_count = h->prefix_count;
    t->fingerprint = h->fingerprint;
    memcpy(t->prefix, h->prefix, sizeof t->prefix);
    memcpy(t->byte_ids, h->byte_ids, sizeof t->byte_ids);
    t->added = l2c_calloc((size_t)h->added_count, sizeof *t->added);
    if (t->added == NULL) {
        return l2c_fail_nomem(err, h->added_count * sizeof *t->added);
    }
    const record *records = (const record *)(const void *)at;
    const char *contents = (const char *)at + padded(h->added_count * sizeof(record));
    if (!tables_fit(t) || !read_records(t, h, records, contents)) {
        return damaged(what, err);
    }
    return l2c_tokenizer_ready(t, err);
}

l2cdb_status l2c_tokenizer_load(l2c_tokenizer **out, const void *bytes, size_t n, const char *what,
                                l2cdb_error *err) {
    *out = NULL;
    l2c_tokenizer *t = l2c_calloc(1, sizeof *t);
    if (t == NULL) {
        return l2c_fail_nomem(err, sizeof *t);
    }
    l2c_arena_init(&t->arena, 0);
    l2c_buf_init(&t->owned);
    l2cdb_status rc = load(t, bytes, n, what, err);
    if (rc != L2CDB_OK) {
        l2c_tokenizer_close(t);
        return rc;
    }
    *out = t;
    return L2CDB_OK;
}

l2cdb_status l2c_tokenizer_load_file(l2c_tokenizer **out, const char *path, l2cdb_error *err) {
    *out = NULL;
    l2c_map map;
    l2cdb_status rc = l2c_map_open(&map, path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_tokenizer_load(out, map.data, map.size, path, err);
    if (rc == L2CDB_OK) {
        (*out)->map = map;
    } else {
        l2c_map_close(&map);
    }
    return rc;
}
