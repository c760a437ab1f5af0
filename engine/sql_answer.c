/* See sql_answer.h. An index has no name of its own here: what CREATE INDEX called it is kept as a
 * setting, so that DROP INDEX finds it again; images_embedding and captions_embedding always do. */
#include "engine/sql_answer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- Cells -------------------------------------------------------------------------------------
 */

void l2c_answer_fini(l2c_answer *a) {
    for (size_t i = 0; i < a->rows * a->columns; i++) {
        l2c_free(a->cells[i].text);
    }
    l2c_free(a->cells);
    a->cells = NULL;
    a->rows = a->capacity = 0;
}

/* An empty row at the end; NULL without memory. */
static l2c_answer_cell *add_row(l2c_answer *a, l2cdb_error *err) {
    if (a->rows == a->capacity) {
        size_t more = a->capacity == 0 ? 8 : a->capacity * 2;
        l2c_answer_cell *cells = l2c_realloc(a->cells, more, a->columns * sizeof *cells);
        if (cells == NULL) {
            l2c_fail_nomem(err, more * a->columns * sizeof *cells);
            return NULL;
        }
        a->cells = cells;
        a->capacity = more;
    }
    l2c_answer_cell *row = a->cells + a->rows++ * a->columns;
    memset(row, 0, a->columns * sizeof *row);
    return row;
}

static void set_int(l2c_answer_cell *c, int64_t v) {
    *c = (l2c_answer_cell){ .type = L2CDB_INTEGER, .integer = v };
}

static void set_real(l2c_answer_cell *c, double v) {
    *c = (l2c_answer_cell){ .type = L2CDB_FLOAT, .real = round(v * 1e4) / 1e4 };
}

static l2cdb_status add_line(l2c_answer *a, l2c_buf *line, l2cdb_error *err) {
    l2c_answer_cell *row = add_row(a, err);
    if (row == NULL) {
        return L2CDB_E_NOMEM;
    }
    row->text = l2c_buf_take(line);
    row->type = L2CDB_TEXT;
    return row->text != NULL ? L2CDB_OK : l2c_fail_nomem(err, 0);
}

static const char *const plan_names[] = { "plan" };
static const char *const active_names[] = { "generation" };
static const char *const tune_names[] = {
    "generation", "promoted",  "photos",   "pairs",     "steps",    "seconds",    "loss_first",
    "loss_last",  "r1_before", "r1_after", "r5_before", "r5_after", "r10_before", "r10_after",
};

const char *const *l2c_answer_names(l2c_verb verb, size_t *columns) {
    switch (verb) {
    case L2C_VERB_EXPLAIN:
        *columns = 1;
        return plan_names;
    case L2C_VERB_ROLLBACK_GENERATION:
        *columns = 1;
        return active_names;
    case L2C_VERB_TUNE:
        *columns = sizeof tune_names / sizeof tune_names[0];
        return tune_names;
    default:
        *columns = 0;
        return NULL;
    }
}

/* ---- Indexes -----------------------------------------------------------------------------------
 */

static const struct {
    const char *table, *setting, *fallback;
    l2cdb_target target;
} indexes[] = {
    { "images", "index_name_images", "images_embedding", L2CDB_IMAGES },
    { "captions", "index_name_captions", "captions_embedding", L2CDB_CAPTIONS },
};

static size_t index_of_table(const char *table) {
    return strcasecmp(table, indexes[0].table) == 0 ? 0 : 1;
}

static l2cdb_status index_is_called(l2cdb *db, size_t i, const char *name, bool *is,
                                    l2cdb_error *err) {
    char *stored;
    l2cdb_status rc = l2c_store_get(db->store, indexes[i].setting, &stored, err);
    *is = rc == L2CDB_OK && stored != NULL && strcasecmp(stored, name) == 0;
    l2c_free(stored);
    return rc;
}

l2cdb_status l2c_answer_owns_index(l2cdb *db, const char *name, bool *owns, l2cdb_target *target,
                                   l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    *owns = false;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK && !*owns; i++) {
        rc = index_is_called(db, i, name, owns, err);
        *owns = *owns || strcasecmp(indexes[i].fallback, name) == 0;
        *target = indexes[i].target;
    }
    return rc;
}

static l2cdb_status create_index(l2cdb *db, const l2c_rewrite *r, l2cdb_error *err) {
    size_t i = index_of_table(r->table);
    bool exists = false;
    l2cdb_status rc = L2CDB_OK;
    if (r->name != NULL) {
        rc = index_is_called(db, i, r->name, &exists, err);
    }
    if (rc != L2CDB_OK || (exists && r->if_exists)) {
        return rc;
    }
    if (exists) {
        l2c_fail(err, L2CDB_E_EXISTS, "index %s exists already", r->name);
        return l2c_hint(err, "DROP INDEX %s first, or CREATE INDEX IF NOT EXISTS", r->name);
    }
    const char *params = r->value[0] != 0 ? r->value : NULL;
    rc = l2cdb_index_create(db, indexes[i].target, params, NULL, NULL, err);
    if (rc == L2CDB_OK && r->name != NULL) {
        rc = l2c_store_set(db->store, indexes[i].setting, r->name, err);
    }
    return rc;
}

static l2cdb_status drop_index(l2cdb *db, const l2c_rewrite *r, l2cdb_error *err) {
    bool owns;
    l2cdb_target target;
    l2cdb_status rc = l2c_answer_owns_index(db, r->name, &owns, &target, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (!owns) {
        return r->if_exists ? L2CDB_OK
                            : l2c_fail(err, L2CDB_E_NOTFOUND, "no such index: %s", r->name);
    }
    rc = l2cdb_index_drop(db, target, err);
    return rc == L2CDB_OK
               ? l2c_store_set(db->store, indexes[target == L2CDB_CAPTIONS].setting, "", err)
               : rc;
}

static l2cdb_status parse_number(const char *text, int64_t *out, l2cdb_error *err) {
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno == 0 && *end == 0 && end != text && *out > 0
               ? L2CDB_OK
               : l2c_fail(err, L2CDB_E_INVALID, "%s is not the number of a generation", text);
}

static l2cdb_status reindex(l2cdb *db, const l2c_rewrite *r, l2cdb_error *err) {
    if (r->table != NULL) {
        l2cdb_target target = indexes[index_of_table(r->table)].target;
        l2cdb_index_info info;
        l2cdb_status rc = l2cdb_index_status(db, target, &info, err);
        return rc == L2CDB_OK ? l2cdb_index_create(db, target, info.params, NULL, NULL, err) : rc;
    }
    int64_t generation = 0;
    l2cdb_status rc = r->name != NULL ? parse_number(r->name, &generation, err) : L2CDB_OK;
    return rc == L2CDB_OK ? l2cdb_reindex(db, generation, NULL, NULL, err) : rc;
}

/* ---- Tuning ------------------------------------------------------------------------------------
 */

static l2cdb_status option_number(const char *name, const char *value, double *out,
                                  l2cdb_error *err) {
    char *end;
    *out = strtod(value, &end);
    return end != value && *end == 0
               ? L2CDB_OK
               : l2c_fail(err, L2CDB_E_INVALID, "%s is \"%s\", expected a number", name, value);
}

static l2cdb_status option_switch(const char *name, const char *value, bool *out,
                                  l2cdb_error *err) {
    *out =
        strcasecmp(value, "on") == 0 || strcasecmp(value, "true") == 0 || strcmp(value, "1") == 0;
    bool off =
        strcasecmp(value, "off") == 0 || strcasecmp(value, "false") == 0 || strcmp(value, "0") == 0;
    return *out || off
               ? L2CDB_OK
               : l2c_fail(err, L2CDB_E_INVALID, "%s is \"%s\", expected on or off", name, value);
}

static l2cdb_status tune_option(l2cdb_tune_options *o, const char *name, const char *value,
                                l2cdb_error *err) {
    static const struct {
        const char *name;
        l2cdb_objective objective;
    } objectives[] = { { "image", L2CDB_OBJECTIVE_IMAGE },
                       { "caption", L2CDB_OBJECTIVE_CAPTION },
                       { "both", L2CDB_OBJECTIVE_BOTH } };
    if (strcasecmp(name, "objective") == 0) {
        for (size_t i = 0; i < 3; i++) {
            if (strcasecmp(value, objectives[i].name) == 0) {
                o->objective = objectives[i].objective;
                return L2CDB_OK;
            }
        }
        return l2c_fail(err, L2CDB_E_INVALID,
                        "objective is \"%s\", expected image, caption or both", value);
    }
    const struct {
        const char *name;
        bool *out;
    } switches[] = { { "tune_image_head", &o->tune_image_head },
                     { "early_stop", &o->early_stop },
                     { "resume", &o->resume },
                     { "force", &o->force },
                     { "no_promote", &o->no_promote } };
    for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++) {
        if (strcasecmp(name, switches[i].name) == 0) {
            return option_switch(name, value, switches[i].out, err);
        }
    }
    const struct {
        const char *name;
        double *real;
        size_t *count;
    } numbers[] = { { "epochs", NULL, &o->epochs }, { "batch", NULL, &o->batch },
                    { "lr", &o->lr, NULL },         { "weight_decay", &o->weight_decay, NULL },
                    { "warmup", &o->warmup, NULL }, { "val_share", &o->val_share, NULL } };
    double number;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (strcasecmp(name, numbers[i].name) != 0) {
            continue;
        }
        l2cdb_status rc = option_number(name, value, &number, err);
        if (rc == L2CDB_OK && numbers[i].count != NULL) {
            if (number < 1 || number > 1e9) {
                return l2c_fail(err, L2CDB_E_INVALID, "%s is %s, expected 1 or more", name, value);
            }
            *numbers[i].count = (size_t)number;
        } else if (rc == L2CDB_OK) {
            *numbers[i].real = number;
        }
        return rc;
    }
    if (strcasecmp(name, "seed") == 0) {
        l2cdb_status rc = option_number(name, value, &number, err);
        o->seed = rc == L2CDB_OK && number >= 0 && number < 1e18 ? (uint64_t)number : 0;
        return rc;
    }
    l2c_fail(err, L2CDB_E_INVALID, "TUNE has no option %s", name);
    return l2c_hint(err, "epochs, batch, lr, weight_decay, warmup, seed, val_share, objective, "
                         "tune_image_head, early_stop, resume, force, no_promote");
}

static l2cdb_status tune(l2cdb *db, const l2c_rewrite *r, l2c_answer *out, l2cdb_error *err) {
    l2cdb_tune_options o;
    l2cdb_tune_options_init(&o);
    o.pairs_file = r->name;
    char *copy = l2c_strdup(r->value), *rest = copy, *word;
    l2cdb_status rc = copy != NULL ? L2CDB_OK : l2c_fail_nomem(err, 0);
    while (rc == L2CDB_OK && (word = strtok_r(rest, " ", &rest)) != NULL) {
        char *value = strchr(word, '=');
        *value++ = 0;
        rc = tune_option(&o, word, value, err);
    }
    l2c_free(copy);
    l2cdb_tune_report t;
    if (rc == L2CDB_OK) {
        rc = l2cdb_tune(db, &o, &t, err);
    }
    l2c_answer_cell *row = rc == L2CDB_OK ? add_row(out, err) : NULL;
    if (row == NULL) {
        return rc == L2CDB_OK ? L2CDB_E_NOMEM : rc;
    }
    const int64_t counts[] = { t.generation, t.promoted, (int64_t)t.photos, (int64_t)t.pairs,
                               (int64_t)t.steps };
    const double values[] = { t.seconds,       t.loss_first,     t.loss_last,
                              t.before.t2i.r1, t.after.t2i.r1,   t.before.t2i.r5,
                              t.after.t2i.r5,  t.before.t2i.r10, t.after.t2i.r10 };
    for (size_t i = 0; i < 5; i++) {
        set_int(&row[i], counts[i]);
    }
    for (size_t i = 0; i < 9; i++) {
        set_real(&row[5 + i], values[i]);
    }
    return L2CDB_OK;
}

static l2cdb_status roll_back(l2cdb *db, l2c_answer *out, l2cdb_error *err) {
    int64_t active;
    l2cdb_status rc = l2cdb_rollback(db, &active, err);
    l2c_answer_cell *row = rc == L2CDB_OK ? add_row(out, err) : NULL;
    if (row == NULL) {
        return rc == L2CDB_OK ? L2CDB_E_NOMEM : rc;
    }
    set_int(row, active);
    return L2CDB_OK;
}

l2cdb_status l2c_answer_command(l2cdb *db, const l2c_rewrite *r, l2c_answer *out,
                                l2cdb_error *err) {
    int64_t generation;
    l2cdb_status rc;
    switch (r->verb) {
    case L2C_VERB_CREATE_INDEX:
        return create_index(db, r, err);
    case L2C_VERB_DROP_INDEX:
        return drop_index(db, r, err);
    case L2C_VERB_SET:
        return l2cdb_set(db, r->name, r->value, err);
    case L2C_VERB_TUNE:
        return tune(db, r, out, err);
    case L2C_VERB_REINDEX:
        return reindex(db, r, err);
    case L2C_VERB_ROLLBACK_GENERATION:
        return roll_back(db, out, err);
    case L2C_VERB_DROP_GENERATION:
        rc = parse_number(r->name, &generation, err);
        return rc == L2CDB_OK ? l2cdb_drop_generation(db, generation, err) : rc;
    case L2C_VERB_VACUUM:
        return l2cdb_vacuum(db, err);
    default:
        return l2c_fail(err, L2CDB_E_INTERNAL, "statement kind %d is not run here", (int)r->verb);
    }
}

/* ---- EXPLAIN -----------------------------------------------------------------------------------
 */

/* "1,204" */
static void put_count(l2c_buf *b, int64_t n) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, n);
    size_t size = strlen(digits);
    for (size_t i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0 && digits[i - 1] != '-') {
            l2c_buf_putc(b, ',');
        }
        l2c_buf_putc(b, digits[i]);
    }
}

static void put_rows(l2c_buf *b, int64_t n) {
    put_count(b, n);
    l2c_buf_puts(b, n == 1 ? " row" : " rows");
}

static l2cdb_status explain_passes(l2c_sql_conn *c, l2c_answer *out, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < c->notes_count && rc == L2CDB_OK; i++) {
        const l2c_sql_note *n = &c->notes[i];
        l2c_buf b;
        l2c_buf_init(&b);
        l2c_buf_printf(&b, "%s: %s; estimated ", n->table, n->text);
        put_rows(&b, n->estimated);
        l2c_buf_puts(&b, ", read ");
        put_count(&b, n->actual);
        if (n->passes > 1) {
            l2c_buf_puts(&b, " in ");
            put_count(&b, (int64_t)n->passes);
            l2c_buf_puts(&b, " passes");
        }
        rc = add_line(out, &b, err);
    }
    return rc;
}

/* SQLite's own lines, without the plan strings that virtual tables pass to themselves. */
static l2cdb_status explain_sqlite(l2c_sql_conn *c, const char *sql, l2c_answer *out,
                                   l2cdb_error *err) {
    l2c_buf text;
    l2c_buf_init(&text);
    l2c_buf_printf(&text, "EXPLAIN QUERY PLAN %s", sql);
    sqlite3_stmt *s = NULL;
    l2cdb_status rc =
        text.failed ? l2c_fail_nomem(err, text.size) : l2c_sql_prepare_own(c, &s, text.data, err);
    int64_t depth[64] = { 0 };
    size_t level = 0;
    while (rc == L2CDB_OK && sqlite3_step(s) == SQLITE_ROW) {
        int64_t id = sqlite3_column_int64(s, 0), parent = sqlite3_column_int64(s, 1);
        while (level > 0 && depth[level - 1] != parent) {
            level--;
        }
        const char *detail = (const char *)sqlite3_column_text(s, 3);
        const char *cut = detail != NULL ? strstr(detail, " VIRTUAL TABLE INDEX ") : NULL;
        l2c_buf b;
        l2c_buf_init(&b);
        l2c_buf_printf(&b, "sqlite: %*s%.*s", (int)(2 * level), "",
                       cut != NULL      ? (int)(cut - detail)
                       : detail != NULL ? (int)strlen(detail)
                                        : 0,
                       detail != NULL ? detail : "");
        rc = add_line(out, &b, err);
        if (level < sizeof depth / sizeof depth[0]) {
            depth[level++] = id;
        }
    }
    sqlite3_finalize(s);
    l2c_buf_fini(&text);
    return rc;
}

l2cdb_status l2c_answer_explain(l2c_sql_conn *c, sqlite3_stmt *stmt, const l2c_rewrite *r,
                                l2c_answer *out, l2cdb_error *err) {
    bool reads = sqlite3_stmt_readonly(stmt) != 0;
    double start = l2c_now();
    int64_t rows = 0;
    int code = SQLITE_DONE;
    while (reads && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
        rows++;
    }
    double total_s = l2c_now() - start;
    l2cdb_status rc = code == SQLITE_DONE ? L2CDB_OK : l2c_sql_status(c, code, err);
    sqlite3_reset(stmt); // closes the cursors, which then tell what they did
    if (rc == L2CDB_OK) {
        rc = explain_passes(c, out, err);
    }
    if (rc == L2CDB_OK) {
        rc = explain_sqlite(c, r->text.data, out, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_buf b;
    l2c_buf_init(&b);
    if (reads) {
        put_rows(&b, rows);
        l2c_buf_printf(&b, "; encode %.1f ms, search %.1f ms, fetch %.1f ms, total %.1f ms",
                       c->encode_s * 1e3, c->search_s * 1e3, c->fetch_s * 1e3, total_s * 1e3);
    } else {
        l2c_buf_puts(&b, "not run: the statement writes");
    }
    return add_line(out, &b, err);
}
