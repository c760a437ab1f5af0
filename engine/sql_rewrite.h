/* From the SQL that users write to the SQL that SQLite understands. Text in, text out; no database.
 *
 *   l2c_rewrite r;
 *   l2cdb_status rc = l2c_rewrite_run(&r, sql, strlen(sql), &err);
 *   if (rc == L2CDB_OK) { … r.verb, r.text.data … sql + r.tail … }
 *   l2c_rewrite_fini(&r);
 *
 * See the opening of sql_rewrite.c for what is rewritten and why it keeps its meaning. */
#ifndef L2C_SQL_REWRITE_H
#define L2C_SQL_REWRITE_H

#include "engine/base/mem.h"

typedef enum l2c_verb {
    L2C_VERB_EMPTY,        /* only spaces, comments or a bare semicolon */
    L2C_VERB_PLAIN,        /* text goes to SQLite */
    L2C_VERB_EXPLAIN,      /* text is the explained statement */
    L2C_VERB_CREATE_INDEX, /* name, table, value = "kind=hnsw m=32", if_exists = IF NOT EXISTS */
    L2C_VERB_DROP_INDEX,   /* name, if_exists; text is the statement itself, for SQLite's own */
    L2C_VERB_SET,          /* name = "hnsw.ef_search", value */
    L2C_VERB_TUNE,         /* name = pairs file or NULL, value = options "epochs=3 …" or "" */
    L2C_VERB_REINDEX,      /* table = "images", "captions" or NULL; name = generation or NULL */
    L2C_VERB_ROLLBACK_GENERATION,
    L2C_VERB_DROP_GENERATION, /* name = its number */
    L2C_VERB_VACUUM,
} l2c_verb;

/* Output bytes [out, next segment's out) come from input byte `in`; verbatim ones advance with it.
 */
typedef struct l2c_segment {
    size_t out, in;
    bool verbatim;
} l2c_segment;

typedef struct l2c_rewrite {
    l2c_verb verb;
    l2c_buf text;
    bool changed;     /* text differs from the statement as written */
    size_t tail;      /* bytes of the input that belong to this statement, with its semicolon */
    size_t operators; /* `<=>` found; for EXPLAIN and tests */
    size_t indexed;   /* table references that got a query */

    /* Parameters as the user counts them, where the text may have moved them (else 0 and NULL):
     * names[i] belongs to parameter i + 1 and is NULL for a nameless one. `renumbered`: they stand
     * in the text as ?1, ?2, …; otherwise all have names, and SQLite may count them differently. */
    bool renumbered;
    char **names;
    size_t names_count;

    char *name, *table, *value;
    bool if_exists;

    l2c_segment *segments;
    size_t segments_count, segments_capacity;
} l2c_rewrite;

/* Rewrites the first statement of sql[0..n). E_SQL with err->offset into sql when a `<=>` lacks an
 * operand, a named argument is unknown or one of our own statements is malformed; E_LIMIT for
 * nesting deeper than 200 or a statement longer than 1,000,000 bytes; E_NOMEM. On error nothing
 * needs to be freed, but l2c_rewrite_fini is allowed. Other mistakes are left for SQLite to report.
 */
l2cdb_status l2c_rewrite_run(l2c_rewrite *r, const char *sql, size_t n, l2cdb_error *err);
void l2c_rewrite_fini(l2c_rewrite *r);

/* The byte of the user's text that stands at `offset` of the rewritten text. */
size_t l2c_rewrite_offset(const l2c_rewrite *r, size_t offset);

/* What the user wrote for a piece of rewritten text that begins at byte `offset` and is `size`
 * long: first byte in *from, one past the last in *to. False if its ends are not the user's. */
bool l2c_rewrite_span(const l2c_rewrite *r, size_t offset, size_t size, size_t *from, size_t *to);

/* True if sql[0..n) ends with a complete statement: the last token is the semicolon that ends it,
 * or nothing but spaces and comments is there. Quotes, comments and triggers are respected. */
bool l2c_rewrite_complete(const char *sql, size_t n);

#endif
