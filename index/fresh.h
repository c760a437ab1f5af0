/* Rows added since the base segment was built: append-only, searched exactly.
 *
 * A row never moves and never changes after it was appended; replacing or removing it stamps the
 * old row with the sequence number of that change. A reader that remembers (rows, seq) therefore
 * keeps seeing the same rows for as long as it holds a reference, without any lock.
 *
 * One writer (append, kill, find) at a time; any number of readers. */
#ifndef L2C_FRESH_H
#define L2C_FRESH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/mem.h"

#define L2C_FRESH_CHUNKS 23
#define L2C_FRESH_FIRST 1024 /* rows of chunk 0; every next one has twice as many */

/* `dead_at` of a live row; a row is dead to readers whose seq is at or past its value. */
#define L2C_ALIVE UINT64_MAX

typedef struct l2c_fresh_chunk {
    float *vectors; /* [rows, width] */
    int64_t *ids;
    _Atomic uint64_t *dead_at;
} l2c_fresh_chunk;

typedef struct l2c_fresh {
    atomic_size_t refs;
    size_t width, rows, live;
    l2c_fresh_chunk chunks[L2C_FRESH_CHUNKS];
    /* The writer's: id → its live row; open addressing, 0 is empty, UINT32_MAX a removed entry. */
    uint32_t *slots;
    size_t slot_count, slots_used;
} l2c_fresh;

l2c_fresh *l2c_fresh_new(size_t width);
void l2c_fresh_ref(l2c_fresh *f);
void l2c_fresh_unref(l2c_fresh *f);

/* Makes room for n more rows, so that appending them cannot fail. */
bool l2c_fresh_reserve(l2c_fresh *f, size_t n);
/* The new row's number. `id` must not be live here. */
size_t l2c_fresh_append(l2c_fresh *f, int64_t id, const float *vector);
/* The live row of id, or SIZE_MAX. */
size_t l2c_fresh_find(const l2c_fresh *f, int64_t id);
void l2c_fresh_kill(l2c_fresh *f, size_t row, uint64_t seq);

/* Chunk of a row, and the row's place in it. */
static inline size_t l2c_fresh_place(size_t row, size_t *within) {
    size_t c = 63 - (size_t)__builtin_clzll(row / L2C_FRESH_FIRST + 1);
    *within = row - (((size_t)1 << c) - 1) * L2C_FRESH_FIRST;
    return c;
}

static inline const float *l2c_fresh_vector(const l2c_fresh *f, size_t row) {
    size_t i, c = l2c_fresh_place(row, &i);
    return f->chunks[c].vectors + i * f->width;
}

static inline int64_t l2c_fresh_id(const l2c_fresh *f, size_t row) {
    size_t i, c = l2c_fresh_place(row, &i);
    return f->chunks[c].ids[i];
}

static inline bool l2c_fresh_alive(const l2c_fresh *f, size_t row, uint64_t seq) {
    size_t i, c = l2c_fresh_place(row, &i);
    return atomic_load_explicit(&f->chunks[c].dead_at[i], memory_order_relaxed) > seq;
}

size_t l2c_fresh_bytes(const l2c_fresh *f);

#endif
