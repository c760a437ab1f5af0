/* The statements of a pass over images or captions: on the table of the records, with the
 * conditions and the order that were pushed down. */
#include "engine/sql_images.h"

#include <inttypes.h>

/* The vector of record t. Keys of vectors are space << 41 | kind << 40 | item
 * (docs/format.md); the primary key is the only quick way to one. */
static void put_vector(l2c_buf *b, const l2c_sql_cursor *c, const char *result) {
    int64_t base = c->space << 41 | (int64_t)l2c_sql_cursor_table(c)->target->kind << 40;
    l2c_buf_printf(b, "(SELECT %s FROM main.embedding e WHERE e.id = %" PRId64 " + t.id)", result,
                   base);
}

static void put_columns(l2c_buf *b, const l2c_sql_cursor *c) {
    const l2c_sql_target *g = l2c_sql_cursor_table(c)->target;
    for (int i = 0; i < g->count; i++) {
        bool used = i == 0 || ((c->p.used >> i) & 1) != 0;
        l2c_buf_printf(b, "%s%s", i == 0 ? "" : ",", used ? g->columns[i].expression : "NULL");
    }
    l2c_buf_putc(b, ',');
    if ((c->p.used >> (g->count + L2C_SQL_EMBEDDING)) & 1) {
        put_vector(b, c, "vector");
    } else {
        l2c_buf_puts(b, "NULL");
    }
}

static const char *operator_text(char op) {
    switch (op) {
    case '=':
        return "=";
    case 'i':
        return "IS";
    case '<':
        return "<";
    case 'l':
        return "<=";
    case '>':
        return ">";
    case 'g':
        return ">=";
    case '!':
        return "<>";
    case 'L':
        return "LIKE";
    default:
        return "GLOB";
    }
}

/* " AND condition" for each; parameter i + 2 is the value of term i. */
static void put_conditions(l2c_buf *b, const l2c_sql_cursor *c) {
    const l2c_sql_target *g = l2c_sql_cursor_table(c)->target;
    for (size_t i = 0; i < c->p.terms_count; i++) {
        const l2c_sql_plan_term *t = &c->p.terms[i];
        if (t->role != 'f') {
            continue;
        }
        l2c_buf_puts(b, " AND ");
        if (t->column >= g->count) {
            l2c_buf_puts(b, t->op == '0' ? "NOT EXISTS " : "EXISTS ");
            put_vector(b, c, "1");
            continue;
        }
        const char *expression = g->columns[t->column].expression;
        if (t->op == '0' || t->op == '1') {
            l2c_buf_printf(b, "%s IS %sNULL", expression, t->op == '1' ? "NOT " : "");
            continue;
        }
        const char *collation = t->collation == 'N'   ? " COLLATE NOCASE"
                                : t->collation == 'R' ? " COLLATE RTRIM"
                                                      : "";
        if (t->op == 'I') {
            l2c_buf_printf(b, "%s%s IN (SELECT value FROM json_each(?%zu))", expression, collation,
                           i + 2);
        } else {
            l2c_buf_printf(b, "%s%s %s ?%zu", expression, collation, operator_text(t->op), i + 2);
        }
    }
}

static void put_order(l2c_buf *b, const l2c_sql_cursor *c) {
    const l2c_sql_target *g = l2c_sql_cursor_table(c)->target;
    for (size_t i = 0; i < c->p.order_count; i++) {
        l2c_buf_printf(b, "%s%s%s", i == 0 ? " ORDER BY " : ", ",
                       g->columns[c->p.order[i].column].expression,
                       c->p.order[i].descending ? " DESC" : "");
    }
    if (c->p.order_count == 0 && c->p.used != 0) {
        l2c_buf_puts(b, " ORDER BY t.id"); // not demanded, but what a reader expects to see
    }
}

static l2cdb_status compile(l2c_sql_cursor *c, int which, l2cdb_error *err) {
    l2c_buf b;
    l2c_buf_init(&b);
    const char *record = l2c_sql_cursor_table(c)->target->record;
    l2c_buf_puts(&b, "SELECT ");
    if (which == L2C_SQL_PASS_IDS || which == L2C_SQL_PASS_BARE) {
        l2c_buf_puts(&b, "t.id");
    } else {
        put_columns(&b, c);
    }
    l2c_buf_printf(&b, " FROM main.%s t WHERE ", record);
    l2c_buf_puts(&b, which == L2C_SQL_PASS_ROW || which == L2C_SQL_PASS_ROW_FILTERED ? "t.id = ?1"
                                                                                     : "1");
    if (which != L2C_SQL_PASS_ROW) {
        put_conditions(&b, c);
    }
    if (which == L2C_SQL_PASS_ROW_FILTERED && c->unsettled) {
        l2c_buf_puts(&b, " AND EXISTS ");
        put_vector(&b, c, "1");
    }
    if (which == L2C_SQL_PASS_ROWS) {
        put_order(&b, c);
    } else if (which == L2C_SQL_PASS_IDS) {
        l2c_buf_puts(&b, " LIMIT ?1");
    } else if (which == L2C_SQL_PASS_BARE) {
        l2c_buf_puts(&b, " AND NOT EXISTS ");
        put_vector(&b, c, "1");
        l2c_buf_puts(&b, " ORDER BY t.id");
    }
    l2cdb_status rc =
        b.failed ? l2c_fail_nomem(err, b.size)
                 : l2c_sql_prepare_own(l2c_sql_cursor_conn(c), &c->statements[which], b.data, err);
    l2c_buf_fini(&b);
    return rc;
}

l2cdb_status l2c_sql_pass_statement(l2c_sql_cursor *c, int which, sqlite3_stmt **out,
                                    l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    if (c->statements[which] == NULL) {
        rc = compile(c, which, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    sqlite3_stmt *s = c->statements[which];
    sqlite3_reset(s);
    for (size_t i = 0; i < c->p.terms_count && which != L2C_SQL_PASS_ROW; i++) {
        if (c->lists[i] != NULL) {
            sqlite3_bind_text(s, (int)i + 2, c->lists[i], -1, SQLITE_STATIC);
        } else if (c->p.terms[i].role == 'f') {
            sqlite3_bind_value(s, (int)i + 2, c->values[i]);
        }
    }
    *out = s;
    return rc;
}

l2cdb_status l2c_sql_pass_step(l2c_sql_cursor *c, sqlite3_stmt *s, bool *row, l2cdb_error *err) {
    int rc = sqlite3_step(s);
    *row = rc == SQLITE_ROW;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? L2CDB_OK
                                                 : l2c_sql_status(l2c_sql_cursor_conn(c), rc, err);
}

void l2c_sql_pass_drop(l2c_sql_cursor *c) {
    for (size_t i = 0; i < L2C_SQL_PASS_STATEMENTS; i++) {
        sqlite3_finalize(c->statements[i]);
        c->statements[i] = NULL;
    }
}
