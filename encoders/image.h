/* What decode.c and the files of the three image libraries share. One file for each library; a
 * decoder checks its header against the limits, then fills an l2c_image. */
#ifndef L2C_IMAGE_H
#define L2C_IMAGE_H

#include "encoders/encoders.h"

/* One picture being decoded. */
typedef struct l2c_image_job {
    const uint8_t *bytes;
    size_t size;
    unsigned flags;          /* L2C_DECODE_* */
    l2c_image_limits limits; /* no field is 0 */
    uint64_t deadline_ns;    /* on the clock of l2c_image_late */
} l2c_image_job;

/* Each fills out->rgb, width, height and meta (a fresh, zeroed `out`); the picture is as stored,
 * not yet upright. On error the caller releases what `out` holds. */
l2cdb_status l2c_jpeg_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err);
l2cdb_status l2c_png_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err);
l2cdb_status l2c_webp_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err);

/* Appends rgb u8 [height, width, 3] as a baseline JPEG of quality 85, 4:2:0. */
l2cdb_status l2c_jpeg_encode(l2c_buf *out, const uint8_t *rgb, uint32_t width, uint32_t height,
                             l2cdb_error *err);

/* Checks the size against the limits, notes it in out->meta and allocates out->rgb, uninitialised.
 * `format` is for messages. E_FORMAT for an empty picture, E_LIMIT, E_NOMEM. */
l2cdb_status l2c_image_begin(l2c_image *out, const l2c_image_job *job, const char *format,
                             uint32_t width, uint32_t height, l2cdb_error *err);

/* The time limit counts processor time of the calling thread, so that a busy machine refuses no
 * photo that an idle one takes. */
bool l2c_image_late(const l2c_image_job *job);
l2cdb_status l2c_image_fail_late(const l2c_image_job *job, const char *format, l2cdb_error *err);

/* `value` of opacity `alpha` on white, rounded as Pillow's alpha_composite rounds. */
static inline uint8_t l2c_image_on_white(uint8_t value, uint8_t alpha) {
    uint32_t sum = ((uint32_t)value * alpha + 255u * (255u - alpha)) * 128u + 128u * 128u;
    return (uint8_t)((((sum >> 8) + sum) >> 8) >> 7);
}

/* rgba u8 [count, 4] → rgb u8 [count, 3] on white. */
void l2c_image_blend(uint8_t *rgb, const uint8_t *rgba, size_t count);

/* Reads orientation, date, camera and position from EXIF bytes (a TIFF structure, with or without
 * "Exif\0\0" before it). What is missing, malformed or out of range is left as it was; hostile
 * bytes cost a field, never the photo. */
void l2c_exif_read(l2c_image_meta *meta, const uint8_t *bytes, size_t size);

#endif
