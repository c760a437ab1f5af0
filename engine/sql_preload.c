/* l2cdb-preload.so: lets a program that links SQLite as a shared library take our SQL as it is.
 *
 *   LD_PRELOAD=./l2cdb-preload.so sqlite3 photos.l2cdb -cmd ".load ./l2cdb"
 *
 * It stands before sqlite3_prepare_v2 and _v3, rewrites the text and calls the real ones. A text
 * without anything of ours is passed on untouched, and so is one that the rewriter refuses: SQLite
 * then reports it. Statements that SQL does not have become SELECT l2cdb_exec('…'). Parameters that
 * a rewritten statement moves are numbered ?1, ?2, … in the order they were written; they are bound
 * by number then. */
#include <dlfcn.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sql_rewrite.h"

typedef int (*prepare_fn)(sqlite3 *, const char *, int, unsigned, sqlite3_stmt **, const char **);

static int real_v2(sqlite3 *db, const char *sql, int n, unsigned flags, sqlite3_stmt **out,
                   const char **tail) {
    (void)flags;
    static int (*next)(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
    if (next == NULL) {
        void *symbol = dlsym(RTLD_NEXT, "sqlite3_prepare_v2");
        memcpy(&next, &symbol, sizeof next);
    }
    return next != NULL ? next(db, sql, n, out, tail) : SQLITE_ERROR;
}

static int real_v3(sqlite3 *db, const char *sql, int n, unsigned flags, sqlite3_stmt **out,
                   const char **tail) {
    static int (*next)(sqlite3 *, const char *, int, unsigned, sqlite3_stmt **, const char **);
    if (next == NULL) {
        void *symbol = dlsym(RTLD_NEXT, "sqlite3_prepare_v3");
        memcpy(&next, &symbol, sizeof next);
    }
    return next != NULL ? next(db, sql, n, flags, out, tail) : SQLITE_ERROR;
}

/* The text to run instead of a statement of ours, or NULL to leave it alone. */
static char *replacement(const l2c_rewrite *r, const char *sql) {
    bool plain = r->verb == L2C_VERB_PLAIN || r->verb == L2C_VERB_EMPTY;
    if (plain) {
        return r->changed ? l2c_strdup(r->text.data) : NULL;
    }
    // SQLite has an EXPLAIN, a DROP INDEX, a REINDEX and a VACUUM of its own.
    bool shared = r->verb == L2C_VERB_DROP_INDEX || r->verb == L2C_VERB_VACUUM ||
                  (r->verb == L2C_VERB_REINDEX && r->table == NULL && r->name == NULL) ||
                  (r->verb == L2C_VERB_EXPLAIN && r->operators == 0);
    if (shared) {
        return NULL;
    }
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "SELECT l2cdb_exec('");
    for (size_t i = 0; i < r->tail; i++) {
        l2c_buf_puts(&b, sql[i] == '\'' ? "'" : "");
        l2c_buf_putc(&b, sql[i]);
    }
    l2c_buf_puts(&b, "')");
    return l2c_buf_take(&b);
}

static int prepare(prepare_fn real, sqlite3 *db, const char *sql, int n, unsigned flags,
                   sqlite3_stmt **out, const char **tail) {
    size_t size = sql == NULL ? 0 : n < 0 ? strlen(sql) : strnlen(sql, (size_t)n);
    l2c_rewrite r;
    if (size == 0 || l2c_rewrite_run(&r, sql, size, NULL) != L2CDB_OK) {
        return real(db, sql, n, flags, out, tail);
    }
    char *text = replacement(&r, sql);
    int rc;
    if (text == NULL) {
        rc = real(db, sql, n, flags, out, tail);
    } else {
        rc = real(db, text, -1, flags, out, NULL);
        if (tail != NULL) {
            *tail = sql + r.tail;
        }
    }
    l2c_free(text);
    l2c_rewrite_fini(&r);
    return rc;
}

L2CDB_API int sqlite3_prepare_v2(sqlite3 *db, const char *sql, int n, sqlite3_stmt **out,
                                 const char **tail) {
    return prepare(real_v2, db, sql, n, 0, out, tail);
}

L2CDB_API int sqlite3_prepare_v3(sqlite3 *db, const char *sql, int n, unsigned flags,
                                 sqlite3_stmt **out, const char **tail) {
    return prepare(real_v3, db, sql, n, flags, out, tail);
}
