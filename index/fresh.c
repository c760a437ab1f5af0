/* Append-only rows with the time of their death; see fresh.h. */
#include "index/fresh.h"

#include <string.h>

#define SLOT_EMPTY 0u
#define SLOT_GONE UINT32_MAX

static size_t chunk_rows(size_t c) {
    return (size_t)L2C_FRESH_FIRST << c;
}

l2c_fresh *l2c_fresh_new(size_t width) {
    l2c_fresh *f = l2c_calloc(1, sizeof *f);
    if (f != NULL) {
        atomic_init(&f->refs, 1);
        f->width = width;
    }
    return f;
}

void l2c_fresh_ref(l2c_fresh *f) {
    atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
}

void l2c_fresh_unref(l2c_fresh *f) {
    if (f == NULL || atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t c = 0; c < L2C_FRESH_CHUNKS; c++) {
        l2c_free(f->chunks[c].vectors);
        l2c_free(f->chunks[c].ids);
        l2c_free(f->chunks[c].dead_at);
    }
    l2c_free(f->slots);
    l2c_free(f);
}

static size_t hash_of(int64_t id) {
    uint64_t x = (uint64_t)id * 0x9E3779B97F4A7C15u;
    return (size_t)(x ^ (x >> 32));
}

static size_t slot_of(const l2c_fresh *f, int64_t id) {
    size_t mask = f->slot_count - 1;
    for (size_t s = hash_of(id) & mask;; s = (s + 1) & mask) {
        uint32_t v = f->slots[s];
        if (v == SLOT_EMPTY) {
            return SIZE_MAX;
        }
        if (v != SLOT_GONE && l2c_fresh_id(f, v - 1) == id) {
            return s;
        }
    }
}

static void slot_put(l2c_fresh *f, int64_t id, size_t row) {
    size_t mask = f->slot_count - 1;
    size_t s = hash_of(id) & mask;
    while (f->slots[s] != SLOT_EMPTY) {
        s = (s + 1) & mask;
    }
    f->slots[s] = (uint32_t)(row + 1);
    f->slots_used++;
}

static bool slots_reserve(l2c_fresh *f, size_t n) {
    if ((f->slots_used + n) * 2 <= f->slot_count) {
        return true;
    }
    size_t count = 1024;
    while (count < (f->live + n) * 4) {
        count *= 2;
    }
    uint32_t *old = f->slots;
    size_t old_count = f->slot_count;
    uint32_t *fresh = l2c_calloc(count, sizeof *fresh);
    if (fresh == NULL) {
        return false;
    }
    f->slots = fresh;
    f->slot_count = count;
    f->slots_used = 0;
    for (size_t i = 0; i < old_count; i++) {
        if (old[i] != SLOT_EMPTY && old[i] != SLOT_GONE) {
            slot_put(f, l2c_fresh_id(f, old[i] - 1), old[i] - 1);
        }
    }
    l2c_free(old);
    return true;
}

static bool chunk_reserve(l2c_fresh *f, size_t c) {
    l2c_fresh_chunk *k = &f->chunks[c];
    if (k->dead_at != NULL) {
        return true;
    }
    size_t rows = chunk_rows(c), floats;
    if (!l2c_mul_size(&floats, rows, f->width)) {
        return false;
    }
    float *vectors = l2c_alloc_aligned(floats, sizeof *vectors);
    int64_t *ids = l2c_alloc(rows, sizeof *ids);
    _Atomic uint64_t *dead_at = l2c_alloc(rows, sizeof *dead_at);
    if (vectors == NULL || ids == NULL || dead_at == NULL) {
        l2c_free(vectors);
        l2c_free(ids);
        l2c_free((void *)dead_at);
        return false;
    }
    *k = (l2c_fresh_chunk){ .vectors = vectors, .ids = ids, .dead_at = dead_at };
    return true;
}

bool l2c_fresh_reserve(l2c_fresh *f, size_t n) {
    size_t most = (((size_t)1 << L2C_FRESH_CHUNKS) - 1) * L2C_FRESH_FIRST;
    if (n == 0) {
        return true;
    }
    if (most > UINT32_MAX - 2) {
        most = UINT32_MAX - 2;
    }
    if (n > most - f->rows || !slots_reserve(f, n)) {
        return false;
    }
    size_t within, first = l2c_fresh_place(f->rows, &within);
    size_t last = l2c_fresh_place(f->rows + n - 1, &within);
    for (size_t c = first; c <= last; c++) {
        if (!chunk_reserve(f, c)) {
            return false;
        }
    }
    return true;
}

size_t l2c_fresh_append(l2c_fresh *f, int64_t id, const float *vector) {
    size_t row = f->rows, i, c = l2c_fresh_place(row, &i);
    l2c_fresh_chunk *k = &f->chunks[c];
    memcpy(k->vectors + i * f->width, vector, f->width * sizeof *vector);
    k->ids[i] = id;
    atomic_init(&k->dead_at[i], L2C_ALIVE);
    f->rows++;
    f->live++;
    slot_put(f, id, row);
    return row;
}

size_t l2c_fresh_find(const l2c_fresh *f, int64_t id) {
    size_t s = f->slot_count > 0 ? slot_of(f, id) : SIZE_MAX;
    return s == SIZE_MAX ? SIZE_MAX : (size_t)f->slots[s] - 1;
}

void l2c_fresh_kill(l2c_fresh *f, size_t row, uint64_t seq) {
    size_t i, c = l2c_fresh_place(row, &i);
    size_t s = slot_of(f, f->chunks[c].ids[i]);
    f->slots[s] = SLOT_GONE;
    f->live--;
    atomic_store_explicit(&f->chunks[c].dead_at[i], seq, memory_order_relaxed);
}

size_t l2c_fresh_bytes(const l2c_fresh *f) {
    size_t bytes = sizeof *f + f->slot_count * sizeof *f->slots;
    for (size_t c = 0; c < L2C_FRESH_CHUNKS; c++) {
        if (f->chunks[c].dead_at != NULL) {
            bytes += chunk_rows(c) * (f->width * sizeof(float) + sizeof(int64_t) * 2);
        }
    }
    return bytes;
}
