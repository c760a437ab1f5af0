/* The virtual tables images and captions: records of the store, neighbours of the index.
 *
 * Without a query a pass is a plain SELECT on the record's table, with the conditions on its
 * columns and the order pushed into it. With one (the hidden column `query`, or embedding MATCH)
 * a pass streams neighbours in ascending distance and fetches each record by its id. Nothing says
 * beforehand how many rows will be asked for: SQLite stops when its LIMIT is met, whatever other
 * conditions it has thrown rows away by, so an answer always has min(k, matches) rows.
 *
 * Order. Where the index is approximate, a deeper round can find a row that is nearer than one
 * given already. Such late rows are held back and given when the stream has ended: an answer that
 * LIMIT cuts off is in order, one that runs out of matches may have them at its end. `SET
 * search.exact = on` knows no late rows.
 *
 * Conditions on columns are either turned into a set of ids first (when few rows pass) or checked
 * while records are fetched. SQLite checks all of them again; the push-down only saves work, so a
 * condition may be left out here but must never be stricter than SQLite's own.
 *
 * Hidden columns. `query`: the vector to be near to; `k`: how many rows at most; `rank`: the
 * distance, with +Inf for records without a vector. A query by `query` alone returns every record:
 * those without a vector come last in order of rank and first in order of distance (where they are
 * NULL). MATCH, or a k, returns only records that have a vector.
 *
 * Writing. Rows are written through the store, on the connection and in the transaction of the
 * statement (l2c_store_guest): SQLite has locked main for it, as it does for a table of its own,
 * since both tables stand in that schema. Later statements of the transaction see what was written;
 * the indexes do not, so a vector is believed only while the record still has it. After the commit
 * captions get their vectors, and the indexes follow. */
#include "engine/sql_images.h"

#include <string.h>

/* ---- Columns ------------------------------------------------------------------------------------
 */

static const l2c_sql_column image_columns[] = {
    { "id", "INTEGER", "t.id", 0 },
    { "path", "TEXT", "t.path", 0.001 },
    { "width", "INTEGER", "t.width", 0.2 },
    { "height", "INTEGER", "t.height", 0.2 },
    { "format", "TEXT", "t.format", 0.5 },
    { "taken_at", "TEXT", "t.taken_at", 0.01 },
    { "camera", "TEXT", "t.camera", 0.1 },
    { "orientation", "INTEGER", "t.orientation", 0.3 },
    { "latitude", "REAL", "t.latitude", 0.01 },
    { "longitude", "REAL", "t.longitude", 0.01 },
    { "size_bytes", "INTEGER", "t.size_bytes", 0.01 },
    { "hash", "TEXT", "CAST(lower(hex(t.hash)) AS TEXT)", 0.001 },
    { "status", "TEXT", "t.status", 0.5 },
    { "error", "TEXT", "t.error", 0.1 },
    { "tags", "TEXT", "t.tags", 0.1 },
    { "meta", "TEXT", "t.meta", 0.1 },
    { "added_at", "TEXT", "CAST(datetime(t.added_at, 'unixepoch') AS TEXT)", 0.1 },
};

static const l2c_sql_column caption_columns[] = {
    { "id", "INTEGER", "t.id", 0 },
    { "image_id", "INTEGER", "t.image_id", 0.001 },
    { "text", "TEXT", "t.text", 0.001 },
    { "language", "TEXT", "t.language", 0.3 },
    { "source", "TEXT", "t.source", 0.5 },
    { "added_at", "TEXT", "CAST(datetime(t.added_at, 'unixepoch') AS TEXT)", 0.1 },
};

static const l2c_sql_target targets[] = {
    { "images", "image", L2C_KIND_IMAGE, image_columns,
      (int)(sizeof image_columns / sizeof *image_columns) },
    { "captions", "caption", L2C_KIND_CAPTION, caption_columns,
      (int)(sizeof caption_columns / sizeof *caption_columns) },
};

/* ---- xConnect -----------------------------------------------------------------------------------
 */

static int connect_table(sqlite3 *sqlite, void *data, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **message) {
    (void)sqlite;
    (void)argc;
    (void)argv;
    (void)message;
    const l2c_sql_module *m = data;
    const l2c_sql_target *g = m->which;
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "CREATE TABLE x(");
    for (int i = 0; i < g->count; i++) {
        l2c_buf_printf(&b, "%s %s,", g->columns[i].name, g->columns[i].type);
    }
    l2c_buf_puts(&b, "embedding VECTOR,score REAL,distance REAL,query HIDDEN,k INTEGER HIDDEN,"
                     "rank REAL HIDDEN)");
    int rc = b.failed ? SQLITE_NOMEM : l2c_sql_table_new(out, sizeof(l2c_sql_images), m, b.data);
    l2c_buf_fini(&b);
    if (rc == SQLITE_OK) {
        ((l2c_sql_images *)*out)->conn = m->conn;
        ((l2c_sql_images *)*out)->target = g;
    }
    return rc;
}

static int disconnect_table(sqlite3_vtab *base) {
    l2c_sql_cursor_free(((l2c_sql_images *)base)->spare);
    l2c_free(base);
    return SQLITE_OK;
}

/* Where SQLite checks a MATCH that a pass has already answered. Plans that do not answer it are
 * refused by best_index. */
static void matched(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)n;
    (void)args;
    sqlite3_result_int(context, 1);
}

static int find_function(sqlite3_vtab *base, int n, const char *name,
                         void (**function)(sqlite3_context *, int, sqlite3_value **), void **data) {
    (void)base;
    (void)data;
    if (n != 2 || strcmp(name, "match") != 0) {
        return 0;
    }
    *function = matched;
    return 1;
}

/* ---- Registration -------------------------------------------------------------------------------
 */

/* Without xCreate the tables are there on every connection and nothing else can be made of them. */
static const sqlite3_module module = {
    .iVersion = 1,
    .xConnect = connect_table,
    .xBestIndex = l2c_sql_images_best_index,
    .xDisconnect = disconnect_table,
    .xOpen = l2c_sql_images_open,
    .xClose = l2c_sql_images_close,
    .xFilter = l2c_sql_images_filter,
    .xNext = l2c_sql_images_next,
    .xEof = l2c_sql_images_eof,
    .xColumn = l2c_sql_images_column,
    .xRowid = l2c_sql_images_rowid,
    .xUpdate = l2c_sql_images_update,
    .xBegin = l2c_sql_images_begin,
    .xSync = l2c_sql_images_sync,
    .xCommit = l2c_sql_images_commit,
    .xRollback = l2c_sql_images_rollback,
    .xFindFunction = find_function,
};

l2cdb_status l2c_sql_images_register(l2c_sql_conn *c, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < sizeof targets / sizeof targets[0] && rc == L2CDB_OK; i++) {
        rc = l2c_sql_module_register(c, targets[i].name, &module, &targets[i], err);
    }
    return rc;
}
