/* One query against one snapshot; see probe.h. */
#include "index/probe.h"

#include <math.h>

#include "engine/base/vec.h"
#include "index/exact.h"

static bool in_filter(const l2c_index_filter *f, int64_t id) {
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (f->ids[mid] < id) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < f->count && f->ids[lo] == id;
}

/* Both lists ascend: a binary search for the first id, then a merge that gallops over gaps. */
static void resolve_base(l2c_probe *p, const l2c_index_filter *f) {
    const l2c_segment *base = p->snap.base;
    size_t n = base->count, row = 0;
    const int64_t *ids = base->ids;
    bool dense = n > 0 && ids[n - 1] - ids[0] == (int64_t)(n - 1);
    for (size_t i = 0; i < f->count && row < n; i++) {
        int64_t id = f->ids[i];
        if (dense) {
            if (id < ids[0]) {
                continue;
            }
            row = (size_t)(id - ids[0]);
        } else if (ids[row] < id) {
            size_t step = 1;
            while (row + step < n && ids[row + step] < id) {
                step *= 2;
            }
            size_t lo = row + step / 2, hi = row + step < n ? row + step : n;
            while (lo < hi) {
                size_t mid = lo + (hi - lo) / 2;
                if (ids[mid] < id) {
                    lo = mid + 1;
                } else {
                    hi = mid;
                }
            }
            row = lo;
        }
        if (row < n && ids[row] == id &&
            (p->snap.base_dead == 0 || l2c_segment_alive(base, row, p->snap.seq))) {
            p->base_rows[p->base_matches++] = (uint32_t)row;
        }
    }
}

static l2cdb_status resolve(l2c_probe *p, const l2c_index_filter *f, l2cdb_error *err) {
    size_t base_room = f->count < p->snap.base->count ? f->count : p->snap.base->count;
    size_t fresh_room = f->count < p->snap.fresh_live ? f->count : p->snap.fresh_live;
    p->filtered = true;
    p->base_rows = l2c_alloc(base_room, sizeof *p->base_rows);
    p->fresh_rows = l2c_alloc(fresh_room, sizeof *p->fresh_rows);
    if (p->base_rows == NULL || p->fresh_rows == NULL) {
        return l2c_fail_nomem(err, (base_room + fresh_room) * sizeof *p->base_rows);
    }
    resolve_base(p, f);
    for (size_t row = 0; row < p->snap.fresh_rows && p->fresh_matches < fresh_room; row++) {
        if (l2c_fresh_alive(p->snap.fresh, row, p->snap.seq) &&
            in_filter(f, l2c_fresh_id(p->snap.fresh, row))) {
            p->fresh_rows[p->fresh_matches++] = (uint32_t)row;
        }
    }
    return L2CDB_OK;
}

l2cdb_status l2c_probe_open(l2c_probe *p, l2c_index *ix, const float *query,
                            const l2c_index_filter *filter, const l2c_search_params *params,
                            l2cdb_error *err) {
    *p = (l2c_probe){ .query = query };
    float norm = l2c_vec_norm(query, ix->config.width);
    if (!(fabsf(norm - 1.0f) <= 2e-3f)) {
        return l2c_fail(err, L2CDB_E_INVALID, "the query vector has norm %g, expected 1",
                        (double)norm);
    }
    if (params != NULL) {
        p->params = *params;
    }
    l2c_snapshot_take(&p->snap, ix);
    if (filter == NULL) {
        p->base_matches = p->snap.base->count - p->snap.base_dead;
        p->fresh_matches = p->snap.fresh_live;
        return L2CDB_OK;
    }
    l2cdb_status rc = resolve(p, filter, err);
    if (rc != L2CDB_OK) {
        l2c_probe_close(p);
    }
    return rc;
}

void l2c_probe_close(l2c_probe *p) {
    l2c_free(p->base_rows);
    l2c_free(p->fresh_rows);
    p->base_rows = p->fresh_rows = NULL;
    l2c_snapshot_drop(&p->snap);
}

l2cdb_status l2c_probe_top(l2c_probe *p, l2c_hit *hits, size_t *found, size_t k, bool exact,
                           l2cdb_error *err) {
    l2c_top top = { .hits = hits, .k = k < l2c_probe_matches(p) ? k : l2c_probe_matches(p) };
    (void)exact;
    *found = 0;
    p->plan = (l2c_search_plan){ .kind = L2C_INDEX_FLAT,
                                 .quant = L2C_QUANT_F32,
                                 .filter_first = p->filtered,
                                 .rows_scanned = l2c_probe_matches(p) };
    l2cdb_status rc = l2c_exact_base(&top, &p->snap, p->query, p->base_rows, p->base_matches,
                                     p->params.cancel, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_exact_fresh(&top, &p->snap, p->query, p->fresh_rows, p->fresh_matches);
    l2c_top_sort(&top);
    *found = top.n;
    return L2CDB_OK;
}
