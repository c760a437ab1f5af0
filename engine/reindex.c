/* Generations change places: reindex, rollback, drop, and re-encoding with another model.
 *
 * Bringing a generation up takes four steps, each of which finds out for itself what is left to do,
 * so an interrupted run is resumed by running it again:
 *   1. features of its trunks for every photo and caption (nothing to do after tuning, whose trunks
 *      are the old ones; everything to do with another model);
 *   2. vectors from features, through its heads;
 *   3. its indexes, built and measured beside those that answer;
 *   4. one transaction: rows that came in meanwhile are filled in, and the generation is active.
 * Until that commit every question is answered by the old generation, after it by the new one. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "engine/reindex.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/pool.h"

enum { BATCH = 32, LIST_MAX = 4096 };

/* ---- Features that a trunk has not made yet ---- */

/* One photo on its way to the tower. */
typedef struct slot {
    l2cdb *db;
    const l2c_model *model;
    int64_t id;
    float *pixels;
    l2cdb_status rc;
    l2cdb_error err;
} slot;

static void read_photo(void *ctx) {
    slot *s = ctx;
    l2cdb_bytes bytes = { 0 };
    l2c_image image = { 0 };
    s->rc = l2cdb_get_original(s->db, s->id, &bytes, &s->err);
    if (s->rc == L2CDB_OK) {
        s->rc = l2c_image_decode(&image, bytes.data, bytes.size, l2c_db_decode_flags(s->db), NULL,
                                 &s->err);
    }
    if (s->rc == L2CDB_OK) {
        s->rc = l2c_model_preprocess(s->model, s->pixels, &image, &s->err);
    }
    l2c_image_fini(&image);
    l2cdb_bytes_free(&bytes);
}

typedef struct photo_encoder {
    l2c_pool *pool;
    slot slots[BATCH];
    float *pixels, *features;
    size_t pixels_count, width;
} photo_encoder;

static void photo_encoder_fini(photo_encoder *e) {
    l2c_pool_free(e->pool);
    l2c_free(e->pixels);
    l2c_free(e->features);
}

static l2cdb_status photo_encoder_init(photo_encoder *e, l2cdb *db, l2c_model *model,
                                       l2cdb_error *err) {
    e->pixels_count = l2c_model_pixels_count(model);
    e->width = l2c_model_get_info(model)->image_width;
    e->pixels = l2c_alloc_aligned(BATCH * e->pixels_count, sizeof *e->pixels);
    e->features = l2c_alloc_aligned(BATCH * e->width, sizeof *e->features);
    if (e->pixels == NULL || e->features == NULL) {
        return l2c_fail_nomem(err, BATCH * e->pixels_count * sizeof *e->pixels);
    }
    return l2c_pool_new(&e->pool, db->options.threads, BATCH, err);
}

/* Photos that can no longer be read are left without features (*unread), and so without a vector in
 * the new generation; their reason is logged. */
static l2cdb_status encode_photos(l2cdb *db, l2c_model *model, photo_encoder *e, const int64_t *ids,
                                  size_t n, uint64_t *unread, l2cdb_error *err) {
    for (size_t i = 0; i < n; i++) {
        e->slots[i] = (slot){
            .db = db, .model = model, .id = ids[i], .pixels = e->pixels + i * e->pixels_count
        };
        l2c_pool_submit(e->pool, read_photo, &e->slots[i]);
    }
    l2c_pool_drain(e->pool);
    size_t read = 0;
    for (size_t i = 0; i < n; i++) {
        const slot *s = &e->slots[i];
        if (s->rc != L2CDB_OK) {
            l2c_log(L2CDB_LOG_WARN, "photo not re-encoded id=%" PRId64 ": %s", s->id,
                    s->err.message);
            ++*unread;
            continue;
        }
        memmove(e->pixels + read * e->pixels_count, s->pixels, e->pixels_count * sizeof *e->pixels);
        e->slots[read++].id = s->id;
    }
    l2cdb_status rc =
        read > 0 ? l2c_model_image_features(model, e->features, e->pixels, read, err) : L2CDB_OK;
    if (rc == L2CDB_OK) {
        rc = l2c_store_begin(db->store, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_hash *trunk = &l2c_model_get_info(model)->image_trunk;
    for (size_t i = 0; i < read && rc == L2CDB_OK; i++) {
        rc = l2c_features_put(db->store, L2C_KIND_IMAGE, trunk, e->slots[i].id,
                              e->features + i * e->width, e->width, err);
    }
    if (rc != L2CDB_OK) {
        l2c_store_rollback(db->store);
        return rc;
    }
    return l2c_store_commit(db->store, err);
}

static l2cdb_status encode_captions(l2cdb *db, l2c_view *v, l2c_model *model, const int64_t *ids,
                                    size_t n, l2cdb_error *err) {
    const l2c_model_info *info = l2c_model_get_info(model);
    const char *texts[BATCH];
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    float *features = l2c_arena_alloc(&arena, n * info->text_width, sizeof *features);
    l2cdb_status rc = features != NULL ? L2CDB_OK : l2c_fail_nomem(err, n * info->text_width);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        l2c_caption_record c;
        rc = l2c_captions_get(db->store, ids[i], &c, &arena, err);
        texts[i] = c.text;
    }
    if (rc == L2CDB_OK) {
        rc = l2c_encode_texts(db, v, texts, n, NULL, features, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_begin(db->store, err);
    }
    bool begun = rc == L2CDB_OK;
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        rc = l2c_features_put(db->store, L2C_KIND_CAPTION, &info->text_trunk, ids[i],
                              features + i * info->text_width, info->text_width, err);
    }
    if (begun && rc != L2CDB_OK) {
        l2c_store_rollback(db->store);
    } else if (begun) {
        rc = l2c_store_commit(db->store, err);
    }
    l2c_arena_fini(&arena);
    return rc;
}

static l2cdb_status count_missing(l2cdb *db, l2c_kind kind, const l2c_hash *trunk, uint64_t *count,
                                  l2cdb_error *err) {
    int64_t *ids = l2c_alloc(LIST_MAX, sizeof *ids), after = 0;
    l2cdb_status rc = ids != NULL ? L2CDB_OK : l2c_fail_nomem(err, LIST_MAX * sizeof *ids);
    *count = 0;
    for (size_t got = 1; rc == L2CDB_OK && got > 0;) {
        rc = l2c_features_missing(db->store, kind, trunk, ids, LIST_MAX, &got, after, err);
        *count += got;
        after = got > 0 ? ids[got - 1] : after;
    }
    l2c_free(ids);
    return rc;
}

static l2cdb_status encode_side(l2cdb *db, l2c_view *v, l2c_model *model, l2c_kind kind,
                                uint64_t *unread, l2cdb_progress_fn progress, void *ctx,
                                l2cdb_error *err) {
    const l2c_hash *trunk =
        kind == L2C_KIND_IMAGE ? &v->generation.image_trunk : &v->generation.text_trunk;
    uint64_t total, done = 0;
    l2cdb_status rc = count_missing(db, kind, trunk, &total, err);
    if (rc != L2CDB_OK || total == 0) {
        return rc;
    }
    photo_encoder e = { 0 };
    if (kind == L2C_KIND_IMAGE) {
        rc = photo_encoder_init(&e, db, model, err);
    }
    l2c_meter meter;
    l2c_meter_start(&meter, progress, ctx,
                    kind == L2C_KIND_IMAGE ? "encode photos" : "encode captions", total);
    int64_t ids[BATCH], after = 0;
    for (size_t got = 1; rc == L2CDB_OK && got > 0;) {
        rc = l2c_features_missing(db->store, kind, trunk, ids, BATCH, &got, after, err);
        if (rc == L2CDB_OK && got > 0) {
            rc = kind == L2C_KIND_IMAGE ? encode_photos(db, model, &e, ids, got, unread, err)
                                        : encode_captions(db, v, model, ids, got, err);
            after = ids[got - 1];
            done += got;
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(db, err);
        }
        if (rc == L2CDB_OK && !l2c_meter_tick(&meter, done, "")) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "re-encoding was stopped after %" PRIu64, done);
            l2c_hint(err, "the same command goes on where it stopped");
        }
    }
    photo_encoder_fini(&e);
    return rc;
}

/* Step 1. *unread: photos that are there and cannot be read any more. */
static l2cdb_status encode_missing(l2cdb *db, l2c_view *v, uint64_t *unread,
                                   l2cdb_progress_fn progress, void *ctx, l2cdb_error *err) {
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc == L2CDB_OK && l2c_model_get_info(model)->has_image) {
        rc = encode_side(db, v, model, L2C_KIND_IMAGE, unread, progress, ctx, err);
    }
    if (rc == L2CDB_OK && l2c_model_get_info(model)->has_text) {
        rc = encode_side(db, v, model, L2C_KIND_CAPTION, unread, progress, ctx, err);
    }
    return rc;
}

/* ---- Indexes ---- */

typedef struct build_ctx {
    l2cdb *db;
    l2c_meter meter;
    const char *phase;
} build_ctx;

static bool build_tick(void *ctx, const char *phase, size_t done, size_t total) {
    build_ctx *b = ctx;
    if (b->phase == NULL || strcmp(b->phase, phase) != 0) {
        b->phase = phase;
        l2c_meter_start(&b->meter, b->meter.fn, b->meter.ctx, phase, total);
    }
    return l2c_meter_tick(&b->meter, done, "") && !l2c_flag_raised(&b->db->interrupted);
}

/* Step 3 for one kind: built where auto wants a graph, and measured. */
static l2cdb_status build_side(l2cdb *db, l2c_view *v, l2c_kind kind, l2cdb_progress_fn progress,
                               void *ctx, l2cdb_error *err) {
    l2c_index *ix;
    l2cdb_status rc = l2c_view_index(db, v, kind, &ix, err);
    if (rc != L2CDB_OK || ix == NULL || !l2c_index_wants_build(ix)) {
        return rc;
    }
    build_ctx b = { .db = db, .meter = { .fn = progress, .ctx = ctx } };
    rc = l2c_index_build(ix, NULL, build_tick, &b, err);
    if (rc == L2CDB_OK) {
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        l2c_log(L2CDB_LOG_INFO, "index built generation=%" PRId64 " kind=%s rows=%zu recall=%.3f",
                v->generation.id, l2c_index_kind_name(st.kind), st.rows, st.recall);
    }
    return rc;
}

/* ---- Bringing up and switching ---- */

static l2cdb_status set_ready(l2cdb *db, int64_t id, l2cdb_error *err) {
    l2c_generation g;
    l2cdb_status rc = l2c_generations_get(db->store, id, &g, err);
    if (rc == L2CDB_OK && g.state == L2C_GENERATION_FILLING) {
        g.state = L2C_GENERATION_READY;
        rc = l2c_generations_put(db->store, &g, err);
    }
    return rc;
}

/* Imported vectors cannot be made again, and need not: they are complete or not there. */
static bool is_external(const l2c_view *v) {
    return strcmp(v->generation.model, "external") == 0;
}

/* Step 4: the write lock is held from the last look at what is missing until the commit, so nothing
 * can come in between. */
static l2cdb_status switch_to(l2cdb *db, l2c_view *v, l2cdb_error *err) {
    l2cdb_status rc = l2c_store_begin(db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = is_external(v) ? L2CDB_OK : l2c_view_fill(db, v, NULL, NULL, NULL, err);
    if (rc == L2CDB_OK) {
        rc = set_ready(db, v->generation.id, err);
    }
    if (rc != L2CDB_OK) {
        l2c_store_rollback(db->store);
        return rc;
    }
    return l2c_view_switch(db, v->generation.id, v, true, err);
}

/* What came in between step 1 and the switch was encoded by the old model only. */
static l2cdb_status encode_late(l2cdb *db, l2c_view *v, uint64_t unread, l2cdb_progress_fn progress,
                                void *ctx, l2cdb_error *err) {
    uint64_t photos, captions;
    l2cdb_status rc = count_missing(db, L2C_KIND_IMAGE, &v->generation.image_trunk, &photos, err);
    if (rc == L2CDB_OK) {
        rc = count_missing(db, L2C_KIND_CAPTION, &v->generation.text_trunk, &captions, err);
    }
    if (rc != L2CDB_OK || (photos <= unread && captions == 0)) {
        return rc;
    }
    rc = encode_missing(db, v, &unread, progress, ctx, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_fill(db, v, progress, ctx, NULL, err);
    }
    l2c_view_catch_up(db);
    return rc;
}

l2cdb_status l2c_reindex_to(l2cdb *db, int64_t generation, l2cdb_progress_fn progress, void *ctx,
                            l2cdb_error *err) {
    l2c_view *v;
    l2cdb_status rc = l2c_view_get_of(db, generation, &v, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (v->generation.state != L2C_GENERATION_ACTIVE) {
        uint64_t unread = 0;
        if (!is_external(v)) {
            rc = encode_missing(db, v, &unread, progress, ctx, err);
        }
        if (rc == L2CDB_OK && !is_external(v)) {
            rc = l2c_view_fill(db, v, progress, ctx, NULL, err);
        }
        if (rc == L2CDB_OK) {
            rc = build_side(db, v, L2C_KIND_IMAGE, progress, ctx, err);
        }
        if (rc == L2CDB_OK) {
            rc = build_side(db, v, L2C_KIND_CAPTION, progress, ctx, err);
        }
        if (rc == L2CDB_OK) {
            rc = switch_to(db, v, err);
        }
        if (rc == L2CDB_OK && !is_external(v)) {
            rc = encode_late(db, v, unread, progress, ctx, err);
        }
    }
    l2c_view_release(db, v);
    return rc;
}

/* ---- Public calls ---- */

typedef bool (*wanted_fn)(const l2c_generation *g, const l2c_generation *best);

/* The generation that `better` prefers to every other; E_NOTFOUND with `none` if it takes none.
 * `better` is asked with best NULL first: whether g is eligible at all. */
static l2cdb_status find_generation(l2cdb *db, wanted_fn better, l2c_generation *out,
                                    const char *none, l2cdb_error *err) {
    *out = (l2c_generation){ 0 };
    l2c_generation *list = l2c_calloc(LIST_MAX, sizeof *list);
    if (list == NULL) {
        return l2c_fail_nomem(err, LIST_MAX * sizeof *list);
    }
    size_t count;
    const l2c_generation *best = NULL;
    l2cdb_status rc = l2c_generations_list(db->store, list, LIST_MAX, &count, err);
    for (size_t i = 0; rc == L2CDB_OK && i < count && i < LIST_MAX; i++) {
        if (better(&list[i], NULL) && (best == NULL || better(&list[i], best))) {
            best = &list[i];
        }
    }
    if (rc == L2CDB_OK && best == NULL) {
        l2c_fail(err, L2CDB_E_NOTFOUND, "%s", none);
        rc = l2c_hint(err, "`l2cdb generations` lists what there is");
    } else if (rc == L2CDB_OK) {
        *out = *best;
    }
    l2c_free(list);
    return rc;
}

static bool newest_unused(const l2c_generation *g, const l2c_generation *best) {
    bool unused = g->state == L2C_GENERATION_FILLING || g->state == L2C_GENERATION_READY;
    return unused && (best == NULL || g->id > best->id);
}

static bool last_retired(const l2c_generation *g, const l2c_generation *best) {
    return g->state == L2C_GENERATION_RETIRED &&
           (best == NULL || g->activated_at > best->activated_at ||
            (g->activated_at == best->activated_at && g->id > best->id));
}

l2cdb_status l2cdb_reindex(l2cdb *db, int64_t generation, l2cdb_progress_fn progress, void *ctx,
                           l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_db_enter(db);
    if (generation == 0) {
        l2c_generation g;
        rc = find_generation(db, newest_unused, &g, "there is no generation to switch to", err);
        generation = g.id;
    }
    if (rc == L2CDB_OK) {
        rc = l2c_reindex_to(db, generation, progress, ctx, err);
    }
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_rollback(l2cdb *db, int64_t *now_active, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_db_enter(db);
    l2c_generation g;
    rc = find_generation(db, last_retired, &g, "there is no earlier generation to go back to", err);
    if (rc == L2CDB_OK) {
        // Photos that came since have features, but no vectors of the old generation yet.
        rc = l2c_reindex_to(db, g.id, NULL, NULL, err);
    }
    if (rc == L2CDB_OK && now_active != NULL) {
        *now_active = g.id;
    }
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_drop_generation(l2cdb *db, int64_t generation, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_db_enter(db);
    rc = l2c_generations_drop(db->store, generation, err);
    for (int kind = 0; rc == L2CDB_OK && kind < 2; kind++) {
        // The rows are gone; a file that is left over would only be set aside later.
        char *path = l2c_view_index_path(db, generation, (l2c_kind)kind);
        if (path != NULL) {
            unlink(path);
        }
        l2c_free(path);
    }
    l2c_db_leave(db);
    return rc;
}

static bool made_by(const l2c_generation *g, const l2c_model_info *info) {
    return memcmp(&g->image_trunk, &info->image_trunk, sizeof info->image_trunk) == 0 &&
           memcmp(&g->text_trunk, &info->text_trunk, sizeof info->text_trunk) == 0 &&
           memcmp(&g->heads, &info->heads, sizeof info->heads) == 0;
}

/* The newest generation of this model, complete or not; id 0 if there is none. */
static l2cdb_status find_made_by(l2cdb *db, const char *path, const l2c_model_info *info,
                                 l2c_generation *out, l2cdb_error *err) {
    *out = (l2c_generation){ 0 };
    l2c_generation *list = l2c_calloc(LIST_MAX, sizeof *list);
    if (list == NULL) {
        return l2c_fail_nomem(err, LIST_MAX * sizeof *list);
    }
    size_t count;
    l2cdb_status rc = l2c_generations_list(db->store, list, LIST_MAX, &count, err);
    for (size_t i = 0; rc == L2CDB_OK && i < count && i < LIST_MAX; i++) {
        if (made_by(&list[i], info) && strcmp(list[i].model, path) == 0) {
            *out = list[i];
        }
    }
    l2c_free(list);
    return rc;
}

/* A generation of the same model is gone on with, or switched to again; else one is begun. */
static l2cdb_status begin_reencode(l2cdb *db, const char *path, const l2c_model_info *info,
                                   l2c_generation *g, l2cdb_error *err) {
    l2c_generation active;
    l2cdb_status rc = l2c_generations_active(db->store, &active, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (made_by(&active, info)) {
        return l2c_fail(err, L2CDB_E_EXISTS, "%s is encoded with model %s already", db->path,
                        info->name);
    }
    rc = find_made_by(db, path, info, g, err);
    if (rc != L2CDB_OK || g->id != 0) {
        return rc;
    }
    *g = (l2c_generation){ .parent = active.id,
                           .state = L2C_GENERATION_FILLING,
                           .image_trunk = info->image_trunk,
                           .text_trunk = info->text_trunk,
                           .heads = info->heads,
                           .width = info->width };
    snprintf(g->model, sizeof g->model, "%s", path);
    snprintf(g->label, sizeof g->label, "%s", info->name);
    return l2c_generations_put(db->store, g, err);
}

l2cdb_status l2cdb_reencode(l2cdb *db, const char *model, l2cdb_progress_fn progress, void *ctx,
                            l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    // The generation remembers where its model is, from whichever directory it is opened next.
    char *real = model != NULL && *model != '\0' ? realpath(model, NULL) : NULL;
    const char *path = real != NULL ? real : model != NULL ? model : "";
    l2c_db_enter(db);
    l2c_model *opened;
    l2c_generation g;
    rc = l2c_db_model(db, path, &opened, err);
    if (rc == L2CDB_OK && l2c_model_get_info(opened)->width == 0) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "model %s has no heads: it gives features, not vectors",
                 l2c_model_get_info(opened)->name);
        rc = l2c_hint(err, "import a vision part and an LLM that belong together");
    }
    if (rc == L2CDB_OK) {
        rc = begin_reencode(db, path, l2c_model_get_info(opened), &g, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_reindex_to(db, g.id, progress, ctx, err);
    }
    l2c_db_leave(db);
    free(real);
    return rc;
}
