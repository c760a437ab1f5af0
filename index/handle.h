/* The inside of an index handle, and the snapshots that readers take of it.
 *
 * Locks, in the order in which they may be taken:
 *   build   one build at a time; held for its whole length, by nobody else.
 *   writer  add, remove, and the end of a build; readers never take it.
 *   lock    the fields below it, for a few instructions at a time: a search takes it once, to copy
 *           the pointers and counts of a snapshot, and then works without any lock. */
#ifndef L2C_HANDLE_H
#define L2C_HANDLE_H

#include <pthread.h>

#include "index/fresh.h"
#include "index/index.h"
#include "index/segment.h"

/* What a reader sees from the moment it was taken until it is dropped: rows of `base` and the first
 * `fresh_rows` of `fresh` that were not dead at `seq`. */
typedef struct l2c_snapshot {
    l2c_segment *base;
    l2c_fresh *fresh;
    uint64_t seq;
    size_t fresh_rows, fresh_live, base_dead;
    size_t fresh_bytes; /* of memory, as of the last change */
} l2c_snapshot;

/* A change that arrived while a build was running. */
typedef struct l2c_late {
    int64_t id;
    size_t fresh_row; /* SIZE_MAX: a removal */
} l2c_late;

struct l2c_index {
    l2c_index_config config; /* path is a copy */
    char *path;

    pthread_mutex_t build, writer, lock;

    l2c_snapshot now;
    int64_t change;
    size_t ef_search, nprobe; /* in force; 0: the base's own */
    bool building, meta_changed;
    char why[160];

    bool logging; /* writer's: `late` collects what a running build may have missed */
    l2c_buf late;

    l2c_index_source source;
};

void l2c_snapshot_take(l2c_snapshot *out, l2c_index *ix);
void l2c_snapshot_drop(l2c_snapshot *s);

static inline size_t l2c_snapshot_rows(const l2c_snapshot *s) {
    return s->base->count - s->base_dead + s->fresh_live;
}

#endif
