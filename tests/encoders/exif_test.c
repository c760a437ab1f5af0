/* EXIF: what is read, in both byte orders and from all three containers; what is ignored. */
#include "tests/encoders/photos.h"

#include <math.h>

#include "encoders/image.h"

/* ---- A TIFF structure by hand -------------------------------------------------------------- */

enum { ASCII = 2, SHORT = 3, LONG = 4, RATIONAL = 5 };

typedef struct field {
    uint16_t tag, type;
    uint32_t count;
    const char *text;    // ASCII
    uint32_t numbers[6]; // SHORT, LONG; pairs of a RATIONAL
} field;

typedef struct tiff {
    uint8_t bytes[4096];
    size_t size;
    bool big;
} tiff;

static void put(tiff *t, size_t at, uint32_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        size_t shift = 8 * (t->big ? bytes - 1 - i : i);
        t->bytes[at + i] = (uint8_t)(value >> shift);
    }
}

/* Writes a directory at t->size, its values behind it. */
static void directory(tiff *t, const field *fields, size_t count) {
    size_t at = t->size, data = at + 2 + 12 * count + 4;
    put(t, at, (uint32_t)count, 2);
    at += 2;
    for (size_t i = 0; i < count; i++, at += 12) {
        const field *f = &fields[i];
        put(t, at, f->tag, 2);
        put(t, at + 2, f->type, 2);
        uint32_t n = f->type == ASCII && f->count == 0 ? (uint32_t)strlen(f->text) + 1 : f->count;
        put(t, at + 4, n, 4);
        size_t unit = f->type == ASCII ? 1 : f->type == SHORT ? 2 : f->type == LONG ? 4 : 8;
        size_t bytes = unit * n, to = at + 8;
        if (bytes > 4) {
            put(t, at + 8, (uint32_t)data, 4);
            to = data;
            data += bytes + bytes % 2;
        }
        for (size_t k = 0; k < n; k++) {
            if (f->type == ASCII) {
                t->bytes[to + k] = (uint8_t)(k <= strlen(f->text) ? f->text[k] : 0);
            } else if (f->type == RATIONAL) {
                put(t, to + 8 * k, f->numbers[2 * k], 4);
                put(t, to + 8 * k + 4, f->numbers[2 * k + 1], 4);
            } else {
                put(t, to + unit * k, f->numbers[k], unit);
            }
        }
    }
    put(t, at, 0, 4); // no next directory
    t->size = data;
}

typedef struct fields {
    field main[4], exif[4], gps[4];
    size_t main_count, exif_count, gps_count;
} fields;

static tiff build(const fields *f, bool big) {
    tiff t = { .big = big };
    memcpy(t.bytes, big ? "MM" : "II", 2);
    put(&t, 2, 42, 2);
    put(&t, 4, 8, 4);
    t.size = 8;
    field top[8];
    size_t n = f->main_count, exif = 0, gps = 0;
    memcpy(top, f->main, sizeof f->main);
    exif = n;
    top[n++] = (field){ .tag = 0x8769, .type = LONG, .count = 1 };
    gps = n;
    top[n++] = (field){ .tag = 0x8825, .type = LONG, .count = 1 };
    directory(&t, top, n);
    put(&t, 8 + 2 + 12 * exif + 8, (uint32_t)t.size, 4);
    directory(&t, f->exif, f->exif_count);
    put(&t, 8 + 2 + 12 * gps + 8, (uint32_t)t.size, 4);
    directory(&t, f->gps, f->gps_count);
    return t;
}

static const fields good = {
    .main = { { 0x010f, ASCII, 0, "FUJIFILM  ", { 0 } },
              { 0x0110, ASCII, 0, "X100V", { 0 } },
              { 0x0112, SHORT, 1, NULL, { 6 } } },
    .main_count = 3,
    .exif = { { 0x9003, ASCII, 0, "2023:05:01 12:34:56", { 0 } },
              { 0x9011, ASCII, 0, "+02:00", { 0 } } },
    .exif_count = 2,
    .gps = { { 1, ASCII, 0, "S", { 0 } },
             { 2, RATIONAL, 3, NULL, { 33, 1, 51, 1, 3540, 100 } },
             { 3, ASCII, 0, "E", { 0 } },
             { 4, RATIONAL, 3, NULL, { 151, 1, 12, 1, 36, 1 } } },
    .gps_count = 4,
};

static l2c_image_meta read_meta(const uint8_t *bytes, size_t n) {
    l2c_image_meta meta = { .orientation = 1 };
    l2c_exif_read(&meta, bytes, n);
    return meta;
}

static l2c_image_meta read_fields(const fields *f) {
    tiff t = build(f, false);
    return read_meta(t.bytes, t.size);
}

static void check_good(const l2c_image_meta *meta) {
    assert_int_equal(meta->orientation, 6);
    assert_string_equal(meta->taken_at, "2023-05-01T12:34:56+02:00");
    assert_string_equal(meta->camera, "FUJIFILM X100V");
    assert_true(meta->has_gps);
    assert_true(fabs(meta->latitude + 33.8598333333) < 1e-9);
    assert_true(fabs(meta->longitude - 151.21) < 1e-9);
}

/* ---- Reading ------------------------------------------------------------------------------- */

static void both_byte_orders_are_read(void **state) {
    (void)state;
    for (int big = 0; big < 2; big++) {
        tiff t = build(&good, big != 0);
        l2c_image_meta meta = read_meta(t.bytes, t.size);
        check_good(&meta);
        uint8_t with_prefix[sizeof t.bytes + 6] = "Exif\0";
        memcpy(with_prefix + 6, t.bytes, t.size);
        meta = read_meta(with_prefix, t.size + 6);
        check_good(&meta);
    }
}

static void cameras_are_named_once(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        { "Canon", "Canon EOS 5D", "Canon EOS 5D" },
        { "NIKON CORPORATION", "NIKON D750", "NIKON D750" },
        { "Google", "Pixel 7", "Google Pixel 7" },
        { "Apple", "", "Apple" },
        { "", "EOS 5D", "EOS 5D" },
        { "SONY", "sony ILCE-7", "sony ILCE-7" },
        { " \t", " ", "" },
        { "Zei\xc3\x9f", "Ikon", "Zei\xc3\x9f Ikon" },
        { "B\xff\x01"
          "ad",
          "One", "B ad One" },
        { "A very long name of a maker that goes on and on beyond all reason", "M",
          "A very long name of a maker that goes on and on M" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fields f = good;
        f.main[0].text = cases[i][0];
        f.main[1].text = cases[i][1];
        l2c_image_meta meta = read_fields(&f);
        assert_string_equal(meta.camera, cases[i][2]);
    }
}

static void moments_are_of_the_calendar(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        { "2024:02:29 23:59:60", "Z", "2024-02-29T23:59:60Z" },
        { "2024-02-29T00:00:00", "+2", "2024-02-29T00:00:00" },
        { "2023:02:29 12:00:00", "", "" },
        { "0000:00:00 00:00:00", "", "" },
        { "2023:13:01 12:00:00", "", "" },
        { "2023:05:01 24:00:00", "", "" },
        { "2023:05:01 12:34", "", "" },
        { "    :  :     :  :  ", "", "" },
        { "2023:05:01 12:34:5x", "", "" },
        { "2023:05:01 12:34:56", "+25:00", "2023-05-01T12:34:56" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fields f = good;
        f.exif[0].text = cases[i][0];
        f.exif[1].text = cases[i][1];
        l2c_image_meta meta = read_fields(&f);
        assert_string_equal(meta.taken_at, cases[i][2]);
    }
    fields f = good;
    f.exif[0].tag = 0x9004; // digitised only
    f.exif_count = 1;
    l2c_image_meta meta = read_fields(&f);
    assert_string_equal(meta.taken_at, "2023-05-01T12:34:56");
}

/* Broken: a field of wrong type, count or range is believed, or takes the others with it. */
static void bad_values_cost_only_themselves(void **state) {
    (void)state;
    fields f = good;
    f.main[2].numbers[0] = 9;
    l2c_image_meta meta = read_fields(&f);
    assert_int_equal(meta.orientation, 1);
    assert_string_equal(meta.camera, "FUJIFILM X100V");

    f = good;
    f.main[2] = (field){ 0x0112, ASCII, 0, "6", { 0 } };
    assert_int_equal(read_fields(&f).orientation, 1);

    f = good;
    f.gps[1].numbers[0] = 91;
    meta = read_fields(&f);
    assert_false(meta.has_gps);
    assert_true(meta.latitude == 0 && meta.longitude == 0);
    assert_int_equal(meta.orientation, 6);

    f = good;
    f.gps[3].numbers[1] = 0;
    assert_false(read_fields(&f).has_gps);

    f = good; // seconds left out as 0/0
    f.gps[3].numbers[4] = f.gps[3].numbers[5] = 0;
    meta = read_fields(&f);
    assert_true(meta.has_gps && fabs(meta.longitude - 151.2) < 1e-9);

    f = good;
    f.gps[0].text = "X";
    assert_false(read_fields(&f).has_gps);

    f = good;
    f.gps[1].count = 2;
    assert_false(read_fields(&f).has_gps);

    f = good;
    f.gps_count = 2;
    assert_false(read_fields(&f).has_gps);
}

/* ---- Containers ---------------------------------------------------------------------------- */

static void append_be32(l2c_buf *b, uint32_t v) {
    uint8_t bytes[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };
    l2c_buf_append(b, bytes, 4);
}

static void append_le32(l2c_buf *b, uint32_t v) {
    uint8_t bytes[4] = { (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24) };
    l2c_buf_append(b, bytes, 4);
}

static void append_png_chunk(l2c_buf *b, const char *name, const void *data, size_t n) {
    append_be32(b, (uint32_t)n);
    size_t start = b->size;
    l2c_buf_append(b, name, 4);
    l2c_buf_append(b, data, n);
    append_be32(b, photo_crc32(b->data + start, n + 4));
}

static l2c_buf png_with(const tiff *t, bool after_pixels) {
    l2c_buf png = photo_fixture("png_rgb.png"), b;
    l2c_buf_init(&b);
    size_t at = after_pixels ? png.size - 12 : 33; // before IEND, or after IHDR
    l2c_buf_append(&b, png.data, at);
    append_png_chunk(&b, "eXIf", t->bytes, t->size);
    l2c_buf_append(&b, png.data + at, png.size - at);
    l2c_buf_fini(&png);
    return b;
}

static l2c_buf webp_with(const tiff *t) {
    l2c_buf webp = photo_fixture("webp_lossy.webp"), b;
    l2c_buf_init(&b);
    l2c_image image = photo_decode(&webp, 0);
    size_t exif = t->size + t->size % 2;
    l2c_buf_append(&b, "RIFF", 4);
    append_le32(&b, (uint32_t)(4 + 18 + (webp.size - 12) + 8 + exif));
    l2c_buf_append(&b, "WEBPVP8X", 8);
    append_le32(&b, 10);
    append_le32(&b, 8); // EXIF follows
    uint32_t w = image.width - 1, h = image.height - 1;
    uint8_t size[6] = { (uint8_t)w, (uint8_t)(w >> 8), 0, (uint8_t)h, (uint8_t)(h >> 8), 0 };
    l2c_buf_append(&b, size, 6);
    l2c_buf_append(&b, webp.data + 12, webp.size - 12);
    l2c_buf_append(&b, "EXIF", 4);
    append_le32(&b, (uint32_t)t->size);
    l2c_buf_append(&b, t->bytes, exif);
    l2c_image_fini(&image);
    l2c_buf_fini(&webp);
    return b;
}

static l2c_buf jpeg_with(const tiff *t) {
    l2c_buf jpeg = photo_fixture("jpeg_420.jpg"), b;
    l2c_buf_init(&b);
    l2c_buf_append(&b, jpeg.data, 2);
    // an APP1 of another kind first: XMP, as many cameras write it
    l2c_buf_append(&b, "\xff\xe1\x00\x08http:/", 10);
    uint8_t head[4] = { 0xff, 0xe1, (uint8_t)((t->size + 8) >> 8), (uint8_t)(t->size + 8) };
    l2c_buf_append(&b, head, 4);
    l2c_buf_append(&b, "Exif\0", 6);
    l2c_buf_append(&b, t->bytes, t->size);
    l2c_buf_append(&b, jpeg.data + 2, jpeg.size - 2);
    l2c_buf_fini(&jpeg);
    return b;
}

/* Broken: EXIF of one of the containers is not found, or the picture is not turned by it. */
static void every_container_carries_it(void **state) {
    (void)state;
    tiff t = build(&good, true);
    l2c_buf files[] = { jpeg_with(&t), png_with(&t, false), png_with(&t, true), webp_with(&t) };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        l2c_image image = photo_decode(&files[i], L2C_DECODE_UPRIGHT);
        check_good(&image.meta);
        assert_int_equal(image.width, image.meta.height);
        assert_int_equal(image.height, image.meta.width);
        l2c_image_fini(&image);
        l2c_buf_fini(&files[i]);
    }
}

/* Broken: hostile bytes crash, hang or read outside (the sanitizer build sees it), or a value out
 * of range comes through. */
static void hostile_bytes_do_no_harm(void **state) {
    (void)state;
    uint64_t seed = 42;
    for (int round = 0; round < 20000; round++) {
        tiff t = build(&good, round % 2 != 0);
        size_t n = t.size;
        int changes = 1 + (int)(photo_random(&seed) % 4);
        for (int c = 0; c < changes; c++) {
            t.bytes[photo_random(&seed) % n] = (uint8_t)photo_random(&seed);
        }
        if (round % 5 == 0) {
            n = photo_random(&seed) % n;
        }
        uint8_t *exact = malloc(n > 0 ? n : 1);
        memcpy(exact, t.bytes, n);
        l2c_image_meta meta = read_meta(exact, n);
        free(exact);
        assert_in_range(meta.orientation, 1, 8);
        assert_true(fabs(meta.latitude) <= 90 && fabs(meta.longitude) <= 180);
        assert_true(strlen(meta.camera) < sizeof meta.camera);
        assert_true(strlen(meta.taken_at) < sizeof meta.taken_at);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_byte_orders_are_read),
        cmocka_unit_test(cameras_are_named_once),
        cmocka_unit_test(moments_are_of_the_calendar),
        cmocka_unit_test(bad_values_cost_only_themselves),
        cmocka_unit_test(every_container_carries_it),
        cmocka_unit_test(hostile_bytes_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
