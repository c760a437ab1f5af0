/* engine/base: sizes that overflow, errors that keep their text, files that survive, conversions
 * that are exact. */
#include "tests/test.h"

#include <math.h>
#include <unistd.h>

#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/base/json.h"
#include "engine/base/mem.h"
#include "engine/base/pool.h"
#include "engine/base/utf8.h"
#include "engine/base/vec.h"

/* Broken: a product of sizes wraps and a small block is written past its end. */
static void sizes_are_checked(void **state) {
    (void)state;
    size_t out;
    assert_false(l2c_mul_size(&out, SIZE_MAX / 2, 3));
    assert_true(l2c_mul_size(&out, 3, 5));
    assert_int_equal(out, 15);
    assert_null(l2c_alloc(SIZE_MAX / 2, 3));
    l2c_alloc_fail_at(2);
    void *a = l2c_alloc(1, 1);
    assert_non_null(a);
    assert_null(l2c_alloc(1, 1));
    void *b = l2c_alloc(1, 1);
    assert_non_null(b);
    l2c_free(a);
    l2c_free(b);
}

/* Broken: an error loses its cause, or a cut message ends inside a character. */
static void errors_keep_their_text(void **state) {
    (void)state;
    l2cdb_error e;
    assert_int_equal(l2c_fail(&e, L2CDB_E_FORMAT, "row %d", 3), L2CDB_E_FORMAT);
    l2c_context(&e, "file %s", "x");
    assert_string_equal(e.message, "file x: row 3");
    l2c_hint(&e, "try %s", "y");
    assert_string_equal(e.hint, "try y");
    char longer[L2CDB_ERROR_MESSAGE_BYTES * 2];
    memset(longer, 0, sizeof longer);
    for (size_t i = 0; i + 3 < sizeof longer; i += 3) {
        memcpy(longer + i, "\xE2\x82\xAC", 3);
    }
    l2c_fail(&e, L2CDB_E_IO, "a%s", longer);
    assert_true(l2c_utf8_valid(e.message, strlen(e.message), NULL));
    assert_int_equal(l2c_fail(NULL, L2CDB_E_IO, "x"), L2CDB_E_IO);
}

/* Broken: arena memory overlaps, is misaligned or is not reused after reset. */
static void arena_gives_and_takes_back(void **state) {
    (void)state;
    l2c_arena a;
    l2c_arena_init(&a, 4096);
    for (int round = 0; round < 3; round++) {
        l2c_arena_mark outer = l2c_arena_get_mark(&a);
        char *p = l2c_arena_alloc(&a, 100, 1);
        memset(p, 1, 100);
        l2c_arena_mark inner = l2c_arena_get_mark(&a);
        for (int i = 0; i < 100; i++) {
            char *q = l2c_arena_alloc(&a, 1000, 1);
            assert_non_null(q);
            assert_int_equal((uintptr_t)q % 64, 0);
            memset(q, 2, 1000);
        }
        l2c_arena_reset(&a, inner);
        assert_int_equal(p[99], 1);
        char *r = l2c_arena_alloc(&a, 64, 1);
        memset(r, 3, 64);
        assert_int_equal(p[0], 1);
        l2c_arena_reset(&a, outer);
        assert_int_equal(a.used_bytes, 0);
    }
    l2c_arena_fini(&a);
}

/* Broken: a replaced file is half-written, or an aborted write leaves something behind. */
static void files_are_replaced_whole(void **state) {
    (void)state;
    const char *dir = test_temp_dir();
    char *path = l2c_path_join(dir, "f");
    l2cdb_error e;
    assert_ok(l2c_file_replace(path, "old", 3, &e), &e);
    l2c_writer w;
    assert_ok(l2c_writer_open(&w, path, &e), &e);
    assert_ok(l2c_writer_write(&w, "newer", 5, &e), &e);
    l2c_writer_abort(&w);
    l2c_writer_abort(&w);
    l2c_buf b;
    l2c_buf_init(&b);
    assert_ok(l2c_file_read(&b, path, 100, &e), &e);
    assert_string_equal(b.data, "old");
    assert_int_equal(l2c_file_read(&b, path, 2, &e), L2CDB_E_LIMIT);
    l2c_buf_fini(&b);
    l2c_map m;
    assert_ok(l2c_map_open(&m, path, &e), &e);
    assert_memory_equal(m.data, "old", 3);
    l2c_map_close(&m);
    assert_int_equal(l2c_map_open(&m, dir, &e), L2CDB_E_INVALID);
    unlink(path);
    assert_int_equal(l2c_map_open(&m, path, &e), L2CDB_E_NOTFOUND);
    l2c_free(path);
    rmdir(dir);
}

/* Broken: hostile JSON is taken, or an error does not name the key. */
static void json_is_strict(void **state) {
    (void)state;
    static const char *const bad[] = { "",         "{",           "{\"a\":1,\"a\":2}",
                                       "{} x",     "[1,]",        "{\"a\":01}",
                                       "\"\xFF\"", "\"\\ud800\"", "{'a':1}" };
    l2cdb_error e;
    json_t *j;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(l2c_json_parse(&j, bad[i], strlen(bad[i]), "x", &e), L2CDB_E_FORMAT);
        assert_null(j);
    }
    const char *good = "{\"n\":5,\"s\":\"t\",\"z\":null}";
    assert_ok(l2c_json_parse(&j, good, strlen(good), "x", &e), &e);
    size_t n = 0;
    assert_ok(l2c_json_get_size(j, "n", &n, 0, 9, true, "x", &e), &e);
    assert_int_equal(n, 5);
    assert_int_equal(l2c_json_get_size(j, "n", &n, 6, 9, true, "x", &e), L2CDB_E_FORMAT);
    assert_non_null(strstr(e.message, "\"n\" is 5, expected 6 to 9"));
    assert_int_equal(l2c_json_get_size(j, "s", &n, 0, 9, true, "x", &e), L2CDB_E_FORMAT);
    assert_int_equal(l2c_json_get_size(j, "z", &n, 0, 9, true, "x", &e), L2CDB_E_FORMAT);
    assert_ok(l2c_json_get_size(j, "z", &n, 0, 9, false, "x", &e), &e);
    json_decref(j);
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_json_string(&b, "a\"\n\x01\xFF\xC3\xA9", 7);
    assert_string_equal(b.data, "\"a\\\"\\n\\u0001\xEF\xBF\xBD\xC3\xA9\"");
    l2c_buf_fini(&b);
}

/* Broken: a weight changes its value on the way in. */
static void halves_convert_exactly(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h;
        float f = l2c_f16_to_f32(half), g;
        l2c_vec_from_f16(&g, &half, 1);
        if (isnan(f)) {
            assert_true(isnan(g));
            continue;
        }
        assert_memory_equal(&f, &g, sizeof f);
        assert_int_equal(l2c_f32_to_f16(f), half);
        float b = l2c_bf16_to_f32(half);
        if (!isnan(b)) {
            assert_int_equal(l2c_f32_to_bf16(b), half);
        }
    }
    // The block form (hardware) agrees with the scalar one on values between halves too.
    float in[64], back[64];
    uint16_t out[64];
    for (int round = 0; round < 1000; round++) {
        for (int i = 0; i < 64; i++) {
            in[i] = ldexpf((float)(rand() % 20001 - 10000), rand() % 30 - 28);
        }
        l2c_vec_to_f16(out, in, 64);
        l2c_vec_from_f16(back, out, 64);
        for (int i = 0; i < 64; i++) {
            assert_int_equal(out[i], l2c_f32_to_f16(in[i]));
        }
    }
    assert_int_equal(l2c_f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(l2c_f32_to_f16(65519.0f), 0x7BFF);
}

/* Broken: a SIMD dot product misses the tail. */
static void dot_agrees_with_the_referee(void **state) {
    (void)state;
    float a[300], b[300];
    for (size_t i = 0; i < 300; i++) {
        a[i] = (float)(rand() % 200 - 100) / 64.0f;
        b[i] = (float)(rand() % 200 - 100) / 64.0f;
    }
    for (size_t n = 0; n <= 299; n++) {
        float x = l2c_vec_dot(a + 1, b, n), y = l2c_vec_dot_plain(a + 1, b, n);
        assert_true(fabsf(x - y) <= 1e-3f);
    }
    float v[3] = { 3, 0, 4 };
    assert_true(fabsf(l2c_vec_normalize(v, 3) - 5) < 1e-6f);
    assert_true(fabsf(v[2] - 0.8f) < 1e-6f);
    float w[2] = { 1, INFINITY };
    assert_true(l2c_vec_finite(v, 3) && !l2c_vec_finite(w, 2));
}

static void add_one(void *ctx) {
    __atomic_fetch_add((int *)ctx, 1, __ATOMIC_RELAXED);
}

/* Broken: a job is lost or run twice. */
static void pool_runs_every_job(void **state) {
    (void)state;
    l2c_pool *p;
    l2cdb_error e;
    int n = 0;
    assert_ok(l2c_pool_new(&p, 3, 4, &e), &e);
    for (int i = 0; i < 1000; i++) {
        l2c_pool_submit(p, add_one, &n);
    }
    l2c_pool_drain(p);
    assert_int_equal(n, 1000);
    l2c_pool_submit(p, add_one, &n);
    l2c_pool_free(p);
    assert_int_equal(n, 1001);
}

static void hash_is_the_published_one(void **state) {
    (void)state;
    char hex[L2C_HASH_HEX_BYTES];
    l2c_hash h = l2c_hash_of("", 0);
    l2c_hash_hex(&h, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f"); // xxHash's own test vector
    l2c_hasher *s = l2c_hasher_new();
    l2c_hasher_add(s, "ab", 2);
    l2c_hasher_add(s, "c", 1);
    l2c_hash streamed = l2c_hasher_get(s), whole = l2c_hash_of("abc", 3);
    assert_memory_equal(&streamed, &whole, sizeof whole);
    l2c_hasher_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(errors_keep_their_text),
        cmocka_unit_test(arena_gives_and_takes_back),
        cmocka_unit_test(files_are_replaced_whole),
        cmocka_unit_test(json_is_strict),
        cmocka_unit_test(halves_convert_exactly),
        cmocka_unit_test(dot_agrees_with_the_referee),
        cmocka_unit_test(pool_runs_every_job),
        cmocka_unit_test(hash_is_the_published_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
