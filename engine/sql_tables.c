/* The smaller virtual tables: what the database knows of itself (generations, models,
 * index_status) and three questions that are functions of their arguments (similar, hybrid,
 * nearest_duplicates). All are made whole when they are opened; none is written.
 *
 * hybrid follows Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
 * individual Rank Learning Methods" (SIGIR 2009): score = Σ weight / (k + rank), k = 60. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/vec.h"
#include "engine/sql_engine.h"

#define ARGUMENTS_MAX 4
#define GENERATIONS_MAX 1000
#define NEIGHBOURS_MAX 10000
#define WORDS_MAX 64 /* of a text that hybrid looks for */

/* ---- Rows in memory ----------------------------------------------------------------------------
 */

typedef struct cell {
    enum { CELL_NULL, CELL_INT, CELL_REAL, CELL_TEXT } type;
    int64_t integer;
    double real;
    const char *text; /* in the arena */
} cell;

typedef struct rows {
    cell *cells; /* row after row */
    size_t columns, count, capacity;
    l2c_arena arena;
    bool failed; /* no memory: later adds do nothing */
} rows;

static cell of_int(int64_t v) {
    return (cell){ .type = CELL_INT, .integer = v };
}

static cell of_real(double v) {
    return (cell){ .type = CELL_REAL, .real = v };
}

static cell of_text(rows *r, const char *s) {
    if (s == NULL) {
        return (cell){ .type = CELL_NULL };
    }
    size_t size = strlen(s) + 1;
    char *copy = l2c_arena_alloc(&r->arena, size, 1);
    if (copy == NULL) {
        r->failed = true;
        return (cell){ .type = CELL_NULL };
    }
    memcpy(copy, s, size);
    return (cell){ .type = CELL_TEXT, .text = copy };
}

static cell of_time(rows *r, int64_t unix_s) {
    char text[32];
    time_t t = (time_t)unix_s;
    struct tm tm;
    if (unix_s == 0 || gmtime_r(&t, &tm) == NULL ||
        strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm) == 0) {
        return (cell){ .type = CELL_NULL };
    }
    return of_text(r, text);
}

static cell of_hash(rows *r, const l2c_hash *h) {
    static const l2c_hash none;
    char hex[L2C_HASH_HEX_BYTES];
    if (memcmp(h, &none, sizeof none) == 0) {
        return (cell){ .type = CELL_NULL };
    }
    l2c_hash_hex(h, hex);
    return of_text(r, hex);
}

static void add_row(rows *r, const cell *cells) {
    if (!r->failed && r->count == r->capacity) {
        size_t more = r->capacity == 0 ? 16 : r->capacity * 2;
        cell *grown = l2c_realloc(r->cells, more, r->columns * sizeof *grown);
        r->failed = grown == NULL;
        r->cells = grown != NULL ? grown : r->cells;
        r->capacity = grown != NULL ? more : r->capacity;
    }
    if (!r->failed) {
        memcpy(r->cells + r->count++ * r->columns, cells, r->columns * sizeof *cells);
    }
}

/* ---- What a table is ---------------------------------------------------------------------------
 */

/* The arguments; NULL where none was given. */
typedef struct arguments {
    sqlite3_value *values[ARGUMENTS_MAX];
} arguments;

typedef struct kind {
    const char *name;
    const char *schema; /* visible columns, then hidden ones for the arguments */
    int columns;        /* visible */
    int arguments;
    l2cdb_status (*fill)(l2c_sql_conn *c, const arguments *a, rows *r, l2cdb_error *err);
} kind;

/* An argument as a whole number in [least, most]; `fallback` if it is not given. */
static l2cdb_status whole(const arguments *a, int i, const char *name, int64_t fallback,
                          int64_t least, int64_t most, int64_t *out, l2cdb_error *err) {
    sqlite3_value *v = a->values[i];
    *out = fallback;
    if (v == NULL || sqlite3_value_type(v) == SQLITE_NULL) {
        return L2CDB_OK;
    }
    *out = sqlite3_value_int64(v);
    if (sqlite3_value_numeric_type(v) != SQLITE_INTEGER || *out < least || *out > most) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "%s is %s, expected a whole number from %" PRId64 " to %" PRId64, name,
                        sqlite3_value_text(v), least, most);
    }
    return L2CDB_OK;
}

static l2cdb_status fraction(const arguments *a, int i, const char *name, double fallback,
                             double least, double most, double *out, l2cdb_error *err) {
    sqlite3_value *v = a->values[i];
    *out = fallback;
    if (v == NULL || sqlite3_value_type(v) == SQLITE_NULL) {
        return L2CDB_OK;
    }
    *out = sqlite3_value_double(v);
    int type = sqlite3_value_numeric_type(v);
    if ((type != SQLITE_INTEGER && type != SQLITE_FLOAT) || !(*out >= least && *out <= most)) {
        return l2c_fail(err, L2CDB_E_INVALID, "%s is %s, expected a number from %g to %g", name,
                        sqlite3_value_text(v), least, most);
    }
    return L2CDB_OK;
}

/* ---- The database about itself -----------------------------------------------------------------
 */

static const char *state_name(l2c_generation_state s) {
    static const char *const names[] = { "filling", "ready", "active", "retired" };
    return names[s];
}

static l2cdb_status list_generations(l2c_sql_conn *c, l2c_generation **out, size_t *count,
                                     l2cdb_error *err) {
    *count = 0;
    *out = l2c_alloc(GENERATIONS_MAX, sizeof **out);
    if (*out == NULL) {
        return l2c_fail_nomem(err, GENERATIONS_MAX * sizeof **out);
    }
    return l2c_generations_list(c->db->store, *out, GENERATIONS_MAX, count, err);
}

static l2cdb_status fill_generations(l2c_sql_conn *c, const arguments *a, rows *r,
                                     l2cdb_error *err) {
    (void)a;
    l2c_generation *list;
    size_t count;
    l2cdb_status rc = list_generations(c, &list, &count, err);
    for (size_t i = 0; i < count && rc == L2CDB_OK; i++) {
        const l2c_generation *g = &list[i];
        size_t images = 0, captions = 0;
        rc =
            l2c_vectors_count(c->db->store, g->space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, &images, err);
        if (rc == L2CDB_OK) {
            rc = l2c_vectors_count(c->db->store, g->space[L2C_KIND_CAPTION], L2C_KIND_CAPTION,
                                   &captions, err);
        }
        add_row(r, (cell[]){
                       of_int(g->id),
                       g->parent != 0 ? of_int(g->parent) : (cell){ .type = CELL_NULL },
                       of_text(r, state_name(g->state)),
                       of_int(g->state == L2C_GENERATION_ACTIVE),
                       of_int((int64_t)g->width),
                       of_text(r, g->model[0] != 0 ? g->model : "built in"),
                       of_text(r, g->label[0] != 0 ? g->label : NULL),
                       of_int((int64_t)images),
                       of_int((int64_t)captions),
                       of_time(r, g->created_at),
                       of_time(r, g->activated_at),
                       of_text(r, g->report[0] != 0 ? g->report : NULL),
                       of_int(g->space[L2C_KIND_IMAGE]),
                       of_int(g->space[L2C_KIND_CAPTION]),
                   });
    }
    l2c_free(list);
    return rc;
}

/* One row for each pair of trunks that a generation was made with. */
static l2cdb_status fill_models(l2c_sql_conn *c, const arguments *a, rows *r, l2cdb_error *err) {
    (void)a;
    l2c_generation *list;
    size_t count;
    l2cdb_status rc = list_generations(c, &list, &count, err);
    for (size_t i = 0; i < count && rc == L2CDB_OK; i++) {
        const l2c_generation *g = &list[i];
        int64_t generations = 0;
        bool active = false, earlier = false;
        for (size_t j = 0; j < count; j++) {
            bool same = memcmp(&list[j].image_trunk, &g->image_trunk, sizeof g->image_trunk) == 0 &&
                        memcmp(&list[j].text_trunk, &g->text_trunk, sizeof g->text_trunk) == 0 &&
                        strcmp(list[j].model, g->model) == 0;
            earlier = earlier || (same && j < i);
            generations += same ? 1 : 0;
            active = active || (same && list[j].state == L2C_GENERATION_ACTIVE);
        }
        if (!earlier) {
            add_row(r, (cell[]){ of_text(r, g->model[0] != 0 ? g->model : "built in"),
                                 of_hash(r, &g->image_trunk), of_hash(r, &g->text_trunk),
                                 of_int((int64_t)g->width), of_int(generations), of_int(active) });
        }
    }
    l2c_free(list);
    return rc;
}

static l2cdb_status fill_index_status(l2c_sql_conn *c, const arguments *a, rows *r,
                                      l2cdb_error *err) {
    (void)a;
    static const struct {
        const char *name;
        l2cdb_target target;
    } targets[] = { { "images", L2CDB_IMAGES }, { "captions", L2CDB_CAPTIONS } };
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        l2cdb_index_info s;
        rc = l2cdb_index_status(c->db, targets[i].target, &s, err);
        if (rc != L2CDB_OK) {
            break;
        }
        add_row(r, (cell[]){ of_text(r, targets[i].name), of_text(r, s.kind), of_text(r, s.quant),
                             of_int((int64_t)s.rows), of_int((int64_t)s.base_rows),
                             of_int((int64_t)s.fresh_rows), of_int((int64_t)s.tombstones),
                             of_int((int64_t)s.file_bytes), of_int((int64_t)s.memory_bytes),
                             of_real(s.build_s),
                             s.recall >= 0 ? of_real(s.recall) : (cell){ .type = CELL_NULL },
                             of_int(s.building), of_text(r, s.params), of_text(r, s.why) });
    }
    return rc;
}

/* ---- Neighbours --------------------------------------------------------------------------------
 */

/* The k photos nearest to `query` into ids and distances. */
static l2cdb_status nearest(l2c_sql_conn *c, l2c_view *v, const float *query, size_t k,
                            int64_t *ids, float *distances, size_t *found, l2cdb_error *err) {
    l2c_index *index;
    double start = l2c_now();
    *found = 0;
    l2cdb_status rc = l2c_view_index(c->db, v, L2C_KIND_IMAGE, &index, err);
    if (rc == L2CDB_OK && index != NULL) {
        l2c_search_params params;
        l2c_search_plan plan;
        char text[160];
        l2c_db_search_params(c->db, &params, false, 0, 0);
        rc = l2c_index_search(index, ids, distances, found, query, k, NULL, &params, &plan, err);
        if (rc == L2CDB_OK) {
            l2c_plan_describe(text, sizeof text, &plan);
            l2c_sql_note *n = l2c_sql_note_add(c, "images", text, (int64_t)k);
            if (n != NULL) {
                n->actual += (int64_t)*found;
            }
        }
    }
    c->search_s += l2c_now() - start;
    return rc;
}

/* Path, time, camera and size of one photo after another. */
typedef struct records {
    l2c_sql_conn *conn;
    sqlite3_stmt *by_id;
} records;

static l2cdb_status records_open(records *k, l2c_sql_conn *c, l2cdb_error *err) {
    *k = (records){ .conn = c };
    return l2c_sql_prepare_own(
        c, &k->by_id, "SELECT path, taken_at, camera, width, height FROM main.image WHERE id = ?1",
        err);
}

static l2cdb_status records_find(records *k, int64_t id, bool *there, l2cdb_error *err) {
    sqlite3_reset(k->by_id);
    sqlite3_bind_int64(k->by_id, 1, id);
    int rc = sqlite3_step(k->by_id);
    *there = rc == SQLITE_ROW;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? L2CDB_OK : l2c_sql_status(k->conn, rc, err);
}

static cell record_cell(const records *k, rows *r, int i) {
    switch (sqlite3_column_type(k->by_id, i)) {
    case SQLITE_INTEGER:
        return of_int(sqlite3_column_int64(k->by_id, i));
    case SQLITE_NULL:
        return (cell){ .type = CELL_NULL };
    default:
        return of_text(r, (const char *)sqlite3_column_text(k->by_id, i));
    }
}

/* Room for a query vector and k neighbours. */
typedef struct neighbours {
    l2c_view *view;
    float *query, *distances;
    int64_t *ids;
    size_t found;
} neighbours;

static void neighbours_fini(neighbours *n) {
    l2c_free(n->query);
    l2c_free(n->distances);
    l2c_free(n->ids);
}

static l2cdb_status neighbours_init(neighbours *n, l2c_sql_conn *c, size_t k, l2cdb_error *err) {
    *n = (neighbours){ 0 };
    l2cdb_status rc = l2c_sql_view(c, &n->view, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t width = n->view->generation.width;
    n->query = l2c_alloc_aligned(width + 1, sizeof *n->query);
    n->distances = l2c_alloc(k, sizeof *n->distances);
    n->ids = l2c_alloc(k, sizeof *n->ids);
    if (n->query == NULL || n->distances == NULL || n->ids == NULL) {
        neighbours_fini(n);
        return l2c_fail_nomem(err, k * sizeof *n->ids);
    }
    return L2CDB_OK;
}

static l2cdb_status fill_similar(l2c_sql_conn *c, const arguments *a, rows *r, l2cdb_error *err) {
    int64_t id, k;
    if (a->values[0] == NULL || sqlite3_value_type(a->values[0]) == SQLITE_NULL) {
        l2c_fail(err, L2CDB_E_INVALID, "similar needs the id of a photo");
        return l2c_hint(err, "similar(12345, k => 20)");
    }
    l2cdb_status rc = whole(a, 0, "the id in similar", 0, INT64_MIN, INT64_MAX, &id, err);
    if (rc == L2CDB_OK) {
        rc = whole(a, 1, "k", 10, 1, NEIGHBOURS_MAX, &k, err);
    }
    neighbours n;
    if (rc == L2CDB_OK) {
        rc = neighbours_init(&n, c, (size_t)k + 1, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_vectors_get(c->db->store, n.view->generation.space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, id,
                         n.query, n.view->generation.width, err);
    if (rc == L2CDB_E_NOTFOUND) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "photo %" PRId64 " is not in the database", id);
    }
    if (rc == L2CDB_OK) {
        rc = nearest(c, n.view, n.query, (size_t)k + 1, n.ids, n.distances, &n.found, err);
    }
    records record = { 0 };
    if (rc == L2CDB_OK) {
        rc = records_open(&record, c, err);
    }
    for (size_t i = 0; i < n.found && rc == L2CDB_OK && r->count < (size_t)k; i++) {
        bool there = false;
        rc = n.ids[i] != id ? records_find(&record, n.ids[i], &there, err) : L2CDB_OK;
        if (there) {
            float d = n.distances[i];
            add_row(r, (cell[]){ of_int(n.ids[i]), record_cell(&record, r, 0),
                                 of_real(l2c_sql_decimals(1.0 - (double)d)),
                                 of_real(l2c_sql_decimals((double)d)), record_cell(&record, r, 1),
                                 record_cell(&record, r, 2), record_cell(&record, r, 3),
                                 record_cell(&record, r, 4) });
        }
    }
    sqlite3_finalize(record.by_id);
    neighbours_fini(&n);
    return rc;
}

/* Pairs of photos whose cosine is at least `threshold`, each pair once, lower id first. */
static l2cdb_status fill_duplicates(l2c_sql_conn *c, const arguments *a, rows *r,
                                    l2cdb_error *err) {
    double threshold;
    int64_t k;
    l2cdb_status rc = fraction(a, 0, "threshold", 0.95, -1, 1, &threshold, err);
    if (rc == L2CDB_OK) {
        rc = whole(a, 1, "k", 10, 1, 1000, &k, err);
    }
    neighbours n;
    if (rc == L2CDB_OK) {
        rc = neighbours_init(&n, c, (size_t)k + 1, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    records record = { 0 };
    rc = records_open(&record, c, err);
    int64_t id = INT64_MIN;
    size_t got = 1;
    const l2c_generation *g = &n.view->generation;
    while (rc == L2CDB_OK && got > 0 && g->id != 0) {
        rc = l2c_sql_poll(c, err);
        int64_t next = 0;
        if (rc == L2CDB_OK) {
            rc = l2c_vectors_pull(c->db->store, g->space[L2C_KIND_IMAGE], L2C_KIND_IMAGE, g->width,
                                  &next, n.query, 1, &got, id, err);
        }
        if (rc != L2CDB_OK || got == 0) {
            break;
        }
        id = next;
        rc = nearest(c, n.view, n.query, (size_t)k + 1, n.ids, n.distances, &n.found, err);
        for (size_t i = 0; i < n.found && rc == L2CDB_OK; i++) {
            double score = l2c_sql_decimals(1.0 - (double)n.distances[i]);
            if (score < threshold) {
                break;
            }
            bool there = false, other = false;
            cell path = { .type = CELL_NULL };
            if (n.ids[i] > id) {
                rc = records_find(&record, id, &there, err);
                path = there ? record_cell(&record, r, 0) : path;
            }
            if (there && rc == L2CDB_OK) {
                rc = records_find(&record, n.ids[i], &other, err);
            }
            if (other) {
                add_row(r, (cell[]){ of_int(id), path, of_int(n.ids[i]), record_cell(&record, r, 0),
                                     of_real(score),
                                     of_real(l2c_sql_decimals((double)n.distances[i])) });
            }
        }
    }
    sqlite3_finalize(record.by_id);
    neighbours_fini(&n);
    return rc;
}

/* ---- Hybrid ------------------------------------------------------------------------------------
 */

/* One candidate of the fusion; ranks from 1, 0 where a list does not have it. */
typedef struct candidate {
    int64_t id;
    size_t text_rank, vector_rank;
    float distance;
    double score;
} candidate;

static int by_id(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int by_score(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : by_id(a, b);
}

/* The words of a text as an FTS5 expression: each quoted, any of them enough. "" if none. */
static void match_expression(const char *text, l2c_buf *out) {
    size_t words = 0;
    const char *separators = " \t\r\n\"'()*:^-+.,;!?{}[]<>=&|/\\~@#$%`";
    for (const char *s = text; *s != 0 && words < WORDS_MAX;) {
        size_t skip = strspn(s, separators);
        size_t size = strcspn(s + skip, separators);
        if (size > 0) {
            words++;
            l2c_buf_puts(out, out->size > 0 ? " OR \"" : "\"");
            l2c_buf_append(out, s + skip, size);
            l2c_buf_putc(out, '"');
        }
        s += skip + size;
    }
}

/* Photos by their best caption in the full-text index, into out[0..most). */
static l2cdb_status text_candidates(l2c_sql_conn *c, const char *text, candidate *out, size_t most,
                                    size_t *count, l2cdb_error *err) {
    l2c_buf words;
    l2c_buf_init(&words);
    match_expression(text, &words);
    *count = 0;
    if (words.size == 0) {
        l2c_buf_fini(&words);
        return L2CDB_OK;
    }
    sqlite3_stmt *s = NULL;
    double start = l2c_now();
    l2cdb_status rc = l2c_sql_prepare_own(
        c, &s,
        "SELECT c.image_id FROM main.caption_fts f JOIN main.caption c ON c.id = f.rowid"
        " WHERE f.caption_fts MATCH ?1 GROUP BY c.image_id ORDER BY min(f.rank), c.image_id"
        " LIMIT ?2",
        err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_text(s, 1, words.data, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 2, (sqlite3_int64)most);
        int step;
        while ((step = sqlite3_step(s)) == SQLITE_ROW) {
            out[*count] = (candidate){ .id = sqlite3_column_int64(s, 0), .text_rank = *count + 1 };
            ++*count;
        }
        rc = step == SQLITE_DONE ? L2CDB_OK : l2c_sql_status(c, step, err);
    }
    c->search_s += l2c_now() - start;
    sqlite3_finalize(s);
    l2c_buf_fini(&words);
    return rc;
}

/* Joins the two lists by id (text first, vectors behind it) and scores them; returns how many. */
static size_t fuse(candidate *list, size_t count, double rrf_k, double w_text) {
    qsort(list, count, sizeof *list, by_id);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (kept > 0 && list[kept - 1].id == list[i].id) {
            candidate *same = &list[kept - 1];
            same->text_rank += list[i].text_rank;
            same->vector_rank += list[i].vector_rank;
            same->distance += list[i].distance;
        } else {
            list[kept++] = list[i];
        }
    }
    for (size_t i = 0; i < kept; i++) {
        candidate *x = &list[i];
        x->score = (x->text_rank > 0 ? w_text / (rrf_k + (double)x->text_rank) : 0) +
                   (x->vector_rank > 0 ? (1 - w_text) / (rrf_k + (double)x->vector_rank) : 0);
    }
    qsort(list, kept, sizeof *list, by_score);
    return kept;
}

static l2cdb_status add_fused(l2c_sql_conn *c, const candidate *list, size_t count, size_t k,
                              rows *r, l2cdb_error *err) {
    records record;
    const cell none = { .type = CELL_NULL };
    l2cdb_status rc = records_open(&record, c, err);
    for (size_t i = 0; i < count && rc == L2CDB_OK && r->count < k; i++) {
        const candidate *x = &list[i];
        bool there = false;
        rc = records_find(&record, x->id, &there, err);
        if (there) {
            add_row(r, (cell[]){ of_int(x->id), record_cell(&record, r, 0),
                                 of_real(l2c_sql_decimals(x->score)),
                                 x->text_rank > 0 ? of_int((int64_t)x->text_rank) : none,
                                 x->vector_rank > 0 ? of_int((int64_t)x->vector_rank) : none,
                                 x->vector_rank > 0 ? of_real(l2c_sql_decimals((double)x->distance))
                                                    : none,
                                 record_cell(&record, r, 1), record_cell(&record, r, 2),
                                 record_cell(&record, r, 3), record_cell(&record, r, 4) });
        }
    }
    sqlite3_finalize(record.by_id);
    return rc;
}

static l2cdb_status fill_hybrid(l2c_sql_conn *c, const arguments *a, rows *r, l2cdb_error *err) {
    int64_t k;
    double rrf_k, w_text;
    const char *text = a->values[0] != NULL ? (const char *)sqlite3_value_text(a->values[0]) : NULL;
    if (text == NULL || text[0] == 0) {
        l2c_fail(err, L2CDB_E_INVALID, "hybrid needs a text");
        return l2c_hint(err, "hybrid('red boat', k => 20)");
    }
    l2cdb_status rc = whole(a, 1, "k", 10, 1, NEIGHBOURS_MAX, &k, err);
    if (rc == L2CDB_OK) {
        rc = fraction(a, 2, "rrf_k", 60, 0, 1e6, &rrf_k, err);
    }
    if (rc == L2CDB_OK) {
        rc = fraction(a, 3, "w_text", 0.5, 0, 1, &w_text, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    // Deep enough that what both lists have far down can still meet.
    size_t most = (size_t)k * 4 > 100 ? (size_t)k * 4 : 100;
    neighbours n;
    rc = neighbours_init(&n, c, most, err);
    candidate *list = rc == L2CDB_OK ? l2c_alloc(2 * most, sizeof *list) : NULL;
    if (rc == L2CDB_OK && list == NULL) {
        rc = l2c_fail_nomem(err, 2 * most * sizeof *list);
    }
    size_t count = 0;
    if (rc == L2CDB_OK && w_text > 0) {
        rc = text_candidates(c, text, list, most, &count, err);
    }
    if (rc == L2CDB_OK && w_text < 1 && n.view->generation.id != 0) {
        double start = l2c_now();
        rc = l2c_encode_texts(c->db, n.view, &text, 1, n.query, NULL, err);
        c->encode_s += l2c_now() - start;
        if (rc == L2CDB_OK) {
            rc = nearest(c, n.view, n.query, most, n.ids, n.distances, &n.found, err);
        }
        for (size_t i = 0; i < n.found && rc == L2CDB_OK; i++) {
            list[count++] =
                (candidate){ .id = n.ids[i], .vector_rank = i + 1, .distance = n.distances[i] };
        }
    }
    if (rc == L2CDB_OK) {
        count = fuse(list, count, rrf_k, w_text);
        rc = add_fused(c, list, count, (size_t)k, r, err);
    }
    l2c_free(list);
    neighbours_fini(&n);
    return rc;
}

/* ---- The module --------------------------------------------------------------------------------
 */

static const kind kinds[] = {
    { "generations",
      "CREATE TABLE x(id INTEGER,parent INTEGER,state TEXT,active INTEGER,width INTEGER,model TEXT,"
      "label TEXT,images INTEGER,captions INTEGER,created_at TEXT,activated_at TEXT,report TEXT,"
      "image_space INTEGER,caption_space INTEGER)",
      14, 0, fill_generations },
    { "models",
      "CREATE TABLE x(model TEXT,image_trunk TEXT,text_trunk TEXT,width INTEGER,"
      "generations INTEGER,active INTEGER)",
      6, 0, fill_models },
    { "index_status",
      "CREATE TABLE x(target TEXT,kind TEXT,quant TEXT,rows INTEGER,base_rows INTEGER,"
      "fresh_rows INTEGER,tombstones INTEGER,file_bytes INTEGER,memory_bytes INTEGER,build_s REAL,"
      "recall REAL,building INTEGER,params TEXT,why TEXT)",
      14, 0, fill_index_status },
    { "similar",
      "CREATE TABLE x(id INTEGER,path TEXT,score REAL,distance REAL,taken_at TEXT,camera TEXT,"
      "width INTEGER,height INTEGER,of HIDDEN,k HIDDEN)",
      8, 2, fill_similar },
    { "hybrid",
      "CREATE TABLE x(id INTEGER,path TEXT,score REAL,text_rank INTEGER,vector_rank INTEGER,"
      "distance REAL,taken_at TEXT,camera TEXT,width INTEGER,height INTEGER,of HIDDEN,k HIDDEN,"
      "rrf_k HIDDEN,w_text HIDDEN)",
      10, 4, fill_hybrid },
    { "nearest_duplicates",
      "CREATE TABLE x(id INTEGER,path TEXT,duplicate_id INTEGER,duplicate_path TEXT,score REAL,"
      "distance REAL,threshold HIDDEN,k HIDDEN)",
      6, 2, fill_duplicates },
};

typedef struct table {
    sqlite3_vtab base;
    l2c_sql_conn *conn;
    const kind *kind;
} table;

typedef struct cursor {
    sqlite3_vtab_cursor base;
    rows rows;
    size_t at;
} cursor;

static int connect_table(sqlite3 *sqlite, void *data, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **message) {
    (void)sqlite;
    (void)argc;
    (void)argv;
    (void)message;
    const l2c_sql_module *m = data;
    const kind *k = m->which;
    int rc = l2c_sql_table_new(out, sizeof(table), m, k->schema);
    if (rc == SQLITE_OK) {
        ((table *)*out)->conn = m->conn;
        ((table *)*out)->kind = k;
    }
    return rc;
}

static int disconnect_table(sqlite3_vtab *base) {
    l2c_free(base);
    return SQLITE_OK;
}

/* Arguments are equalities on the hidden columns; bit i of idxNum says that argument i is there. */
static int best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
    const kind *k = ((table *)base)->kind;
    int found[ARGUMENTS_MAX];
    int given = 0, argument = 0;
    for (int i = 0; i < info->nConstraint; i++) {
        int column = info->aConstraint[i].iColumn - k->columns;
        if (column < 0 || column >= k->arguments ||
            info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ) {
            continue;
        }
        if (!info->aConstraint[i].usable) {
            return SQLITE_CONSTRAINT;
        }
        if ((given & 1 << column) == 0) {
            found[column] = i;
            given |= 1 << column;
        }
    }
    for (int column = 0; column < k->arguments; column++) {
        if (given & 1 << column) {
            info->aConstraintUsage[found[column]].argvIndex = ++argument;
            info->aConstraintUsage[found[column]].omit = 1;
        }
    }
    info->idxNum = given;
    info->estimatedCost = k->arguments > 0 ? 5000 : 100;
    info->estimatedRows = 10;
    return SQLITE_OK;
}

static int open_cursor(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
    table *t = (table *)base;
    cursor *c = l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    c->rows.columns = (size_t)t->kind->columns;
    l2c_arena_init(&c->rows.arena, 4096);
    t->conn->cursors++;
    *out = &c->base;
    return SQLITE_OK;
}

static void empty(rows *r) {
    l2c_free(r->cells);
    l2c_arena_fini(&r->arena);
    *r = (rows){ .columns = r->columns };
    l2c_arena_init(&r->arena, 4096);
}

static int close_cursor(sqlite3_vtab_cursor *base) {
    cursor *c = (cursor *)base;
    ((table *)base->pVtab)->conn->cursors--;
    empty(&c->rows);
    l2c_arena_fini(&c->rows.arena);
    l2c_free(c);
    return SQLITE_OK;
}

static int filter(sqlite3_vtab_cursor *base, int given, const char *text, int argc,
                  sqlite3_value **args) {
    (void)text;
    cursor *c = (cursor *)base;
    table *t = (table *)base->pVtab;
    arguments a = { 0 };
    for (int i = 0, next = 0; i < ARGUMENTS_MAX && next < argc; i++) {
        if (given & 1 << i) {
            a.values[i] = args[next++];
        }
    }
    empty(&c->rows);
    c->at = 0;
    l2cdb_error e;
    l2c_view *view;
    l2cdb_status rc = l2c_sql_view(t->conn, &view, &e); // says so without a database
    if (rc == L2CDB_OK) {
        rc = t->kind->fill(t->conn, &a, &c->rows, &e);
    }
    if (rc == L2CDB_OK && c->rows.failed) {
        rc = l2c_fail_nomem(&e, 0);
    }
    return rc == L2CDB_OK ? SQLITE_OK : l2c_sql_table_fail(base->pVtab, t->conn, &e);
}

static int next_row(sqlite3_vtab_cursor *base) {
    ((cursor *)base)->at++;
    return SQLITE_OK;
}

static int at_end(sqlite3_vtab_cursor *base) {
    const cursor *c = (cursor *)base;
    return c->at >= c->rows.count;
}

static int column_value(sqlite3_vtab_cursor *base, sqlite3_context *context, int i) {
    const cursor *c = (cursor *)base;
    if (i >= (int)c->rows.columns) {
        return SQLITE_OK; // arguments
    }
    const cell *x = &c->rows.cells[c->at * c->rows.columns + (size_t)i];
    switch (x->type) {
    case CELL_INT:
        sqlite3_result_int64(context, x->integer);
        break;
    case CELL_REAL:
        sqlite3_result_double(context, x->real);
        break;
    case CELL_TEXT:
        sqlite3_result_text(context, x->text, -1, SQLITE_TRANSIENT);
        break;
    default:
        break;
    }
    return SQLITE_OK;
}

static int row_id(sqlite3_vtab_cursor *base, sqlite3_int64 *out) {
    *out = (sqlite3_int64)((cursor *)base)->at + 1;
    return SQLITE_OK;
}

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
};

l2cdb_status l2c_sql_tables_register(l2c_sql_conn *c, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && rc == L2CDB_OK; i++) {
        rc = l2c_sql_module_register(c, kinds[i].name, &module, &kinds[i], err);
    }
    return rc;
}
