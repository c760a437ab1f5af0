/* Brute force: every row that may be returned is compared. The truth that approximate searches are
 * measured against and end in. */
#ifndef L2C_EXACT_H
#define L2C_EXACT_H

#include <string.h>

#include "index/handle.h"
#include "index/top.h"

/* 1 − dot, and exactly 0 for a row that is the query itself. */
static inline float l2c_exact_distance(float dot, const float *query, const float *row,
                                       size_t width) {
    float d = 1.0f - dot;
    if (d < 1e-4f) {
        return memcmp(query, row, width * sizeof *row) == 0 ? 0.0f : d > 0 ? d : 0.0f;
    }
    return d;
}

/* Offers the live base rows of a snapshot to `top`; `rows` (ascending, live) if not NULL are all
 * that may be returned. `cancel` (may be NULL) is polled: E_CANCELLED. */
l2cdb_status l2c_exact_base(l2c_top *top, const l2c_snapshot *snap, const float *query,
                            const uint32_t *rows, size_t n, const l2c_flag *cancel,
                            l2cdb_error *err);
/* The same for the fresh rows. */
void l2c_exact_fresh(l2c_top *top, const l2c_snapshot *snap, const float *query,
                     const uint32_t *rows, size_t n);

#endif
