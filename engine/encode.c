/* Texts, photos and terms to unit vectors of a view's space. */
#include "engine/engine.h"

#include <string.h>

#include "engine/base/file.h"
#include "engine/base/pool.h"
#include "engine/base/utf8.h"
#include "engine/base/vec.h"
#include "engine/photo.h"
#include "engine/query_cache.h"

#define IMAGE_BATCH 32

unsigned l2c_db_decode_flags(const l2cdb *db) {
    unsigned flags = L2C_DECODE_USER;
    return db->exif_rotate ? flags : flags & ~(unsigned)L2C_DECODE_UPRIGHT;
}

/* ---- Texts ----------------------------------------------------------------------------------- */

static l2cdb_status encode_all(l2cdb *db, l2c_model *model, const l2c_heads *heads,
                               const char *const *texts, size_t n, float *out, float *features,
                               l2cdb_error *err) {
    size_t width = l2c_model_get_info(model)->text_width;
    float *own = NULL;
    if (features == NULL) {
        features = own = l2c_alloc_aligned(n * width, sizeof *own);
        if (own == NULL) {
            return l2c_fail_nomem(err, n * width * sizeof *own);
        }
    }
    l2cdb_status rc = l2c_model_text_features(model, features, texts, n, 0, &db->interrupted, err);
    if (rc == L2CDB_OK && out != NULL) {
        rc = l2c_heads_text(heads, out, features, n, err);
    }
    l2c_free(own);
    return rc;
}

/* Only the texts that the cache does not know go through the LLM, each once. */
static l2cdb_status encode_cached(l2cdb *db, const l2c_generation *g, l2c_model *model,
                                  const l2c_heads *heads, const char *const *texts, size_t n,
                                  size_t width, float *out, l2cdb_error *err) {
    const char **missing = l2c_alloc(n, sizeof *missing);
    size_t *rows = l2c_alloc(n, sizeof *rows);
    l2c_hash *keys = l2c_alloc(n, sizeof *keys);
    float *vectors = NULL;
    size_t count = 0;
    l2cdb_status rc = L2CDB_OK;
    if (missing == NULL || rows == NULL || keys == NULL) {
        rc = l2c_fail_nomem(err, n * sizeof *keys);
    }
    l2c_hash fingerprint = l2c_heads_fingerprint(heads);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        keys[count] = l2c_query_cache_key(g, &fingerprint, texts[i]);
        if (!l2c_query_cache_get(db->cache, &keys[count], out + i * width, width)) {
            missing[count] = texts[i];
            rows[count++] = i;
        }
    }
    if (rc == L2CDB_OK && count > 0) {
        vectors = l2c_alloc_aligned(count * width, sizeof *vectors);
        rc = vectors != NULL ? encode_all(db, model, heads, missing, count, vectors, NULL, err)
                             : l2c_fail_nomem(err, count * width * sizeof *vectors);
    }
    for (size_t i = 0; i < count && rc == L2CDB_OK; i++) {
        memcpy(out + rows[i] * width, vectors + i * width, width * sizeof *out);
        l2c_query_cache_put(db->cache, &keys[i], vectors + i * width, width);
    }
    l2c_free(missing);
    l2c_free(rows);
    l2c_free(keys);
    l2c_free(vectors);
    return rc;
}

/* An LLM without heads: its own vectors, of length 1. */
static l2cdb_status encode_pooled(l2cdb *db, l2c_model *model, const char *const *texts, size_t n,
                                  float *out, l2cdb_error *err) {
    size_t width = l2c_model_get_info(model)->text_width;
    l2cdb_status rc = encode_all(db, model, NULL, texts, n, NULL, out, err);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        l2c_vec_normalize(out + i * width, width);
    }
    return rc;
}

l2cdb_status l2c_encode_texts(l2cdb *db, l2c_view *v, const char *const *texts, size_t n,
                              float *out, float *features, l2cdb_error *err) {
    l2c_model *model;
    const l2c_heads *heads = NULL;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    bool pooling = rc == L2CDB_OK && features == NULL && v->generation.id == 0 &&
                   l2c_model_is_pooling(l2c_model_get_info(model));
    if (rc == L2CDB_OK && !pooling) {
        rc = l2c_view_heads(db, v, &heads, err);
    }
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        size_t bad;
        if (!l2c_utf8_valid(texts[i], strlen(texts[i]), &bad)) {
            rc = l2c_fail(err, L2CDB_E_INVALID, "the text is not valid UTF-8 at byte %zu", bad);
        }
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (pooling) {
        return encode_pooled(db, model, texts, n, out, err);
    }
    size_t width = l2c_model_get_info(model)->width;
    return features != NULL
               ? encode_all(db, model, heads, texts, n, out, features, err)
               : encode_cached(db, &v->generation, model, heads, texts, n, width, out, err);
}

/* ---- Photos ---------------------------------------------------------------------------------- */

/* One photo on its way into a batch. */
typedef struct picture {
    l2cdb *db;
    l2c_model *model;
    const char *path; /* NULL: the bytes are given */
    const void *bytes;
    size_t size;
    float *pixels;
    l2cdb_status rc;
    l2cdb_error error;
} picture;

static void prepare_picture(void *ctx) {
    picture *p = ctx;
    l2c_buf file;
    l2c_image image = { 0 };
    l2c_buf_init(&file);
    p->rc = L2CDB_OK;
    if (p->path != NULL) {
        p->rc = l2c_file_read(&file, p->path, L2C_PHOTO_BYTES_MAX, &p->error);
        p->bytes = file.data;
        p->size = file.size;
    }
    if (p->rc == L2CDB_OK) {
        unsigned flags = l2c_db_decode_flags(p->db);
        p->rc = l2c_image_decode(&image, p->bytes, p->size, flags, NULL, &p->error);
        if (p->rc == L2CDB_OK) {
            p->rc = l2c_model_preprocess(p->model, p->pixels, &image, &p->error);
        }
        if (p->rc != L2CDB_OK && p->path != NULL) {
            l2c_context(&p->error, "%s", p->path);
        }
    }
    l2c_image_fini(&image);
    l2c_buf_fini(&file);
}

/* The first n photos of `list` through the tower together; out f32 [n, width]. pool NULL: they are
 * decoded by this thread. */
static l2cdb_status encode_pictures(picture *list, size_t n, l2c_pool *pool, float *pixels,
                                    float *features, const l2c_heads *heads, float *out,
                                    l2cdb_error *err) {
    l2c_model *model = list[0].model;
    for (size_t i = 0; i < n; i++) {
        list[i].pixels = pixels + i * l2c_model_pixels_count(model);
        if (pool != NULL) {
            l2c_pool_submit(pool, prepare_picture, &list[i]);
        } else {
            prepare_picture(&list[i]);
        }
    }
    if (pool != NULL) {
        l2c_pool_drain(pool);
    }
    for (size_t i = 0; i < n; i++) {
        if (list[i].rc != L2CDB_OK) {
            *err = list[i].error;
            return list[i].rc;
        }
    }
    l2cdb_status rc = l2c_model_image_features(model, features, pixels, n, err);
    return rc == L2CDB_OK ? l2c_heads_image(heads, out, features, n, err) : rc;
}

/* Photos by their paths, or (paths NULL) one by its bytes. */
static l2cdb_status encode_images(l2cdb *db, l2c_view *v, const char *const *paths,
                                  const void *bytes, size_t size, size_t n, float *out,
                                  l2cdb_error *err) {
    l2c_model *model;
    const l2c_heads *heads = NULL;
    l2c_pool *pool = NULL;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_heads(db, v, &heads, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t batch = n < IMAGE_BATCH ? n : IMAGE_BATCH, width = l2c_model_get_info(model)->width;
    size_t features_width = l2c_model_get_info(model)->image_width;
    picture *list = l2c_calloc(batch, sizeof *list);
    float *pixels = l2c_alloc_aligned(batch * l2c_model_pixels_count(model), sizeof *pixels);
    float *features = l2c_alloc_aligned(batch * features_width, sizeof *features);
    if (list == NULL || pixels == NULL || features == NULL) {
        rc = l2c_fail_nomem(err, batch * l2c_model_pixels_count(model) * sizeof *pixels);
    } else if (n > 1) {
        rc = l2c_pool_new(&pool, db->options.threads, batch, err);
    }
    for (size_t done = 0; done < n && rc == L2CDB_OK; done += batch) {
        size_t now = n - done < batch ? n - done : batch;
        for (size_t i = 0; i < now; i++) {
            list[i] = (picture){ .db = db,
                                 .model = model,
                                 .path = paths != NULL ? paths[done + i] : NULL,
                                 .bytes = bytes,
                                 .size = size };
        }
        rc = encode_pictures(list, now, pool, pixels, features, heads, out + done * width, err);
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(db, err);
        }
    }
    l2c_pool_free(pool);
    l2c_free(list);
    l2c_free(pixels);
    l2c_free(features);
    return rc;
}

/* ---- Terms ----------------------------------------------------------------------------------- */

static l2cdb_status copy_given(const l2cdb_term *term, float *out, size_t width, l2cdb_error *err) {
    if (term->data == NULL || term->size != width * sizeof *out) {
        l2c_fail(err, L2CDB_E_MISMATCH, "the vector has %zu values, expected %zu",
                 term->size / sizeof *out, width);
        return l2c_hint(err, "use a vector made by this database's model");
    }
    memcpy(out, term->data, term->size);
    if (!l2c_vec_finite(out, width)) {
        return l2c_fail(err, L2CDB_E_INVALID, "the vector holds values that are not finite");
    }
    if (!(l2c_vec_normalize(out, width) > 1e-12f)) {
        return l2c_fail(err, L2CDB_E_INVALID, "the vector is zero and has no direction");
    }
    return L2CDB_OK;
}

l2cdb_status l2c_encode_term(l2cdb *db, l2c_view *v, const l2cdb_term *term, float *out,
                             l2cdb_error *err) {
    size_t width;
    l2c_kind kind;
    l2cdb_status rc;
    switch (term->kind) {
    case L2CDB_TERM_TEXT:
        return term->text != NULL ? l2c_encode_texts(db, v, &term->text, 1, out, NULL, err)
                                  : l2c_fail(err, L2CDB_E_INVALID, "a term has no text");
    case L2CDB_TERM_IMAGE_FILE:
        return term->text != NULL ? encode_images(db, v, &term->text, NULL, 0, 1, out, err)
                                  : l2c_fail(err, L2CDB_E_INVALID, "a term names no photo");
    case L2CDB_TERM_IMAGE_BYTES:
        return encode_images(db, v, NULL, term->data, term->size, 1, out, err);
    case L2CDB_TERM_VECTOR:
        rc = l2c_view_width(db, v, &width, err);
        return rc == L2CDB_OK ? copy_given(term, out, width, err) : rc;
    case L2CDB_TERM_IMAGE_ID:
    case L2CDB_TERM_CAPTION_ID:
        if (v->generation.id == 0) {
            return l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database is empty", db->path);
        }
        kind = term->kind == L2CDB_TERM_IMAGE_ID ? L2C_KIND_IMAGE : L2C_KIND_CAPTION;
        return l2c_vectors_get(db->store, v->generation.space[kind], kind, term->id, out,
                               v->generation.width, err);
    }
    return l2c_fail(err, L2CDB_E_INVALID, "a term of unknown kind %d", (int)term->kind);
}

/* ---- Public calls ---------------------------------------------------------------------------- */

/* Runs `work` between enter and leave with the current view. */
typedef l2cdb_status (*view_work)(l2cdb *db, l2c_view *v, void *ctx, l2cdb_error *err);
static l2cdb_status with_view(l2cdb *db, view_work work, void *ctx, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2c_db_enter(db);
    l2c_view *v;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = work(db, v, ctx, err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    return rc;
}

static l2cdb_status warm_work(l2cdb *db, l2c_view *v, void *ctx, l2cdb_error *err) {
    (void)ctx;
    const l2c_heads *heads;
    l2c_index *ignored;
    l2cdb_status rc = l2c_view_index(db, v, L2C_KIND_IMAGE, &ignored, err);
    return rc == L2CDB_OK ? l2c_view_heads(db, v, &heads, err) : rc;
}

l2cdb_status l2cdb_warm(l2cdb *db, l2cdb_error *err) {
    return with_view(db, warm_work, NULL, err);
}

static l2cdb_status width_work(l2cdb *db, l2c_view *v, void *ctx, l2cdb_error *err) {
    return l2c_view_width(db, v, ctx, err);
}

l2cdb_status l2cdb_width(l2cdb *db, size_t *width, l2cdb_error *err) {
    return with_view(db, width_work, width, err);
}

typedef struct encode_request {
    const l2cdb_term *term;
    const char *const *texts, *const *paths;
    size_t n;
    float *out;
    size_t width;
    int64_t generation;
} encode_request;

static l2cdb_status encode_work(l2cdb *db, l2c_view *v, void *ctx, l2cdb_error *err) {
    encode_request *r = ctx;
    size_t width;
    l2cdb_status rc = l2c_view_width(db, v, &width, err);
    if (rc == L2CDB_OK && width != r->width) {
        l2c_fail(err, L2CDB_E_MISMATCH, "vectors have %zu values now, there is room for %zu", width,
                 r->width);
        rc = l2c_hint(err, "the database has changed over to another model: try again");
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    r->generation = v->generation.id;
    return r->term != NULL    ? l2c_encode_term(db, v, r->term, r->out, err)
           : r->paths != NULL ? encode_images(db, v, r->paths, NULL, 0, r->n, r->out, err)
                              : l2c_encode_texts(db, v, r->texts, r->n, r->out, NULL, err);
}

l2cdb_status l2cdb_encode(l2cdb *db, const l2cdb_term *term, float *out, size_t width,
                          l2cdb_error *err) {
    encode_request r = { .term = term, .out = out, .width = width };
    return with_view(db, encode_work, &r, err);
}

l2cdb_status l2cdb_encode_texts(l2cdb *db, const char *const *texts, size_t n, float *out,
                                size_t width, int64_t *generation, l2cdb_error *err) {
    encode_request r = { .texts = texts, .n = n, .out = out, .width = width };
    l2cdb_status rc = with_view(db, encode_work, &r, err);
    if (generation != NULL) {
        *generation = r.generation;
    }
    return rc;
}

l2cdb_status l2cdb_encode_images(l2cdb *db, const char *const *paths, size_t n, float *out,
                                 size_t width, l2cdb_error *err) {
    if (n == 0) {
        l2cdb_error_clear(err);
        return L2CDB_OK;
    }
    encode_request r = { .paths = paths, .n = n, .out = out, .width = width };
    return with_view(db, encode_work, &r, err);
}

typedef struct tokenize_request {
    const char *text;
    unsigned flags;
    int32_t *ids;
    size_t ids_max, *count, *pooled;
} tokenize_request;

static l2cdb_status tokenize_work(l2cdb *db, l2c_view *v, void *ctx, l2cdb_error *err) {
    tokenize_request *r = ctx;
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    return rc == L2CDB_OK ? l2c_model_tokenize(model, r->ids, r->ids_max, r->count, r->pooled,
                                               r->text, r->flags, false, err)
                          : rc;
}

static l2cdb_status tokenize_raw(const char *path, const char *text, size_t size,
                                 tokenize_request *r, l2cdb_error *err) {
    l2c_tokenizer *t;
    l2cdb_status rc = l2c_tokenizer_open(&t, path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_tokenizer_encode(t, r->ids, r->ids_max, r->count, text, size, r->flags, err);
    *r->pooled = *r->count;
    l2c_tokenizer_close(t);
    return rc;
}

l2cdb_status l2cdb_tokenize(l2cdb *db, const char *tokenizer_path, const char *text, size_t size,
                            bool trusted, int32_t *ids, size_t ids_max, size_t *count,
                            size_t *pooled, l2cdb_error *err) {
    l2cdb_error_clear(err);
    size_t ignored;
    tokenize_request r = { .flags = trusted ? L2C_TEXT_TRUSTED : 0,
                           .ids = ids,
                           .ids_max = ids_max,
                           .count = count,
                           .pooled = pooled != NULL ? pooled : &ignored };
    if (tokenizer_path != NULL) {
        return tokenize_raw(tokenizer_path, text, size, &r, err);
    }
    if (memchr(text, '\0', size) != NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "the text holds a NUL byte");
    }
    char *copy = l2c_strndup(text, size);
    if (copy == NULL) {
        return l2c_fail_nomem(err, size);
    }
    r.text = copy;
    l2cdb_status rc = with_view(db, tokenize_work, &r, err);
    l2c_free(copy);
    return rc;
}
