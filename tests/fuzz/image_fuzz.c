/* Any bytes as a photo: decoded with limits, turned, reduced to a thumbnail and to a tower's input.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "encoders/encoders.h"
#include "encoders/pixels.h"

#define PIXELS_MAX 1000000u
#define SIDE 24

static void check_resize(const l2c_image *image) {
    static uint8_t plain[SIDE * SIDE * 3], fast[SIDE * SIDE * 3];
    l2c_pixels_config c;
    l2c_pixels_config_init(&c, SIDE);
    l2c_pixels_window w = l2c_pixels_window_of(&c, image->width, image->height);
    FUZZ_CHECK(l2c_pixels_resize_with(L2C_PIXELS_PLAIN, plain, &w, image->rgb, image->width,
                                      image->height, NULL) == L2CDB_OK);
    FUZZ_CHECK(l2c_pixels_resize(fast, &w, image->rgb, image->width, image->height, NULL) ==
               L2CDB_OK);
    FUZZ_CHECK(memcmp(plain, fast, sizeof plain) == 0);
}

static void check_thumbnail(const l2c_image *image) {
    l2c_buf jpeg;
    l2c_buf_init(&jpeg);
    FUZZ_CHECK(l2c_image_thumbnail(&jpeg, image, SIDE, NULL) == L2CDB_OK);
    FUZZ_CHECK(l2c_image_sniff((const uint8_t *)jpeg.data, jpeg.size) == L2C_IMAGE_JPEG);
    l2c_buf_fini(&jpeg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    l2c_image_limits limits = { .pixels_max = PIXELS_MAX, .scans_max = 20, .decode_ms_max = 2000 };
    l2c_image image;
    l2cdb_error err;
    l2cdb_status rc = l2c_image_decode(&image, data, n, (unsigned)n & 7, &limits, &err);
    if (rc != L2CDB_OK) {
        FUZZ_CHECK(image.rgb == NULL && err.message[0] != 0 && err.code == rc);
        FUZZ_CHECK(rc == L2CDB_E_FORMAT || rc == L2CDB_E_UNSUPPORTED || rc == L2CDB_E_LIMIT);
        return 0;
    }
    FUZZ_CHECK(image.rgb != NULL && image.width > 0 && image.height > 0);
    FUZZ_CHECK((uint64_t)image.width * image.height <= PIXELS_MAX);
    FUZZ_CHECK(image.meta.orientation >= 1 && image.meta.orientation <= 8);
    check_resize(&image);
    check_thumbnail(&image);
    l2c_image_fini(&image);
    return 0;
}
