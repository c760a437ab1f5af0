/* Loading, splitting and ranking of pairs; see tune_pairs.h.
 *
 * The split hashes the photo's id, and nothing else: a photo that is held out is held out of every
 * run, so no generation is judged by what an earlier one has learnt. */
#include "engine/tune_pairs.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 512 };

typedef struct pair {
    int64_t photo, caption;
    bool from_source;
} pair;

typedef struct pair_list {
    pair *items;
    size_t count, capacity;
} pair_list;

static l2cdb_status push(pair_list *l, pair p, l2cdb_error *err) {
    if (l->count == l->capacity) {
        size_t capacity = l->capacity > 0 ? 2 * l->capacity : 4096;
        pair *grown = l2c_realloc(l->items, capacity, sizeof *grown);
        if (grown == NULL) {
            return l2c_fail_nomem(err, capacity * sizeof *grown);
        }
        l->items = grown;
        l->capacity = capacity;
    }
    l->items[l->count++] = p;
    return L2CDB_OK;
}

static int by_photo(const void *a, const void *b) {
    const pair *x = a, *y = b;
    if (x->photo != y->photo) {
        return x->photo < y->photo ? -1 : 1;
    }
    return (x->caption > y->caption) - (x->caption < y->caption);
}

/* *content = hash of what it was and of one more caption. */
static void add_content(l2c_hash *content, const l2c_caption_record *c) {
    const l2c_hash text = l2c_hash_of(c->text, strlen(c->text));
    char all[sizeof content->bytes + sizeof text.bytes + 2 * sizeof(int64_t)], *at = all;
    memcpy(at, content->bytes, sizeof content->bytes);
    memcpy(at += sizeof content->bytes, text.bytes, sizeof text.bytes);
    memcpy(at += sizeof text.bytes, &c->image_id, sizeof(int64_t));
    memcpy(at + sizeof(int64_t), &c->id, sizeof(int64_t));
    *content = l2c_hash_of(all, sizeof all);
}

static l2cdb_status read_pairs(pair_list *l, l2c_hash *content, l2cdb *db, const char *source,
                               l2cdb_error *err) {
    l2c_caption_record rows[ROWS];
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    l2cdb_status rc = L2CDB_OK;
    int64_t after = 0;
    for (size_t got = 1; rc == L2CDB_OK && got > 0;) {
        l2c_arena_mark mark = l2c_arena_get_mark(&arena);
        rc = l2c_captions_pull(db->store, rows, ROWS, &got, after, &arena, err);
        for (size_t i = 0; rc == L2CDB_OK && i < got; i++) {
            bool from =
                source != NULL && rows[i].source != NULL && strcmp(rows[i].source, source) == 0;
            pair p = { .photo = rows[i].image_id, .caption = rows[i].id, .from_source = from };
            rc = push(l, p, err);
            add_content(content, &rows[i]);
            after = rows[i].id;
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(db, err);
        }
        l2c_arena_reset(&arena, mark);
    }
    l2c_arena_fini(&arena);
    if (rc == L2CDB_OK) {
        qsort(l->items, l->count, sizeof *l->items, by_photo);
    }
    return rc;
}

/* ---- Features ---- */

static int by_id(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* A pull over every feature of a trunk; `visit` gets each row. */
typedef void (*feature_fn)(void *ctx, int64_t id, const float *v);

static l2cdb_status each_feature(l2cdb *db, l2c_kind kind, const l2c_hash *trunk, size_t width,
                                 feature_fn visit, void *ctx, l2cdb_error *err) {
    int64_t ids[ROWS];
    float *v = l2c_alloc_aligned(ROWS * width, sizeof *v);
    if (v == NULL) {
        return l2c_fail_nomem(err, ROWS * width * sizeof *v);
    }
    l2cdb_status rc = L2CDB_OK;
    int64_t after = 0;
    for (size_t got = 1; rc == L2CDB_OK && got > 0;) {
        rc = l2c_features_pull(db->store, kind, trunk, width, ids, v, ROWS, &got, after, err);
        for (size_t i = 0; rc == L2CDB_OK && i < got; i++) {
            visit(ctx, ids[i], v + i * width);
            after = ids[i];
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(db, err);
        }
    }
    l2c_free(v);
    return rc;
}

typedef struct id_list {
    int64_t *ids;
    size_t count, capacity;
    bool failed;
} id_list;

static void note_id(void *ctx, int64_t id, const float *v) {
    (void)v;
    id_list *l = ctx;
    if (l->count == l->capacity && !l->failed) {
        size_t capacity = l->capacity > 0 ? 2 * l->capacity : 4096;
        int64_t *grown = l2c_realloc(l->ids, capacity, sizeof *grown);
        if (grown == NULL) {
            l->failed = true;
        } else {
            l->ids = grown;
            l->capacity = capacity;
        }
    }
    if (!l->failed) {
        l->ids[l->count++] = id;
    }
}

/* Ids that have a feature of the trunk, ascending. */
static l2cdb_status featured(id_list *l, l2cdb *db, l2c_kind kind, const l2c_hash *trunk,
                             size_t width, l2cdb_error *err) {
    *l = (id_list){ 0 };
    l2cdb_status rc = each_feature(db, kind, trunk, width, note_id, l, err);
    return rc == L2CDB_OK && l->failed ? l2c_fail_nomem(err, 2 * l->count * sizeof *l->ids) : rc;
}

static bool contains(const id_list *l, int64_t id) {
    return l->count > 0 && bsearch(&id, l->ids, l->count, sizeof *l->ids, by_id) != NULL;
}

typedef struct place {
    int64_t id;
    size_t row;
} place;

static int by_place(const void *a, const void *b) {
    return by_id(&((const place *)a)->id, &((const place *)b)->id);
}

typedef struct fill_ctx {
    const place *places; /* by id */
    size_t count, width;
    float *out;
} fill_ctx;

static void fill_row(void *ctx, int64_t id, const float *v) {
    fill_ctx *f = ctx;
    place key = { .id = id };
    const place *at = bsearch(&key, f->places, f->count, sizeof *f->places, by_place);
    if (at != NULL) {
        memcpy(f->out + at->row * f->width, v, f->width * sizeof *v);
    }
}

static l2cdb_status load_matrix(float **out, l2cdb *db, l2c_kind kind, const l2c_hash *trunk,
                                const int64_t *ids, size_t n, size_t width, l2cdb_error *err) {
    place *places = l2c_calloc(n, sizeof *places);
    *out = l2c_alloc_aligned(n * width, sizeof **out);
    if (places == NULL || *out == NULL) {
        l2c_free(places);
        return l2c_fail_nomem(err, n * width * sizeof **out);
    }
    for (size_t i = 0; i < n; i++) {
        places[i] = (place){ .id = ids[i], .row = i };
    }
    qsort(places, n, sizeof *places, by_place);
    fill_ctx f = { .places = places, .count = n, .width = width, .out = *out };
    l2cdb_status rc = each_feature(db, kind, trunk, width, fill_row, &f, err);
    l2c_free(places);
    return rc;
}

/* ---- Load ---- */

/* splitmix64's finaliser (Steele, Lea & Flood 2014). */
static double share_of(int64_t id) {
    uint64_t x = (uint64_t)id + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

/* Pairs of items that have both features, grouped by photo. */
static l2cdb_status arrange(l2c_pair_set *s, const pair_list *l, const id_list *images,
                            const id_list *texts, bool has_source, double held_out,
                            l2cdb_error *err) {
    size_t n = l->count;
    s->photo_ids = l2c_calloc(n, sizeof *s->photo_ids);
    s->parts = l2c_calloc(n, sizeof *s->parts);
    s->first = l2c_calloc(n + 1, sizeof *s->first);
    s->caption_ids = l2c_calloc(n, sizeof *s->caption_ids);
    if (s->photo_ids == NULL || s->parts == NULL || s->first == NULL || s->caption_ids == NULL) {
        return l2c_fail_nomem(err, n * sizeof *s->photo_ids);
    }
    bool any_from_source = false;
    for (size_t i = 0; i < n; i++) {
        any_from_source = any_from_source || l->items[i].from_source;
    }
    for (size_t i = 0; i < n;) {
        int64_t photo = l->items[i].photo;
        bool usable = contains(images, photo), from_source = false;
        size_t before = s->captions;
        for (; i < n && l->items[i].photo == photo; i++) {
            if (usable && contains(texts, l->items[i].caption)) {
                s->caption_ids[s->captions++] = l->items[i].caption;
                from_source = from_source || l->items[i].from_source;
            }
        }
        if (s->captions == before) {
            continue;
        }
        bool apart = share_of(photo) < held_out;
        bool foreign = has_source && any_from_source && !from_source;
        s->photo_ids[s->photos] = photo;
        s->parts[s->photos] = !apart    ? L2C_PART_TRAIN
                              : foreign ? L2C_PART_GENERAL
                                        : L2C_PART_HELD_OUT;
        s->first[s->photos++] = before;
        s->first[s->photos] = s->captions;
    }
    return L2CDB_OK;
}

l2cdb_status l2c_pair_set_load(l2c_pair_set *s, l2cdb *db, const l2c_generation *g,
                               size_t image_width, size_t text_width, const char *source,
                               double held_out_share, uint64_t bytes_max, l2cdb_error *err) {
    *s = (l2c_pair_set){ .store = db->store,
                         .image_width = image_width,
                         .text_width = text_width,
                         .image_trunk = g->image_trunk,
                         .text_trunk = g->text_trunk };
    pair_list list = { 0 };
    id_list images = { 0 }, texts = { 0 };
    l2cdb_status rc = read_pairs(&list, &s->content, db, source, err);
    if (rc == L2CDB_OK) {
        rc = featured(&images, db, L2C_KIND_IMAGE, &g->image_trunk, image_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = featured(&texts, db, L2C_KIND_CAPTION, &g->text_trunk, text_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = arrange(s, &list, &images, &texts, source != NULL, held_out_share, err);
    }
    s->stored = s->captions;
    uint64_t bytes = (uint64_t)sizeof(float) * (s->photos * image_width + s->captions * text_width);
    if (rc == L2CDB_OK && bytes <= bytes_max) {
        rc = load_matrix(&s->images, db, L2C_KIND_IMAGE, &g->image_trunk, s->photo_ids, s->photos,
                         image_width, err);
        if (rc == L2CDB_OK) {
            rc = load_matrix(&s->texts, db, L2C_KIND_CAPTION, &g->text_trunk, s->caption_ids,
                             s->captions, text_width, err);
        }
    }
    l2c_free(list.items);
    l2c_free(images.ids);
    l2c_free(texts.ids);
    if (rc != L2CDB_OK) {
        l2c_pair_set_fini(s);
    }
    return rc;
}

void l2c_pair_set_fini(l2c_pair_set *s) {
    l2c_free(s->photo_ids);
    l2c_free(s->parts);
    l2c_free(s->first);
    l2c_free(s->caption_ids);
    l2c_free(s->images);
    l2c_free(s->texts);
    l2c_free(s->parallel);
    *s = (l2c_pair_set){ 0 };
}

l2cdb_status l2c_pair_set_append(l2c_pair_set *s, l2c_parallel *p, l2cdb_error *err) {
    if (p->groups == 0) {
        return L2CDB_OK;
    }
    const size_t photos = s->photos + p->groups, captions = s->captions + p->captions;
    int64_t *photo_ids = l2c_realloc(s->photo_ids, photos, sizeof *photo_ids);
    s->photo_ids = photo_ids != NULL ? photo_ids : s->photo_ids;
    l2c_part *parts = l2c_realloc(s->parts, photos, sizeof *parts);
    s->parts = parts != NULL ? parts : s->parts;
    size_t *first = l2c_realloc(s->first, photos + 1, sizeof *first);
    s->first = first != NULL ? first : s->first;
    if (photo_ids == NULL || parts == NULL || first == NULL) {
        return l2c_fail_nomem(err, photos * sizeof *photo_ids);
    }
    for (size_t i = 0; i < p->groups; i++) {
        s->photo_ids[s->photos + i] = 0;
        s->parts[s->photos + i] = L2C_PART_TRAIN;
        s->first[s->photos + i + 1] = s->captions + p->first[i + 1];
    }
    s->photos = photos;
    s->captions = captions;
    const l2c_hash both[] = { s->content, l2c_hash_of(p->texts, p->captions * s->text_width *
                                                                    sizeof *p->texts) };
    s->content = l2c_hash_of(both, sizeof both);
    s->parallel = p->texts;
    p->texts = NULL;
    l2c_parallel_fini(p);
    return L2CDB_OK;
}

l2cdb_status l2c_pair_set_image(const l2c_pair_set *s, size_t photo, float *out, l2cdb_error *err) {
    if (s->images != NULL) {
        memcpy(out, s->images + photo * s->image_width, s->image_width * sizeof *out);
        return L2CDB_OK;
    }
    return l2c_features_get(s->store, L2C_KIND_IMAGE, &s->image_trunk, s->image_width,
                            s->photo_ids[photo], out, err);
}

l2cdb_status l2c_pair_set_text(const l2c_pair_set *s, size_t caption, float *out,
                               l2cdb_error *err) {
    if (caption >= s->stored) {
        memcpy(out, s->parallel + (caption - s->stored) * s->text_width,
               s->text_width * sizeof *out);
        return L2CDB_OK;
    }
    if (s->texts != NULL) {
        memcpy(out, s->texts + caption * s->text_width, s->text_width * sizeof *out);
        return L2CDB_OK;
    }
    return l2c_features_get(s->store, L2C_KIND_CAPTION, &s->text_trunk, s->text_width,
                            s->caption_ids[caption], out, err);
}

size_t l2c_pair_set_count(const l2c_pair_set *s, l2c_part part, size_t *captions) {
    size_t photos = 0;
    *captions = 0;
    for (size_t i = 0; i < s->photos; i++) {
        if (s->parts[i] == part) {
            photos++;
            *captions += s->first[i + 1] - s->first[i];
        }
    }
    return photos;
}

/* ---- Ranking ---- */

typedef l2cdb_status (*row_fn)(const l2c_pair_set *s, size_t row, float *out, l2cdb_error *err);
typedef l2cdb_status (*head_fn)(const l2c_heads *h, float *out, const float *features, size_t n,
                                l2cdb_error *err);

/* Rows rows[0..n) of one side through its head, ROWS at a time: out f32 [n, width]. */
static l2cdb_status embed(const l2c_pair_set *s, float *out, const size_t *rows, size_t n,
                          size_t width, const l2c_heads *heads, head_fn head, row_fn read,
                          size_t feature_width, l2cdb_error *err) {
    float *features = l2c_alloc_aligned(ROWS * feature_width, sizeof *features);
    if (features == NULL) {
        return l2c_fail_nomem(err, ROWS * feature_width * sizeof *features);
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t done = 0; done < n && rc == L2CDB_OK;) {
        size_t m = n - done < ROWS ? n - done : ROWS;
        for (size_t i = 0; i < m && rc == L2CDB_OK; i++) {
            rc = read(s, rows[done + i], features + i * feature_width, err);
        }
        if (rc == L2CDB_OK) {
            rc = head(heads, out + done * width, features, m, err);
        }
        done += m;
    }
    l2c_free(features);
    return rc;
}

l2cdb_status l2c_pair_set_eval(const l2c_pair_set *s, l2c_part part, const l2c_heads *heads,
                               size_t width, l2cdb_eval_report *out, size_t threads,
                               const l2c_flag *cancel, l2cdb_error *err) {
    *out = (l2cdb_eval_report){ 0 };
    size_t captions, photos = l2c_pair_set_count(s, part, &captions);
    if (photos == 0) {
        return L2CDB_OK;
    }
    size_t *photo_rows = l2c_calloc(photos, sizeof *photo_rows);
    size_t *caption_rows = l2c_calloc(captions, sizeof *caption_rows);
    size_t *owner = l2c_calloc(captions, sizeof *owner);
    float *images = l2c_alloc_aligned(photos * width, sizeof *images);
    float *texts = l2c_alloc_aligned(captions * width, sizeof *texts);
    l2cdb_status rc = L2CDB_OK;
    if (photo_rows == NULL || caption_rows == NULL || owner == NULL || images == NULL ||
        texts == NULL) {
        rc = l2c_fail_nomem(err, (photos + captions) * width * sizeof *images);
    }
    size_t n = 0, m = 0;
    for (size_t i = 0; i < s->photos && rc == L2CDB_OK; i++) {
        if (s->parts[i] == part) {
            for (size_t j = s->first[i]; j < s->first[i + 1]; j++) {
                owner[m] = n;
                caption_rows[m++] = j;
            }
            photo_rows[n++] = i;
        }
    }
    if (rc == L2CDB_OK) {
        rc = embed(s, images, photo_rows, photos, width, heads, l2c_heads_image, l2c_pair_set_image,
                   s->image_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = embed(s, texts, caption_rows, captions, width, heads, l2c_heads_text,
                   l2c_pair_set_text, s->text_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_eval_vectors(out, images, photos, texts, owner, captions, width, threads, cancel,
                              err);
    }
    l2c_free(photo_rows);
    l2c_free(caption_rows);
    l2c_free(owner);
    l2c_free(images);
    l2c_free(texts);
    return rc;
}
