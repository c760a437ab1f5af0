/* Search, and the scan that yields neighbours in order for as long as they are asked for.
 *
 * A scan asks its probe for the best K rows, K being what the caller asks for, and hands them out;
 * when they are used up it asks again with a K four times as large, and at last for everything,
 * exactly. Rows handed out are marked, so none comes twice; a row that an approximate round had
 * missed is handed out by the round that finds it, so none is lost. */
#include "index/probe.h"

#include <string.h>

#define GROWTH 4

l2cdb_status l2c_index_search(l2c_index *ix, int64_t *ids, float *distances, size_t *found,
                              const float *query, size_t k, const l2c_index_filter *filter,
                              const l2c_search_params *params, l2c_search_plan *plan,
                              l2cdb_error *err) {
    *found = 0;
    l2c_probe p;
    l2cdb_status rc = l2c_probe_open(&p, ix, query, filter, params, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t n = k < l2c_probe_matches(&p) ? k : l2c_probe_matches(&p);
    l2c_hit *hits = l2c_alloc(n, sizeof *hits);
    rc = hits == NULL ? l2c_fail_nomem(err, n * sizeof *hits)
                      : l2c_probe_top(&p, hits, found, n, p.params.exact, err);
    for (size_t i = 0; i < *found; i++) {
        ids[i] = hits[i].id;
        distances[i] = hits[i].distance;
    }
    if (plan != NULL) {
        *plan = p.plan;
    }
    l2c_free(hits);
    l2c_probe_close(&p);
    return rc;
}

struct l2c_scan {
    l2c_probe probe;
    float *query;
    uint8_t *given; /* a bit for every row of the snapshot */
    l2c_hit *hits;
    size_t at, found, given_count, round;
};

l2cdb_status l2c_scan_open(l2c_scan **out, l2c_index *ix, const float *query,
                           const l2c_index_filter *filter, const l2c_search_params *params,
                           l2cdb_error *err) {
    *out = NULL;
    l2c_scan *s = l2c_calloc(1, sizeof *s);
    float *copy = l2c_alloc(ix->config.width, sizeof *copy);
    if (s == NULL || copy == NULL) {
        l2c_free(s);
        l2c_free(copy);
        return l2c_fail_nomem(err, ix->config.width * sizeof *copy);
    }
    memcpy(copy, query, ix->config.width * sizeof *copy);
    s->query = copy;
    l2cdb_status rc = l2c_probe_open(&s->probe, ix, copy, filter, params, err);
    if (rc != L2CDB_OK) {
        l2c_free(copy);
        l2c_free(s);
        return rc;
    }
    *out = s;
    return L2CDB_OK;
}

/* The next round: more rows than have been given, of which those not given stay. */
static l2cdb_status next_round(l2c_scan *s, size_t wanted, l2cdb_error *err) {
    size_t matches = l2c_probe_matches(&s->probe);
    size_t rows = s->probe.snap.base->count + s->probe.snap.fresh_rows;
    size_t k = s->round * GROWTH;
    if (k < s->given_count + wanted) {
        k = s->given_count + wanted;
    }
    if (k > matches / 8 || (s->round > 0 && s->probe.plan.kind == L2C_INDEX_FLAT)) {
        k = matches; // sorting all distances once is cheaper than another round
    }
    if (s->given == NULL) {
        s->given = l2c_calloc(rows / 8 + 1, 1);
    }
    l2c_free(s->hits);
    s->at = s->found = 0;
    s->hits = l2c_alloc(k, sizeof *s->hits);
    if (s->given == NULL || s->hits == NULL) {
        return l2c_fail_nomem(err, k * sizeof *s->hits + rows / 8);
    }
    size_t found;
    l2cdb_status rc =
        l2c_probe_top(&s->probe, s->hits, &found, k, s->probe.params.exact || k == matches, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    s->round = k;
    for (size_t i = 0; i < found; i++) {
        uint32_t row = s->hits[i].row;
        if ((s->given[row / 8] & (1u << (row % 8))) == 0) {
            s->hits[s->found++] = s->hits[i];
        }
    }
    return L2CDB_OK;
}

l2cdb_status l2c_scan_next(l2c_scan *s, int64_t *ids, float *distances, size_t max, size_t *got,
                           l2cdb_error *err) {
    *got = 0;
    while (*got < max && s->given_count < l2c_probe_matches(&s->probe)) {
        if (s->at == s->found) {
            l2cdb_status rc = next_round(s, max - *got, err);
            if (rc != L2CDB_OK) {
                return rc;
            }
        }
        while (*got < max && s->at < s->found) {
            const l2c_hit *hit = &s->hits[s->at++];
            s->given[hit->row / 8] = (uint8_t)(s->given[hit->row / 8] | 1u << (hit->row % 8));
            s->given_count++;
            ids[*got] = hit->id;
            distances[*got] = hit->distance;
            ++*got;
        }
    }
    return L2CDB_OK;
}

void l2c_scan_get_plan(const l2c_scan *s, l2c_search_plan *plan) {
    *plan = s->probe.plan;
}

void l2c_scan_close(l2c_scan *s) {
    if (s == NULL) {
        return;
    }
    l2c_probe_close(&s->probe);
    l2c_free(s->query);
    l2c_free(s->given);
    l2c_free(s->hits);
    l2c_free(s);
}
