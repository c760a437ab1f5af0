/* What the files of storage/ share: connections, cached statements, transactions.
 *
 * A store has one writing connection and a free list of reading ones. A connection is used by one
 * thread at a time (SQLite runs in its multi-thread mode, without locks of its own), and keeps the
 * statements it has compiled. A read inside a transaction goes to the writing connection, so that
 * the thread sees what it has just written. */
#ifndef L2C_STORE_CONN_H
#define L2C_STORE_CONN_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "storage/store.h"

#define L2C_STATEMENTS_MAX 96

typedef struct l2c_store_conn {
    sqlite3 *db;
    struct l2c_store_conn *next; /* in the free list */
    size_t statements_count;
    struct {
        const char *sql; /* the literal's address is the key */
        sqlite3_stmt *stmt;
    } statements[L2C_STATEMENTS_MAX];
} l2c_store_conn;

struct l2c_store {
    char *path;
    l2c_store_options options;
    l2c_store_conn *writer; /* NULL when read-only */
    pthread_mutex_t write_lock;
    /* The thread that has the transaction open (the address of a thread-local byte), 0: none. Any
     * thread may ask whether it is the owner, hence atomic. */
    atomic_uintptr_t owner;
    /* The connection that its transaction is on: the writer, or that of a guest. This and the three
     * below are written by whoever holds the write lock of the file. */
    l2c_store_conn *active;
    int64_t change;            /* number that the transaction's rows get now */
    size_t change_rows;        /* rows that have it already */
    bool change_taken;         /* a number was used and must be stored */
    pthread_mutex_t read_lock; /* of the free list and the probe */
    l2c_store_conn *free;
    l2c_store_conn *probe; /* reads the change number */
};

/* A transaction of somebody else's connection that writes records. */
struct l2c_store_guest {
    l2c_store *store;
    l2c_store_conn conn; /* its db is borrowed */
};

/* Translates SQLite's code into ours and says what was being done. */
l2cdb_status l2c_sqlite_fail(l2cdb_error *err, sqlite3 *db, int rc, const char *what);

l2cdb_status l2c_store_conn_open(l2c_store_conn **out, const char *path, bool read_only,
                                 bool create, uint32_t busy_ms, l2cdb_error *err);
void l2c_store_conn_close(l2c_store_conn *c); /* NULL accepted */

/* A connection to read with: the writing one inside this thread's transaction, else a free one. */
l2cdb_status l2c_reader_get(l2c_store *s, l2c_store_conn **out, l2cdb_error *err);
void l2c_reader_put(l2c_store *s, l2c_store_conn *c); /* NULL accepted */
/* The statement of a literal, compiled once a connection, reset and without bindings. Given back
 * with sqlite3_reset. */
l2cdb_status l2c_store_conn_prepare(l2c_store_conn *c, sqlite3_stmt **out, const char *sql,
                                    l2cdb_error *err);
l2cdb_status l2c_store_conn_exec(l2c_store_conn *c, const char *sql, l2cdb_error *err);
/* Whether there is another row. False at the end, and when stepping fails or *rc is not OK already;
 * `what` is what was being done. */
bool l2c_store_conn_row(l2c_store_conn *c, sqlite3_stmt *stmt, const char *what, l2cdb_status *rc,
                        l2cdb_error *err);
/* The number of the last change, and that of the last one whose removals are forgotten. */
l2cdb_status l2c_store_conn_change(l2c_store_conn *c, int64_t *last, int64_t *trimmed,
                                   l2cdb_error *err);
/* Steps a statement that gives no rows, and resets it. */
l2cdb_status l2c_store_conn_run(l2c_store_conn *c, sqlite3_stmt *stmt, const char *what,
                                l2cdb_error *err);

/* E_NOTFOUND for a photo or caption: "photo 7 is not in the database". */
l2cdb_status l2c_record_missing(l2c_kind kind, int64_t id, l2cdb_error *err);
/* All of ids [n] are there, or E_NOTFOUND for the first that is not. */
l2cdb_status l2c_records_require(l2c_store_conn *c, l2c_kind kind, const int64_t *ids, size_t n,
                                 l2cdb_error *err);

/* One reading statement and its connection. Begin, bind, l2c_read_row until it is false, end; end
 * belongs to every begin that succeeded. */
typedef struct l2c_read {
    l2c_store *store;
    l2c_store_conn *conn;
    sqlite3_stmt *stmt;
} l2c_read;
l2cdb_status l2c_read_begin(l2c_read *r, l2c_store *s, const char *sql, l2cdb_error *err);
void l2c_read_end(l2c_read *r);
static inline bool l2c_read_row(l2c_read *r, const char *what, l2cdb_status *rc, l2cdb_error *err) {
    return l2c_store_conn_row(r->conn, r->stmt, what, rc, err);
}

/* A write begins: joins this thread's transaction or opens one of its own. Every l2c_write_begin
 * that succeeded is followed by exactly one l2c_write_end, which commits or rolls back what it
 * opened and passes rc on. */
typedef struct l2c_write {
    l2c_store *store;
    l2c_store_conn *conn;
    bool own;
} l2c_write;
l2cdb_status l2c_write_begin(l2c_write *w, l2c_store *s, l2cdb_error *err);
l2cdb_status l2c_write_end(l2c_write *w, l2cdb_status rc, l2cdb_error *err);
/* The change number for one more altered row of the open transaction. */
int64_t l2c_write_change(l2c_store *s);

/* Keys of vectors: (space, kind, item) in one integer, so that one b-tree in key order serves
 * both lookups and pulls. 22 bits of space, 1 of kind, 40 of item. */
#define L2C_ITEM_BITS 40
#define L2C_ITEM_MAX (((int64_t)1 << L2C_ITEM_BITS) - 1)
#define L2C_GENERATION_MAX (((int64_t)1 << 22) - 1)
static inline int64_t l2c_vector_key(int64_t space, l2c_kind kind, int64_t item) {
    return (space << (L2C_ITEM_BITS + 1)) | ((int64_t)kind << L2C_ITEM_BITS) | item;
}
static inline int64_t l2c_key_item(int64_t key) {
    return key & L2C_ITEM_MAX;
}

/* Removes an item's vectors of every space and notes it in the removal log, and its
 * features. */
l2cdb_status l2c_vectors_forget(l2c_store *s, l2c_store_conn *c, l2c_kind kind, int64_t item_id,
                                l2cdb_error *err);

/* Brings the schema of an open connection to the present version, or refuses. Other processes may
 * do the same at the same moment; it waits busy_ms for them. */
l2cdb_status l2c_schema_prepare(l2c_store_conn *c, const char *path, bool read_only,
                                uint32_t busy_ms, l2cdb_error *err);

/* Binding and reading that every file needs. NULL strings bind NULL. */
void l2c_bind_text(sqlite3_stmt *stmt, int i, const char *text);
/* Column text copied into the arena; NULL for SQL NULL (*failed is set without memory). */
const char *l2c_column_copy(sqlite3_stmt *stmt, int i, l2c_arena *arena, bool *failed);

/* A blob column of `width` floats into out; any other size is E_CORRUPT and names the `noun`
 * ("vector", "feature") of `item`. */
l2cdb_status l2c_column_vector(float *out, sqlite3_stmt *stmt, int column, size_t width,
                               const char *noun, int64_t item, l2cdb_error *err);

#endif
