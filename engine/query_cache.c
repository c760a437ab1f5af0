/* Query vectors that were asked for before. The cost of a text query is the LLM; a repeated query
 * costs a lookup.
 *
 * Keys are XXH3-128 of (heads, text trunk, text): 128 bits of a non-cryptographic hash, where a
 * collision would give a wrong answer to a query, not a right to anybody. Entries form a hash table
 * of chains and a list in order of use; the least recently used one goes when there are too many.
 */
#include <string.h>

#include "engine/open.h"
#include "engine/query_cache.h"

#define ENTRIES_MAX 4096
#define BUCKETS 4096 /* a power of two */

typedef struct entry {
    struct entry *chain;         /* next of the bucket */
    struct entry *newer, *older; /* neighbours in order of use */
    l2c_hash key;
    size_t width;
    float vector[];
} entry;

struct l2c_query_cache {
    pthread_mutex_t lock;
    entry *buckets[BUCKETS];
    entry *newest, *oldest;
    size_t count;
};

l2cdb_status l2c_query_cache_new(l2c_query_cache **out, l2cdb_error *err) {
    *out = l2c_calloc(1, sizeof **out);
    if (*out == NULL) {
        return l2c_fail_nomem(err, sizeof **out);
    }
    pthread_mutex_init(&(*out)->lock, NULL);
    return L2CDB_OK;
}

void l2c_query_cache_free(l2c_query_cache *c) {
    if (c == NULL) {
        return;
    }
    while (c->newest != NULL) {
        entry *e = c->newest;
        c->newest = e->older;
        l2c_free(e);
    }
    pthread_mutex_destroy(&c->lock);
    l2c_free(c);
}

l2c_hash l2c_query_cache_key(const l2c_generation *g, const l2c_hash *heads, const char *text) {
    l2c_hash key = { { 0 } };
    l2c_hasher *h = l2c_hasher_new();
    if (h != NULL) { // without memory: the zero key, which is never stored
        l2c_hasher_add(h, heads->bytes, sizeof heads->bytes);
        l2c_hasher_add(h, g->text_trunk.bytes, sizeof g->text_trunk.bytes);
        l2c_hasher_add(h, text, strlen(text));
        key = l2c_hasher_get(h);
    }
    l2c_hasher_free(h);
    return key;
}

static entry **bucket_of(l2c_query_cache *c, const l2c_hash *key) {
    size_t i = (size_t)key->bytes[0] << 8 | key->bytes[1];
    return &c->buckets[i & (BUCKETS - 1)];
}

static void unlink_use(l2c_query_cache *c, entry *e) {
    *(e->newer != NULL ? &e->newer->older : &c->newest) = e->older;
    *(e->older != NULL ? &e->older->newer : &c->oldest) = e->newer;
}

static void link_newest(l2c_query_cache *c, entry *e) {
    e->newer = NULL;
    e->older = c->newest;
    *(c->newest != NULL ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

static entry *find(l2c_query_cache *c, const l2c_hash *key) {
    entry *e = *bucket_of(c, key);
    while (e != NULL && memcmp(&e->key, key, sizeof *key) != 0) {
        e = e->chain;
    }
    return e;
}

static void forget_oldest(l2c_query_cache *c) {
    entry *e = c->oldest;
    entry **at = bucket_of(c, &e->key);
    while (*at != e) {
        at = &(*at)->chain;
    }
    *at = e->chain;
    unlink_use(c, e);
    c->count--;
    l2c_free(e);
}

bool l2c_query_cache_get(l2c_query_cache *c, const l2c_hash *key, float *out, size_t width) {
    pthread_mutex_lock(&c->lock);
    entry *e = find(c, key);
    bool found = e != NULL && e->width == width;
    if (found) {
        memcpy(out, e->vector, width * sizeof *out);
        unlink_use(c, e);
        link_newest(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    return found;
}

void l2c_query_cache_put(l2c_query_cache *c, const l2c_hash *key, const float *v, size_t width) {
    static const l2c_hash zero;
    if (memcmp(key, &zero, sizeof zero) == 0) {
        return;
    }
    entry *e = l2c_alloc(1, sizeof *e + width * sizeof *v);
    if (e == NULL) { // a cache that is not filled is no error
        return;
    }
    e->key = *key;
    e->width = width;
    memcpy(e->vector, v, width * sizeof *v);
    pthread_mutex_lock(&c->lock);
    if (find(c, key) != NULL) {
        l2c_free(e);
    } else {
        if (c->count == ENTRIES_MAX) {
            forget_oldest(c);
        }
        entry **bucket = bucket_of(c, key);
        e->chain = *bucket;
        *bucket = e;
        link_newest(c, e);
        c->count++;
    }
    pthread_mutex_unlock(&c->lock);
}
