/* One query against one snapshot: what both search and scan are made of. */
#ifndef L2C_PROBE_H
#define L2C_PROBE_H

#include "index/handle.h"
#include "index/top.h"

typedef struct l2c_probe {
    l2c_snapshot snap;
    const float *query;
    l2c_search_params params;
    size_t ef_search, nprobe; /* the handle's, 0: the base's own */
    bool filtered;
    /* The live rows that pass, when filtered: those of the base in ascending order, or as a bit a
     * row where they are many (whichever is not NULL). */
    uint32_t *base_rows, *fresh_rows;
    uint64_t *base_bits;
    size_t base_matches, fresh_matches;
    l2c_search_plan plan;
} l2c_probe;

/* Takes a snapshot and resolves the filter. query is borrowed, filter is not needed afterwards. */
l2cdb_status l2c_probe_open(l2c_probe *p, l2c_index *ix, const float *query,
                            const l2c_index_filter *filter, const l2c_search_params *params,
                            l2cdb_error *err);
/* The same on a snapshot that is held elsewhere, without a filter and without a handle's defaults.
 */
l2cdb_status l2c_probe_on(l2c_probe *p, const l2c_snapshot *snap, const float *query,
                          const l2c_search_params *params, l2cdb_error *err);
void l2c_probe_close(l2c_probe *p);

static inline size_t l2c_probe_matches(const l2c_probe *p) {
    return p->base_matches + p->fresh_matches;
}

/* The min(k, matches) nearest, ascending; *found of them in hits (room for that many). `exact`
 * overrides the plan. */
l2cdb_status l2c_probe_top(l2c_probe *p, l2c_hit *hits, size_t *found, size_t k, bool exact,
                           l2cdb_error *err);

#endif
