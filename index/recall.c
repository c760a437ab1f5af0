/* Recall; see recall.h. Sampled rows are the queries and do not count as their own neighbours,
 * which any graph would find.
 *
 * The exact answers of all samples come from one pass: a block of rows stays in the cache while
 * every sample is compared with it. */
#include "index/recall.h"

#include <string.h>

#include "engine/base/clock.h"
#include "index/exact.h"
#include "index/kernels.h"
#include "index/probe.h"

#define SAMPLES 200
#define BREADTH_MOST 4096

typedef struct trial {
    const l2c_snapshot *snap;
    size_t k, samples;
    uint32_t *rows; // the sampled base rows
    l2c_hit *truth; // [samples, k + 1]
    size_t *found;  // of the truth, itself left out
    l2c_index_progress_fn progress;
    void *ctx;
} trial;

static uint64_t next_random(uint64_t *seed) {
    uint64_t z = (*seed += 0x9E3779B97F4A7C15u); // splitmix64, public domain, S. Vigna
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void draw(trial *t, uint64_t seed) {
    const l2c_segment *base = t->snap->base;
    size_t wanted = t->samples;
    t->samples = 0;
    for (size_t tries = 0; t->samples < wanted && tries < wanted * 64; tries++) {
        size_t row = (size_t)(next_random(&seed) % base->count);
        if (l2c_segment_alive(base, row, t->snap->seq)) {
            t->rows[t->samples++] = (uint32_t)row;
        }
    }
}

/* Fills truth with the k + 1 nearest of every sample; itself is among them. */
static l2cdb_status find_truth(trial *t, const float *queries, l2cdb_error *err) {
    l2c_segment *base = t->snap->base;
    l2c_top *tops = l2c_calloc(t->samples, sizeof *tops);
    if (tops == NULL) {
        return l2c_fail_nomem(err, t->samples * sizeof *tops);
    }
    for (size_t s = 0; s < t->samples; s++) {
        tops[s] = (l2c_top){ .hits = t->truth + s * (t->k + 1), .k = t->k + 1 };
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t first = 0; rc == L2CDB_OK && first < base->count; first += L2C_BLOCK_ROWS) {
        size_t n = base->count - first < L2C_BLOCK_ROWS ? base->count - first : L2C_BLOCK_ROWS;
        const float *block = l2c_segment_row(base, first, err);
        float dots[L2C_BLOCK_ROWS];
        if (block == NULL) {
            rc = err != NULL ? err->code : L2CDB_E_INTERNAL;
            break;
        }
        for (size_t s = 0; s < t->samples; s++) {
            l2c_kernel_dots_block(dots, queries + s * base->width, block, n, base->width);
            for (size_t i = 0; i < n; i++) {
                if (1.0f - dots[i] <= l2c_top_worst(&tops[s]) &&
                    l2c_segment_alive(base, first + i, t->snap->seq)) {
                    l2c_top_offer(&tops[s], (l2c_hit){ .distance = 1.0f - dots[i],
                                                       .row = (uint32_t)(first + i),
                                                       .id = base->ids[first + i] });
                }
            }
        }
        if (first % (L2C_BLOCK_ROWS * 256) == 0 && t->progress != NULL &&
            !t->progress(t->ctx, "tune", first, base->count)) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "measuring the recall was cancelled");
        }
    }
    for (size_t s = 0; rc == L2CDB_OK && s < t->samples; s++) {
        l2c_top_sort(&tops[s]);
        l2c_hit *hits = tops[s].hits;
        size_t m = 0;
        for (size_t i = 0; i < tops[s].n; i++) {
            if (hits[i].row != t->rows[s]) {
                hits[m++] = hits[i];
            }
        }
        t->found[s] = m < t->k ? m : t->k;
    }
    l2c_free(tops);
    return rc;
}

static bool among(const l2c_hit *hits, size_t n, uint32_t row) {
    for (size_t i = 0; i < n; i++) {
        if (hits[i].row == row) {
            return true;
        }
    }
    return false;
}

/* Mean overlap at one breadth, and the mean time of a search. */
static l2cdb_status overlap(trial *t, const float *queries, size_t breadth, double *recall,
                            double *ms, l2cdb_error *err) {
    l2c_hit *hits = l2c_alloc(t->k + 1, sizeof *hits);
    l2c_search_params params = { .ef_search = breadth, .nprobe = breadth };
    size_t right = 0, all = 0;
    double start = l2c_now();
    l2cdb_status rc = hits == NULL ? l2c_fail_nomem(err, (t->k + 1) * sizeof *hits) : L2CDB_OK;
    for (size_t s = 0; rc == L2CDB_OK && s < t->samples; s++) {
        l2c_probe p;
        size_t found = 0;
        rc = l2c_probe_on(&p, t->snap, queries + s * t->snap->base->width, &params, err);
        if (rc == L2CDB_OK) {
            rc = l2c_probe_top(&p, hits, &found, t->k + 1, false, err);
            l2c_probe_close(&p);
        }
        for (size_t i = 0; i < found; i++) {
            right += among(t->truth + s * (t->k + 1), t->found[s], hits[i].row);
        }
        all += t->found[s];
    }
    *ms = t->samples > 0 ? 1e3 * (l2c_now() - start) / (double)t->samples : 0;
    *recall = all > 0 ? (double)right / (double)all : 1;
    l2c_free(hits);
    return rc;
}

/* The smallest breadth that reaches the target: doubling, then halving the last step twice. */
static l2cdb_status look_for(trial *t, const float *queries, double target, l2c_recall_result *out,
                             l2cdb_error *err) {
    size_t low = 0, high = 0;
    double ms;
    l2cdb_status rc = L2CDB_OK;
    size_t first = t->snap->base->meta.params.kind == L2C_INDEX_IVF ? 1 : 8;
    for (size_t b = first; rc == L2CDB_OK && high == 0 && b <= BREADTH_MOST; b *= 2) {
        double recall;
        rc = overlap(t, queries, b, &recall, &ms, err);
        if (rc == L2CDB_OK && recall >= target) {
            high = b;
            out->wanted_recall = recall;
        } else {
            low = b;
        }
    }
    for (int i = 0; rc == L2CDB_OK && high > low + 1 && low > 0 && i < 2; i++) {
        size_t middle = (low + high) / 2;
        double recall;
        rc = overlap(t, queries, middle, &recall, &ms, err);
        if (rc == L2CDB_OK && recall >= target) {
            high = middle;
            out->wanted_recall = recall;
        } else {
            low = middle;
        }
    }
    out->wanted_param = high;
    return rc;
}

l2cdb_status l2c_recall_measure(l2c_recall_result *out, const l2c_snapshot *snap, size_t breadth,
                                size_t k, size_t samples, double target, uint64_t seed,
                                l2c_index_progress_fn progress, void *ctx, l2cdb_error *err) {
    const l2c_segment *base = snap->base;
    *out = (l2c_recall_result){ .k = k > 0 ? k : 10, .recall = 1 };
    trial t = { .snap = snap,
                .k = out->k,
                .samples = samples > 0 ? samples : SAMPLES,
                .progress = progress,
                .ctx = ctx };
    if (t.samples > base->count) {
        t.samples = base->count;
    }
    if (base->ann == NULL || base->count == 0) {
        return L2CDB_OK; // every answer is exact
    }
    float *queries = l2c_alloc_aligned(t.samples * base->width, sizeof *queries);
    t.rows = l2c_alloc(t.samples, sizeof *t.rows);
    t.truth = l2c_calloc(t.samples * (t.k + 1), sizeof *t.truth);
    t.found = l2c_calloc(t.samples, sizeof *t.found);
    l2cdb_status rc = L2CDB_OK;
    if (queries == NULL || t.rows == NULL || t.truth == NULL || t.found == NULL) {
        rc = l2c_fail_nomem(err, t.samples * base->width * sizeof *queries);
    }
    if (rc == L2CDB_OK) {
        draw(&t, seed);
        out->samples = t.samples;
        for (size_t s = 0; rc == L2CDB_OK && s < t.samples; s++) {
            const float *row = l2c_segment_row((l2c_segment *)(uintptr_t)base, t.rows[s], err);
            if (row == NULL) {
                rc = L2CDB_E_CORRUPT;
            } else {
                memcpy(queries + s * base->width, row, base->width * sizeof *row);
            }
        }
    }
    if (rc == L2CDB_OK) {
        double start = l2c_now();
        rc = find_truth(&t, queries, err);
        out->exact_ms = t.samples > 0 ? 1e3 * (l2c_now() - start) / (double)t.samples : 0;
    }
    if (rc == L2CDB_OK && target > 0) {
        rc = look_for(&t, queries, target, out, err);
    }
    if (rc == L2CDB_OK) {
        rc = overlap(&t, queries, breadth, &out->recall, &out->query_ms, err);
    }
    l2c_free(queries);
    l2c_free(t.rows);
    l2c_free(t.truth);
    l2c_free(t.found);
    return rc;
}

l2cdb_status l2c_index_recall(l2c_index *ix, l2c_recall_result *out, size_t k, size_t samples,
                              double target, uint64_t seed, l2cdb_error *err) {
    l2c_snapshot snap;
    l2c_snapshot_take(&snap, ix);
    pthread_mutex_lock(&ix->lock);
    size_t breadth = snap.base->meta.params.kind == L2C_INDEX_IVF ? ix->nprobe : ix->ef_search;
    pthread_mutex_unlock(&ix->lock);
    l2cdb_status rc =
        l2c_recall_measure(out, &snap, breadth, k, samples, target, seed, NULL, NULL, err);
    l2c_snapshot_drop(&snap);
    return rc;
}
