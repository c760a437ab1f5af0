/* Answers that do not come from SQLite: EXPLAIN in words and the statements that are our own. */
#ifndef L2C_SQL_ANSWER_H
#define L2C_SQL_ANSWER_H

#include "engine/sql_engine.h"
#include "engine/sql_rewrite.h"

/* One cell; text is owned by the answer. */
typedef struct l2c_answer_cell {
    l2cdb_type type; /* NULL, INTEGER, FLOAT or TEXT */
    int64_t integer;
    double real;
    char *text;
} l2c_answer_cell;

typedef struct l2c_answer {
    const char *const *names; /* static */
    size_t columns;
    l2c_answer_cell *cells; /* row after row */
    size_t rows, capacity;
} l2c_answer;

void l2c_answer_fini(l2c_answer *a);

/* Names of the columns that a statement of this kind answers with; *columns 0 if with none. */
const char *const *l2c_answer_names(l2c_verb verb, size_t *columns);

/* Runs a statement of ours (any verb but PLAIN, EMPTY and EXPLAIN). */
l2cdb_status l2c_answer_command(l2cdb *db, const l2c_rewrite *r, l2c_answer *out, l2cdb_error *err);
/* Runs `stmt`, compiled from r->text with its parameters bound, to its end if it only reads, and
 * tells how it was answered. */
l2cdb_status l2c_answer_explain(l2c_sql_conn *c, sqlite3_stmt *stmt, const l2c_rewrite *r,
                                l2c_answer *out, l2cdb_error *err);
/* True if DROP INDEX `name` means one of ours. */
l2cdb_status l2c_answer_owns_index(l2cdb *db, const char *name, bool *owns, l2cdb_target *target,
                                   l2cdb_error *err);

#endif
