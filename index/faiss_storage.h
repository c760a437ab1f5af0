/* What the index keeps in FAISS objects, as plain C: the graph or the lists over a segment's rows.
 * Everything C++ and everything of FAISS stays behind this header. */
#ifndef L2C_FAISS_STORAGE_H
#define L2C_FAISS_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/status.h"
#include "index/codes.h"
#include "index/graph.h"
#include "index/index.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "faiss 1.7.3" */
const char *l2c_ann_library(void);

/* An immutable FAISS index over rows 0 … count − 1 with the inner product as its metric. Searches
 * may run in any number of threads. */
typedef struct l2c_ann l2c_ann;

/* Trains, encodes and links `vectors` f32 [count, width], which are not needed afterwards. `params`
 * has no 0 and no AUTO but for ef_search and nprobe. Phases "train" and "build". */
l2cdb_status l2c_ann_build(l2c_ann **out, const float *vectors, size_t count, size_t width,
                           const l2c_index_params *params, l2c_index_progress_fn progress,
                           void *ctx, l2cdb_error *err);
void l2c_ann_free(l2c_ann *ann); /* NULL accepted */
uint64_t l2c_ann_memory_bytes(const l2c_ann *ann);

/* The graph and its codes, borrowed; NULL for lists. */
const l2c_graph *l2c_ann_graph(const l2c_ann *ann);
const l2c_codes *l2c_ann_codes(const l2c_ann *ann);

/* Rows that may be returned. */
typedef struct l2c_ann_filter {
    bool (*pass)(const void *ctx, size_t row);
    const void *ctx;
} l2c_ann_filter;

/* The best `k` rows of the nprobe nearest lists, ascending by distance (−dot of the codes); *found
 * may be smaller. `filter` NULL: all pass. */
l2cdb_status l2c_ann_lists_search(l2c_near *out, size_t *found, const l2c_ann *ann,
                                  const float *query, size_t k, size_t nprobe,
                                  const l2c_ann_filter *filter, l2cdb_error *err);

/* The bytes of a file that faiss.read_index opens, at the FILE's position. */
l2cdb_status l2c_ann_save(const l2c_ann *ann, FILE *f, l2cdb_error *err);
/* From bytes whose checksum has been verified. E_CORRUPT if they are not what the header said. */
l2cdb_status l2c_ann_load(l2c_ann **out, const void *data, size_t bytes, l2c_index_kind kind,
                          l2c_quant quant, size_t width, size_t count, l2cdb_error *err);

#ifdef __cplusplus
}
#endif
#endif
