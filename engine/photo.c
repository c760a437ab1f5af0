#include "engine/photo.h"

#include <stdio.h>
#include <string.h>

void l2c_photo_init(l2c_photo *p) {
    memset(p, 0, sizeof *p);
    l2c_buf_init(&p->thumbnail);
}

void l2c_photo_fini(l2c_photo *p) {
    l2c_buf_fini(&p->thumbnail);
}

void l2c_photo_fail(l2c_photo *p, const l2cdb_error *why) {
    p->failed = true;
    snprintf(p->reason, sizeof p->reason, "%s", why->message);
}

static l2cdb_status picture_out(l2cdb *db, l2c_model *model, l2c_photo *p, const void *bytes,
                                size_t size, float *pixels, l2cdb_error *err) {
    l2c_image image = { 0 };
    l2cdb_status rc = size > 0 ? L2CDB_OK : l2c_fail(err, L2CDB_E_FORMAT, "the file is empty");
    if (rc == L2CDB_OK) {
        rc = l2c_image_decode(&image, bytes, size, l2c_db_decode_flags(db), NULL, err);
    }
    if (rc == L2CDB_OK) {
        p->meta = image.meta;
        p->width = image.width;
        p->height = image.height;
        rc = l2c_image_thumbnail(&p->thumbnail, &image, L2C_THUMBNAIL_SIDE, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_model_preprocess(model, pixels, &image, err);
    }
    l2c_image_fini(&image);
    return rc;
}

l2cdb_status l2c_photo_prepare(l2cdb *db, l2c_model *model, l2c_photo *p, const void *bytes,
                               size_t size, float *pixels, l2cdb_error *err) {
    p->hash = l2c_hash_of(bytes, size);
    p->size_bytes = size;
    l2cdb_error why;
    l2cdb_status rc = picture_out(db, model, p, bytes, size, pixels, &why);
    if (rc == L2CDB_E_NOMEM) {
        return l2c_fail(err, rc, "%s", why.message);
    }
    if (rc != L2CDB_OK) {
        l2c_photo_fail(p, &why);
    }
    return L2CDB_OK;
}

/* ---- Storing --------------------------------------------------------------------------------- */

static const char *format_name(l2c_image_format f) {
    switch (f) {
    case L2C_IMAGE_JPEG:
        return "jpeg";
    case L2C_IMAGE_PNG:
        return "png";
    case L2C_IMAGE_WEBP:
        return "webp";
    case L2C_IMAGE_UNKNOWN:
        break;
    }
    return NULL;
}

static void fill_record(l2c_image_record *r, const l2c_photo *p) {
    r->hash = p->hash;
    r->size_bytes = (int64_t)p->size_bytes;
    r->status = p->failed ? "error" : "ok";
    r->error = p->failed ? p->reason : NULL;
    if (p->failed) {
        return;
    }
    r->width = p->width;
    r->height = p->height;
    r->format = format_name(p->meta.format);
    r->taken_at = p->meta.taken_at[0] != '\0' ? p->meta.taken_at : NULL;
    r->camera = p->meta.camera[0] != '\0' ? p->meta.camera : NULL;
    r->orientation = p->meta.orientation;
    r->has_gps = p->meta.has_gps;
    r->latitude = p->meta.latitude;
    r->longitude = p->meta.longitude;
}

static l2cdb_status put_photo(l2cdb *db, const l2c_photo *p, const l2c_photo_vectors *v,
                              l2c_image_record *r, l2cdb_error *err) {
    fill_record(r, p);
    l2cdb_status rc = l2c_images_put(db->store, r, err);
    if (rc != L2CDB_OK || p->failed) {
        return rc;
    }
    rc = l2c_thumbnails_put(db->store, r->id, p->thumbnail.data, p->thumbnail.size, err);
    if (rc == L2CDB_OK) {
        rc = l2c_features_put(db->store, L2C_KIND_IMAGE, v->trunk, r->id, v->features,
                              v->features_width, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_vectors_put(db->store, v->generation->space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, r->id,
                             v->vector, v->generation->width, err);
    }
    return rc;
}

/* The cases, by what is known:
 *   content of a sound record     the path joins it           UNCHANGED (it was there), UPDATED (it
 *                                                             came from another), DUPLICATE
 *   content of a failed record    that record is tried again  UPDATED
 *   path alone on its record      updated in place: id and captions stay   UPDATED
 *   path among others             leaves them for a new record             UPDATED
 *   neither                       a new record                             ADDED
 * A photo that failed is recorded in the same way, and its outcome is FAILED. */
l2cdb_status l2c_photo_store(l2cdb *db, const l2c_photo *p, const l2c_photo_vectors *v,
                             const char *path, int64_t mtime_ns, const void *original, int64_t *id,
                             l2cdb_file_outcome *outcome, l2cdb_error *err) {
    static const l2c_hash zero;
    l2c_path_state known;
    int64_t same = 0;
    bool same_failed = false;
    l2cdb_status rc = l2c_images_find_path(db->store, path, &known, err);
    if (rc == L2CDB_OK && memcmp(&p->hash, &zero, sizeof zero) != 0) {
        rc = l2c_images_find_hash(db->store, &p->hash, &same, &same_failed, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    *outcome = known.image_id != 0 ? L2CDB_FILE_UPDATED : L2CDB_FILE_ADDED;
    l2c_image_record r = { .path = path,
                           .mtime_ns = mtime_ns,
                           .original = original,
                           .original_size = original != NULL ? (size_t)p->size_bytes : 0 };
    if (same != 0 && (!same_failed || p->failed)) {
        *id = same;
        if (known.image_id == 0) {
            *outcome = L2CDB_FILE_DUPLICATE;
        } else if (known.image_id == same) {
            *outcome = L2CDB_FILE_UNCHANGED;
        }
        rc = l2c_images_add_path(db->store, same, path, (int64_t)p->size_bytes, mtime_ns, err);
    } else if (same != 0) {
        *outcome = L2CDB_FILE_UPDATED;
        r.id = same;
    } else if (known.image_id != 0 && known.paths == 1) {
        r.id = known.image_id;
    } else if (known.image_id != 0) {
        rc = l2c_images_remove_path(db->store, path, NULL, err);
    }
    if (rc == L2CDB_OK && (same == 0 || r.id != 0)) {
        rc = put_photo(db, p, v, &r, err);
        *id = r.id;
    }
    if (p->failed) {
        *outcome = L2CDB_FILE_FAILED;
    }
    return rc;
}
