/* The index as users see it: create, drop, status, recall, settings, and plans in words. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"

/* ---- Plans and settings ---------------------------------------------------------------------- */

void l2c_plan_describe(char *out, size_t size, const l2c_search_plan *plan) {
    if (plan->kind == L2C_INDEX_FLAT) {
        snprintf(out, size, "exact over %zu rows%s", plan->rows_scanned,
                 plan->filter_first ? ", filter first" : "");
        return;
    }
    const char *name = plan->kind == L2C_INDEX_HNSW ? "ef" : "nprobe";
    size_t effort = plan->kind == L2C_INDEX_HNSW ? plan->ef_search : plan->nprobe;
    snprintf(out, size, "%s %s, %s %zu, rerank %zu%s", l2c_index_kind_name(plan->kind),
             l2c_quant_name(plan->quant), name, effort, plan->rerank,
             plan->filter_first ? ", filter first" : "");
}

void l2c_db_search_params(l2cdb *db, l2c_search_params *out, bool exact, size_t ef_search,
                          size_t nprobe) {
    pthread_mutex_lock(&db->lock);
    l2c_settings s = db->settings;
    pthread_mutex_unlock(&db->lock);
    *out = (l2c_search_params){ .exact = exact || s.exact,
                                .ef_search = ef_search != 0 ? ef_search : s.ef_search,
                                .nprobe = nprobe != 0 ? nprobe : s.nprobe,
                                .cancel = &db->interrupted };
}

static l2cdb_status parse_count(const char *name, const char *value, size_t *out,
                                l2cdb_error *err) {
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (errno != 0 || end == value || *end != '\0' || *value == '-' || n > 1000000) {
        return l2c_fail(err, L2CDB_E_INVALID, "%s is \"%s\", expected a number from 0 to 1000000",
                        name, value);
    }
    *out = (size_t)n;
    return L2CDB_OK;
}

static l2cdb_status parse_switch(const char *name, const char *value, bool *out, l2cdb_error *err) {
    static const char *const words[] = { "off", "on", "false", "true", "0", "1" };
    for (size_t i = 0; i < 6; i++) {
        if (strcmp(value, words[i]) == 0) {
            *out = i % 2 == 1;
            return L2CDB_OK;
        }
    }
    return l2c_fail(err, L2CDB_E_INVALID, "%s is \"%s\", expected on or off", name, value);
}

l2cdb_status l2cdb_set(l2cdb *db, const char *name, const char *value, l2cdb_error *err) {
    l2cdb_error_clear(err);
    pthread_mutex_lock(&db->lock);
    l2c_settings s = db->settings;
    pthread_mutex_unlock(&db->lock);
    l2cdb_status rc;
    if (strcmp(name, "hnsw.ef_search") == 0) {
        rc = parse_count(name, value, &s.ef_search, err);
    } else if (strcmp(name, "ivf.nprobe") == 0) {
        rc = parse_count(name, value, &s.nprobe, err);
    } else if (strcmp(name, "search.exact") == 0) {
        rc = parse_switch(name, value, &s.exact, err);
    } else {
        l2c_fail(err, L2CDB_E_INVALID, "there is no setting \"%s\"", name);
        rc = l2c_hint(err, "known are hnsw.ef_search, ivf.nprobe and search.exact");
    }
    if (rc == L2CDB_OK) {
        pthread_mutex_lock(&db->lock);
        db->settings = s;
        pthread_mutex_unlock(&db->lock);
    }
    return rc;
}

/* ---- Parameters ------------------------------------------------------------------------------ */

l2cdb_status l2c_index_params_read(l2c_index_params *out, const char *text, l2cdb_error *err) {
    char *copy = l2c_strdup(text), *rest = copy;
    if (copy == NULL) {
        return l2c_fail_nomem(err, strlen(text));
    }
    l2cdb_status rc = L2CDB_OK;
    char *word;
    while (rc == L2CDB_OK && (word = strtok_r(rest, " ,\t\n", &rest)) != NULL) {
        char *equals = strchr(word, '=');
        if (equals == NULL) {
            l2c_fail(err, L2CDB_E_INVALID, "\"%s\" is no parameter, expected name=value", word);
            rc = l2c_hint(err, "for example kind=hnsw m=32 quant=sq8");
            break;
        }
        *equals = '\0';
        char *value = equals + 1;
        size_t n = strlen(value);
        if (n >= 2 && (*value == '\'' || *value == '"') && value[n - 1] == *value) {
            value[n - 1] = '\0'; // quotes, as SQL writes them
            value++;
        }
        rc = l2c_index_params_set(out, word, value, err);
    }
    l2c_free(copy);
    return rc;
}

static void params_write(l2c_buf *b, const l2c_index_params *p) {
    l2c_buf_printf(b, "kind=%s quant=%s", l2c_index_kind_name(p->kind), l2c_quant_name(p->quant));
    const struct {
        const char *name;
        size_t value;
    } counts[] = { { "m", p->m },
                   { "ef_construction", p->ef_construction },
                   { "nlist", p->nlist },
                   { "ef_search", p->ef_search },
                   { "nprobe", p->nprobe } };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (counts[i].value != 0) {
            l2c_buf_printf(b, " %s=%zu", counts[i].name, counts[i].value);
        }
    }
}

/* ---- Create and drop ------------------------------------------------------------------------- */

typedef struct build_progress {
    l2cdb *db;
    l2c_meter meter;
    const char *phase;
} build_progress;

static bool build_tick(void *ctx, const char *phase, size_t done, size_t total) {
    build_progress *p = ctx;
    if (l2c_flag_raised(&p->db->interrupted)) {
        return false;
    }
    if (p->phase == NULL || strcmp(p->phase, phase) != 0) {
        p->phase = phase;
        l2c_meter_start(&p->meter, p->meter.fn, p->meter.ctx, phase, total);
    }
    return l2c_meter_tick(&p->meter, done, "");
}

static l2cdb_status build_with(l2cdb *db, l2cdb_target target, const l2c_index_params *params,
                               const char *stored, l2cdb_progress_fn progress, void *ctx,
                               l2cdb_error *err) {
    l2c_view *v;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_kind kind = l2c_target_kind(target);
    l2c_index *ix = NULL;
    build_progress p = { .db = db, .meter = { .fn = progress, .ctx = ctx } };
    rc = l2c_view_index(db, v, kind, &ix, err);
    if (rc == L2CDB_OK && ix == NULL) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database is empty", db->path);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_index_build(ix, params, build_tick, &p, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_set(db->store, kind == L2C_KIND_IMAGE ? "index_images" : "index_captions",
                           stored, err);
    }
    l2c_view_release(db, v);
    return rc;
}

l2cdb_status l2cdb_index_create(l2cdb *db, l2cdb_target target, const char *params,
                                l2cdb_progress_fn progress, void *ctx, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2c_index_params p = { .threads = db->options.threads };
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc == L2CDB_OK && params != NULL) {
        rc = l2c_index_params_read(&p, params, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_buf stored;
    l2c_buf_init(&stored);
    params_write(&stored, &p);
    l2c_db_enter(db);
    rc = stored.failed ? l2c_fail_nomem(err, 0)
                       : build_with(db, target, &p, stored.data, progress, ctx, err);
    l2c_db_leave(db);
    l2c_buf_fini(&stored);
    return rc;
}

l2cdb_status l2cdb_index_drop(l2cdb *db, l2cdb_target target, l2cdb_error *err) {
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    // Without an index the answer is exact; saying so keeps `auto` from building one again.
    l2c_index_params flat = { .kind = L2C_INDEX_FLAT, .threads = db->options.threads };
    l2c_db_enter(db);
    rc = build_with(db, target, &flat, "kind=flat", NULL, NULL, err);
    l2c_db_leave(db);
    return rc;
}

/* ---- Status and recall ----------------------------------------------------------------------- */

static void copy_status(l2cdb_index_info *out, const l2c_index_status *st) {
    *out = (l2cdb_index_info){ .rows = st->rows,
                               .base_rows = st->base_rows,
                               .fresh_rows = st->fresh_rows,
                               .tombstones = st->tombstones,
                               .file_bytes = st->file_bytes,
                               .memory_bytes = st->memory_bytes,
                               .build_s = st->build_s,
                               .recall = st->recall,
                               .building = st->building };
    snprintf(out->kind, sizeof out->kind, "%s", l2c_index_kind_name(st->kind));
    snprintf(out->quant, sizeof out->quant, "%s", l2c_quant_name(st->quant));
    snprintf(out->why, sizeof out->why, "%s", st->why);
    l2c_buf b;
    l2c_buf_init(&b);
    params_write(&b, &st->params);
    snprintf(out->params, sizeof out->params, "%s", b.data != NULL ? b.data : "");
    l2c_buf_fini(&b);
}

l2cdb_status l2cdb_index_status(l2cdb *db, l2cdb_target target, l2cdb_index_info *out,
                                l2cdb_error *err) {
    l2cdb_error_clear(err);
    *out = (l2cdb_index_info){ .recall = -1 };
    l2c_db_enter(db);
    l2c_view *v;
    l2c_index *ix = NULL;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_index(db, v, l2c_target_kind(target), &ix, err);
        if (rc == L2CDB_OK && ix != NULL) {
            l2c_index_status st;
            l2c_index_get_status(ix, &st);
            copy_status(out, &st);
        } else if (rc == L2CDB_OK) {
            snprintf(out->kind, sizeof out->kind, "none");
            snprintf(out->why, sizeof out->why, "the database is empty");
        }
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    return rc;
}

static l2cdb_status recall_of(l2cdb *db, l2c_view *v, l2c_kind kind, size_t k, size_t samples,
                              double wanted, bool apply, l2cdb_index_recall *out,
                              l2cdb_error *err) {
    l2c_index *ix;
    l2cdb_status rc = l2c_view_index(db, v, kind, &ix, err);
    if (rc == L2CDB_OK && ix == NULL) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database is empty", db->path);
    }
    l2c_recall_result r;
    if (rc == L2CDB_OK) {
        rc = l2c_index_recall(ix, &r, k, samples, wanted, 1, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    *out = (l2cdb_index_recall){ .samples = r.samples,
                                 .k = r.k,
                                 .recall = r.recall,
                                 .query_ms = r.query_ms,
                                 .exact_ms = r.exact_ms,
                                 .wanted_param = r.wanted_param,
                                 .wanted_recall = r.wanted_recall };
    if (apply && r.wanted_param != 0) {
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        bool graph = st.kind == L2C_INDEX_HNSW;
        l2c_index_set_search_params(ix, graph ? r.wanted_param : 0, graph ? 0 : r.wanted_param);
        rc = l2c_index_save(ix, err);
    }
    return rc;
}

l2cdb_status l2cdb_measure_recall(l2cdb *db, l2cdb_target target, size_t k, size_t samples,
                                  double wanted, bool apply, l2cdb_index_recall *out,
                                  l2cdb_error *err) {
    l2cdb_error_clear(err);
    *out = (l2cdb_index_recall){ 0 };
    l2c_db_enter(db);
    l2c_view *v;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = recall_of(db, v, l2c_target_kind(target), k != 0 ? k : 10, samples, wanted, apply, out,
                       err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    return rc;
}
