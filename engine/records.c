/* Single records: a photo from memory, captions one at a time, deletion, and the bytes of a photo.
 * Each call is one transaction; the index follows after its commit. */
#include <stdio.h>
#include <string.h>

#include "engine/base/file.h"
#include "engine/base/utf8.h"
#include "engine/engine.h"
#include "engine/photo.h"

#define NAME_BYTES_MAX 1024

static l2cdb_status begin_write(l2cdb *db, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc == L2CDB_OK) {
        l2c_db_enter(db);
    }
    return rc;
}

/* ---- Photos ---------------------------------------------------------------------------------- */

typedef struct upload {
    const char *name;
    const void *bytes;
    size_t size;
    l2c_photo photo;
    float *pixels, *features, *vector;
    int64_t id;
    l2cdb_file_outcome outcome;
} upload;

/* A photo that came without a name is named by its content. */
static void name_upload(char *out, size_t size, const l2c_photo *p) {
    static const char *const endings[] = { "", ".jpg", ".png", ".webp" };
    char hex[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(&p->hash, hex);
    snprintf(out, size, "upload/%s%s", hex, endings[p->meta.format]);
}

static l2cdb_status encode_upload(l2cdb *db, l2c_view *v, upload *u, l2c_model *model,
                                  l2cdb_error *err) {
    const l2c_heads *heads;
    l2cdb_status rc = l2c_view_heads(db, v, &heads, err);
    if (rc == L2CDB_OK) {
        rc = l2c_model_image_features(model, u->features, u->pixels, 1, err);
    }
    return rc == L2CDB_OK ? l2c_heads_image(heads, u->vector, u->features, 1, err) : rc;
}

static l2cdb_status prepare_upload(l2cdb *db, l2c_view *v, upload *u, l2c_model **model,
                                   l2cdb_error *err) {
    l2cdb_status rc = l2c_view_model(db, v, model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(*model);
    u->pixels = l2c_alloc_aligned(l2c_model_pixels_count(*model), sizeof *u->pixels);
    u->features = l2c_alloc_aligned(info->image_width, sizeof *u->features);
    u->vector = l2c_alloc_aligned(info->width, sizeof *u->vector);
    if (u->pixels == NULL || u->features == NULL || u->vector == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    return l2c_photo_prepare(db, *model, &u->photo, u->bytes, u->size, u->pixels, err);
}

static l2cdb_status store_upload(l2cdb *db, l2c_view *v, upload *u, const l2c_model_info *info,
                                 bool *stale, l2cdb_error *err) {
    bool current;
    l2cdb_status rc = l2c_view_begin(db, v, &current, err);
    *stale = rc == L2CDB_OK && !current;
    if (rc != L2CDB_OK || *stale) {
        return rc;
    }
    char name[64];
    name_upload(name, sizeof name, &u->photo);
    l2c_photo_vectors made = { .generation = &v->generation,
                               .trunk = &info->image_trunk,
                               .features = u->features,
                               .features_width = info->image_width,
                               .vector = u->vector };
    rc = l2c_photo_store(db, &u->photo, &made, u->name != NULL ? u->name : name, 0, u->bytes,
                         &u->id, &u->outcome, err);
    if (rc == L2CDB_OK) {
        return l2c_store_commit(db->store, err);
    }
    l2c_store_rollback(db->store);
    return rc;
}

static l2cdb_status put_upload(l2cdb *db, upload *u, l2cdb_error *err) {
    l2cdb_status rc = l2c_view_ensure_generation(db, err);
    bool stale = true;
    l2c_model *prepared = NULL; // the photo is decoded once, whatever switches meanwhile
    while (rc == L2CDB_OK && stale) {
        l2c_view *v;
        l2c_model *model = NULL;
        rc = l2c_view_get(db, &v, err);
        if (rc == L2CDB_OK && prepared == NULL) {
            rc = prepare_upload(db, v, u, &prepared, err);
        }
        if (rc == L2CDB_OK && u->photo.failed) {
            rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: %s", u->name != NULL ? u->name : "the photo",
                          u->photo.reason);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_view_model(db, v, &model, err);
        }
        if (rc == L2CDB_OK && model != prepared) {
            rc = l2c_fail(err, L2CDB_E_BUSY, "%s: is changing over to another model", db->path);
            l2c_hint(err, "try again");
        }
        if (rc == L2CDB_OK) {
            rc = encode_upload(db, v, u, model, err);
        }
        if (rc == L2CDB_OK) {
            rc = store_upload(db, v, u, l2c_model_get_info(model), &stale, err);
        }
        l2c_view_release(db, v);
    }
    return rc;
}

/* A name becomes the record's path. It may look like no file of this machine, since the original of
 * a record whose path is a file is read from there. */
static bool good_name(const char *name) {
    size_t size = strlen(name);
    bool good =
        size > 0 && size <= NAME_BYTES_MAX && name[0] != '/' && l2c_utf8_valid(name, size, NULL);
    for (const char *at = name; *at != '\0' && good; at += strcspn(at, "/"), at += *at == '/') {
        good = !(strcspn(at, "/") == 2 && memcmp(at, "..", 2) == 0);
    }
    for (const char *at = name; *at != '\0' && good; at++) {
        good = (unsigned char)*at >= 0x20 && *at != 0x7f && *at != '\\';
    }
    return good;
}

l2cdb_status l2cdb_put_image(l2cdb *db, const char *name, const void *bytes, size_t size,
                             int64_t *id, l2cdb_file_outcome *outcome, l2cdb_error *err) {
    l2cdb_status rc = begin_write(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    upload u = { .name = name, .bytes = bytes, .size = size };
    l2c_photo_init(&u.photo);
    if (name != NULL && !good_name(name)) {
        rc = l2c_fail(err, L2CDB_E_INVALID,
                      "the photo's name must be a relative path in UTF-8 of at most %d bytes",
                      NAME_BYTES_MAX);
        l2c_hint(err, "for example upload/beach.jpg");
    }
    if (rc == L2CDB_OK) {
        rc = put_upload(db, &u, err);
    }
    if (rc == L2CDB_OK) {
        l2c_view_catch_up(db);
        if (id != NULL) {
            *id = u.id;
        }
        if (outcome != NULL) {
            *outcome = u.outcome;
        }
    }
    l2c_photo_fini(&u.photo);
    l2c_free(u.pixels);
    l2c_free(u.features);
    l2c_free(u.vector);
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_delete_images(l2cdb *db, const int64_t *ids, size_t n, l2cdb_error *err) {
    l2cdb_status rc = begin_write(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_images_delete(db->store, ids, n, err);
    if (rc == L2CDB_OK) {
        l2c_view_catch_up(db);
    }
    l2c_db_leave(db);
    return rc;
}

/* ---- Captions -------------------------------------------------------------------------------- */

typedef struct caption_vectors {
    float *features, *vector; /* NULL: there is no encoder; the caption is kept without */
    size_t features_width;
    l2c_hash trunk;
} caption_vectors;

/* A database of imported vectors has no text encoder; its captions are still found by their words.
 */
static l2cdb_status encode_caption(l2cdb *db, l2c_view *v, const char *text, caption_vectors *out,
                                   l2cdb_error *err) {
    *out = (caption_vectors){ 0 };
    if (strcmp(v->generation.model, "external") == 0) {
        return L2CDB_OK;
    }
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(model);
    out->trunk = info->text_trunk;
    out->features_width = info->text_width;
    out->features = l2c_alloc_aligned(info->text_width, sizeof *out->features);
    out->vector = l2c_alloc_aligned(info->width, sizeof *out->vector);
    if (out->features == NULL || out->vector == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    return l2c_encode_texts(db, v, &text, 1, out->vector, out->features, err);
}

static l2cdb_status put_caption_vectors(l2cdb *db, const l2c_view *v, int64_t id,
                                        const caption_vectors *c, l2cdb_error *err) {
    if (c->vector == NULL) {
        return L2CDB_OK;
    }
    l2cdb_status rc = l2c_features_put(db->store, L2C_KIND_CAPTION, &c->trunk, id, c->features,
                                       c->features_width, err);
    return rc == L2CDB_OK
               ? l2c_vectors_put(db->store, v->generation.space[L2C_KIND_CAPTION], L2C_KIND_CAPTION,
                                 id, c->vector, v->generation.width, err)
               : rc;
}

/* Adds when r->id is 0, else changes text and language; with the vectors in one transaction. */
static l2cdb_status store_caption(l2cdb *db, l2c_view *v, l2c_caption_record *r,
                                  const caption_vectors *c, bool *stale, l2cdb_error *err) {
    bool current, existed = false;
    l2cdb_status rc = l2c_view_begin(db, v, &current, err);
    *stale = rc == L2CDB_OK && !current;
    if (rc != L2CDB_OK || *stale) {
        return rc;
    }
    if (r->id != 0) {
        rc = l2c_captions_update(db->store, r->id, r->text, r->language, err);
    } else {
        rc = l2c_captions_put(db->store, r, &existed, err);
    }
    if (rc == L2CDB_OK && existed) {
        rc = l2c_fail(err, L2CDB_E_EXISTS, "photo %lld has this caption already (caption %lld)",
                      (long long)r->image_id, (long long)r->id);
    }
    if (rc == L2CDB_OK) {
        rc = put_caption_vectors(db, v, r->id, c, err);
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(db->store, err);
    }
    l2c_store_rollback(db->store);
    return rc;
}

l2cdb_status l2c_caption_check(const char *text, l2cdb_error *err) {
    if (text == NULL || l2c_utf8_blank(text)) {
        return l2c_fail(err, L2CDB_E_INVALID, "a caption needs a text");
    }
    size_t n = strlen(text), bad;
    if (n > L2C_CAPTION_BYTES_MAX) {
        return l2c_fail(err, L2CDB_E_LIMIT, "the caption's text has %zu bytes, at most %d are kept",
                        n, L2C_CAPTION_BYTES_MAX);
    }
    if (!l2c_utf8_valid(text, n, &bad)) {
        return l2c_fail(err, L2CDB_E_INVALID, "the caption's text is not valid UTF-8 at byte %zu",
                        bad);
    }
    return L2CDB_OK;
}

static l2cdb_status write_caption(l2cdb *db, l2c_caption_record *r, l2cdb_error *err) {
    l2cdb_status rc = l2c_caption_check(r->text, err);
    bool stale = true;
    while (rc == L2CDB_OK && stale) {
        l2c_view *v;
        caption_vectors c = { 0 };
        rc = l2c_view_get(db, &v, err);
        if (rc == L2CDB_OK && v->generation.id != 0) {
            rc = encode_caption(db, v, r->text, &c, err);
        }
        if (rc == L2CDB_OK) {
            rc = store_caption(db, v, r, &c, &stale, err);
        }
        l2c_free(c.features);
        l2c_free(c.vector);
        l2c_view_release(db, v);
    }
    if (rc == L2CDB_OK) {
        l2c_view_catch_up(db);
    }
    return rc;
}

l2cdb_status l2cdb_add_caption(l2cdb *db, int64_t image_id, const char *text, const char *language,
                               const char *source, int64_t *id, l2cdb_error *err) {
    l2cdb_status rc = begin_write(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_caption_record r = {
        .image_id = image_id, .text = text, .language = language, .source = source
    };
    rc = write_caption(db, &r, err);
    if (rc == L2CDB_OK && id != NULL) {
        *id = r.id;
    }
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_update_caption(l2cdb *db, int64_t caption_id, const char *text,
                                  const char *language, l2cdb_error *err) {
    l2cdb_status rc = begin_write(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_caption_record r = { .id = caption_id, .text = text, .language = language };
    rc = caption_id > 0 ? write_caption(db, &r, err)
                        : l2c_fail(err, L2CDB_E_NOTFOUND, "caption %lld is not in the database",
                                   (long long)caption_id);
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_delete_captions(l2cdb *db, const int64_t *ids, size_t n, l2cdb_error *err) {
    l2cdb_status rc = begin_write(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_captions_delete(db->store, ids, n, err);
    if (rc == L2CDB_OK) {
        l2c_view_catch_up(db);
    }
    l2c_db_leave(db);
    return rc;
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

static void give_bytes(l2cdb_bytes *out, l2c_buf *b, const char *type) {
    out->size = b->size;
    out->data = l2c_buf_take(b);
    snprintf(out->content_type, sizeof out->content_type, "%s", type);
}

static l2cdb_status set_etag(l2cdb *db, int64_t id, const char *suffix, char *path,
                             size_t path_size, l2cdb_bytes *out, l2cdb_error *err) {
    l2c_arena arena;
    l2c_arena_init(&arena, 4096);
    l2c_image_record r;
    l2cdb_status rc = l2c_images_get(db->store, id, &r, &arena, err);
    if (rc == L2CDB_OK) {
        char hex[L2C_HASH_HEX_BYTES];
        l2c_hash_hex(&r.hash, hex);
        snprintf(out->etag, sizeof out->etag, "%s%s", hex, suffix);
        snprintf(path, path_size, "%s", r.path != NULL ? r.path : "");
    }
    l2c_arena_fini(&arena);
    return rc;
}

l2cdb_status l2cdb_get_thumbnail(l2cdb *db, int64_t id, l2cdb_bytes *out, l2cdb_error *err) {
    memset(out, 0, sizeof *out);
    l2cdb_error_clear(err);
    char path[4096];
    l2c_buf b;
    l2c_buf_init(&b);
    l2cdb_status rc = set_etag(db, id, "-t256", path, sizeof path, out, err);
    if (rc == L2CDB_OK) {
        rc = l2c_thumbnails_get(db->store, id, &b, err);
    }
    if (rc == L2CDB_OK) {
        give_bytes(out, &b, "image/jpeg");
    }
    l2c_buf_fini(&b);
    return rc;
}

static const char *type_of(const l2c_buf *b) {
    switch (l2c_image_sniff((const uint8_t *)b->data, b->size)) {
    case L2C_IMAGE_JPEG:
        return "image/jpeg";
    case L2C_IMAGE_PNG:
        return "image/png";
    case L2C_IMAGE_WEBP:
        return "image/webp";
    case L2C_IMAGE_UNKNOWN:
        break;
    }
    return "application/octet-stream";
}

l2cdb_status l2cdb_get_original(l2cdb *db, int64_t id, l2cdb_bytes *out, l2cdb_error *err) {
    memset(out, 0, sizeof *out);
    l2cdb_error_clear(err);
    char path[4096];
    l2c_buf b;
    l2c_buf_init(&b);
    l2cdb_status rc = set_etag(db, id, "", path, sizeof path, out, err);
    if (rc == L2CDB_OK) {
        rc = l2c_images_get_original(db->store, id, &b, err);
        if (rc == L2CDB_E_NOTFOUND && path[0] == '/') {
            l2cdb_error_clear(err);
            rc = l2c_file_read(&b, path, L2C_PHOTO_BYTES_MAX, err);
        }
    }
    if (rc == L2CDB_OK) {
        give_bytes(out, &b, type_of(&b));
    }
    l2c_buf_fini(&b);
    return rc;
}

void l2cdb_bytes_free(l2cdb_bytes *b) {
    l2c_free(b->data);
    memset(b, 0, sizeof *b);
}

l2cdb_status l2cdb_get_pixels(l2cdb *db, int64_t id, l2cdb_pixels *out, l2cdb_error *err) {
    memset(out, 0, sizeof *out);
    l2cdb_error_clear(err);
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_image image = { 0 };
    l2cdb_status rc = l2c_thumbnails_get(db->store, id, &b, err);
    if (rc == L2CDB_OK) {
        rc = l2c_image_decode(&image, (const uint8_t *)b.data, b.size, 0, NULL, err);
    }
    if (rc == L2CDB_OK) {
        *out = (l2cdb_pixels){ .rgb = image.rgb, .width = image.width, .height = image.height };
        image.rgb = NULL; // now the caller's
    }
    l2c_image_fini(&image);
    l2c_buf_fini(&b);
    return rc;
}

void l2cdb_pixels_free(l2cdb_pixels *p) {
    l2c_image image = { .rgb = p->rgb, .width = p->width, .height = p->height };
    l2c_image_fini(&image);
    memset(p, 0, sizeof *p);
}
