/* l2cdb.so: the same functions and tables on anybody's SQLite (3.40 or newer).
 *
 *   sqlite3 photos.l2cdb -cmd ".load ./l2cdb"
 *
 * The extension opens the file of the connection's main schema a second time, as a handle of ours
 * that all connections of the process on this file share, and puts our modules on the connection.
 * On another database than ours only the functions on vectors are there.
 *
 * Where the program calls SQLite as a shared library, sql_hook.c takes our SQL as it is written.
 * Everywhere there are
 * - the forms that every SQLite can parse: images(embed('…')), MATCH … AND k = …, similar(…);
 * - l2cdb_sql(text), the rewritten statement as text, for programs that prepare it themselves;
 * - the module l2cdb_query: CREATE VIRTUAL TABLE temp.near USING l2cdb_query('SELECT … <=> :q …')
 *   makes a table of any statement of ours, whose parameters are its arguments;
 * - l2cdb_exec(text) for the statements that SQL does not have (CREATE INDEX … USING, SET, …). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sql_answer.h"
#include "engine/sql_engine.h"
#include "engine/sql_hook.h"
#include "engine/sql_rewrite.h"

SQLITE_EXTENSION_INIT1

#define APPLICATION_ID 0x6C326362
#define VERSION_LEAST 3040000

/* ---- One handle a file -------------------------------------------------------------------------
 */

typedef struct shared_handle {
    struct shared_handle *next;
    char *path;
    l2cdb *db;
    unsigned users;
} shared_handle;

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static shared_handle *handles;

static l2cdb_status handle_new(const char *path, bool read_only, shared_handle **out,
                               l2cdb_error *err) {
    shared_handle *h = l2c_calloc(1, sizeof *h);
    if (h == NULL || (h->path = l2c_strdup(path)) == NULL) {
        l2c_free(h);
        return l2c_fail_nomem(err, sizeof *h);
    }
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.read_only = read_only;
    o.create = false;
    l2cdb_status rc = l2cdb_open(&h->db, path, &o, err);
    if (rc != L2CDB_OK) {
        l2c_free(h->path);
        l2c_free(h);
        return rc;
    }
    h->next = handles;
    handles = h;
    *out = h;
    return L2CDB_OK;
}

static l2cdb_status handle_get(const char *path, bool read_only, l2cdb **out, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    pthread_mutex_lock(&handles_lock);
    shared_handle *h = handles;
    while (h != NULL && (strcmp(h->path, path) != 0 || h->db->options.read_only != read_only)) {
        h = h->next;
    }
    if (h == NULL) {
        rc = handle_new(path, read_only, &h, err);
    }
    if (rc == L2CDB_OK) {
        h->users++;
        *out = h->db;
    }
    pthread_mutex_unlock(&handles_lock);
    return rc;
}

static void handle_put(const l2cdb *db) {
    shared_handle *gone = NULL;
    pthread_mutex_lock(&handles_lock);
    for (shared_handle **at = &handles; *at != NULL; at = &(*at)->next) {
        if ((*at)->db == db) {
            if (--(*at)->users == 0) {
                gone = *at;
                *at = gone->next;
            }
            break;
        }
    }
    pthread_mutex_unlock(&handles_lock);
    if (gone != NULL) {
        l2cdb_close(gone->db);
        l2c_free(gone->path);
        l2c_free(gone);
    }
}

/* ---- Functions ---------------------------------------------------------------------------------
 */

static l2cdb_status rewrite_value(sqlite3_value *value, l2c_rewrite *r, l2cdb_error *err) {
    const char *sql = (const char *)sqlite3_value_text(value);
    if (sql == NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "a statement is expected, found NULL");
    }
    l2cdb_status rc = l2c_rewrite_run(r, sql, strlen(sql), err);
    if (rc == L2CDB_OK && sql[r->tail] != 0 && sql[r->tail + strspn(sql + r->tail, " \t\r\n;")]) {
        l2c_rewrite_fini(r);
        rc = l2c_fail(err, L2CDB_E_SQL, "one statement at a time is allowed");
    }
    return rc;
}

/* l2cdb_sql(text): the statement as SQLite understands it. */
static void sql_rewritten(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)n;
    l2cdb_error e;
    l2c_rewrite r;
    if (rewrite_value(args[0], &r, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, sqlite3_user_data(context), &e);
        return;
    }
    sqlite3_result_text64(context, r.text.data != NULL ? r.text.data : "", r.text.size,
                          SQLITE_TRANSIENT, SQLITE_UTF8);
    l2c_rewrite_fini(&r);
}

static l2cdb_status run_command(l2c_sql_conn *c, const l2c_rewrite *r, l2c_answer *answer,
                                l2cdb_error *err) {
    if (c->db == NULL) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this connection is not on a database of l2cdb");
    }
    answer->names = l2c_answer_names(r->verb, &answer->columns);
    if (r->verb == L2C_VERB_PLAIN || r->verb == L2C_VERB_EMPTY) {
        l2c_fail(err, L2CDB_E_INVALID,
                 "l2cdb_exec runs CREATE INDEX … USING, DROP INDEX, SET, "
                 "TUNE, REINDEX, ROLLBACK GENERATION and EXPLAIN");
        return l2c_hint(err, "other statements are prepared from l2cdb_sql(text)");
    }
    if (r->verb != L2C_VERB_EXPLAIN) {
        return l2c_answer_command(c->db, r, answer, err);
    }
    sqlite3_stmt *stmt = NULL;
    l2cdb_status rc = l2c_sql_prepare_own(c, &stmt, r->text.data, err);
    c->notes_count = 0;
    c->encode_s = c->search_s = c->fetch_s = 0;
    if (rc == L2CDB_OK) {
        rc = l2c_answer_explain(c, stmt, r, answer, err);
    }
    sqlite3_finalize(stmt);
    return rc;
}

/* l2cdb_exec(text): a statement of ours; its answer as lines, NULL if it has none. */
static void sql_exec(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)n;
    l2c_sql_conn *c = sqlite3_user_data(context);
    l2cdb_error e;
    l2c_rewrite r;
    if (rewrite_value(args[0], &r, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, c, &e);
        return;
    }
    l2c_answer answer = { 0 };
    l2c_buf b;
    l2c_buf_init(&b);
    if (run_command(c, &r, &answer, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, c, &e);
    } else {
        for (size_t i = 0; i < answer.rows * answer.columns; i++) {
            const l2c_answer_cell *x = &answer.cells[i];
            l2c_buf_puts(&b, i > 0 ? "\n" : "");
            if (answer.columns > 1) {
                l2c_buf_printf(&b, "%s: ", answer.names[i % answer.columns]);
            }
            if (x->type == L2CDB_TEXT) {
                l2c_buf_puts(&b, x->text);
            } else if (x->type == L2CDB_FLOAT) {
                l2c_buf_printf(&b, "%.6g", x->real);
            } else {
                l2c_buf_printf(&b, "%lld", (long long)x->integer);
            }
        }
        if (b.size > 0 && !b.failed) {
            sqlite3_result_text64(context, b.data, b.size, SQLITE_TRANSIENT, SQLITE_UTF8);
        }
    }
    l2c_buf_fini(&b);
    l2c_answer_fini(&answer);
    l2c_rewrite_fini(&r);
}

/* ---- l2cdb_query: a table of any statement -----------------------------------------------------
 */

typedef struct query_table {
    sqlite3_vtab base;
    l2c_sql_conn *conn;
    l2c_rewrite rewrite;
    int columns, parameters;
} query_table;

typedef struct query_cursor {
    sqlite3_vtab_cursor base;
    sqlite3_stmt *stmt;
    bool row;
    sqlite3_int64 number;
} query_cursor;

static void query_free(query_table *t) {
    if (t != NULL) {
        l2c_rewrite_fini(&t->rewrite);
        l2c_free(t);
    }
}

/* argv[3] without its quotes. */
static char *unquoted(const char *s) {
    size_t n = strlen(s);
    bool quoted = n >= 2 && (s[0] == '\'' || s[0] == '"') && s[n - 1] == s[0];
    char *out = l2c_alloc(n + 1, 1);
    size_t size = 0;
    for (size_t i = quoted ? 1 : 0; out != NULL && i < (quoted ? n - 1 : n); i++) {
        out[size++] = s[i];
        if (quoted && s[i] == s[0] && s[i + 1] == s[0] && i + 2 < n) {
            i++;
        }
    }
    if (out != NULL) {
        out[size] = 0;
    }
    return out;
}

static void put_identifier(l2c_buf *b, const char *name) {
    l2c_buf_putc(b, '"');
    for (const char *c = name; *c != 0; c++) {
        l2c_buf_puts(b, *c == '"' ? "\"" : "");
        l2c_buf_putc(b, *c);
    }
    l2c_buf_putc(b, '"');
}

/* Columns are named as the statement names them (numbered where that would repeat a name), then the
 * parameters follow as hidden ones: SELECT * FROM near('a dog', 10). */
static l2cdb_status query_declare(query_table *t, sqlite3 *sqlite, sqlite3_stmt *stmt,
                                  l2cdb_error *err) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "CREATE TABLE x(");
    t->columns = sqlite3_column_count(stmt);
    for (int i = 0; i < t->columns; i++) {
        const char *name = sqlite3_column_name(stmt, i);
        char number[24];
        bool repeats = name == NULL;
        for (int j = 0; j < i && !repeats; j++) {
            repeats = sqlite3_stricmp(name, sqlite3_column_name(stmt, j)) == 0;
        }
        snprintf(number, sizeof number, "column%d", i + 1);
        l2c_buf_puts(&b, i > 0 ? "," : "");
        put_identifier(&b, repeats ? number : name);
        const char *type = sqlite3_column_decltype(stmt, i);
        l2c_buf_printf(&b, " %s", type != NULL ? type : "");
    }
    t->parameters = sqlite3_bind_parameter_count(stmt);
    for (int i = 0; i < t->parameters; i++) {
        l2c_buf_printf(&b, ",\"?%d\" HIDDEN", i + 1);
    }
    l2c_buf_putc(&b, ')');
    l2cdb_status rc = b.failed ? l2c_fail_nomem(err, b.size) : L2CDB_OK;
    if (rc == L2CDB_OK && sqlite3_declare_vtab(sqlite, b.data) != SQLITE_OK) {
        rc = l2c_fail(err, L2CDB_E_SQL, "%s", sqlite3_errmsg(sqlite));
    }
    l2c_buf_fini(&b);
    return rc;
}

static l2cdb_status query_compile(query_table *t, sqlite3_stmt **out, l2cdb_error *err) {
    l2cdb_status rc = l2c_sql_prepare_own(t->conn, out, t->rewrite.text.data, err);
    if (rc == L2CDB_OK && (sqlite3_column_count(*out) == 0 || !sqlite3_stmt_readonly(*out))) {
        sqlite3_finalize(*out);
        *out = NULL;
        rc = l2c_fail(err, L2CDB_E_INVALID, "l2cdb_query takes a statement that reads rows");
    }
    return rc;
}

static int query_connect(sqlite3 *sqlite, void *data, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **message) {
    l2cdb_error e;
    query_table *t = l2c_calloc(1, sizeof *t);
    char *sql = argc == 4 ? unquoted(argv[3]) : NULL;
    sqlite3_stmt *stmt = NULL;
    l2cdb_status rc = L2CDB_OK;
    if (argc != 4) {
        rc = l2c_fail(&e, L2CDB_E_INVALID, "expected one statement in quotes: l2cdb_query('…')");
    } else if (t == NULL || sql == NULL) {
        rc = l2c_fail_nomem(&e, sizeof *t);
    }
    if (rc == L2CDB_OK) {
        t->conn = data;
        rc = l2c_rewrite_run(&t->rewrite, sql, strlen(sql), &e);
    }
    if (rc == L2CDB_OK && t->rewrite.verb != L2C_VERB_PLAIN) {
        rc = l2c_fail(&e, L2CDB_E_INVALID, "l2cdb_query takes a SELECT; see l2cdb_exec");
    }
    if (rc == L2CDB_OK) {
        rc = query_compile(t, &stmt, &e);
    }
    if (rc == L2CDB_OK) {
        rc = query_declare(t, sqlite, stmt, &e);
    }
    sqlite3_finalize(stmt);
    l2c_free(sql);
    if (rc != L2CDB_OK) {
        query_free(t);
        *message = sqlite3_mprintf("%s", e.message);
        return SQLITE_ERROR;
    }
    *out = &t->base;
    return SQLITE_OK;
}

static int query_disconnect(sqlite3_vtab *base) {
    query_free((query_table *)base);
    return SQLITE_OK;
}

static int query_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
    const query_table *t = (const query_table *)base;
    l2c_buf b;
    l2c_buf_init(&b);
    int argument = 0;
    for (int i = 0; i < info->nConstraint; i++) {
        int parameter = info->aConstraint[i].iColumn - t->columns;
        if (parameter < 0 || info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ) {
            continue;
        }
        if (!info->aConstraint[i].usable) {
            l2c_buf_fini(&b);
            return SQLITE_CONSTRAINT;
        }
        info->aConstraintUsage[i].argvIndex = ++argument;
        info->aConstraintUsage[i].omit = 1;
        l2c_buf_printf(&b, "%d ", parameter + 1);
    }
    info->idxStr = sqlite3_mprintf("%s", b.data != NULL ? b.data : "");
    info->needToFreeIdxStr = 1;
    info->estimatedCost = 10000;
    bool failed = b.failed || info->idxStr == NULL;
    l2c_buf_fini(&b);
    return failed ? SQLITE_NOMEM : SQLITE_OK;
}

static int query_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
    query_cursor *c = l2c_calloc(1, sizeof *c);
    l2cdb_error e;
    query_table *t = (query_table *)base;
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    if (query_compile(t, &c->stmt, &e) != L2CDB_OK) {
        l2c_free(c);
        return l2c_sql_table_fail(base, t->conn, &e);
    }
    *out = &c->base;
    return SQLITE_OK;
}

static int query_close(sqlite3_vtab_cursor *base) {
    query_cursor *c = (query_cursor *)base;
    sqlite3_finalize(c->stmt);
    l2c_free(c);
    return SQLITE_OK;
}

static int query_next(sqlite3_vtab_cursor *base) {
    query_cursor *c = (query_cursor *)base;
    query_table *t = (query_table *)base->pVtab;
    int rc = sqlite3_step(c->stmt);
    c->row = rc == SQLITE_ROW;
    c->number++;
    if (rc == SQLITE_ROW || rc == SQLITE_DONE) {
        return SQLITE_OK;
    }
    l2cdb_error e;
    (void)l2c_sql_status(t->conn, rc, &e);
    return l2c_sql_table_fail(base->pVtab, t->conn, &e);
}

static int query_filter(sqlite3_vtab_cursor *base, int number, const char *text, int argc,
                        sqlite3_value **args) {
    (void)number;
    query_cursor *c = (query_cursor *)base;
    const l2c_rewrite *r = &((query_table *)base->pVtab)->rewrite;
    sqlite3_reset(c->stmt);
    sqlite3_clear_bindings(c->stmt);
    for (int i = 0; i < argc; i++) {
        char *end;
        int parameter = (int)strtol(text, &end, 10);
        if (r->names_count > 0 && !r->renumbered) { // SQLite may have met them in another order
            parameter = sqlite3_bind_parameter_index(c->stmt, r->names[parameter - 1]);
        }
        sqlite3_bind_value(c->stmt, parameter, args[i]);
        text = end + 1;
    }
    c->number = 0;
    return query_next(base);
}

static int query_eof(sqlite3_vtab_cursor *base) {
    return !((query_cursor *)base)->row;
}

static int query_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int i) {
    query_cursor *c = (query_cursor *)base;
    if (i < ((query_table *)base->pVtab)->columns) {
        sqlite3_result_value(context, sqlite3_column_value(c->stmt, i));
    }
    return SQLITE_OK;
}

static int query_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *out) {
    *out = ((query_cursor *)base)->number;
    return SQLITE_OK;
}

static const sqlite3_module query_module = {
    .iVersion = 1,
    .xCreate = query_connect,
    .xConnect = query_connect,
    .xBestIndex = query_best_index,
    .xDisconnect = query_disconnect,
    .xDestroy = query_disconnect,
    .xOpen = query_open,
    .xClose = query_close,
    .xFilter = query_filter,
    .xNext = query_next,
    .xEof = query_eof,
    .xColumn = query_column,
    .xRowid = query_rowid,
};

/* ---- Loading -----------------------------------------------------------------------------------
 */

/* When the connection closes: it owns the function that carries this. */
static void release(void *data) {
    l2c_sql_conn *c = data;
    l2c_sql_hook_forget(c);
    l2c_sql_view_done(c);
    if (c->db != NULL) {
        handle_put(c->db);
    }
    l2c_free(c);
}

/* A file that cannot be read at the moment must not pass for one that is not ours. */
static l2cdb_status is_ours(l2c_sql_conn *c, bool *ours, l2cdb_error *err) {
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(c->sqlite, "PRAGMA main.application_id", -1, &s, NULL);
    rc = rc == SQLITE_OK ? sqlite3_step(s) : rc;
    *ours = rc == SQLITE_ROW && sqlite3_column_int(s, 0) == APPLICATION_ID;
    l2cdb_status status =
        rc == SQLITE_ROW || rc == SQLITE_NOTADB ? L2CDB_OK : l2c_sql_status(c, rc, err);
    sqlite3_finalize(s);
    return status;
}

static l2cdb_status load(sqlite3 *sqlite, l2c_sql_conn *c, l2cdb_error *err) {
    const char *path = sqlite3_db_filename(sqlite, "main");
    l2cdb_status rc = L2CDB_OK;
    bool ours = false;
    if (path != NULL && *path != 0) {
        rc = is_ours(c, &ours, err);
    }
    if (ours) {
        rc = handle_get(path, sqlite3_db_readonly(sqlite, "main") == 1, &c->db, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_sql_setup(c, err);
    }
    const struct {
        const char *name;
        void (*call)(sqlite3_context *, int, sqlite3_value **);
    } functions[] = { { "l2cdb_sql", sql_rewritten }, { "l2cdb_exec", sql_exec } };
    int code = SQLITE_OK;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK && code == SQLITE_OK; i++) {
        code = sqlite3_create_function_v2(sqlite, functions[i].name, 1,
                                          SQLITE_UTF8 | SQLITE_DIRECTONLY, c, functions[i].call,
                                          NULL, NULL, NULL);
    }
    if (rc == L2CDB_OK && code == SQLITE_OK) {
        code = sqlite3_create_module_v2(sqlite, "l2cdb_query", &query_module, c, NULL);
    }
    return rc == L2CDB_OK && code != SQLITE_OK ? l2c_sql_status(c, code, err) : rc;
}

static void nothing(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)context;
    (void)n;
    (void)args;
}

static int init(sqlite3 *sqlite, char **message) {
    if (sqlite3_libversion_number() < VERSION_LEAST) {
        *message =
            sqlite3_mprintf("l2cdb needs SQLite 3.40 or newer, this is %s", sqlite3_libversion());
        return SQLITE_ERROR;
    }
    if (sqlite3_threadsafe() == 0) {
        *message = sqlite3_mprintf("l2cdb needs a SQLite that was compiled for threads");
        return SQLITE_ERROR;
    }
    if (l2c_sql_hook_watches(sqlite)) {
        (void)l2c_sql_hook_install(); // loaded once more: objects may have come meanwhile
        return SQLITE_OK;
    }
    l2c_sql_conn *c = l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    c->sqlite = sqlite;
    c->hosted = true;
    c->error_from = c->error_to = -1;
    // From here on the connection frees it, after failures too.
    int rc = sqlite3_create_function_v2(sqlite, "l2cdb_loaded", 0, SQLITE_UTF8, c, nothing, NULL,
                                        NULL, release);
    l2cdb_error e;
    if (rc == SQLITE_OK && load(sqlite, c, &e) != L2CDB_OK) {
        *message = sqlite3_mprintf("%s%s%s", e.message, *e.hint != 0 ? "; " : "", e.hint);
        return SQLITE_ERROR;
    }
    if (rc == SQLITE_OK) {
        l2c_sql_hook_watch(c);
        (void)l2c_sql_hook_install();
    }
    return rc;
}

L2CDB_API int sqlite3_extension_init(sqlite3 *sqlite, char **message,
                                     const sqlite3_api_routines *api);
L2CDB_API int sqlite3_lcdb_init(sqlite3 *sqlite, char **message, const sqlite3_api_routines *api);

int sqlite3_extension_init(sqlite3 *sqlite, char **message, const sqlite3_api_routines *api) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (sqlite3_api == NULL) { // once: other threads may be reading it
        SQLITE_EXTENSION_INIT2(api)
    }
    bool other = sqlite3_api != api;
    pthread_mutex_unlock(&lock);
    if (other) { // our calls go to one SQLite
        *message = api->mprintf("l2cdb is loaded into another SQLite of this process already");
        return SQLITE_ERROR;
    }
    return init(sqlite, message);
}

/* The name SQLite derives from "l2cdb.so": it leaves digits out. */
int sqlite3_lcdb_init(sqlite3 *sqlite, char **message, const sqlite3_api_routines *api) {
    return sqlite3_extension_init(sqlite, message, api);
}
