/* What the files of the virtual tables images and captions share (sql_images.c opens with how they
 * work): the columns, the plan that xBestIndex writes and xFilter reads, the cursor of a pass. */
#ifndef L2C_SQL_IMAGES_H
#define L2C_SQL_IMAGES_H

#include "engine/sql_engine.h"

#define L2C_SQL_BATCH_MAX 1024
#define L2C_SQL_TERMS_MAX 32
#define L2C_SQL_ORDER_MAX 8

/* ---- Tables ---- */

typedef struct l2c_sql_column {
    const char *name, *type;
    const char *expression; /* over the record's table, alias t */
    double share;           /* of the rows that one value is guessed to have */
} l2c_sql_column;

/* Columns behind those of the record; the first three can be seen. */
enum { L2C_SQL_EMBEDDING, L2C_SQL_SCORE, L2C_SQL_DISTANCE, L2C_SQL_QUERY, L2C_SQL_K, L2C_SQL_RANK };

typedef struct l2c_sql_target {
    const char *name;   /* of the virtual table */
    const char *record; /* table of the store */
    l2c_kind kind;
    const l2c_sql_column *columns;
    int count;
} l2c_sql_target;

typedef struct l2c_sql_images {
    sqlite3_vtab base;
    l2c_sql_conn *conn;
    const l2c_sql_target *target;
    int64_t rows; /* estimate */
    unsigned rows_age;
    /* The cursor closed last, with its compiled statements: the same question asked again, as by a
     * prepared statement, needs them again. NULL: none. */
    struct l2c_sql_cursor *spare;
} l2c_sql_images;

/* ---- Plans: what xBestIndex tells xFilter (sql_images_plan.c) ---- */

/* One argument of xFilter. */
typedef struct l2c_sql_plan_term {
    char role;      /* q query, m match, k, l limit, d distance below, f condition */
    char op;        /* = i < l > g ! L G 0 1 I: i is IS, l <=, g >=, 0 and 1 IS (NOT) NULL, I IN */
    char collation; /* B N R */
    int column;
} l2c_sql_plan_term;

typedef struct l2c_sql_plan {
    uint64_t used; /* columns SQLite will ask for */
    int64_t estimated;
    bool near; /* by distance */
    bool bare_first, bare_last;
    struct {
        int column;
        bool descending;
    } order[L2C_SQL_ORDER_MAX];
    size_t order_count;
    l2c_sql_plan_term terms[L2C_SQL_TERMS_MAX];
    size_t terms_count;
} l2c_sql_plan;

/* The plan in the form of idxStr, for sqlite3_free; NULL without memory. */
char *l2c_sql_plan_write(const l2c_sql_plan *p);
void l2c_sql_plan_read(l2c_sql_plan *p, const char *s);
/* How many terms are conditions on columns. */
size_t l2c_sql_plan_conditions(const l2c_sql_plan *p);
int l2c_sql_images_best_index(sqlite3_vtab *base, sqlite3_index_info *info);

/* ---- Passes (sql_images_cursor.c; their statements: sql_images_pass.c) ---- */

/* The statements of a pass, compiled when they are first needed and kept while the plan is. */
enum {
    L2C_SQL_PASS_ROWS,
    L2C_SQL_PASS_ROW,
    L2C_SQL_PASS_ROW_FILTERED,
    L2C_SQL_PASS_IDS,
    L2C_SQL_PASS_BARE,
    L2C_SQL_PASS_STATEMENTS
};

typedef enum l2c_sql_phase {
    L2C_SQL_PHASE_ROWS,
    L2C_SQL_PHASE_BARE_FIRST,
    L2C_SQL_PHASE_STREAM,
    L2C_SQL_PHASE_LATE,
    L2C_SQL_PHASE_BARE_LAST,
    L2C_SQL_PHASE_END
} l2c_sql_phase;

typedef struct l2c_sql_neighbour {
    int64_t id;
    float distance;
} l2c_sql_neighbour;

typedef struct l2c_sql_cursor {
    sqlite3_vtab_cursor base;
    l2c_sql_plan p;
    char *plan_text;
    int64_t space;  /* of the vectors that the statements were compiled for */
    bool unsettled; /* and whether the transaction had written */
    sqlite3_stmt *statements[L2C_SQL_PASS_STATEMENTS];
    sqlite3_value *values[L2C_SQL_TERMS_MAX]; /* copies of xFilter's arguments … */
    char *lists[L2C_SQL_TERMS_MAX];           /* … and IN lists as JSON */

    l2c_sql_phase phase;
    sqlite3_stmt *current; /* stands on the row */
    bool has_distance;
    float distance;

    l2c_scan *scan;
    int64_t ids[L2C_SQL_BATCH_MAX];
    float distances[L2C_SQL_BATCH_MAX];
    size_t at, got, batch;
    float reached; /* the largest distance so far */
    l2c_sql_neighbour *late;
    size_t late_count, late_capacity, late_at;
    bool filtered; /* conditions are checked while fetching */
    double bound;  /* no row beyond this distance is wanted */
    uint64_t limit, emitted;
    bool noted; /* a pass is open that EXPLAIN has not heard of */
    size_t set_rows;
    bool has_set;
} l2c_sql_cursor;

static inline l2c_sql_images *l2c_sql_cursor_table(const l2c_sql_cursor *c) {
    return (l2c_sql_images *)c->base.pVtab;
}

static inline l2c_sql_conn *l2c_sql_cursor_conn(const l2c_sql_cursor *c) {
    return l2c_sql_cursor_table(c)->conn;
}

/* The statement, compiled, reset and with the conditions' values bound. */
l2cdb_status l2c_sql_pass_statement(l2c_sql_cursor *c, int which, sqlite3_stmt **out,
                                    l2cdb_error *err);
l2cdb_status l2c_sql_pass_step(l2c_sql_cursor *c, sqlite3_stmt *s, bool *row, l2cdb_error *err);
/* Forgets all statements: the plan, the space or the transaction is another. */
void l2c_sql_pass_drop(l2c_sql_cursor *c);

int l2c_sql_images_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out);
int l2c_sql_images_close(sqlite3_vtab_cursor *base);
int l2c_sql_images_filter(sqlite3_vtab_cursor *base, int number, const char *text, int argc,
                          sqlite3_value **args);
int l2c_sql_images_next(sqlite3_vtab_cursor *base);
int l2c_sql_images_eof(sqlite3_vtab_cursor *base);
int l2c_sql_images_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int i);
int l2c_sql_images_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *out);
/* Frees a cursor that is closed, NULL accepted. */
void l2c_sql_cursor_free(l2c_sql_cursor *c);

/* ---- Writing (sql_images_write.c) ---- */

int l2c_sql_images_update(sqlite3_vtab *base, int argc, sqlite3_value **args, sqlite3_int64 *id);
int l2c_sql_images_begin(sqlite3_vtab *base);
int l2c_sql_images_sync(sqlite3_vtab *base);
int l2c_sql_images_commit(sqlite3_vtab *base);
int l2c_sql_images_rollback(sqlite3_vtab *base);

#endif
