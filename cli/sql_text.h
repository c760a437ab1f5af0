/* SQL as people hand it to a command: several statements, parameters by name, errors with a caret.
 *
 *   l2c_sql_params params = { 0 };
 *   l2c_sql_params_set(&params, "q=dog");
 *   rc = l2c_sql_text_run(db, "SELECT …; SELECT …", &options);
 *   l2c_sql_params_clear(&params); */
#ifndef L2C_SQL_TEXT_H
#define L2C_SQL_TEXT_H

#include "cli/preview.h"
#include "cli/render.h"
#include "engine/l2cdb.h"

typedef struct l2c_sql_param {
    char *name; /* without its sign, or a number */
    enum { L2C_PARAM_NULL, L2C_PARAM_INT, L2C_PARAM_REAL, L2C_PARAM_TEXT, L2C_PARAM_BLOB } type;
    int64_t integer;
    double real;
    char *data; /* text or bytes */
    size_t size;
    bool used; /* some statement had it */
} l2c_sql_param;

typedef struct l2c_sql_params {
    l2c_sql_param *list;
    size_t count;
} l2c_sql_params;

/* "name=value": null, a number as one would write it, @FILE for a file's bytes (@@ for a text that
 * begins with @), else text. A name set again gets the new value. Prints what is wrong; an exit
 * status. */
int l2c_sql_params_set(l2c_sql_params *p, const char *assignment);
void l2c_sql_params_clear(l2c_sql_params *p);
/* The first value that no statement asked for; NULL if there is none. */
const char *l2c_sql_params_unused(const l2c_sql_params *p);

typedef struct l2c_sql_text_options {
    l2c_render_options render;
    l2c_sql_params *params; /* NULL: none */
    const l2cdb_sql_limits *limits;
    l2c_preview_mode preview; /* thumbnails beside rows that name a photo */
    bool timer;               /* rows and time of each statement on stderr */
    bool changes;             /* say how many rows a statement wrote */
    bool go_on;               /* past a statement that failed */
} l2c_sql_text_options;

/* Runs every statement of the text. Returns an exit status: FAILED if one failed, USAGE if one is
 * malformed. Rows go to options->render.out, everything else to stderr. */
int l2c_sql_text_run(l2cdb *db, const char *sql, const l2c_sql_text_options *options);

/* The message; for an error with an offset also the line of `sql` it stands in, with a caret below
 * the byte; then the hint. */
void l2c_sql_text_error(FILE *out, const char *sql, const l2cdb_error *err);

#endif
