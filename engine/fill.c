/* Makes good what is missing: features and vectors of captions, and vectors of a generation whose
 * features are there. Both go through the items in batches of one transaction, so a death leaves
 * complete batches and the next run continues. */
#include "engine/engine.h"

#include <string.h>

#define CAPTION_BATCH 64 /* texts through the LLM, and a transaction */
#define FILL_BATCH 1024

/* ---- Captions -------------------------------------------------------------------------------- */

typedef struct caption_batch {
    l2c_view *view;
    const l2c_hash *trunk;
    size_t features_width;
    int64_t ids[CAPTION_BATCH];
    l2c_caption_record records[CAPTION_BATCH];
    const char *texts[CAPTION_BATCH];
    size_t count;
    bool stale; /* another generation has become active */
    float *features, *vectors;
    l2c_arena arena;
} caption_batch;

static l2cdb_status read_texts(l2cdb *db, caption_batch *b, l2cdb_error *err) {
    size_t kept = 0;
    for (size_t i = 0; i < b->count; i++) {
        l2cdb_status rc = l2c_captions_get(db->store, b->ids[i], &b->records[kept], &b->arena, err);
        if (rc == L2CDB_E_NOTFOUND) { // deleted since
            continue;
        }
        if (rc != L2CDB_OK) {
            return rc;
        }
        b->texts[kept] = b->records[kept].text;
        kept++;
    }
    b->count = kept;
    return L2CDB_OK;
}

/* A caption that was changed while its vector was made keeps lacking one, and is found again. */
static l2cdb_status store_captions(l2cdb *db, caption_batch *b, l2cdb_error *err) {
    size_t width = b->view->generation.width;
    bool current;
    l2cdb_status rc = l2c_view_begin(db, b->view, &current, err);
    if (rc != L2CDB_OK || !current) {
        b->stale = rc == L2CDB_OK;
        return rc;
    }
    for (size_t i = 0; i < b->count && rc == L2CDB_OK; i++) {
        l2c_caption_record now;
        rc = l2c_captions_get(db->store, b->records[i].id, &now, &b->arena, err);
        if (rc == L2CDB_E_NOTFOUND || (rc == L2CDB_OK && strcmp(now.text, b->texts[i]) != 0)) {
            rc = L2CDB_OK;
            continue;
        }
        if (rc == L2CDB_OK) {
            rc = l2c_features_put(db->store, L2C_KIND_CAPTION, b->trunk, now.id,
                                  b->features + i * b->features_width, b->features_width, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_vectors_put(db->store, b->view->generation.space[L2C_KIND_CAPTION],
                                 L2C_KIND_CAPTION, now.id, b->vectors + i * width, width, err);
        }
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(db->store, err);
    }
    l2c_store_rollback(db->store);
    return rc;
}

static l2cdb_status encode_batch(l2cdb *db, caption_batch *b, l2cdb_error *err) {
    l2cdb_status rc = read_texts(db, b, err);
    if (rc == L2CDB_OK && b->count > 0) {
        rc = l2c_encode_texts(db, b->view, b->texts, b->count, b->vectors, b->features, err);
    }
    return rc == L2CDB_OK ? store_captions(db, b, err) : rc;
}

static l2cdb_status count_missing(l2cdb *db, const l2c_hash *trunk, uint64_t *count,
                                  l2cdb_error *err) {
    int64_t ids[1024], last = 0;
    size_t got = 1;
    l2cdb_status rc = L2CDB_OK;
    *count = 0;
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_features_missing(db->store, L2C_KIND_CAPTION, trunk, ids, 1024, &got, last, err);
        *count += got;
        last = got > 0 ? ids[got - 1] : last;
    }
    return rc;
}

static l2cdb_status encode_missing(l2cdb *db, caption_batch *b, l2c_meter *meter,
                                   l2cdb_error *err) {
    uint64_t done = 0;
    int64_t last = 0;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && !b->stale) {
        rc = l2c_features_missing(db->store, L2C_KIND_CAPTION, b->trunk, b->ids, CAPTION_BATCH,
                                  &b->count, last, err);
        if (rc != L2CDB_OK || b->count == 0) {
            break;
        }
        last = b->ids[b->count - 1];
        size_t taken = b->count;
        l2c_arena_mark mark = l2c_arena_get_mark(&b->arena);
        rc = encode_batch(db, b, err);
        l2c_arena_reset(&b->arena, mark);
        l2c_view_catch_up(db);
        done += taken;
        if (rc == L2CDB_OK && !l2c_meter_tick(meter, done, "")) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "cancelled after %llu captions",
                          (unsigned long long)done);
        }
    }
    return rc;
}

static l2cdb_status captions_of_view(l2cdb *db, l2c_view *v, l2cdb_progress_fn progress, void *ctx,
                                     bool *stale, l2cdb_error *err) {
    // The generation names its trunk, so that the model is loaded only when something is missing.
    uint64_t missing;
    l2cdb_status rc = count_missing(db, &v->generation.text_trunk, &missing, err);
    if (rc != L2CDB_OK || missing == 0 || strcmp(v->generation.model, "external") == 0) {
        return rc;
    }
    l2c_model *model;
    rc = l2c_view_model(db, v, &model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(model);
    caption_batch *b = l2c_calloc(1, sizeof *b);
    if (b == NULL) {
        return l2c_fail_nomem(err, sizeof *b);
    }
    l2c_arena_init(&b->arena, 0);
    b->view = v;
    b->trunk = &info->text_trunk;
    b->features_width = info->text_width;
    b->features = l2c_alloc_aligned(CAPTION_BATCH * info->text_width, sizeof *b->features);
    b->vectors = l2c_alloc_aligned(CAPTION_BATCH * v->generation.width, sizeof *b->vectors);
    l2c_meter meter;
    l2c_meter_start(&meter, progress, ctx, "captions", missing);
    rc = b->features != NULL && b->vectors != NULL ? encode_missing(db, b, &meter, err)
                                                   : l2c_fail_nomem(err, 0);
    *stale = b->stale;
    l2c_free(b->features);
    l2c_free(b->vectors);
    l2c_arena_fini(&b->arena);
    l2c_free(b);
    return rc;
}

/* ---- Vectors of a generation ----------------------------------------------------------------- */

typedef struct fill_job {
    l2cdb *db;
    l2c_view *view;
    l2c_kind kind;
    const l2c_hash *trunk;
    size_t features_width;
    const l2c_heads *heads;
    int64_t ids[FILL_BATCH];
    float *features, *vectors, *now; /* now: one row of features, read again in the transaction */
} fill_job;

static l2cdb_status put_vectors(fill_job *j, size_t n, l2cdb_error *err) {
    size_t width = j->view->generation.width;
    bool joined = l2c_store_in_transaction(j->db->store); // the last rows before a switch
    l2cdb_status rc = joined ? L2CDB_OK : l2c_store_begin(j->db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        // An item that was deleted or replaced since has no feature, or another one.
        rc = l2c_features_get(j->db->store, j->kind, j->trunk, j->features_width, j->ids[i], j->now,
                              err);
        if (rc == L2CDB_E_NOTFOUND ||
            (rc == L2CDB_OK && memcmp(j->now, j->features + i * j->features_width,
                                      j->features_width * sizeof *j->now) != 0)) {
            rc = L2CDB_OK;
            continue;
        }
        if (rc == L2CDB_OK) {
            rc = l2c_vectors_put(j->db->store, j->view->generation.space[j->kind], j->kind,
                                 j->ids[i], j->vectors + i * width, width, err);
        }
    }
    if (joined) {
        return rc;
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(j->db->store, err);
    }
    l2c_store_rollback(j->db->store);
    return rc;
}

static l2cdb_status fill_batch(fill_job *j, size_t n, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        rc = l2c_features_get(j->db->store, j->kind, j->trunk, j->features_width, j->ids[i],
                              j->features + i * j->features_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = j->kind == L2C_KIND_IMAGE ? l2c_heads_image(j->heads, j->vectors, j->features, n, err)
                                       : l2c_heads_text(j->heads, j->vectors, j->features, n, err);
    }
    return rc == L2CDB_OK ? put_vectors(j, n, err) : rc;
}

static l2cdb_status fill_kind(fill_job *j, l2c_meter *meter, uint64_t *filled, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    size_t got = 1;
    int64_t last = 0;
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_db_poll(j->db, err);
        if (rc == L2CDB_OK) {
            rc = l2c_vectors_missing(j->db->store, j->view->generation.space[j->kind], j->kind,
                                     j->trunk, j->ids, FILL_BATCH, &got, last, err);
        }
        if (rc != L2CDB_OK || got == 0) {
            break;
        }
        last = j->ids[got - 1];
        rc = fill_batch(j, got, err);
        if (rc == L2CDB_E_NOTFOUND) { // a feature went away between the two reads: look again
            last = 0;
            rc = L2CDB_OK;
            continue;
        }
        *filled += got;
        if (rc == L2CDB_OK && !l2c_meter_tick(meter, *filled, "")) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "cancelled after %llu vectors",
                          (unsigned long long)*filled);
        }
    }
    return rc;
}

l2cdb_status l2c_view_fill(l2cdb *db, l2c_view *v, l2cdb_progress_fn progress, void *ctx,
                           uint64_t *filled, l2cdb_error *err) {
    uint64_t count = 0;
    l2c_model *model;
    const l2c_heads *heads;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_heads(db, v, &heads, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(model);
    size_t widest = info->text_width > info->image_width ? info->text_width : info->image_width;
    fill_job *j = l2c_calloc(1, sizeof *j);
    if (j == NULL) {
        return l2c_fail_nomem(err, sizeof *j);
    }
    *j = (fill_job){ .db = db, .view = v, .heads = heads };
    j->features = l2c_alloc_aligned(FILL_BATCH * widest, sizeof *j->features);
    j->vectors = l2c_alloc_aligned(FILL_BATCH * v->generation.width, sizeof *j->vectors);
    j->now = l2c_alloc_aligned(widest, sizeof *j->now);
    if (j->features == NULL || j->vectors == NULL || j->now == NULL) {
        rc = l2c_fail_nomem(err, FILL_BATCH * widest * sizeof *j->features);
    }
    l2c_meter meter;
    l2c_meter_start(&meter, progress, ctx, "vectors", 0);
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        j->kind = (l2c_kind)kind;
        j->trunk = kind == L2C_KIND_IMAGE ? &info->image_trunk : &info->text_trunk;
        j->features_width = kind == L2C_KIND_IMAGE ? info->image_width : info->text_width;
        rc = fill_kind(j, &meter, &count, err);
    }
    l2c_free(j->features);
    l2c_free(j->vectors);
    l2c_free(j->now);
    l2c_free(j);
    if (filled != NULL) {
        *filled = count;
    }
    return rc;
}

l2cdb_status l2c_captions_encode(l2cdb *db, l2cdb_progress_fn progress, void *ctx,
                                 l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    bool stale = true;
    while (rc == L2CDB_OK && stale) { // again if another generation has become active meanwhile
        stale = false;
        l2c_view *v;
        rc = l2c_view_get(db, &v, err);
        if (rc == L2CDB_OK && v->generation.id != 0) {
            rc = captions_of_view(db, v, progress, ctx, &stale, err);
        }
        l2c_view_release(db, v);
    }
    return rc;
}
