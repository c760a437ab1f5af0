/* The base segment and its file; see segment.h. */
#define _GNU_SOURCE // madvise
#include "index/segment.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "index/huge_pages.h"

#define PAGE_BYTES 4096
#define FILE_VERSION 1
#define BYTE_ORDER_MARK 0x01020304u
#define PULL_ROWS 1024

enum { BLOCK_UNKNOWN, BLOCK_GOOD, BLOCK_PATCHED };

typedef struct section {
    uint64_t offset, bytes;
    uint8_t hash[L2C_HASH_BYTES]; // zero for the vectors, whose hashes are the blocks
} section;

typedef struct header {
    char magic[8];
    uint32_t version, byte_order;
    uint8_t hash[L2C_HASH_BYTES]; // of the page with this field zero
    int64_t generation, change;
    uint64_t width, count;
    uint32_t kind, quant;
    uint64_t m, ef_construction, nlist, ef_search, nprobe;
    double build_s, recall;
    section vectors, ids, blocks, faiss;
} header;

typedef union page {
    header h;
    uint8_t bytes[PAGE_BYTES];
} page;

static const char magic[8] = { 'l', '2', 'c', 'i', 'n', 'd', 'e', 'x' };

static size_t block_count(size_t rows) {
    return (rows + L2C_BLOCK_ROWS - 1) / L2C_BLOCK_ROWS;
}

static uint64_t block_hash(const float *rows, size_t n, size_t width) {
    l2c_hash h = l2c_hash_of(rows, n * width * sizeof *rows);
    uint64_t x;
    memcpy(&x, h.bytes, sizeof x);
    return x;
}

void l2c_segment_ref(l2c_segment *s) {
    if (s != NULL) {
        atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    }
}

void l2c_segment_unref(l2c_segment *s) {
    if (s == NULL || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < s->works_count; i++) {
        l2c_graph_work_fini(s->works[i]);
        l2c_free(s->works[i]);
    }
    pthread_mutex_destroy(&s->works_lock);
    l2c_ann_free(s->ann);
    if (s->patches != NULL) {
        for (size_t b = 0; b < block_count(s->count); b++) {
            l2c_free(atomic_load(&s->patches[b]));
        }
    }
    l2c_free((void *)s->patches);
    l2c_free((void *)s->block_state);
    l2c_free((void *)atomic_load(&s->dead_at));
    l2c_free(s->ids_owned);
    l2c_free(s->vectors_owned);
    l2c_free(s->blocks_owned);
    l2c_map_close(&s->map);
    l2c_free(s);
}

static l2c_segment *segment_new(size_t width) {
    l2c_segment *s = l2c_calloc(1, sizeof *s);
    if (s != NULL) {
        atomic_init(&s->refs, 1);
        pthread_mutex_init(&s->works_lock, NULL);
        s->width = width;
        s->meta.recall = -1;
    }
    return s;
}

l2c_graph_work *l2c_segment_work_get(l2c_segment *s, size_t ef_most) {
    l2c_graph_work *w = NULL;
    pthread_mutex_lock(&s->works_lock);
    if (s->works_count > 0) {
        w = s->works[--s->works_count];
    }
    pthread_mutex_unlock(&s->works_lock);
    if (w == NULL) {
        w = l2c_calloc(1, sizeof *w);
        if (w == NULL || !l2c_graph_work_init(w, l2c_ann_graph(s->ann), l2c_ann_codes(s->ann),
                                              ef_most < 256 ? 256 : ef_most)) {
            l2c_free(w);
            return NULL;
        }
    }
    if (!l2c_graph_work_grow(w, ef_most)) {
        l2c_segment_work_put(s, w);
        return NULL;
    }
    return w;
}

void l2c_segment_work_put(l2c_segment *s, l2c_graph_work *w) {
    if (w == NULL) {
        return;
    }
    pthread_mutex_lock(&s->works_lock);
    bool kept = s->works_count < L2C_WORKS_KEPT;
    if (kept) {
        s->works[s->works_count++] = w;
    }
    pthread_mutex_unlock(&s->works_lock);
    if (!kept) {
        l2c_graph_work_fini(w);
        l2c_free(w);
    }
}

size_t l2c_segment_lower(const l2c_segment *s, int64_t id) {
    size_t n = s->count;
    if (n == 0 || id <= s->ids[0]) {
        return 0;
    }
    if (id > s->ids[n - 1]) {
        return n;
    }
    if (s->ids[n - 1] - s->ids[0] == (int64_t)(n - 1)) {
        return (size_t)(id - s->ids[0]);
    }
    const int64_t *p = s->ids;
    while (n > 1) {
        size_t half = n / 2;
        p += p[half - 1] < id ? half : 0;
        n -= half;
    }
    return (size_t)(p - s->ids) + (*p < id);
}

size_t l2c_segment_find(const l2c_segment *s, int64_t id) {
    size_t row = l2c_segment_lower(s, id);
    return row < s->count && s->ids[row] == id ? row : SIZE_MAX;
}

uint64_t l2c_segment_memory_bytes(const l2c_segment *s) {
    uint64_t bytes = sizeof *s;
    bytes += s->ids_owned != NULL ? s->count * sizeof *s->ids : 0;
    bytes += s->vectors_owned != NULL ? s->count * s->width * sizeof *s->vectors : 0;
    bytes += s->block_state != NULL ? block_count(s->count) * (1 + sizeof(void *)) : 0;
    bytes += atomic_load(&s->dead_at) != NULL ? s->count * sizeof(uint64_t) : 0;
    return bytes + (s->ann != NULL ? l2c_ann_memory_bytes(s->ann) : 0);
}

bool l2c_segment_can_kill(l2c_segment *s) {
    if (atomic_load_explicit(&s->dead_at, memory_order_relaxed) != NULL || s->count == 0) {
        return true;
    }
    _Atomic uint64_t *dead = l2c_alloc(s->count, sizeof *dead);
    if (dead == NULL) {
        return false;
    }
    for (size_t i = 0; i < s->count; i++) {
        atomic_init(&dead[i], L2C_ALIVE);
    }
    atomic_store_explicit(&s->dead_at, dead, memory_order_release);
    return true;
}

void l2c_segment_kill(l2c_segment *s, size_t row, uint64_t seq) {
    _Atomic uint64_t *dead = atomic_load_explicit(&s->dead_at, memory_order_relaxed);
    atomic_store_explicit(&dead[row], seq, memory_order_relaxed);
}

/* The rows of a damaged block, from the source. A row that the store no longer has becomes zeros:
 * its removal is on the way here. */
static float *block_from_source(l2c_segment *s, size_t block, l2cdb_error *err) {
    size_t first = block * L2C_BLOCK_ROWS;
    size_t n = s->count - first < L2C_BLOCK_ROWS ? s->count - first : L2C_BLOCK_ROWS;
    float *rows = l2c_calloc(n * s->width, sizeof *rows);
    float *vector = l2c_alloc(s->width, sizeof *vector);
    l2cdb_status rc = L2CDB_OK;
    if (rows == NULL || vector == NULL) {
        rc = l2c_fail_nomem(err, n * s->width * sizeof *rows);
    }
    for (size_t i = 0; rc == L2CDB_OK && i < n; i++) {
        int64_t id;
        size_t got = 0;
        rc = s->source->pull(s->source->ctx, &id, vector, 1, &got, s->ids[first + i] - 1, err);
        if (rc == L2CDB_OK && got == 1 && id == s->ids[first + i]) {
            memcpy(rows + i * s->width, vector, s->width * sizeof *rows);
        }
    }
    l2c_free(vector);
    if (rc != L2CDB_OK) {
        l2c_free(rows);
        return NULL;
    }
    return rows;
}

const float *l2c_segment_row_checked(l2c_segment *s, size_t row, l2cdb_error *err) {
    size_t block = row / L2C_BLOCK_ROWS, first = block * L2C_BLOCK_ROWS;
    uint8_t state = atomic_load_explicit(&s->block_state[block], memory_order_acquire);
    if (state == BLOCK_UNKNOWN) {
        size_t n = s->count - first < L2C_BLOCK_ROWS ? s->count - first : L2C_BLOCK_ROWS;
        const float *rows = s->vectors + first * s->width;
        if (block_hash(rows, n, s->width) == s->block_hashes[block]) {
            state = BLOCK_GOOD;
        } else {
            if (!atomic_exchange(&s->damaged, true)) {
                l2c_log(L2CDB_LOG_WARN,
                        "index: vectors are damaged on disk; their rows now come from the store "
                        "block=%zu",
                        block);
            }
            float *patch = block_from_source(s, block, err);
            if (patch == NULL) {
                return NULL;
            }
            float *none = NULL;
            if (!atomic_compare_exchange_strong(&s->patches[block], &none, patch)) {
                l2c_free(patch); // another thread was first
            }
            state = BLOCK_PATCHED;
        }
        atomic_store_explicit(&s->block_state[block], state, memory_order_release);
    }
    if (state == BLOCK_PATCHED) {
        return atomic_load(&s->patches[block]) + (row - first) * s->width;
    }
    return s->vectors + row * s->width;
}

static void page_seal(page *p) {
    memset(p->h.hash, 0, sizeof p->h.hash);
    l2c_hash h = l2c_hash_of(p, sizeof *p);
    memcpy(p->h.hash, h.bytes, sizeof p->h.hash);
}

static bool page_is_sealed(const page *p) {
    page copy = *p;
    page_seal(&copy);
    return memcmp(copy.h.hash, p->h.hash, sizeof copy.h.hash) == 0;
}

static void page_fill(page *p, const l2c_segment *s, const l2c_segment_meta *meta) {
    memset(p, 0, sizeof *p);
    memcpy(p->h.magic, magic, sizeof magic);
    p->h.version = FILE_VERSION;
    p->h.byte_order = BYTE_ORDER_MARK;
    p->h.generation = meta->generation;
    p->h.change = meta->change;
    p->h.width = s->width;
    p->h.count = s->count;
    p->h.kind = (uint32_t)meta->params.kind;
    p->h.quant = (uint32_t)meta->params.quant;
    p->h.m = meta->params.m;
    p->h.ef_construction = meta->params.ef_construction;
    p->h.nlist = meta->params.nlist;
    p->h.ef_search = meta->params.ef_search;
    p->h.nprobe = meta->params.nprobe;
    p->h.build_s = meta->build_s;
    p->h.recall = meta->recall;
}

/* Appends one section; `s->offset` is set to where it begins. */
static l2cdb_status section_write(section *s, l2c_writer *w, const void *data, size_t bytes,
                                  l2cdb_error *err) {
    static const uint8_t zeros[64];
    size_t gap = (size_t)(-w->size & 63);
    l2cdb_status rc = l2c_writer_write(w, zeros, gap, err);
    s->offset = w->size;
    s->bytes = bytes;
    l2c_hash h = l2c_hash_of(data, bytes);
    memcpy(s->hash, h.bytes, sizeof s->hash);
    return rc != L2CDB_OK ? rc : l2c_writer_write(w, data, bytes, err);
}

static bool section_fits(const section *s, size_t file_bytes) {
    return s->offset >= PAGE_BYTES && s->offset % 64 == 0 && s->offset <= file_bytes &&
           s->bytes <= file_bytes - s->offset;
}

static bool section_is_good(const section *s, const l2c_map *map) {
    l2c_hash h = l2c_hash_of(map->data + s->offset, s->bytes);
    return memcmp(h.bytes, s->hash, sizeof s->hash) == 0;
}

static l2cdb_status header_check(const header *h, const l2c_map *map, const char *path,
                                 l2cdb_error *err) {
    size_t values, vector_bytes, id_bytes;
    if (!l2c_mul_size(&values, h->count, h->width) ||
        !l2c_mul_size(&vector_bytes, values, sizeof(float)) ||
        !l2c_mul_size(&id_bytes, h->count, sizeof(int64_t)) || h->count > INT32_MAX ||
        h->vectors.bytes != vector_bytes || h->ids.bytes != id_bytes ||
        h->blocks.bytes != block_count(h->count) * sizeof(uint64_t) ||
        !section_fits(&h->vectors, map->size) || !section_fits(&h->ids, map->size) ||
        !section_fits(&h->blocks, map->size) || !section_fits(&h->faiss, map->size)) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s: its sections do not fit its %zu bytes", path,
                        map->size);
    }
    if (h->kind < L2C_INDEX_FLAT || h->kind > L2C_INDEX_IVF || h->quant < L2C_QUANT_F32 ||
        h->quant > L2C_QUANT_PQ || (h->kind == L2C_INDEX_FLAT) != (h->faiss.bytes == 0)) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s: unknown kind %u with quantiser %u", path,
                        h->kind, h->quant);
    }
    if (!section_is_good(&h->ids, map) || !section_is_good(&h->blocks, map) ||
        !section_is_good(&h->faiss, map)) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s: a section differs from its checksum", path);
    }
    return L2CDB_OK;
}

static l2cdb_status page_check(const page *p, const l2c_map *map, const char *path, size_t width,
                               int64_t generation, int64_t change, l2cdb_error *err) {
    if (map->size < sizeof *p || memcmp(p->h.magic, magic, sizeof magic) != 0) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s is not an index of l2cdb", path);
    }
    const header *h = &p->h;
    if (!page_is_sealed(p)) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s: the header differs from its checksum", path);
    }
    if (h->version != FILE_VERSION || h->byte_order != BYTE_ORDER_MARK) {
        return l2c_fail(err, L2CDB_E_VERSION, "%s: file version %u, this program reads %u", path,
                        h->version, FILE_VERSION);
    }
    if (h->generation != generation || h->width != width) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "%s: generation %lld with width %llu, the store has generation %lld with "
                        "width %zu",
                        path, (long long)h->generation, (unsigned long long)h->width,
                        (long long)generation, width);
    }
    if (h->change > change) {
        return l2c_fail(err, L2CDB_E_MISMATCH, "%s: change %lld is newer than the store's %lld",
                        path, (long long)h->change, (long long)change);
    }
    return header_check(h, map, path, err);
}

l2cdb_status l2c_segment_load(l2c_segment **out, const char *path, size_t width, int64_t generation,
                              int64_t change, const l2c_index_source *source, l2cdb_error *err) {
    *out = NULL;
    l2c_segment *s = segment_new(width);
    if (s == NULL) {
        return l2c_fail_nomem(err, sizeof *s);
    }
    l2cdb_status rc = l2c_map_open(&s->map, path, err);
    if (rc == L2CDB_OK) {
        rc = page_check((const page *)(const void *)s->map.data, &s->map, path, width, generation,
                        change, err);
    }
    if (rc != L2CDB_OK) {
        l2c_segment_unref(s);
        return rc;
    }
    const header *h = (const header *)(const void *)s->map.data;
    const uint8_t *base = s->map.data;
    s->source = source;
    s->file_bytes = s->map.size;
    s->vectors = (const float *)(const void *)(base + h->vectors.offset);
    s->ids = (const int64_t *)(const void *)(base + h->ids.offset);
    s->block_hashes = (const uint64_t *)(const void *)(base + h->blocks.offset);
    s->meta = (l2c_segment_meta){
        .generation = h->generation,
        .change = h->change,
        .params = { .kind = (l2c_index_kind)h->kind,
                    .quant = (l2c_quant)h->quant,
                    .m = h->m,
                    .ef_construction = h->ef_construction,
                    .nlist = h->nlist,
                    .ef_search = h->ef_search,
                    .nprobe = h->nprobe },
        .build_s = h->build_s,
        .recall = h->recall,
    };
    size_t blocks = block_count(h->count);
    s->block_state = l2c_calloc(blocks, sizeof *s->block_state);
    s->patches = l2c_calloc(blocks, sizeof *s->patches);
    if (s->block_state == NULL || s->patches == NULL) {
        l2c_segment_unref(s);
        return l2c_fail_nomem(err, blocks * (1 + sizeof(void *)));
    }
    s->count = h->count;
    if (h->faiss.bytes > 0) {
        rc = l2c_ann_load(&s->ann, base + h->faiss.offset, h->faiss.bytes, s->meta.params.kind,
                          s->meta.params.quant, s->width, s->count, err);
        if (rc != L2CDB_OK) {
            l2c_segment_unref(s);
            return l2c_context(err, "%s", path);
        }
    }
    *out = s;
    return L2CDB_OK;
}

static l2cdb_status grow(l2c_segment_draft *d, size_t rows, l2cdb_error *err) {
    l2c_segment *s = d->segment;
    size_t floats, capacity = d->capacity;
    if (rows <= capacity) {
        return L2CDB_OK;
    }
    capacity = rows > capacity * 2 ? rows : capacity * 2;
    int64_t *ids = l2c_realloc(s->ids_owned, capacity, sizeof *ids);
    if (ids == NULL) {
        return l2c_fail_nomem(err, capacity * sizeof *ids);
    }
    s->ids_owned = ids;
    if (!d->to_file) {
        if (!l2c_mul_size(&floats, capacity, s->width)) {
            return l2c_fail_nomem(err, UINT64_MAX);
        }
        float *vectors = l2c_alloc_aligned(floats, sizeof *vectors);
        if (vectors == NULL) {
            return l2c_fail_nomem(err, floats * sizeof *vectors);
        }
        l2c_huge_pages(vectors, floats * sizeof *vectors);
        if (s->count > 0) {
            memcpy(vectors, s->vectors_owned, s->count * s->width * sizeof *vectors);
        }
        l2c_free(s->vectors_owned);
        s->vectors_owned = vectors;
    }
    d->capacity = capacity;
    return L2CDB_OK;
}

static void hash_pending(l2c_segment_draft *d) {
    uint64_t h = block_hash(d->pending, d->pending_rows, d->segment->width);
    l2c_buf_append(&d->blocks, &h, sizeof h);
    d->pending_rows = 0;
}

static l2cdb_status rows_add(l2c_segment_draft *d, const int64_t *ids, const float *vectors,
                             size_t n, l2cdb_error *err) {
    l2c_segment *s = d->segment;
    l2cdb_status rc = grow(d, s->count + n, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < n; i++) {
        int64_t before = i > 0 ? ids[i - 1] : s->count > 0 ? s->ids_owned[s->count - 1] : INT64_MIN;
        if (ids[i] <= before && (i > 0 || s->count > 0)) {
            return l2c_fail(err, L2CDB_E_INTERNAL,
                            "the source gave id %lld after %lld; ids must ascend",
                            (long long)ids[i], (long long)before);
        }
    }
    memcpy(s->ids_owned + s->count, ids, n * sizeof *ids);
    if (!d->to_file) {
        memcpy(s->vectors_owned + s->count * s->width, vectors, n * s->width * sizeof *vectors);
    } else {
        rc = l2c_writer_write(&d->writer, vectors, n * s->width * sizeof *vectors, err);
        for (size_t i = 0; i < n; i++) {
            memcpy(d->pending + d->pending_rows * s->width, vectors + i * s->width,
                   s->width * sizeof *vectors);
            if (++d->pending_rows == L2C_BLOCK_ROWS) {
                hash_pending(d);
            }
        }
    }
    s->count += n;
    return rc;
}

/* The file's vectors become readable at their place. */
static l2cdb_status rows_map(l2c_segment_draft *d, l2cdb_error *err) {
    l2c_segment *s = d->segment;
    if (d->pending_rows > 0) {
        hash_pending(d);
    }
    size_t hash_bytes = block_count(s->count) * sizeof *s->blocks_owned;
    s->blocks_owned = l2c_alloc(hash_bytes, 1);
    if (d->blocks.failed || s->blocks_owned == NULL) {
        return l2c_fail_nomem(err, hash_bytes);
    }
    if (hash_bytes > 0) {
        memcpy(s->blocks_owned, d->blocks.data, hash_bytes);
    }
    s->block_hashes = s->blocks_owned;
    void *p = mmap(NULL, d->writer.size, PROT_READ, MAP_SHARED, d->writer.fd, 0);
    if (p == MAP_FAILED) {
        return l2c_fail_errno(err, errno, "could not map %s", d->writer.temp_path);
    }
    s->map = (l2c_map){ .data = p, .size = d->writer.size };
    s->vectors = (const float *)(const void *)(s->map.data + PAGE_BYTES);
    return L2CDB_OK;
}

static l2cdb_status draft_init(l2c_segment_draft *d, const char *path, size_t width,
                               l2cdb_error *err) {
    *d = (l2c_segment_draft){ .segment = segment_new(width), .to_file = path != NULL };
    d->writer.fd = -1;
    l2c_buf_init(&d->blocks);
    d->pending = l2c_alloc(L2C_BLOCK_ROWS * width, sizeof *d->pending);
    if (d->segment == NULL || d->pending == NULL) {
        return l2c_fail_nomem(err, L2C_BLOCK_ROWS * width * sizeof *d->pending);
    }
    if (path == NULL) {
        return L2CDB_OK;
    }
    static const page empty;
    l2cdb_status rc = l2c_writer_open(&d->writer, path, err);
    return rc != L2CDB_OK ? rc : l2c_writer_write(&d->writer, &empty, sizeof empty, err);
}

l2cdb_status l2c_draft_pull(l2c_segment_draft *d, const char *path, size_t width,
                            const l2c_index_source *source, l2c_index_progress_fn progress,
                            void *ctx, l2cdb_error *err) {
    size_t expected = 0;
    int64_t *ids = l2c_alloc(PULL_ROWS, sizeof *ids);
    float *vectors = l2c_alloc(PULL_ROWS * width, sizeof *vectors);
    l2cdb_status rc = draft_init(d, path, width, err);
    if (rc == L2CDB_OK && (ids == NULL || vectors == NULL)) {
        rc = l2c_fail_nomem(err, PULL_ROWS * width * sizeof *vectors);
    }
    if (rc == L2CDB_OK) {
        rc = source->count(source->ctx, &expected, err);
    }
    if (rc == L2CDB_OK) {
        rc = grow(d, expected, err);
    }
    int64_t after = INT64_MIN;
    while (rc == L2CDB_OK) {
        size_t got = 0;
        rc = source->pull(source->ctx, ids, vectors, PULL_ROWS, &got, after, err);
        if (rc != L2CDB_OK || got == 0) {
            break;
        }
        rc = rows_add(d, ids, vectors, got, err);
        after = ids[got - 1];
        size_t done = d->segment->count;
        if (rc == L2CDB_OK && progress != NULL &&
            !progress(ctx, "read", done, expected > done ? expected : done)) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "building the index was cancelled");
        }
        if (rc == L2CDB_OK && d->segment->count > INT32_MAX) {
            rc = l2c_fail(err, L2CDB_E_LIMIT, "an index holds at most %d rows", INT32_MAX);
        }
    }
    l2c_free(ids);
    l2c_free(vectors);
    if (rc == L2CDB_OK) {
        d->segment->ids = d->segment->ids_owned;
        d->segment->vectors = d->segment->vectors_owned;
        d->segment->source = source;
    }
    if (rc == L2CDB_OK && d->to_file) {
        rc = rows_map(d, err);
    }
    if (rc != L2CDB_OK) {
        l2c_draft_abort(d);
    }
    return rc;
}

/* FAISS writes through a FILE; the bytes are then read back for their hash. */
static l2cdb_status faiss_write(section *s, l2c_writer *w, const l2c_ann *ann, l2cdb_error *err) {
    l2cdb_status rc = section_write(s, w, "", 0, err);
    if (rc != L2CDB_OK || ann == NULL) {
        return rc;
    }
    int fd = dup(w->fd);
    FILE *f = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (f == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return l2c_fail_errno(err, errno, "could not write %s", w->temp_path);
    }
    rc = l2c_ann_save(ann, f, err);
    if (fclose(f) != 0 && rc == L2CDB_OK) {
        rc = l2c_fail_errno(err, errno, "could not write %s", w->temp_path);
    }
    off_t end = rc == L2CDB_OK ? lseek(w->fd, 0, SEEK_END) : 0;
    l2c_hasher *hasher = l2c_hasher_new();
    uint8_t *chunk = l2c_alloc(1 << 20, 1);
    if (rc == L2CDB_OK && (hasher == NULL || chunk == NULL)) {
        rc = l2c_fail_nomem(err, 1 << 20);
    }
    off_t at = (off_t)s->offset;
    while (rc == L2CDB_OK && at < end) {
        ssize_t n = pread(w->fd, chunk, 1 << 20, at);
        if (n <= 0) {
            rc = l2c_fail_errno(err, n < 0 ? errno : EIO, "could not read back %s", w->temp_path);
            break;
        }
        l2c_hasher_add(hasher, chunk, (size_t)n);
        at += n;
    }
    if (rc == L2CDB_OK) {
        l2c_hash h = l2c_hasher_get(hasher);
        memcpy(s->hash, h.bytes, sizeof s->hash);
        s->bytes = (uint64_t)end - s->offset;
        w->size = (uint64_t)end;
    }
    l2c_hasher_free(hasher);
    l2c_free(chunk);
    return rc;
}

/* Everything behind the vectors, then the header. */
static l2cdb_status tail_write(l2c_writer *w, const l2c_segment *s, const l2c_segment_meta *meta,
                               l2cdb_error *err) {
    page p;
    page_fill(&p, s, meta);
    p.h.vectors = (section){ .offset = PAGE_BYTES, .bytes = s->count * s->width * sizeof(float) };
    l2cdb_status rc = section_write(&p.h.ids, w, s->ids, s->count * sizeof *s->ids, err);
    if (rc == L2CDB_OK) {
        rc = section_write(&p.h.blocks, w, s->block_hashes,
                           block_count(s->count) * sizeof(uint64_t), err);
    }
    if (rc == L2CDB_OK) {
        rc = faiss_write(&p.h.faiss, w, s->ann, err);
    }
    page_seal(&p);
    return rc != L2CDB_OK ? rc : l2c_writer_patch(w, 0, &p, sizeof p, err);
}

l2cdb_status l2c_draft_commit(l2c_segment **out, l2c_segment_draft *d, const l2c_segment_meta *meta,
                              l2cdb_error *err) {
    l2c_segment *s = d->segment;
    *out = NULL;
    s->meta = *meta;
    if (d->to_file) {
        l2cdb_status rc = tail_write(&d->writer, s, meta, err);
        s->file_bytes = d->writer.size;
        if (rc == L2CDB_OK) {
            // The old file, if any, is the index until the rename inside; this one is after it.
            rc = l2c_writer_commit(&d->writer, err);
        }
        if (rc != L2CDB_OK) {
            l2c_draft_abort(d);
            return rc;
        }
    }
    *out = s;
    d->segment = NULL;
    l2c_draft_abort(d);
    return L2CDB_OK;
}

void l2c_draft_abort(l2c_segment_draft *d) {
    if (d->to_file) {
        l2c_writer_abort(&d->writer);
    }
    l2c_segment_unref(d->segment);
    d->segment = NULL;
    l2c_buf_fini(&d->blocks);
    l2c_free(d->pending);
    d->pending = NULL;
}

l2cdb_status l2c_segment_rewrite(l2c_segment *s, const char *path, const l2c_segment_meta *meta,
                                 l2cdb_error *err) {
    static const page empty;
    l2c_writer w;
    l2cdb_status rc = l2c_writer_open(&w, path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_writer_write(&w, &empty, sizeof empty, err);
    if (rc == L2CDB_OK) {
        rc = l2c_writer_write(&w, s->vectors, s->count * s->width * sizeof(float), err);
    }
    if (rc == L2CDB_OK) {
        rc = tail_write(&w, s, meta, err);
    }
    if (rc == L2CDB_OK) {
        return l2c_writer_commit(&w, err);
    }
    l2c_writer_abort(&w);
    return rc;
}
