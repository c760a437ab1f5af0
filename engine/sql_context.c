/* Connections with our functions and tables on them: a small pool on the handle, the read-only
 * role, time limits, and the way errors travel from a virtual table to the caller of l2cdb_step.
 */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "engine/base/file.h"
#include "engine/sql_engine.h"

#define IDLE_MAX 8
#define BUSY_S_MAX 10.0
#define PROGRESS_STEPS 2000

/* ---- Views ------------------------------------------------------------------------------------
 */

l2cdb_status l2c_sql_view(l2c_sql_conn *c, l2c_view **out, l2cdb_error *err) {
    if (c->db == NULL) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "this connection is not on a database of l2cdb");
        return l2c_hint(err, "open a file that l2cdb has made, then load the extension");
    }
    if (c->view != NULL && c->hosted && c->cursors == 0) {
        l2c_sql_view_done(c); // nobody tells an extension where a statement begins
    }
    if (c->view == NULL) {
        l2cdb_status rc = l2c_view_get(c->db, &c->view, err);
        if (rc != L2CDB_OK) {
            c->view = NULL;
            return rc;
        }
    }
    *out = c->view;
    return L2CDB_OK;
}

void l2c_sql_view_done(l2c_sql_conn *c) {
    if (c->view != NULL) {
        l2c_view_release(c->db, c->view);
        c->view = NULL;
    }
}

/* ---- Errors -----------------------------------------------------------------------------------
 */

int l2c_sql_fail(l2c_sql_conn *c, const l2cdb_error *e) {
    c->err = *e;
    c->failed = true;
    switch (e->code) {
    case L2CDB_E_NOMEM:
        return SQLITE_NOMEM;
    case L2CDB_E_CANCELLED:
        return SQLITE_INTERRUPT;
    default:
        return SQLITE_ERROR;
    }
}

void l2c_sql_result_fail(sqlite3_context *context, l2c_sql_conn *c, const l2cdb_error *e) {
    int code = l2c_sql_fail(c, e);
    sqlite3_result_error(context, e->message, -1);
    if (code != SQLITE_ERROR) {
        sqlite3_result_error_code(context, code);
    }
}

int l2c_sql_table_fail(sqlite3_vtab *table, l2c_sql_conn *c, const l2cdb_error *e) {
    sqlite3_free(table->zErrMsg);
    table->zErrMsg = sqlite3_mprintf("%s", e->message);
    return l2c_sql_fail(c, e);
}

static l2cdb_status status_of(int rc) {
    switch (rc & 0xff) {
    case SQLITE_NOMEM:
        return L2CDB_E_NOMEM;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return L2CDB_E_BUSY;
    case SQLITE_FULL:
        return L2CDB_E_FULL;
    case SQLITE_AUTH:
    case SQLITE_PERM:
    case SQLITE_READONLY:
        return L2CDB_E_DENIED;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return L2CDB_E_CORRUPT;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        return L2CDB_E_IO;
    case SQLITE_TOOBIG:
        return L2CDB_E_LIMIT;
    case SQLITE_INTERRUPT:
        return L2CDB_E_CANCELLED;
    default:
        return L2CDB_E_SQL;
    }
}

l2cdb_status l2c_sql_status(l2c_sql_conn *c, int rc, l2cdb_error *err) {
    if (c->timed_out) {
        l2c_fail(err, L2CDB_E_TIMEOUT, "the statement took longer than %u ms",
                 (unsigned)c->limits.timeout_ms);
        return l2c_hint(err, "narrow it with WHERE or LIMIT");
    }
    if (c->failed) {
        c->failed = false;
        if (err != NULL) {
            *err = c->err;
            err->offset = -1;
        }
        return c->err.code;
    }
    if ((rc & 0xff) == SQLITE_INTERRUPT) {
        return l2c_fail(err, L2CDB_E_CANCELLED, "interrupted");
    }
    l2cdb_status code = status_of(rc);
    l2c_fail(err, code, "%s", sqlite3_errmsg(c->sqlite));
    if (err != NULL) {
        err->offset = sqlite3_error_offset(c->sqlite);
    }
    if (code == L2CDB_E_DENIED && c->limits.read_only) {
        l2c_hint(err, "this connection may only read");
    }
    return code;
}

l2cdb_status l2c_sql_poll(l2c_sql_conn *c, l2cdb_error *err) {
    if (c->deadline > 0 && l2c_now() > c->deadline) {
        c->timed_out = true;
        return l2c_sql_status(c, SQLITE_INTERRUPT, err);
    }
    return l2c_db_poll(c->db, err);
}

l2cdb_status l2c_sql_prepare_own(l2c_sql_conn *c, sqlite3_stmt **out, const char *sql,
                                 l2cdb_error *err) {
    c->internal++;
    int rc = sqlite3_prepare_v2(c->sqlite, sql, -1, out, NULL);
    c->internal--;
    return rc == SQLITE_OK ? L2CDB_OK : l2c_sql_status(c, rc, err);
}

l2c_sql_note *l2c_sql_note_add(l2c_sql_conn *c, const char *table, const char *text,
                               int64_t estimated) {
    for (size_t i = 0; i < c->notes_count; i++) {
        l2c_sql_note *n = &c->notes[i];
        if (strcmp(n->table, table) == 0 && strcmp(n->text, text) == 0) {
            n->passes++;
            return n;
        }
    }
    if (c->notes_count == L2C_SQL_NOTES_MAX) {
        return NULL;
    }
    l2c_sql_note *n = &c->notes[c->notes_count++];
    *n = (l2c_sql_note){ .estimated = estimated, .passes = 1 };
    snprintf(n->table, sizeof n->table, "%s", table);
    snprintf(n->text, sizeof n->text, "%s", text);
    return n;
}

/* ---- What a statement may do ------------------------------------------------------------------
 */

static bool name_in(const char *name, const char *const *list) {
    for (size_t i = 0; name != NULL && list[i] != NULL; i++) {
        if (strcasecmp(name, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The tables that hold the truth; written by the store alone. */
static bool is_own_table(const char *name) {
    static const char *const names[] = {
        "setting",
        "change",
        "image",
        "image_path",
        "original",
        "thumbnail",
        "caption",
        "trunk",
        "feature",
        "head",
        "generation",
        "embedding",
        "removal",
        "caption_fts",
        "caption_fts_data",
        "caption_fts_idx",
        "caption_fts_docsize",
        "caption_fts_config",
        NULL,
    };
    return name_in(name, names);
}

static bool writes_table(int action) {
    switch (action) {
    case SQLITE_INSERT:
    case SQLITE_UPDATE:
    case SQLITE_DELETE:
    case SQLITE_DROP_TABLE:
    case SQLITE_DROP_VTABLE:
        return true;
    default:
        return false;
    }
}

/* Pragmas that tell and change nothing, whatever their argument. */
static bool pragma_reads(const char *name, const char *argument) {
    static const char *const tell[] = {
        "table_info",      "table_xinfo",    "table_list",       "index_list",  "index_info",
        "index_xinfo",     "database_list",  "function_list",    "module_list", "pragma_list",
        "compile_options", "collation_list", "foreign_key_list", NULL,
    };
    static const char *const ask[] = {
        "user_version", "application_id", "page_count",   "page_size",      "freelist_count",
        "encoding",     "journal_mode",   "data_version", "schema_version", NULL,
    };
    return name_in(name, tell) || (argument == NULL && name_in(name, ask));
}

static int deny(l2c_sql_conn *c, const char *what) {
    l2cdb_error e;
    l2c_fail(&e, L2CDB_E_DENIED, "%s is not allowed: this connection may only read", what);
    (void)l2c_sql_fail(c, &e);
    return SQLITE_DENY;
}

static int authorize_read_only(l2c_sql_conn *c, int action, const char *a, const char *b) {
    switch (action) {
    case SQLITE_SELECT:
    case SQLITE_READ:
    case SQLITE_RECURSIVE:
        return SQLITE_OK;
    case SQLITE_FUNCTION: {
        static const char *const denied[] = { "load_extension", "readfile",       "writefile",
                                              "edit",           "fts3_tokenizer", NULL };
        return name_in(b, denied) ? deny(c, b) : SQLITE_OK;
    }
    case SQLITE_PRAGMA:
        return pragma_reads(a, b) ? SQLITE_OK : deny(c, "this PRAGMA");
    case SQLITE_ATTACH:
    case SQLITE_DETACH:
        return deny(c, "ATTACH");
    case SQLITE_TRANSACTION:
    case SQLITE_SAVEPOINT:
        return deny(c, "a transaction");
    case SQLITE_UPDATE:
    case SQLITE_INSERT:
    case SQLITE_DELETE:
        return deny(c, "writing");
    default:
        return deny(c, "changing anything");
    }
}

static int authorize(void *ctx, int action, const char *a, const char *b, const char *schema,
                     const char *trigger) {
    (void)trigger;
    l2c_sql_conn *c = ctx;
    if (c->internal > 0) {
        return SQLITE_OK;
    }
    if (c->limits.read_only) {
        return authorize_read_only(c, action, a, b);
    }
    if ((action == SQLITE_CREATE_TABLE || action == SQLITE_CREATE_VIEW ||
         action == SQLITE_CREATE_VTABLE) &&
        (strcasecmp(a, "images") == 0 || strcasecmp(a, "captions") == 0)) {
        l2cdb_error e;
        l2c_fail(&e, L2CDB_E_EXISTS, "table %s is there already", a);
        (void)l2c_sql_fail(c, &e);
        return SQLITE_DENY;
    }
    if (writes_table(action) && is_own_table(a) &&
        (schema == NULL || strcasecmp(schema, "main") == 0)) {
        l2cdb_error e;
        l2c_fail(&e, L2CDB_E_DENIED,
                 "table %s holds l2cdb's own records and is not written directly", a);
        l2c_hint(&e, "write to images or captions");
        (void)l2c_sql_fail(c, &e);
        return SQLITE_DENY;
    }
    return SQLITE_OK;
}

static int progress(void *ctx) {
    l2c_sql_conn *c = ctx;
    if (c->deadline > 0 && l2c_now() > c->deadline) {
        c->timed_out = true;
    }
    return c->timed_out || l2c_flag_raised(&c->db->interrupted);
}

/* Waits for another writer, but not past an interrupt. */
static int busy(void *ctx, int count) {
    l2c_sql_conn *c = ctx;
    if (l2c_flag_raised(&c->db->interrupted) || count * 0.005 > BUSY_S_MAX) {
        return 0;
    }
    const struct timespec wait = { .tv_nsec = 5000000 };
    nanosleep(&wait, NULL);
    return 1;
}

/* ---- Setting up -------------------------------------------------------------------------------
 */

l2cdb_status l2c_sql_module_register(l2c_sql_conn *c, const char *name,
                                     const sqlite3_module *methods, const void *which,
                                     l2cdb_error *err) {
    l2c_sql_module *m = l2c_alloc(1, sizeof *m);
    if (m == NULL) {
        return l2c_fail_nomem(err, sizeof *m);
    }
    *m = (l2c_sql_module){ .conn = c, .which = which };
    int rc = sqlite3_create_module_v2(c->sqlite, name, methods, m, l2c_free);
    return rc == SQLITE_OK ? L2CDB_OK : l2c_sql_status(c, rc, err);
}

int l2c_sql_table_new(sqlite3_vtab **out, size_t size, const l2c_sql_module *m,
                      const char *schema) {
    m->conn->internal++;
    int rc = sqlite3_declare_vtab(m->conn->sqlite, schema);
    m->conn->internal--;
    if (rc == SQLITE_OK) {
        *out = l2c_calloc(1, size);
        rc = *out != NULL ? SQLITE_OK : SQLITE_NOMEM;
    }
    return rc;
}

l2cdb_status l2c_sql_setup(l2c_sql_conn *c, l2cdb_error *err) {
    l2cdb_status rc = l2c_sql_functions_register(c, err);
    if (rc == L2CDB_OK) {
        rc = l2c_sql_images_register(c, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_sql_tables_register(c, err);
    }
    return rc;
}

static void conn_close(l2c_sql_conn *c) {
    if (c != NULL) {
        l2c_sql_view_done(c);
        sqlite3_close_v2(c->sqlite);
        l2c_free(c);
    }
}

/* Opens and reads the first page. A medium that cannot be written has no -shm file to share:
 * without a log beside it, the file is opened as immutable, as the store does. */
static int open_file(sqlite3 **out, const char *path, bool read_only) {
    int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
                (read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE);
    const char *probe = "SELECT count(*) FROM sqlite_schema";
    int code = sqlite3_open_v2(path, out, flags, NULL);
    if (code == SQLITE_OK) {
        code = sqlite3_exec(*out, probe, NULL, NULL, NULL);
    }
    if ((code & 0xff) != SQLITE_CANTOPEN || !read_only) {
        return code;
    }
    l2c_buf uri;
    l2c_buf_init(&uri);
    l2c_buf_printf(&uri, "%s-wal", path);
    bool has_log = uri.failed || l2c_path_exists(uri.data);
    l2c_buf_clear(&uri);
    l2c_buf_puts(&uri, "file:");
    for (const char *c = path; *c != 0; c++) {
        l2c_buf_printf(&uri, strchr("%?#", *c) != NULL ? "%%%02X" : "%c", (unsigned char)*c);
    }
    l2c_buf_puts(&uri, "?immutable=1");
    if (!has_log && !uri.failed) {
        sqlite3_close(*out);
        code = sqlite3_open_v2(uri.data, out, flags | SQLITE_OPEN_URI, NULL);
        code = code == SQLITE_OK ? sqlite3_exec(*out, probe, NULL, NULL, NULL) : code;
    }
    l2c_buf_fini(&uri);
    return code;
}

static l2cdb_status conn_open(l2cdb *db, l2c_sql_conn **out, l2cdb_error *err) {
    l2c_sql_conn *c = l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return l2c_fail_nomem(err, sizeof *c);
    }
    c->db = db;
    int code = open_file(&c->sqlite, l2c_store_path(db->store), db->options.read_only);
    if (code == SQLITE_OK) {
        sqlite3_busy_handler(c->sqlite, busy, c);
        sqlite3_progress_handler(c->sqlite, PROGRESS_STEPS, progress, c);
        sqlite3_db_config(c->sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
        // "x" is a name and nothing else: a mistyped column is an error, not a string.
        sqlite3_db_config(c->sqlite, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
        sqlite3_db_config(c->sqlite, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
        c->internal++;
        code = sqlite3_exec(
            c->sqlite, "PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=ON; PRAGMA cache_size=-16384",
            NULL, NULL, NULL);
        c->internal--;
    }
    l2cdb_status rc = code == SQLITE_OK ? L2CDB_OK : l2c_sql_status(c, code, err);
    if (rc == L2CDB_OK) {
        sqlite3_set_authorizer(c->sqlite, authorize, c);
        rc = l2c_sql_setup(c, err);
    }
    if (rc != L2CDB_OK) {
        conn_close(c);
        return rc;
    }
    *out = c;
    return L2CDB_OK;
}

static void close_all(l2cdb *db) {
    l2c_sql_conn *c = db->sql;
    db->sql = NULL;
    while (c != NULL) {
        l2c_sql_conn *next = c->next;
        conn_close(c);
        c = next;
    }
}

/* The connection that holds this thread's transaction, else the idle one used last. */
static l2c_sql_conn *find_conn(l2cdb *db) {
    l2c_sql_conn *idle = NULL;
    for (l2c_sql_conn *c = db->sql; c != NULL; c = c->next) {
        if (c->in_transaction && pthread_equal(c->owner, pthread_self())) {
            return c;
        }
        if (idle == NULL && c->users == 0 && !c->in_transaction) {
            idle = c;
        }
    }
    return idle;
}

l2cdb_status l2c_sql_conn_get(l2cdb *db, l2c_sql_conn **out, l2cdb_error *err) {
    pthread_mutex_lock(&db->sql_lock);
    l2c_sql_conn *c = find_conn(db);
    if (c != NULL) {
        c->users++;
    }
    pthread_mutex_unlock(&db->sql_lock);
    if (c == NULL) {
        l2cdb_status rc = conn_open(db, &c, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
        c->users = 1;
        pthread_mutex_lock(&db->sql_lock);
        c->next = db->sql;
        db->sql = c;
        db->sql_close = close_all;
        pthread_mutex_unlock(&db->sql_lock);
    }
    *out = c;
    return L2CDB_OK;
}

void l2c_sql_conn_note_transaction(l2c_sql_conn *c) {
    bool open = sqlite3_get_autocommit(c->sqlite) == 0;
    if (open != c->in_transaction) {
        pthread_mutex_lock(&c->db->sql_lock);
        c->in_transaction = open;
        c->owner = pthread_self();
        pthread_mutex_unlock(&c->db->sql_lock);
    }
}

void l2c_sql_conn_put(l2c_sql_conn *c) {
    l2cdb *db = c->db;
    l2c_sql_conn *surplus = NULL;
    pthread_mutex_lock(&db->sql_lock);
    c->users--;
    if (c->users == 0 && !c->in_transaction) {
        // To the front, so that one thread always meets the same connection and its temp tables.
        l2c_sql_conn *head = db->sql;
        size_t idle = 0;
        for (l2c_sql_conn **at = &head; *at != NULL;) {
            if (*at == c) {
                *at = c->next;
                continue;
            }
            idle += (*at)->users == 0 ? 1 : 0;
            at = &(*at)->next;
        }
        if (idle < IDLE_MAX) {
            c->next = head;
            head = c;
        } else {
            surplus = c;
        }
        db->sql = head;
    }
    pthread_mutex_unlock(&db->sql_lock);
    conn_close(surplus);
}
