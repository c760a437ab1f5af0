/* The cursors of images and captions: a pass is begun by xFilter, streams rows by xNext, and tells
 * EXPLAIN at its end what it did. */
#include "engine/sql_images.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/utf8.h"
#include "engine/base/vec.h"

int l2c_sql_images_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
    l2c_sql_images *t = (l2c_sql_images *)base;
    l2c_sql_cursor *c = t->spare != NULL ? t->spare : l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    t->spare = NULL;
    t->conn->cursors++;
    *out = &c->base;
    return SQLITE_OK;
}

/* The columns that conditions are on, each once: SQLite makes three of one LIKE. */
static void describe_conditions(const l2c_sql_cursor *c, l2c_buf *b) {
    const l2c_sql_target *g = l2c_sql_cursor_table(c)->target;
    uint64_t named = 0;
    for (size_t i = 0; i < c->p.terms_count; i++) {
        const l2c_sql_plan_term *t = &c->p.terms[i];
        if (t->role != 'f' || (named >> t->column & 1) != 0) {
            continue;
        }
        l2c_buf_printf(b, "%s%s", named == 0 ? "" : ", ",
                       t->column < g->count ? g->columns[t->column].name : "embedding");
        named |= UINT64_C(1) << t->column;
    }
}

/* Tells EXPLAIN what the pass that ends now did. */
static void note_pass(l2c_sql_cursor *c) {
    if (!c->noted) {
        return;
    }
    c->noted = false;
    l2c_buf b;
    l2c_buf_init(&b);
    size_t conditions = l2c_sql_plan_conditions(&c->p);
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
        if ((c->p.used >> (l2c_sql_cursor_table(c)->target->count + L2C_SQL_EMBEDDING)) & 1) {
            l2c_buf_puts(&b, ", with their vectors");
        }
    }
    if (!b.failed) {
        l2c_sql_note *n = l2c_sql_note_add(
            l2c_sql_cursor_conn(c), l2c_sql_cursor_table(c)->target->name, b.data, c->p.estimated);
        if (n != NULL) {
            n->actual += (int64_t)c->emitted;
        }
    }
    l2c_buf_fini(&b);
}

static void end_pass(l2c_sql_cursor *c) {
    note_pass(c);
    l2c_scan_close(c->scan);
    c->scan = NULL;
    l2c_free(c->late);
    c->late = NULL;
    c->late_count = c->late_capacity = c->late_at = 0;
    for (size_t i = 0; i < L2C_SQL_PASS_STATEMENTS; i++) {
        sqlite3_reset(c->statements[i]);
    }
    for (size_t i = 0; i < L2C_SQL_TERMS_MAX; i++) {
        sqlite3_value_free(c->values[i]);
        c->values[i] = NULL;
        l2c_free(c->lists[i]);
        c->lists[i] = NULL;
    }
    c->current = NULL;
    c->phase = L2C_SQL_PHASE_END;
}

void l2c_sql_cursor_free(l2c_sql_cursor *c) {
    if (c != NULL) {
        l2c_sql_pass_drop(c);
        l2c_free(c->plan_text);
        l2c_free(c);
    }
}

int l2c_sql_images_close(sqlite3_vtab_cursor *base) {
    l2c_sql_cursor *c = (l2c_sql_cursor *)base;
    l2c_sql_images *t = l2c_sql_cursor_table(c);
    end_pass(c);
    t->conn->cursors--;
    l2c_sql_cursor_free(t->spare);
    t->spare = c;
    return SQLITE_OK;
}

static int fail(l2c_sql_cursor *c, const l2cdb_error *e) {
    return l2c_sql_table_fail(c->base.pVtab, l2c_sql_cursor_conn(c), e);
}

/* ---- xFilter ------------------------------------------------------------------------------------
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
static l2cdb_status keep_values(l2c_sql_cursor *c, sqlite3_value **args, l2cdb_error *err) {
    for (size_t i = 0; i < c->p.terms_count; i++) {
        l2c_sql_plan_term *t = &c->p.terms[i];
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
                l2c_sql_pass_drop(c);
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
static l2cdb_status collect_ids(l2c_sql_cursor *c, int64_t **ids, size_t *count, l2cdb_error *err) {
    *ids = NULL;
    *count = 0;
    l2c_sql_images *t = l2c_sql_cursor_table(c);
    size_t most = (size_t)(t->rows / 16 > 4096 ? t->rows / 16 : 4096);
    sqlite3_stmt *s;
    l2cdb_status rc = l2c_sql_pass_statement(c, L2C_SQL_PASS_IDS, &s, err);
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
        rc = l2c_sql_pass_step(c, s, &row, err);
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

static l2cdb_status open_scan(l2c_sql_cursor *c, l2c_view *view, const float *query,
                              l2cdb_error *err) {
    l2c_sql_conn *conn = l2c_sql_cursor_conn(c);
    l2c_index *index;
    l2cdb_status rc =
        l2c_view_index(conn->db, view, l2c_sql_cursor_table(c)->target->kind, &index, err);
    if (rc != L2CDB_OK || index == NULL) {
        return rc; // no generation yet: no neighbours
    }
    int64_t *ids = NULL;
    l2c_index_filter filter = { 0 };
    double start = l2c_now();
    c->has_set = false;
    c->filtered = l2c_sql_plan_conditions(&c->p) > 0;
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

static l2cdb_status start_near(l2c_sql_cursor *c, l2c_view *view, sqlite3_value *value,
                               l2cdb_error *err) {
    size_t width = view->generation.width;
    if (view->generation.id == 0) {
        c->phase = c->p.bare_first || c->p.bare_last ? L2C_SQL_PHASE_BARE_LAST : L2C_SQL_PHASE_END;
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
    c->phase = c->p.bare_first ? L2C_SQL_PHASE_BARE_FIRST : L2C_SQL_PHASE_STREAM;
    return rc;
}

static l2cdb_status start(l2c_sql_cursor *c, sqlite3_value **args, l2cdb_error *err) {
    l2c_view *view;
    l2cdb_status rc = l2c_sql_view(l2c_sql_cursor_conn(c), &view, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t space = view->generation.space[l2c_sql_cursor_table(c)->target->kind];
    bool unsettled = l2c_sql_cursor_conn(c)->guest != NULL;
    if (c->space != space || c->unsettled != unsettled) {
        l2c_sql_pass_drop(c);
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
            c->batch += hint > 0 && hint < L2C_SQL_BATCH_MAX ? (size_t)hint : 0;
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
    c->batch = c->batch < 16 ? 16 : c->batch > L2C_SQL_BATCH_MAX ? L2C_SQL_BATCH_MAX : c->batch;
    c->noted = true;
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (query != NULL && sqlite3_value_type(query) != SQLITE_NULL) {
        return start_near(c, view, query, err);
    }
    // Near to NULL is near to nothing: all distances are NULL.
    c->phase = query != NULL && needs_vector ? L2C_SQL_PHASE_END : L2C_SQL_PHASE_ROWS;
    return c->phase == L2C_SQL_PHASE_ROWS
               ? l2c_sql_pass_statement(c, L2C_SQL_PASS_ROWS, &c->current, err)
               : L2CDB_OK;
}

/* ---- xNext --------------------------------------------------------------------------------------
 */

/* Fetches record `id`; *there false if it is gone or does not pass. */
static l2cdb_status fetch(l2c_sql_cursor *c, int64_t id, bool filtered, bool *there,
                          l2cdb_error *err) {
    double start = l2c_now();
    sqlite3_stmt *s = NULL;
    l2cdb_status rc =
        l2c_sql_pass_statement(c, filtered ? L2C_SQL_PASS_ROW_FILTERED : L2C_SQL_PASS_ROW, &s, err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(s, 1, id);
        rc = l2c_sql_pass_step(c, s, there, err);
        c->current = s;
    }
    l2c_sql_cursor_conn(c)->fetch_s += l2c_now() - start;
    return rc;
}

static l2cdb_status next_batch(l2c_sql_cursor *c, l2cdb_error *err) {
    l2c_sql_conn *conn = l2c_sql_cursor_conn(c);
    double start = l2c_now();
    c->at = 0;
    c->got = 0;
    l2cdb_status rc = l2c_sql_poll(conn, err);
    if (rc == L2CDB_OK && c->scan != NULL) {
        rc = l2c_scan_next(c->scan, c->ids, c->distances, c->batch, &c->got, err);
    }
    conn->search_s += l2c_now() - start;
    c->batch = c->batch * 2 > L2C_SQL_BATCH_MAX ? L2C_SQL_BATCH_MAX : c->batch * 2;
    return rc;
}

static l2cdb_status hold_back(l2c_sql_cursor *c, l2c_sql_neighbour n, l2cdb_error *err) {
    if (c->late_count == c->late_capacity) {
        size_t more = c->late_capacity == 0 ? 16 : c->late_capacity * 2;
        l2c_sql_neighbour *late = l2c_realloc(c->late, more, sizeof *late);
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
static l2cdb_status next_neighbour(l2c_sql_cursor *c, bool *there, l2cdb_error *err) {
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
        l2c_sql_neighbour n = { c->ids[c->at], c->distances[c->at] };
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
    const l2c_sql_neighbour *x = a, *y = b;
    if (x->distance != y->distance) {
        return x->distance < y->distance ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

static l2cdb_status next_late(l2c_sql_cursor *c, bool *there, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *there = false;
    if (c->late_at == 0 && c->late_count > 0) {
        qsort(c->late, c->late_count, sizeof *c->late, by_distance);
    }
    while (rc == L2CDB_OK && !*there && c->late_at < c->late_count) {
        l2c_sql_neighbour n = c->late[c->late_at++];
        c->distance = n.distance;
        rc = fetch(c, n.id, c->filtered || c->unsettled, there, err);
    }
    return rc;
}

/* One more record without a vector. */
static l2cdb_status next_bare(l2c_sql_cursor *c, bool *there, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *there = false;
    c->has_distance = false;
    sqlite3_stmt *s = c->statements[L2C_SQL_PASS_BARE];
    if (s == NULL || !sqlite3_stmt_busy(s)) {
        rc = l2c_sql_pass_statement(c, L2C_SQL_PASS_BARE, &s, err);
    }
    bool row = true;
    while (rc == L2CDB_OK && row && !*there) {
        rc = l2c_sql_pass_step(c, s, &row, err);
        if (rc == L2CDB_OK && row) {
            rc = fetch(c, sqlite3_column_int64(s, 0), false, there, err);
        }
    }
    return rc;
}

static l2cdb_status advance(l2c_sql_cursor *c, l2cdb_error *err) {
    bool there = false;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && !there && c->phase != L2C_SQL_PHASE_END) {
        if (c->emitted >= c->limit) {
            c->phase = L2C_SQL_PHASE_END;
            break;
        }
        switch (c->phase) {
        case L2C_SQL_PHASE_ROWS:
            rc = l2c_sql_pass_step(c, c->current, &there, err);
            c->phase = there ? L2C_SQL_PHASE_ROWS : L2C_SQL_PHASE_END;
            break;
        case L2C_SQL_PHASE_BARE_FIRST:
            rc = next_bare(c, &there, err);
            c->phase = there ? L2C_SQL_PHASE_BARE_FIRST : L2C_SQL_PHASE_STREAM;
            break;
        case L2C_SQL_PHASE_STREAM:
            rc = next_neighbour(c, &there, err);
            c->phase = there ? L2C_SQL_PHASE_STREAM : L2C_SQL_PHASE_LATE;
            break;
        case L2C_SQL_PHASE_LATE:
            rc = next_late(c, &there, err);
            c->phase = there            ? L2C_SQL_PHASE_LATE
                       : c->p.bare_last ? L2C_SQL_PHASE_BARE_LAST
                                        : L2C_SQL_PHASE_END;
            break;
        default:
            rc = next_bare(c, &there, err);
            c->phase = there ? L2C_SQL_PHASE_BARE_LAST : L2C_SQL_PHASE_END;
        }
    }
    c->emitted += there ? 1 : 0;
    return rc;
}

int l2c_sql_images_next(sqlite3_vtab_cursor *base) {
    l2c_sql_cursor *c = (l2c_sql_cursor *)base;
    l2cdb_error e;
    l2cdb_status rc = advance(c, &e);
    return rc == L2CDB_OK ? SQLITE_OK : fail(c, &e);
}

int l2c_sql_images_filter(sqlite3_vtab_cursor *base, int number, const char *text, int argc,
                          sqlite3_value **args) {
    (void)number;
    (void)argc;
    l2c_sql_cursor *c = (l2c_sql_cursor *)base;
    l2cdb_error e;
    end_pass(c);
    if (c->plan_text == NULL || strcmp(c->plan_text, text) != 0) {
        l2c_sql_pass_drop(c);
        l2c_free(c->plan_text);
        c->plan_text = l2c_strdup(text);
        if (c->plan_text == NULL) {
            return SQLITE_NOMEM;
        }
    }
    l2c_sql_plan_read(&c->p, text);
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

int l2c_sql_images_eof(sqlite3_vtab_cursor *base) {
    return ((l2c_sql_cursor *)base)->phase == L2C_SQL_PHASE_END;
}

/* The hidden columns hold what was asked: SQLite may check such a condition once more. */
static void result_argument(const l2c_sql_cursor *c, sqlite3_context *context, char role) {
    for (size_t i = 0; i < c->p.terms_count; i++) {
        if (c->p.terms[i].role == role && c->values[i] != NULL) {
            sqlite3_result_value(context, c->values[i]);
        }
    }
}

int l2c_sql_images_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int i) {
    l2c_sql_cursor *c = (l2c_sql_cursor *)base;
    const l2c_sql_target *g = l2c_sql_cursor_table(c)->target;
    if (sqlite3_vtab_nochange(context)) {
        return SQLITE_OK; // an UPDATE that leaves this column alone
    }
    if (i < g->count) {
        sqlite3_result_value(context, sqlite3_column_value(c->current, i));
        return SQLITE_OK;
    }
    double d = l2c_sql_decimals((double)c->distance);
    switch (i - g->count) {
    case L2C_SQL_EMBEDDING: {
        sqlite3_value *v = sqlite3_column_value(c->current, g->count);
        sqlite3_result_value(context, v);
        if (sqlite3_value_type(v) == SQLITE_BLOB) {
            sqlite3_result_subtype(context, L2C_SQL_VECTOR_SUBTYPE);
        }
        break;
    }
    case L2C_SQL_SCORE:
        if (c->has_distance) {
            sqlite3_result_double(context, l2c_sql_decimals(1.0 - (double)c->distance));
        }
        break;
    case L2C_SQL_DISTANCE:
        if (c->has_distance) {
            sqlite3_result_double(context, d);
        }
        break;
    case L2C_SQL_RANK:
        if (c->p.near && c->phase != L2C_SQL_PHASE_ROWS) {
            sqlite3_result_double(context, c->has_distance ? d : INFINITY);
        }
        break;
    case L2C_SQL_QUERY:
        result_argument(c, context, 'q');
        break;
    default:
        result_argument(c, context, 'k');
    }
    return SQLITE_OK;
}

int l2c_sql_images_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *out) {
    *out = sqlite3_column_int64(((l2c_sql_cursor *)base)->current, 0);
    return SQLITE_OK;
}
