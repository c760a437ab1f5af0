/* One query description to ranked rows: terms → one vector, filter → ids, index → neighbours, cuts,
 * records in rank order. All rows come from the one view that was taken first. */
#include "engine/engine.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/utf8.h"
#include "engine/base/vec.h"

#define K_MAX 10000

struct l2cdb_results {
    l2cdb_row *rows;
    size_t count;
    l2cdb_timings timings;
    l2c_arena arena; /* strings and vectors of the rows */
};

void l2cdb_query_init(l2cdb_query *q) {
    *q = (l2cdb_query){ .k = 10, .score_min = -2 };
}

/* ---- The query vector ------------------------------------------------------------------------ */

/* out = normalise(Σ weight × term), f32 [width]. */
static l2cdb_status query_vector(l2cdb *db, l2c_view *v, const l2cdb_query *q, float *out,
                                 size_t width, l2cdb_error *err) {
    float *one = l2c_alloc_aligned(width, sizeof *one);
    if (one == NULL) {
        return l2c_fail_nomem(err, width * sizeof *one);
    }
    memset(out, 0, width * sizeof *out);
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < q->terms_count && rc == L2CDB_OK; i++) {
        rc = l2c_encode_term(db, v, &q->terms[i], one, err);
        if (rc == L2CDB_OK) {
            l2c_vec_axpy(out, one, (float)q->terms[i].weight, width);
        } else if (q->terms_count > 1) {
            l2c_context(err, "term %zu", i + 1);
        }
    }
    l2c_free(one);
    if (rc == L2CDB_OK && !(l2c_vec_finite(out, width) && l2c_vec_normalize(out, width) > 1e-6f)) {
        l2c_fail(err, L2CDB_E_INVALID,
                 "the terms cancel each other out, nothing is left to search");
        rc = l2c_hint(err, "change a weight");
    }
    return rc;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

static l2cdb_status fill_image(l2cdb *db, l2cdb_row *row, l2c_arena *arena, l2cdb_error *err) {
    l2c_image_record r;
    l2cdb_status rc = l2c_images_get(db->store, row->image_id, &r, arena, err);
    if (rc == L2CDB_OK) {
        row->path = r.path;
        row->taken_at = r.taken_at;
        row->camera = r.camera;
        row->width = r.width;
        row->height = r.height;
    }
    return rc;
}

static l2cdb_status fill_row(l2cdb *db, const l2c_view *v, const l2cdb_query *q, l2cdb_row *row,
                             l2c_arena *arena, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    row->image_id = row->id;
    if (q->target == L2CDB_CAPTIONS) {
        l2c_caption_record c;
        rc = l2c_captions_get(db->store, row->id, &c, arena, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
        row->image_id = c.image_id;
        row->text = c.text;
        row->language = c.language;
    }
    rc = fill_image(db, row, arena, err);
    if (rc == L2CDB_OK && q->include_vector) {
        size_t width = v->generation.width;
        float *vector = l2c_arena_alloc(arena, width, sizeof *vector);
        if (vector == NULL) {
            return l2c_fail_nomem(err, width * sizeof *vector);
        }
        row->vector = vector;
        rc = l2c_vectors_get(db->store, v->generation.space[l2c_target_kind(q->target)],
                             l2c_target_kind(q->target), row->id, vector, width, err);
    }
    return rc;
}

/* Fetches the records of the neighbours in rank order. A row that has been deleted since the index
 * was read is left out; *gone counts those. */
static l2cdb_status fetch_rows(l2cdb *db, const l2c_view *v, const l2cdb_query *q, l2cdb_results *r,
                               const int64_t *ids, const float *distances, size_t n, size_t *gone,
                               l2cdb_error *err) {
    *gone = 0;
    r->count = 0;
    size_t passed = 0;
    double best = n > 0 ? 1.0 - (double)distances[0] : 0;
    for (size_t i = 0; i < n && r->count < q->k; i++) {
        double score = 1.0 - (double)distances[i];
        if (score < q->score_min || (q->share_min > 0 && score < q->share_min * best)) {
            break; // distances ascend: nothing better follows
        }
        l2cdb_row *row = &r->rows[r->count];
        *row = (l2cdb_row){ .id = ids[i], .score = (float)score, .distance = distances[i] };
        l2cdb_status rc = fill_row(db, v, q, row, &r->arena, err);
        if (rc == L2CDB_E_NOTFOUND) {
            ++*gone;
            continue;
        }
        if (rc != L2CDB_OK) {
            return rc;
        }
        r->count += passed++ >= q->offset ? 1 : 0;
    }
    return L2CDB_OK;
}

/* ---- Search ---------------------------------------------------------------------------------- */

static l2cdb_status check_query(const l2cdb_query *q, l2cdb_error *err) {
    if (q->terms_count == 0 || q->terms == NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "the query has no terms");
    }
    if (q->k == 0 || q->k > K_MAX || q->offset > K_MAX || q->k + q->offset > K_MAX) {
        l2c_fail(err, L2CDB_E_LIMIT, "k %zu with offset %zu, expected 1 to %d together", q->k,
                 q->offset, K_MAX);
        return l2c_hint(err, "ask for fewer rows, or use SQL with LIMIT for a long list");
    }
    if (q->target != L2CDB_IMAGES && q->target != L2CDB_CAPTIONS) {
        return l2c_fail(err, L2CDB_E_INVALID, "unknown target %d", (int)q->target);
    }
    // The model has a vector for "" too, which would answer with photos that mean nothing.
    for (size_t i = 0; i < q->terms_count; i++) {
        const char *text = q->terms[i].text;
        if (q->terms[i].kind == L2CDB_TERM_TEXT && text != NULL && l2c_utf8_blank(text)) {
            l2c_fail(err, L2CDB_E_INVALID, "the text to search for is empty");
            return l2c_hint(err, "write a few words, or name a picture");
        }
    }
    return L2CDB_OK;
}

static l2cdb_status search_index(l2cdb *db, l2c_view *v, const l2cdb_query *q, l2cdb_results *r,
                                 const float *vector, const l2c_index_filter *filter,
                                 l2cdb_error *err) {
    l2c_index *ix;
    l2c_search_params params;
    l2c_search_plan plan;
    l2c_db_search_params(db, &params, q->exact, q->ef_search, q->nprobe);
    l2cdb_status rc = l2c_view_index(db, v, l2c_target_kind(q->target), &ix, err);
    size_t wanted = q->k + q->offset, found = 0, gone = 0;
    int64_t *ids = NULL;
    float *distances = NULL;
    while (rc == L2CDB_OK) {
        double start = l2c_now();
        l2c_free(ids);
        l2c_free(distances);
        ids = l2c_alloc(wanted, sizeof *ids);
        distances = l2c_alloc(wanted, sizeof *distances);
        if (ids == NULL || distances == NULL) {
            rc = l2c_fail_nomem(err, wanted * sizeof *ids);
            break;
        }
        rc = l2c_index_search(ix, ids, distances, &found, vector, wanted, filter, &params, &plan,
                              err);
        double searched = l2c_now();
        r->timings.search_ms += (searched - start) * 1e3;
        if (rc == L2CDB_OK) {
            rc = fetch_rows(db, v, q, r, ids, distances, found, &gone, err);
        }
        r->timings.fetch_ms += (l2c_now() - searched) * 1e3;
        if (gone == 0 || found < wanted) {
            break;
        }
        wanted += gone; // as many more as were deleted under our hands
    }
    l2c_free(ids);
    l2c_free(distances);
    if (rc == L2CDB_OK) {
        l2c_plan_describe(r->timings.plan, sizeof r->timings.plan, &plan);
    }
    return rc;
}

static l2cdb_status search_view(l2cdb *db, l2c_view *v, const l2cdb_query *q, l2cdb_results *r,
                                l2cdb_error *err) {
    r->timings.generation = v->generation.id;
    if (v->generation.id == 0) {
        snprintf(r->timings.plan, sizeof r->timings.plan, "empty database");
        return L2CDB_OK;
    }
    size_t width = v->generation.width;
    float *vector = l2c_alloc_aligned(width, sizeof *vector);
    int64_t *filter_ids = NULL;
    l2c_index_filter filter = { 0 };
    double start = l2c_now();
    l2cdb_status rc = vector != NULL ? query_vector(db, v, q, vector, width, err)
                                     : l2c_fail_nomem(err, width * sizeof *vector);
    double encoded = l2c_now();
    r->timings.encode_ms = (encoded - start) * 1e3;
    bool filtered = q->where != NULL && *q->where != '\0';
    if (rc == L2CDB_OK && filtered) {
        rc = l2c_sql_filter_ids(db, q->target, q->where, q->where_ms, &filter_ids, &filter.count,
                                err);
        filter.ids = filter_ids;
        r->timings.search_ms = (l2c_now() - encoded) * 1e3;
    }
    if (rc == L2CDB_OK) {
        rc = search_index(db, v, q, r, vector, filtered ? &filter : NULL, err);
    }
    l2c_free(vector);
    l2c_free(filter_ids);
    return rc;
}

l2cdb_status l2cdb_search(l2cdb *db, const l2cdb_query *q, l2cdb_results **out, l2cdb_error *err) {
    *out = NULL;
    l2cdb_error_clear(err);
    l2cdb_status rc = check_query(q, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2cdb_results *r = l2c_calloc(1, sizeof *r);
    if (r != NULL) {
        l2c_arena_init(&r->arena, 1 << 14);
        r->rows = l2c_calloc(q->k, sizeof *r->rows);
    }
    if (r == NULL || r->rows == NULL) {
        l2cdb_results_free(r);
        return l2c_fail_nomem(err, q->k * sizeof *r->rows);
    }
    l2c_db_enter(db);
    l2c_view *v;
    rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = search_view(db, v, q, r, err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    if (rc != L2CDB_OK) {
        l2cdb_results_free(r);
        return rc;
    }
    *out = r;
    return L2CDB_OK;
}

size_t l2cdb_results_count(const l2cdb_results *r) {
    return r != NULL ? r->count : 0;
}

const l2cdb_row *l2cdb_results_row(const l2cdb_results *r, size_t i) {
    return r != NULL && i < r->count ? &r->rows[i] : NULL;
}

const l2cdb_timings *l2cdb_results_timings(const l2cdb_results *r) {
    return &r->timings;
}

void l2cdb_results_free(l2cdb_results *r) {
    if (r == NULL) {
        return;
    }
    l2c_arena_fini(&r->arena);
    l2c_free(r->rows);
    l2c_free(r);
}
