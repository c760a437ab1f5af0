/* The extension in a program that calls SQLite as a shared library: this one. Its calls of
 * sqlite3_prepare… go through its own import tables, those of sqlite3_exec through libsqlite3's.
 *
 * usage: hook_test l2cdb.so
 *
 * Broken if it fails: after load_extension() a statement with `<=>` does not run, one runs on a
 * connection that has not loaded the extension, or a caller sees that its text was rewritten: by
 * the tail, by the place of an error, or by a parameter that has moved. */
#include <pthread.h>
#include <sqlite3.h>
#include <uchar.h>

#include "tests/sql/sql_fixture.h"

#define ROWS 50

static const char *library;
static char path[4200];

static const char near_7[] = "SELECT id FROM images WHERE id <> 7 ORDER BY embedding <=> (SELECT "
                             "embedding FROM images WHERE id = 7) LIMIT 3";

static sqlite3 *open_plain(void) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    return db;
}

static void load(sqlite3 *db) {
    char *message = NULL;
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, library, NULL, &message) != SQLITE_OK) {
        fail_msg("%s", message);
    }
}

static sqlite3 *open_loaded(void) {
    sqlite3 *db = open_plain();
    load(db);
    return db;
}

/* Rows of a statement. */
static int rows_of(sqlite3_stmt *s) {
    int rows = 0, rc;
    while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
        rows++;
    }
    assert_int_equal(rc, SQLITE_DONE);
    sqlite3_finalize(s);
    return rows;
}

static int run(sqlite3 *db, const char *sql) {
    sqlite3_stmt *s;
    if (sqlite3_prepare_v2(db, sql, -1, &s, NULL) != SQLITE_OK) {
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    }
    return rows_of(s);
}

static bool refused(sqlite3 *db) {
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(db, near_7, -1, &s, NULL);
    sqlite3_finalize(s);
    return rc == SQLITE_ERROR && strstr(sqlite3_errmsg(db), "syntax error") != NULL;
}

/* Every way to prepare; the first connection that loads the extension in this process. */
static void prepares_every_way(void **state) {
    (void)state;
    sqlite3 *db = open_plain();
    assert_true(refused(db));
    load(db);
    sqlite3_stmt *s;
    assert_int_equal(sqlite3_prepare(db, near_7, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(rows_of(s), 3);
    assert_int_equal(sqlite3_prepare_v2(db, near_7, sizeof near_7, &s, NULL), SQLITE_OK);
    assert_int_equal(rows_of(s), 3);
    assert_int_equal(sqlite3_prepare_v3(db, near_7, -1, SQLITE_PREPARE_PERSISTENT, &s, NULL),
                     SQLITE_OK);
    assert_int_equal(rows_of(s), 3);
    assert_int_equal(sqlite3_exec(db, near_7, NULL, NULL, NULL), SQLITE_OK);
    char **table;
    int rows, columns;
    assert_int_equal(sqlite3_get_table(db, near_7, &table, &rows, &columns, NULL), SQLITE_OK);
    assert_int_equal(rows, 3);
    assert_string_equal(table[0], "id");
    sqlite3_free_table(table);
    sqlite3_close(db);
}

/* A statement that ends before the text does: the tail is the caller's. */
static void keeps_tails(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    const char *sql = "SELECT '[1,0]' <=> '[0,1]' ; SELECT 2; -- rest";
    const char *tail;
    sqlite3_stmt *s;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &s, &tail), SQLITE_OK);
    assert_string_equal(tail, " SELECT 2; -- rest");
    assert_int_equal(rows_of(s), 1);
    assert_int_equal(sqlite3_prepare_v2(db, tail, -1, &s, &tail), SQLITE_OK);
    assert_string_equal(tail, " -- rest");
    sqlite3_finalize(s);
    // Bytes behind the given size are not looked at.
    assert_int_equal(sqlite3_prepare_v2(db, sql, 26, &s, &tail), SQLITE_OK);
    assert_ptr_equal(tail, sql + 26);
    sqlite3_finalize(s);
    assert_int_equal(sqlite3_prepare_v2(db, sql, 18, &s, &tail), SQLITE_ERROR);
    sqlite3_close(db);
}

static void takes_utf16(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    const char16_t *sql = u"SELECT '[1,0]' <=> '[0,1]', 'ö€😀' /* 😀 */; SELECT 2";
    const char16_t *lone = u"SELECT 1 AS a\xD800";
    const void *tail;
    sqlite3_stmt *s;
    for (int version = 1; version <= 3; version++) {
        int rc = version == 1   ? sqlite3_prepare16(db, sql, -1, &s, &tail)
                 : version == 2 ? sqlite3_prepare16_v2(db, sql, -1, &s, &tail)
                                : sqlite3_prepare16_v3(db, sql, -1, 0, &s, &tail);
        assert_int_equal(rc, SQLITE_OK);
        assert_int_equal((const char16_t *)tail - sql, 44);
        assert_int_equal(sqlite3_step(s), SQLITE_ROW);
        assert_true(sqlite3_column_double(s, 0) == 1.0);
        assert_string_equal(sqlite3_column_text(s, 1), "ö€😀");
        sqlite3_finalize(s);
    }
    assert_int_equal(sqlite3_prepare16_v2(db, tail, -1, &s, &tail), SQLITE_OK);
    assert_int_equal(*(const char16_t *)tail, 0);
    sqlite3_finalize(s);
    // Not valid: SQLite's own business.
    assert_int_equal(sqlite3_prepare16_v2(db, lone, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_column_count(s), 1);
    sqlite3_finalize(s);
    sqlite3_close(db);
}

static void leaves_others_alone(void **state) {
    (void)state;
    sqlite3 *with = open_loaded(), *without = open_plain();
    assert_true(refused(without));
    assert_int_equal(run(with, near_7), 3);
    assert_int_equal(run(without, "SELECT id FROM image LIMIT 2"), 2);
    assert_int_equal(sqlite3_prepare_v2(NULL, "SELECT 1", -1, &(sqlite3_stmt *){ NULL }, NULL),
                     SQLITE_MISUSE);
    // A connection that is gone is not remembered: a new one is often at the same address.
    for (int i = 0; i < 20; i++) {
        sqlite3_close(with);
        with = open_plain();
        assert_true(refused(with));
        sqlite3_close(with);
        with = open_loaded();
        assert_int_equal(run(with, near_7), 3);
    }
    sqlite3_close(with);
    assert_true(refused(without));
    sqlite3_close(without);
}

static void loads_twice(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    load(db);
    assert_int_equal(run(db, near_7), 3);
    sqlite3_stmt *s;
    assert_int_equal(sqlite3_prepare_v2(db, near_7, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    load(db); // while a statement runs
    assert_int_equal(rows_of(s), 2);
    assert_int_equal(run(db, "UPDATE images SET tags = 'twice' WHERE id = 3"), 0);
    assert_int_equal(run(db, "SELECT id FROM images WHERE tags = 'twice'"), 1);
    sqlite3_close(db);
}

/* The caller's text is what errors are in. */
static void places_errors(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    const char *const statements[] = {
        "SELECT nonsense, embedding <=> '[1]' FROM images",
        "SELECT '[1]' <=> '[1]', embedding <=> '[1]', nonsense FROM images",
        "SELECT id FROM images ORDER BY embedding <=> '[1]', nonsense",
        "SELECT nonsense FROM images",
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        sqlite3_stmt *s;
        assert_int_equal(sqlite3_prepare_v2(db, statements[i], -1, &s, NULL), SQLITE_ERROR);
        assert_string_equal(sqlite3_errmsg(db), "no such column: nonsense");
        assert_int_equal(sqlite3_error_offset(db),
                         strstr(statements[i], "nonsense") - statements[i]);
    }
    sqlite3_close(db);
}

static void binds_parameters(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    sqlite3_stmt *s;
    const char *sql = "SELECT id FROM images WHERE id > ? AND embedding <=> "
                      "(SELECT embedding FROM images WHERE id = ?) < ? LIMIT ?";
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_bind_parameter_count(s), 4);
    sqlite3_bind_int(s, 1, 6);
    sqlite3_bind_int(s, 2, 7);
    sqlite3_bind_double(s, 3, 0.0001);
    sqlite3_bind_int(s, 4, 1);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    assert_int_equal(sqlite3_column_int(s, 0), 7);
    sqlite3_finalize(s);
    sql = "SELECT id FROM images WHERE id > :least ORDER BY embedding <=> :q LIMIT :n";
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &s, NULL), SQLITE_OK);
    sqlite3_bind_text(s, sqlite3_bind_parameter_index(s, ":q"), "[1,2,3,4,5,6,7,8]", -1, NULL);
    sqlite3_bind_int(s, sqlite3_bind_parameter_index(s, ":n"), 4);
    sqlite3_bind_int(s, sqlite3_bind_parameter_index(s, ":least"), 10);
    assert_int_equal(rows_of(s), 4);
    sqlite3_close(db);
}

/* Statements that SQL does not have, and those that SQLite has too. */
static void runs_our_statements(void **state) {
    (void)state;
    sqlite3 *db = open_loaded();
    assert_int_equal(run(db, "CREATE INDEX mine ON images USING hnsw (embedding) WITH (m = 8)"), 0);
    assert_int_equal(run(db, "SET hnsw.ef_search = 90"), 0);
    assert_int_equal(
        run(db, "SELECT 1 FROM index_status WHERE target = 'images' AND kind = 'hnsw'"), 1);
    assert_int_equal(run(db, "DROP INDEX mine"), 0);
    assert_int_equal(run(db, "CREATE TABLE notes(a); CREATE INDEX i ON notes(a)"), 0);
    assert_int_equal(run(db, "CREATE INDEX i ON notes(a)"), 0);
    assert_int_equal(run(db, "SELECT 1 FROM sqlite_schema WHERE name = 'i'"), 1);
    assert_int_equal(run(db, "DROP INDEX i"), 0);
    assert_int_equal(run(db, "SELECT 1 FROM sqlite_schema WHERE name = 'i'"), 0);
    assert_int_equal(run(db, "REINDEX notes"), 0);
    assert_int_equal(run(db, "VACUUM"), 0);
    sqlite3_stmt *s;
    assert_int_equal(
        sqlite3_prepare_v2(db, "EXPLAIN SELECT id FROM images WHERE width > 1", -1, &s, NULL),
        SQLITE_OK);
    assert_string_equal(sqlite3_column_name(s, 0), "plan");
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    assert_non_null(strstr((const char *)sqlite3_column_text(s, 0), "images: records by width"));
    sqlite3_finalize(s);
    sqlite3_close(db);
    // On a file that is not ours there are functions on vectors and nothing else.
    assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
    load(db);
    assert_int_equal(run(db, "SELECT 1 WHERE '[1,0]' <=> '[0,1]' = 1"), 1);
    assert_int_equal(sqlite3_prepare_v2(db, "SET hnsw.ef_search = 90", -1, &s, NULL), SQLITE_ERROR);
    assert_int_equal(run(db, "VACUUM"), 0);
    sqlite3_close(db);
}

static void *ask(void *ctx) {
    bool loaded = *(const int *)ctx % 2 == 0;
    size_t *wrong = calloc(1, sizeof *wrong);
    for (int i = 0; i < 30; i++) {
        sqlite3 *db = NULL;
        *wrong += sqlite3_open(path, &db) != SQLITE_OK;
        sqlite3_busy_timeout(db, 10000); // whoever closes last has the file for a moment
        if (loaded) {
            sqlite3_enable_load_extension(db, 1);
            *wrong += sqlite3_load_extension(db, library, NULL, NULL) != SQLITE_OK;
        }
        sqlite3_stmt *s = NULL;
        int rc = sqlite3_prepare_v2(db, near_7, -1, &s, NULL);
        *wrong += rc != (loaded ? SQLITE_OK : SQLITE_ERROR);
        *wrong += loaded && sqlite3_step(s) != SQLITE_ROW;
        sqlite3_finalize(s);
        *wrong += sqlite3_close(db) != SQLITE_OK;
    }
    return wrong;
}

/* Connections come and go in several threads, with and without the extension. */
static void serves_threads(void **state) {
    (void)state;
    pthread_t threads[8];
    int numbers[8];
    for (int i = 0; i < 8; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, ask, &numbers[i]), 0);
    }
    for (int i = 0; i < 8; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_int_equal(*(size_t *)wrong, 0);
        free(wrong);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: hook_test l2cdb.so\n");
        return 2;
    }
    library = argv[1];
    snprintf(path, sizeof path, "%s/h.l2cdb", test_temp_dir());
    sql_fixture_make(path, ROWS, 8, 1, true);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prepares_every_way), cmocka_unit_test(keeps_tails),
        cmocka_unit_test(takes_utf16),        cmocka_unit_test(leaves_others_alone),
        cmocka_unit_test(loads_twice),        cmocka_unit_test(places_errors),
        cmocka_unit_test(binds_parameters),   cmocka_unit_test(runs_our_statements),
        cmocka_unit_test(serves_threads),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    sql_fixture_remove(path);
    return failed;
}
