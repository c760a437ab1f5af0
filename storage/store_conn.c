/* Connections: opened alike everywhere, statements compiled once, errors in our words.
 *
 * Pragmas and why: synchronous=FULL, because a batch is acknowledged after its commit and a commit
 * must outlive a power cut, not only a kill; foreign_keys=ON as a second pair of eyes; 16 MiB of
 * cache a connection; secure_delete=FAST, because zeroing whole freed trees (a dropped generation
 * is gigabytes) would double their cost, and l2c_store_vacuum is what promises erasure. */
#include "storage/store_conn.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* SQLite says FULL for ENOSPC alone; a write beyond a size limit or into a file system without a
 * free block is the same to the user, and its errno does not always reach us. */
static bool disk_is_full(sqlite3 *db, int rc, const char *file) {
    if ((rc & 0xFF) == SQLITE_FULL) {
        return true;
    }
    if (rc != SQLITE_IOERR_WRITE) {
        return false;
    }
    int e = db != NULL ? sqlite3_system_errno(db) : 0;
    struct statvfs fs;
    struct rlimit limit;
    return e == ENOSPC || e == EDQUOT || e == EFBIG ||
           (statvfs(file, &fs) == 0 && fs.f_bavail == 0) ||
           (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY);
}

l2cdb_status l2c_sqlite_fail(l2cdb_error *err, sqlite3 *db, int rc, const char *what) {
    const char *file = db != NULL ? sqlite3_db_filename(db, "main") : NULL;
    const char *text = db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(rc);
    file = file != NULL ? file : "database";
    int code = rc & 0xFF;
    if (disk_is_full(db, rc, file)) {
        l2c_fail(err, L2CDB_E_FULL, "%s: disk full while %s", file, what);
        return l2c_hint(err, "free space there and run again; everything acknowledged is kept");
    }
    switch (code) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        l2c_fail(err, L2CDB_E_BUSY, "%s: another process holds the database while %s", file, what);
        return l2c_hint(err, "try again when it has finished, or stop it");
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        l2c_fail(err, L2CDB_E_DENIED, "%s: not writable while %s: %s", file, what, text);
        return l2c_hint(err, "check the permissions of the file and of its directory");
    case SQLITE_NOMEM:
        return l2c_fail(err, L2CDB_E_NOMEM, "%s: out of memory while %s", file, what);
    case SQLITE_INTERRUPT:
        return l2c_fail(err, L2CDB_E_CANCELLED, "%s: cancelled while %s", file, what);
    case SQLITE_CORRUPT:
        l2c_fail(err, L2CDB_E_CORRUPT, "%s: damaged database found while %s: %s", file, what, text);
        return l2c_hint(err, "run `l2cdb check` and restore a backup");
    case SQLITE_NOTADB:
        l2c_fail(err, L2CDB_E_FORMAT, "%s: not an l2cdb database (no SQLite file header)", file);
        return l2c_hint(err, "name another file, or move this one away");
    case SQLITE_CONSTRAINT:
        return l2c_fail(err, L2CDB_E_EXISTS, "%s: %s while %s", file, text, what);
    case SQLITE_CANTOPEN:
        return l2c_fail(err, L2CDB_E_IO, "%s: cannot be opened while %s: %s", file, what, text);
    case SQLITE_IOERR:
        l2c_fail(err, L2CDB_E_IO, "%s: %s while %s (SQLite code %d)", file, text, what, rc);
        return l2c_hint(err, "check the disk, its free space and your quota");
    case SQLITE_TOOBIG:
        return l2c_fail(err, L2CDB_E_LIMIT, "%s: value too large while %s", file, what);
    default:
        return l2c_fail(err, L2CDB_E_INTERNAL, "%s: %s while %s (SQLite code %d)", file, text, what,
                        rc);
    }
}

l2cdb_status l2c_store_conn_exec(l2c_store_conn *c, const char *sql, l2cdb_error *err) {
    int rc = sqlite3_exec(c->db, sql, NULL, NULL, NULL);
    if (rc != SQLITE_OK) {
        char what[96];
        snprintf(what, sizeof what, "running %.60s", sql);
        return l2c_sqlite_fail(err, c->db, rc, what);
    }
    return L2CDB_OK;
}

l2cdb_status l2c_store_conn_prepare(l2c_store_conn *c, sqlite3_stmt **out, const char *sql,
                                    l2cdb_error *err) {
    for (size_t i = 0; i < c->statements_count; i++) {
        if (c->statements[i].sql == sql) {
            *out = c->statements[i].stmt;
            sqlite3_reset(*out);
            sqlite3_clear_bindings(*out);
            return L2CDB_OK;
        }
    }
    *out = NULL;
    if (c->statements_count == L2C_STATEMENTS_MAX) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "a connection has more than %d statements",
                        L2C_STATEMENTS_MAX);
    }
    int rc = sqlite3_prepare_v3(c->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    if (rc != SQLITE_OK) {
        char what[96];
        snprintf(what, sizeof what, "preparing %.60s", sql);
        return l2c_sqlite_fail(err, c->db, rc, what);
    }
    c->statements[c->statements_count].sql = sql;
    c->statements[c->statements_count].stmt = *out;
    c->statements_count++;
    return L2CDB_OK;
}

bool l2c_store_conn_row(l2c_store_conn *c, sqlite3_stmt *stmt, const char *what, l2cdb_status *rc,
                        l2cdb_error *err) {
    if (*rc != L2CDB_OK) {
        return false;
    }
    int step = sqlite3_step(stmt);
    if (step != SQLITE_ROW && step != SQLITE_DONE) {
        *rc = l2c_sqlite_fail(err, c->db, step, what);
    }
    return step == SQLITE_ROW;
}

l2cdb_status l2c_store_conn_change(l2c_store_conn *c, int64_t *last, int64_t *trimmed,
                                   l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(c, &stmt, "SELECT value, trimmed FROM change", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (l2c_store_conn_row(c, stmt, "reading the change number", &rc, err)) {
        *last = sqlite3_column_int64(stmt, 0);
        *trimmed = sqlite3_column_int64(stmt, 1);
    } else if (rc == L2CDB_OK) {
        rc = l2c_sqlite_fail(err, c->db, SQLITE_CORRUPT, "reading the change number");
    }
    sqlite3_reset(stmt);
    return rc;
}

l2cdb_status l2c_record_missing(l2c_kind kind, int64_t id, l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_NOTFOUND, "%s %lld is not in the database",
                    kind == L2C_KIND_IMAGE ? "photo" : "caption", (long long)id);
}

l2cdb_status l2c_records_require(l2c_store_conn *c, l2c_kind kind, const int64_t *ids, size_t n,
                                 l2cdb_error *err) {
    static const char *const statements[] = {
        [L2C_KIND_IMAGE] = "SELECT 1 FROM image WHERE id = ?1",
        [L2C_KIND_CAPTION] = "SELECT 1 FROM caption WHERE id = ?1",
    };
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(c, &stmt, statements[kind], err);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        sqlite3_bind_int64(stmt, 1, ids[i]);
        if (!l2c_store_conn_row(c, stmt, "looking for a record", &rc, err) && rc == L2CDB_OK) {
            rc = l2c_record_missing(kind, ids[i], err);
        }
        sqlite3_reset(stmt);
    }
    return rc;
}

l2cdb_status l2c_store_conn_run(l2c_store_conn *c, sqlite3_stmt *stmt, const char *what,
                                l2cdb_error *err) {
    int rc = sqlite3_step(stmt);
    l2cdb_status status = L2CDB_OK;
    if (rc != SQLITE_DONE && rc != SQLITE_ROW) {
        status = l2c_sqlite_fail(err, c->db, rc, what);
    }
    sqlite3_reset(stmt);
    return status;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void finalize_all(l2c_store_conn *c) {
    for (size_t i = 0; i < c->statements_count; i++) {
        sqlite3_finalize(c->statements[i].stmt);
    }
}

void l2c_store_conn_close(l2c_store_conn *c) {
    if (c == NULL) {
        return;
    }
    finalize_all(c);
    sqlite3_close(c->db);
    l2c_free(c);
}

static l2cdb_status open_failed(sqlite3 *db, const char *path, int rc, l2cdb_error *err) {
    int e = db != NULL ? sqlite3_system_errno(db) : 0;
    if ((rc & 0xFF) == SQLITE_CANTOPEN && e != 0) {
        l2c_fail_errno(err, e, "%s: the database cannot be opened", path);
        if (e == ENOENT) {
            return l2c_hint(err, "check the path; `l2cdb ingest DIR` makes a new database");
        }
        return l2c_hint(err, "check the permissions of the file and of its directory");
    }
    if ((rc & 0xFF) == SQLITE_CANTOPEN) {
        return l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database cannot be opened: %s", path,
                        db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    }
    return l2c_sqlite_fail(err, db, rc, "opening it");
}

/* A database on a medium that cannot be written has no -shm file to share: if there is no log to
 * read either, it is opened as immutable. */
static int open_immutable(sqlite3 **db, const char *path) {
    l2c_buf uri;
    l2c_buf_init(&uri);
    l2c_buf_printf(&uri, "%s-wal", path);
    bool has_log = uri.failed || access(uri.data, F_OK) == 0;
    l2c_buf_clear(&uri);
    l2c_buf_puts(&uri, "file:");
    for (const char *p = path; *p != '\0'; p++) {
        if (strchr("%?#", *p) != NULL) {
            l2c_buf_printf(&uri, "%%%02X", (unsigned char)*p);
        } else {
            l2c_buf_putc(&uri, *p);
        }
    }
    l2c_buf_puts(&uri, "?immutable=1");
    int rc = SQLITE_CANTOPEN;
    if (!has_log && !uri.failed) {
        sqlite3_close(*db);
        *db = NULL;
        rc = sqlite3_open_v2(uri.data, db,
                             SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL);
    }
    l2c_buf_fini(&uri);
    return rc;
}

l2cdb_status l2c_store_conn_open(l2c_store_conn **out, const char *path, bool read_only,
                                 bool create, uint32_t busy_ms, l2cdb_error *err) {
    *out = NULL;
    l2c_store_conn *c = l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return l2c_fail_nomem(err, sizeof *c);
    }
    int flags = read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    if (create && !read_only) {
        flags |= SQLITE_OPEN_CREATE;
    }
    int rc = sqlite3_open_v2(path, &c->db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_extended_result_codes(c->db, 1);
        sqlite3_busy_timeout(c->db, (int)busy_ms);
        // Reads the file's first page, so that what is wrong with it is known here.
        rc = sqlite3_exec(c->db, "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
    }
    if ((rc & 0xFF) == SQLITE_CANTOPEN && read_only && access(path, R_OK) == 0) {
        rc = open_immutable(&c->db, path);
        if (rc == SQLITE_OK) {
            sqlite3_extended_result_codes(c->db, 1);
            rc = sqlite3_exec(c->db, "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
        }
    }
    l2cdb_status status = L2CDB_OK;
    if (rc != SQLITE_OK) {
        status = open_failed(c->db, path, rc, err);
    } else {
        status = l2c_store_conn_exec(c,
                                     "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                                     " PRAGMA cache_size=-16384; PRAGMA secure_delete=FAST;"
                                     " PRAGMA temp_store=MEMORY",
                                     err);
    }
    if (status != L2CDB_OK) {
        l2c_store_conn_close(c);
        return status;
    }
    *out = c;
    return L2CDB_OK;
}

/* ---- Readers --------------------------------------------------------------------------------- */

static uintptr_t this_thread(void) {
    static _Thread_local char mark;
    return (uintptr_t)&mark;
}

static bool owns_transaction(const l2c_store *s) {
    return atomic_load(&s->owner) == this_thread();
}

bool l2c_store_in_transaction(const l2c_store *s) {
    return owns_transaction(s);
}

l2cdb_status l2c_reader_get(l2c_store *s, l2c_store_conn **out, l2cdb_error *err) {
    if (owns_transaction(s)) {
        *out = s->active;
        return L2CDB_OK;
    }
    pthread_mutex_lock(&s->read_lock);
    l2c_store_conn *c = s->free;
    if (c != NULL) {
        s->free = c->next;
    }
    pthread_mutex_unlock(&s->read_lock);
    *out = c;
    return c != NULL ? L2CDB_OK
                     : l2c_store_conn_open(out, s->path, true, false, s->options.busy_ms, err);
}

void l2c_reader_put(l2c_store *s, l2c_store_conn *c) {
    if (c == NULL || (owns_transaction(s) && c == s->active)) {
        return;
    }
    pthread_mutex_lock(&s->read_lock);
    c->next = s->free;
    s->free = c;
    pthread_mutex_unlock(&s->read_lock);
}

l2cdb_status l2c_read_begin(l2c_read *r, l2c_store *s, const char *sql, l2cdb_error *err) {
    *r = (l2c_read){ .store = s };
    l2cdb_status rc = l2c_reader_get(s, &r->conn, err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(r->conn, &r->stmt, sql, err);
    }
    if (rc != L2CDB_OK) {
        l2c_reader_put(s, r->conn);
    }
    return rc;
}

void l2c_read_end(l2c_read *r) {
    sqlite3_reset(r->stmt);
    l2c_reader_put(r->store, r->conn);
}

/* ---- Transactions ---------------------------------------------------------------------------- */

static void start_changes(l2c_store *s, int64_t last) {
    s->change = last + 1;
    s->change_rows = 0;
    s->change_taken = false;
}

l2cdb_status l2c_store_begin(l2c_store *s, l2cdb_error *err) {
    if (s->writer == NULL) {
        l2c_fail(err, L2CDB_E_DENIED, "%s: opened read-only", s->path);
        return l2c_hint(err, "open it for writing");
    }
    if (owns_transaction(s)) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "this thread has a transaction open already");
    }
    pthread_mutex_lock(&s->write_lock);
    l2cdb_status rc = l2c_store_conn_exec(s->writer, "BEGIN IMMEDIATE", err);
    int64_t last, trimmed;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_change(s->writer, &last, &trimmed, err);
        if (rc != L2CDB_OK) {
            sqlite3_exec(s->writer->db, "ROLLBACK", NULL, NULL, NULL);
        }
    }
    if (rc != L2CDB_OK) {
        pthread_mutex_unlock(&s->write_lock);
        return rc;
    }
    start_changes(s, last);
    s->active = s->writer;
    atomic_store(&s->owner, this_thread());
    return L2CDB_OK;
}

/* The lock of the file is free already: a guest may be the owner by now. */
static void disown(l2c_store *s) {
    uintptr_t self = this_thread();
    (void)atomic_compare_exchange_strong(&s->owner, &self, 0);
}

static void leave_transaction(l2c_store *s) {
    disown(s);
    pthread_mutex_unlock(&s->write_lock);
}

void l2c_store_rollback(l2c_store *s) {
    if (!owns_transaction(s)) {
        return;
    }
    // A full disk has rolled back already: then this finds no transaction, which is what it wants.
    sqlite3_exec(s->writer->db, "ROLLBACK", NULL, NULL, NULL);
    leave_transaction(s);
}

static l2cdb_status store_change(l2c_store *s, l2cdb_error *err) {
    if (!s->change_taken) {
        return L2CDB_OK;
    }
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(s->active, &stmt, "UPDATE change SET value = ?1", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, s->change);
        rc = l2c_store_conn_run(s->active, stmt, "storing the change number", err);
    }
    return rc;
}

l2cdb_status l2c_store_commit(l2c_store *s, l2cdb_error *err) {
    if (!owns_transaction(s)) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "commit without a transaction of this thread");
    }
    l2cdb_status rc = store_change(s, err);
    if (rc == L2CDB_OK) {
        rc =
            l2c_store_conn_exec(s->writer, "COMMIT", err); // from here on the batch is acknowledged
    }
    if (rc != L2CDB_OK) {
        l2c_store_rollback(s);
        return rc;
    }
    leave_transaction(s);
    return L2CDB_OK;
}

l2cdb_status l2c_store_guest_open(l2c_store_guest **out, l2c_store *s, sqlite3 *db,
                                  l2cdb_error *err) {
    *out = NULL;
    if (owns_transaction(s)) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "this thread has a transaction open already");
    }
    l2c_store_guest *g = l2c_calloc(1, sizeof *g);
    if (g == NULL) {
        return l2c_fail_nomem(err, sizeof *g);
    }
    g->store = s;
    g->conn.db = db;
    int64_t last, trimmed;
    l2cdb_status rc = l2c_store_conn_change(&g->conn, &last, &trimmed, err);
    if (rc != L2CDB_OK) {
        l2c_store_guest_close(g);
        return rc;
    }
    start_changes(s, last);
    s->active = &g->conn;
    *out = g;
    return L2CDB_OK;
}

void l2c_store_guest_enter(l2c_store_guest *g) {
    atomic_store(&g->store->owner, this_thread());
}

void l2c_store_guest_leave(l2c_store_guest *g) {
    disown(g->store);
}

l2cdb_status l2c_store_guest_finish(l2c_store_guest *g, l2cdb_error *err) {
    return store_change(g->store, err);
}

void l2c_store_guest_close(l2c_store_guest *g) {
    if (g != NULL) {
        finalize_all(&g->conn);
        l2c_free(g);
    }
}

int64_t l2c_write_change(l2c_store *s) {
    if (s->change_rows == L2C_CHANGE_ROWS) {
        s->change++;
        s->change_rows = 0;
    }
    s->change_rows++;
    s->change_taken = true;
    return s->change;
}

l2cdb_status l2c_write_begin(l2c_write *w, l2c_store *s, l2cdb_error *err) {
    *w = (l2c_write){ .store = s, .conn = s->writer };
    if (owns_transaction(s)) {
        w->conn = s->active;
        return L2CDB_OK;
    }
    w->own = true;
    return l2c_store_begin(s, err);
}

l2cdb_status l2c_write_end(l2c_write *w, l2cdb_status rc, l2cdb_error *err) {
    if (!w->own) {
        return rc;
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(w->store, err);
    }
    l2c_store_rollback(w->store);
    return rc;
}

/* ---- Values ---------------------------------------------------------------------------------- */

void l2c_bind_text(sqlite3_stmt *stmt, int i, const char *text) {
    if (text != NULL) {
        sqlite3_bind_text(stmt, i, text, -1, SQLITE_STATIC);
    } else {
        sqlite3_bind_null(stmt, i);
    }
}

const char *l2c_column_copy(sqlite3_stmt *stmt, int i, l2c_arena *arena, bool *failed) {
    const unsigned char *text = sqlite3_column_text(stmt, i);
    if (text == NULL) {
        return NULL;
    }
    size_t n = (size_t)sqlite3_column_bytes(stmt, i);
    char *copy = l2c_arena_alloc(arena, n + 1, 1);
    if (copy == NULL) {
        *failed = true;
        return NULL;
    }
    memcpy(copy, text, n);
    copy[n] = '\0';
    return copy;
}

l2cdb_status l2c_column_vector(float *out, sqlite3_stmt *stmt, int column, size_t width,
                               const char *noun, int64_t item, l2cdb_error *err) {
    size_t bytes = (size_t)sqlite3_column_bytes(stmt, column);
    if (bytes != width * sizeof *out) {
        l2c_fail(err, L2CDB_E_CORRUPT, "the %s of item %lld has %zu bytes, expected %zu", noun,
                 (long long)item, bytes, width * sizeof *out);
        return l2c_hint(err, "run `l2cdb check --repair`");
    }
    memcpy(out, sqlite3_column_blob(stmt, column), bytes);
    return L2CDB_OK;
}
