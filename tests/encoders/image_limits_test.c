/* Image bombs: refused by their headers, quickly, without the memory that they ask for. */
#include "tests/encoders/photos.h"

#include <time.h>

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static l2cdb_status decode_limited(const void *bytes, size_t n, const l2c_image_limits *limits,
                                   l2cdb_error *err) {
    l2c_image image;
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_image_decode(&image, bytes, n, L2C_DECODE_USER, limits, err);
    l2c_image_fini(&image);
    return rc;
}

static void check_refused(const void *bytes, size_t n, const l2c_image_limits *limits,
                          const char *says) {
    l2cdb_error err;
    double start = seconds();
    l2cdb_status rc = decode_limited(bytes, n, limits, &err);
    double took = seconds() - start;
    printf("%s (%.3f s)\n", err.message, took);
    assert_int_equal(rc, L2CDB_E_LIMIT);
    assert_non_null(strstr(err.message, says));
    assert_true(err.hint[0] != 0);
    assert_true(took < 1);
}

/* The offset of the first marker of this kind in a JPEG of the fixtures. */
static size_t marker_at(const l2c_buf *jpeg, uint8_t marker, size_t from) {
    for (size_t i = from; i + 1 < jpeg->size; i++) {
        if ((uint8_t)jpeg->data[i] == 0xff && (uint8_t)jpeg->data[i + 1] == marker) {
            return i;
        }
    }
    return jpeg->size;
}

/* Broken: the largest headers that the formats can write are believed. */
static void headers_of_giants_are_refused(void **state) {
    (void)state;
    for (int progressive = 0; progressive < 2; progressive++) {
        l2c_buf jpeg = photo_fixture(progressive ? "jpeg_progressive.jpg" : "jpeg_420.jpg");
        size_t frame = marker_at(&jpeg, progressive ? 0xc2 : 0xc0, 0);
        memset(jpeg.data + frame + 5, 0xff, 4);
        check_refused(jpeg.data, jpeg.size, NULL, "65535x65535");
        l2c_buf_fini(&jpeg);
    }
    l2c_buf png = photo_fixture("png_rgb.png");
    memcpy(png.data + 16, "\x7f\xff\xff\xff\x7f\xff\xff\xff", 8);
    uint32_t crc = photo_crc32(png.data + 12, 17);
    for (int i = 0; i < 4; i++) {
        png.data[29 + i] = (char)(crc >> (24 - 8 * i));
    }
    check_refused(png.data, png.size, NULL, "2147483647x2147483647");
    l2c_buf_fini(&png);

    // VP8X canvas of 16,384² with the fixture's frame in it
    static const uint8_t canvas[30] = "RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0";
    l2c_buf webp = photo_fixture("webp_animated.webp");
    memcpy(webp.data + 24, canvas + 24, 6);
    check_refused(webp.data, webp.size, NULL, "16384x16384");
    l2c_buf_fini(&webp);
}

/* A progressive JPEG whose last scan is there `times` more. */
static l2c_buf repaint(size_t times) {
    l2c_buf jpeg = photo_fixture("jpeg_progressive.jpg"), b;
    l2c_buf_init(&b);
    size_t last = 0, end = marker_at(&jpeg, 0xd9, 0);
    for (size_t at = marker_at(&jpeg, 0xda, 0); at < end; at = marker_at(&jpeg, 0xda, at + 1)) {
        last = at;
    }
    l2c_buf_append(&b, jpeg.data, end);
    for (size_t i = 0; i < times; i++) {
        l2c_buf_append(&b, jpeg.data + last, end - last);
    }
    l2c_buf_append(&b, jpeg.data + end, 2);
    l2c_buf_fini(&jpeg);
    return b;
}

/* Broken: a thousand scans are decoded, or an honest file of many scans is not. */
static void scans_are_counted(void **state) {
    (void)state;
    l2cdb_error err;
    l2c_buf few = repaint(100), many = repaint(1000);
    assert_ok(decode_limited(few.data, few.size, NULL, &err), &err);
    check_refused(many.data, many.size, NULL, "the limit is 500");
    l2c_image_limits limits = { .scans_max = 50 };
    check_refused(few.data, few.size, &limits, "the limit is 50");
    limits.scans_max = 2000;
    assert_ok(decode_limited(many.data, many.size, &limits, &err), &err);

    // the same with a picture of 90 megapixels: the scans are counted before any is painted
    size_t frame = marker_at(&many, 0xc2, 0);
    memcpy(many.data + frame + 5, "\x25\x1c\x25\x1c", 4);
    check_refused(many.data, many.size, NULL, "the limit is 500");
    l2c_buf_fini(&few);
    l2c_buf_fini(&many);
}

/* Broken: the time limit is not looked at in one of the decoders. */
static void time_is_limited(void **state) {
    (void)state;
    l2c_image_limits limits = { .decode_ms_max = 1 };
    enum { SIDE = 3000 };
    l2c_image image = { .rgb = malloc((size_t)SIDE * SIDE * 3), .width = SIDE, .height = SIDE };
    uint64_t seed = 3;
    for (size_t i = 0; i < (size_t)SIDE * SIDE * 3; i++) {
        image.rgb[i] = (uint8_t)photo_random(&seed);
    }
    l2c_buf jpeg;
    l2cdb_error err;
    l2c_buf_init(&jpeg);
    assert_ok(l2c_image_thumbnail(&jpeg, &image, SIDE, &err), &err);
    check_refused(jpeg.data, jpeg.size, &limits, "processor time");
    limits.decode_ms_max = 60000;
    assert_ok(decode_limited(jpeg.data, jpeg.size, &limits, &err), &err);
    l2c_buf_fini(&jpeg);
    free(image.rgb);
}

static void pixels_and_bytes_are_limited(void **state) {
    (void)state;
    static const char *const names[] = { "jpeg_420.jpg", "png_rgb.png", "webp_lossy.webp" };
    for (size_t i = 0; i < 3; i++) {
        l2c_buf b = photo_fixture(names[i]);
        l2c_image image = photo_decode(&b, 0);
        uint64_t pixels = (uint64_t)image.width * image.height;
        l2c_image_fini(&image);
        l2cdb_error err;
        l2c_image_limits limits = { .pixels_max = pixels, .bytes_max = b.size };
        assert_ok(decode_limited(b.data, b.size, &limits, &err), &err);
        limits.pixels_max = pixels - 1;
        check_refused(b.data, b.size, &limits, "megapixels");
        limits.pixels_max = 0;
        limits.bytes_max = b.size - 1;
        check_refused(b.data, b.size, &limits, "bytes");
        l2c_buf_fini(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_of_giants_are_refused),
        cmocka_unit_test(scans_are_counted),
        cmocka_unit_test(time_is_limited),
        cmocka_unit_test(pixels_and_bytes_are_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
