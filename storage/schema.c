/* The tables, and the way from each version of them to the next. docs/format.md explains them to
 * readers with other tools; change both together, and only by appending a migration. */
#include "storage/store_conn.h"

#include <stdio.h>

#include "engine/base/clock.h"

#define APPLICATION_ID 0x6C326362 /* "l2cb" */

/* Entry v leads from version v to version v + 1; each runs in one transaction with the new number.
 * The names images, captions, generations and models are free: virtual tables have them. */
static const char *const migrations[] = {
    "CREATE TABLE setting(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE change("
    "  id INTEGER PRIMARY KEY CHECK(id = 1),"
    "  value INTEGER NOT NULL,"    // number of the last committed change
    "  trimmed INTEGER NOT NULL);" // removals up to here are no longer in the log
    "INSERT INTO change VALUES(1, 0, 0);"

    "CREATE TABLE image("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT," // never given twice: indexes outlive rows
    "  path TEXT,"                            // the first of image_path
    "  hash BLOB,"                            // 16 bytes, XXH3-128 of the file
    "  size_bytes INTEGER, width INTEGER, height INTEGER, format TEXT,"
    "  taken_at TEXT, camera TEXT, orientation INTEGER, latitude REAL, longitude REAL,"
    "  status TEXT NOT NULL CHECK(status IN ('ok', 'error')), error TEXT,"
    "  tags TEXT, meta TEXT, added_at INTEGER NOT NULL);"
    "CREATE UNIQUE INDEX image_by_hash ON image(hash) WHERE hash IS NOT NULL;"
    "CREATE INDEX image_by_path ON image(path);"
    "CREATE INDEX image_by_taken ON image(taken_at) WHERE taken_at IS NOT NULL;"
    "CREATE INDEX image_by_camera ON image(camera) WHERE camera IS NOT NULL;"
    "CREATE TABLE image_path("
    "  path TEXT PRIMARY KEY, image_id INTEGER NOT NULL REFERENCES image(id),"
    "  size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);"
    "CREATE INDEX image_path_by_image ON image_path(image_id);"
    "CREATE TABLE original(image_id INTEGER PRIMARY KEY REFERENCES image(id), data BLOB NOT NULL);"
    "CREATE TABLE thumbnail(image_id INTEGER PRIMARY KEY REFERENCES image(id),"
    "  jpeg BLOB NOT NULL);"

    "CREATE TABLE caption("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT, image_id INTEGER NOT NULL REFERENCES image(id),"
    "  text TEXT NOT NULL, language TEXT, source TEXT, added_at INTEGER NOT NULL,"
    "  UNIQUE(image_id, text));"
    "CREATE VIRTUAL TABLE caption_fts USING fts5("
    "  text, content='caption', content_rowid='id', tokenize='unicode61 remove_diacritics 2');"
    "CREATE TRIGGER caption_inserted AFTER INSERT ON caption BEGIN"
    "  INSERT INTO caption_fts(rowid, text) VALUES(new.id, new.text); END;"
    "CREATE TRIGGER caption_deleted AFTER DELETE ON caption BEGIN"
    "  INSERT INTO caption_fts(caption_fts, rowid, text) VALUES('delete', old.id, old.text); END;"
    "CREATE TRIGGER caption_updated AFTER UPDATE OF text ON caption BEGIN"
    "  INSERT INTO caption_fts(caption_fts, rowid, text) VALUES('delete', old.id, old.text);"
    "  INSERT INTO caption_fts(rowid, text) VALUES(new.id, new.text); END;"

    "CREATE TABLE trunk("
    "  id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, hash BLOB NOT NULL, width INTEGER NOT NULL,"
    "  UNIQUE(kind, hash));"
    "CREATE TABLE feature("
    "  id INTEGER PRIMARY KEY," // trunk << 40 | item
    "  vector BLOB NOT NULL,"
    "  trunk_id INTEGER GENERATED ALWAYS AS (id >> 40) VIRTUAL,"
    "  item_id INTEGER GENERATED ALWAYS AS (id & 1099511627775) VIRTUAL);"

    "CREATE TABLE generation("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER,"
    "  state TEXT NOT NULL CHECK(state IN ('filling', 'ready', 'active', 'retired')),"
    "  image_trunk BLOB, text_trunk BLOB, heads BLOB,"
    "  image_space INTEGER NOT NULL, caption_space INTEGER NOT NULL," // whose vectors it has
    "  width INTEGER NOT NULL,"
    "  model TEXT NOT NULL, label TEXT NOT NULL, report TEXT NOT NULL,"
    "  created_at INTEGER NOT NULL, activated_at INTEGER);"
    "CREATE UNIQUE INDEX generation_active ON generation(state) WHERE state = 'active';"
    "CREATE TABLE head("
    "  generation INTEGER NOT NULL REFERENCES generation(id), name TEXT NOT NULL,"
    "  rows INTEGER NOT NULL, columns INTEGER NOT NULL, data BLOB NOT NULL,"
    "  PRIMARY KEY(generation, name));"

    "CREATE TABLE embedding("
    "  id INTEGER PRIMARY KEY," // space << 41 | kind << 40 | item
    "  change INTEGER NOT NULL, vector BLOB NOT NULL,"
    "  space INTEGER GENERATED ALWAYS AS (id >> 41) VIRTUAL,"
    "  kind INTEGER GENERATED ALWAYS AS ((id >> 40) & 1) VIRTUAL,"
    "  item_id INTEGER GENERATED ALWAYS AS (id & 1099511627775) VIRTUAL);"
    "CREATE INDEX embedding_by_change ON embedding(change);"
    "CREATE TABLE removal(id INTEGER PRIMARY KEY, change INTEGER NOT NULL);"
    "CREATE INDEX removal_by_change ON removal(change);",
};

#define VERSION_KNOWN ((int)(sizeof migrations / sizeof *migrations))

static l2cdb_status pragma_get(l2c_store_conn *c, const char *sql, int *out, l2cdb_error *err) {
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(c->db, sql, -1, &stmt, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
        *out = sqlite3_column_int(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return rc == SQLITE_ROW ? L2CDB_OK : l2c_sqlite_fail(err, c->db, rc, "reading its version");
}

static l2cdb_status look(l2c_store_conn *c, int *application, int *version, int *tables,
                         l2cdb_error *err) {
    l2cdb_status rc = pragma_get(c, "PRAGMA application_id", application, err);
    if (rc == L2CDB_OK) {
        rc = pragma_get(c, "PRAGMA user_version", version, err);
    }
    if (rc == L2CDB_OK) {
        rc = pragma_get(c, "SELECT count(*) FROM sqlite_schema", tables, err);
    }
    return rc;
}

static l2cdb_status judge(const char *path, int application, int version, int tables,
                          l2cdb_error *err) {
    bool fresh = application == 0 && version == 0 && tables == 0;
    if (!fresh && application != APPLICATION_ID) {
        l2c_fail(err, L2CDB_E_FORMAT,
                 "%s: a SQLite database of another program (application id %d, expected %d)", path,
                 application, APPLICATION_ID);
        return l2c_hint(err, "name another file; l2cdb keeps a database of its own");
    }
    if (version > VERSION_KNOWN) {
        l2c_fail(err, L2CDB_E_VERSION,
                 "%s: written by a newer l2cdb (schema version %d, this program knows up to %d)",
                 path, version, VERSION_KNOWN);
        return l2c_hint(err, "update l2cdb; the file has not been touched");
    }
    return L2CDB_OK;
}

/* SQLite's own wait for locks does not hold for this change: it begins as a reader, and of two
 * readers that both want to write one must give up at once. So it is tried again until busy_ms. */
static l2cdb_status use_log(l2c_store_conn *c, uint32_t busy_ms, l2cdb_error *err) {
    double end = l2c_now() + busy_ms / 1000.0;
    l2cdb_status rc;
    while ((rc = l2c_store_conn_exec(c, "PRAGMA journal_mode=WAL", err)) == L2CDB_E_BUSY &&
           l2c_now() < end) {
        sqlite3_sleep(2);
    }
    if (rc == L2CDB_OK) {
        l2cdb_error_clear(err);
    }
    return rc;
}

static l2cdb_status migrate(l2c_store_conn *c, const char *path, l2cdb_error *err) {
    l2cdb_status rc = l2c_store_conn_exec(c, "BEGIN IMMEDIATE", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    // Another process may have done it while this one waited for the lock.
    int application = 0, version = 0, tables = 0;
    rc = look(c, &application, &version, &tables, err);
    if (rc == L2CDB_OK) {
        rc = judge(path, application, version, tables, err);
    }
    for (; rc == L2CDB_OK && version < VERSION_KNOWN; version++) {
        rc = l2c_store_conn_exec(c, migrations[version], err);
    }
    char sql[96];
    snprintf(sql, sizeof sql, "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT",
             APPLICATION_ID, VERSION_KNOWN);
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_exec(c, sql, err);
    }
    if (rc != L2CDB_OK) {
        sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    }
    return rc;
}

l2cdb_status l2c_schema_prepare(l2c_store_conn *c, const char *path, bool read_only,
                                uint32_t busy_ms, l2cdb_error *err) {
    int application = 0, version = 0, tables = 0;
    // In one transaction: another process may be making the tables right now.
    l2cdb_status rc = l2c_store_conn_exec(c, "BEGIN", err);
    if (rc == L2CDB_OK) {
        rc = look(c, &application, &version, &tables, err);
        sqlite3_exec(c->db, "COMMIT", NULL, NULL, NULL);
    }
    if (rc == L2CDB_OK) {
        rc = judge(path, application, version, tables, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (read_only) {
        if (version < VERSION_KNOWN) {
            l2c_fail(err, L2CDB_E_VERSION, "%s: schema version %d, expected %d", path, version,
                     VERSION_KNOWN);
            return l2c_hint(err, "open it once for writing to bring it up to date");
        }
        return L2CDB_OK;
    }
    // 16 KiB pages: a row of vectors takes 1 to 16 KB, and small pages would waste a quarter of
    // themselves on it. Has no effect on a file that has pages already.
    if (tables == 0) {
        rc = l2c_store_conn_exec(c, "PRAGMA page_size=16384", err);
    }
    if (rc == L2CDB_OK) {
        rc = use_log(c, busy_ms, err);
    }
    if (rc == L2CDB_OK && version < VERSION_KNOWN) {
        rc = migrate(c, path, err);
    }
    return rc;
}
