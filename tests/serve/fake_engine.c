/* A few hundred lines that answer like the engine, for tests of the wire: nothing to load, any
 * speed, any error. Vectors are 8 wide and come from a hash of the text. Its SQL is a handful of
 * statements: the two that the server itself asks, and
 *     rows N [MS]   N rows (i, 'row i'), MS milliseconds each
 *     sleep         runs until its time limit
 *     write         is refused by the read-only role
 * Numbers of milliseconds for the other calls come from FAKE_SEARCH_MS, FAKE_ENCODE_MS and
 * FAKE_WRITE_MS. */
#include "engine/l2cdb.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WIDTH 8
#define IMAGES_MAX 4096
#define CAPTIONS_MAX 4096

typedef struct caption {
    int64_t id, image_id;
    char text[256], language[16];
} caption;

struct l2cdb {
    pthread_mutex_t lock;
    atomic_bool stop;
    atomic_int generation;
    atomic_bool images[IMAGES_MAX];
    atomic_llong image_last, caption_last;
    caption captions[CAPTIONS_MAX];
    atomic_ullong passes;
    char path[256];
};

struct l2cdb_results {
    l2cdb_row *rows;
    size_t count;
    l2cdb_timings timings;
    float vector[WIDTH];
};

enum statement { ROWS, SLEEP, IMAGE, CAPTIONS };

struct l2cdb_stmt {
    l2cdb *db;
    enum statement kind;
    int64_t at, rows, id;
    double ms;
    l2cdb_sql_limits limits;
    struct timespec end;
    char text[300];
    int64_t caption_id;
};

static void fail(l2cdb_error *err, l2cdb_status code, const char *message) {
    if (err != NULL) {
        l2cdb_error_clear(err);
        err->code = code;
        snprintf(err->message, sizeof err->message, "%s", message);
    }
}

static void wait_ms(double ms) {
    if (ms > 0) {
        struct timespec t = { (time_t)(ms / 1000), (long)(fmod(ms, 1000) * 1e6) };
        nanosleep(&t, NULL);
    }
}

static double number(const char *name) {
    const char *v = getenv(name);
    return v != NULL ? atof(v) : 0;
}

/* ---- Open ---------------------------------------------------------------------------------- */

void l2cdb_open_options_init(l2cdb_open_options *o) {
    memset(o, 0, sizeof *o);
}

l2cdb_status l2cdb_open(l2cdb **out, const char *path, const l2cdb_open_options *options,
                        l2cdb_error *err) {
    (void)options;
    *out = calloc(1, sizeof **out);
    if (*out == NULL) {
        fail(err, L2CDB_E_NOMEM, "out of memory");
        return L2CDB_E_NOMEM;
    }
    pthread_mutex_init(&(*out)->lock, NULL);
    atomic_store(&(*out)->generation, 1);
    (*out)->image_last = 100;
    for (int i = 1; i <= 100; i++) {
        (*out)->images[i] = true;
    }
    snprintf((*out)->path, sizeof(*out)->path, "%s", path);
    return L2CDB_OK;
}

void l2cdb_close(l2cdb *db) {
    free(db);
}

l2cdb_status l2cdb_warm(l2cdb *db, l2cdb_error *err) {
    (void)db;
    (void)err;
    wait_ms(number("FAKE_WARM_MS"));
    return L2CDB_OK;
}

void l2cdb_interrupt(l2cdb *db) {
    atomic_store(&db->stop, true);
}

const char *l2cdb_path(const l2cdb *db) {
    return db->path;
}

const char *l2cdb_version(void) {
    return L2CDB_VERSION;
}

/* ---- Search -------------------------------------------------------------------------------- */

static void embed(const char *text, float *out) {
    uint32_t h = 2166136261u;
    double sum = 0;
    for (const char *c = text; *c != '\0'; c++) {
        h = (h ^ (unsigned char)*c) * 16777619u;
    }
    for (int i = 0; i < WIDTH; i++) {
        h = h * 1664525u + 1013904223u;
        out[i] = (float)(h >> 8) / (float)(1 << 24) - 0.5f;
        sum += (double)out[i] * (double)out[i];
    }
    for (int i = 0; i < WIDTH; i++) {
        out[i] /= (float)sqrt(sum);
    }
}

void l2cdb_query_init(l2cdb_query *q) {
    memset(q, 0, sizeof *q);
    q->k = 10;
    q->score_min = -2;
}

static l2cdb_status check_terms(l2cdb *db, const l2cdb_query *q, l2cdb_error *err) {
    for (size_t i = 0; i < q->terms_count; i++) {
        const l2cdb_term *t = &q->terms[i];
        if (t->kind == L2CDB_TERM_VECTOR && t->size != WIDTH * sizeof(float)) {
            fail(err, L2CDB_E_MISMATCH, "the vector has another width than the database");
            return L2CDB_E_MISMATCH;
        }
        bool known = t->id > 0 && t->id <= db->image_last && db->images[t->id];
        if (t->kind == L2CDB_TERM_IMAGE_ID && !known) {
            fail(err, L2CDB_E_NOTFOUND, "no photo has this id");
            return L2CDB_E_NOTFOUND;
        }
        if (t->kind == L2CDB_TERM_IMAGE_BYTES && (t->size < 3 || memcmp(t->data, "\xff\xd8", 2))) {
            fail(err, L2CDB_E_FORMAT, "not a picture");
            return L2CDB_E_FORMAT;
        }
    }
    return L2CDB_OK;
}

l2cdb_status l2cdb_search(l2cdb *db, const l2cdb_query *q, l2cdb_results **out, l2cdb_error *err) {
    l2cdb_status rc = check_terms(db, q, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    wait_ms(number("FAKE_SEARCH_MS"));
    l2cdb_results *r = calloc(1, sizeof *r);
    r->rows = calloc(q->k, sizeof *r->rows);
    embed(q->terms[0].text != NULL ? q->terms[0].text : "", r->vector);
    if (q->terms[0].kind == L2CDB_TERM_VECTOR) {
        memcpy(r->vector, q->terms[0].data, sizeof r->vector);
    }
    for (int64_t id = 1; id <= atomic_load(&db->image_last) && r->count < q->k; id++) {
        if (db->images[id]) {
            l2cdb_row *row = &r->rows[r->count];
            *row = (l2cdb_row){ .id = id,
                                .image_id = id,
                                .score = 1 - (float)r->count / 100,
                                .distance = (float)r->count / 100,
                                .path = "photos/<b>&\"x\".jpg",
                                .taken_at = "2024-05-06T07:08:09",
                                .camera = "X100V",
                                .width = 640,
                                .height = 480 };
            row->text = q->target == L2CDB_CAPTIONS ? "a caption" : NULL;
            row->vector = q->include_vector ? r->vector : NULL;
            r->count++;
        }
    }
    r->timings.search_ms = 0.5;
    r->timings.fetch_ms = 0.1;
    r->timings.generation = atomic_load(&db->generation);
    snprintf(r->timings.plan, sizeof r->timings.plan, "fake");
    *out = r;
    return L2CDB_OK;
}

size_t l2cdb_results_count(const l2cdb_results *r) {
    return r->count;
}

const l2cdb_row *l2cdb_results_row(const l2cdb_results *r, size_t i) {
    return &r->rows[i];
}

const l2cdb_timings *l2cdb_results_timings(const l2cdb_results *r) {
    return &r->timings;
}

void l2cdb_results_free(l2cdb_results *r) {
    if (r != NULL) {
        free(r->rows);
        free(r);
    }
}

l2cdb_status l2cdb_width(l2cdb *db, size_t *width, l2cdb_error *err) {
    (void)db;
    (void)err;
    *width = WIDTH;
    return L2CDB_OK;
}

l2cdb_status l2cdb_encode(l2cdb *db, const l2cdb_term *term, float *out, size_t width,
                          l2cdb_error *err) {
    (void)width;
    l2cdb_query q = { .terms = term, .terms_count = 1 };
    embed(term->text != NULL ? term->text : "picture", out);
    return check_terms(db, &q, err);
}

/* "switched" is encoded by a generation that is not the active one when it is searched. */
l2cdb_status l2cdb_encode_texts(l2cdb *db, const char *const *texts, size_t n, float *out,
                                size_t width, int64_t *generation, l2cdb_error *err) {
    int64_t made_by = atomic_load(&db->generation);
    wait_ms(number("FAKE_ENCODE_MS"));
    atomic_fetch_add(&db->passes, 1);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(texts[i], "unencodable") == 0) {
            fail(err, L2CDB_E_INVALID, "this text cannot be encoded");
            return L2CDB_E_INVALID;
        }
        embed(texts[i], out + i * width);
        if (strcmp(texts[i], "switched") == 0) {
            memset(out + i * width, 0, width * sizeof *out);
            made_by++;
        }
    }
    if (generation != NULL) {
        *generation = made_by;
    }
    return L2CDB_OK;
}

/* ---- Records ------------------------------------------------------------------------------- */

const char *l2cdb_file_outcome_name(l2cdb_file_outcome o) {
    static const char *const names[] = { "added",     "updated", "unchanged",
                                         "duplicate", "skipped", "failed" };
    return names[o];
}

l2cdb_status l2cdb_put_image(l2cdb *db, const char *name, const void *bytes, size_t size,
                             int64_t *id, l2cdb_file_outcome *outcome, l2cdb_error *err) {
    (void)name;
    wait_ms(number("FAKE_WRITE_MS"));
    if (size < 3 || memcmp(bytes, "\xff\xd8", 2) != 0) {
        fail(err, L2CDB_E_FORMAT, "not a picture");
        return L2CDB_E_FORMAT;
    }
    pthread_mutex_lock(&db->lock);
    *id = db->image_last < IMAGES_MAX - 1 ? ++db->image_last : db->image_last;
    db->images[*id] = true;
    pthread_mutex_unlock(&db->lock);
    *outcome = L2CDB_FILE_ADDED;
    return L2CDB_OK;
}

static bool has_image(l2cdb *db, int64_t id, l2cdb_error *err) {
    bool has = id > 0 && id < IMAGES_MAX && db->images[id];
    if (!has) {
        fail(err, L2CDB_E_NOTFOUND, "no photo has this id");
    }
    return has;
}

l2cdb_status l2cdb_delete_images(l2cdb *db, const int64_t *ids, size_t n, l2cdb_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (!has_image(db, ids[i], err)) {
            return L2CDB_E_NOTFOUND;
        }
        db->images[ids[i]] = false;
    }
    return L2CDB_OK;
}

l2cdb_status l2cdb_add_caption(l2cdb *db, int64_t image_id, const char *text, const char *language,
                               const char *source, int64_t *id, l2cdb_error *err) {
    (void)source;
    if (!has_image(db, image_id, err)) {
        return L2CDB_E_NOTFOUND;
    }
    pthread_mutex_lock(&db->lock);
    *id = db->caption_last < CAPTIONS_MAX - 1 ? ++db->caption_last : db->caption_last;
    caption *c = &db->captions[*id];
    *c = (caption){ .id = *id, .image_id = image_id };
    snprintf(c->text, sizeof c->text, "%s", text);
    snprintf(c->language, sizeof c->language, "%s", language != NULL ? language : "");
    pthread_mutex_unlock(&db->lock);
    return L2CDB_OK;
}

static caption *get_caption(l2cdb *db, int64_t id, l2cdb_error *err) {
    if (id > 0 && id < CAPTIONS_MAX && db->captions[id].id == id) {
        return &db->captions[id];
    }
    fail(err, L2CDB_E_NOTFOUND, "no caption has this id");
    return NULL;
}

l2cdb_status l2cdb_update_caption(l2cdb *db, int64_t caption_id, const char *text,
                                  const char *language, l2cdb_error *err) {
    (void)language;
    pthread_mutex_lock(&db->lock);
    caption *c = get_caption(db, caption_id, err);
    if (c != NULL) {
        snprintf(c->text, sizeof c->text, "%s", text);
    }
    pthread_mutex_unlock(&db->lock);
    return c != NULL ? L2CDB_OK : L2CDB_E_NOTFOUND;
}

l2cdb_status l2cdb_delete_captions(l2cdb *db, const int64_t *ids, size_t n, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    pthread_mutex_lock(&db->lock);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        caption *c = get_caption(db, ids[i], err);
        if (c != NULL) {
            c->id = 0;
        }
        rc = c != NULL ? L2CDB_OK : L2CDB_E_NOTFOUND;
    }
    pthread_mutex_unlock(&db->lock);
    return rc;
}

static l2cdb_status give(l2cdb_bytes *out, size_t size, int64_t id) {
    *out = (l2cdb_bytes){ .data = malloc(size), .size = size, .content_type = "image/jpeg" };
    memset(out->data, 0xd8, size);
    ((unsigned char *)out->data)[0] = 0xff;
    snprintf(out->etag, sizeof out->etag, "etag-%lld", (long long)id);
    return L2CDB_OK;
}

l2cdb_status l2cdb_get_thumbnail(l2cdb *db, int64_t id, l2cdb_bytes *out, l2cdb_error *err) {
    return has_image(db, id, err) ? give(out, 1000, id) : L2CDB_E_NOTFOUND;
}

l2cdb_status l2cdb_get_original(l2cdb *db, int64_t id, l2cdb_bytes *out, l2cdb_error *err) {
    return has_image(db, id, err) ? give(out, (size_t)4 << 20, id) : L2CDB_E_NOTFOUND;
}

void l2cdb_bytes_free(l2cdb_bytes *b) {
    free(b->data);
    b->data = NULL;
}

/* ---- SQL ----------------------------------------------------------------------------------- */

l2cdb_status l2cdb_prepare_next(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                                l2cdb_stmt **out, const char **tail, l2cdb_error *err) {
    *out = NULL;
    sql += strspn(sql, " \n");
    *tail = strchr(sql, ';') != NULL ? strchr(sql, ';') + 1 : sql + strlen(sql);
    if (*sql == '\0') {
        return L2CDB_OK;
    }
    l2cdb_stmt s = { .db = db, .limits = *limits };
    long long rows = 0;
    if (sscanf(sql, "rows %lld %lf", &rows, &s.ms) >= 1) {
        s.kind = ROWS;
        s.rows = rows;
    } else if (strncmp(sql, "sleep", 5) == 0) {
        s.kind = SLEEP;
    } else if (strstr(sql, "FROM images") != NULL) {
        s.kind = IMAGE;
    } else if (strstr(sql, "FROM captions") != NULL) {
        s.kind = CAPTIONS;
    } else {
        bool writes = strncmp(sql, "write", 5) == 0 && limits->read_only;
        fail(err, writes ? L2CDB_E_DENIED : L2CDB_E_SQL, writes ? "read-only" : "syntax error");
        if (err != NULL) {
            err->offset = 0;
        }
        return writes ? L2CDB_E_DENIED : L2CDB_E_SQL;
    }
    *out = malloc(sizeof s);
    **out = s;
    return L2CDB_OK;
}

l2cdb_status l2cdb_prepare(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                           l2cdb_stmt **out, l2cdb_error *err) {
    const char *tail;
    return l2cdb_prepare_next(db, sql, limits, out, &tail, err);
}

void l2cdb_finalize(l2cdb_stmt *s) {
    free(s);
}

int l2cdb_bind_count(const l2cdb_stmt *s) {
    return s->kind == IMAGE || s->kind == CAPTIONS ? 1 : 0;
}

int l2cdb_bind_index(const l2cdb_stmt *s, const char *name) {
    (void)s;
    return strcmp(name, ":id") == 0 ? 1 : 0;
}

l2cdb_status l2cdb_bind_null(l2cdb_stmt *s, int i) {
    (void)s;
    return i == 1 ? L2CDB_OK : L2CDB_E_INVALID;
}

l2cdb_status l2cdb_bind_int64(l2cdb_stmt *s, int i, int64_t v) {
    s->id = v;
    return i == 1 ? L2CDB_OK : L2CDB_E_INVALID;
}

l2cdb_status l2cdb_bind_double(l2cdb_stmt *s, int i, double v) {
    (void)v;
    return l2cdb_bind_null(s, i);
}

l2cdb_status l2cdb_bind_text(l2cdb_stmt *s, int i, const char *v, size_t size) {
    (void)v;
    (void)size;
    return l2cdb_bind_null(s, i);
}

l2cdb_status l2cdb_bind_blob(l2cdb_stmt *s, int i, const void *v, size_t size) {
    (void)v;
    (void)size;
    return l2cdb_bind_null(s, i);
}

l2cdb_status l2cdb_bind_vector(l2cdb_stmt *s, int i, const float *v, size_t n) {
    (void)v;
    (void)n;
    return l2cdb_bind_null(s, i);
}

static l2cdb_status sleep_out(l2cdb_stmt *s, l2cdb_error *err) {
    for (double ms = 0; ms < s->limits.timeout_ms && !atomic_load(&s->db->stop); ms += 5) {
        wait_ms(5);
    }
    fail(err, L2CDB_E_TIMEOUT, "the statement took too long");
    return L2CDB_E_TIMEOUT;
}

l2cdb_status l2cdb_step(l2cdb_stmt *s, bool *row, l2cdb_error *err) {
    *row = false;
    if (s->kind == SLEEP) {
        return sleep_out(s, err);
    }
    s->at++;
    if (s->limits.rows_max > 0 && (uint64_t)s->at > s->limits.rows_max) {
        fail(err, L2CDB_E_LIMIT, "too many rows");
        return L2CDB_E_LIMIT;
    }
    if (s->kind == ROWS) {
        wait_ms(s->ms);
        *row = s->at <= s->rows;
        snprintf(s->text, sizeof s->text, "row %lld", (long long)s->at);
    } else if (s->kind == IMAGE) {
        *row = s->at == 1 && has_image(s->db, s->id, NULL);
        snprintf(s->text, sizeof s->text, "photos/%lld.jpg", (long long)s->id);
    } else {
        pthread_mutex_lock(&s->db->lock);
        for (; s->at < CAPTIONS_MAX && !*row; s->at += *row ? 0 : 1) {
            const caption *c = &s->db->captions[s->at];
            *row = c->id != 0 && c->image_id == s->id;
            s->caption_id = c->id;
            snprintf(s->text, sizeof s->text, "%s", c->text);
        }
        pthread_mutex_unlock(&s->db->lock);
    }
    return L2CDB_OK;
}

int l2cdb_column_count(const l2cdb_stmt *s) {
    (void)s;
    return 2;
}

const char *l2cdb_column_name(const l2cdb_stmt *s, int i) {
    return i == 0 ? "id" : s->kind == IMAGE ? "path" : "text";
}

l2cdb_type l2cdb_column_type(l2cdb_stmt *s, int i) {
    (void)s;
    return i == 0 ? L2CDB_INTEGER : L2CDB_TEXT;
}

int64_t l2cdb_column_int64(l2cdb_stmt *s, int i) {
    (void)i;
    return s->kind == CAPTIONS ? s->caption_id : s->kind == IMAGE ? s->id : s->at;
}

double l2cdb_column_double(l2cdb_stmt *s, int i) {
    return (double)l2cdb_column_int64(s, i);
}

const char *l2cdb_column_text(l2cdb_stmt *s, int i) {
    (void)i;
    return s->text;
}

const void *l2cdb_column_blob(l2cdb_stmt *s, int i) {
    return l2cdb_column_text(s, i);
}

size_t l2cdb_column_bytes(l2cdb_stmt *s, int i) {
    return strlen(l2cdb_column_text(s, i));
}

/* ---- Long work ----------------------------------------------------------------------------- */

static l2cdb_status work(l2cdb_progress_fn progress, void *ctx, const char *phase,
                         l2cdb_error *err) {
    for (uint64_t i = 0; i < 50; i++) {
        l2cdb_progress p = { .phase = phase,
                             .done = i,
                             .total = 50,
                             .rate = 100,
                             .eta_s = 1,
                             .detail = "file <1>.jpg" };
        if (!progress(ctx, &p)) {
            fail(err, L2CDB_E_CANCELLED, "cancelled");
            return L2CDB_E_CANCELLED;
        }
        wait_ms(20);
    }
    return L2CDB_OK;
}

void l2cdb_ingest_options_init(l2cdb_ingest_options *o) {
    memset(o, 0, sizeof *o);
}

l2cdb_status l2cdb_ingest(l2cdb *db, const char *const *paths, size_t paths_count,
                          const l2cdb_ingest_options *options, l2cdb_ingest_report *report,
                          l2cdb_error *err) {
    (void)db;
    (void)paths;
    (void)paths_count;
    options->on_file(options->ctx, "a.jpg", L2CDB_FILE_ADDED, "");
    options->on_file(options->ctx, "b.txt", L2CDB_FILE_SKIPPED, "not a photo");
    report->found = 2;
    report->added = 1;
    return work(options->progress, options->ctx, "ingest", err);
}

void l2cdb_tune_options_init(l2cdb_tune_options *o) {
    memset(o, 0, sizeof *o);
}

l2cdb_status l2cdb_tune(l2cdb *db, const l2cdb_tune_options *options, l2cdb_tune_report *out,
                        l2cdb_error *err) {
    l2cdb_status rc = work(options->progress, options->ctx, "train", err);
    out->generation = atomic_fetch_add(&db->generation, 1) + 1;
    out->promoted = true;
    return rc;
}

l2cdb_status l2cdb_reindex(l2cdb *db, int64_t generation, l2cdb_progress_fn progress, void *ctx,
                           l2cdb_error *err) {
    (void)db;
    if (generation > 2) {
        fail(err, L2CDB_E_NOTFOUND, "there is no such generation");
        return L2CDB_E_NOTFOUND;
    }
    return work(progress, ctx, "build", err);
}

l2cdb_status l2cdb_rollback(l2cdb *db, int64_t *now_active, l2cdb_error *err) {
    (void)err;
    *now_active = atomic_fetch_sub(&db->generation, 1) - 1;
    return L2CDB_OK;
}

l2cdb_status l2cdb_get_stats(l2cdb *db, l2cdb_stats *out, l2cdb_error *err) {
    (void)err;
    memset(out, 0, sizeof *out);
    out->images = (uint64_t)db->image_last;
    out->generation = atomic_load(&db->generation);
    out->width = WIDTH;
    snprintf(out->model, sizeof out->model, "fake");
    return L2CDB_OK;
}

l2cdb_status l2cdb_index_status(l2cdb *db, l2cdb_target target, l2cdb_index_info *out,
                                l2cdb_error *err) {
    (void)db;
    (void)target;
    (void)err;
    memset(out, 0, sizeof *out);
    snprintf(out->kind, sizeof out->kind, "flat");
    out->recall = -1;
    return L2CDB_OK;
}
