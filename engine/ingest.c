/* Photos and captions in: walk, skip what is known, decode beside inference, one transaction a
 * batch.
 *
 * Two batches are in hand at a time: while the model encodes one and the store commits it, a pool
 * decodes the next. A batch is acknowledged by its commit; a death loses the two in hand and
 * nothing else, and the next run finds by path, size and time what is there already. A file that
 * cannot be read is a record with its reason; it takes its place in the batch and spoils nothing.
 */
#define _XOPEN_SOURCE 700 /* realpath */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "engine/base/file.h"
#include "engine/base/pool.h"
#include "engine/base/utf8.h"
#include "engine/engine.h"
#include "engine/photo.h"
#include "engine/photo_names.h"
#include "engine/walk.h"

#define BATCH_DEFAULT 32
#define BATCH_MAX 1024
#define CAPTIONS_PER_COMMIT 1024
#define SIDECAR_BYTES_MAX (1 << 20)

/* ---- What is being ingested ------------------------------------------------------------------ */

typedef struct found_file {
    char *path;
    int64_t size_bytes, mtime_ns;
} found_file;

typedef struct ingest ingest;

typedef struct slot {
    ingest *job;
    const found_file *file;
    bool known;  /* only its sidecar is of interest */
    bool reused; /* content of a sound record: nothing to encode */
    l2c_photo photo;
    float *pixels;   /* row of the batch's block */
    size_t row;      /* of features and vectors */
    l2cdb_status rc; /* of the worker */
    l2cdb_error error;
    double decode_s;
    int64_t id;
    l2cdb_file_outcome outcome;
} slot;

typedef struct batch {
    slot *slots;
    size_t count;
    float *pixels;
} batch;

struct ingest {
    l2cdb *db;
    const l2cdb_ingest_options *options;
    l2cdb_ingest_report report;
    char **roots; /* real paths */
    size_t roots_count;
    found_file *files;
    size_t files_count, files_capacity;
    size_t next; /* file to look at */
    l2c_model *model;
    size_t pixels_count, batch_max;
    batch batches[2];
    float *packed, *features, *vectors; /* rows of those that were decoded */
    l2c_pool *pool;
    l2c_meter meter;
    uint64_t done;
};

static void tell(ingest *j, const char *path, l2cdb_file_outcome outcome, const char *reason) {
    l2cdb_ingest_report *r = &j->report;
    uint64_t *const counts[] = { &r->added,      &r->updated, &r->unchanged,
                                 &r->duplicates, &r->skipped, &r->failed };
    ++*counts[outcome];
    if (j->options->on_file != NULL) {
        j->options->on_file(j->options->ctx, path, outcome, reason);
    }
}

/* ---- Walking --------------------------------------------------------------------------------- */

static bool has_photo_name(const char *path) {
    static const char *const endings[] = { ".jpg", ".jpeg", ".jpe", ".png", ".webp" };
    const char *dot = strrchr(l2c_path_base(path), '.');
    for (size_t i = 0; dot != NULL && i < sizeof endings / sizeof *endings; i++) {
        if (strcasecmp(dot, endings[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* By the first bytes; a file that cannot be opened is left to the decoder, which says why. */
static bool has_photo_content(const char *path) {
    uint8_t head[32];
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        return true;
    }
    size_t n = fread(head, 1, sizeof head, f);
    fclose(f);
    return l2c_image_sniff(head, n) != L2C_IMAGE_UNKNOWN;
}

static l2cdb_status walk_file(void *ctx, const char *path, const struct stat *st,
                              l2cdb_error *err) {
    ingest *j = ctx;
    if (!has_photo_name(path) && !has_photo_content(path)) {
        tell(j, path, L2CDB_FILE_SKIPPED, "not a photo (no JPEG, PNG or WebP)");
        return L2CDB_OK;
    }
    if (j->files_count == j->files_capacity) {
        size_t capacity = j->files_capacity != 0 ? j->files_capacity * 2 : 1024;
        found_file *more = l2c_realloc(j->files, capacity, sizeof *more);
        if (more == NULL) {
            return l2c_fail_nomem(err, capacity * sizeof *more);
        }
        j->files = more;
        j->files_capacity = capacity;
    }
    found_file *f = &j->files[j->files_count];
    f->path = l2c_strdup(path);
    f->size_bytes = (int64_t)st->st_size;
    f->mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    if (f->path == NULL) {
        return l2c_fail_nomem(err, strlen(path));
    }
    j->files_count++;
    j->report.found++;
    if (!l2c_meter_tick(&j->meter, j->report.found, path)) {
        return l2c_fail(err, L2CDB_E_CANCELLED, "cancelled while looking for photos");
    }
    return l2c_db_poll(j->db, err);
}

static void walk_problem(void *ctx, const char *path, const char *reason) {
    tell(ctx, path, L2CDB_FILE_FAILED, reason);
}

static void walk_excluded(void *ctx, const char *path, const char *reason) {
    tell(ctx, path, L2CDB_FILE_SKIPPED, reason);
}

static l2cdb_status find_roots(ingest *j, const char *const *paths, size_t n, l2cdb_error *err) {
    j->roots = l2c_calloc(n + 1, sizeof *j->roots);
    if (j->roots == NULL) {
        return l2c_fail_nomem(err, n * sizeof *j->roots);
    }
    for (size_t i = 0; i < n; i++) {
        char *real = realpath(paths[i], NULL);
        if (real == NULL) {
            l2c_fail_errno(err, errno, "%s: cannot be ingested", paths[i]);
            return l2c_hint(err, "check the path; nothing has been ingested");
        }
        j->roots[j->roots_count++] = real;
    }
    return L2CDB_OK;
}

static l2cdb_status find_files(ingest *j, l2cdb_error *err) {
    l2c_walk_options o = { .excludes = j->options->excludes,
                           .excludes_count = j->options->excludes_count,
                           .on_file = walk_file,
                           .on_problem = walk_problem,
                           .on_excluded = walk_excluded,
                           .ctx = j };
    l2cdb_status rc = L2CDB_OK;
    l2c_meter_start(&j->meter, j->options->progress, j->options->ctx, "scan", 0);
    for (size_t i = 0; i < j->roots_count && rc == L2CDB_OK; i++) {
        struct stat st;
        if (stat(j->roots[i], &st) == 0 && S_ISDIR(st.st_mode)) {
            rc = l2c_walk(j->roots[i], &o, err);
        } else {
            rc = walk_file(j, j->roots[i], &st, err);
        }
    }
    return rc;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

/* NAME.txt beside NAME.jpg; NULL if there is none. Freed with l2c_free. */
static char *sidecar_of(const char *path) {
    const char *dot = strrchr(l2c_path_base(path), '.');
    size_t stem = dot != NULL ? (size_t)(dot - path) : strlen(path);
    char *name = l2c_alloc(stem + 5, 1);
    if (name != NULL) {
        memcpy(name, path, stem);
        memcpy(name + stem, ".txt", 5);
        if (!l2c_path_exists(name) || strcmp(name, path) == 0) {
            l2c_free(name);
            name = NULL;
        }
    }
    return name;
}

typedef enum choice { CHOICE_SKIP, CHOICE_KNOWN, CHOICE_READ } choice;

static l2cdb_status choose(ingest *j, const found_file *f, int64_t *id, choice *out,
                           l2cdb_error *err) {
    *out = CHOICE_SKIP;
    l2c_path_state known;
    l2cdb_status rc = l2c_images_find_path(j->db->store, f->path, &known, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    *id = known.image_id;
    bool same =
        known.image_id != 0 && known.size_bytes == f->size_bytes && known.mtime_ns == f->mtime_ns;
    double age_s = (double)time(NULL) - (double)f->mtime_ns * 1e-9;
    if (j->options->captions_only && (known.image_id == 0 || known.failed)) {
        tell(j, f->path, L2CDB_FILE_SKIPPED, "not in the database; only captions were asked for");
    } else if (j->options->captions_only || (same && !known.failed)) {
        *out = CHOICE_KNOWN;
    } else if (same && known.failed && !j->options->retry_failed) {
        tell(j, f->path, L2CDB_FILE_SKIPPED,
             "failed before and has not changed since (retry_failed tries again)");
    } else if (j->options->settle_s > 0 && age_s < j->options->settle_s) {
        tell(j, f->path, L2CDB_FILE_SKIPPED, "still being written (changed just now)");
    } else {
        *out = CHOICE_READ;
    }
    return L2CDB_OK;
}

/* ---- Decoding, in the pool ------------------------------------------------------------------- */

static l2cdb_status read_photo(slot *s, const l2c_buf *bytes, l2cdb_error *err) {
    l2cdb *db = s->job->db;
    l2c_hash hash = l2c_hash_of(bytes->data, bytes->size);
    int64_t same;
    bool failed;
    l2cdb_status rc = l2c_images_find_hash(db->store, &hash, &same, &failed, err);
    if (rc == L2CDB_OK && same != 0 && !failed) {
        s->reused = true;
        s->photo.hash = hash;
        s->photo.size_bytes = bytes->size;
        return L2CDB_OK;
    }
    if (rc == L2CDB_OK) {
        rc = l2c_photo_prepare(db, s->job->model, &s->photo, bytes->data, bytes->size, s->pixels,
                               err);
    }
    return rc;
}

static void decode_slot(void *ctx) {
    slot *s = ctx;
    double start = l2c_now();
    l2c_buf bytes;
    l2c_buf_init(&bytes);
    l2cdb_error why;
    if (l2c_file_read(&bytes, s->file->path, L2C_PHOTO_BYTES_MAX, &why) != L2CDB_OK) {
        l2c_photo_fail(&s->photo, &why);
        s->photo.size_bytes = (uint64_t)s->file->size_bytes;
    } else {
        s->rc = read_photo(s, &bytes, &s->error);
    }
    l2c_buf_fini(&bytes);
    s->decode_s = l2c_now() - start;
}

/* ---- Model and buffers ----------------------------------------------------------------------- */

static l2cdb_status prepare_reading(ingest *j, l2cdb_error *err) {
    l2c_view *v;
    l2cdb_status rc = l2c_view_ensure_generation(j->db, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_get(j->db, &v, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_view_model(j->db, v, &j->model, err);
        l2c_view_release(j->db, v);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(j->model);
    if (!info->has_image) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "model %s has no vision part, photos cannot be encoded",
                 info->name);
        return l2c_hint(err, "import a vision part with `l2cdb import-model`");
    }
    j->pixels_count = l2c_model_pixels_count(j->model);
    size_t n = j->batch_max;
    for (int i = 0; i < 2; i++) {
        j->batches[i].pixels = l2c_alloc_aligned(n * j->pixels_count, sizeof(float));
    }
    j->packed = l2c_alloc_aligned(n * j->pixels_count, sizeof(float));
    j->features = l2c_alloc_aligned(n * info->image_width, sizeof(float));
    j->vectors = l2c_alloc_aligned(n * info->width, sizeof(float));
    for (int i = 0; i < 2; i++) {
        if (j->batches[i].pixels == NULL) {
            return l2c_fail_nomem(err, n * j->pixels_count * sizeof(float));
        }
    }
    if (j->packed == NULL || j->features == NULL || j->vectors == NULL) {
        return l2c_fail_nomem(err, n * j->pixels_count * sizeof(float));
    }
    return l2c_pool_new(&j->pool, j->db->options.threads, n, err);
}

/* ---- Filling a batch ------------------------------------------------------------------------- */

static void clear_batch(batch *b) {
    for (size_t i = 0; i < b->count; i++) {
        l2c_photo_fini(&b->slots[i].photo);
    }
    b->count = 0;
}

static slot *add_slot(ingest *j, batch *b, const found_file *f) {
    slot *s = &b->slots[b->count];
    memset(s, 0, sizeof *s);
    s->job = j;
    s->file = f;
    l2c_photo_init(&s->photo);
    b->count++;
    return s;
}

/* The first photo that must be read brings the model in: a run that finds nothing new costs no
 * more than looking. */
static l2cdb_status read_soon(ingest *j, batch *b, const found_file *f, l2cdb_error *err) {
    l2cdb_status rc = j->pool == NULL ? prepare_reading(j, err) : L2CDB_OK;
    if (rc == L2CDB_OK) {
        float *pixels = b->pixels + b->count * j->pixels_count;
        slot *s = add_slot(j, b, f);
        s->pixels = pixels;
        l2c_pool_submit(j->pool, decode_slot, s);
    }
    return rc;
}

static l2cdb_status fill_batch(ingest *j, batch *b, l2cdb_error *err) {
    clear_batch(b);
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && b->count < j->batch_max && j->next < j->files_count) {
        const found_file *f = &j->files[j->next++];
        choice c;
        int64_t id = 0;
        rc = choose(j, f, &id, &c, err);
        if (rc != L2CDB_OK || c == CHOICE_SKIP) {
            j->done++;
            continue;
        }
        if (c == CHOICE_READ) {
            rc = read_soon(j, b, f, err);
            continue;
        }
        char *sidecar = j->options->sidecars ? sidecar_of(f->path) : NULL;
        if (sidecar != NULL) {
            slot *s = add_slot(j, b, f);
            s->known = true;
            s->id = id;
            l2c_free(sidecar);
        } else {
            tell(j, f->path, L2CDB_FILE_UNCHANGED, "");
            j->done++;
        }
    }
    return rc;
}

/* ---- Encoding and storing -------------------------------------------------------------------- */

/* Features of what was decoded: features f32 [rows, image_width]. */
static l2cdb_status encode_batch(ingest *j, batch *b, size_t *rows, l2cdb_error *err) {
    *rows = 0;
    for (size_t i = 0; i < b->count; i++) {
        slot *s = &b->slots[i];
        if (s->known || s->reused || s->photo.failed) {
            continue;
        }
        s->row = *rows;
        memcpy(j->packed + *rows * j->pixels_count, s->pixels, j->pixels_count * sizeof *s->pixels);
        ++*rows;
    }
    return *rows > 0 ? l2c_model_image_features(j->model, j->features, j->packed, *rows, err)
                     : L2CDB_OK;
}

static l2cdb_status put_sidecar_line(ingest *j, int64_t id, const char *line, size_t n,
                                     l2cdb_error *err) {
    while (n > 0 && strchr(" \t\r", line[n - 1]) != NULL) {
        n--;
    }
    while (n > 0 && strchr(" \t", *line) != NULL) {
        line++;
        n--;
    }
    if (n == 0) {
        return L2CDB_OK;
    }
    if (n > L2C_CAPTION_BYTES_MAX || memchr(line, '\0', n) != NULL ||
        !l2c_utf8_valid(line, n, NULL)) {
        j->report.captions_unmatched++;
        return L2CDB_OK;
    }
    char *text = l2c_strndup(line, n);
    if (text == NULL) {
        return l2c_fail_nomem(err, n);
    }
    bool existed;
    l2c_caption_record c = { .image_id = id, .text = text, .source = "sidecar" };
    l2cdb_status rc = l2c_captions_put(j->db->store, &c, &existed, err);
    j->report.captions_added += rc == L2CDB_OK && !existed ? 1 : 0;
    l2c_free(text);
    return rc;
}

static l2cdb_status put_sidecar(ingest *j, const slot *s, l2cdb_error *err) {
    char *path = sidecar_of(s->file->path);
    if (path == NULL) {
        return L2CDB_OK;
    }
    l2c_buf text;
    l2c_buf_init(&text);
    l2cdb_error why;
    l2cdb_status rc = L2CDB_OK;
    if (l2c_file_read(&text, path, SIDECAR_BYTES_MAX, &why) != L2CDB_OK) {
        l2c_log(L2CDB_LOG_WARN, "sidecar not read: %s", why.message);
    }
    const char *line = text.data, *end = line != NULL ? line + text.size : NULL;
    while (rc == L2CDB_OK && line != NULL && line < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        stop = stop != NULL ? stop : end;
        rc = put_sidecar_line(j, s->id, line, (size_t)(stop - line), err);
        line = stop + 1;
    }
    l2c_buf_fini(&text);
    l2c_free(path);
    return rc;
}

static l2cdb_status store_slot(ingest *j, const l2c_view *v, slot *s, l2cdb_error *err) {
    if (s->known) {
        s->outcome = L2CDB_FILE_UNCHANGED;
        return put_sidecar(j, s, err);
    }
    const l2c_model_info *info = l2c_model_get_info(j->model); // it was read, so a model is there
    l2c_photo_vectors made = { .generation = &v->generation,
                               .trunk = &info->image_trunk,
                               .features = j->features + s->row * info->image_width,
                               .features_width = info->image_width,
                               .vector = j->vectors + s->row * info->width };
    l2cdb_status rc = l2c_photo_store(j->db, &s->photo, s->reused ? NULL : &made, s->file->path,
                                      s->file->mtime_ns, NULL, &s->id, &s->outcome, err);
    if (rc == L2CDB_OK && j->options->sidecars && !s->photo.failed) {
        rc = put_sidecar(j, s, err);
    }
    return rc;
}

/* Features → vectors of v's space. */
static l2cdb_status make_vectors(ingest *j, l2c_view *v, size_t rows, l2cdb_error *err) {
    const l2c_heads *heads;
    l2c_model *model;
    l2cdb_status rc = l2c_view_heads(j->db, v, &heads, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_model(j->db, v, &model, err);
    }
    if (rc == L2CDB_OK && model != j->model) {
        l2c_fail(err, L2CDB_E_MISMATCH, "the database has changed over to another model");
        rc = l2c_hint(err, "run the ingest again; what was stored is kept");
    }
    return rc == L2CDB_OK ? l2c_heads_image(heads, j->vectors, j->features, rows, err) : rc;
}

/* One transaction. *stale: another generation has become active, and nothing was stored. */
static l2cdb_status store_batch(ingest *j, l2c_view *v, batch *b, size_t rows, bool *stale,
                                l2cdb_error *err) {
    l2cdb_status rc = rows > 0 ? make_vectors(j, v, rows, err) : L2CDB_OK;
    bool current = false;
    if (rc == L2CDB_OK) {
        rc = l2c_view_begin(j->db, v, &current, err);
    }
    *stale = rc == L2CDB_OK && !current;
    if (rc != L2CDB_OK || *stale) {
        return rc;
    }
    uint64_t captions = j->report.captions_added;
    for (size_t i = 0; i < b->count && rc == L2CDB_OK; i++) {
        rc = store_slot(j, v, &b->slots[i], err);
        if (rc != L2CDB_OK) {
            l2c_context(err, "%s", b->slots[i].file->path);
        }
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_commit(j->db->store, err);
    } else {
        l2c_store_rollback(j->db->store);
    }
    if (rc != L2CDB_OK) {
        j->report.captions_added = captions;
    }
    return rc;
}

static l2cdb_status commit_batch(ingest *j, batch *b, size_t rows, l2cdb_error *err) {
    bool stale = true;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && stale) {
        l2c_view *v;
        rc = l2c_view_get(j->db, &v, err);
        if (rc == L2CDB_OK) {
            rc = store_batch(j, v, b, rows, &stale, err);
        }
        l2c_view_release(j->db, v);
    }
    return rc;
}

static l2cdb_status finish_batch(ingest *j, batch *b, l2cdb_error *err) {
    if (b->count == 0) {
        return L2CDB_OK;
    }
    for (size_t i = 0; i < b->count; i++) {
        slot *s = &b->slots[i];
        j->report.decode_s += s->decode_s;
        if (s->rc != L2CDB_OK) {
            if (err != NULL) {
                *err = s->error;
            }
            return s->rc;
        }
    }
    size_t rows;
    double start = l2c_now();
    l2cdb_status rc = encode_batch(j, b, &rows, err);
    double encoded = l2c_now();
    j->report.encode_s += encoded - start;
    if (rc == L2CDB_OK) {
        rc = commit_batch(j, b, rows, err);
    }
    if (rc == L2CDB_OK) {
        l2c_view_catch_up(j->db);
    }
    j->report.commit_s += l2c_now() - encoded;
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < b->count; i++) {
        const slot *s = &b->slots[i];
        tell(j, s->file->path, s->outcome, s->photo.failed ? s->photo.reason : "");
    }
    j->done += b->count;
    return L2CDB_OK;
}

static l2cdb_status go_on(ingest *j, const char *detail, l2cdb_error *err) {
    if (!l2c_meter_tick(&j->meter, j->done, detail)) {
        return l2c_fail(err, L2CDB_E_CANCELLED, "cancelled; %llu of %zu files are done",
                        (unsigned long long)j->done, j->files_count);
    }
    return l2c_db_poll(j->db, err);
}

static void drain(ingest *j) {
    if (j->pool != NULL) {
        l2c_pool_drain(j->pool);
    }
}

static l2cdb_status ingest_files(ingest *j, l2cdb_error *err) {
    l2c_meter_start(&j->meter, j->options->progress, j->options->ctx, "ingest", j->files_count);
    size_t turn = 0;
    l2cdb_status rc = L2CDB_OK;
    for (int i = 0; i < 2 && rc == L2CDB_OK; i++) {
        j->batches[i].slots = l2c_calloc(j->batch_max, sizeof(slot));
        rc = j->batches[i].slots != NULL ? L2CDB_OK : l2c_fail_nomem(err, sizeof(slot));
    }
    if (rc == L2CDB_OK) {
        rc = fill_batch(j, &j->batches[turn], err);
    }
    drain(j);
    while (rc == L2CDB_OK && j->batches[turn].count > 0) {
        batch *ready = &j->batches[turn], *coming = &j->batches[1 - turn];
        rc = fill_batch(j, coming, err); // decoded by the pool while `ready` is encoded
        if (rc == L2CDB_OK) {
            rc = finish_batch(j, ready, err);
        }
        const char *last = ready->count > 0 ? ready->slots[ready->count - 1].file->path : "";
        if (rc == L2CDB_OK) {
            rc = go_on(j, last, err);
        }
        drain(j);
        turn = 1 - turn;
    }
    return rc;
}

/* ---- Freeing --------------------------------------------------------------------------------- */

static void free_ingest(ingest *j) {
    l2c_pool_free(j->pool);
    for (int i = 0; i < 2; i++) {
        clear_batch(&j->batches[i]);
        l2c_free(j->batches[i].slots);
        l2c_free(j->batches[i].pixels);
    }
    l2c_free(j->packed);
    l2c_free(j->features);
    l2c_free(j->vectors);
    for (size_t i = 0; i < j->files_count; i++) {
        l2c_free(j->files[i].path);
    }
    l2c_free(j->files);
    for (size_t i = 0; i < j->roots_count; i++) {
        free(j->roots[i]); // realpath's
    }
    l2c_free(j->roots);
}

/* ---- Pruning --------------------------------------------------------------------------------- */

typedef struct prune_list {
    const ingest *job;
    char **paths;
    size_t count, capacity;
    bool failed;
} prune_list;

/* The file is gone and the directory it was in is there: a volume that is offline is no deletion.
 */
static bool is_gone(const ingest *j, const char *path) {
    for (size_t i = 0; i < j->roots_count; i++) {
        size_t n = strlen(j->roots[i]);
        if (strncmp(path, j->roots[i], n) == 0 && path[n] == '/' && !l2c_path_exists(path)) {
            const char *base = l2c_path_base(path);
            char *dir = l2c_strndup(path, (size_t)(base - path));
            bool there = dir != NULL && l2c_path_is_dir(dir);
            l2c_free(dir);
            return there;
        }
    }
    return false;
}

static bool collect_gone(void *ctx, int64_t id, const char *path) {
    prune_list *l = ctx;
    (void)id;
    if (!is_gone(l->job, path)) {
        return true;
    }
    if (l->count == l->capacity) {
        size_t capacity = l->capacity != 0 ? l->capacity * 2 : 64;
        char **more = l2c_realloc(l->paths, capacity, sizeof *more);
        if (more == NULL) {
            l->failed = true;
            return false;
        }
        l->paths = more;
        l->capacity = capacity;
    }
    l->paths[l->count] = l2c_strdup(path);
    l->failed = l->paths[l->count] == NULL;
    l->count += l->failed ? 0 : 1;
    return !l->failed;
}

static l2cdb_status prune(ingest *j, l2cdb_error *err) {
    prune_list l = { .job = j };
    l2cdb_status rc = l2c_images_each_path(j->db->store, collect_gone, &l, err);
    if (rc == L2CDB_OK && l.failed) {
        rc = l2c_fail_nomem(err, l.capacity * sizeof *l.paths);
    }
    if (rc == L2CDB_OK && l.count > 0) {
        rc = l2c_store_begin(j->db->store, err);
        for (size_t i = 0; i < l.count && rc == L2CDB_OK; i++) {
            rc = l2c_images_remove_path(j->db->store, l.paths[i], NULL, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_store_commit(j->db->store, err);
            j->report.pruned += rc == L2CDB_OK ? l.count : 0;
        } else {
            l2c_store_rollback(j->db->store);
        }
        l2c_view_catch_up(j->db);
    }
    for (size_t i = 0; i < l.count; i++) {
        l2c_free(l.paths[i]);
    }
    l2c_free(l.paths);
    return rc;
}

/* ---- Captions from a file -------------------------------------------------------------------- */

typedef struct caption_job {
    ingest *job;
    l2c_photo_names *names;
    const char *source;
    size_t in_commit;
    bool open; /* a transaction */
} caption_job;

static l2cdb_status put_line(void *ctx, const l2c_caption_line *line, l2cdb_error *err) {
    caption_job *c = ctx;
    l2cdb *db = c->job->db;
    l2cdb_status rc = L2CDB_OK;
    if (!c->open) {
        rc = l2c_store_begin(db->store, err);
        c->open = rc == L2CDB_OK;
        c->in_commit = 0;
    }
    int64_t id = line->id != 0 ? line->id : l2c_photo_names_find(c->names, line->image);
    if (rc == L2CDB_OK && id == 0) {
        c->job->report.captions_unmatched++;
        return L2CDB_OK;
    }
    l2c_caption_record r = {
        .image_id = id, .text = line->text, .language = line->language, .source = c->source
    };
    bool existed = false;
    if (rc == L2CDB_OK) {
        rc = l2c_captions_put(db->store, &r, &existed, err);
    }
    if (rc == L2CDB_E_NOTFOUND) { // a number that is nobody's
        c->job->report.captions_unmatched++;
        return L2CDB_OK;
    }
    c->job->report.captions_added += rc == L2CDB_OK && !existed ? 1 : 0;
    if (rc == L2CDB_OK && ++c->in_commit == CAPTIONS_PER_COMMIT) {
        c->open = false;
        rc = l2c_store_commit(db->store, err);
    }
    return rc == L2CDB_OK ? l2c_db_poll(db, err) : rc;
}

/* Relative names may start at the file's own directory or at one that is being ingested. */
static l2cdb_status make_names(ingest *j, l2c_photo_names **out, l2cdb_error *err) {
    char *real = realpath(j->options->captions_file, NULL);
    if (real == NULL) {
        return l2c_fail_errno(err, errno, "%s: cannot be read", j->options->captions_file);
    }
    char *slash = strrchr(real, '/');
    *slash = '\0';
    const char **dirs = l2c_alloc(j->roots_count + 1, sizeof *dirs);
    l2cdb_status rc = dirs != NULL ? L2CDB_OK : l2c_fail_nomem(err, 0);
    if (rc == L2CDB_OK) {
        dirs[0] = real;
        for (size_t i = 0; i < j->roots_count; i++) {
            dirs[i + 1] = j->roots[i];
        }
        rc = l2c_photo_names_new(out, j->db, dirs, j->roots_count + 1, err);
    }
    l2c_free(dirs);
    free(real);
    return rc;
}

static l2cdb_status ingest_captions_file(ingest *j, l2cdb_error *err) {
    caption_job c = { .job = j, .source = l2c_path_base(j->options->captions_file) };
    l2cdb_status rc = make_names(j, &c.names, err);
    if (rc == L2CDB_OK) {
        rc = l2c_captions_read(j->options->captions_file, put_line, &c, err);
    }
    if (c.open && rc == L2CDB_OK) {
        rc = l2c_store_commit(j->db->store, err);
    } else if (c.open) {
        l2c_store_rollback(j->db->store);
    }
    l2c_photo_names_free(c.names);
    return rc;
}

/* ---- The door -------------------------------------------------------------------------------- */

void l2cdb_ingest_options_init(l2cdb_ingest_options *o) {
    *o = (l2cdb_ingest_options){ .sidecars = true };
}

const char *l2cdb_file_outcome_name(l2cdb_file_outcome o) {
    static const char *const names[] = { "added",     "updated", "unchanged",
                                         "duplicate", "skipped", "failed" };
    return (size_t)o < sizeof names / sizeof *names ? names[o] : "unknown";
}

/* Opens the indexes, so that they are built now, in the background, and not at the first question.
 */
static void prepare_indexes(ingest *j) {
    l2c_view *v;
    l2cdb_error err;
    l2c_index *ignored;
    if (l2c_view_get(j->db, &v, &err) != L2CDB_OK) {
        return;
    }
    for (int kind = 0; kind < 2; kind++) {
        if (l2c_view_index(j->db, v, (l2c_kind)kind, &ignored, &err) != L2CDB_OK) {
            l2c_log(L2CDB_LOG_WARN, "index not opened: %s", err.message);
        }
    }
    l2c_view_release(j->db, v);
    l2c_view_catch_up(j->db);
}

static l2cdb_status run(ingest *j, const char *const *paths, size_t paths_count, l2cdb_error *err) {
    l2cdb_status rc = find_roots(j, paths, paths_count, err);
    if (rc == L2CDB_OK) {
        rc = find_files(j, err);
    }
    if (rc == L2CDB_OK && j->files_count > 0) {
        rc = ingest_files(j, err);
    }
    if (rc == L2CDB_OK && j->options->prune) {
        rc = prune(j, err);
    }
    if (rc == L2CDB_OK && j->options->captions_file != NULL) {
        rc = ingest_captions_file(j, err);
    }
    if (rc == L2CDB_OK && (j->report.captions_added > 0 || j->files_count > 0)) {
        rc = l2c_captions_encode(j->db, j->options->progress, j->options->ctx, err);
    }
    if (j->done > 0 || j->report.captions_added > 0) {
        prepare_indexes(j);
    }
    return rc;
}

l2cdb_status l2cdb_ingest(l2cdb *db, const char *const *paths, size_t paths_count,
                          const l2cdb_ingest_options *options, l2cdb_ingest_report *report,
                          l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_ingest_options defaults;
    l2cdb_ingest_options_init(&defaults);
    ingest j = { .db = db, .options = options != NULL ? options : &defaults };
    j.batch_max = j.options->batch == 0          ? BATCH_DEFAULT
                  : j.options->batch > BATCH_MAX ? BATCH_MAX
                                                 : j.options->batch;
    double start = l2c_now();
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc == L2CDB_OK) {
        l2c_db_enter(db);
        rc = run(&j, paths, paths_count, err);
        l2c_db_leave(db);
    }
    free_ingest(&j);
    j.report.seconds = l2c_now() - start;
    if (report != NULL) {
        *report = j.report;
    }
    return rc;
}
