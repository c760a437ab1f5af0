/* JPEG through libjpeg-turbo: decoding to RGB8, and thumbnails.
 *
 * Settings are those whose pixels equal Pillow's: the slow integer transform, smooth chroma
 * upsampling, CMYK taken as Adobe writes it (inverted) and turned to RGB without a profile.
 *
 * Damage. libjpeg carries on through almost anything and fills the rest with grey. Here a file that
 * ends early is an error that says where; other damage within a scan is accepted with the pixels
 * that Pillow would give. A sequential file that lacks its end marker alone, but no pixel, is
 * whole.
 *
 * Bombs. A progressive file of a few kilobytes may repaint a large picture a thousand times: the
 * scans are counted by walking the markers before anything is decoded, and the time is checked
 * between rows of blocks.
 *
 * libjpeg reports errors by a call that must not return: longjmp to the one setjmp of the function
 * at work. All state lives in a struct outside of that function's frame. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
// after jpeglib.h, which it builds on
#include <jerror.h>

#include "encoders/image.h"

#define NAME "JPEG"
#define QUALITY 85
#define WRITE_BYTES 16384

/* ---- Markers ------------------------------------------------------------------------------- */

typedef struct survey {
    uint32_t scans;
    const uint8_t *exif; // from "Exif\0\0" on
    size_t exif_size;
} survey;

/* Walks the markers up to the end of the image. Entropy-coded data hold 0xFF only before 0 or a
 * restart marker, so the search for the next marker passes over them. */
static survey survey_of(const uint8_t *bytes, size_t n) {
    survey s = { 0 };
    size_t at = 2;
    while (at < n) {
        const uint8_t *ff = memchr(bytes + at, 0xff, n - at);
        if (ff == NULL) {
            break;
        }
        at = (size_t)(ff - bytes) + 1;
        while (at < n && bytes[at] == 0xff) {
            at++;
        }
        if (at == n || bytes[at] == 0xd9) {
            break;
        }
        uint8_t marker = bytes[at++];
        if (marker <= 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
            continue; // no length follows
        }
        if (n - at < 2) {
            break;
        }
        size_t length = (size_t)bytes[at] << 8 | bytes[at + 1];
        if (length < 2 || length > n - at) {
            break;
        }
        if (marker == 0xda) {
            s.scans++;
        }
        if (marker == 0xe1 && s.exif == NULL && length >= 8 &&
            memcmp(bytes + at + 2, "Exif\0", 6) == 0) {
            s.exif = bytes + at + 2;
            s.exif_size = length - 2;
        }
        at += length;
    }
    return s;
}

/* ---- Reading ------------------------------------------------------------------------------- */

typedef struct reader {
    struct jpeg_decompress_struct lib;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    const l2c_image_job *job;
    l2c_image *image;
    uint8_t *cmyk; // one row
    l2cdb_error *err;
    l2cdb_status rc;
    bool header_read;
    bool ended; // the bytes ran out
} reader;

static l2cdb_status status_of(int code) {
    switch (code) {
    case JERR_OUT_OF_MEMORY:
        return L2CDB_E_NOMEM;
    case JERR_IMAGE_TOO_BIG:
        return L2CDB_E_LIMIT;
    case JERR_SOF_UNSUPPORTED:
    case JERR_BAD_PRECISION:
    case JERR_COMPONENT_COUNT:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_CCIR601_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
        return L2CDB_E_UNSUPPORTED;
    default:
        return L2CDB_E_FORMAT;
    }
}

_Noreturn static void stop(reader *r, l2cdb_status rc) {
    r->rc = rc;
    longjmp(r->jump, 1);
}

_Noreturn static void stop_cut(reader *r) {
    if (!r->header_read) {
        l2c_fail(r->err, L2CDB_E_FORMAT, NAME ": the file ends in its header, after %zu bytes",
                 r->job->size);
    } else if (r->lib.output_scanline > 0 || !jpeg_has_multiple_scans(&r->lib)) {
        l2c_fail(r->err, L2CDB_E_FORMAT,
                 NAME ": the file ends in the picture's data, after %zu bytes, near row %u of %u",
                 r->job->size, r->lib.output_scanline, r->lib.output_height);
    } else {
        l2c_fail(r->err, L2CDB_E_FORMAT,
                 NAME ": the file ends in scan %d, after %zu bytes, without an end marker",
                 r->lib.input_scan_number, r->job->size);
    }
    l2c_hint(r->err, "copy or download the photo again: it is cut off");
    stop(r, L2CDB_E_FORMAT);
}

_Noreturn static void on_error(j_common_ptr lib) {
    reader *r = lib->client_data;
    char text[JMSG_LENGTH_MAX];
    lib->err->format_message(lib, text);
    if (r->ended && status_of(lib->err->msg_code) == L2CDB_E_FORMAT) {
        stop_cut(r); // what libjpeg says then is about its own stand-in for the missing bytes
    }
    l2cdb_status rc = status_of(lib->err->msg_code);
    if (rc == L2CDB_E_NOMEM) {
        l2c_fail(r->err, rc, NAME ": out of memory for a picture of %ux%u pixels",
                 r->lib.image_width, r->lib.image_height);
    } else if (rc == L2CDB_E_LIMIT) {
        l2c_fail(r->err, rc, NAME ": the picture is %ux%u pixels, the limit is %ld a side",
                 r->lib.image_width, r->lib.image_height, JPEG_MAX_DIMENSION);
        l2c_hint(r->err, "scale the photo down");
    } else {
        l2c_fail(r->err, rc, NAME ": %s", text);
        l2c_hint(r->err, "%s",
                 rc == L2CDB_E_UNSUPPORTED ? "save it again as an ordinary JPEG"
                                           : "restore the photo from another copy");
    }
    stop(r, rc);
}

/* Warnings (level -1). The source manager of libjpeg answers the end of the bytes with an end
 * marker of its own; whether pixels are missing shows when the decoder runs into it for more. */
static void on_message(j_common_ptr lib, int level) {
    reader *r = lib->client_data;
    if (level >= 0) {
        return;
    }
    if (lib->err->msg_code == JWRN_JPEG_EOF) {
        r->ended = true;
        if (!r->header_read || jpeg_has_multiple_scans(&r->lib) || r->lib.arith_code) {
            stop_cut(r);
        }
    } else if (lib->err->msg_code == JWRN_HIT_MARKER && r->ended) {
        stop_cut(r);
    }
}

_Noreturn static void stop_scans(reader *r, uint32_t scans) {
    l2c_fail(r->err, L2CDB_E_LIMIT, NAME ": the file has %u scans or more, the limit is %u", scans,
             r->job->limits.scans_max);
    l2c_hint(r->err, "save it again as an ordinary JPEG, or raise the limit of scans");
    stop(r, L2CDB_E_LIMIT);
}

static void on_progress(j_common_ptr lib) {
    reader *r = lib->client_data;
    if (r->lib.input_scan_number > 0 &&
        (uint32_t)r->lib.input_scan_number > r->job->limits.scans_max) {
        stop_scans(r, (uint32_t)r->lib.input_scan_number);
    }
    if (l2c_image_late(r->job)) {
        stop(r, l2c_image_fail_late(r->job, NAME, r->err));
    }
}

/* Adobe's inverted CMYK → RGB as Pillow converts: R = K' - (255 - C') K' / 255, rounded, where the
 * primed values are the stored ones. */
static void cmyk_to_rgb(uint8_t *rgb, const uint8_t *cmyk, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t k = cmyk[4 * i + 3];
        for (size_t c = 0; c < 3; c++) {
            uint32_t product = (255u - cmyk[4 * i + c]) * k + 128;
            rgb[3 * i + c] = (uint8_t)(k - (((product >> 8) + product) >> 8));
        }
    }
}

static void read_rows(reader *r) {
    l2c_image *image = r->image;
    size_t stride = (size_t)image->width * 3;
    while (r->lib.output_scanline < r->lib.output_height) {
        JSAMPROW row = image->rgb + r->lib.output_scanline * stride;
        JSAMPROW to = r->cmyk != NULL ? r->cmyk : row;
        jpeg_read_scanlines(&r->lib, &to, 1);
        if (r->cmyk != NULL) {
            cmyk_to_rgb(row, r->cmyk, image->width);
        }
    }
}

static l2cdb_status read_guarded(reader *r) {
    if (setjmp(r->jump) != 0) {
        return r->rc;
    }
    jpeg_create_decompress(&r->lib);
    r->lib.client_data = r;
    r->lib.progress = &r->progress;
    r->progress.progress_monitor = on_progress;
    jpeg_mem_src(&r->lib, r->job->bytes, (unsigned long)r->job->size);
    survey seen = survey_of(r->job->bytes, r->job->size);
    if (seen.scans > r->job->limits.scans_max) {
        stop_scans(r, seen.scans);
    }
    jpeg_read_header(&r->lib, TRUE);
    r->header_read = true;
    int components = r->lib.num_components;
    if (components != 1 && components != 3 && components != 4) {
        l2c_fail(r->err, L2CDB_E_UNSUPPORTED,
                 NAME ": the picture has %d colour components, expected 1, 3 or 4", components);
        return l2c_hint(r->err, "save it again as an ordinary JPEG");
    }
    l2cdb_status rc =
        l2c_image_begin(r->image, r->job, NAME, r->lib.image_width, r->lib.image_height, r->err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (seen.exif != NULL) {
        l2c_exif_read(&r->image->meta, seen.exif, seen.exif_size);
    }
    r->lib.out_color_space = components == 4 ? JCS_CMYK : JCS_RGB;
    if (components == 4) {
        r->cmyk = l2c_alloc(r->lib.image_width, 4);
        if (r->cmyk == NULL) {
            return l2c_fail_nomem(r->err, (uint64_t)r->lib.image_width * 4);
        }
    }
    r->lib.dct_method = JDCT_ISLOW;
    r->lib.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&r->lib);
    read_rows(r);
    return L2CDB_OK;
}

l2cdb_status l2c_jpeg_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err) {
    reader r = { .job = job, .image = out, .err = err };
    r.lib.err = jpeg_std_error(&r.errors);
    r.errors.error_exit = on_error;
    r.errors.emit_message = on_message;
    r.lib.client_data = &r;
    l2cdb_status rc = read_guarded(&r);
    jpeg_destroy_decompress(&r.lib);
    l2c_free(r.cmyk);
    return rc;
}

/* ---- Writing ------------------------------------------------------------------------------- */

typedef struct writer {
    struct jpeg_compress_struct lib;
    struct jpeg_error_mgr errors;
    struct jpeg_destination_mgr target;
    jmp_buf jump;
    l2c_buf *out;
    l2cdb_error *err;
    l2cdb_status rc;
    uint8_t bytes[WRITE_BYTES];
} writer;

_Noreturn static void on_write_error(j_common_ptr lib) {
    writer *w = lib->client_data;
    char text[JMSG_LENGTH_MAX];
    lib->err->format_message(lib, text);
    l2cdb_status rc = lib->err->msg_code == JERR_OUT_OF_MEMORY ? L2CDB_E_NOMEM : L2CDB_E_INTERNAL;
    w->rc = l2c_fail(w->err, rc, "writing a JPEG: %s", text);
    longjmp(w->jump, 1);
}

static void on_write_message(j_common_ptr lib, int level) {
    (void)lib;
    (void)level;
}

static void target_reset(j_compress_ptr lib) {
    writer *w = lib->client_data;
    w->target.next_output_byte = w->bytes;
    w->target.free_in_buffer = sizeof w->bytes;
}

static boolean target_full(j_compress_ptr lib) {
    writer *w = lib->client_data;
    l2c_buf_append(w->out, w->bytes, sizeof w->bytes);
    target_reset(lib);
    return TRUE;
}

static void target_end(j_compress_ptr lib) {
    writer *w = lib->client_data;
    l2c_buf_append(w->out, w->bytes, sizeof w->bytes - w->target.free_in_buffer);
}

static l2cdb_status write_guarded(writer *w, const uint8_t *rgb, uint32_t width, uint32_t height) {
    if (setjmp(w->jump) != 0) {
        return w->rc;
    }
    jpeg_create_compress(&w->lib);
    w->lib.client_data = w;
    w->lib.dest = &w->target;
    w->lib.image_width = width;
    w->lib.image_height = height;
    w->lib.input_components = 3;
    w->lib.in_color_space = JCS_RGB;
    jpeg_set_defaults(&w->lib); // YCbCr with 2x2 subsampling
    jpeg_set_quality(&w->lib, QUALITY, TRUE);
    w->lib.optimize_coding = TRUE;
    jpeg_start_compress(&w->lib, TRUE);
    while (w->lib.next_scanline < height) {
        // the library's type lacks a const that its code keeps
        union {
            const uint8_t *in;
            JSAMPROW row;
        } line = { .in = rgb + (size_t)w->lib.next_scanline * width * 3 };
        jpeg_write_scanlines(&w->lib, &line.row, 1);
    }
    jpeg_finish_compress(&w->lib);
    return L2CDB_OK;
}

l2cdb_status l2c_jpeg_encode(l2c_buf *out, const uint8_t *rgb, uint32_t width, uint32_t height,
                             l2cdb_error *err) {
    writer *w = l2c_calloc(1, sizeof *w);
    if (w == NULL) {
        return l2c_fail_nomem(err, sizeof *w);
    }
    w->out = out;
    w->err = err;
    w->lib.err = jpeg_std_error(&w->errors);
    w->errors.error_exit = on_write_error;
    w->errors.emit_message = on_write_message;
    w->target.init_destination = target_reset;
    w->target.empty_output_buffer = target_full;
    w->target.term_destination = target_end;
    w->lib.client_data = w;
    l2cdb_status rc = write_guarded(w, rgb, width, height);
    jpeg_destroy_compress(&w->lib);
    l2c_free(w);
    if (rc == L2CDB_OK && out->failed) {
        return l2c_fail_nomem(err, out->size);
    }
    return rc;
}
