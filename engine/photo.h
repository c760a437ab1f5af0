/* One photo on its way in: bytes → pixels, thumbnail, EXIF → features → vector → rows. Used by
 * ingest for files and by l2cdb_put_image for bytes. */
#ifndef L2C_PHOTO_H
#define L2C_PHOTO_H

#include "engine/engine.h"

#define L2C_PHOTO_BYTES_MAX (UINT64_C(512) << 20)
#define L2C_THUMBNAIL_SIDE 256

typedef struct l2c_photo {
    l2c_hash hash; /* of the bytes; zero if they could not be read */
    uint64_t size_bytes;
    l2c_image_meta meta;
    uint32_t width, height; /* as shown: after rotation if the database rotates */
    l2c_buf thumbnail;
    bool failed; /* no picture came out: `reason` says why */
    char reason[L2CDB_ERROR_MESSAGE_BYTES];
} l2c_photo;

void l2c_photo_init(l2c_photo *p);
void l2c_photo_fini(l2c_photo *p);
/* Decodes, makes the thumbnail, preprocesses into pixels f32 [l2c_model_pixels_count]. A photo that
 * cannot be read is no error of the call: p->failed is set. E_NOMEM. Any thread. */
l2cdb_status l2c_photo_prepare(l2cdb *db, l2c_model *model, l2c_photo *p, const void *bytes,
                               size_t size, float *pixels, l2cdb_error *err);
/* Marks p failed with the message of `why`. */
void l2c_photo_fail(l2c_photo *p, const l2cdb_error *why);

/* What a photo became in the model; both NULL for a failed one. */
typedef struct l2c_photo_vectors {
    const l2c_generation *generation;
    const l2c_hash *trunk;
    const float *features; /* [features_width] */
    size_t features_width;
    const float *vector; /* [generation->width] */
} l2c_photo_vectors;

/* Inside a transaction: makes `path` stand for this photo, whatever was known of the path and of
 * the content before (see photo.c for the cases). original: bytes to keep, or NULL. */
l2cdb_status l2c_photo_store(l2cdb *db, const l2c_photo *p, const l2c_photo_vectors *v,
                             const char *path, int64_t mtime_ns, const void *original, int64_t *id,
                             l2cdb_file_outcome *outcome, l2cdb_error *err);

#endif
