/* One query against one snapshot; see probe.h. */
#include "index/probe.h"

#include <math.h>

#include "engine/base/vec.h"
#include "index/exact.h"

#define BROAD 16 /* a filter of more than this part of the rows is kept as bits */

/* The first place at or after `from` whose id is not below `id`. Gallops: it is usually near. */
static size_t seek(const int64_t *ids, size_t n, size_t from, int64_t id) {
    size_t lo = from, step = 1;
    while (lo + step <= n && ids[lo + step - 1] < id) {
        lo += step;
        step *= 2;
    }
    size_t hi = lo + step - 1 < n ? lo + step - 1 : n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (ids[mid] < id) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* Both lists ascend, so this is a merge. Bits are collected a word at a time: rows of one word
 * would wait for each other in memory. */
static void resolve_base(l2c_probe *p, const l2c_index_filter *f) {
    const l2c_segment *base = p->snap.base;
    const int64_t *ids = base->ids;
    size_t n = base->count, row = 0, matches = 0, word = 0;
    uint64_t bits = 0;
    bool dense = n > 0 && ids[n - 1] - ids[0] == (int64_t)(n - 1);
    size_t first = n > 0 ? seek(f->ids, f->count, 0, ids[0]) : f->count;
    for (size_t i = first; i < f->count; i++) {
        row = dense ? (size_t)(f->ids[i] - ids[0]) : seek(ids, n, row, f->ids[i]);
        if (row >= n) {
            break;
        }
        if ((!dense && ids[row] != f->ids[i]) ||
            (p->snap.base_dead > 0 && !l2c_segment_alive(base, row, p->snap.seq))) {
            continue;
        }
        if (p->base_rows != NULL) {
            p->base_rows[matches] = (uint32_t)row;
        } else {
            if (row / 64 != word) {
                p->base_bits[word] = bits;
                word = row / 64;
                bits = 0;
            }
            bits |= (uint64_t)1 << (row % 64);
        }
        matches++;
    }
    p->base_matches = matches;
    if (p->base_bits != NULL) {
        p->base_bits[word] = bits;
    }
}

/* Fresh rows come in the order they were added, which is mostly that of their ids. */
static void resolve_fresh(l2c_probe *p, const l2c_index_filter *f, size_t room) {
    size_t at = 0;
    int64_t last = INT64_MIN;
    for (size_t row = 0; row < p->snap.fresh_rows && p->fresh_matches < room; row++) {
        if (!l2c_fresh_alive(p->snap.fresh, row, p->snap.seq)) {
            continue;
        }
        int64_t id = l2c_fresh_id(p->snap.fresh, row);
        at = seek(f->ids, f->count, id < last ? 0 : at, id);
        last = id;
        if (at < f->count && f->ids[at] == id) {
            p->fresh_rows[p->fresh_matches++] = (uint32_t)row;
        }
    }
}

static l2cdb_status make_bits(l2c_probe *p, l2cdb_error *err) {
    size_t words = p->snap.base->count / 64 + 1;
    p->base_bits = l2c_calloc(words, sizeof *p->base_bits);
    return p->base_bits != NULL ? L2CDB_OK : l2c_fail_nomem(err, words * sizeof *p->base_bits);
}

static l2cdb_status make_rows(l2c_probe *p, size_t room, l2cdb_error *err) {
    p->base_rows = l2c_alloc(room, sizeof *p->base_rows);
    return p->base_rows != NULL ? L2CDB_OK : l2c_fail_nomem(err, room * sizeof *p->base_rows);
}

static l2cdb_status resolve(l2c_probe *p, const l2c_index_filter *f, l2cdb_error *err) {
    size_t base_room = f->count < p->snap.base->count ? f->count : p->snap.base->count;
    size_t fresh_room = f->count < p->snap.fresh_live ? f->count : p->snap.fresh_live;
    p->filtered = true;
    bool broad = base_room > p->snap.base->count / BROAD;
    l2cdb_status rc = broad ? make_bits(p, err) : make_rows(p, base_room, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    p->fresh_rows = l2c_alloc(fresh_room, sizeof *p->fresh_rows);
    if (p->fresh_rows == NULL) {
        return l2c_fail_nomem(err, fresh_room * sizeof *p->fresh_rows);
    }
    resolve_base(p, f);
    resolve_fresh(p, f, fresh_room);
    return L2CDB_OK;
}

/* The other form of a filter, where the way it is answered needs that one. */
static l2cdb_status need_bits(l2c_probe *p, l2cdb_error *err) {
    if (p->base_bits != NULL) {
        return L2CDB_OK;
    }
    l2cdb_status rc = make_bits(p, err);
    for (size_t i = 0; rc == L2CDB_OK && i < p->base_matches; i++) {
        p->base_bits[p->base_rows[i] / 64] |= (uint64_t)1 << (p->base_rows[i] % 64);
    }
    return rc;
}

static l2cdb_status need_rows(l2c_probe *p, l2cdb_error *err) {
    if (p->base_rows != NULL) {
        return L2CDB_OK;
    }
    l2cdb_status rc = make_rows(p, p->base_matches, err);
    for (size_t word = 0, n = 0; rc == L2CDB_OK && n < p->base_matches; word++) {
        for (uint64_t bits = p->base_bits[word]; bits != 0; bits &= bits - 1) {
            p->base_rows[n++] = (uint32_t)(word * 64 + (size_t)__builtin_ctzll(bits));
        }
    }
    return rc;
}

static l2cdb_status begin(l2c_probe *p, const float *query, size_t width,
                          const l2c_search_params *params, l2cdb_error *err) {
    *p = (l2c_probe){ .query = query };
    float norm = l2c_vec_norm(query, width);
    if (!(fabsf(norm - 1.0f) <= 2e-3f)) {
        return l2c_fail(err, L2CDB_E_INVALID, "the query vector has norm %g, expected 1",
                        (double)norm);
    }
    if (params != NULL) {
        p->params = *params;
    }
    return L2CDB_OK;
}

static void match_all(l2c_probe *p) {
    p->base_matches = p->snap.base->count - p->snap.base_dead;
    p->fresh_matches = p->snap.fresh_live;
}

l2cdb_status l2c_probe_open(l2c_probe *p, l2c_index *ix, const float *query,
                            const l2c_index_filter *filter, const l2c_search_params *params,
                            l2cdb_error *err) {
    l2cdb_status rc = begin(p, query, ix->config.width, params, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_snapshot_take(&p->snap, ix);
    pthread_mutex_lock(&ix->lock);
    p->ef_search = ix->ef_search;
    p->nprobe = ix->nprobe;
    pthread_mutex_unlock(&ix->lock);
    if (filter == NULL) {
        match_all(p);
        return L2CDB_OK;
    }
    rc = resolve(p, filter, err);
    if (rc != L2CDB_OK) {
        l2c_probe_close(p);
    }
    return rc;
}

l2cdb_status l2c_probe_on(l2c_probe *p, const l2c_snapshot *snap, const float *query,
                          const l2c_search_params *params, l2cdb_error *err) {
    l2cdb_status rc = begin(p, query, snap->base->width, params, err);
    if (rc == L2CDB_OK) {
        p->snap = *snap;
        l2c_segment_ref(snap->base);
        l2c_fresh_ref(snap->fresh);
        match_all(p);
    }
    return rc;
}

void l2c_probe_close(l2c_probe *p) {
    l2c_free(p->base_rows);
    l2c_free(p->base_bits);
    l2c_free(p->fresh_rows);
    l2c_snapshot_drop(&p->snap);
}

/* Candidates that are compared again with their full vectors, for k wanted rows: enough that the
 * codes' error rarely pushes a right row out, and more where a wider search was asked for. */
static size_t rerank_rows(l2c_quant quant, size_t k, size_t ef) {
    switch (quant) {
    case L2C_QUANT_F32:
        return k;
    case L2C_QUANT_FP16:
        return k + 2;
    case L2C_QUANT_SQ8:
        return k + 6 > ef / 8 ? k + 6 : ef / 8;
    case L2C_QUANT_SQ4:
        return 2 * k + 10 > ef / 2 ? 2 * k + 10 : ef / 2;
    default:
        return 10 * k + 50;
    }
}

/* Whether approximate search may return a row; ctx is the probe. */
static bool passes(const void *ctx, size_t row) {
    const l2c_probe *p = ctx;
    if (p->filtered) {
        return (p->base_bits[row / 64] >> (row % 64)) & 1u;
    }
    return l2c_segment_alive(p->snap.base, row, p->snap.seq);
}

/* The best `most` rows that pass, by their full vectors, offered to `top`. `near` ascends. */
static l2cdb_status rerank(l2c_top *top, l2c_probe *p, const l2c_near *near, size_t n, size_t most,
                           bool checked, size_t *passed, l2cdb_error *err) {
    size_t m = 0;
    uint32_t *rows = l2c_alloc(n < most ? n : most, sizeof *rows);
    if (rows == NULL) {
        return l2c_fail_nomem(err, most * sizeof *rows);
    }
    for (size_t i = 0; i < n && m < most; i++) {
        if (!checked || passes(p, near[i].row)) {
            rows[m++] = near[i].row;
        }
    }
    l2cdb_status rc = l2c_exact_base(top, &p->snap, p->query, rows, m, NULL, err);
    l2c_free(rows);
    p->plan.rerank = m;
    *passed = m;
    return rc;
}

static l2cdb_status graph_round(l2c_top *top, l2c_probe *p, size_t ef, size_t most, bool checked,
                                size_t *passed, l2cdb_error *err) {
    l2c_segment *base = p->snap.base;
    l2c_graph_work *w = l2c_segment_work_get(base, ef);
    if (w == NULL) {
        return l2c_fail_nomem(err, base->count / 8 + ef * sizeof(l2c_near));
    }
    l2c_codes_query q;
    l2c_codes_prepare(&q, l2c_ann_codes(base->ann), p->query, w->query_memory);
    size_t before = w->distances;
    l2c_graph_search(l2c_ann_graph(base->ann), &q, w, ef);
    p->plan.rows_scanned += w->distances - before;
    p->plan.ef_search = ef;
    l2cdb_status rc = rerank(top, p, w->pool, w->pool_count, most, checked, passed, err);
    l2c_segment_work_put(base, w);
    return rc;
}

static l2cdb_status lists_round(l2c_top *top, l2c_probe *p, size_t nprobe, size_t most,
                                bool checked, size_t *passed, l2cdb_error *err) {
    l2c_ann_filter filter = { .pass = passes, .ctx = p };
    l2c_near *near = l2c_alloc(most, sizeof *near);
    size_t found;
    if (near == NULL) {
        return l2c_fail_nomem(err, most * sizeof *near);
    }
    l2cdb_status rc = l2c_ann_lists_search(near, &found, p->snap.base->ann, p->query, most, nprobe,
                                           checked ? &filter : NULL, err);
    if (rc == L2CDB_OK) {
        p->plan.nprobe = nprobe;
        rc = rerank(top, p, near, found, most, false, passed, err);
    }
    l2c_free(near);
    return rc;
}

static size_t first_of(size_t a, size_t b, size_t c, size_t otherwise) {
    return a > 0 ? a : b > 0 ? b : c > 0 ? c : otherwise;
}

/* Widens ef or nprobe until k rows that pass are found. *found false: it did not come about at a
 * cost below that of an exact pass. */
static l2cdb_status approximate(l2c_top *top, l2c_probe *p, size_t k, bool *found,
                                l2cdb_error *err) {
    const l2c_segment *base = p->snap.base;
    const l2c_index_params *built = &base->meta.params;
    bool graph = built->kind == L2C_INDEX_HNSW;
    size_t wanted = k < p->base_matches ? k : p->base_matches;
    double share = (double)p->base_matches / (double)base->count;
    size_t breadth = graph ? first_of(p->params.ef_search, p->ef_search, built->ef_search, 64)
                           : first_of(p->params.nprobe, p->nprobe, built->nprobe, 16);
    size_t most = rerank_rows(built->quant, k, graph ? breadth : 0);
    if (graph) {
        breadth = breadth > most ? breadth : most;
        breadth = (size_t)((double)breadth / share); // ef rows that pass
    }
    // An exact pass reads whole vectors in order; a graph visits some twenty codes for each of ef.
    size_t limit = graph ? p->base_matches / 5 : built->nlist / 2;
    p->plan = (l2c_search_plan){ .kind = built->kind, .quant = built->quant };
    *found = false;
    l2cdb_status rc = p->filtered && breadth <= limit ? need_bits(p, err) : L2CDB_OK;
    bool checked = p->filtered || p->snap.base_dead > 0;
    while (rc == L2CDB_OK && !*found && breadth <= limit) {
        size_t passed = 0;
        top->n = 0;
        rc = graph ? graph_round(top, p, breadth, most, checked, &passed, err)
                   : lists_round(top, p, breadth, most, checked, &passed, err);
        *found = rc == L2CDB_OK && passed >= wanted;
        breadth *= 2;
    }
    return rc;
}

l2cdb_status l2c_probe_top(l2c_probe *p, l2c_hit *hits, size_t *found, size_t k, bool exact,
                           l2cdb_error *err) {
    l2c_top top = { .hits = hits, .k = k < l2c_probe_matches(p) ? k : l2c_probe_matches(p) };
    bool done = false;
    l2cdb_status rc = L2CDB_OK;
    *found = 0;
    if (!exact && p->snap.base->ann != NULL && p->base_matches > 0) {
        rc = approximate(&top, p, top.k, &done, err);
    }
    if (rc == L2CDB_OK && !done) {
        top.n = 0;
        p->plan = (l2c_search_plan){ .kind = L2C_INDEX_FLAT,
                                     .quant = L2C_QUANT_F32,
                                     .filter_first = p->filtered,
                                     .rows_scanned = p->plan.rows_scanned + p->base_matches };
        rc = p->filtered ? need_rows(p, err) : L2CDB_OK;
        if (rc == L2CDB_OK) {
            rc = l2c_exact_base(&top, &p->snap, p->query, p->base_rows, p->base_matches,
                                p->params.cancel, err);
        }
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_exact_fresh(&top, &p->snap, p->query, p->fresh_rows, p->fresh_matches);
    p->plan.rows_scanned += p->fresh_matches;
    l2c_top_sort(&top);
    *found = top.n;
    return L2CDB_OK;
}
