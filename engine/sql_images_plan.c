/* xBestIndex: which conditions, order and query a pass of images or captions takes over, and what
 * it will cost. */
#include "engine/sql_images.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The plan as text ---------------------------------------------------------------------------
 */

/* The plan as idxStr: "used estimated flags;order;terms" with every number in decimal. */
char *l2c_sql_plan_write(const l2c_sql_plan *p) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_printf(&b, "%" PRIu64 " %" PRId64 " %d%d%d;", p->used, p->estimated, p->near,
                   p->bare_first, p->bare_last);
    for (size_t i = 0; i < p->order_count; i++) {
        l2c_buf_printf(&b, "%d%c", p->order[i].column, p->order[i].descending ? '-' : '+');
    }
    l2c_buf_putc(&b, ';');
    for (size_t i = 0; i < p->terms_count; i++) {
        const l2c_sql_plan_term *t = &p->terms[i];
        l2c_buf_printf(&b, "%c%c%c%d ", t->role, t->op, t->collation, t->column);
    }
    char *out = b.failed ? NULL : sqlite3_mprintf("%s", b.data);
    l2c_buf_fini(&b);
    return out;
}

void l2c_sql_plan_read(l2c_sql_plan *p, const char *s) {
    *p = (l2c_sql_plan){ 0 };
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
        l2c_sql_plan_term *t = &p->terms[p->terms_count++];
        t->role = s[0];
        t->op = s[1];
        t->collation = s[2];
        t->column = (int)strtol(s + 3, &end, 10);
        s = end + 1;
    }
}

size_t l2c_sql_plan_conditions(const l2c_sql_plan *p) {
    size_t n = 0;
    for (size_t i = 0; i < p->terms_count; i++) {
        n += p->terms[i].role == 'f' ? 1 : 0;
    }
    return n;
}

/* ---- Choosing -----------------------------------------------------------------------------------
 */

/* Highest id: an upper bound of the rows that costs one look at the end of a b-tree. */
static void estimate_rows(l2c_sql_images *t) {
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

static double share_of(const l2c_sql_column *c, char op, bool in) {
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
    l2c_sql_images *t;
    sqlite3_index_info *info;
    l2c_sql_plan p;
    int argument;
    double share; /* of the rows that pass the conditions */
    bool one_row, query_blocked, vectors_only;
} chooser;

static bool take(chooser *c, int i, l2c_sql_plan_term term, bool omit) {
    if (c->p.terms_count == L2C_SQL_TERMS_MAX) {
        return false; // SQLite checks the rest by itself
    }
    c->p.terms[c->p.terms_count++] = term;
    c->info->aConstraintUsage[i].argvIndex = ++c->argument;
    c->info->aConstraintUsage[i].omit = omit;
    return true;
}

static void take_condition(chooser *c, int i) {
    const struct sqlite3_index_constraint *k = &c->info->aConstraint[i];
    const l2c_sql_target *g = c->t->target;
    int col = k->iColumn < 0 ? 0 : k->iColumn;
    char op = op_of(k->op);
    bool vector = col == g->count + L2C_SQL_EMBEDDING;
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
    if (!take(c, i, (l2c_sql_plan_term){ 'f', in ? 'I' : op, collation, col }, false)) {
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
        bool query =
            (k->iColumn == special + L2C_SQL_QUERY && k->op == SQLITE_INDEX_CONSTRAINT_EQ) ||
            (k->iColumn == special + L2C_SQL_EMBEDDING && k->op == SQLITE_INDEX_CONSTRAINT_MATCH);
        if (query && !k->usable) {
            c->query_blocked = true;
        } else if (query && !c->p.near) {
            c->p.near = true;
            bool match = k->op == SQLITE_INDEX_CONSTRAINT_MATCH;
            c->vectors_only = c->vectors_only || match;
            (void)take(c, i, (l2c_sql_plan_term){ match ? 'm' : 'q', '=', 'B', 0 }, true);
        }
    }
    for (int i = 0; i < info->nConstraint; i++) {
        const struct sqlite3_index_constraint *k = &info->aConstraint[i];
        if (info->aConstraintUsage[i].argvIndex > 0) {
            continue;
        }
        bool is_k = k->iColumn == special + L2C_SQL_K && k->op == SQLITE_INDEX_CONSTRAINT_EQ;
        if (k->op == SQLITE_INDEX_CONSTRAINT_LIMIT || k->op == SQLITE_INDEX_CONSTRAINT_OFFSET) {
            if (k->usable && c->p.near) {
                (void)take(c, i, (l2c_sql_plan_term){ 'l', '=', 'B', 0 }, false); // only a hint
            }
        } else if (c->p.near && is_k) {
            c->query_blocked = c->query_blocked || !k->usable;
            explicit_k = true;
            if (k->usable) {
                (void)take(c, i, (l2c_sql_plan_term){ 'k', '=', 'B', 0 }, true);
            }
        } else if (c->p.near && k->usable && k->iColumn == special + L2C_SQL_DISTANCE &&
                   (k->op == SQLITE_INDEX_CONSTRAINT_LT || k->op == SQLITE_INDEX_CONSTRAINT_LE)) {
            c->vectors_only = true;
            c->share *= 0.2;
            (void)take(c, i, (l2c_sql_plan_term){ 'd', '<', 'B', 0 }, false);
        } else if (k->usable) {
            take_condition(c, i);
        }
    }
    c->vectors_only = c->vectors_only || explicit_k;
}

/* True if the pass can deliver the order SQLite wants. */
static bool take_order(chooser *c) {
    const sqlite3_index_info *info = c->info;
    const l2c_sql_target *g = c->t->target;
    if (info->nOrderBy == 0) {
        return false;
    }
    if (c->p.near) {
        const struct sqlite3_index_orderby *o = &info->aOrderBy[0];
        bool by_rank = o->iColumn == g->count + L2C_SQL_RANK && !o->desc;
        bool by_distance = o->iColumn == g->count + L2C_SQL_DISTANCE && !o->desc;
        bool by_score =
            o->iColumn == g->count + L2C_SQL_SCORE && o->desc; // NULLs last, as SQLite has it
        bool then_id = info->nOrderBy == 2 && info->aOrderBy[1].iColumn <= 0 &&
                       !info->aOrderBy[1].desc; // the index breaks ties by the lower id
        if ((!by_rank && !by_distance && !by_score) || (info->nOrderBy > 1 && !then_id)) {
            return false;
        }
        c->p.bare_first = by_distance;
        return true;
    }
    if (info->nOrderBy > L2C_SQL_ORDER_MAX) {
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

int l2c_sql_images_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
    chooser c = { .t = (l2c_sql_images *)base, .info = info, .share = 1 };
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
    info->idxStr = l2c_sql_plan_write(&c.p);
    info->needToFreeIdxStr = 1;
    return info->idxStr != NULL ? SQLITE_OK : SQLITE_NOMEM;
}
