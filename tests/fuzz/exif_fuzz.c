/* Any bytes as EXIF: what comes out is within the ranges that the door promises. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "encoders/image.h"
#include "engine/base/utf8.h"

/* EXIF lies within a photo: seeds are whole JPEGs, of which the structure is cut out. */
static const uint8_t *find(const uint8_t *data, size_t n, size_t *size) {
    for (size_t i = 0; i + 6 <= n && i < 64; i++) {
        if (memcmp(data + i, "Exif\0", 6) == 0) {
            *size = n - i;
            return data + i;
        }
    }
    *size = n;
    return data;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    size_t size;
    const uint8_t *exif = find(data, n, &size);
    l2c_image_meta meta = { .orientation = 1 };
    l2c_exif_read(&meta, exif, size);
    FUZZ_CHECK(meta.orientation >= 1 && meta.orientation <= 8);
    FUZZ_CHECK(meta.latitude >= -90 && meta.latitude <= 90);
    FUZZ_CHECK(meta.longitude >= -180 && meta.longitude <= 180);
    FUZZ_CHECK(memchr(meta.camera, 0, sizeof meta.camera) != NULL);
    FUZZ_CHECK(l2c_utf8_valid(meta.camera, strlen(meta.camera), NULL));
    FUZZ_CHECK(meta.taken_at[0] == 0 || strlen(meta.taken_at) >= 19);
    return 0;
}
