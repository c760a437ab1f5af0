/* Photos of any kind in, RGB8 out: looks at the first bytes, checks the limits, calls the file of
 * the right library, turns the picture upright. What is no photo of ours is named, since a file
 * "IMG_0001.jpg" that is really HEIC is the most common complaint about any ingest. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "encoders/encoders.h"
#include "encoders/image.h"
#include "encoders/pixels.h"
#include "engine/base/utf8.h"

#define PIXELS_MAX 100000000u
#define SCANS_MAX 500u
#define DECODE_MS_MAX 5000u
#define BYTES_MAX (512ull << 20)

#define THUMBNAIL_ASPECT_MAX 16

/* ---- What kind of file --------------------------------------------------------------------- */

static bool starts(const uint8_t *bytes, size_t n, size_t at, const char *magic, size_t size) {
    return n >= at + size && memcmp(bytes + at, magic, size) == 0;
}

l2c_image_format l2c_image_sniff(const uint8_t *bytes, size_t n) {
    if (starts(bytes, n, 0, "\xff\xd8\xff", 3)) {
        return L2C_IMAGE_JPEG;
    }
    if (starts(bytes, n, 0, "\x89PNG\r\n\x1a\n", 8)) {
        return L2C_IMAGE_PNG;
    }
    if (starts(bytes, n, 0, "RIFF", 4) && starts(bytes, n, 8, "WEBP", 4)) {
        return L2C_IMAGE_WEBP;
    }
    return L2C_IMAGE_UNKNOWN;
}

typedef enum remedy { CONVERT, DEVELOP, EXTRACT, DOWNLOAD, REMOVE } remedy;

static const char *const remedies[] = {
    [CONVERT] = "convert it to JPEG, PNG or WebP",
    [DEVELOP] = "export it as JPEG from a raw developer; many cameras write a JPEG beside it",
    [EXTRACT] = "extract pictures from it as JPEG, PNG or WebP",
    [DOWNLOAD] = "fetch the photo again: this is a text in its place",
    [REMOVE] = "leave it out; only JPEG, PNG and WebP photos are read",
};

typedef struct kind {
    size_t at;
    const char *magic;
    size_t size;
    const char *name; // "a …", for "the file is a …"
    remedy remedy;
} kind;

#define KIND(at, magic, name, remedy)                                                              \
    { at, magic, sizeof magic - 1, name, remedy }

/* First match counts: the special before the general. */
static const kind kinds[] = {
    KIND(0, "\x89PNG", "a PNG that lost bytes in a text-mode transfer", DOWNLOAD),
    KIND(0, "GIF87a", "a GIF", CONVERT),
    KIND(0, "GIF89a", "a GIF", CONVERT),
    KIND(4, "ftypheic", "a HEIC photo", CONVERT),
    KIND(4, "ftypheix", "a HEIC photo", CONVERT),
    KIND(4, "ftyphevc", "a HEIC sequence", CONVERT),
    KIND(4, "ftypmif1", "a HEIF photo", CONVERT),
    KIND(4, "ftypmsf1", "a HEIF sequence", CONVERT),
    KIND(4, "ftypavif", "an AVIF photo", CONVERT),
    KIND(4, "ftypavis", "an AVIF sequence", CONVERT),
    KIND(4, "ftypcrx ", "a Canon CR3 raw photo", DEVELOP),
    KIND(4, "ftyp", "an MP4 or QuickTime video", EXTRACT),
    KIND(8, "CR\x02", "a Canon CR2 raw photo", DEVELOP),
    KIND(0, "IIRO", "an Olympus raw photo", DEVELOP),
    KIND(0, "IIU\0", "a Panasonic raw photo", DEVELOP),
    KIND(0, "FUJIFILMCCD-RAW", "a Fujifilm raw photo", DEVELOP),
    KIND(0, "II*\0", "a TIFF or raw photo", CONVERT),
    KIND(0, "MM\0*", "a TIFF or raw photo", CONVERT),
    KIND(0, "II+\0", "a BigTIFF", CONVERT),
    KIND(0, "MM\0+", "a BigTIFF", CONVERT),
    KIND(0, "\xff\x0a", "a JPEG XL photo", CONVERT),
    KIND(4, "JXL \r\n\x87\n", "a JPEG XL photo", CONVERT),
    KIND(4, "jP  \r\n\x87\n", "a JPEG 2000 photo", CONVERT),
    KIND(0, "\xff\x4f\xff\x51", "a JPEG 2000 photo", CONVERT),
    KIND(0, "%PDF", "a PDF document", EXTRACT),
    KIND(0, "BM", "a BMP picture", CONVERT),
    KIND(0, "8BPS", "a Photoshop document", CONVERT),
    KIND(0, "gimp xcf", "a GIMP document", CONVERT),
    KIND(0, "\0\0\1\0", "an icon", CONVERT),
    KIND(0, "\x76\x2f\x31\x01", "an OpenEXR picture", CONVERT),
    KIND(0, "#?RADIANCE", "a Radiance HDR picture", CONVERT),
    KIND(0, "qoif", "a QOI picture", CONVERT),
    KIND(0, "\x1a\x45\xdf\xa3", "a Matroska or WebM video", EXTRACT),
    KIND(8, "AVI ", "an AVI video", EXTRACT),
    KIND(8, "WAVE", "a WAV recording", REMOVE),
    KIND(0, "ID3", "an MP3 recording", REMOVE),
    KIND(0, "PK\3\4", "a ZIP archive or office document", EXTRACT),
    KIND(0, "7z\xbc\xaf\x27\x1c", "a 7z archive", EXTRACT),
    KIND(0, "Rar!", "a RAR archive", EXTRACT),
    KIND(0, "\x1f\x8b", "a gzip file", EXTRACT),
    KIND(0,
         "\x7f"
         "ELF",
         "a program", REMOVE),
    KIND(0, "SQLite format 3", "an SQLite database", REMOVE),
    KIND(0, "version https://git-lfs", "a Git LFS pointer, not the photo itself", DOWNLOAD),
};

/* "BM" and "\xff\x0a" are short; only this much evidence of text outweighs them. */
static bool is_text(const uint8_t *bytes, size_t n) {
    size_t bad = 0, look = n < 512 ? n : 512;
    for (size_t i = 0; i < look; i++) {
        if (bytes[i] < 0x20 && strchr("\t\n\r\f", bytes[i]) == NULL) {
            return false;
        }
        if (bytes[i] == 0) {
            return false;
        }
    }
    // a code point may be cut at the end of the look
    return l2c_utf8_valid((const char *)bytes, look, &bad) || (look < n && look - bad < 4);
}

static bool starts_ignoring_case(const uint8_t *bytes, size_t n, const char *lower) {
    size_t size = strlen(lower);
    if (n < size) {
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        uint8_t c = bytes[i];
        if ((c >= 'A' && c <= 'Z' ? c + 32 : c) != (uint8_t)lower[i]) {
            return false;
        }
    }
    return true;
}

static l2cdb_status fail_kind(l2cdb_error *err, const char *name, remedy what_to_do) {
    l2c_fail(err, L2CDB_E_UNSUPPORTED, "the file is %s, expected a JPEG, PNG or WebP photo", name);
    l2c_hint(err, "%s", remedies[what_to_do]);
    return L2CDB_E_UNSUPPORTED;
}

static l2cdb_status fail_text(const uint8_t *bytes, size_t n, l2cdb_error *err) {
    while (n > 0 && strchr(" \t\r\n", *bytes) != NULL) {
        bytes++;
        n--;
    }
    if (starts_ignoring_case(bytes, n, "<!doctype html") ||
        starts_ignoring_case(bytes, n, "<html") || starts_ignoring_case(bytes, n, "<head")) {
        return fail_kind(err, "an HTML page", DOWNLOAD);
    }
    if (starts_ignoring_case(bytes, n, "<svg")) {
        return fail_kind(err, "an SVG drawing", CONVERT);
    }
    if (starts_ignoring_case(bytes, n, "<?xml")) {
        return fail_kind(err, "an XML document or SVG drawing", CONVERT);
    }
    return fail_kind(err, "a text", DOWNLOAD);
}

/* Names a file that is no photo of ours, as well as its first bytes allow. */
static l2cdb_status fail_foreign(const uint8_t *bytes, size_t n, l2cdb_error *err) {
    if (n == 0) {
        l2c_fail(err, L2CDB_E_FORMAT, "the file is empty (0 bytes)");
        l2c_hint(err, "copy or download the photo again");
        return L2CDB_E_FORMAT;
    }
    bool text = is_text(bytes, n);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const kind *k = &kinds[i];
        if (starts(bytes, n, k->at, k->magic, k->size) && (!text || k->size > 2)) {
            return fail_kind(err, k->name, k->remedy);
        }
    }
    if (text) {
        return fail_text(bytes, n, err);
    }
    size_t zeros = 0;
    while (zeros < n && bytes[zeros] == 0) {
        zeros++;
    }
    if (zeros == n) {
        l2c_fail(err, L2CDB_E_FORMAT, "all %zu bytes of the file are zero", n);
        l2c_hint(err, "restore the photo from a backup or its card; a copy was cut off");
        return L2CDB_E_FORMAT;
    }
    char hex[25] = "";
    for (size_t i = 0; i < n && i < 8; i++) {
        snprintf(hex + 3 * i, sizeof hex - 3 * i, "%02x ", bytes[i]);
    }
    l2c_fail(err, L2CDB_E_UNSUPPORTED,
             "the file is of no known kind (it begins %s), expected a JPEG, PNG or WebP photo",
             hex);
    l2c_hint(err, "%s", remedies[REMOVE]);
    return L2CDB_E_UNSUPPORTED;
}

/* ---- Limits -------------------------------------------------------------------------------- */

static uint64_t thread_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

bool l2c_image_late(const l2c_image_job *job) {
    return thread_ns() > job->deadline_ns;
}

l2cdb_status l2c_image_fail_late(const l2c_image_job *job, const char *format, l2cdb_error *err) {
    l2c_fail(err, L2CDB_E_LIMIT, "%s: decoding takes more than %u ms of processor time", format,
             job->limits.decode_ms_max);
    l2c_hint(err, "save the photo again with an ordinary editor, or raise the time limit");
    return L2CDB_E_LIMIT;
}

l2cdb_status l2c_image_begin(l2c_image *out, const l2c_image_job *job, const char *format,
                             uint32_t width, uint32_t height, l2cdb_error *err) {
    if (width == 0 || height == 0) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: the picture is %ux%u pixels, expected at least 1x1", format, width,
                        height);
    }
    uint64_t pixels = (uint64_t)width * height;
    if (pixels > job->limits.pixels_max) {
        l2c_fail(err, L2CDB_E_LIMIT,
                 "%s: the picture is %ux%u pixels (%.4g megapixels), the limit is %.4g megapixels",
                 format, width, height, (double)pixels / 1e6, (double)job->limits.pixels_max / 1e6);
        l2c_hint(err, "scale the photo down, or raise the pixel limit");
        return L2CDB_E_LIMIT;
    }
    size_t count;
    if (!l2c_mul_size(&count, width, height) || (out->rgb = l2c_alloc(count, 3)) == NULL) {
        return l2c_fail_nomem(err, pixels * 3);
    }
    out->width = out->meta.width = width;
    out->height = out->meta.height = height;
    return L2CDB_OK;
}

static l2c_image_limits with_defaults(const l2c_image_limits *limits) {
    l2c_image_limits l = { 0 };
    if (limits != NULL) {
        l = *limits;
    }
    l.pixels_max = l.pixels_max != 0 ? l.pixels_max : PIXELS_MAX;
    l.scans_max = l.scans_max != 0 ? l.scans_max : SCANS_MAX;
    l.decode_ms_max = l.decode_ms_max != 0 ? l.decode_ms_max : DECODE_MS_MAX;
    l.bytes_max = l.bytes_max != 0 ? l.bytes_max : BYTES_MAX;
    return l;
}

/* ---- Pixels -------------------------------------------------------------------------------- */

void l2c_image_blend(uint8_t *rgb, const uint8_t *rgba, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint8_t alpha = rgba[4 * i + 3];
        rgb[3 * i] = l2c_image_on_white(rgba[4 * i], alpha);
        rgb[3 * i + 1] = l2c_image_on_white(rgba[4 * i + 1], alpha);
        rgb[3 * i + 2] = l2c_image_on_white(rgba[4 * i + 2], alpha);
    }
}

/* Pixel (x, y) of the upright picture is the stored one at first + x*right + y*down, in pixels. */
typedef struct walk {
    ptrdiff_t first, right, down;
} walk;

static walk walk_of(int orientation, ptrdiff_t w, ptrdiff_t h) {
    switch (orientation) {
    case 2: // mirrored
        return (walk){ w - 1, -1, w };
    case 3: // turned by 180°
        return (walk){ w * h - 1, -1, -w };
    case 4: // upside down and mirrored
        return (walk){ w * (h - 1), 1, -w };
    case 5: // columns are rows
        return (walk){ 0, w, 1 };
    case 6: // to be turned 90° clockwise
        return (walk){ w * (h - 1), -w, 1 };
    case 7:
        return (walk){ w * h - 1, -w, -1 };
    case 8: // to be turned 90° anticlockwise
        return (walk){ w - 1, w, -1 };
    default:
        return (walk){ 0, 1, w };
    }
}

/* Replaces the picture by its upright form, block by block so that turning stays in the cache. */
static l2cdb_status turn_upright(l2c_image *image, l2cdb_error *err) {
    const uint32_t block = 32;
    int orientation = image->meta.orientation;
    uint32_t w = image->width, h = image->height;
    uint32_t width = orientation >= 5 ? h : w, height = orientation >= 5 ? w : h;
    uint8_t *upright = l2c_alloc((size_t)w * h, 3);
    if (upright == NULL) {
        return l2c_fail_nomem(err, (uint64_t)w * h * 3);
    }
    walk step = walk_of(orientation, w, h);
    for (uint32_t top = 0; top < height; top += block) {
        uint32_t bottom = height - top < block ? height : top + block;
        for (uint32_t left = 0; left < width; left += block) {
            uint32_t right = width - left < block ? width : left + block;
            for (uint32_t y = top; y < bottom; y++) {
                uint8_t *to = upright + ((size_t)y * width + left) * 3;
                ptrdiff_t at = step.first + (ptrdiff_t)y * step.down + (ptrdiff_t)left * step.right;
                for (uint32_t x = left; x < right; x++, to += 3, at += step.right) {
                    memcpy(to, image->rgb + at * 3, 3);
                }
            }
        }
    }
    l2c_free(image->rgb);
    image->rgb = upright;
    image->width = width;
    image->height = height;
    return L2CDB_OK;
}

/* ---- Door ---------------------------------------------------------------------------------- */

static l2cdb_status decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err) {
    switch (out->meta.format) {
    case L2C_IMAGE_JPEG:
        return l2c_jpeg_decode(out, job, err);
    case L2C_IMAGE_PNG:
        return l2c_png_decode(out, job, err);
    case L2C_IMAGE_WEBP:
        return l2c_webp_decode(out, job, err);
    default:
        return fail_foreign(job->bytes, job->size, err);
    }
}

l2cdb_status l2c_image_decode(l2c_image *out, const uint8_t *bytes, size_t n, unsigned flags,
                              const l2c_image_limits *limits, l2cdb_error *err) {
    *out = (l2c_image){ .meta.orientation = 1, .meta.format = l2c_image_sniff(bytes, n) };
    l2c_image_job job = {
        .bytes = bytes, .size = n, .flags = flags, .limits = with_defaults(limits)
    };
    job.deadline_ns = thread_ns() + (uint64_t)job.limits.decode_ms_max * 1000000u;
    l2cdb_error scratch;
    err = err != NULL ? err : &scratch; // below, an error always has a place
    l2cdb_status rc;
    if (n > job.limits.bytes_max) {
        l2c_fail(err, L2CDB_E_LIMIT, "the file has %zu bytes, the limit is %llu", n,
                 (unsigned long long)job.limits.bytes_max);
        rc = l2c_hint(err, "save the photo in a smaller form, or raise the byte limit");
    } else {
        rc = decode(out, &job, err);
    }
    if (rc == L2CDB_OK && (flags & L2C_DECODE_UPRIGHT) != 0 && out->meta.orientation > 1) {
        rc = turn_upright(out, err);
    }
    if (rc != L2CDB_OK) {
        l2c_image_fini(out);
    }
    return rc;
}

void l2c_image_fini(l2c_image *image) {
    l2c_free(image->rgb);
    *image = (l2c_image){ 0 };
}

l2cdb_status l2c_image_thumbnail(l2c_buf *out, const l2c_image *image, uint32_t side,
                                 l2cdb_error *err) {
    uint32_t w = image->width, h = image->height;
    if (image->rgb == NULL || w == 0 || h == 0 || side == 0) {
        return l2c_fail(
            err, L2CDB_E_INVALID,
            "thumbnail: the picture is %ux%u pixels and the side %u, expected at least 1", w, h,
            side);
    }
    uint32_t shorter = w < h ? w : h, longer = w < h ? h : w;
    // never enlarged; a very long picture is bounded by its long side instead
    double scale = (double)side / shorter;
    double most = (double)side * THUMBNAIL_ASPECT_MAX / longer;
    scale = scale < most ? scale : most;
    scale = scale < 1 ? scale : 1;
    uint32_t width = (uint32_t)(w * scale + 0.5), height = (uint32_t)(h * scale + 0.5);
    width = width > 0 ? width : 1;
    height = height > 0 ? height : 1;
    l2c_pixels_window window = {
        .full_width = width, .full_height = height, .width = width, .height = height
    };
    uint8_t *rgb = l2c_alloc((size_t)width * height, 3);
    if (rgb == NULL) {
        return l2c_fail_nomem(err, (uint64_t)width * height * 3);
    }
    l2cdb_status rc = l2c_pixels_resize(rgb, &window, image->rgb, w, h, err);
    if (rc == L2CDB_OK) {
        rc = l2c_jpeg_encode(out, rgb, width, height, err);
    }
    l2c_free(rgb);
    return rc;
}
