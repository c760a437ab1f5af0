/* Care of a database: stats, backup, vacuum, check and repair. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <math.h>

#include "engine/base/file.h"
#include "engine/base/vec.h"
#include "engine/engine.h"
#include "engine/open.h"
#include "engine/photo.h"

/* ---- Files beside the database --------------------------------------------------------------- */

typedef void (*beside_fn)(void *ctx, const char *path);

/* Every file "photos.l2cdb-g…": indexes, and what was set aside or left unfinished of them. */
static void each_index_file(const l2cdb *db, beside_fn fn, void *ctx) {
    const char *path = l2c_store_path(db->store), *base = l2c_path_base(path);
    size_t dir_n = (size_t)(base - path), base_n = strlen(base);
    char *dir = dir_n > 0 ? l2c_strndup(path, dir_n) : l2c_strdup(".");
    DIR *d = dir != NULL ? opendir(dir) : NULL;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        const char *rest = e->d_name + base_n;
        if (strncmp(e->d_name, base, base_n) == 0 && strncmp(rest, "-g", 2) == 0 &&
            strstr(rest, ".idx") != NULL) {
            char *name = l2c_path_join(dir, e->d_name);
            if (name != NULL) {
                fn(ctx, name);
            }
            l2c_free(name);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    l2c_free(dir);
}

static void add_bytes(void *ctx, const char *path) {
    uint64_t *bytes = ctx;
    struct stat st;
    *bytes += stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* "….idx.tmp1234": what process 1234 was writing. A number that was given again keeps the file
 * until that process ends, which harms nobody. */
static void remove_unfinished(void *ctx, const char *path) {
    (void)ctx;
    const char *mark = strstr(l2c_path_base(path), ".idx.tmp");
    long pid = mark != NULL ? strtol(mark + strlen(".idx.tmp"), NULL, 10) : 0;
    if (pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH && unlink(path) == 0) {
        l2c_log(L2CDB_LOG_INFO, "unfinished index removed path=%s", path);
    }
}

void l2c_care_sweep(const l2cdb *db) {
    each_index_file(db, remove_unfinished, NULL);
}

/* ---- Stats ----------------------------------------------------------------------------------- */

static l2cdb_status count_vectors(l2cdb *db, const l2c_generation *g, l2cdb_stats *out,
                                  l2cdb_error *err) {
    size_t images = 0, captions = 0;
    l2cdb_status rc =
        l2c_vectors_count(db->store, g->space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, &images, err);
    if (rc == L2CDB_OK) {
        rc = l2c_vectors_count(db->store, g->space[L2C_KIND_CAPTION], L2C_KIND_CAPTION, &captions,
                               err);
    }
    out->vectors_images = images;
    out->vectors_captions = captions;
    return rc;
}

/* What is known of the model without loading it. */
static void describe_model(l2cdb *db, const l2c_generation *g, l2cdb_stats *out) {
    snprintf(out->model, sizeof out->model, "%s", g->label);
    char hex[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(&g->image_trunk, hex);
    snprintf(out->model_fingerprint, sizeof out->model_fingerprint, "%s", hex);
    pthread_mutex_lock(&db->model_lock);
    bool loaded = db->models != NULL;
    pthread_mutex_unlock(&db->model_lock);
    l2c_model *model;
    if (loaded && strcmp(g->model, "external") != 0 &&
        l2c_db_model(db, db->options.model != NULL ? db->options.model : g->model, &model, NULL) ==
            L2CDB_OK) {
        const l2c_model_info *info = l2c_model_get_info(model);
        snprintf(out->architecture, sizeof out->architecture, "%s", info->architecture);
        snprintf(out->precision, sizeof out->precision, "%s", l2c_precision_name(info->precision));
    }
}

l2cdb_status l2cdb_get_stats(l2cdb *db, l2cdb_stats *out, l2cdb_error *err) {
    memset(out, 0, sizeof *out);
    l2cdb_error_clear(err);
    l2c_store_counts counts;
    l2c_view *v;
    l2cdb_status rc = l2c_store_count(db->store, &counts, err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_change(db->store, &out->change, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_view_get(db, &v, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    out->images = counts.images;
    out->images_failed = counts.images_failed;
    out->captions = counts.captions;
    out->thumbnails = counts.thumbnails;
    out->database_bytes = counts.database_bytes;
    out->exif_rotate = db->exif_rotate;
    each_index_file(db, add_bytes, &out->index_bytes);
    if (v->generation.id != 0) {
        out->generation = v->generation.id;
        out->width = v->generation.width;
        describe_model(db, &v->generation, out);
        rc = count_vectors(db, &v->generation, out, err);
    }
    l2c_view_release(db, v);
    return rc;
}

/* ---- Backup ---------------------------------------------------------------------------------- */

typedef struct backup_progress {
    l2cdb *db;
    l2c_meter meter;
} backup_progress;

static bool backup_tick(void *ctx, uint64_t done, uint64_t total) {
    backup_progress *p = ctx;
    p->meter.total = total;
    return !l2c_flag_raised(&p->db->interrupted) && l2c_meter_tick(&p->meter, done, "");
}

l2cdb_status l2cdb_backup(l2cdb *db, const char *path, l2cdb_progress_fn progress, void *ctx,
                          l2cdb_error *err) {
    l2cdb_error_clear(err);
    backup_progress p = { .db = db };
    l2c_meter_start(&p.meter, progress, ctx, "backup", 0);
    l2c_db_enter(db);
    l2cdb_status rc = l2c_store_backup(db->store, path, backup_tick, &p, err);
    l2c_db_leave(db);
    return rc;
}

/* ---- Vacuum ---------------------------------------------------------------------------------- */

/* An index that holds deleted rows is built anew, so that they leave its file. */
static l2cdb_status clean_index(l2cdb *db, l2c_view *v, l2c_kind kind, l2cdb_error *err) {
    l2c_index *ix;
    l2cdb_status rc = l2c_view_index(db, v, kind, &ix, err);
    if (rc != L2CDB_OK || ix == NULL) {
        return rc;
    }
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    if (st.tombstones > 0 || st.fresh_rows > 0) {
        rc = l2c_index_build(ix, NULL, NULL, NULL, err);
    }
    return rc;
}

typedef struct keep_list {
    char *keep[2]; /* the active generation's files */
} keep_list;

static void remove_unless_kept(void *ctx, const char *path) {
    const keep_list *k = ctx;
    for (int i = 0; i < 2; i++) {
        if (k->keep[i] != NULL && strcmp(path, k->keep[i]) == 0) {
            return;
        }
    }
    if (strstr(l2c_path_base(path), ".idx.tmp") != NULL) { // perhaps another process is writing it
        remove_unfinished(NULL, path);
        return;
    }
    if (unlink(path) != 0) {
        l2c_log(L2CDB_LOG_WARN, "vacuum: not removed path=%s", path);
    }
}

/* Indexes of other generations are caches too, and may hold what was deleted. */
static void remove_other_files(l2cdb *db, const l2c_view *v) {
    keep_list k = { { NULL, NULL } };
    for (int kind = 0; kind < 2 && v->generation.id != 0; kind++) {
        k.keep[kind] = l2c_view_index_path(db, v->generation.space[kind], (l2c_kind)kind);
    }
    if (v->generation.id == 0 || (k.keep[0] != NULL && k.keep[1] != NULL)) {
        each_index_file(db, remove_unless_kept, &k);
    }
    l2c_free(k.keep[0]);
    l2c_free(k.keep[1]);
}

static l2cdb_status vacuum_view(l2cdb *db, l2c_view *v, l2cdb_error *err) {
    l2c_view_wait_build(db);
    l2cdb_status rc = L2CDB_OK;
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        rc = clean_index(db, v, (l2c_kind)kind, err);
    }
    if (rc == L2CDB_OK) {
        remove_other_files(db, v);
        // The files are as new as this number; nobody needs older removals. Another process that
        // does builds its index anew.
        rc = l2c_changes_trim(db->store, atomic_load(&v->change), err);
    }
    return rc == L2CDB_OK ? l2c_store_vacuum(db->store, err) : rc;
}

l2cdb_status l2cdb_vacuum(l2cdb *db, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_db_enter(db);
    l2c_view *v;
    rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = vacuum_view(db, v, err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    return rc;
}

/* ---- Check ----------------------------------------------------------------------------------- */

typedef struct check_state {
    l2cdb *db;
    l2c_view *view;
    bool repair;
    void (*finding)(void *ctx, const char *text, const char *remedy);
    void *ctx;
    uint64_t findings, left; /* left: not repaired */
} check_state;

static void found(check_state *c, bool repaired, const char *text, const char *remedy) {
    c->findings++;
    c->left += repaired ? 0 : 1;
    if (c->finding != NULL) {
        c->finding(c->ctx, text, repaired ? "repaired" : remedy);
    }
}

static void store_finding(void *ctx, const char *text) {
    found(ctx, false, text, "restore a backup (`l2cdb backup` makes them)");
}

static l2cdb_status check_store(check_state *c, l2cdb_error *err) {
    l2cdb_status rc = l2c_store_check(c->db->store, store_finding, c, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    uint64_t orphans = 0;
    bool words = true;
    rc = l2c_store_loose(c->db->store, c->repair, &orphans, &words, err);
    char text[160];
    if (rc == L2CDB_OK && orphans > 0) {
        snprintf(text, sizeof text, "%llu vectors or features belong to no record",
                 (unsigned long long)orphans);
        found(c, c->repair, text, "run `l2cdb check --repair`, which removes them");
    }
    if (rc == L2CDB_OK && !words) {
        found(c, c->repair, "the full-text index does not agree with the captions",
              "run `l2cdb check --repair`, which builds it anew");
    }
    return rc;
}

/* Reads the photo again, from the database or from its file. */
static l2cdb_status reencode_photo(check_state *c, l2c_model *model, int64_t id, bool *repaired,
                                   l2cdb_error *err) {
    const l2c_model_info *info = l2c_model_get_info(model);
    l2cdb_bytes bytes;
    l2c_photo p;
    const l2c_heads *heads;
    *repaired = false;
    l2c_photo_init(&p);
    l2cdb_status rc = l2cdb_get_original(c->db, id, &bytes, err);
    float *pixels = l2c_alloc_aligned(l2c_model_pixels_count(model), sizeof *pixels);
    float *features = l2c_alloc_aligned(info->image_width, sizeof *features);
    float *vector = l2c_alloc_aligned(info->width, sizeof *vector);
    if (pixels == NULL || features == NULL || vector == NULL) {
        rc = l2c_fail_nomem(err, 0);
    }
    bool readable = rc == L2CDB_OK;
    if (rc == L2CDB_OK) {
        rc = l2c_photo_prepare(c->db, model, &p, bytes.data, bytes.size, pixels, err);
    }
    if (rc == L2CDB_OK && !p.failed) {
        rc = l2c_view_heads(c->db, c->view, &heads, err);
        if (rc == L2CDB_OK) {
            rc = l2c_model_image_features(model, features, pixels, 1, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_heads_image(heads, vector, features, 1, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_store_begin(c->db->store, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_features_put(c->db->store, L2C_KIND_IMAGE, &info->image_trunk, id, features,
                                  info->image_width, err);
            if (rc == L2CDB_OK) {
                rc = l2c_vectors_put(c->db->store, c->view->generation.space[L2C_KIND_IMAGE],
                                     L2C_KIND_IMAGE, id, vector, info->width, err);
            }
            if (rc == L2CDB_OK) {
                rc = l2c_store_commit(c->db->store, err);
            } else {
                l2c_store_rollback(c->db->store);
            }
        }
        *repaired = rc == L2CDB_OK;
    }
    if (!readable && rc != L2CDB_E_NOMEM) { // its file is gone: that is for the user to decide
        rc = L2CDB_OK;
    }
    l2c_free(pixels);
    l2c_free(features);
    l2c_free(vector);
    l2c_photo_fini(&p);
    l2cdb_bytes_free(&bytes);
    return rc;
}

static l2cdb_status check_features(check_state *c, l2c_model *model, l2cdb_error *err) {
    const l2c_hash *trunk = &l2c_model_get_info(model)->image_trunk;
    int64_t ids[256], last = 0;
    size_t got = 1;
    uint64_t missing = 0, repaired = 0;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_features_missing(c->db->store, L2C_KIND_IMAGE, trunk, ids, 256, &got, last, err);
        for (size_t i = 0; i < got && rc == L2CDB_OK; i++) {
            bool done = false;
            last = ids[i];
            missing++;
            rc = c->repair ? reencode_photo(c, model, ids[i], &done, err) : L2CDB_OK;
            repaired += done ? 1 : 0;
        }
    }
    if (rc == L2CDB_OK && missing > 0) {
        char text[160];
        snprintf(text, sizeof text, "%llu photos have no features of the present model",
                 (unsigned long long)missing);
        found(c, repaired == missing, text,
              c->repair ? "their files are gone or unreadable: delete them or bring the files back"
                        : "run `l2cdb check --repair`, which encodes them again");
    }
    return rc;
}

static l2cdb_status check_missing(check_state *c, l2c_kind kind, const l2c_hash *trunk,
                                  uint64_t *missing, l2cdb_error *err) {
    int64_t ids[256], last = 0;
    size_t got = 1;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_vectors_missing(c->db->store, c->view->generation.space[kind], kind, trunk, ids,
                                 256, &got, last, err);
        *missing += got;
        last = got > 0 ? ids[got - 1] : last;
    }
    return rc;
}

static l2cdb_status check_captions(check_state *c, l2c_model *model, l2cdb_error *err) {
    const l2c_hash *trunk = &l2c_model_get_info(model)->text_trunk;
    int64_t ids[256], last = 0;
    size_t got = 1;
    uint64_t missing = 0;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_features_missing(c->db->store, L2C_KIND_CAPTION, trunk, ids, 256, &got, last, err);
        missing += got;
        last = got > 0 ? ids[got - 1] : last;
    }
    if (rc == L2CDB_OK && missing > 0) {
        rc = c->repair ? l2c_captions_encode(c->db, NULL, NULL, err) : L2CDB_OK;
        char text[160];
        snprintf(text, sizeof text, "%llu captions have no features of the present model",
                 (unsigned long long)missing);
        found(c, c->repair && rc == L2CDB_OK, text,
              "run `l2cdb check --repair`, which encodes them");
    }
    return rc;
}

static l2cdb_status check_vectors(check_state *c, l2c_model *model, l2cdb_error *err) {
    const l2c_model_info *info = l2c_model_get_info(model);
    uint64_t missing = 0;
    l2cdb_status rc = check_missing(c, L2C_KIND_IMAGE, &info->image_trunk, &missing, err);
    if (rc == L2CDB_OK) {
        rc = check_missing(c, L2C_KIND_CAPTION, &info->text_trunk, &missing, err);
    }
    if (rc == L2CDB_OK && missing > 0) {
        rc = c->repair ? l2c_view_fill(c->db, c->view, NULL, NULL, NULL, err) : L2CDB_OK;
        char text[160];
        snprintf(text, sizeof text, "%llu records have features and no vector in generation %lld",
                 (unsigned long long)missing, (long long)c->view->generation.id);
        found(c, c->repair && rc == L2CDB_OK, text,
              "run `l2cdb check --repair`, which makes them from the features");
    }
    return rc;
}

/* Every vector is read: has it the width, is it of unit norm? A wrong one is removed by repair, to
 * be made again from its features. */
static l2cdb_status check_norms(check_state *c, l2c_kind kind, uint64_t *wrong, l2cdb_error *err) {
    size_t width = c->view->generation.width, got = 1;
    int64_t ids[256], last = 0;
    float *v = l2c_alloc_aligned(256 * width, sizeof *v);
    l2cdb_status rc = v != NULL ? L2CDB_OK : l2c_fail_nomem(err, 256 * width * sizeof *v);
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_vectors_pull(c->db->store, c->view->generation.space[kind], kind, width, ids, v,
                              256, &got, last, err);
        for (size_t i = 0; i < got && rc == L2CDB_OK; i++) {
            last = ids[i];
            float norm = l2c_vec_norm(v + i * width, width);
            if (fabsf(norm - 1) <= 1e-3f) {
                continue;
            }
            ++*wrong;
            rc = c->repair ? l2c_vectors_remove(c->db->store, c->view->generation.space[kind], kind,
                                                ids[i], err)
                           : L2CDB_OK;
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(c->db, err);
        }
    }
    l2c_free(v);
    return rc;
}

static l2cdb_status check_index(check_state *c, l2c_kind kind, l2cdb_error *err) {
    l2c_view_catch_up(c->db);
    size_t stored;
    l2c_index *ix;
    l2cdb_status rc = l2c_view_index(c->db, c->view, kind, &ix, err);
    if (rc == L2CDB_OK) {
        rc = l2c_vectors_count(c->db->store, c->view->generation.space[kind], kind, &stored, err);
    }
    if (rc != L2CDB_OK || ix == NULL) {
        return rc;
    }
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    if (st.rows != stored) {
        rc = c->repair ? l2c_index_build(ix, NULL, NULL, NULL, err) : L2CDB_OK;
        char text[160];
        snprintf(text, sizeof text, "the index of %s has %zu rows, the database %zu",
                 kind == L2C_KIND_IMAGE ? "images" : "captions", st.rows, stored);
        found(c, c->repair && rc == L2CDB_OK, text,
              "run `l2cdb check --repair` or delete the index files: they are caches");
    }
    return rc;
}

static l2cdb_status check_model(check_state *c, l2cdb_error *err) {
    if (c->db->options.no_model || strcmp(c->view->generation.model, "external") == 0) {
        return L2CDB_OK;
    }
    l2c_model *model;
    const l2c_heads *heads;
    l2cdb_error why;
    l2cdb_status rc = l2c_view_model(c->db, c->view, &model, &why);
    if (rc == L2CDB_OK) {
        rc = l2c_view_heads(c->db, c->view, &heads, &why);
    }
    if (rc != L2CDB_OK) {
        found(c, false, why.message, why.hint);
        return L2CDB_OK;
    }
    rc = check_features(c, model, err);
    if (rc == L2CDB_OK) {
        rc = check_captions(c, model, err);
    }
    return rc == L2CDB_OK ? check_vectors(c, model, err) : rc;
}

static l2cdb_status check_view(check_state *c, l2cdb_error *err) {
    uint64_t wrong = 0;
    l2cdb_status rc = L2CDB_OK;
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        rc = check_norms(c, (l2c_kind)kind, &wrong, err);
    }
    if (rc == L2CDB_OK && wrong > 0) {
        char text[160];
        snprintf(text, sizeof text, "%llu vectors are not of unit length",
                 (unsigned long long)wrong);
        found(c, c->repair, text, "run `l2cdb check --repair`, which makes them again");
    }
    if (rc == L2CDB_OK) {
        rc = check_model(c, err);
    }
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        rc = check_index(c, (l2c_kind)kind, err);
    }
    return rc;
}

static l2cdb_status check_all(check_state *c, l2cdb_error *err) {
    l2cdb_status rc = check_store(c, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_get(c->db, &c->view, err);
    }
    if (rc == L2CDB_OK && c->view->generation.id != 0) {
        rc = check_view(c, err);
    }
    l2c_view_release(c->db, c->view);
    if (rc == L2CDB_OK && c->left > 0) {
        l2c_fail(err, L2CDB_E_CORRUPT, "%s: %llu problems%s", c->db->path,
                 (unsigned long long)c->left, c->repair ? " that could not be repaired" : "");
        rc = l2c_hint(err, "%s",
                      c->repair ? "see the remedies above" : "run `l2cdb check --repair`");
    }
    return rc;
}

l2cdb_status l2cdb_check(l2cdb *db, bool repair,
                         void (*finding)(void *ctx, const char *text, const char *remedy),
                         void *ctx, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = repair ? l2c_db_writable(db, err) : L2CDB_OK;
    if (rc != L2CDB_OK) {
        return rc;
    }
    check_state c = { .db = db, .repair = repair, .finding = finding, .ctx = ctx };
    l2c_db_enter(db);
    rc = check_all(&c, err);
    l2c_db_leave(db);
    return rc;
}
