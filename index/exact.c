/* Brute force; see exact.h. Rows are taken in groups of 64 pointers, so that a scan of everything,
 * of a filter's rows and of scattered chunks are one loop. */
#include "index/exact.h"

#include "index/kernels.h"

#define GROUP 64

typedef struct group {
    const float *vectors[GROUP];
    uint32_t rows[GROUP];
    int64_t ids[GROUP];
    size_t n;
} group;

static void flush(l2c_top *top, group *g, const float *query, size_t width) {
    float dots[GROUP];
    l2c_kernel_dots(dots, query, g->vectors, g->n, width);
    float worst = l2c_top_worst(top);
    for (size_t i = 0; i < g->n; i++) {
        if (1.0f - dots[i] > worst) {
            continue;
        }
        float d = l2c_exact_distance(dots[i], query, g->vectors[i], width);
        l2c_top_offer(top, (l2c_hit){ .distance = d, .row = g->rows[i], .id = g->ids[i] });
        worst = l2c_top_worst(top);
    }
    g->n = 0;
}

static void push(l2c_top *top, group *g, const float *query, size_t width, const float *vector,
                 size_t row, int64_t id) {
    g->vectors[g->n] = vector;
    g->rows[g->n] = (uint32_t)row;
    g->ids[g->n] = id;
    if (++g->n == GROUP) {
        flush(top, g, query, width);
    }
}

l2cdb_status l2c_exact_base(l2c_top *top, const l2c_snapshot *snap, const float *query,
                            const uint32_t *rows, size_t n, const volatile bool *cancel,
                            l2cdb_error *err) {
    l2c_segment *base = snap->base;
    group g = { .n = 0 };
    size_t count = rows != NULL ? n : base->count;
    for (size_t i = 0; i < count; i++) {
        size_t row = rows != NULL ? rows[i] : i;
        if (rows == NULL && snap->base_dead > 0 && !l2c_segment_alive(base, row, snap->seq)) {
            continue;
        }
        if (cancel != NULL && i % 4096 == 0 && *cancel) {
            return l2c_fail(err, L2CDB_E_CANCELLED, "the search was cancelled");
        }
        const float *vector = l2c_segment_row(base, row, err);
        if (vector == NULL) {
            return l2c_context(err, "row %lld", (long long)base->ids[row]);
        }
        push(top, &g, query, base->width, vector, row, base->ids[row]);
    }
    if (g.n > 0) {
        flush(top, &g, query, base->width);
    }
    return L2CDB_OK;
}

void l2c_exact_fresh(l2c_top *top, const l2c_snapshot *snap, const float *query,
                     const uint32_t *rows, size_t n) {
    const l2c_fresh *fresh = snap->fresh;
    group g = { .n = 0 };
    size_t count = rows != NULL ? n : snap->fresh_rows;
    for (size_t i = 0; i < count; i++) {
        size_t row = rows != NULL ? rows[i] : i;
        if (rows == NULL && !l2c_fresh_alive(fresh, row, snap->seq)) {
            continue;
        }
        push(top, &g, query, fresh->width, l2c_fresh_vector(fresh, row), snap->base->count + row,
             l2c_fresh_id(fresh, row));
    }
    if (g.n > 0) {
        flush(top, &g, query, fresh->width);
    }
}
