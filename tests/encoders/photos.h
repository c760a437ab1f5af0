/* What the tests of photos share: files, checksums, and the picture list of the fixtures. */
#ifndef L2C_TEST_PHOTOS_H
#define L2C_TEST_PHOTOS_H

#include "tests/test.h"

#include "encoders/encoders.h"
#include "engine/base/file.h"
#include "engine/base/json.h"

/* The whole file; freed with l2c_buf_fini. */
static inline l2c_buf photo_read(const char *path) {
    l2c_buf b;
    l2cdb_error err;
    l2c_buf_init(&b);
    assert_ok(l2c_file_read(&b, path, (size_t)1 << 30, &err), &err);
    return b;
}

/* A file of fixtures/llm2clip/preprocess. */
static inline l2c_buf photo_fixture(const char *name) {
    char relative[256];
    snprintf(relative, sizeof relative, "fixtures/llm2clip/preprocess/%s", name);
    return photo_read(test_shared(relative));
}

static inline test_npy photo_golden(const char *name) {
    char relative[256];
    snprintf(relative, sizeof relative, "fixtures/llm2clip/preprocess/%s", name);
    return test_npy_load(test_shared(relative));
}

static inline l2c_image photo_decode(const l2c_buf *b, unsigned flags) {
    l2c_image image;
    l2cdb_error err;
    assert_ok(l2c_image_decode(&image, (const uint8_t *)b->data, b->size, flags, NULL, &err), &err);
    return image;
}

/* golden.json of the pictures; released with json_decref. */
static inline json_t *photo_list(void) {
    json_t *root;
    l2cdb_error err;
    assert_ok(l2c_json_read(&root, test_shared("fixtures/llm2clip/preprocess/golden.json"),
                            (size_t)1 << 24, &err),
              &err);
    return root;
}

static inline const char *photo_string(const json_t *o, const char *key) {
    return json_string_value(json_object_get(o, key));
}

/* CRC-32 of PNG and zlib, so that goldens come from any tool and PNG chunks can be built. */
static inline uint32_t photo_crc32(const void *data, size_t n) {
    const uint8_t *p = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/* A reproducible stream of bytes (splitmix64). */
static inline uint64_t photo_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
