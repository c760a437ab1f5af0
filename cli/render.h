/* Rows to a stream in the form the reader wants: boxes for people, CSV and JSON for programs.
 *
 *   const char *names[] = { "path", "score" };
 *   l2c_render_options o;
 *   l2c_render_options_init(&o, stdout);
 *   l2c_render *r = l2c_render_new(&o, names, 2);
 *   l2c_render_row(r, (l2c_cell[]){ l2c_cell_text(path), l2c_cell_real(score, 3) });
 *   return l2c_render_end(r);
 *
 * Rows stream. Only box and table look ahead: they hold the first l2c_render_options.sample rows to
 * choose widths, then print as they come; a later cell that is wider pushes its row out of line, or
 * is cut where rows must fit a terminal. */
#ifndef L2C_RENDER_H
#define L2C_RENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/l2cdb.h"

typedef enum l2c_render_mode {
    L2C_RENDER_BOX,    /* Unicode lines round the cells */
    L2C_RENDER_TABLE,  /* the same in ASCII */
    L2C_RENDER_COLUMN, /* aligned, no lines: what commands print for people */
    L2C_RENDER_CSV,    /* RFC 4180 quoting, lines end in \n */
    L2C_RENDER_TSV,    /* tab and newline inside a cell as \t and \n */
    L2C_RENDER_JSON,   /* one array of objects */
    L2C_RENDER_JSONL,  /* one object a line */
    L2C_RENDER_LINE,   /* "name = value", a blank line between rows */
    L2C_RENDER_HTML,   /* a <table> */
} l2c_render_mode;

/* "box", "table", …; false if there is no such mode. */
bool l2c_render_mode_parse(l2c_render_mode *out, const char *name);
const char *l2c_render_mode_name(l2c_render_mode mode);
/* "box, table, …" for help and errors. */
#define L2C_RENDER_MODES "box, table, column, csv, tsv, json, jsonl, line or html"

typedef enum l2c_cell_type {
    L2C_CELL_NULL,
    L2C_CELL_BOOL,
    L2C_CELL_INT,
    L2C_CELL_REAL,
    L2C_CELL_TEXT,   /* text, size */
    L2C_CELL_BLOB,   /* data, size in bytes */
    L2C_CELL_VECTOR, /* data is f32, size in values */
} l2c_cell_type;

/* Borrowed until l2c_render_row returns. */
typedef struct l2c_cell {
    l2c_cell_type type;
    int64_t integer; /* also BOOL */
    double real;
    int decimals; /* REAL: fixed in tables, at most this many elsewhere; -1: shortest */
    const void *data;
    size_t size;
} l2c_cell;

l2c_cell l2c_cell_null(void);
l2c_cell l2c_cell_bool(bool v);
l2c_cell l2c_cell_int(int64_t v);
l2c_cell l2c_cell_real(double v, int decimals);
l2c_cell l2c_cell_text(const char *s); /* NULL: null */
l2c_cell l2c_cell_blob(const void *data, size_t size);
l2c_cell l2c_cell_vector(const float *v, size_t n);
/* Column i of the row a statement stands on. */
l2c_cell l2c_cell_column(l2cdb_stmt *s, int i);

typedef struct l2c_render_options {
    FILE *out;
    l2c_render_mode mode;  /* default: box on a terminal, else column */
    bool headers;          /* default true; JSON always names */
    bool colour;           /* default l2c_term_colour(out) */
    const char *null;      /* text of NULL in box, table, column, line; default "" */
    const char *separator; /* CSV; default "," */
    size_t width_max;      /* columns a cell may take in box, table and column before it is cut with
                              "…"; 0 (default): as many as it needs */
    size_t columns_max;    /* columns a row may take in them: texts are cut, the longest first;
                              default: the terminal's width, 0 off a terminal: any number */
    size_t sample;         /* rows looked at for widths; default 1,000 */
} l2c_render_options;
void l2c_render_options_init(l2c_render_options *o, FILE *out);

typedef struct l2c_render l2c_render;

/* names are copied, separator and null borrowed. NULL without memory. */
l2c_render *l2c_render_new(const l2c_render_options *o, const char *const *names, size_t columns);
/* False when the output could not be written or memory ran out: stop. */
bool l2c_render_row(l2c_render *r, const l2c_cell *cells);
/* Prints what was held back and the end of the form, frees. False as above. NULL accepted (false).
 * A table without rows prints nothing but its header. */
bool l2c_render_end(l2c_render *r);
/* Rows so far. */
uint64_t l2c_render_rows(const l2c_render *r);

/* Steps a statement to its end and prints all its rows; *rows (may be NULL) is their number. The
 * statement's own error, E_NOMEM, or E_IO when the output could not be written. */
l2cdb_status l2c_render_statement(const l2c_render_options *o, l2cdb_stmt *s, uint64_t *rows,
                                  l2cdb_error *err);

#endif
