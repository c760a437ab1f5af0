/* The shared library from outside: linked by its public header alone. */
#include "tests/test.h"

#include "engine/l2cdb.h"

/* Broken: libl2cdb.so lacks something, or a program cannot work with what it shows. */
static void a_program_can_use_it(void **state) {
    (void)state;
    l2cdb_error e;
    l2cdb *db;
    assert_string_equal(l2cdb_version(), L2CDB_VERSION);
    assert_int_equal(l2cdb_open(&db, ":memory:", NULL, &e), L2CDB_OK);
    size_t width;
    assert_int_equal(l2cdb_width(db, &width, &e), L2CDB_OK);
    float *v = malloc(2 * width * sizeof *v), dot = 0;
    const char *texts[] = { "a dog on the beach", "ein Hund am Strand" };
    assert_int_equal(l2cdb_encode_texts(db, texts, 2, v, width, NULL, &e), L2CDB_OK);
    for (size_t i = 0; i < width; i++) {
        dot += v[i] * v[width + i];
    }
    printf("%s | %s: cosine %.3f\n", texts[0], texts[1], (double)dot);
    assert_true(dot > 0.8f);
    l2cdb_stmt *s;
    bool row;
    assert_int_equal(l2cdb_prepare(db, "SELECT count(*) FROM images", NULL, &s, &e), L2CDB_OK);
    assert_int_equal(l2cdb_step(s, &row, &e), L2CDB_OK);
    assert_true(row && l2cdb_column_int64(s, 0) == 0);
    l2cdb_finalize(s);
    char *about = l2cdb_version_verbose();
    assert_non_null(strstr(about, "storage: sqlite"));
    l2cdb_string_free(about);
    free(v);
    l2cdb_close(db);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_program_can_use_it) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
