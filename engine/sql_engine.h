/* What the files of the SQL side share: a SQLite connection that knows our functions and tables.
 *
 * A connection of ours belongs to one statement at a time (or, while a transaction is open, to the
 * statements of the thread that opened it). An extension sits on somebody else's connection
 * (`hosted`) and has no statements of its own.
 *
 * A statement answers from one view: it is taken at first need and kept until the statement is
 * reset, so that embed(), the index and every vector it reads are of one generation. */
#ifndef L2C_SQL_ENGINE_H
#define L2C_SQL_ENGINE_H

#include <math.h>
#include <sqlite3.h>

#include "engine/engine.h"

#define L2C_SQL_NOTES_MAX 16

/* What one pass over images or captions did, for EXPLAIN. */
typedef struct l2c_sql_note {
    char table[16];
    char text[320];
    int64_t estimated, actual; /* rows */
    uint64_t passes;           /* how often the same pass was made (inner side of a join) */
} l2c_sql_note;

typedef struct l2c_sql_conn {
    struct l2c_sql_conn *next; /* of the handle's connections, or of those with the extension */
    l2cdb *db;                 /* NULL: hosted on a file that is no database of ours */
    sqlite3 *sqlite;
    bool hosted;

    unsigned running; /* statements between their first step and their end */
    unsigned users;   /* statements; under db->sql_lock, like the two below */
    bool in_transaction;
    pthread_t owner; /* of the transaction */

    l2c_view *view; /* held while a statement runs, or since the last use when hosted */
    size_t cursors; /* open ones */

    l2cdb_sql_limits limits; /* of the statement that is being compiled or stepped */
    double deadline;         /* by l2c_now, 0: none */
    bool timed_out;
    unsigned internal; /* > 0: a statement of ours is being compiled, whatever the limits */

    l2cdb_error err; /* why one of our functions or tables failed, if `failed` */
    bool failed;

    double encode_s, search_s, fetch_s; /* since the statement began */
    l2c_sql_note notes[L2C_SQL_NOTES_MAX];
    size_t notes_count;

    l2c_store_guest *guest; /* since the first write to images or captions in this transaction */
    bool wrote_captions;

    /* Hosted: SQLite found the last error of a rewritten text at byte `error_from`, which is byte
     * `error_to` of what the program gave; -1: none. */
    int error_from, error_to;
} l2c_sql_conn;

/* A connection for one more statement of this thread, and back. A connection with an open
 * transaction is kept for its thread. */
l2cdb_status l2c_sql_conn_get(l2cdb *db, l2c_sql_conn **out, l2cdb_error *err);
void l2c_sql_conn_put(l2c_sql_conn *c);
/* Notes whether a transaction is open now; after every step. */
void l2c_sql_conn_note_transaction(l2c_sql_conn *c);

/* Registers functions and tables on c->sqlite. */
l2cdb_status l2c_sql_setup(l2c_sql_conn *c, l2cdb_error *err);
l2cdb_status l2c_sql_functions_register(l2c_sql_conn *c, l2cdb_error *err);
/* A module of ours, and what its xConnect is given: the connection, and which table it is. */
typedef struct l2c_sql_module {
    l2c_sql_conn *conn;
    const void *which; /* static */
} l2c_sql_module;
l2cdb_status l2c_sql_module_register(l2c_sql_conn *c, const char *name,
                                     const sqlite3_module *methods, const void *which,
                                     l2cdb_error *err);
/* Declares the columns of the table that is being connected, and makes its object of `size` bytes,
 * zeroed but for what SQLite has in it; to be freed with l2c_free. SQLite's code. */
int l2c_sql_table_new(sqlite3_vtab **out, size_t size, const l2c_sql_module *m, const char *schema);
l2cdb_status l2c_sql_images_register(l2c_sql_conn *c, l2cdb_error *err);
l2cdb_status l2c_sql_tables_register(l2c_sql_conn *c, l2cdb_error *err);

/* The view of this statement; borrowed. E_UNSUPPORTED without a database. */
l2cdb_status l2c_sql_view(l2c_sql_conn *c, l2c_view **out, l2cdb_error *err);
void l2c_sql_view_done(l2c_sql_conn *c);

/* Keeps *e for the caller of l2cdb_step and returns the SQLite code to fail with. */
int l2c_sql_fail(l2c_sql_conn *c, const l2cdb_error *e);
/* The same as the result of a function. */
void l2c_sql_result_fail(sqlite3_context *context, l2c_sql_conn *c, const l2cdb_error *e);
/* The same from a virtual table's method; sets the table's message. */
int l2c_sql_table_fail(sqlite3_vtab *table, l2c_sql_conn *c, const l2cdb_error *e);

/* Compiles a statement of our own on the connection, whatever the limits of the user's. */
l2cdb_status l2c_sql_prepare_own(l2c_sql_conn *c, sqlite3_stmt **out, const char *sql,
                                 l2cdb_error *err);
/* SQLite's code and message (or c->err) as ours. err->offset is SQLite's, in its text. */
l2cdb_status l2c_sql_status(l2c_sql_conn *c, int rc, l2cdb_error *err);

/* A vector out of a value: a blob of f32, or text like [0.1, 0.2]. `data` lives as long as the
 * value or, if `own` is set, until l2c_free(own). E_INVALID for anything else. */
typedef struct l2c_sql_vector {
    const float *data;
    size_t width;
    float *own;
} l2c_sql_vector;
l2cdb_status l2c_sql_vector_of(sqlite3_value *value, l2c_sql_vector *out, l2cdb_error *err);
/* The subtype that marks a blob as a vector. */
#define L2C_SQL_VECTOR_SUBTYPE 'v'
void l2c_sql_result_vector(sqlite3_context *context, const float *data, size_t width);

/* A distance or a score as SQL shows it: f32 near 1 is good for seven decimals, and a value cut to
 * them is the same whether the index or cosine_distance() has computed it. */
static inline double l2c_sql_decimals(double v) {
    return round(v * 1e7) / 1e7;
}

/* E_CANCELLED after an interrupt, E_TIMEOUT past the deadline, else OK; for loops of our own. */
l2cdb_status l2c_sql_poll(l2c_sql_conn *c, l2cdb_error *err);

/* A record for EXPLAIN; NULL when there is no room. Equal passes share one. */
l2c_sql_note *l2c_sql_note_add(l2c_sql_conn *c, const char *table, const char *text,
                               int64_t estimated);

#endif
