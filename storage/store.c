/* The store as a whole: open and close, settings, the change number, counts, vacuum, backup,
 * check. What belongs to one kind of record is in the file of its name. */
#include "storage/store_conn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/file.h"

#define BUSY_MS_DEFAULT 10000

/* ---- Open and close -------------------------------------------------------------------------- */

void l2c_store_close(l2c_store *s) {
    if (s == NULL) {
        return;
    }
    l2c_store_conn_close(s->probe);
    while (s->free != NULL) {
        l2c_store_conn *c = s->free;
        s->free = c->next;
        l2c_store_conn_close(c);
    }
    l2c_store_conn_close(s->writer); // last: the last connection folds the log into the file
    pthread_mutex_destroy(&s->write_lock);
    pthread_mutex_destroy(&s->read_lock);
    l2c_free(s->path);
    l2c_free(s);
}

static l2cdb_status open_connections(l2c_store *s, l2cdb_error *err) {
    const l2c_store_options *o = &s->options;
    l2cdb_status rc = L2CDB_OK;
    if (!o->read_only) {
        rc = l2c_store_conn_open(&s->writer, s->path, false, o->create, o->busy_ms, err);
        if (rc == L2CDB_OK) {
            rc = l2c_schema_prepare(s->writer, s->path, false, o->busy_ms, err);
        }
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_open(&s->probe, s->path, true, false, o->busy_ms, err);
    }
    if (rc == L2CDB_OK && o->read_only) {
        rc = l2c_schema_prepare(s->probe, s->path, true, o->busy_ms, err);
    }
    return rc;
}

l2cdb_status l2c_store_open(l2c_store **out, const char *path, const l2c_store_options *o,
                            l2cdb_error *err) {
    *out = NULL;
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        l2c_fail(err, L2CDB_E_INVALID, "%s: %s, expected a database file", path,
                 S_ISDIR(st.st_mode) ? "is a directory" : "is no regular file");
        return l2c_hint(err, "name a file, for example %s/photos.l2cdb", path);
    }
    l2c_store *s = l2c_calloc(1, sizeof *s);
    if (s == NULL) {
        return l2c_fail_nomem(err, sizeof *s);
    }
    pthread_mutex_init(&s->write_lock, NULL);
    pthread_mutex_init(&s->read_lock, NULL);
    s->options = *o;
    if (s->options.busy_ms == 0) {
        s->options.busy_ms = BUSY_MS_DEFAULT;
    }
    s->path = l2c_strdup(path);
    l2cdb_status rc = s->path != NULL ? open_connections(s, err) : l2c_fail_nomem(err, 0);
    if (rc != L2CDB_OK) {
        l2c_store_close(s);
        return rc;
    }
    *out = s;
    return L2CDB_OK;
}

const char *l2c_store_path(const l2c_store *s) {
    return s->path;
}

void l2c_store_describe(l2c_buf *out) {
    l2c_buf_printf(out, "sqlite %s", sqlite3_libversion());
}

/* ---- Small values ---------------------------------------------------------------------------- */

l2cdb_status l2c_store_change(l2c_store *s, int64_t *change, l2cdb_error *err) {
    int64_t trimmed;
    pthread_mutex_lock(&s->read_lock);
    l2cdb_status rc = l2c_store_conn_change(s->probe, change, &trimmed, err);
    pthread_mutex_unlock(&s->read_lock);
    return rc;
}

l2cdb_status l2c_store_get(l2c_store *s, const char *key, char **out, l2cdb_error *err) {
    *out = NULL;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s, "SELECT value FROM setting WHERE key = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_bind_text(r.stmt, 1, key);
    if (l2c_read_row(&r, "reading a setting", &rc, err)) {
        *out = l2c_strdup((const char *)sqlite3_column_text(r.stmt, 0));
        rc = *out != NULL ? L2CDB_OK : l2c_fail_nomem(err, 0);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_store_set(l2c_store *s, const char *key, const char *value, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_stmt *stmt;
    rc = l2c_store_conn_prepare(w.conn, &stmt,
                                "INSERT OR REPLACE INTO setting(key, value) VALUES(?1, ?2)", err);
    if (rc == L2CDB_OK) {
        l2c_bind_text(stmt, 1, key);
        l2c_bind_text(stmt, 2, value);
        rc = l2c_store_conn_run(w.conn, stmt, "storing a setting", err);
    }
    return l2c_write_end(&w, rc, err);
}

/* ---- Counts ---------------------------------------------------------------------------------- */

static uint64_t file_bytes(const char *path, const char *suffix) {
    char name[4096];
    struct stat st;
    snprintf(name, sizeof name, "%s%s", path, suffix);
    return stat(name, &st) == 0 ? (uint64_t)st.st_size : 0;
}

l2cdb_status l2c_store_count(l2c_store *s, l2c_store_counts *out, l2cdb_error *err) {
    *out = (l2c_store_counts){ 0 };
    l2c_read r;
    l2cdb_status rc =
        l2c_read_begin(&r, s,
                       "SELECT (SELECT count(*) FROM image),"
                       " (SELECT count(*) FROM image WHERE status = 'error'),"
                       " (SELECT count(*) FROM caption), (SELECT count(*) FROM thumbnail)",
                       err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (l2c_read_row(&r, "counting records", &rc, err)) {
        out->images = (uint64_t)sqlite3_column_int64(r.stmt, 0);
        out->images_failed = (uint64_t)sqlite3_column_int64(r.stmt, 1);
        out->captions = (uint64_t)sqlite3_column_int64(r.stmt, 2);
        out->thumbnails = (uint64_t)sqlite3_column_int64(r.stmt, 3);
    }
    out->database_bytes = file_bytes(s->path, "") + file_bytes(s->path, "-wal");
    l2c_read_end(&r);
    return rc;
}

/* ---- Vacuum ---------------------------------------------------------------------------------- */

/* Idle readers may hold nothing, but their caches refer to pages that are about to move. */
static void drop_idle_readers(l2c_store *s) {
    pthread_mutex_lock(&s->read_lock);
    while (s->free != NULL) {
        l2c_store_conn *c = s->free;
        s->free = c->next;
        l2c_store_conn_close(c);
    }
    pthread_mutex_unlock(&s->read_lock);
}

/* The log still holds old pages until it is folded in and cut; a reader elsewhere can delay that.
 */
static l2cdb_status truncate_log(l2c_store *s, l2cdb_error *err) {
    int rc =
        sqlite3_wal_checkpoint_v2(s->writer->db, "main", SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    return rc == SQLITE_OK ? L2CDB_OK
                           : l2c_sqlite_fail(err, s->writer->db, rc, "cutting the write-ahead log");
}

l2cdb_status l2c_store_vacuum(l2c_store *s, l2cdb_error *err) {
    if (s->writer == NULL) {
        return l2c_fail(err, L2CDB_E_DENIED, "%s: opened read-only", s->path);
    }
    pthread_mutex_lock(&s->write_lock);
    drop_idle_readers(s);
    l2cdb_status rc = l2c_store_conn_exec(
        s->writer, "INSERT INTO caption_fts(caption_fts) VALUES('optimize')", err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_exec(s->writer, "VACUUM", err);
    }
    if (rc == L2CDB_OK) {
        rc = truncate_log(s, err);
    }
    pthread_mutex_unlock(&s->write_lock);
    return rc;
}

/* ---- Backup ---------------------------------------------------------------------------------- */

typedef bool (*backup_progress_fn)(void *ctx, uint64_t done, uint64_t total);

static l2cdb_status copy_pages(l2c_store_conn *from, l2c_store_conn *to,
                               backup_progress_fn progress, void *ctx, l2cdb_error *err) {
    sqlite3_backup *b = sqlite3_backup_init(to->db, "main", from->db, "main");
    if (b == NULL) {
        return l2c_sqlite_fail(err, to->db, sqlite3_errcode(to->db), "starting a backup");
    }
    int rc = SQLITE_OK;
    bool wanted = true;
    while (wanted && (rc = sqlite3_backup_step(b, 256)) == SQLITE_OK) {
        uint64_t total = (uint64_t)sqlite3_backup_pagecount(b);
        uint64_t left = (uint64_t)sqlite3_backup_remaining(b);
        wanted = progress == NULL || progress(ctx, total - left, total);
    }
    sqlite3_backup_finish(b);
    if (!wanted) {
        return l2c_fail(err, L2CDB_E_CANCELLED, "backup cancelled");
    }
    return rc == SQLITE_DONE ? L2CDB_OK : l2c_sqlite_fail(err, to->db, rc, "copying the database");
}

static l2cdb_status rename_synced(const char *from, const char *to, l2cdb_error *err) {
    int fd = open(from, O_RDONLY);
    bool synced = fd >= 0 && fsync(fd) == 0;
    int e = errno;
    if (fd >= 0) {
        close(fd);
    }
    if (!synced) {
        return l2c_fail_errno(err, e, "%s: cannot be synced", from);
    }
    if (rename(from, to) != 0) {
        return l2c_fail_errno(err, errno, "%s: cannot be renamed to %s", from, to);
    }
    return L2CDB_OK;
}

l2cdb_status l2c_store_backup(l2c_store *s, const char *path, backup_progress_fn progress,
                              void *ctx, l2cdb_error *err) {
    l2c_store_conn *from = NULL, *to = NULL;
    char *temp = NULL;
    l2c_buf name;
    l2c_buf_init(&name);
    l2c_buf_printf(&name, "%s.part", path);
    temp = l2c_buf_take(&name);
    if (temp == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    unlink(temp);
    l2cdb_status rc = l2c_reader_get(s, &from, err);
    if (rc == L2CDB_OK) { // one read transaction: the copy is of one moment, whoever writes on
        rc = l2c_store_conn_exec(from, "BEGIN; SELECT value FROM change", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_open(&to, temp, false, true, s->options.busy_ms, err);
    }
    if (rc == L2CDB_OK) {
        rc = copy_pages(from, to, progress, ctx, err);
    }
    l2c_store_conn_close(to);
    if (from != NULL) {
        sqlite3_exec(from->db, "ROLLBACK", NULL, NULL, NULL);
    }
    l2c_reader_put(s, from);
    if (rc == L2CDB_OK) {
        rc = rename_synced(temp, path, err);
    }
    if (rc != L2CDB_OK) {
        unlink(temp);
    }
    l2c_free(temp);
    return rc;
}

/* ---- Check ----------------------------------------------------------------------------------- */

typedef void (*finding_fn)(void *ctx, const char *text);

static l2cdb_status report_rows(l2c_store_conn *c, const char *sql, const char *format,
                                finding_fn finding, void *ctx, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(c, &stmt, sql, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    while (l2c_store_conn_row(c, stmt, "checking", &rc, err)) {
        const char *text = (const char *)sqlite3_column_text(stmt, 0);
        if (text != NULL && strcmp(text, "ok") != 0) {
            char line[512];
            snprintf(line, sizeof line, "%s: %.400s", format, text);
            finding(ctx, line);
        }
    }
    sqlite3_reset(stmt);
    return rc;
}

l2cdb_status l2c_store_check(l2c_store *s, finding_fn finding, void *ctx, l2cdb_error *err) {
    static const struct {
        const char *sql, *format;
    } checks[] = {
        { "PRAGMA integrity_check(100)", "SQLite" },
        { "SELECT 'row ' || rowid || ' of ' || \"table\" || ' refers to a missing ' || parent"
          " FROM pragma_foreign_key_check",
          "foreign key" },
        { "SELECT 'vector ' || id FROM embedding e WHERE NOT EXISTS (SELECT 1 FROM generation g "
          "WHERE"
          " e.space = CASE e.kind WHEN 0 THEN g.image_space ELSE g.caption_space END) LIMIT 100",
          "vector of no generation" },
        { "SELECT path FROM image_path p WHERE NOT EXISTS"
          " (SELECT 1 FROM image i WHERE i.id = p.image_id) LIMIT 100",
          "path of no photo" },
    };
    l2c_store_conn *c;
    l2cdb_status rc = l2c_reader_get(s, &c, err);
    for (size_t i = 0; i < sizeof checks / sizeof *checks && rc == L2CDB_OK; i++) {
        rc = report_rows(c, checks[i].sql, checks[i].format, finding, ctx, err);
    }
    l2c_reader_put(s, c);
    return rc;
}

/* ---- What no foreign key can see ------------------------------------------------------------- */

/* Items are in the low 40 bits of the keys; bit 40 of a vector's key is its kind. */
#define ORPHAN_VECTORS                                                                             \
    "SELECT id FROM embedding WHERE ((id >> 40) & 1 = 0 AND"                                       \
    " (id & 1099511627775) NOT IN (SELECT id FROM image)) OR ((id >> 40) & 1 = 1 AND"              \
    " (id & 1099511627775) NOT IN (SELECT id FROM caption))"
#define ORPHAN_FEATURES                                                                            \
    "SELECT f.id FROM feature f LEFT JOIN trunk t ON t.id = f.id >> 40 WHERE t.id IS NULL OR"      \
    " (t.kind = 0 AND (f.id & 1099511627775) NOT IN (SELECT id FROM image)) OR"                    \
    " (t.kind = 1 AND (f.id & 1099511627775) NOT IN (SELECT id FROM caption))"

static l2cdb_status remove_orphans(l2c_store *s, l2c_store_conn *c, l2cdb_error *err) {
    static const char *const statements[] = {
        "INSERT OR REPLACE INTO removal(id, change) SELECT id, ?1 FROM (" ORPHAN_VECTORS ")",
        "DELETE FROM embedding WHERE id IN (" ORPHAN_VECTORS ") AND ?1",
        "DELETE FROM feature WHERE id IN (" ORPHAN_FEATURES ") AND ?1",
    };
    // One number for all of them, however many: an index that is behind it is built anew.
    int64_t change = l2c_write_change(s);
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < 3 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(c, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, change);
            rc = l2c_store_conn_run(c, stmt, "removing what belongs to no record", err);
        }
    }
    return rc == L2CDB_OK ? l2c_changes_trim(s, change, err) : rc;
}

static l2cdb_status count_orphans(l2c_store *s, uint64_t *orphans, l2cdb_error *err) {
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s,
                                     "SELECT (SELECT count(*) FROM (" ORPHAN_VECTORS "))"
                                     " + (SELECT count(*) FROM (" ORPHAN_FEATURES "))",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (l2c_read_row(&r, "looking for what belongs to no record", &rc, err)) {
        *orphans = (uint64_t)sqlite3_column_int64(r.stmt, 0);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_store_loose(l2c_store *s, bool repair, uint64_t *orphans, bool *words,
                             l2cdb_error *err) {
    *words = true;
    l2cdb_status rc = count_orphans(s, orphans, err);
    if (rc != L2CDB_OK || s->writer == NULL) {
        return rc;
    }
    l2c_write w;
    rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2cdb_error ignored;
    *words = l2c_store_conn_exec(
                 w.conn, "INSERT INTO caption_fts(caption_fts, rank) VALUES('integrity-check', 1)",
                 &ignored) == L2CDB_OK;
    if (repair && !*words) {
        rc = l2c_store_conn_exec(w.conn, "INSERT INTO caption_fts(caption_fts) VALUES('rebuild')",
                                 err);
    }
    if (repair && *orphans > 0 && rc == L2CDB_OK) {
        rc = remove_orphans(s, w.conn, err);
    }
    return l2c_write_end(&w, rc, err);
}
