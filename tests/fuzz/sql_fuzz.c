/* Statements of strangers: any text through prepare and step in the read-only role, on a small
 * database, with limits of time and rows. Looks for memory errors, for a statement that outlives
 * its limits, and for one that changes the database. */
#include <string.h>

#include "engine/l2cdb.h"
#include "tests/fuzz/fuzz.h"
#include "tests/sql/sql_fixture.h"

static l2cdb *db;
static char path[4200];

static void remove_database(void) {
    l2cdb_close(db);
    sql_fixture_remove(path);
}

static void open_database(void) {
    snprintf(path, sizeof path, "%s/f.l2cdb", test_temp_dir());
    sql_fixture_make(path, 60, 8, 1, true);
    db = sql_fixture_open(path);
    atexit(remove_database);
}

static int64_t change(void) {
    l2cdb_stats stats;
    return l2cdb_get_stats(db, &stats, NULL) == L2CDB_OK ? stats.change : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (db == NULL) {
        open_database();
    }
    char *sql = malloc(n + 1);
    memcpy(sql, data, n);
    sql[n] = 0;
    int64_t before = change();
    const l2cdb_sql_limits limits = { .read_only = true, .timeout_ms = 200, .rows_max = 200 };
    const char *at = sql;
    for (int i = 0; i < 4 && *at != 0; i++) {
        l2cdb_stmt *s;
        l2cdb_error err;
        float vector[8] = { 1, 2, 3 };
        bool row = true;
        if (l2cdb_prepare_next(db, at, &limits, &s, &at, &err) != L2CDB_OK || s == NULL) {
            break;
        }
        for (int p = 1; p <= l2cdb_bind_count(s) && p < 20; p++) {
            FUZZ_CHECK(p % 3 == 0 ? l2cdb_bind_int64(s, p, p) == L2CDB_OK
                                  : l2cdb_bind_vector(s, p, vector, 8) == L2CDB_OK);
        }
        size_t rows = 0;
        while (row && l2cdb_step(s, &row, &err) == L2CDB_OK && row) {
            FUZZ_CHECK(++rows <= limits.rows_max);
            for (int c = 0; c < l2cdb_column_count(s); c++) {
                (void)l2cdb_column_name(s, c);
                if (l2cdb_column_type(s, c) == L2CDB_VECTOR) {
                    FUZZ_CHECK(l2cdb_column_bytes(s, c) % sizeof(float) == 0);
                } else {
                    (void)l2cdb_column_text(s, c);
                }
            }
        }
        l2cdb_finalize(s);
    }
    FUZZ_CHECK(change() == before);
    free(sql);
    return 0;
}
