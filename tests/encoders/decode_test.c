/* Photos of every form to RGB8, against Pillow; broken and foreign files. */
#include "tests/encoders/photos.h"

#include "encoders/pixels.h"

/* ---- Good files ---------------------------------------------------------------------------- */

static void check_pixels(const char *file, unsigned flags, const char *golden) {
    l2c_buf b = photo_fixture(file);
    l2c_image image = photo_decode(&b, flags);
    test_npy expected = photo_golden(golden);
    assert_int_equal(image.height, expected.shape[0]);
    assert_int_equal(image.width, expected.shape[1]);
    if (memcmp(image.rgb, expected.data, expected.count) != 0) {
        size_t at = 0;
        while (image.rgb[at] == ((const uint8_t *)expected.data)[at]) {
            at++;
        }
        fail_msg("%s differs from %s at byte %zu: %d, expected %d", file, golden, at, image.rgb[at],
                 ((const uint8_t *)expected.data)[at]);
    }
    free(expected.data);
    l2c_image_fini(&image);
    l2c_buf_fini(&b);
}

/* Broken: a colour form, a subsampling or an orientation is decoded otherwise than by Pillow. */
static void fixtures_equal_pillow(void **state) {
    (void)state;
    json_t *root = photo_list(), *item;
    size_t i, decoded = 0, upright = 0;
    json_array_foreach(json_object_get(root, "images"), i, item) {
        const char *file = photo_string(item, "file");
        l2c_buf b = photo_fixture(file);
        l2c_image image = photo_decode(&b, 0);
        json_t *size = json_object_get(item, "size"), *turn = json_object_get(item, "orientation");
        assert_int_equal(image.meta.width, json_integer_value(json_array_get(size, 0)));
        assert_int_equal(image.meta.height, json_integer_value(json_array_get(size, 1)));
        assert_int_equal(image.meta.orientation, turn != NULL ? json_integer_value(turn) : 1);
        l2c_image_fini(&image);
        l2c_buf_fini(&b);
        if (photo_string(item, "decoded") != NULL) {
            check_pixels(file, 0, photo_string(item, "decoded"));
            decoded++;
        }
        if (photo_string(item, "upright") != NULL) {
            check_pixels(file, L2C_DECODE_UPRIGHT, photo_string(item, "upright"));
            upright++;
        }
    }
    printf("%zu decoded and %zu upright pictures equal\n", decoded, upright);
    assert_true(decoded >= 20);
    assert_int_equal(upright, 8);
    json_decref(root);
}

/* Broken: photographs of real cameras differ from Pillow, whole or resized to 224. */
static void photos_equal_pillow(void **state) {
    (void)state;
    FILE *list = fopen(test_source("tests/encoders/coco_open_pixels.txt"), "r");
    assert_non_null(list);
    char line[256], name[64];
    unsigned width, height, crc, crop_crc, count = 0;
    l2c_pixels_config c;
    l2c_pixels_config_init(&c, 224);
    static uint8_t crop[224 * 224 * 3];
    while (fgets(line, sizeof line, list) != NULL) {
        if (line[0] == '#') {
            continue;
        }
        assert_int_equal(sscanf(line, "%63s %u %u %x %x", name, &width, &height, &crc, &crop_crc),
                         5);
        char relative[128];
        snprintf(relative, sizeof relative, "data/coco-open/images/%s", name);
        l2c_buf b = photo_read(test_shared(relative));
        l2c_image image = photo_decode(&b, 0);
        l2cdb_error err;
        assert_int_equal(image.width, width);
        assert_int_equal(image.height, height);
        if (photo_crc32(image.rgb, (size_t)width * height * 3) != crc) {
            fail_msg("%s: decoded pixels differ", name);
        }
        l2c_pixels_window w = l2c_pixels_window_of(&c, width, height);
        assert_ok(l2c_pixels_resize(crop, &w, image.rgb, width, height, &err), &err);
        if (photo_crc32(crop, sizeof crop) != crop_crc) {
            fail_msg("%s: resized pixels differ", name);
        }
        l2c_image_fini(&image);
        l2c_buf_fini(&b);
        count++;
    }
    fclose(list);
    printf("%u photos equal\n", count);
    assert_true(count > 100);
}

/* ---- Bad files ----------------------------------------------------------------------------- */

static l2cdb_status decode_bytes(const void *bytes, size_t n, l2cdb_error *err) {
    l2c_image image;
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_image_decode(&image, bytes, n, L2C_DECODE_USER, NULL, err);
    if (rc != L2CDB_OK) {
        assert_null(image.rgb);
        assert_int_equal(image.width, 0);
        assert_int_equal(err->code, rc);
        assert_true(err->message[0] != 0);
    }
    l2c_image_fini(&image);
    return rc;
}

/* Broken: a damaged file passes, or its message says nothing. */
static void broken_fixtures_are_refused(void **state) {
    (void)state;
    FILE *list = fopen(test_shared("fixtures/llm2clip/broken/manifest.jsonl"), "r");
    assert_non_null(list);
    static char line[65536];
    size_t count = 0;
    while (fgets(line, sizeof line, list) != NULL) {
        json_t *item;
        l2cdb_error err;
        assert_ok(l2c_json_parse(&item, line, strlen(line), "manifest", &err), &err);
        if (strcmp(photo_string(item, "kind"), "image") == 0) {
            char relative[256];
            snprintf(relative, sizeof relative, "fixtures/llm2clip/broken/%s",
                     photo_string(item, "path"));
            l2c_buf b = photo_read(test_shared(relative));
            l2cdb_status rc = decode_bytes(b.data, b.size, &err);
            bool refuse = strcmp(photo_string(item, "must"), "refuse") == 0;
            printf("%-22s %s: %s\n", photo_string(item, "path"), l2cdb_status_name(rc),
                   err.message);
            assert_true((rc != L2CDB_OK) == refuse);
            assert_true(rc != L2CDB_E_NOMEM && rc != L2CDB_E_INTERNAL);
            if (refuse) {
                assert_true(err.hint[0] != 0);
            }
            l2c_buf_fini(&b);
            count++;
        }
        json_decref(item);
    }
    fclose(list);
    assert_true(count >= 16);
}

static void foreign_files_are_named(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        const char *said;
        l2cdb_status rc;
    } cases[] = {
        { "", 0, "empty", L2CDB_E_FORMAT },
        { "GIF89a\1\0\1\0", 10, "GIF", L2CDB_E_UNSUPPORTED },
        { "\0\0\0\x18"
          "ftypheic\0\0\0\0",
          16, "HEIC", L2CDB_E_UNSUPPORTED },
        { "\0\0\0\x18"
          "ftypavif\0\0\0\0",
          16, "AVIF", L2CDB_E_UNSUPPORTED },
        { "\0\0\0\x18"
          "ftypmp42\0\0\0\0",
          16, "MP4", L2CDB_E_UNSUPPORTED },
        { "II*\0\x08\0\0\0", 8, "TIFF", L2CDB_E_UNSUPPORTED },
        { "II*\0\x10\0\0\0CR\x02\0", 12, "CR2", L2CDB_E_UNSUPPORTED },
        { "%PDF-1.7\n", 9, "PDF", L2CDB_E_UNSUPPORTED },
        { "BM\x36\0\0\0\0\0", 8, "BMP", L2CDB_E_UNSUPPORTED },
        { "BMW was here", 12, "a text", L2CDB_E_UNSUPPORTED },
        { "Dear diary, stra\xc3\x9f"
          "e",
          19, "a text", L2CDB_E_UNSUPPORTED },
        { "\n <!DOCTYPE HTML><p>404", 23, "HTML", L2CDB_E_UNSUPPORTED },
        { "<svg xmlns=", 11, "SVG", L2CDB_E_UNSUPPORTED },
        { "version https://git-lfs.github.com/spec/v1\n", 43, "Git LFS", L2CDB_E_UNSUPPORTED },
        { "\x89PNG\n\x1a\n\0\0\0", 9, "text-mode", L2CDB_E_UNSUPPORTED },
        { "\0\0\0\0\0\0\0\0\0\0", 10, "zero", L2CDB_E_FORMAT },
        { "\xde\xad\xbe\xef\1\2", 6, "de ad be ef 01 02", L2CDB_E_UNSUPPORTED },
        { "\xff\xd8", 2, "ff d8", L2CDB_E_UNSUPPORTED },
        { "RIFF\4\0\0\0AVI ", 12, "AVI", L2CDB_E_UNSUPPORTED },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        l2cdb_error err;
        l2cdb_status rc = decode_bytes(cases[i].bytes, cases[i].size, &err);
        if (rc != cases[i].rc || strstr(err.message, cases[i].said) == NULL || err.hint[0] == 0) {
            fail_msg("case %zu: %s: %s (%s)", i, l2cdb_status_name(rc), err.message, err.hint);
        }
    }
    l2c_image image;
    assert_int_equal(l2c_image_decode(&image, (const uint8_t *)"GIF89a", 6, 0, NULL, NULL),
                     L2CDB_E_UNSUPPORTED); // no place for the error
}

/* Broken: a file that was cut off passes for whole. Only what follows the last pixel may be lost:
 * the end marker of a sequential JPEG, the tail of a PNG. */
static void cut_files_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t tail_max; // bytes at the end whose loss takes no pixel
        const char *says;
    } cases[] = {
        { "jpeg_420.jpg", 2, "near row" },        { "jpeg_restart.jpg", 2, "near row" },
        { "jpeg_grey.jpg", 2, "near row" },       { "jpeg_cmyk.jpg", 2, "near row" },
        { "jpeg_progressive.jpg", 0, "in scan" }, { "png_rgb.png", 32, "near row" },
        { "png_adam7.png", 32, "near row" },      { "webp_lossy.webp", 0, "promises" },
        { "webp_lossless.webp", 0, "promises" },  { "webp_alpha.webp", 0, "promises" },
        { "webp_animated.webp", 0, "promises" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        l2c_buf b = photo_fixture(cases[i].name);
        bool said = false;
        for (size_t n = 0; n < b.size; n++) {
            // an exact allocation, so that the sanitizer build sees a read past the end
            uint8_t *part = malloc(n > 0 ? n : 1);
            memcpy(part, b.data, n);
            l2cdb_error err;
            l2cdb_status rc = decode_bytes(part, n, &err);
            free(part);
            if (rc == L2CDB_OK ? n + cases[i].tail_max < b.size
                               : rc != L2CDB_E_FORMAT && rc != L2CDB_E_UNSUPPORTED) {
                fail_msg("%s cut to %zu of %zu bytes: %s %s", cases[i].name, n, b.size,
                         l2cdb_status_name(rc), err.message);
            }
            said = said || strstr(err.message, cases[i].says) != NULL;
        }
        if (!said) {
            fail_msg("%s: no message says \"%s\"", cases[i].name, cases[i].says);
        }
        l2c_buf_fini(&b);
    }
}

/* Broken: memory that runs out in the middle crashes or leaks. libjpeg and libwebp allocate by
 * themselves; what is ours and libpng's goes through l2c_alloc. */
static void every_allocation_may_fail(void **state) {
    (void)state;
    static const char *const names[] = { "exif_6.jpg", "jpeg_cmyk.jpg", "png_adam7.png",
                                         "png_rgba.png", "webp_alpha.webp" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        l2c_buf b = photo_fixture(names[i]);
        size_t failed = 0, n = 1;
        for (; n < 1000; n++) {
            l2c_image image;
            l2cdb_error err;
            l2c_alloc_fail_at(n);
            l2cdb_status rc = l2c_image_decode(&image, (const uint8_t *)b.data, b.size,
                                               L2C_DECODE_USER, NULL, &err);
            l2c_alloc_fail_at(0);
            if (rc != L2CDB_OK && rc != L2CDB_E_NOMEM) {
                fail_msg("%s, allocation %zu: %s", names[i], n, err.message);
            }
            failed += rc != L2CDB_OK;
            l2c_image_fini(&image);
            // EXIF that meets the failure is given up, the photo is not: look some further
            if (rc == L2CDB_OK && n > failed + 60) {
                break;
            }
        }
        assert_true(failed > 0);
        l2c_buf_fini(&b);
    }
}

/* ---- Thumbnails ---------------------------------------------------------------------------- */

static void check_thumbnail(uint32_t width, uint32_t height, uint32_t side, uint32_t expected_w,
                            uint32_t expected_h) {
    l2c_image image = { .rgb = malloc((size_t)width * height * 3),
                        .width = width,
                        .height = height };
    for (size_t y = 0; y < height; y++) {
        for (size_t x = 0; x < width; x++) {
            uint8_t *p = image.rgb + (y * width + x) * 3;
            p[0] = (uint8_t)(x * 255 / width);
            p[1] = (uint8_t)(y * 255 / height);
            p[2] = 90;
        }
    }
    l2c_buf jpeg;
    l2cdb_error err;
    l2c_buf_init(&jpeg);
    l2c_buf_puts(&jpeg, "keep");
    assert_ok(l2c_image_thumbnail(&jpeg, &image, side, &err), &err);
    assert_memory_equal(jpeg.data, "keep", 4);
    l2c_image small;
    assert_ok(
        l2c_image_decode(&small, (const uint8_t *)jpeg.data + 4, jpeg.size - 4, 0, NULL, &err),
        &err);
    assert_int_equal(small.width, expected_w);
    assert_int_equal(small.height, expected_h);
    for (size_t y = 0; y < small.height; y++) {
        for (size_t x = 0; x < small.width; x++) {
            const uint8_t *p = small.rgb + (y * small.width + x) * 3;
            assert_in_range(p[0] + 16, (2 * x + 1) * 255 / (2 * small.width) + 4,
                            (2 * x + 1) * 255 / (2 * small.width) + 28);
            assert_in_range(p[1] + 16, (2 * y + 1) * 255 / (2 * small.height) + 4,
                            (2 * y + 1) * 255 / (2 * small.height) + 28);
        }
    }
    l2c_image_fini(&small);
    l2c_buf_fini(&jpeg);
    free(image.rgb);
}

/* Broken: a thumbnail shows another part, is enlarged, or replaces what the buffer held. */
static void thumbnails_show_the_photo(void **state) {
    (void)state;
    check_thumbnail(640, 480, 120, 160, 120);
    check_thumbnail(480, 640, 120, 120, 160);
    check_thumbnail(64, 48, 120, 64, 48);
    check_thumbnail(40000, 50, 50, 800, 1);
    l2c_image none = { 0 };
    l2c_buf jpeg;
    l2cdb_error err;
    l2c_buf_init(&jpeg);
    assert_int_equal(l2c_image_thumbnail(&jpeg, &none, 100, &err), L2CDB_E_INVALID);
    l2c_buf_fini(&jpeg);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixtures_equal_pillow),       cmocka_unit_test(photos_equal_pillow),
        cmocka_unit_test(broken_fixtures_are_refused), cmocka_unit_test(foreign_files_are_named),
        cmocka_unit_test(cut_files_are_refused),       cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(thumbnails_show_the_photo),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
