/* What every test program shares: cmocka, the place of ../shared, and .npy golden arrays.
 *
 * Tests that need ../shared call test_shared(): without it they skip with the reason printed
 * (exit status 77), and with L2CDB_REQUIRE_SHARED=1, as in CI, they fail instead. */
#ifndef L2C_TEST_H
#define L2C_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Absolute path of a file of the source tree; a static buffer, valid until the next call. */
static inline const char *test_source(const char *relative) {
    static char path[4096];
    const char *root = getenv("L2CDB_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/%s", root != NULL ? root : ".", relative);
    return path;
}

/* Path of `relative` under ../shared (or $L2CDB_SHARED); ends the program with 77 if absent. The
 * buffers rotate: four results are valid at a time. */
static inline const char *test_shared(const char *relative) {
    static char paths[4][4096];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    const char *shared = getenv("L2CDB_SHARED");
    if (shared != NULL) {
        snprintf(path, sizeof paths[0], "%s/%s", shared, relative);
    } else {
        const char *root = getenv("L2CDB_SOURCE_DIR");
        snprintf(path, sizeof paths[0], "%s/../shared/%s", root != NULL ? root : ".", relative);
    }
    struct stat st;
    if (stat(path, &st) != 0) {
        const char *require = getenv("L2CDB_REQUIRE_SHARED");
        printf("SKIP: %s is not there\n", path);
        fflush(stdout);
        exit(require != NULL && strcmp(require, "1") == 0 ? 1 : 77);
    }
    return path;
}

/* A fresh directory under $TMPDIR; a static buffer. Left to the caller to remove. */
static inline const char *test_temp_dir(void) {
    static char path[4096];
    const char *tmp = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/l2cdb-test-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

/* Fails the test with the message of an l2cdb_error when rc is not OK. */
#define assert_ok(rc, err)                                                                         \
    do {                                                                                           \
        l2cdb_status assert_ok_rc = (rc);                                                          \
        if (assert_ok_rc != L2CDB_OK) {                                                            \
            fail_msg("%s: %s: %s", #rc, l2cdb_status_name(assert_ok_rc), (err)->message);          \
        }                                                                                          \
    } while (0)

/* A C-order .npy array. `data` has `count` items of `item_bytes`; freed with free(data). */
typedef struct test_npy {
    void *data;
    char dtype[8]; /* "<f4", "|u1", "<i8" */
    size_t shape[8];
    int ndim;
    size_t count, item_bytes;
} test_npy;

static inline test_npy test_npy_load(const char *path) {
    test_npy a = { 0 };
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        fail_msg("could not open %s", path);
    }
    unsigned char head[10];
    assert_int_equal(fread(head, 1, 10, f), 10);
    assert_memory_equal(head, "\x93NUMPY", 6);
    size_t header_bytes = head[8] | (size_t)head[9] << 8;
    if (head[6] >= 2) {
        unsigned char more[2];
        assert_int_equal(fread(more, 1, 2, f), 2);
        header_bytes |= (size_t)more[0] << 16 | (size_t)more[1] << 24;
    }
    char *header = calloc(header_bytes + 1, 1);
    assert_int_equal(fread(header, 1, header_bytes, f), header_bytes);
    const char *d = strstr(header, "'descr': '");
    assert_non_null(d);
    sscanf(d + 10, "%7[^']", a.dtype);
    assert_null(strstr(header, "'fortran_order': True"));
    a.item_bytes = (size_t)strtoul(a.dtype + 2, NULL, 10);
    const char *s = strstr(header, "'shape': (");
    assert_non_null(s);
    s += 10;
    a.count = 1;
    while (*s != ')' && a.ndim < 8) {
        char *end;
        size_t n = strtoul(s, &end, 10);
        if (end == s) {
            break;
        }
        a.shape[a.ndim++] = n;
        a.count *= n;
        s = end + strspn(end, ", ");
    }
    free(header);
    a.data = malloc(a.count * a.item_bytes + 1);
    assert_int_equal(fread(a.data, a.item_bytes, a.count, f), a.count);
    fclose(f);
    return a;
}

#endif
