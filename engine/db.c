/* The handle: open, close, interrupt, the models it has loaded, and what the database says about
 * itself. How a question finds its generation and its index is in view.c. */
#define _XOPEN_SOURCE 700 /* realpath */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/cpu.h"
#include "engine/base/file.h"
#include "engine/engine.h"
#include "engine/open.h"

struct l2c_db_model_entry {
    struct l2c_db_model_entry *next;
    char *path; /* "": built in */
    l2c_model *model;
};

/* ---- Calls and interrupts -------------------------------------------------------------------- */

void l2c_db_enter(l2cdb *db) {
    pthread_mutex_lock(&db->lock);
    if (db->calls == 0) {
        l2c_flag_set(&db->interrupted, false);
    }
    db->calls++;
    pthread_mutex_unlock(&db->lock);
}

void l2c_db_leave(l2cdb *db) {
    pthread_mutex_lock(&db->lock);
    db->calls--;
    pthread_mutex_unlock(&db->lock);
}

void l2cdb_interrupt(l2cdb *db) {
    l2c_flag_set(&db->interrupted, true);
}

l2cdb_status l2c_db_poll(l2cdb *db, l2cdb_error *err) {
    return l2c_flag_raised(&db->interrupted) ? l2c_fail(err, L2CDB_E_CANCELLED, "interrupted")
                                             : L2CDB_OK;
}

l2cdb_status l2c_db_writable(l2cdb *db, l2cdb_error *err) {
    if (!db->options.read_only) {
        return L2CDB_OK;
    }
    l2c_fail(err, L2CDB_E_DENIED, "%s: opened read-only", db->path);
    return l2c_hint(err, "open it for writing");
}

/* ---- Models ---------------------------------------------------------------------------------- */

static l2c_model *find_model(const l2cdb *db, const char *path) {
    for (const struct l2c_db_model_entry *e = db->models; e != NULL; e = e->next) {
        if (strcmp(e->path, path) == 0) {
            return e->model;
        }
    }
    return NULL;
}

static l2cdb_status load_model(l2cdb *db, const char *path, l2c_model **out, l2cdb_error *err) {
    l2c_model_options o = { .path = path, .threads = db->options.threads };
    l2cdb_status rc = l2c_precision_parse(&o.precision, db->options.precision, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    struct l2c_db_model_entry *e = l2c_calloc(1, sizeof *e);
    if (e == NULL || (e->path = l2c_strdup(path)) == NULL) {
        l2c_free(e);
        return l2c_fail_nomem(err, sizeof *e);
    }
    double start = l2c_now();
    rc = l2c_model_open(&e->model, &o, err);
    if (rc != L2CDB_OK) {
        l2c_free(e->path);
        l2c_free(e);
        return rc;
    }
    l2c_log(L2CDB_LOG_INFO, "model loaded name=%s ms=%.0f", l2c_model_get_info(e->model)->name,
            (l2c_now() - start) * 1e3);
    e->next = db->models;
    db->models = e;
    *out = e->model;
    return L2CDB_OK;
}

l2cdb_status l2c_db_model(l2cdb *db, const char *path, l2c_model **out, l2cdb_error *err) {
    *out = NULL;
    if (db->options.no_model) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: opened without a model, nothing can be encoded",
                 db->path);
        return l2c_hint(err, "search with vectors, or open it with its model");
    }
    path = path != NULL ? path : "";
    pthread_mutex_lock(&db->model_lock);
    l2cdb_status rc = L2CDB_OK;
    *out = find_model(db, path);
    if (*out == NULL) {
        rc = load_model(db, path, out, err);
    }
    pthread_mutex_unlock(&db->model_lock);
    return rc;
}

/* ---- Open and close -------------------------------------------------------------------------- */

void l2cdb_open_options_init(l2cdb_open_options *o) {
    *o = (l2cdb_open_options){ .create = true, .exif_rotate = true };
}

static l2cdb_status copy_options(l2cdb *db, const l2cdb_open_options *o, l2cdb_error *err) {
    if (o != NULL) {
        db->options = *o;
    } else {
        l2cdb_open_options_init(&db->options);
    }
    l2cdb_open_options *own = &db->options;
    const char *model = own->model, *precision = own->precision;
    own->model = own->precision = NULL;
    if (model != NULL && *model != '\0') {
        // A model is found again from any directory; a name that does not resolve is reported
        // when it is loaded.
        char *real = realpath(model, NULL);
        own->model = l2c_strdup(real != NULL ? real : model);
        free(real);
    } else if (model != NULL) {
        own->model = l2c_strdup("");
    }
    own->precision = l2c_strdup(precision != NULL ? precision : "auto");
    if (own->precision == NULL || (model != NULL && own->model == NULL)) {
        return l2c_fail_nomem(err, 0);
    }
    if (own->threads == 0) {
        own->threads = l2c_cpu_count();
    }
    if (own->memory_max == 0) {
        long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
        own->memory_max =
            pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes / 2 : UINT64_C(1) << 30;
    }
    l2c_precision ignored;
    return l2c_precision_parse(&ignored, own->precision, err);
}

/* ":memory:" is a file in a directory of its own, so that several connections can share it. */
static l2cdb_status make_temporary(l2cdb *db, char **path, l2cdb_error *err) {
    const char *tmp = getenv("TMPDIR");
    db->temp_dir = l2c_path_join(tmp != NULL && *tmp != '\0' ? tmp : "/tmp", "l2cdb-XXXXXX");
    if (db->temp_dir == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    if (mkdtemp(db->temp_dir) == NULL) {
        l2cdb_status rc = l2c_fail_errno(err, errno,
                                         "%s: no directory could be made for a"
                                         " temporary database",
                                         db->temp_dir);
        l2c_free(db->temp_dir);
        db->temp_dir = NULL;
        return rc;
    }
    *path = l2c_path_join(db->temp_dir, "memory.l2cdb");
    return *path != NULL ? L2CDB_OK : l2c_fail_nomem(err, 0);
}

static void remove_temporary(const char *dir) {
    DIR *d = opendir(dir);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char *name = l2c_path_join(dir, e->d_name);
        if (name != NULL && e->d_name[0] != '.') {
            unlink(name);
        }
        l2c_free(name);
    }
    if (d != NULL) {
        closedir(d);
    }
    rmdir(dir);
}

static l2cdb_status read_properties(l2cdb *db, l2cdb_error *err) {
    char *value;
    l2cdb_status rc = l2c_store_get(db->store, "exif_rotate", &value, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (value != NULL) {
        db->exif_rotate = strcmp(value, "1") == 0;
        l2c_free(value);
        return L2CDB_OK;
    }
    db->exif_rotate = db->options.exif_rotate;
    return db->options.read_only
               ? L2CDB_OK
               : l2c_store_set(db->store, "exif_rotate", db->exif_rotate ? "1" : "0", err);
}

static l2cdb_status open_store(l2cdb *db, const char *path, l2cdb_error *err) {
    char *temporary = NULL;
    l2cdb_status rc = L2CDB_OK;
    if (strcmp(path, ":memory:") == 0) {
        rc = make_temporary(db, &temporary, err);
    }
    l2c_store_options o = { .read_only = db->options.read_only, .create = db->options.create };
    if (rc == L2CDB_OK) {
        rc = l2c_store_open(&db->store, temporary != NULL ? temporary : path, &o, err);
    }
    l2c_free(temporary);
    if (rc == L2CDB_OK && !db->options.read_only) {
        l2c_care_sweep(db);
    }
    return rc == L2CDB_OK ? read_properties(db, err) : rc;
}

l2cdb_status l2cdb_open(l2cdb **out, const char *path, const l2cdb_open_options *options,
                        l2cdb_error *err) {
    *out = NULL;
    l2cdb_error_clear(err);
    if (path == NULL || *path == '\0') {
        return l2c_fail(err, L2CDB_E_INVALID, "no database was named");
    }
    l2cdb *db = l2c_calloc(1, sizeof *db);
    if (db == NULL) {
        return l2c_fail_nomem(err, sizeof *db);
    }
    pthread_mutex_init(&db->lock, NULL);
    pthread_mutex_init(&db->model_lock, NULL);
    pthread_mutex_init(&db->build_lock, NULL);
    pthread_cond_init(&db->build_done, NULL);
    pthread_mutex_init(&db->sql_lock, NULL);
    db->path = l2c_strdup(path);
    l2cdb_status rc = db->path != NULL ? copy_options(db, options, err) : l2c_fail_nomem(err, 0);
    if (rc == L2CDB_OK) {
        rc = l2c_query_cache_new(&db->cache, err);
    }
    if (rc == L2CDB_OK) {
        rc = open_store(db, path, err);
    }
    if (rc != L2CDB_OK) {
        l2cdb_close(db);
        return rc;
    }
    *out = db;
    return L2CDB_OK;
}

static void free_models(l2cdb *db) {
    while (db->models != NULL) {
        struct l2c_db_model_entry *e = db->models;
        db->models = e->next;
        l2c_model_close(e->model);
        l2c_free(e->path);
        l2c_free(e);
    }
}

void l2cdb_close(l2cdb *db) {
    if (db == NULL) {
        return;
    }
    l2c_view_stop_builds(db);
    if (db->sql_close != NULL) {
        db->sql_close(db);
    }
    l2c_view_release(db, db->view);
    l2c_query_cache_free(db->cache);
    free_models(db);
    l2c_store_close(db->store);
    if (db->temp_dir != NULL) {
        remove_temporary(db->temp_dir);
        l2c_free(db->temp_dir);
    }
    pthread_mutex_destroy(&db->lock);
    pthread_mutex_destroy(&db->model_lock);
    pthread_mutex_destroy(&db->build_lock);
    pthread_cond_destroy(&db->build_done);
    pthread_mutex_destroy(&db->sql_lock);
    l2c_free((void *)(uintptr_t)db->options.model);
    l2c_free((void *)(uintptr_t)db->options.precision);
    l2c_free(db->path);
    l2c_free(db);
}

const char *l2cdb_path(const l2cdb *db) {
    return db->path;
}

/* ---- Version --------------------------------------------------------------------------------- */

const char *l2cdb_version(void) {
    return L2CDB_VERSION;
}

char *l2cdb_version_verbose(void) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_printf(&b, "l2cdb: %s\n", L2CDB_VERSION);
    l2c_encoders_describe(&b);
    if (b.size > 0 && b.data[b.size - 1] != '\n') {
        l2c_buf_putc(&b, '\n');
    }
    l2c_buf_puts(&b, "index: ");
    l2c_index_describe(&b);
    if (b.size > 0 && b.data[b.size - 1] != '\n') {
        l2c_buf_putc(&b, '\n');
    }
    l2c_buf_puts(&b, "storage: ");
    l2c_store_describe(&b);
    l2c_buf_putc(&b, '\n');
    return l2c_buf_take(&b);
}

void l2cdb_string_free(char *s) {
    l2c_free(s);
}

/* ---- Import of models ------------------------------------------------------------------------ */

typedef struct import_progress {
    l2c_meter meter;
    bool started;
} import_progress;

static bool import_tick(void *ctx, const char *phase, uint64_t done, uint64_t total) {
    import_progress *p = ctx;
    if (!p->started || p->meter.phase != phase) {
        l2c_meter_start(&p->meter, p->meter.fn, p->meter.ctx, phase, total);
        p->started = true;
    }
    p->meter.total = total;
    return l2c_meter_tick(&p->meter, done, "");
}

l2cdb_status l2cdb_import_model(const l2cdb_import_model_options *o, l2cdb_error *err) {
    l2cdb_error_clear(err);
    import_progress p = { .meter = { .fn = o->progress, .ctx = o->ctx } };
    l2c_import_options in = { .vision = o->vision,
                              .llm = o->llm,
                              .lora = o->lora,
                              .out_dir = o->out_dir,
                              .progress = import_tick,
                              .progress_ctx = &p };
    l2cdb_status rc =
        o->precision != NULL ? l2c_precision_parse(&in.precision, o->precision, err) : L2CDB_OK;
    return rc == L2CDB_OK ? l2c_import(&in, err) : rc;
}
