/* The virtual tables images and captions: records of the store, neighbours of the index.
 *
 * Without a query a pass is a plain SELECT on the record's table, with the conditions on its
 * columns and the order pushed into it. With one (the hidden column `query`, or embedding MATCH)
 * a pass streams neighbours in ascending distance and fetches each record by its id. Nothing says
 * beforehand how many rows will be asked for: SQLite stops when its LIMIT is met, whatever other
 * conditions it has thrown rows away by, so an answer always has min(k, matches) rows.
 *
 * Order. Where the index is approximate, a deeper round can find a row that is nearer than one
 * given already. Such late rows are held back and given when the stream has ended: an answer that
 * LIMIT cuts off is in order, one that runs out of matches may have them at its end. `SET
 * search.exact = on` knows no late rows.
 *
 * Conditions on columns are either turned into a set of ids first (when few rows pass) or checked
 * while records are fetched. SQLite checks all of them again; the push-down only saves work, so a
 * condition may be left out here but must never be stricter than SQLite's own.
 *
 * Hidden columns. `query`: the vector to be near to; `k`: how many rows at most; `rank`: the
 * distance, with +Inf for records without a vector. A query by `query` alone returns every record:
 * those without a vector come last in order of rank and first in order of distance (where they are
 * NULL). MATCH, or a k, returns only records that have a vector.
 *
 * Writing. Rows are written through the store, on the connection and in the transaction of the
 * statement (l2c_store_guest): SQLite has locked main for it, as it does for a table of its own,
 * since both tables stand in that schema. Later statements of the transaction see what was written;
 * the indexes do not, so a vector is believed only while the record still has it. After the commit
 * captions get their vectors, and the indexes follow. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/utf8.h"
#include "engine/base/vec.h"
#include "engine/sql_engine.h"

#define BATCH_MAX 1024
#define TERMS_MAX 32
#define ORDER_MAX 8

/* ---- Columns ----------------------------------------------------------------------------------
 */

typedef struct column {
    const char *name, *type;
    const char *expression; /* over the record's table, alias t */
    double share;           /* of the rows that one value is guessed to have */
} column;

static const column image_columns[] = {
    { "id", "INTEGER", "t.id", 0 },
    { "path", "TEXT", "t.path", 0.001 },
    { "width", "INTEGER", "t.width", 0.2 },
    { "height", "INTEGER", "t.height", 0.2 },
    { "format", "TEXT", "t.format", 0.5 },
    { "taken_at", "TEXT", "t.taken_at", 0.01 },
    { "camera", "TEXT", "t.camera", 0.1 },
    { "orientation", "INTEGER", "t.orientation", 0.3 },
    { "latitude", "REAL", "t.latitude", 0.01 },
    { "longitude", "REAL", "t.longitude", 0.01 },
    { "size_bytes", "INTEGER", "t.size_bytes", 0.01 },
    { "hash", "TEXT", "CAST(lower(hex(t.hash)) AS TEXT)", 0.001 },
    { "status", "TEXT", "t.status", 0.5 },
    { "error", "TEXT", "t.error", 0.1 },
    { "tags", "TEXT", "t.tags", 0.1 },
    { "meta", "TEXT", "t.meta", 0.1 },
    { "added_at", "TEXT", "CAST(datetime(t.added_at, 'unixepoch') AS TEXT)", 0.1 },
};

static const column caption_columns[] = {
    { "id", "INTEGER", "t.id", 0 },
    { "image_id", "INTEGER", "t.image_id", 0.001 },
    { "text", "TEXT", "t.text", 0.001 },
    { "language", "TEXT", "t.language", 0.3 },
    { "source", "TEXT", "t.source", 0.5 },
    { "added_at", "TEXT", "CAST(datetime(t.added_at, 'unixepoch') AS TEXT)", 0.1 },
};

/* Columns behind those of the record; the first three can be seen. */
enum { EMBEDDING, SCORE, DISTANCE, QUERY, K, RANK };
static const char *const vector_columns[] = { "embedding", "score", "distance" };

typedef struct target {
    const char *name;   /* of the virtual table */
    const char *record; /* table of the store */
    l2c_kind kind;
    const column *columns;
    int count;
} target;

static const target targets[] = {
    { "images", "image", L2C_KIND_IMAGE, image_columns,
      (int)(sizeof image_columns / sizeof *image_columns) },
    { "captions", "caption", L2C_KIND_CAPTION, caption_columns,
      (int)(sizeof caption_columns / sizeof *caption_columns) },
};

typedef struct table {
    sqlite3_vtab base;
    l2c_sql_conn *conn;
    const target *target;
    int64_t rows; /* estimate */
    unsigned rows_age;
    /* The cursor closed last, with its compiled statements: the same question asked again, as by a
     * prepared statement, needs them again. NULL: none. */
    struct cursor *spare;
} table;

/* ---- Plans: what xBestIndex tells xFilter ------------------------------------------------------
 */

/* One argument of xFilter. */
typedef struct plan_term {
    char role;      /* q query, m match, k, l limit, d distance below, f condition */
    char op;        /* = i < l > g ! L G 0 1 I: i is IS, l <=, g >=, 0 and 1 IS (NOT) NULL, I IN */
    char collation; /* B N R */
    int column;
} plan_term;

typedef struct plan {
    uint64_t used; /* columns SQLite will ask for */
    int64_t estimated;
    bool near; /* by distance */
    bool bare_first, bare_last;
    struct {
        int column;
        bool descending;
    } order[ORDER_MAX];
    size_t order_count;
    plan_term terms[TERMS_MAX];
    size_t terms_count;
} plan;

/* The plan as idxStr: "used estimated flags;order;terms" with every number in decimal. */
static char *plan_write(const plan *p) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_printf(&b, "%" PRIu64 " %" PRId64 " %d%d%d;", p->used, p->estimated, p->near,
                   p->bare_first, p->bare_last);
    for (size_t i = 0; i < p->order_count; i++) {
        l2c_buf_printf(&b, "%d%c", p->order[i].column, p->order[i].descending ? '-' : '+');
    }
    l2c_buf_putc(&b, ';');
    for (size_t i = 0; i < p->terms_count; i++) {
        const plan_term *t = &p->terms[i];
        l2c_buf_printf(&b, "%c%c%c%d ", t->role, t->op, t->collation, t->column);
    }
    char *out = b.failed ? NULL : sqlite3_mprintf("%s", b.data);
    l2c_buf_fini(&b);
    return out;
}

static void plan_read(plan *p, const char *s) {
    *p = (plan){ 0 };
    char *end;
    p->used = strtoull(s, &end, 10);
    p->estimated = strtoll(end + 1, &end, 10);
    p->near = end[1] == '1';
    p->bare_first = end[2] == '1';
    p->bare_last = end[3] == '1';
    s = end + 5;
    while (*s != ';') {
        p->order[p->order_count].column = (int)strtol(s, &end, 10);
        p->order[p->order_count++].descending = *end == '-';
        s = end + 1;
    }
    s++;
    while (*s != 0) {
        plan_term *t = &p->terms[p->terms_count++];
        t->role = s[0];
        t->op = s[1];
        t->collation = s[2];
        t->column = (int)strtol(s + 3, &end, 10);
        s = end + 1;
    }
}

/* ---- xConnect ----------------------------------------------------------------------------------
 */

static int connect_table(sqlite3 *sqlite, void *data, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **message) {
    (void)sqlite;
    (void)argc;
    (void)argv;
    (void)message;
    const l2c_sql_module *m = data;
    const target *g = m->which;
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "CREATE TABLE x(");
    for (int i = 0; i < g->count; i++) {
        l2c_buf_printf(&b, "%s %s,", g->columns[i].name, g->columns[i].type);
    }
    l2c_buf_puts(&b, "embedding VECTOR,score REAL,distance REAL,query HIDDEN,k INTEGER HIDDEN,"
                     "rank REAL HIDDEN)");
    int rc = b.failed ? SQLITE_NOMEM : l2c_sql_table_new(out, sizeof(table), m, b.data);
    l2c_buf_fini(&b);
    if (rc == SQLITE_OK) {
        ((table *)*out)->conn = m->conn;
        ((table *)*out)->target = g;
    }
    return rc;
}

/* ---- xBestIndex --------------------------------------------------------------------------------
 */

/* Highest id: an upper bound of the rows that costs one look at the end of a b-tree. */
static void estimate_rows(table *t) {
    if (t->rows_age++ % 16 != 0) {
        return;
    }
    char sql[64];
    snprintf(sql, sizeof sql, "SELECT max(id) FROM main.%s", t->target->record);
    sqlite3_stmt *s = NULL;
    l2cdb_error ignored;
    t->rows = 1000;
    if (t->conn->db != NULL && l2c_sql_prepare_own(t->conn, &s, sql, &ignored) == L2CDB_OK &&
        sqlite3_step(s) == SQLITE_ROW) {
        t->rows = sqlite3_column_int64(s, 0) + 1;
    }
    sqlite3_finalize(s);
}

static char op_of(unsigned char op) {
    switch (op) {
    case SQLITE_INDEX_CONSTRAINT_EQ:
        return '=';
    case SQLITE_INDEX_CONSTRAINT_IS:
        return 'i';
    case SQLITE_INDEX_CONSTRAINT_LT:
        return '<';
    case SQLITE_INDEX_CONSTRAINT_LE:
        return 'l';
    case SQLITE_INDEX_CONSTRAINT_GT:
        return '>';
    case SQLITE_INDEX_CONSTRAINT_GE:
        return 'g';
    case SQLITE_INDEX_CONSTRAINT_NE:
        return '!';
    case SQLITE_INDEX_CONSTRAINT_LIKE:
        return 'L';
    case SQLITE_INDEX_CONSTRAINT_GLOB:
        return 'G';
    case SQLITE_INDEX_CONSTRAINT_ISNULL:
        return '0';
    case SQLITE_INDEX_CONSTRAINT_ISNOTNULL:
        return '1';
    default:
        return 0;
    }
}

static double share_of(const column *c, char op, bool in) {
    switch (op) {
    case '=':
    case 'i':
        return in ? c->share * 5 : c->share;
    case '0':
        return 0.3;
    case '!':
    case '1':
        return 0.9;
    case 'L':
    case 'G':
        return 0.3;
    default:
        return 0.4;
    }
}

typedef struct chooser {
    table *t;
    sqlite3_index_info *info;
    plan p;
    int argument;
    double share; /* of the rows that pass the conditions */
    bool one_row, query_blocked, vectors_only;
} chooser;

static bool take(chooser *c, int i, plan_term term, bool omit) {
    if (c->p.terms_count == TERMS_MAX) {
        return false; // SQLite checks the rest by itself
    }
    c->p.terms[c->p.terms_count++] = term;
    c->info->aConstraintUsage[i].argvIndex = ++c->argument;
    c->info->aConstraintUsage[i].omit = omit;
    return true;
}

static void take_condition(chooser *c, int i) {
    const struct sqlite3_index_constraint *k = &c->info->aConstraint[i];
    const target *g = c->t->target;
    int col = k->iColumn < 0 ? 0 : k->iColumn;
    char op = op_of(k->op);
    bool vector = col == g->count + EMBEDDING;
    if (op == 0 || (col >= g->count && !(vector && (op == '0' || op == '1')))) {
        return;
    }
    char collation = 'B';
    if (strchr("=i<l>g!", op) != NULL) {
        const char *name = sqlite3_vtab_collation(c->info, i);
        collation = strcmp(name, "BINARY") == 0   ? 'B'
                    : strcmp(name, "NOCASE") == 0 ? 'N'
                    : strcmp(name, "RTRIM") == 0  ? 'R'
                                                  : 0;
        if (collation == 0) {
            return;
        }
    }
    bool in = op == '=' && sqlite3_vtab_in(c->info, i, -1);
    if (!take(c, i, (plan_term){ 'f', in ? 'I' : op, collation, col }, false)) {
        return;
    }
    if (vector) {
        c->vectors_only = c->vectors_only || op == '1';
        c->share *= op == '1' ? 1 : 0.05;
    } else {
        c->one_row = c->one_row || (col == 0 && op == '=' && !in);
        c->share *= share_of(&g->columns[col], op, in);
    }
    if (in) {
        (void)sqlite3_vtab_in(c->info, i, 1); // all values at once, so that order survives
    }
}

static void take_constraints(chooser *c) {
    sqlite3_index_info *info = c->info;
    int special = c->t->target->count;
    bool explicit_k = false;
    for (int i = 0; i < info->nConstraint; i++) {
        const struct sqlite3_index_constraint *k = &info->aConstraint[i];
        bool query = (k->iColumn == special + QUERY && k->op == SQLITE_INDEX_CONSTRAINT_EQ) ||
                     (k->iColumn == special + EMBEDDING && k->op == SQLITE_INDEX_CONSTRAINT_MATCH);
        if (query && !k->usable) {
            c->query_blocked = true;
        } else if (query && !c->p.near) {
            c->p.near = true;
            bool match = k->op == SQLITE_INDEX_CONSTRAINT_MATCH;
            c->vectors_only = c->vectors_only || match;
            (void)take(c, i, (plan_term){ match ? 'm' : 'q', '=', 'B', 0 }, true);
        }
    }
    for (int i = 0; i < info->nConstraint; i++) {
        const struct sqlite3_index_constraint *k = &info->aConstraint[i];
        if (info->aConstraintUsage[i].argvIndex > 0) {
            continue;
        }
        bool is_k = k->iColumn == special + K && k->op == SQLITE_INDEX_CONSTRAINT_EQ;
        if (k->op == SQLITE_INDEX_CONSTRAINT_LIMIT || k->op == SQLITE_INDEX_CONSTRAINT_OFFSET) {
            if (k->usable && c->p.near) {
                (void)take(c, i, (plan_term){ 'l', '=', 'B', 0 }, false); // only a hint
            }
        } else if (c->p.near && is_k) {
            c->query_blocked = c->query_blocked || !k->usable;
            explicit_k = true;
            if (k->usable) {
                (void)take(c, i, (plan_term){ 'k', '=', 'B', 0 }, true);
            }
        } else if (c->p.near && k->usable && k->iColumn == special + DISTANCE &&
                   (k->op == SQLITE_INDEX_CONSTRAINT_LT || k->op == SQLITE_INDEX_CONSTRAINT_LE)) {
            c->vectors_only = true;
            c->share *= 0.2;
            (void)take(c, i, (plan_term){ 'd', '<', 'B', 0 }, false);
        } else if (k->usable) {
            take_condition(c, i);
        }
    }
    c->vectors_only = c->vectors_only || explicit_k;
}

/* True if the pass can deliver the order SQLite wants. */
static bool take_order(chooser *c) {
    const sqlite3_index_info *info = c->info;
    const target *g = c->t->target;
    if (info->nOrderBy == 0) {
        return false;
    }
    if (c->p.near) {
        const struct sqlite3_index_orderby *o = &info->aOrderBy[0];
        bool by_rank = o->iColumn == g->count + RANK && !o->desc;
        bool by_distance = o->iColumn == g->count + DISTANCE && !o->desc;
        bool by_score = o->iColumn == g->count + SCORE && o->desc; // NULLs last, as SQLite has it
        bool then_id = info->nOrderBy == 2 && info->aOrderBy[1].iColumn <= 0 &&
                       !info->aOrderBy[1].desc; // the index breaks ties by the lower id
        if ((!by_rank && !by_distance && !by_score) || (info->nOrderBy > 1 && !then_id)) {
            return false;
        }
        c->p.bare_first = by_distance;
        return true;
    }
    if (info->nOrderBy > ORDER_MAX) {
        return false;
    }
    for (int i = 0; i < info->nOrderBy; i++) {
        if (info->aOrderBy[i].iColumn >= g->count) {
            return false;
        }
    }
    for (int i = 0; i < info->nOrderBy; i++) {
        int col = info->aOrderBy[i].iColumn < 0 ? 0 : info->aOrderBy[i].iColumn;
        c->p.order[c->p.order_count].column = col;
        c->p.order[c->p.order_count++].descending = info->aOrderBy[i].desc;
    }
    return true;
}

static void set_cost(chooser *c) {
    double rows = (double)c->t->rows;
    double passing = c->one_row ? 1 : fmax(1, rows * c->share);
    double cost;
    if (c->p.near) {
        // Hardly less with conditions than without, so that SQLite does not split an OR into
        // several searches.
        cost = c->one_row ? 200 : 2000 + 2 * rows + passing;
    } else if (c->one_row) {
        cost = 10;
        c->info->idxFlags |= SQLITE_INDEX_SCAN_UNIQUE;
    } else {
        cost = 50 + rows + passing;
    }
    c->info->estimatedCost = cost;
    c->info->estimatedRows = (sqlite3_int64)passing;
    c->p.estimated = (int64_t)passing;
}

static int best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
    chooser c = { .t = (table *)base, .info = info, .share = 1 };
    estimate_rows(c.t);
    take_constraints(&c);
    if (c.query_blocked) {
        return SQLITE_CONSTRAINT;
    }
    c.p.used = info->colUsed;
    info->orderByConsumed = take_order(&c);
    bool bare = c.p.near && !c.vectors_only;
    c.p.bare_last = bare && !c.p.bare_first;
    c.p.bare_first = bare && c.p.bare_first;
    set_cost(&c);
    info->idxStr = plan_write(&c.p);
    info->needToFreeIdxStr = 1;
    return info->idxStr != NULL ? SQLITE_OK : SQLITE_NOMEM;
}

/* ---- Cursors -----------------------------------------------------------------------------------
 */

/* The statements of a pass, compiled when they are first needed and kept while the plan is. */
enum { ROWS, ROW, ROW_FILTERED, IDS, BARE, STATEMENTS };

typedef enum phase {
    PHASE_ROWS,
    PHASE_BARE_FIRST,
    PHASE_STREAM,
    PHASE_LATE,
    PHASE_BARE_LAST,
    PHASE_END
} phase;

typedef struct neighbour {
    int64_t id;
    float distance;
} neighbour;

typedef struct cursor {
    sqlite3_vtab_cursor base;
    plan p;
    char *plan_text;
    int64_t space;  /* of the vectors that the statements were compiled for */
    bool unsettled; /* and whether the transaction had written */
    sqlite3_stmt *statements[STATEMENTS];
    sqlite3_value *values[TERMS_MAX]; /* copies of xFilter's arguments … */
    char *lists[TERMS_MAX];           /* … and IN lists as JSON */

    phase phase;
    sqlite3_stmt *current; /* stands on the row */
    bool has_distance;
    float distance;

    l2c_scan *scan;
    int64_t ids[BATCH_MAX];
    float distances[BATCH_MAX];
    size_t at, got, batch;
    float reached; /* the largest distance so far */
    neighbour *late;
    size_t late_count, late_capacity, late_at;
    bool filtered; /* conditions are checked while fetching */
    double bound;  /* no row beyond this distance is wanted */
    uint64_t limit, emitted;
    bool noted; /* a pass is open that EXPLAIN has not heard of */
    size_t set_rows;
    bool has_set;
} cursor;

static table *table_of(const cursor *c) {
    return (table *)c->base.pVtab;
}

static l2c_sql_conn *conn_of(const cursor *c) {
    return table_of(c)->conn;
}

static int open_cursor(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
    table *t = (table *)base;
    cursor *c = t->spare != NULL ? t->spare : l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    t->spare = NULL;
    t->conn->cursors++;
    *out = &c->base;
    return SQLITE_OK;
}

/* The columns that conditions are on, each once: SQLite makes three of one LIKE. */
static void describe_conditions(const cursor *c, l2c_buf *b) {
    const target *g = table_of(c)->target;
    uint64_t named = 0;
    for (size_t i = 0; i < c->p.terms_count; i++) {
        const plan_term *t = &c->p.terms[i];
        if (t->role != 'f' || (named >> t->column & 1) != 0) {
            continue;
        }
        l2c_buf_printf(b, "%s%s", named == 0 ? "" : ", ",
                       t->column < g->count ? g->columns[t->column].name : "embedding");
        named |= UINT64_C(1) << t->column;
    }
}

static size_t count_conditions(const plan *p) {
    size_t n = 0;
    for (size_t i = 0; i < p->terms_count; i++) {
        n += p->terms[i].role == 'f' ? 1 : 0;
    }
    return n;
}

/* Tells EXPLAIN what the pass that ends now did. */
static void note_pass(cursor *c) {
    if (!c->noted) {
        return;
    }
    c->noted = false;
    l2c_buf b;
    l2c_buf_init(&b);
    size_t conditions = count_conditions(&c->p);
    if (c->scan != NULL) {
        l2c_search_plan sp;
        l2c_scan_get_plan(c->scan, &sp);
        char text[160] = "no search needed";
        if (sp.kind != L2C_INDEX_AUTO) { // AUTO: the scan ended before anything was compared
            l2c_plan_describe(text, sizeof text, &sp);
        }
        l2c_buf_puts(&b, text);
        if (c->has_set) {
            l2c_buf_puts(&b, sp.filter_first ? " on " : "; filter as a set, on ");
            describe_conditions(c, &b);
            l2c_buf_printf(&b, " (%zu pass)", c->set_rows);
        } else if (conditions > 0) {
            l2c_buf_puts(&b, "; search first, neighbours filtered on ");
            describe_conditions(c, &b);
        }
    } else {
        l2c_buf_puts(&b, conditions > 0 ? "records by " : "all records");
        describe_conditions(c, &b);
        if ((c->p.used >> (table_of(c)->target->count + EMBEDDING)) & 1) {
            l2c_buf_puts(&b, ", with their vectors");
        }
    }
    if (!b.failed) {
        l2c_sql_note *n =
            l2c_sql_note_add(conn_of(c), table_of(c)->target->name, b.data, c->p.estimated);
        if (n != NULL) {
            n->actual += (int64_t)c->emitted;
        }
    }
    l2c_buf_fini(&b);
}

static void end_pass(cursor *c) {
    note_pass(c);
    l2c_scan_close(c->scan);
    c->scan = NULL;
    l2c_free(c->late);
    c->late = NULL;
    c->late_count = c->late_capacity = c->late_at = 0;
    for (size_t i = 0; i < STATEMENTS; i++) {
        sqlite3_reset(c->statements[i]);
    }
    for (size_t i = 0; i < TERMS_MAX; i++) {
        sqlite3_value_free(c->values[i]);
        c->values[i] = NULL;
        l2c_free(c->lists[i]);
        c->lists[i] = NULL;
    }
    c->current = NULL;
    c->phase = PHASE_END;
}

static void drop_statements(cursor *c) {
    for (size_t i = 0; i < STATEMENTS; i++) {
        sqlite3_finalize(c->statements[i]);
        c->statements[i] = NULL;
    }
}

static void free_cursor(cursor *c) {
    if (c != NULL) {
        drop_statements(c);
        l2c_free(c->plan_text);
        l2c_free(c);
    }
}

static int close_cursor(sqlite3_vtab_cursor *base) {
    cursor *c = (cursor *)base;
    table *t = table_of(c);
    end_pass(c);
    t->conn->cursors--;
    free_cursor(t->spare);
    t->spare = c;
    return SQLITE_OK;
}

static int disconnect_table(sqlite3_vtab *base) {
    free_cursor(((table *)base)->spare);
    l2c_free(base);
    return SQLITE_OK;
}

static int fail(cursor *c, const l2cdb_error *e) {
    return l2c_sql_table_fail(c->base.pVtab, conn_of(c), e);
}

/* ---- Statements of a pass ----------------------------------------------------------------------
 */

/* The vector of record t. Keys of vectors are space << 41 | kind << 40 | item
 * (docs/format.md); the primary key is the only quick way to one. */
static void put_vector(l2c_buf *b, const cursor *c, const char *result) {
    int64_t base = c->space << 41 | (int64_t)table_of(c)->target->kind << 40;
    l2c_buf_printf(b, "(SELECT %s FROM main.embedding e WHERE e.id = %" PRId64 " + t.id)", result,
                   base);
}

static void put_columns(l2c_buf *b, const cursor *c) {
    const target *g = table_of(c)->target;
    for (int i = 0; i < g->count; i++) {
        bool used = i == 0 || ((c->p.used >> i) & 1) != 0;
        l2c_buf_printf(b, "%s%s", i == 0 ? "" : ",", used ? g->columns[i].expression : "NULL");
    }
    l2c_buf_putc(b, ',');
    if ((c->p.used >> (g->count + EMBEDDING)) & 1) {
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
static void put_conditions(l2c_buf *b, const cursor *c) {
    const target *g = table_of(c)->target;
    for (size_t i = 0; i < c->p.terms_count; i++) {
        const plan_term *t = &c->p.terms[i];
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

static void put_order(l2c_buf *b, const cursor *c) {
    const target *g = table_of(c)->target;
    for (size_t i = 0; i < c->p.order_count; i++) {
        l2c_buf_printf(b, "%s%s%s", i == 0 ? " ORDER BY " : ", ",
                       g->columns[c->p.order[i].column].expression,
                       c->p.order[i].descending ? " DESC" : "");
    }
    if (c->p.order_count == 0 && c->p.used != 0) {
        l2c_buf_puts(b, " ORDER BY t.id"); // not demanded, but what a reader expects to see
    }
}

static l2cdb_status compile(cursor *c, int which, l2cdb_error *err) {
    l2c_buf b;
    l2c_buf_init(&b);
    const char *record = table_of(c)->target->record;
    l2c_buf_puts(&b, "SELECT ");
    if (which == IDS || which == BARE) {
        l2c_buf_puts(&b, "t.id");
    } else {
        put_columns(&b, c);
    }
    l2c_buf_printf(&b, " FROM main.%s t WHERE ", record);
    l2c_buf_puts(&b, which == ROW || which == ROW_FILTERED ? "t.id = ?1" : "1");
    if (which != ROW) {
        put_conditions(&b, c);
    }
    if (which == ROW_FILTERED && c->unsettled) {
        l2c_buf_puts(&b, " AND EXISTS ");
        put_vector(&b, c, "1");
    }
    if (which == ROWS) {
        put_order(&b, c);
    } else if (which == IDS) {
        l2c_buf_puts(&b, " LIMIT ?1");
    } else if (which == BARE) {
        l2c_buf_puts(&b, " AND NOT EXISTS ");
        put_vector(&b, c, "1");
        l2c_buf_puts(&b, " ORDER BY t.id");
    }
    l2cdb_status rc = b.failed
                          ? l2c_fail_nomem(err, b.size)
                          : l2c_sql_prepare_own(conn_of(c), &c->statements[which], b.data, err);
    l2c_buf_fini(&b);
    return rc;
}

/* The statement, compiled, reset and with the conditions' values bound. */
static l2cdb_status statement(cursor *c, int which, sqlite3_stmt **out, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    if (c->statements[which] == NULL) {
        rc = compile(c, which, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    sqlite3_stmt *s = c->statements[which];
    sqlite3_reset(s);
    for (size_t i = 0; i < c->p.terms_count && which != ROW; i++) {
        if (c->lists[i] != NULL) {
            sqlite3_bind_text(s, (int)i + 2, c->lists[i], -1, SQLITE_STATIC);
        } else if (c->p.terms[i].role == 'f') {
            sqlite3_bind_value(s, (int)i + 2, c->values[i]);
        }
    }
    *out = s;
    return rc;
}

static l2cdb_status step(cursor *c, sqlite3_stmt *s, bool *row, l2cdb_error *err) {
    int rc = sqlite3_step(s);
    *row = rc == SQLITE_ROW;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? L2CDB_OK : l2c_sql_status(conn_of(c), rc, err);
}

/* ---- xFilter -----------------------------------------------------------------------------------
 */

/* The values of an IN list as JSON; *out NULL if one of them has no form in JSON. */
static l2cdb_status list_text(sqlite3_value *list, char **out, l2cdb_error *err) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_putc(&b, '[');
    bool known = true;
    sqlite3_value *v = NULL;
    for (int rc = sqlite3_vtab_in_first(list, &v); rc == SQLITE_OK && v != NULL;
         rc = sqlite3_vtab_in_next(list, &v)) {
        if (b.size > 1) {
            l2c_buf_putc(&b, ',');
        }
        switch (sqlite3_value_type(v)) {
        case SQLITE_INTEGER:
            l2c_buf_printf(&b, "%" PRId64, (int64_t)sqlite3_value_int64(v));
            break;
        case SQLITE_FLOAT:
            l2c_buf_printf(&b, "%.17g", sqlite3_value_double(v));
            known = known && isfinite(sqlite3_value_double(v));
            break;
        case SQLITE_TEXT: {
            const char *text = (const char *)sqlite3_value_text(v);
            size_t size = (size_t)sqlite3_value_bytes(v);
            bool plain =
                text != NULL && l2c_utf8_valid(text, size, NULL) && memchr(text, 0, size) == NULL;
            known = known && plain;
            l2c_buf_json_string(&b, plain ? text : "", plain ? size : 0);
            break;
        }
        case SQLITE_NULL:
            l2c_buf_puts(&b, "null");
            break;
        default:
            known = false;
        }
    }
    l2c_buf_putc(&b, ']');
    *out = l2c_buf_take(&b);
    if (*out == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    if (!known) {
        l2c_free(*out);
        *out = NULL;
    }
    return L2CDB_OK;
}

/* Keeps copies of the arguments. A list that cannot be passed on is left for SQLite to check. */
static l2cdb_status keep_values(cursor *c, sqlite3_value **args, l2cdb_error *err) {
    for (size_t i = 0; i < c->p.terms_count; i++) {
        plan_term *t = &c->p.terms[i];
        if (t->role != 'f' && strchr("qmk", t->role) == NULL) {
            continue;
        }
        if (t->op == 'I') {
            l2cdb_status rc = list_text(args[i], &c->lists[i], err);
            if (rc != L2CDB_OK) {
                return rc;
            }
            if (c->lists[i] == NULL) {
                t->role = '-';
                l2c_free(c->plan_text); // the statements belong to this pass alone
                c->plan_text = NULL;
                drop_statements(c);
            }
        } else {
            c->values[i] = sqlite3_value_dup(args[i]);
            if (c->values[i] == NULL) {
                return l2c_fail_nomem(err, 0);
            }
        }
    }
    return L2CDB_OK;
}

static int by_id(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* The ids that pass the conditions, if they are few; else *ids is NULL and the conditions are
 * checked on the stream. Finding out costs a walk over at most `most` passing records. */
static l2cdb_status collect_ids(cursor *c, int64_t **ids, size_t *count, l2cdb_error *err) {
    *ids = NULL;
    *count = 0;
    table *t = table_of(c);
    size_t most = (size_t)(t->rows / 16 > 4096 ? t->rows / 16 : 4096);
    sqlite3_stmt *s;
    l2cdb_status rc = statement(c, IDS, &s, err);
    int64_t *list = rc == L2CDB_OK ? l2c_alloc(most + 1, sizeof *list) : NULL;
    if (rc == L2CDB_OK && list == NULL) {
        rc = l2c_fail_nomem(err, most * sizeof *list);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(s, 1, (sqlite3_int64)most + 1);
    size_t n = 0;
    bool row = true;
    while (rc == L2CDB_OK && row) {
        rc = step(c, s, &row, err);
        if (rc == L2CDB_OK && row) {
            list[n++] = sqlite3_column_int64(s, 0);
        }
    }
    sqlite3_reset(s);
    if (rc != L2CDB_OK || n > most) {
        l2c_free(list);
        return rc;
    }
    qsort(list, n, sizeof *list, by_id);
    *ids = list;
    *count = n;
    return L2CDB_OK;
}

static l2cdb_status open_scan(cursor *c, l2c_view *view, const float *query, l2cdb_error *err) {
    l2c_sql_conn *conn = conn_of(c);
    l2c_index *index;
    l2cdb_status rc = l2c_view_index(conn->db, view, table_of(c)->target->kind, &index, err);
    if (rc != L2CDB_OK || index == NULL) {
        return rc; // no generation yet: no neighbours
    }
    int64_t *ids = NULL;
    l2c_index_filter filter = { 0 };
    double start = l2c_now();
    c->has_set = false;
    c->filtered = count_conditions(&c->p) > 0;
    if (c->filtered) {
        rc = collect_ids(c, &ids, &filter.count, err);
        filter.ids = ids;
        c->has_set = ids != NULL;
        c->set_rows = filter.count;
        c->filtered = ids == NULL;
    }
    conn->fetch_s += l2c_now() - start;
    start = l2c_now();
    if (rc == L2CDB_OK) {
        l2c_search_params params;
        l2c_db_search_params(conn->db, &params, false, 0, 0);
        rc = l2c_scan_open(&c->scan, index, query, ids != NULL ? &filter : NULL, &params, err);
    }
    conn->search_s += l2c_now() - start;
    l2c_free(ids);
    return rc;
}

/* The query as a unit vector of the view's width. */
static l2cdb_status query_vector(sqlite3_value *value, size_t width, float *out, l2cdb_error *err) {
    l2c_sql_vector v;
    l2cdb_status rc = l2c_sql_vector_of(value, &v, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (v.width != width) {
        l2c_fail(err, L2CDB_E_MISMATCH,
                 "the query has %zu values, the vectors of this database have %zu", v.width, width);
        rc = l2c_hint(err, "it must come from the same model");
    } else {
        memcpy(out, v.data, width * sizeof *out);
        if (l2c_vec_normalize(out, width) < 1e-12f) {
            rc =
                l2c_fail(err, L2CDB_E_INVALID, "the query is the zero vector; it has no direction");
        }
    }
    l2c_free(v.own);
    return rc;
}

static l2cdb_status start_near(cursor *c, l2c_view *view, sqlite3_value *value, l2cdb_error *err) {
    size_t width = view->generation.width;
    if (view->generation.id == 0) {
        c->phase = c->p.bare_first || c->p.bare_last ? PHASE_BARE_LAST : PHASE_END;
        return L2CDB_OK;
    }
    float *query = l2c_alloc_aligned(width, sizeof *query);
    if (query == NULL) {
        return l2c_fail_nomem(err, width * sizeof *query);
    }
    l2cdb_status rc = query_vector(value, width, query, err);
    if (rc == L2CDB_OK) {
        rc = open_scan(c, view, query, err);
    }
    l2c_free(query);
    c->phase = c->p.bare_first ? PHASE_BARE_FIRST : PHASE_STREAM;
    return rc;
}

static l2cdb_status start(cursor *c, sqlite3_value **args, l2cdb_error *err) {
    l2c_view *view;
    l2cdb_status rc = l2c_sql_view(conn_of(c), &view, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t space = view->generation.space[table_of(c)->target->kind];
    bool unsettled = conn_of(c)->guest != NULL;
    if (c->space != space || c->unsettled != unsettled) {
        drop_statements(c);
        c->space = space;
        c->unsettled = unsettled;
    }
    rc = keep_values(c, args, err);
    sqlite3_value *query = NULL;
    bool needs_vector = false;
    for (size_t i = 0; i < c->p.terms_count; i++) {
        switch (c->p.terms[i].role) {
        case 'm':
            needs_vector = true;
            query = args[i];
            break;
        case 'q':
            query = args[i];
            break;
        case 'k':
            if (sqlite3_value_type(args[i]) != SQLITE_NULL) {
                int64_t k = sqlite3_value_int64(args[i]);
                c->limit = k > 0 ? (uint64_t)k : 0;
                needs_vector = true;
            }
            break;
        case 'l': {
            int64_t hint = sqlite3_value_int64(args[i]);
            c->batch += hint > 0 && hint < BATCH_MAX ? (size_t)hint : 0;
            break;
        }
        case 'd':
            if (sqlite3_value_type(args[i]) != SQLITE_NULL) {
                c->bound = fmin(c->bound, sqlite3_value_double(args[i]));
            }
            break;
        default:
            break;
        }
    }
    c->batch = c->batch < 16 ? 16 : c->batch > BATCH_MAX ? BATCH_MAX : c->batch;
    c->noted = true;
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (query != NULL && sqlite3_value_type(query) != SQLITE_NULL) {
        return start_near(c, view, query, err);
    }
    // Near to NULL is near to nothing: all distances are NULL.
    c->phase = query != NULL && needs_vector ? PHASE_END : PHASE_ROWS;
    return c->phase == PHASE_ROWS ? statement(c, ROWS, &c->current, err) : L2CDB_OK;
}

/* ---- xNext -------------------------------------------------------------------------------------
 */

/* Fetches record `id`; *there false if it is gone or does not pass. */
static l2cdb_status fetch(cursor *c, int64_t id, bool filtered, bool *there, l2cdb_error *err) {
    double start = l2c_now();
    sqlite3_stmt *s = NULL;
    l2cdb_status rc = statement(c, filtered ? ROW_FILTERED : ROW, &s, err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(s, 1, id);
        rc = step(c, s, there, err);
        c->current = s;
    }
    conn_of(c)->fetch_s += l2c_now() - start;
    return rc;
}

static l2cdb_status next_batch(cursor *c, l2cdb_error *err) {
    l2c_sql_conn *conn = conn_of(c);
    double start = l2c_now();
    c->at = 0;
    c->got = 0;
    l2cdb_status rc = l2c_sql_poll(conn, err);
    if (rc == L2CDB_OK && c->scan != NULL) {
        rc = l2c_scan_next(c->scan, c->ids, c->distances, c->batch, &c->got, err);
    }
    conn->search_s += l2c_now() - start;
    c->batch = c->batch * 2 > BATCH_MAX ? BATCH_MAX : c->batch * 2;
    return rc;
}

static l2cdb_status hold_back(cursor *c, neighbour n, l2cdb_error *err) {
    if (c->late_count == c->late_capacity) {
        size_t more = c->late_capacity == 0 ? 16 : c->late_capacity * 2;
        neighbour *late = l2c_realloc(c->late, more, sizeof *late);
        if (late == NULL) {
            return l2c_fail_nomem(err, more * sizeof *late);
        }
        c->late = late;
        c->late_capacity = more;
    }
    c->late[c->late_count++] = n;
    return L2CDB_OK;
}

/* One more neighbour that passes, or the end of the stream (*there false). */
static l2cdb_status next_neighbour(cursor *c, bool *there, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *there = false;
    c->has_distance = true;
    while (rc == L2CDB_OK && !*there) {
        if (c->at == c->got) {
            rc = next_batch(c, err);
            if (rc != L2CDB_OK || c->got == 0) {
                break;
            }
        }
        neighbour n = { c->ids[c->at], c->distances[c->at] };
        if ((double)n.distance > c->bound) {
            break;
        }
        c->at++;
        if (n.distance < c->reached) {
            rc = hold_back(c, n, err);
            continue;
        }
        c->reached = c->distance = n.distance;
        rc = fetch(c, n.id, c->filtered || c->unsettled, there, err);
    }
    return rc;
}

static int by_distance(const void *a, const void *b) {
    const neighbour *x = a, *y = b;
    if (x->distance != y->distance) {
        return x->distance < y->distance ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

static l2cdb_status next_late(cursor *c, bool *there, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *there = false;
    if (c->late_at == 0 && c->late_count > 0) {
        qsort(c->late, c->late_count, sizeof *c->late, by_distance);
    }
    while (rc == L2CDB_OK && !*there && c->late_at < c->late_count) {
        neighbour n = c->late[c->late_at++];
        c->distance = n.distance;
        rc = fetch(c, n.id, c->filtered || c->unsettled, there, err);
    }
    return rc;
}

/* One more record without a vector. */
static l2cdb_status next_bare(cursor *c, bool *there, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *there = false;
    c->has_distance = false;
    sqlite3_stmt *s = c->statements[BARE];
    if (s == NULL || !sqlite3_stmt_busy(s)) {
        rc = statement(c, BARE, &s, err);
    }
    bool row = true;
    while (rc == L2CDB_OK && row && !*there) {
        rc = step(c, s, &row, err);
        if (rc == L2CDB_OK && row) {
            rc = fetch(c, sqlite3_column_int64(s, 0), false, there, err);
        }
    }
    return rc;
}

static l2cdb_status advance(cursor *c, l2cdb_error *err) {
    bool there = false;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && !there && c->phase != PHASE_END) {
        if (c->emitted >= c->limit) {
            c->phase = PHASE_END;
            break;
        }
        switch (c->phase) {
        case PHASE_ROWS:
            rc = step(c, c->current, &there, err);
            c->phase = there ? PHASE_ROWS : PHASE_END;
            break;
        case PHASE_BARE_FIRST:
            rc = next_bare(c, &there, err);
            c->phase = there ? PHASE_BARE_FIRST : PHASE_STREAM;
            break;
        case PHASE_STREAM:
            rc = next_neighbour(c, &there, err);
            c->phase = there ? PHASE_STREAM : PHASE_LATE;
            break;
        case PHASE_LATE:
            rc = next_late(c, &there, err);
            c->phase = there ? PHASE_LATE : c->p.bare_last ? PHASE_BARE_LAST : PHASE_END;
            break;
        default:
            rc = next_bare(c, &there, err);
            c->phase = there ? PHASE_BARE_LAST : PHASE_END;
        }
    }
    c->emitted += there ? 1 : 0;
    return rc;
}

static int next_row(sqlite3_vtab_cursor *base) {
    cursor *c = (cursor *)base;
    l2cdb_error e;
    l2cdb_status rc = advance(c, &e);
    return rc == L2CDB_OK ? SQLITE_OK : fail(c, &e);
}

static int filter(sqlite3_vtab_cursor *base, int number, const char *text, int argc,
                  sqlite3_value **args) {
    (void)number;
    (void)argc;
    cursor *c = (cursor *)base;
    l2cdb_error e;
    end_pass(c);
    if (c->plan_text == NULL || strcmp(c->plan_text, text) != 0) {
        drop_statements(c);
        l2c_free(c->plan_text);
        c->plan_text = l2c_strdup(text);
        if (c->plan_text == NULL) {
            return SQLITE_NOMEM;
        }
    }
    plan_read(&c->p, text);
    c->limit = UINT64_MAX;
    c->bound = INFINITY;
    c->emitted = 0;
    c->batch = 0;
    c->reached = -1; // below every distance
    c->at = c->got = 0;
    c->has_distance = c->has_set = c->filtered = false;
    l2cdb_status rc = start(c, args, &e);
    if (rc == L2CDB_OK) {
        rc = advance(c, &e);
    }
    return rc == L2CDB_OK ? SQLITE_OK : fail(c, &e);
}

static int at_end(sqlite3_vtab_cursor *base) {
    return ((cursor *)base)->phase == PHASE_END;
}

/* The hidden columns hold what was asked: SQLite may check such a condition once more. */
static void result_argument(const cursor *c, sqlite3_context *context, char role) {
    for (size_t i = 0; i < c->p.terms_count; i++) {
        if (c->p.terms[i].role == role && c->values[i] != NULL) {
            sqlite3_result_value(context, c->values[i]);
        }
    }
}

static int column_value(sqlite3_vtab_cursor *base, sqlite3_context *context, int i) {
    cursor *c = (cursor *)base;
    const target *g = table_of(c)->target;
    if (sqlite3_vtab_nochange(context)) {
        return SQLITE_OK; // an UPDATE that leaves this column alone
    }
    if (i < g->count) {
        sqlite3_result_value(context, sqlite3_column_value(c->current, i));
        return SQLITE_OK;
    }
    double d = l2c_sql_decimals((double)c->distance);
    switch (i - g->count) {
    case EMBEDDING: {
        sqlite3_value *v = sqlite3_column_value(c->current, g->count);
        sqlite3_result_value(context, v);
        if (sqlite3_value_type(v) == SQLITE_BLOB) {
            sqlite3_result_subtype(context, L2C_SQL_VECTOR_SUBTYPE);
        }
        break;
    }
    case SCORE:
        if (c->has_distance) {
            sqlite3_result_double(context, l2c_sql_decimals(1.0 - (double)c->distance));
        }
        break;
    case DISTANCE:
        if (c->has_distance) {
            sqlite3_result_double(context, d);
        }
        break;
    case RANK:
        if (c->p.near && c->phase != PHASE_ROWS) {
            sqlite3_result_double(context, c->has_distance ? d : INFINITY);
        }
        break;
    case QUERY:
        result_argument(c, context, 'q');
        break;
    default:
        result_argument(c, context, 'k');
    }
    return SQLITE_OK;
}

static int row_id(sqlite3_vtab_cursor *base, sqlite3_int64 *out) {
    *out = sqlite3_column_int64(((cursor *)base)->current, 0);
    return SQLITE_OK;
}

/* ---- Writing -----------------------------------------------------------------------------------
 */

static l2cdb_status begin_write(l2c_sql_conn *c, l2cdb_error *err) {
    if (c->guest != NULL) {
        return L2CDB_OK;
    }
    l2cdb_status rc = l2c_db_writable(c->db, err);
    c->wrote_captions = false;
    return rc == L2CDB_OK ? l2c_store_guest_open(&c->guest, c->db->store, c->sqlite, err) : rc;
}

static const char *text_of(sqlite3_value *v) {
    return sqlite3_value_type(v) == SQLITE_NULL ? NULL : (const char *)sqlite3_value_text(v);
}

static l2cdb_status check_caption(const char *text, l2cdb_error *err) {
    if (text == NULL || text[strspn(text, " \t\r\n")] == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "a caption needs a text");
    }
    size_t bad;
    if (!l2c_utf8_valid(text, strlen(text), &bad)) {
        return l2c_fail(err, L2CDB_E_INVALID, "a caption's text is UTF-8; byte %zu is not", bad);
    }
    return L2CDB_OK;
}

/* Column `name` of the new row, or NULL if the statement leaves it alone. */
static sqlite3_value *new_value(const target *g, sqlite3_value **args, const char *name) {
    for (int i = 0; i < g->count; i++) {
        if (strcmp(g->columns[i].name, name) == 0) {
            return sqlite3_value_nochange(args[2 + i]) ? NULL : args[2 + i];
        }
    }
    return NULL;
}

static const char *column_name(const target *g, int i) {
    return i < g->count ? g->columns[i].name : vector_columns[i - g->count];
}

static bool in_list(const char *name, const char *const *list) {
    while (*list != NULL && strcmp(*list, name) != 0) {
        list++;
    }
    return *list != NULL;
}

static l2cdb_status not_by_hand(const target *g, const char *name, l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "column %s of %s is not written by hand", name,
                    g->name);
}

/* UPDATE … FROM gives every column a value: those that are not in `allowed` must keep theirs. */
static l2cdb_status check_kept(const table *t, sqlite3_value **args, const char *const *allowed,
                               l2cdb_error *err) {
    const target *g = t->target;
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "SELECT ");
    for (int i = 0; i < g->count; i++) {
        l2c_buf_printf(&b, "%s%s IS ?%d", i == 0 ? "" : ",", g->columns[i].expression, i + 2);
    }
    l2c_buf_printf(&b, " FROM main.%s t WHERE t.id = ?1", g->record);
    sqlite3_stmt *s = NULL;
    l2cdb_status rc =
        b.failed ? l2c_fail_nomem(err, b.size) : l2c_sql_prepare_own(t->conn, &s, b.data, err);
    l2c_buf_fini(&b);
    if (rc == L2CDB_OK) {
        sqlite3_bind_value(s, 1, args[0]);
        for (int i = 0; i < g->count; i++) {
            sqlite3_bind_value(s, i + 2, args[2 + i]);
        }
        bool there = sqlite3_step(s) == SQLITE_ROW;
        for (int i = 0; i < g->count && there && rc == L2CDB_OK; i++) {
            bool kept = sqlite3_column_int(s, i) != 0;
            rc = kept || in_list(g->columns[i].name, allowed)
                     ? L2CDB_OK
                     : not_by_hand(g, g->columns[i].name, err);
        }
    }
    sqlite3_finalize(s);
    return rc;
}

/* E_UNSUPPORTED if the statement sets a column that is not in `allowed`. */
static l2cdb_status check_columns(const table *t, sqlite3_value **args, bool insert,
                                  const char *const *allowed, l2cdb_error *err) {
    const target *g = t->target;
    int set = 0, forbidden = -1;
    for (int i = 0; i < g->count + 3; i++) {
        sqlite3_value *v = args[2 + i];
        if (insert ? sqlite3_value_type(v) != SQLITE_NULL : !sqlite3_value_nochange(v)) {
            set++;
            forbidden = in_list(column_name(g, i), allowed) ? forbidden : i;
        }
    }
    if (forbidden < 0) {
        return L2CDB_OK;
    }
    if (!insert && set == g->count + 3) {
        return check_kept(t, args, allowed, err);
    }
    return not_by_hand(g, column_name(g, forbidden), err);
}

static l2cdb_status insert_row(table *t, sqlite3_value **args, sqlite3_int64 *id,
                               l2cdb_error *err) {
    const target *g = t->target;
    if (g->kind == L2C_KIND_IMAGE) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "photos are not inserted by SQL");
        return l2c_hint(err, "ingest their files");
    }
    static const char *const allowed[] = { "image_id", "text", "language", "source", NULL };
    l2cdb_status rc = check_columns(t, args, true, allowed, err);
    l2c_caption_record r = {
        .image_id = sqlite3_value_int64(new_value(g, args, "image_id")),
        .text = text_of(new_value(g, args, "text")),
        .language = text_of(new_value(g, args, "language")),
        .source = text_of(new_value(g, args, "source")),
    };
    if (rc == L2CDB_OK) {
        rc = check_caption(r.text, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (r.source == NULL) {
        r.source = "sql";
    }
    bool existed = false;
    rc = l2c_captions_put(t->conn->db->store, &r, &existed, err);
    int conflict = sqlite3_vtab_on_conflict(t->conn->sqlite);
    if (rc == L2CDB_OK && existed && conflict == SQLITE_REPLACE) {
        rc = l2c_captions_update(t->conn->db->store, r.id, r.text, r.language, err);
    } else if (rc == L2CDB_OK && existed && conflict != SQLITE_IGNORE) {
        return l2c_fail(err, L2CDB_E_EXISTS, "photo %" PRId64 " has this caption already",
                        r.image_id);
    }
    t->conn->wrote_captions = t->conn->wrote_captions || (rc == L2CDB_OK && !existed);
    *id = r.id;
    return rc;
}

static l2cdb_status rename_image(l2c_store *store, int64_t id, const char *from, const char *to,
                                 l2cdb_error *err) {
    if (to == NULL ? from == NULL : from != NULL && strcmp(from, to) == 0) {
        return L2CDB_OK;
    }
    if (to == NULL || *to == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "a path is not empty");
    }
    l2c_path_state now = { 0 }, then = { 0 };
    l2cdb_status rc = l2c_images_find_path(store, to, &then, err);
    if (rc == L2CDB_OK && then.image_id != 0) {
        return then.image_id == id
                   ? L2CDB_OK
                   : l2c_fail(err, L2CDB_E_EXISTS, "photo %" PRId64 " has the path %s already",
                              then.image_id, to);
    }
    if (rc == L2CDB_OK && from != NULL) {
        rc = l2c_images_find_path(store, from, &now, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_images_add_path(store, id, to, now.size_bytes, now.mtime_ns, err);
    }
    if (rc == L2CDB_OK && from != NULL) {
        rc = l2c_images_remove_path(store, from, NULL, err);
    }
    return rc;
}

static l2cdb_status update_image(table *t, int64_t id, sqlite3_value **args, l2cdb_error *err) {
    static const char *const allowed[] = { "path", "tags", "meta", NULL };
    const target *g = t->target;
    l2c_store *store = t->conn->db->store;
    l2c_image_record r;
    l2c_arena arena;
    l2c_arena_init(&arena, 8192);
    l2cdb_status rc = check_columns(t, args, false, allowed, err);
    if (rc == L2CDB_OK) {
        rc = l2c_images_get(store, id, &r, &arena, err);
    }
    sqlite3_value *path = new_value(g, args, "path"), *tags = new_value(g, args, "tags");
    sqlite3_value *meta = new_value(g, args, "meta");
    if (rc == L2CDB_OK && meta != NULL && text_of(meta) != NULL) {
        json_t *json;
        rc = l2c_json_parse(&json, text_of(meta), strlen(text_of(meta)), "meta", err);
        if (rc == L2CDB_OK) {
            json_decref(json);
        }
    }
    if (rc == L2CDB_OK && path != NULL) { // first: it is what can fail
        rc = rename_image(store, id, r.path, text_of(path), err);
    }
    if (rc == L2CDB_OK && (tags != NULL || meta != NULL)) {
        rc = l2c_images_set_user(store, id, tags != NULL ? text_of(tags) : r.tags,
                                 meta != NULL ? text_of(meta) : r.meta, err);
    }
    l2c_arena_fini(&arena);
    return rc;
}

static l2cdb_status update_caption(table *t, int64_t id, sqlite3_value **args, l2cdb_error *err) {
    static const char *const allowed[] = { "text", "language", NULL };
    const target *g = t->target;
    l2c_store *store = t->conn->db->store;
    l2c_caption_record r;
    l2c_arena arena;
    l2c_arena_init(&arena, 8192);
    l2cdb_status rc = check_columns(t, args, false, allowed, err);
    if (rc == L2CDB_OK) {
        rc = l2c_captions_get(store, id, &r, &arena, err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_value *text = new_value(g, args, "text");
        sqlite3_value *language = new_value(g, args, "language");
        const char *new_text = text != NULL ? text_of(text) : r.text;
        rc = check_caption(new_text, err);
        if (rc == L2CDB_OK) {
            rc = l2c_captions_update(store, id, new_text,
                                     language != NULL ? text_of(language) : r.language, err);
            t->conn->wrote_captions = t->conn->wrote_captions || strcmp(new_text, r.text) != 0;
        }
    }
    l2c_arena_fini(&arena);
    return rc;
}

static l2cdb_status delete_row(table *t, int64_t id, l2cdb_error *err) {
    l2c_store *store = t->conn->db->store;
    return t->target->kind == L2C_KIND_IMAGE ? l2c_images_delete(store, &id, 1, err)
                                             : l2c_captions_delete(store, &id, 1, err);
}

static l2cdb_status write_row(table *t, int argc, sqlite3_value **args, sqlite3_int64 *id,
                              l2cdb_error *err) {
    if (argc == 1) {
        return delete_row(t, sqlite3_value_int64(args[0]), err);
    }
    if (sqlite3_value_type(args[0]) == SQLITE_NULL) {
        return insert_row(t, args, id, err);
    }
    int64_t row = sqlite3_value_int64(args[0]);
    if (sqlite3_value_int64(args[1]) != row) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "the id of a row does not change");
    }
    return t->target->kind == L2C_KIND_IMAGE ? update_image(t, row, args, err)
                                             : update_caption(t, row, args, err);
}

static int update(sqlite3_vtab *base, int argc, sqlite3_value **args, sqlite3_int64 *id) {
    l2c_sql_conn *c = ((table *)base)->conn;
    l2cdb_error e;
    c->internal++;
    l2cdb_status rc = c->db != NULL ? begin_write(c, &e)
                                    : l2c_fail(&e, L2CDB_E_UNSUPPORTED, "no database of l2cdb");
    if (rc == L2CDB_OK) {
        l2c_store_guest_enter(c->guest);
        rc = write_row((table *)base, argc, args, id, &e);
        l2c_store_guest_leave(c->guest);
    }
    c->internal--;
    return rc == L2CDB_OK ? SQLITE_OK : l2c_sql_table_fail(base, c, &e);
}

static int begin(sqlite3_vtab *base) {
    (void)base; // the first row that is written begins
    return SQLITE_OK;
}

static int sync_store(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((table *)base)->conn;
    l2cdb_error e;
    if (c->guest == NULL) {
        return SQLITE_OK;
    }
    c->internal++;
    l2c_store_guest_enter(c->guest);
    l2cdb_status rc = l2c_store_guest_finish(c->guest, &e);
    l2c_store_guest_leave(c->guest);
    c->internal--;
    return rc == L2CDB_OK ? SQLITE_OK : l2c_sql_table_fail(base, c, &e);
}

/* Captions get their vectors afterwards: a model that is missing must not undo them. */
static int commit(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((table *)base)->conn;
    l2cdb_error e;
    if (c->guest == NULL) {
        return SQLITE_OK;
    }
    l2c_store_guest_close(c->guest);
    c->guest = NULL;
    if (c->wrote_captions && l2c_captions_encode(c->db, NULL, NULL, &e) != L2CDB_OK) {
        l2c_log(L2CDB_LOG_WARN, "captions stored without vectors: %s", e.message);
    }
    l2c_view_catch_up(c->db);
    return SQLITE_OK;
}

static int roll_back(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((table *)base)->conn;
    l2c_store_guest_close(c->guest);
    c->guest = NULL;
    return SQLITE_OK;
}

/* Where SQLite checks a MATCH that a pass has already answered. Plans that do not answer it are
 * refused by best_index. */
static void matched(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)n;
    (void)args;
    sqlite3_result_int(context, 1);
}

static int find_function(sqlite3_vtab *base, int n, const char *name,
                         void (**function)(sqlite3_context *, int, sqlite3_value **), void **data) {
    (void)base;
    (void)data;
    if (n != 2 || strcmp(name, "match") != 0) {
        return 0;
    }
    *function = matched;
    return 1;
}

/* ---- Registration ------------------------------------------------------------------------------
 */

/* Without xCreate the tables are there on every connection and nothing else can be made of them. */
static const sqlite3_module module = {
    .iVersion = 1,
    .xConnect = connect_table,
    .xBestIndex = best_index,
    .xDisconnect = disconnect_table,
    .xOpen = open_cursor,
    .xClose = close_cursor,
    .xFilter = filter,
    .xNext = next_row,
    .xEof = at_end,
    .xColumn = column_value,
    .xRowid = row_id,
    .xUpdate = update,
    .xBegin = begin,
    .xSync = sync_store,
    .xCommit = commit,
    .xRollback = roll_back,
    .xFindFunction = find_function,
};

l2cdb_status l2c_sql_images_register(l2c_sql_conn *c, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < sizeof targets / sizeof targets[0] && rc == L2CDB_OK; i++) {
        rc = l2c_sql_module_register(c, targets[i].name, &module, &targets[i], err);
    }
    return rc;
}
