/* The index's door: ids and unit vectors in, nearest ids out. A cache, never the truth: it can be
 * thrown away at any time and rebuilt from its source.
 *
 *   l2c_index_open(&ix, &(l2c_index_config){ .path = "photos.l2cdb-g1-image.idx", .width = 768,
 *                  .generation = 1, .change = store's, .source = {…} }, &err);
 *   l2c_index_add(ix, ids, vectors, n, change, &err);     // after the store has committed
 *   l2c_index_search(ix, out_ids, out_distances, &found, query, 10, NULL, &err);
 *
 * What always holds:
 *  1. Distances are cosine distances 1 − a·b of the stored f32 vectors, whatever the graph was
 * built on: candidates are re-ranked. Ties are broken by the lower id.
 *  2. A search with k and a filter returns exactly min(k, live rows that pass) rows.
 *  3. The file is written beside and renamed; a file that is damaged, foreign, newer, or of another
 *     generation is set aside with a log line and the index rebuilt from the source.
 *  4. Searches never wait for a build or a merge: they answer from what is there, exactly if need
 * be.
 *
 * Threads: any number of searching threads and one writer (add, remove, build, save) at a time; the
 * index does its own locking. */
#ifndef L2C_INDEX_H
#define L2C_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/flag.h"
#include "engine/base/mem.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum l2c_index_kind {
    L2C_INDEX_AUTO,
    L2C_INDEX_FLAT,
    L2C_INDEX_HNSW,
    L2C_INDEX_IVF
} l2c_index_kind;
typedef enum l2c_quant {
    L2C_QUANT_AUTO,
    L2C_QUANT_F32,
    L2C_QUANT_FP16,
    L2C_QUANT_SQ8,
    L2C_QUANT_SQ4,
    L2C_QUANT_PQ, /* IVF only */
} l2c_quant;

const char *l2c_index_kind_name(l2c_index_kind k); /* "auto", "flat", "hnsw", "ivf" */
const char *l2c_quant_name(l2c_quant q);           /* "auto", "f32", "fp16", "sq8", "sq4", "pq" */

/* 0 means: choose. */
typedef struct l2c_index_params {
    l2c_index_kind kind;
    l2c_quant quant;
    size_t m, ef_construction; /* HNSW: 32, 100 */
    size_t nlist;              /* IVF: about 4 sqrt(rows) */
    size_t ef_search, nprobe;  /* defaults for searches; 0: tuned to recall 0.95 at build */
    size_t threads;            /* build */
} l2c_index_params;

/* Sets one parameter by name ("m", "ef_construction", "nlist", "quant", "ef_search", "nprobe",
 * "kind"); E_INVALID names the parameter, the value and what is allowed. */
l2cdb_status l2c_index_params_set(l2c_index_params *p, const char *name, const char *value,
                                  l2cdb_error *err);

/* Where the vectors live. Called from the building or searching thread; may be called from several
 * threads at once. Vectors are unit f32 [n, width]. */
typedef struct l2c_index_source {
    void *ctx;
    /* Number of live rows now. */
    l2cdb_status (*count)(void *ctx, size_t *out, l2cdb_error *err);
    /* Up to `max` rows with id > after_id in ascending id; *got 0 at the end. */
    l2cdb_status (*pull)(void *ctx, int64_t *ids, float *vectors, size_t max, size_t *got,
                         int64_t after_id, l2cdb_error *err);
    /* Changes with number > since, in order: added[i] false is a removal (its vector is undefined).
     * *change is the number of the last one returned. *got 0 when nothing is newer. E_NOTFOUND if
     * the log no longer reaches back to `since` (the index is then rebuilt). */
    l2cdb_status (*replay)(void *ctx, int64_t *ids, float *vectors, bool *added, size_t max,
                           size_t *got, int64_t since, int64_t *change, l2cdb_error *err);
} l2c_index_source;

typedef struct l2c_index_config {
    const char *path; /* file; NULL: memory only */
    size_t width;
    int64_t generation;
    int64_t change; /* the store's change number now */
    l2c_index_params params;
    l2c_index_source source;
    bool read_only; /* never writes the file */
} l2c_index_config;

typedef struct l2c_index l2c_index;

/* Loads the file if it fits, replays what it missed, else starts flat from the source; a wanted
 * graph is then built by l2c_index_build (the engine decides when). Source must outlive the index.
 */
l2cdb_status l2c_index_open(l2c_index **out, const l2c_index_config *config, l2cdb_error *err);
/* Keeps changed search parameters as l2c_index_save does; NULL accepted. No search or scan may be
 * running on it. */
void l2c_index_close(l2c_index *ix);

/* New or replaced rows. `change` is the store's number of this commit. Copies the vectors. */
l2cdb_status l2c_index_add(l2c_index *ix, const int64_t *ids, const float *vectors, size_t n,
                           int64_t change, l2cdb_error *err);
/* Unknown ids are ignored. */
l2cdb_status l2c_index_remove(l2c_index *ix, const int64_t *ids, size_t n, int64_t change,
                              l2cdb_error *err);

/* phase "read", "train", "build", "tune"; rows done and total; false cancels. */
typedef bool (*l2c_index_progress_fn)(void *ctx, const char *phase, size_t done, size_t total);

/* Builds a new base segment from the source with `params` (NULL: those of the config or of the last
 * build that was given some, adapted to the row count), swaps it in, saves. Cancel or error leave
 * the old one answering. */
l2cdb_status l2c_index_build(l2c_index *ix, const l2c_index_params *params,
                             l2c_index_progress_fn progress, void *ctx, l2cdb_error *err);
/* True when fresh rows and tombstones exceed their share of the base, when auto wants another kind,
 * when a large flat index has no file yet, or when part of the file turned out damaged. */
bool l2c_index_wants_build(const l2c_index *ix);
/* Keeps search parameters that were set since the file was written. Rows get into the file by a
 * build; those that came later are replayed from the source at the next open, so that closing an
 * index of a million rows after one more photo writes nothing. */
l2cdb_status l2c_index_save(l2c_index *ix, l2cdb_error *err);

/* A set of ids that may be returned; sorted ascending, unique, borrowed. */
typedef struct l2c_index_filter {
    const int64_t *ids;
    size_t count;
} l2c_index_filter;

typedef struct l2c_search_params {
    bool exact;
    size_t ef_search, nprobe; /* 0: the index's own */
    const l2c_flag *cancel;   /* polled; E_CANCELLED */
} l2c_search_params;

/* What a search did, for EXPLAIN. */
typedef struct l2c_search_plan {
    l2c_index_kind kind; /* what answered: FLAT means exact */
    l2c_quant quant;
    bool filter_first; /* exact over the filter's ids */
    size_t ef_search, nprobe, rows_scanned, rerank;
} l2c_search_plan;

/* The k nearest to `query` (f32 [width], unit norm within 1e-3) in ascending distance. ids and
 * distances have room for k; *found is min(k, matches). filter, params, plan may be NULL. */
l2cdb_status l2c_index_search(l2c_index *ix, int64_t *ids, float *distances, size_t *found,
                              const float *query, size_t k, const l2c_index_filter *filter,
                              const l2c_search_params *params, l2c_search_plan *plan,
                              l2cdb_error *err);

/* The same as a stream: every matching row once, in ascending distance, as many as are asked for.
 * Deeper requests widen ef/nprobe and end in an exact pass. A row that an approximate round had
 * missed comes as soon as a later round finds it, even though it is nearer than the last one given;
 * flat indexes and exact scans have no such rows. The scan sees the rows of the moment it
 * was opened; `filter` and `query` are copied. One thread a scan. */
typedef struct l2c_scan l2c_scan;
l2cdb_status l2c_scan_open(l2c_scan **out, l2c_index *ix, const float *query,
                           const l2c_index_filter *filter, const l2c_search_params *params,
                           l2cdb_error *err);
/* Up to `max` further rows; *got 0 at the end. */
l2cdb_status l2c_scan_next(l2c_scan *s, int64_t *ids, float *distances, size_t max, size_t *got,
                           l2cdb_error *err);
void l2c_scan_get_plan(const l2c_scan *s, l2c_search_plan *plan);
void l2c_scan_close(l2c_scan *s);

typedef struct l2c_index_status {
    l2c_index_kind kind;
    l2c_quant quant;
    l2c_index_params params; /* in force */
    size_t rows, base_rows, fresh_rows, tombstones;
    uint64_t file_bytes, memory_bytes;
    int64_t change;
    bool building;
    double build_s; /* of the base */
    double recall;  /* measured at build, or -1 */
    char why[160];  /* why auto chose this */
} l2c_index_status;
void l2c_index_get_status(const l2c_index *ix, l2c_index_status *out);

/* Overlap of approximate with exact top-k on `samples` rows of the index's own data (0: 200), and
 * the smallest ef_search/nprobe that reaches `target` (0: do not look). */
typedef struct l2c_recall_result {
    size_t samples, k;
    double recall;             /* at the parameters in force */
    double query_ms, exact_ms; /* mean */
    size_t wanted_param; /* ef_search or nprobe for the target, 0 if not asked or not reached */
    double wanted_recall;
} l2c_recall_result;
l2cdb_status l2c_index_recall(l2c_index *ix, l2c_recall_result *out, size_t k, size_t samples,
                              double target, uint64_t seed, l2cdb_error *err);
/* Makes a value found by recall (or set by the user) the index's default; kept in the file. */
void l2c_index_set_search_params(l2c_index *ix, size_t ef_search, size_t nprobe);

/* "faiss 1.7.3, kernels avx512" */
void l2c_index_describe(l2c_buf *out);

#ifdef __cplusplus
}
#endif
#endif
