/* Hierarchical navigable small world graphs (Malkov and Yashunin 2016, arXiv 1603.09320) in the
 * arrays of FAISS's HNSW structure, which owns and stores them.
 *
 * FAISS's own loops are correct but go through a virtual call for each distance, without prefetch
 * and with two heaps; docs/index.md has the measurements that led to these. */
#ifndef L2C_GRAPH_H
#define L2C_GRAPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/codes.h"
#include "index/index.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Node i has the lists neighbors[offsets[i] …]: `degree0` places for level 0, then `degree` for
 * each level above, up to levels[i] levels; lists end early with −1. */
typedef struct l2c_graph {
    size_t count, degree0, degree;
    const size_t *offsets; /* [count + 1] */
    const int32_t *levels; /* [count], at least 1 */
    int32_t *neighbors;
    int32_t entry; /* −1: empty */
    int max_level; /* of the entry, from 0 */
} l2c_graph;

/* A candidate; the highest bit of `row` marks one whose neighbours have been looked at. */
typedef struct l2c_near {
    float distance; /* −dot */
    uint32_t row;
} l2c_near;

#define L2C_NEAR_ROW 0x7FFFFFFFu

/* Scratch of one search or one building thread. */
typedef struct l2c_graph_work {
    size_t count, ef_most, row_most;
    uint64_t *visited; /* a bit a row */
    int32_t *touched;  /* rows whose bit is set */
    size_t touched_count;
    l2c_near *pool; /* [ef_most + 1] ascending */
    size_t pool_count;
    int32_t *rows; /* [row_most] */
    float *dots;
    void *query_memory;
    size_t distances; /* computed since init */
} l2c_graph_work;

/* ef_most is the largest ef that will be asked for. */
bool l2c_graph_work_init(l2c_graph_work *w, const l2c_graph *g, const l2c_codes *codes,
                         size_t ef_most);
bool l2c_graph_work_grow(l2c_graph_work *w, size_t ef_most);
void l2c_graph_work_fini(l2c_graph_work *w);

/* The ef nearest rows that the graph leads to, into w->pool, ascending. `q` may use
 * w->query_memory. */
void l2c_graph_search(const l2c_graph *g, const l2c_codes_query *q, l2c_graph_work *w, size_t ef);

/* Links all nodes: `neighbors` is full of −1, levels and offsets are set, `codes` are SQ8 or SQ4
 * of the rows. E_CANCELLED, E_NOMEM. `progress` as in l2c_index_build, phase "build". */
l2cdb_status l2c_graph_build(l2c_graph *g, const l2c_codes *codes, size_t ef_construction,
                             size_t threads, l2c_index_progress_fn progress, void *ctx,
                             l2cdb_error *err);

#ifdef __cplusplus
}
#endif
#endif
