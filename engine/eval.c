/* Retrieval figures: recall at 1, 5 and 10 and the median rank, both ways. Source: spec 6.5, after
 * llm2clip/training/zeroshot_retrieval.py; scores in f32, ties by the lowest row.
 *
 * The gallery is the photos that have a caption, in whatever language: asking in one language only
 * must not make the task easier. Photos come from the database, or from a
 * directory, which is then ingested into a temporary database; captions come from the database or
 * from a file. */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/pool.h"
#include "engine/base/vec.h"
#include "engine/photo_names.h"

/* ---- Ranks ----------------------------------------------------------------------------------- */

typedef struct rank_job {
    const float *images, *captions;
    size_t images_count, captions_count, width;
    const size_t *owner;
    const l2c_flag *cancel;
    uint32_t *t2i, *i2t; /* ranks from 1; i2t 0: the photo has no caption */
    size_t part, parts;
    float *scores; /* one row: the longer of the two counts */
} rank_job;

static void rank_captions(rank_job *j) {
    for (size_t c = j->part; c < j->captions_count; c += j->parts) {
        if (l2c_flag_raised(j->cancel)) {
            return;
        }
        const float *caption = j->captions + c * j->width;
        size_t own = j->owner[c];
        float best = l2c_vec_dot(caption, j->images + own * j->width, j->width);
        uint32_t rank = 1;
        for (size_t i = 0; i < j->images_count; i++) {
            float score =
                i == own ? best : l2c_vec_dot(caption, j->images + i * j->width, j->width);
            rank += score > best || (score == best && i < own) ? 1 : 0;
        }
        j->t2i[c] = rank;
    }
}

static void rank_images(rank_job *j) {
    for (size_t i = j->part; i < j->images_count; i += j->parts) {
        if (l2c_flag_raised(j->cancel)) {
            return;
        }
        const float *image = j->images + i * j->width;
        size_t best = SIZE_MAX;
        for (size_t c = 0; c < j->captions_count; c++) {
            j->scores[c] = l2c_vec_dot(image, j->captions + c * j->width, j->width);
            if (j->owner[c] == i && (best == SIZE_MAX || j->scores[c] > j->scores[best])) {
                best = c;
            }
        }
        uint32_t rank = best != SIZE_MAX ? 1 : 0;
        for (size_t c = 0; c < j->captions_count && best != SIZE_MAX; c++) {
            bool before =
                j->scores[c] > j->scores[best] || (j->scores[c] == j->scores[best] && c < best);
            rank += before ? 1 : 0;
        }
        j->i2t[i] = rank;
    }
}

static void rank_part(void *ctx) {
    rank_captions(ctx);
    rank_images(ctx);
}

static int by_rank(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Sorts the ranks; zeros (no query) are left out. */
static void summarise(l2cdb_recall_at *out, uint32_t *ranks, size_t n) {
    qsort(ranks, n, sizeof *ranks, by_rank);
    size_t first = 0;
    while (first < n && ranks[first] == 0) {
        first++;
    }
    ranks += first;
    n -= first;
    *out = (l2cdb_recall_at){ .queries = n };
    if (n == 0) {
        return;
    }
    size_t at[3] = { 0 };
    for (size_t i = 0; i < n; i++) {
        at[0] += ranks[i] <= 1 ? 1 : 0;
        at[1] += ranks[i] <= 5 ? 1 : 0;
        at[2] += ranks[i] <= 10 ? 1 : 0;
    }
    out->r1 = 100.0 * (double)at[0] / (double)n;
    out->r5 = 100.0 * (double)at[1] / (double)n;
    out->r10 = 100.0 * (double)at[2] / (double)n;
    out->median_rank =
        n % 2 == 1 ? (double)ranks[n / 2] : ((double)ranks[n / 2 - 1] + (double)ranks[n / 2]) / 2;
}

static l2cdb_status rank_all(const rank_job *whole, size_t threads, l2cdb_error *err) {
    l2c_pool *pool = NULL;
    rank_job *jobs = l2c_calloc(threads, sizeof *jobs);
    l2cdb_status rc = jobs != NULL ? l2c_pool_new(&pool, threads, threads, err)
                                   : l2c_fail_nomem(err, threads * sizeof *jobs);
    for (size_t t = 0; t < threads && rc == L2CDB_OK; t++) {
        jobs[t] = *whole;
        jobs[t].part = t;
        jobs[t].parts = threads;
        jobs[t].scores = l2c_alloc_aligned(whole->captions_count + 1, sizeof(float));
        rc = jobs[t].scores != NULL ? L2CDB_OK : l2c_fail_nomem(err, whole->captions_count);
    }
    for (size_t t = 0; t < threads && rc == L2CDB_OK; t++) {
        l2c_pool_submit(pool, rank_part, &jobs[t]);
    }
    l2c_pool_free(pool);
    for (size_t t = 0; t < threads && jobs != NULL; t++) {
        l2c_free(jobs[t].scores);
    }
    l2c_free(jobs);
    return rc;
}

l2cdb_status l2c_eval_vectors(l2cdb_eval_report *out, const float *images, size_t images_count,
                              const float *captions, const size_t *owner, size_t captions_count,
                              size_t width, size_t threads, const l2c_flag *cancel,
                              l2cdb_error *err) {
    double start = l2c_now();
    *out = (l2cdb_eval_report){ .images = images_count, .captions = captions_count };
    uint32_t *t2i = l2c_calloc(captions_count + 1, sizeof *t2i);
    uint32_t *i2t = l2c_calloc(images_count + 1, sizeof *i2t);
    rank_job whole = { .images = images,
                       .captions = captions,
                       .images_count = images_count,
                       .captions_count = captions_count,
                       .width = width,
                       .owner = owner,
                       .cancel = cancel,
                       .t2i = t2i,
                       .i2t = i2t };
    l2cdb_status rc = t2i != NULL && i2t != NULL
                          ? rank_all(&whole, threads != 0 ? threads : 1, err)
                          : l2c_fail_nomem(err, (captions_count + images_count) * sizeof *t2i);
    if (rc == L2CDB_OK && l2c_flag_raised(cancel)) {
        rc = l2c_fail(err, L2CDB_E_CANCELLED, "evaluation interrupted");
    }
    if (rc == L2CDB_OK) {
        summarise(&out->t2i, t2i, captions_count);
        summarise(&out->i2t, i2t, images_count);
        out->seconds = l2c_now() - start;
    }
    l2c_free(t2i);
    l2c_free(i2t);
    return rc;
}

/* ---- Collecting ------------------------------------------------------------------------------ */

typedef struct pair {
    int64_t image_id;
    int64_t caption_id; /* 0: from a file, its text is `text` */
    const char *text;
    bool query; /* false: only shows that the photo belongs to the gallery */
    size_t order;
} pair;

typedef struct eval_set {
    l2cdb *db;
    l2c_view *view;
    const l2cdb_eval_options *options;
    const l2c_photo_names *names;
    l2c_arena arena;
    pair *pairs;
    size_t count, capacity, queries;
} eval_set;

static l2cdb_status add_pair(eval_set *s, pair p, l2cdb_error *err) {
    if (s->count == s->capacity) {
        size_t capacity = s->capacity != 0 ? s->capacity * 2 : 4096;
        pair *more = l2c_realloc(s->pairs, capacity, sizeof *more);
        if (more == NULL) {
            return l2c_fail_nomem(err, capacity * sizeof *more);
        }
        s->pairs = more;
        s->capacity = capacity;
    }
    p.order = s->count;
    s->queries += p.query ? 1 : 0;
    s->pairs[s->count++] = p;
    return L2CDB_OK;
}

static bool language_fits(const eval_set *s, const char *language) {
    const char *wanted = s->options->language;
    return wanted == NULL || (language != NULL && strcmp(wanted, language) == 0);
}

static l2cdb_status pairs_from_store(eval_set *s, l2cdb_error *err) {
    l2c_caption_record records[256];
    size_t got = 1;
    int64_t last = 0;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && got > 0) {
        l2c_arena_mark mark = l2c_arena_get_mark(&s->arena);
        rc = l2c_captions_pull(s->db->store, records, 256, &got, last, &s->arena, err);
        for (size_t i = 0; i < got && rc == L2CDB_OK; i++) {
            last = records[i].id;
            pair p = { .image_id = records[i].image_id,
                       .caption_id = records[i].id,
                       .query = language_fits(s, records[i].language) };
            rc = add_pair(s, p, err);
        }
        l2c_arena_reset(&s->arena, mark);
    }
    return rc;
}

static l2cdb_status pair_from_line(void *ctx, const l2c_caption_line *line, l2cdb_error *err) {
    eval_set *s = ctx;
    int64_t id = line->id != 0 ? line->id : l2c_photo_names_find(s->names, line->image);
    if (id == 0) {
        return L2CDB_OK;
    }
    if (!language_fits(s, line->language)) {
        return add_pair(s, (pair){ .image_id = id }, err);
    }
    size_t bytes = strlen(line->text) + 1;
    char *text = l2c_arena_alloc(&s->arena, bytes, 1);
    if (text == NULL) {
        return l2c_fail_nomem(err, bytes);
    }
    memcpy(text, line->text, bytes);
    return add_pair(s, (pair){ .image_id = id, .text = text, .query = true }, err);
}

static l2cdb_status pairs_from_file(eval_set *s, l2cdb_error *err) {
    l2c_photo_names *names;
    l2cdb_status rc = l2c_photo_names_new(&names, s->db, NULL, 0, err);
    if (rc == L2CDB_OK) {
        s->names = names;
        rc = l2c_captions_read(s->options->captions_file, pair_from_line, s, err);
        l2c_photo_names_free(names);
    }
    return rc;
}

/* ---- Vectors --------------------------------------------------------------------------------- */

typedef struct gallery {
    float *images, *captions;
    size_t *owner;
    size_t images_count, captions_count;
} gallery;

static void free_gallery(gallery *g) {
    l2c_free(g->images);
    l2c_free(g->captions);
    l2c_free(g->owner);
}

static int by_image(const void *a, const void *b) {
    const pair *x = a, *y = b;
    if (x->image_id != y->image_id) {
        return x->image_id > y->image_id ? 1 : -1;
    }
    return (x->order > y->order) - (x->order < y->order);
}

/* Texts of a file go through the encoder, 64 at a time; those of the database have their vectors.
 */
static l2cdb_status caption_vectors(eval_set *s, const pair *pairs, size_t n, float *out,
                                    l2c_meter *meter, l2cdb_error *err) {
    size_t width = s->view->generation.width;
    l2cdb_status rc = L2CDB_OK;
    for (size_t first = 0; first < n && rc == L2CDB_OK; first += 64) {
        size_t count = n - first < 64 ? n - first : 64;
        const char *texts[64];
        for (size_t i = 0; i < count && rc == L2CDB_OK; i++) {
            const pair *p = &pairs[first + i];
            texts[i] = p->text;
            if (p->caption_id != 0) {
                rc = l2c_vectors_get(s->db->store, s->view->generation.space[L2C_KIND_CAPTION],
                                     L2C_KIND_CAPTION, p->caption_id, out + (first + i) * width,
                                     width, err);
            }
        }
        if (rc == L2CDB_OK && pairs[first].caption_id == 0) {
            rc = l2c_encode_texts(s->db, s->view, texts, count, out + first * width, NULL, err);
        }
        if (rc == L2CDB_OK && !l2c_meter_tick(meter, first + count, "")) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "evaluation cancelled");
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(s->db, err);
        }
    }
    return rc;
}

/* Sorts the pairs by photo and fills the gallery; pairs of photos without a vector are left out. */
static l2cdb_status make_gallery(eval_set *s, gallery *g, l2c_meter *meter, l2cdb_error *err) {
    size_t width = s->view->generation.width, n = s->count;
    qsort(s->pairs, n, sizeof *s->pairs, by_image);
    g->images = l2c_alloc_aligned(n * width, sizeof *g->images);
    g->captions = l2c_alloc_aligned(n * width, sizeof *g->captions);
    g->owner = l2c_alloc(n, sizeof *g->owner);
    if (g->images == NULL || g->captions == NULL || g->owner == NULL) {
        return l2c_fail_nomem(err, 2 * n * width * sizeof *g->images);
    }
    int64_t current = 0;
    bool has_vector = false;
    for (size_t i = 0; i < n; i++) {
        if (s->pairs[i].image_id != current) {
            current = s->pairs[i].image_id;
            l2cdb_status rc = l2c_vectors_get(
                s->db->store, s->view->generation.space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, current,
                g->images + g->images_count * width, width, err);
            if (rc != L2CDB_OK && rc != L2CDB_E_NOTFOUND) {
                return rc;
            }
            has_vector = rc == L2CDB_OK;
            g->images_count += has_vector ? 1 : 0;
        }
        if (has_vector && s->pairs[i].query) {
            s->pairs[g->captions_count] = s->pairs[i];
            g->owner[g->captions_count++] = g->images_count - 1;
        }
    }
    l2cdb_error_clear(err);
    return caption_vectors(s, s->pairs, g->captions_count, g->captions, meter, err);
}

static l2cdb_status eval_view(l2cdb *db, l2c_view *v, const l2cdb_eval_options *o,
                              l2cdb_eval_report *out, l2cdb_error *err) {
    if (v->generation.id == 0) {
        return l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database is empty", db->path);
    }
    eval_set s = { .db = db, .view = v, .options = o };
    gallery g = { 0 };
    l2c_arena_init(&s.arena, 0);
    l2cdb_status rc =
        o->captions_file != NULL ? pairs_from_file(&s, err) : pairs_from_store(&s, err);
    if (rc == L2CDB_OK && s.queries == 0) {
        l2c_fail(err, L2CDB_E_NOTFOUND, "no caption%s%s belongs to a photo of %s",
                 o->language != NULL ? " in language " : "", o->language != NULL ? o->language : "",
                 db->path);
        rc = l2c_hint(err, "name a captions file whose photos have been ingested");
    }
    l2c_meter meter;
    l2c_meter_start(&meter, o->progress, o->ctx, "captions", s.queries);
    if (rc == L2CDB_OK) {
        rc = make_gallery(&s, &g, &meter, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_eval_vectors(out, g.images, g.images_count, g.captions, g.owner, g.captions_count,
                              v->generation.width, db->options.threads, &db->interrupted, err);
    }
    free_gallery(&g);
    l2c_free(s.pairs);
    l2c_arena_fini(&s.arena);
    return rc;
}

/* ---- Photos from a directory ----------------------------------------------------------------- */

/* The heads of the asked generation go with the photos, so that it is that generation which is
 * judged. */
static bool copy_head(void *ctx, const l2c_head_tensor *t) {
    void *const *args = ctx;
    l2cdb *to = args[0];
    const int64_t *generation = args[1];
    l2cdb_error *err = args[2];
    return l2c_heads_put(to->store, *generation, t->name, t->shape, t->data, t->count, err) ==
           L2CDB_OK;
}

static l2cdb_status copy_generation(l2cdb *from, l2c_view *v, l2cdb *to, l2cdb_error *err) {
    if (v->generation.id == 0) {
        return L2CDB_OK;
    }
    const l2c_heads *heads;
    l2cdb_status rc = l2c_view_heads(from, v, &heads, err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_begin(to->store, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_generation g = v->generation;
    g.id = 0;
    g.parent = 0;
    g.space[L2C_KIND_IMAGE] = g.space[L2C_KIND_CAPTION] = 0;
    g.state = L2C_GENERATION_ACTIVE;
    rc = l2c_generations_put(to->store, &g, err);
    if (rc == L2CDB_OK) {
        void *args[] = { to, &g.id, err };
        rc = l2c_heads_visit(heads, copy_head, args, err);
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(to->store, err);
    }
    l2c_store_rollback(to->store);
    return rc;
}

static l2cdb_status eval_directory(l2cdb *db, l2c_view *v, const l2cdb_eval_options *o,
                                   l2cdb_eval_report *out, l2cdb_error *err) {
    l2cdb_open_options open = db->options;
    open.read_only = false;
    open.create = true;
    open.exif_rotate = db->exif_rotate;
    if (v->generation.id != 0 && open.model == NULL) {
        open.model = v->generation.model;
    }
    l2cdb *temporary;
    l2cdb_status rc = l2cdb_open(&temporary, ":memory:", &open, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    in.sidecars = o->captions_file == NULL;
    in.progress = o->progress;
    in.ctx = o->ctx;
    rc = copy_generation(db, v, temporary, err);
    if (rc == L2CDB_OK) {
        rc = l2cdb_ingest(temporary, &o->images_dir, 1, &in, NULL, err);
    }
    if (rc == L2CDB_OK) {
        l2cdb_eval_options inner = *o;
        inner.images_dir = NULL;
        inner.generation = 0;
        rc = l2cdb_eval(temporary, &inner, out, err);
    }
    l2cdb_close(temporary);
    return rc;
}

void l2cdb_eval_options_init(l2cdb_eval_options *o) {
    *o = (l2cdb_eval_options){ 0 };
}

l2cdb_status l2cdb_eval(l2cdb *db, const l2cdb_eval_options *options, l2cdb_eval_report *out,
                        l2cdb_error *err) {
    l2cdb_error_clear(err);
    *out = (l2cdb_eval_report){ 0 };
    l2cdb_eval_options defaults = { 0 };
    const l2cdb_eval_options *o = options != NULL ? options : &defaults;
    double start = l2c_now();
    l2c_db_enter(db);
    l2c_view *v;
    l2cdb_status rc = o->generation != 0 ? l2c_view_get_of(db, o->generation, &v, err)
                                         : l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = o->images_dir != NULL ? eval_directory(db, v, o, out, err)
                                   : eval_view(db, v, o, out, err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    out->seconds = l2c_now() - start;
    return rc;
}
