/* PNG through libpng: every colour type and depth to RGB8, interlaced or not.
 *
 * Gamma, colour profiles and background chunks are ignored, as Pillow ignores them; compressed text
 * and profiles are skipped unread, so they cannot be bombs. A checksum that fails in a chunk that
 * matters is an error. What follows the last pixel may be damaged: the picture is there.
 *
 * 16-bit grey has two readings: Pillow's convert("RGB") clips at 255, which leaves most such
 * pictures white; L2C_DECODE_16_SCALED takes the high byte, which is what a person expects. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <png.h>

#include "encoders/image.h"

#define NAME "PNG"
#define CHUNK_BYTES_MAX (8u << 20) // of an ancillary chunk that is kept: EXIF, palette

typedef struct reader {
    png_structp lib;
    png_infop info;
    jmp_buf jump;
    const l2c_image_job *job;
    l2c_image *image;
    l2cdb_error *err;
    l2cdb_status rc;
    size_t at;        // next byte to hand to libpng
    uint32_t row;     // for messages
    uint8_t *rows;    // scratch in the form that libpng gives, NULL if that is RGB8
    char warning[80]; // the last one; before an error it tells the detail
    bool no_memory, cut, complete;
} reader;

static void *on_alloc(png_structp lib, png_alloc_size_t size) {
    reader *r = png_get_mem_ptr(lib);
    void *p = l2c_alloc(size, 1);
    r->no_memory = r->no_memory || p == NULL;
    return p;
}

static void on_free(png_structp lib, void *p) {
    (void)lib;
    l2c_free(p);
}

static void on_read(png_structp lib, png_bytep to, size_t size) {
    reader *r = png_get_io_ptr(lib);
    if (size > r->job->size - r->at) {
        r->cut = true;
        png_error(lib, "the file ends early");
    }
    memcpy(to, r->job->bytes + r->at, size);
    r->at += size;
}

_Noreturn static void on_error(png_structp lib, const char *text) {
    reader *r = png_get_error_ptr(lib);
    if (r->no_memory) {
        r->rc = l2c_fail(r->err, L2CDB_E_NOMEM, NAME ": out of memory near row %u of %u", r->row,
                         r->image->height);
    } else if (r->cut && r->image->height == 0) {
        l2c_fail(r->err, L2CDB_E_FORMAT, NAME ": the file ends in its header, after %zu bytes",
                 r->job->size);
        r->rc = l2c_hint(r->err, "copy or download the photo again: it is cut off");
    } else if (r->cut) {
        l2c_fail(r->err, L2CDB_E_FORMAT,
                 NAME ": the file ends in the picture's data, after %zu bytes, near row %u of %u",
                 r->job->size, r->row, r->image->height);
        r->rc = l2c_hint(r->err, "copy or download the photo again: it is cut off");
    } else {
        l2c_fail(r->err, L2CDB_E_FORMAT, NAME ": %s%s%s, before byte %zu", text,
                 r->warning[0] != 0 ? ": " : "", r->warning, r->at);
        r->rc = l2c_hint(r->err, "restore the photo from another copy");
    }
    longjmp(r->jump, 1);
}

static void on_warning(png_structp lib, const char *text) {
    reader *r = png_get_error_ptr(lib);
    snprintf(r->warning, sizeof r->warning, "%s", text);
}

static bool has(const reader *r, unsigned flag) {
    return (r->job->flags & flag) != 0;
}

/* What of the picture's own form is to change on the way to RGB8 or RGBA8. */
static void ask_transforms(reader *r) {
    int type = png_get_color_type(r->lib, r->info);
    int depth = png_get_bit_depth(r->lib, r->info);
    if (depth == 16 && type == PNG_COLOR_TYPE_GRAY && !has(r, L2C_DECODE_16_SCALED)) {
        return; // clipped from the 16-bit rows
    }
    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_set_palette_to_rgb(r->lib);
    }
    if (depth < 8) {
        png_set_expand_gray_1_2_4_to_8(r->lib);
    }
    if (depth == 16) {
        png_set_strip_16(r->lib);
    }
    if (!has(r, L2C_DECODE_ALPHA_WHITE)) {
        png_set_strip_alpha(r->lib);
    } else if (png_get_valid(r->lib, r->info, PNG_INFO_tRNS) != 0) {
        png_set_tRNS_to_alpha(r->lib);
    }
    if ((type & PNG_COLOR_MASK_COLOR) == 0) {
        png_set_gray_to_rgb(r->lib);
    }
}

/* A row as libpng gives it → RGB8: 16-bit grey clipped, or RGBA blended. */
static void finish_row(const reader *r, uint32_t y, const uint8_t *row) {
    size_t width = r->image->width;
    uint8_t *rgb = r->image->rgb + y * width * 3;
    if (png_get_bit_depth(r->lib, r->info) == 16) {
        for (size_t x = 0; x < width; x++) {
            memset(rgb + 3 * x, row[2 * x] != 0 ? 255 : row[2 * x + 1], 3);
        }
    } else {
        l2c_image_blend(rgb, row, width);
    }
}

static l2cdb_status read_rows(reader *r) {
    l2c_image *image = r->image;
    int passes = png_set_interlace_handling(r->lib);
    png_read_update_info(r->lib, r->info);
    size_t stride = png_get_rowbytes(r->lib, r->info);
    bool direct = png_get_channels(r->lib, r->info) == 3;
    bool keep = passes > 1; // later passes add to the rows of earlier ones
    if (!direct) {
        r->rows = l2c_alloc(keep ? image->height : 1, stride);
        if (r->rows == NULL) {
            return l2c_fail_nomem(r->err, stride * (keep ? image->height : 1));
        }
    }
    for (int pass = 0; pass < passes; pass++) {
        for (r->row = 0; r->row < image->height; r->row++) {
            uint8_t *row =
                direct ? image->rgb + r->row * stride : r->rows + (keep ? r->row * stride : 0);
            png_read_row(r->lib, row, NULL);
            if (!direct && pass == passes - 1) {
                finish_row(r, r->row, row);
            }
            if (l2c_image_late(r->job)) {
                return l2c_image_fail_late(r->job, NAME, r->err);
            }
        }
    }
    return L2CDB_OK;
}

static l2cdb_status read_guarded(reader *r) {
    if (setjmp(r->jump) != 0) {
        return r->complete ? L2CDB_OK : r->rc;
    }
    r->lib = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, r, on_error, on_warning, r, on_alloc,
                                      on_free);
    r->info = r->lib != NULL ? png_create_info_struct(r->lib) : NULL;
    if (r->info == NULL) {
        return l2c_fail_nomem(r->err, 0);
    }
    png_set_read_fn(r->lib, r, on_read);
    png_set_chunk_malloc_max(r->lib, CHUNK_BYTES_MAX);
    png_set_user_limits(r->lib, PNG_UINT_31_MAX, PNG_UINT_31_MAX);    // l2c_image_begin judges
    static const png_byte skipped[] = "iCCP\0zTXt\0iTXt\0tEXt\0sPLT"; // five bytes each
    png_set_keep_unknown_chunks(r->lib, PNG_HANDLE_CHUNK_NEVER, skipped, sizeof skipped / 5);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    png_set_crc_action(r->lib, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
#endif
    png_read_info(r->lib, r->info);
    l2cdb_status rc = l2c_image_begin(r->image, r->job, NAME, png_get_image_width(r->lib, r->info),
                                      png_get_image_height(r->lib, r->info), r->err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    ask_transforms(r);
    rc = read_rows(r);
    if (rc != L2CDB_OK) {
        return rc;
    }
    r->complete = true;
    png_read_end(r->lib, r->info); // EXIF may follow the pixels
    return L2CDB_OK;
}

l2cdb_status l2c_png_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err) {
    reader r = { .job = job, .image = out, .err = err };
    l2cdb_status rc = read_guarded(&r);
    png_bytep exif = NULL;
    png_uint_32 exif_size = 0;
    if (rc == L2CDB_OK && png_get_eXIf_1(r.lib, r.info, &exif_size, &exif) != 0) {
        l2c_exif_read(&out->meta, exif, exif_size);
    }
    png_destroy_read_struct(&r.lib, &r.info, NULL);
    l2c_free(r.rows);
    return rc;
}
