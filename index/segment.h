/* The base segment: an immutable set of rows in ascending id, with or without a graph or lists over
 * them, in memory or mapped from the index file.
 *
 * The file (version 1, integers in the byte order of the machine, which the header names):
 *
 *   0     header, one page of 4,096 bytes: magic, version, byte order, XXH3-128 of the page itself,
 *         generation, change, kind, quantiser, width, count, parameters, the section table
 *   4096  vectors  f32 [count, width]
 *   …     ids      i64 [count], ascending
 *   …     blocks   u64 [ceil(count / 32)], XXH3 of each block of 32 vectors
 *   …     faiss    a file that faiss.read_index opens; empty for a flat segment
 *
 * At open the header, ids, blocks and faiss sections are hashed before anything believes them. The
 * vectors are many times larger and most queries touch few of them, so a block is hashed when it is
 * first touched. A block that turns out damaged is replaced by the rows of the source, which is the
 * truth anyway, and the segment asks to be rebuilt. */
#ifndef L2C_SEGMENT_H
#define L2C_SEGMENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/file.h"
#include "engine/base/mem.h"
#include "index/faiss_storage.h"
#include "index/fresh.h"
#include "index/index.h"

#define L2C_BLOCK_ROWS 32
#define L2C_WORKS_KEPT 16

/* What the file's header says besides the sections. */
typedef struct l2c_segment_meta {
    int64_t generation, change;
    l2c_index_params params; /* kind and quant as built, never AUTO */
    double build_s, recall;
} l2c_segment_meta;

typedef struct l2c_segment {
    atomic_size_t refs;
    size_t width, count;
    l2c_segment_meta meta;
    const int64_t *ids;   /* [count] ascending */
    const float *vectors; /* [count, width]; read them through l2c_segment_row */
    l2c_ann *ann;         /* NULL: flat */
    uint64_t file_bytes;

    int64_t *ids_owned;
    float *vectors_owned;
    uint64_t *blocks_owned;
    l2c_map map;

    const l2c_index_source *source; /* replaces damaged blocks */
    const uint64_t *block_hashes;
    _Atomic uint8_t *block_state; /* NULL: nothing left to verify */
    float *_Atomic *patches;
    atomic_bool damaged;

    /* Scratch of graph searches, kept between them. */
    pthread_mutex_t works_lock;
    l2c_graph_work *works[L2C_WORKS_KEPT];
    size_t works_count;

    _Atomic uint64_t *_Atomic dead_at; /* [count], made with the first tombstone */
} l2c_segment;

void l2c_segment_ref(l2c_segment *s);
void l2c_segment_unref(l2c_segment *s); /* NULL accepted */

/* Row of an id, or SIZE_MAX. */
size_t l2c_segment_find(const l2c_segment *s, int64_t id);
/* Rows with id < `id`. */
size_t l2c_segment_lower(const l2c_segment *s, int64_t id);

/* Scratch for searches of this segment's graph with at most ef_most; NULL without memory. Returned
 * with put (NULL accepted). */
l2c_graph_work *l2c_segment_work_get(l2c_segment *s, size_t ef_most);
void l2c_segment_work_put(l2c_segment *s, l2c_graph_work *w);

/* Makes tombstones possible; false without memory. The writer only. */
bool l2c_segment_can_kill(l2c_segment *s);
void l2c_segment_kill(l2c_segment *s, size_t row, uint64_t seq);

static inline bool l2c_segment_alive(const l2c_segment *s, size_t row, uint64_t seq) {
    _Atomic uint64_t *dead = atomic_load_explicit(&s->dead_at, memory_order_acquire);
    return dead == NULL || atomic_load_explicit(&dead[row], memory_order_relaxed) > seq;
}

/* The vector of a row, verified; NULL when it is damaged and the source could not replace it. */
const float *l2c_segment_row_checked(l2c_segment *s, size_t row, l2cdb_error *err);
static inline const float *l2c_segment_row(l2c_segment *s, size_t row, l2cdb_error *err) {
    return s->block_state == NULL ? s->vectors + row * s->width
                                  : l2c_segment_row_checked(s, row, err);
}

/* Bytes on the heap. */
uint64_t l2c_segment_memory_bytes(const l2c_segment *s);

/* Reads the file of `path`: E_NOTFOUND, or E_CORRUPT, E_FORMAT, E_VERSION, E_MISMATCH with what is
 * wrong with it. `generation`, `width` and `change` are those of the store. */
l2cdb_status l2c_segment_load(l2c_segment **out, const char *path, size_t width, int64_t generation,
                              int64_t change, const l2c_index_source *source, l2cdb_error *err);

/* A segment in the making. With a path the vectors go straight to a file beside it and are mapped
 * back, so that the memory needed is that of the graph; without one they stay in memory. */
typedef struct l2c_segment_draft {
    l2c_segment *segment; /* complete after rows_done: what the graph is built from */
    l2c_writer writer;
    bool to_file;
    size_t capacity;
    l2c_buf blocks;
    size_t pending_rows; /* of the block being hashed */
    float *pending;
} l2c_segment_draft;

/* Pulls every row of the source. `progress` as in l2c_index_build, phase "read". */
l2cdb_status l2c_draft_pull(l2c_segment_draft *d, const char *path, size_t width,
                            const l2c_index_source *source, l2c_index_progress_fn progress,
                            void *ctx, l2cdb_error *err);
/* Appends ids, blocks and the graph (segment->ann) to the file and renames it into place; in memory
 * only the meta is set. *out owns the segment; the draft is empty afterwards on every outcome. */
l2cdb_status l2c_draft_commit(l2c_segment **out, l2c_segment_draft *d, const l2c_segment_meta *meta,
                              l2cdb_error *err);
void l2c_draft_abort(l2c_segment_draft *d);

/* Writes an existing segment again with other meta. */
l2cdb_status l2c_segment_rewrite(l2c_segment *s, const char *path, const l2c_segment_meta *meta,
                                 l2cdb_error *err);

#endif
