/* Statements of the public interface: prepare, bind, step, column.
 *
 * The text goes through the rewriter; what SQLite says about the rewritten text (offsets, names of
 * columns) is led back to what the user wrote. A statement keeps its connection from prepare to
 * finalize and its view from the first step to the end. */
#include <stdio.h>
#include <string.h>

#include "engine/sql_answer.h"
#include "engine/sql_engine.h"
#include "engine/sql_rewrite.h"

#define REMOTE_VALUE_BYTES_MAX (64 << 20)

struct l2cdb_stmt {
    l2cdb *db;
    l2c_sql_conn *conn;
    l2cdb_sql_limits limits;
    l2c_rewrite rewrite;
    char *source;       /* the statement as the user wrote it */
    sqlite3_stmt *stmt; /* NULL for a statement of ours */
    char **names;       /* of columns, made when asked for */
    int names_count;

    bool running; /* between the first step and the end */
    bool done;    /* the end was reached; the next step starts again */
    uint64_t rows;
    int64_t changes;

    l2c_answer answer; /* of EXPLAIN and of statements of ours */
    size_t answer_at;  /* rows given */
};

static bool answers(const l2cdb_stmt *s) {
    return s->rewrite.verb != L2C_VERB_PLAIN;
}

/* The connection now works for this statement. */
static void take_over(l2cdb_stmt *s) {
    l2c_sql_conn *c = s->conn;
    c->limits = s->limits;
    sqlite3_limit(c->sqlite, SQLITE_LIMIT_LENGTH,
                  s->limits.read_only ? REMOTE_VALUE_BYTES_MAX : 1000000000);
}

/* ---- Prepare -----------------------------------------------------------------------------------
 */

/* An error at a byte of the rewritten text, led back to the user's. */
static l2cdb_status compile_error(l2cdb_stmt *s, int code, l2cdb_error *err) {
    l2cdb_status rc = l2c_sql_status(s->conn, code, err);
    if (err != NULL && err->offset >= 0) {
        err->offset = (int64_t)l2c_rewrite_offset(&s->rewrite, (size_t)err->offset);
    }
    if (err != NULL && err->hint[0] == 0 && strstr(err->message, "no such table") != NULL) {
        l2c_hint(err, "tables are images, captions, generations, models, index_status, "
                      "similar(id), hybrid(text), nearest_duplicates(threshold)");
    }
    return rc;
}

static l2cdb_status compile(l2cdb_stmt *s, l2cdb_error *err) {
    const char *tail;
    l2c_sql_conn *c = s->conn;
    c->failed = c->timed_out = false;
    c->deadline = 0;
    int code = sqlite3_prepare_v2(c->sqlite, s->rewrite.text.data, (int)s->rewrite.text.size + 1,
                                  &s->stmt, &tail);
    return code == SQLITE_OK ? L2CDB_OK : compile_error(s, code, err);
}

/* DROP INDEX is ours unless SQLite has an index of that name. */
static l2cdb_status judge_drop(l2cdb_stmt *s, l2cdb_error *err) {
    bool owns, there = false;
    l2cdb_target target;
    l2cdb_status rc = l2c_answer_owns_index(s->db, s->rewrite.name, &owns, &target, err);
    sqlite3_stmt *find = NULL;
    if (rc == L2CDB_OK && !owns) {
        rc = l2c_sql_prepare_own(s->conn, &find,
                                 "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1"
                                 " COLLATE NOCASE",
                                 err);
    }
    if (find != NULL) {
        sqlite3_bind_text(find, 1, s->rewrite.name, -1, SQLITE_STATIC);
        there = sqlite3_step(find) == SQLITE_ROW;
    }
    sqlite3_finalize(find);
    if (there) {
        s->rewrite.verb = L2C_VERB_PLAIN;
    }
    return rc;
}

static l2cdb_status refuse_command(const l2cdb_stmt *s, l2cdb_error *err) {
    if (s->limits.read_only) {
        return l2c_fail(err, L2CDB_E_DENIED,
                        "this statement is not allowed: the connection may only read");
    }
    return L2CDB_OK;
}

static l2cdb_status prepare(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                            l2cdb_stmt **out, const char **tail, l2cdb_error *err) {
    l2cdb_stmt *s = l2c_calloc(1, sizeof *s);
    if (s == NULL) {
        return l2c_fail_nomem(err, sizeof *s);
    }
    s->db = db;
    if (limits != NULL) {
        s->limits = *limits;
    }
    l2cdb_status rc = l2c_rewrite_run(&s->rewrite, sql, strlen(sql), err);
    if (rc == L2CDB_OK) {
        *tail = sql + s->rewrite.tail;
    }
    if (rc != L2CDB_OK || s->rewrite.verb == L2C_VERB_EMPTY) {
        l2cdb_finalize(s);
        return rc;
    }
    s->source = l2c_strndup(sql, s->rewrite.tail);
    rc = s->source != NULL ? l2c_sql_conn_get(db, &s->conn, err) : l2c_fail_nomem(err, 0);
    if (rc == L2CDB_OK) {
        take_over(s);
        rc = s->rewrite.verb == L2C_VERB_DROP_INDEX ? judge_drop(s, err) : L2CDB_OK;
    }
    if (rc == L2CDB_OK &&
        (s->rewrite.verb == L2C_VERB_PLAIN || s->rewrite.verb == L2C_VERB_EXPLAIN)) {
        rc = compile(s, err);
    } else if (rc == L2CDB_OK) {
        rc = refuse_command(s, err);
    }
    if (rc != L2CDB_OK) {
        l2cdb_finalize(s);
        return rc;
    }
    s->answer.names = l2c_answer_names(s->rewrite.verb, &s->answer.columns);
    *out = s;
    return L2CDB_OK;
}

l2cdb_status l2cdb_prepare_next(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                                l2cdb_stmt **out, const char **tail, l2cdb_error *err) {
    *out = NULL;
    *tail = sql;
    l2cdb_error_clear(err);
    l2c_db_enter(db);
    l2cdb_status rc = prepare(db, sql, limits, out, tail, err);
    l2c_db_leave(db);
    return rc;
}

l2cdb_status l2cdb_prepare(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                           l2cdb_stmt **out, l2cdb_error *err) {
    const char *tail;
    l2cdb_status rc = l2cdb_prepare_next(db, sql, limits, out, &tail, err);
    if (rc != L2CDB_OK || *tail == 0) {
        return rc;
    }
    l2c_rewrite rest;
    rc = l2c_rewrite_run(&rest, tail, strlen(tail), err);
    bool blank = rc == L2CDB_OK && rest.verb == L2C_VERB_EMPTY;
    l2c_rewrite_fini(&rest);
    if (blank) {
        return L2CDB_OK;
    }
    l2cdb_finalize(*out);
    *out = NULL;
    l2c_fail(err, L2CDB_E_SQL, "a second statement begins here; one at a time is allowed");
    if (err != NULL) {
        err->offset = tail - sql;
    }
    return L2CDB_E_SQL;
}

bool l2cdb_sql_complete(const char *sql) {
    return l2c_rewrite_complete(sql, strlen(sql));
}

/* ---- Step --------------------------------------------------------------------------------------
 */

static void start(l2cdb_stmt *s) {
    l2c_sql_conn *c = s->conn;
    l2c_db_enter(s->db);
    s->running = true;
    s->done = false;
    s->rows = 0;
    s->answer_at = 0;
    l2c_answer_fini(&s->answer);
    if (c->running++ == 0) {
        c->encode_s = c->search_s = c->fetch_s = 0;
        c->notes_count = 0;
        c->failed = c->timed_out = false;
    }
    c->deadline = s->limits.timeout_ms > 0 ? l2c_now() + s->limits.timeout_ms / 1000.0 : 0;
}

static void end(l2cdb_stmt *s) {
    if (s->running) {
        s->running = false;
        if (s->stmt != NULL) {
            sqlite3_reset(s->stmt);
        }
        l2c_sql_conn_note_transaction(s->conn);
        if (--s->conn->running == 0) {
            l2c_sql_view_done(s->conn);
            s->conn->deadline = 0;
        }
        l2c_db_leave(s->db);
    }
}

static l2cdb_status step_answer(l2cdb_stmt *s, bool *row, l2cdb_error *err) {
    if (s->answer_at == 0) {
        l2cdb_status rc = s->rewrite.verb == L2C_VERB_EXPLAIN
                              ? l2c_answer_explain(s->conn, s->stmt, &s->rewrite, &s->answer, err)
                              : l2c_answer_command(s->db, &s->rewrite, &s->answer, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    *row = s->answer_at < s->answer.rows;
    s->answer_at++;
    return L2CDB_OK;
}

static l2cdb_status step_sqlite(l2cdb_stmt *s, bool *row, l2cdb_error *err) {
    l2c_sql_conn *c = s->conn;
    int code = sqlite3_step(s->stmt);
    *row = code == SQLITE_ROW;
    if (code != SQLITE_ROW && code != SQLITE_DONE) {
        l2cdb_status rc = l2c_sql_status(c, code, err);
        if (err != NULL) {
            err->offset = -1; // of the compiled text, which is not the cause
        }
        return rc;
    }
    if (code == SQLITE_DONE) {
        s->changes = sqlite3_stmt_readonly(s->stmt) ? 0 : sqlite3_changes64(c->sqlite);
    } else if (s->limits.rows_max > 0 && s->rows >= s->limits.rows_max) {
        *row = false;
        l2c_fail(err, L2CDB_E_LIMIT, "the answer has more than %llu rows",
                 (unsigned long long)s->limits.rows_max);
        l2c_hint(err, "add LIMIT");
        return L2CDB_E_LIMIT;
    }
    s->rows += *row ? 1 : 0;
    return L2CDB_OK;
}

l2cdb_status l2cdb_step(l2cdb_stmt *s, bool *row, l2cdb_error *err) {
    *row = false;
    l2cdb_error_clear(err);
    take_over(s);
    if (!s->running) {
        start(s);
    }
    l2cdb_status rc = answers(s) ? step_answer(s, row, err) : step_sqlite(s, row, err);
    if (rc != L2CDB_OK || !*row) {
        s->done = rc == L2CDB_OK;
        end(s);
    }
    return rc;
}

l2cdb_status l2cdb_reset(l2cdb_stmt *s) {
    end(s);
    s->done = false;
    return L2CDB_OK;
}

void l2cdb_finalize(l2cdb_stmt *s) {
    if (s == NULL) {
        return;
    }
    end(s);
    sqlite3_finalize(s->stmt);
    if (s->conn != NULL) {
        l2c_sql_conn_put(s->conn);
    }
    for (int i = 0; i < s->names_count; i++) {
        l2c_free(s->names[i]);
    }
    l2c_free(s->names);
    l2c_answer_fini(&s->answer);
    l2c_rewrite_fini(&s->rewrite);
    l2c_free(s->source);
    l2c_free(s);
}

int64_t l2cdb_changes(const l2cdb_stmt *s) {
    return s->changes;
}

/* ---- Parameters --------------------------------------------------------------------------------
 */

int l2cdb_bind_count(const l2cdb_stmt *s) {
    if (s->stmt == NULL) {
        return 0;
    }
    return s->rewrite.names_count > 0 ? (int)s->rewrite.names_count
                                      : sqlite3_bind_parameter_count(s->stmt);
}

int l2cdb_bind_index(const l2cdb_stmt *s, const char *name) {
    if (s->stmt == NULL) {
        return 0;
    }
    if (s->rewrite.names_count == 0) {
        return sqlite3_bind_parameter_index(s->stmt, name);
    }
    for (size_t i = 0; i < s->rewrite.names_count; i++) {
        if (s->rewrite.names[i] != NULL && strcmp(s->rewrite.names[i], name) == 0) {
            return (int)i + 1;
        }
    }
    return 0;
}

const char *l2cdb_bind_name(const l2cdb_stmt *s, int i) {
    if (s->stmt == NULL || i < 1) {
        return NULL;
    }
    if (s->rewrite.names_count == 0) {
        return sqlite3_bind_parameter_name(s->stmt, i);
    }
    return (size_t)i <= s->rewrite.names_count ? s->rewrite.names[i - 1] : NULL;
}

/* The result of a bind. A statement that is running is reset first: new values, new run. */
static l2cdb_status bound(int code) {
    switch (code) {
    case SQLITE_OK:
        return L2CDB_OK;
    case SQLITE_NOMEM:
        return L2CDB_E_NOMEM;
    case SQLITE_TOOBIG:
        return L2CDB_E_LIMIT;
    default:
        return L2CDB_E_INVALID;
    }
}

/* The number that SQLite has given the user's parameter i. */
static int place(l2cdb_stmt *s, int i) {
    end(s);
    const l2c_rewrite *r = &s->rewrite;
    if (r->names_count == 0 || r->renumbered) {
        return i;
    }
    return i >= 1 && (size_t)i <= r->names_count
               ? sqlite3_bind_parameter_index(s->stmt, r->names[i - 1])
               : 0;
}

l2cdb_status l2cdb_bind_null(l2cdb_stmt *s, int i) {
    return bound(sqlite3_bind_null(s->stmt, place(s, i)));
}

l2cdb_status l2cdb_bind_int64(l2cdb_stmt *s, int i, int64_t v) {
    return bound(sqlite3_bind_int64(s->stmt, place(s, i), v));
}

l2cdb_status l2cdb_bind_double(l2cdb_stmt *s, int i, double v) {
    return bound(sqlite3_bind_double(s->stmt, place(s, i), v));
}

l2cdb_status l2cdb_bind_text(l2cdb_stmt *s, int i, const char *v, size_t size) {
    return bound(sqlite3_bind_text64(s->stmt, place(s, i), v, size, SQLITE_TRANSIENT, SQLITE_UTF8));
}

l2cdb_status l2cdb_bind_blob(l2cdb_stmt *s, int i, const void *v, size_t size) {
    return bound(sqlite3_bind_blob64(s->stmt, place(s, i), v, size, SQLITE_TRANSIENT));
}

l2cdb_status l2cdb_bind_vector(l2cdb_stmt *s, int i, const float *v, size_t n) {
    size_t size;
    if (!l2c_mul_size(&size, n, sizeof *v)) {
        return L2CDB_E_LIMIT;
    }
    return l2cdb_bind_blob(s, i, v, size);
}

/* ---- Columns -----------------------------------------------------------------------------------
 */

int l2cdb_column_count(const l2cdb_stmt *s) {
    return answers(s) ? (int)s->answer.columns : sqlite3_column_count(s->stmt);
}

/* SQLite names an expression by its text, here by the rewritten one; this finds the user's. */
static char *user_name(const l2cdb_stmt *s, const char *name) {
    const l2c_rewrite *r = &s->rewrite;
    const char *at = r->changed ? strstr(r->text.data, name) : NULL;
    size_t from, to;
    if (at == NULL || !l2c_rewrite_span(r, (size_t)(at - r->text.data), strlen(name), &from, &to) ||
        to > strlen(s->source)) {
        return l2c_strdup(name);
    }
    return l2c_strndup(s->source + from, to - from);
}

static void make_names(l2cdb_stmt *s) {
    int n = sqlite3_column_count(s->stmt);
    s->names = l2c_calloc((size_t)n, sizeof *s->names);
    s->names_count = s->names != NULL ? n : 0;
    for (int i = 0; i < s->names_count; i++) {
        const char *name = sqlite3_column_name(s->stmt, i);
        s->names[i] = name != NULL ? user_name(s, name) : NULL;
    }
}

const char *l2cdb_column_name(const l2cdb_stmt *s, int i) {
    if (i < 0 || i >= l2cdb_column_count(s)) {
        return NULL;
    }
    if (answers(s)) {
        return s->answer.names[i];
    }
    if (s->names == NULL) {
        make_names((l2cdb_stmt *)(uintptr_t)s); // a cache, invisible to the caller
    }
    return s->names_count > 0 ? s->names[i] : NULL;
}

static const l2c_answer_cell *answer_cell(const l2cdb_stmt *s, int i) {
    static const l2c_answer_cell none;
    if (i < 0 || (size_t)i >= s->answer.columns || s->answer_at == 0 ||
        s->answer_at > s->answer.rows) {
        return &none;
    }
    return &s->answer.cells[(s->answer_at - 1) * s->answer.columns + (size_t)i];
}

l2cdb_type l2cdb_column_type(l2cdb_stmt *s, int i) {
    if (answers(s)) {
        return answer_cell(s, i)->type;
    }
    switch (sqlite3_column_type(s->stmt, i)) {
    case SQLITE_INTEGER:
        return L2CDB_INTEGER;
    case SQLITE_FLOAT:
        return L2CDB_FLOAT;
    case SQLITE_TEXT:
        return L2CDB_TEXT;
    case SQLITE_BLOB: {
        // A sorter forgets subtypes; the declared type of a column survives it.
        const char *declared = sqlite3_column_decltype(s->stmt, i);
        bool vector =
            sqlite3_value_subtype(sqlite3_column_value(s->stmt, i)) == L2C_SQL_VECTOR_SUBTYPE ||
            (declared != NULL && strcmp(declared, "VECTOR") == 0);
        return vector && sqlite3_column_bytes(s->stmt, i) % (int)sizeof(float) == 0 ? L2CDB_VECTOR
                                                                                    : L2CDB_BLOB;
    }
    default:
        return L2CDB_NULL;
    }
}

int64_t l2cdb_column_int64(l2cdb_stmt *s, int i) {
    if (!answers(s)) {
        return sqlite3_column_int64(s->stmt, i);
    }
    const l2c_answer_cell *c = answer_cell(s, i);
    return c->type == L2CDB_FLOAT ? (int64_t)c->real : c->integer;
}

double l2cdb_column_double(l2cdb_stmt *s, int i) {
    if (!answers(s)) {
        return sqlite3_column_double(s->stmt, i);
    }
    const l2c_answer_cell *c = answer_cell(s, i);
    return c->type == L2CDB_INTEGER ? (double)c->integer : c->real;
}

/* The text of a cell of ours; numbers are written into it when first asked for. */
static const char *answer_text(const l2cdb_stmt *s, int i) {
    l2c_answer_cell *c = (l2c_answer_cell *)(uintptr_t)answer_cell(s, i);
    if (c->text == NULL && (c->type == L2CDB_INTEGER || c->type == L2CDB_FLOAT)) {
        char text[40];
        if (c->type == L2CDB_INTEGER) {
            snprintf(text, sizeof text, "%lld", (long long)c->integer);
        } else {
            snprintf(text, sizeof text, "%.15g", c->real);
        }
        c->text = l2c_strdup(text);
    }
    return c->text;
}

const char *l2cdb_column_text(l2cdb_stmt *s, int i) {
    return answers(s) ? answer_text(s, i) : (const char *)sqlite3_column_text(s->stmt, i);
}

const void *l2cdb_column_blob(l2cdb_stmt *s, int i) {
    return answers(s) ? answer_text(s, i) : sqlite3_column_blob(s->stmt, i);
}

size_t l2cdb_column_bytes(l2cdb_stmt *s, int i) {
    if (!answers(s)) {
        return (size_t)sqlite3_column_bytes(s->stmt, i);
    }
    const char *text = answer_text(s, i);
    return text != NULL ? strlen(text) : 0;
}
