/* Own vectors: in from .npy with a line of metadata a row, out to .npy, streamed in both
 * directions, so that any number of rows that fits the disk fits the memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/vec.h"
#include "engine/engine.h"
#include "engine/npy.h"

#define IMPORT_ROWS 4096 /* a transaction */
#define EXPORT_ROWS 1024
#define META_LINE_MAX (1 << 20)

/* ---- Metadata lines -------------------------------------------------------------------------- */

typedef struct meta_reader {
    FILE *file; /* NULL: there is no metadata */
    const char *path;
    size_t line;
    l2c_buf text;
} meta_reader;

/* The next line without its end; E_FORMAT at the end of the file. */
static l2cdb_status meta_line(meta_reader *m, l2cdb_error *err) {
    l2c_buf_clear(&m->text);
    m->line++;
    int c;
    while ((c = getc(m->file)) != EOF && c != '\n') {
        l2c_buf_putc(&m->text, (char)c);
        if (m->text.size > META_LINE_MAX) {
            return l2c_fail(err, L2CDB_E_LIMIT, "%s: line %zu is longer than %d bytes", m->path,
                            m->line, META_LINE_MAX);
        }
    }
    if (m->text.failed) {
        return l2c_fail_nomem(err, m->text.size);
    }
    if (c == EOF && m->text.size == 0) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: ends after %zu lines, expected one a row",
                        m->path, m->line - 1);
    }
    return L2CDB_OK;
}

/* {"path":…, "tags":…, others} → record; what is neither path nor tags becomes `meta`. `tree` owns
 * the strings, *meta is freed by the caller with free(). */
static l2cdb_status meta_apply(meta_reader *m, json_t **tree, char **meta, l2c_image_record *r,
                               l2cdb_error *err) {
    l2cdb_status rc = meta_line(m, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    char what[4200];
    snprintf(what, sizeof what, "%s: line %zu", m->path, m->line);
    const char *text = m->text.data != NULL ? m->text.data : "";
    rc = l2c_json_parse(tree, text, m->text.size, what, err);
    if (rc == L2CDB_OK && !json_is_object(*tree)) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: is no JSON object", what);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_json_get_string(*tree, "path", &r->path, false, what, err);
    }
    json_t *tags = rc == L2CDB_OK ? json_object_get(*tree, "tags") : NULL;
    if (json_is_string(tags)) {
        r->tags = json_string_value(tags);
    }
    if (rc == L2CDB_OK) {
        json_t *others = json_copy(*tree);
        json_object_del(others, "path");
        if (json_is_string(tags)) {
            json_object_del(others, "tags");
        }
        if (json_object_size(others) > 0) {
            *meta = json_dumps(others, JSON_COMPACT | JSON_SORT_KEYS);
            r->meta = *meta;
            rc = *meta != NULL ? L2CDB_OK : l2c_fail_nomem(err, m->text.size);
        }
        json_decref(others);
    }
    return rc;
}

/* ---- Import ---------------------------------------------------------------------------------- */

static l2cdb_status put_row(l2cdb *db, int64_t space, meta_reader *m, float *v, size_t width,
                            uint64_t row, l2cdb_error *err) {
    if (!l2c_vec_finite(v, width) || !(l2c_vec_normalize(v, width) > 1e-12f)) {
        l2c_fail(err, L2CDB_E_INVALID, "row %llu is zero or not finite and has no direction",
                 (unsigned long long)row);
        return l2c_hint(err, "remove it; what came before it has been imported");
    }
    l2c_image_record r = { .status = "ok" };
    json_t *tree = NULL;
    char *meta = NULL;
    l2cdb_status rc = m->file != NULL ? meta_apply(m, &tree, &meta, &r, err) : L2CDB_OK;
    if (rc == L2CDB_OK && r.path != NULL) {
        l2c_path_state known;
        rc = l2c_images_find_path(db->store, r.path, &known, err);
        if (rc == L2CDB_OK && known.image_id != 0) {
            rc = l2c_fail(err, L2CDB_E_EXISTS, "row %llu: path %s is in the database already",
                          (unsigned long long)row, r.path);
        }
    }
    if (rc == L2CDB_OK) {
        rc = l2c_images_put(db->store, &r, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_vectors_put(db->store, space, L2C_KIND_IMAGE, r.id, v, width, err);
    }
    free(meta);
    json_decref(tree);
    return rc;
}

static l2cdb_status put_batch(l2cdb *db, int64_t space, meta_reader *m, float *v, size_t n,
                              size_t width, uint64_t first, l2cdb_error *err) {
    l2cdb_status rc = l2c_store_begin(db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        rc = put_row(db, space, m, v + i * width, width, first + i, err);
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(db->store, err);
    }
    l2c_store_rollback(db->store);
    return rc;
}

static l2cdb_status import_rows(l2cdb *db, l2c_npy *in, meta_reader *m, l2c_meter *meter,
                                uint64_t *rows, l2cdb_error *err) {
    l2c_generation g;
    l2cdb_status rc = l2c_view_ensure_external(db, in->width, err);
    if (rc == L2CDB_OK) {
        rc = l2c_generations_active(db->store, &g, err);
    }
    float *v = l2c_alloc_aligned(IMPORT_ROWS * in->width, sizeof *v);
    if (rc == L2CDB_OK && v == NULL) {
        rc = l2c_fail_nomem(err, IMPORT_ROWS * in->width * sizeof *v);
    }
    while (rc == L2CDB_OK && *rows < in->rows) {
        size_t n = in->rows - *rows < IMPORT_ROWS ? in->rows - (size_t)*rows : IMPORT_ROWS;
        rc = l2c_db_poll(db, err);
        if (rc == L2CDB_OK) {
            rc = l2c_npy_read(in, v, n, err);
        }
        if (rc == L2CDB_OK) {
            rc = put_batch(db, g.space[L2C_KIND_IMAGE], m, v, n, in->width, *rows, err);
        }
        if (rc == L2CDB_OK) {
            *rows += n;
            if (!l2c_meter_tick(meter, *rows, "")) {
                rc = l2c_fail(err, L2CDB_E_CANCELLED, "cancelled after %llu rows",
                              (unsigned long long)*rows);
            }
        }
    }
    l2c_free(v);
    return rc;
}

/* Opens the index so that it is built now, in the background, and not at the first question. */
static void prepare_index(l2cdb *db) {
    l2c_view *v;
    l2cdb_error err;
    if (l2c_view_get(db, &v, &err) == L2CDB_OK) {
        l2c_index *ignored;
        if (l2c_view_index(db, v, L2C_KIND_IMAGE, &ignored, &err) != L2CDB_OK) {
            l2c_log(L2CDB_LOG_WARN, "index not opened: %s", err.message);
        }
        l2c_view_release(db, v);
        l2c_view_catch_up(db);
    }
}

l2cdb_status l2cdb_import_vectors(l2cdb *db, const char *npy_path, const char *meta_path,
                                  uint64_t *rows, l2cdb_progress_fn progress, void *ctx,
                                  l2cdb_error *err) {
    l2cdb_error_clear(err);
    uint64_t ignored;
    rows = rows != NULL ? rows : &ignored;
    *rows = 0;
    l2c_npy in = { 0 };
    meta_reader m = { .path = meta_path };
    l2c_buf_init(&m.text);
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc == L2CDB_OK) {
        rc = l2c_npy_open(&in, npy_path, err);
    }
    if (rc == L2CDB_OK && meta_path != NULL && (m.file = fopen(meta_path, "rb")) == NULL) {
        rc = l2c_fail_errno(err, errno, "%s: cannot be opened", meta_path);
    }
    if (rc == L2CDB_OK) {
        l2c_meter meter;
        l2c_meter_start(&meter, progress, ctx, "import", in.rows);
        l2c_db_enter(db);
        rc = import_rows(db, &in, &m, &meter, rows, err);
        if (*rows > 0) {
            prepare_index(db);
        }
        l2c_db_leave(db);
    }
    if (m.file != NULL) {
        fclose(m.file);
    }
    l2c_buf_fini(&m.text);
    l2c_npy_close(&in);
    return rc;
}

/* ---- Export ---------------------------------------------------------------------------------- */

typedef struct npy_out {
    l2c_writer writer;
    const char *descr;
    size_t width; /* 0: one dimension */
} npy_out;

static l2cdb_status out_open(npy_out *o, const char *path, l2cdb_error *err) {
    char header[L2C_NPY_HEADER_BYTES];
    l2c_npy_header(header, o->descr, 0, o->width);
    l2cdb_status rc = l2c_writer_open(&o->writer, path, err);
    return rc == L2CDB_OK ? l2c_writer_write(&o->writer, header, sizeof header, err) : rc;
}

static l2cdb_status out_commit(npy_out *o, size_t rows, l2cdb_error *err) {
    char header[L2C_NPY_HEADER_BYTES];
    l2c_npy_header(header, o->descr, rows, o->width);
    l2cdb_status rc = l2c_writer_patch(&o->writer, 0, header, sizeof header, err);
    return rc == L2CDB_OK ? l2c_writer_commit(&o->writer, err) : rc;
}

static l2cdb_status export_rows(l2cdb *db, const l2c_view *v, l2c_kind kind, npy_out *vectors,
                                npy_out *ids, uint64_t *rows, l2cdb_error *err) {
    size_t width = v->generation.width, got = 1;
    int64_t *id = l2c_alloc(EXPORT_ROWS, sizeof *id), last = 0;
    float *block = l2c_alloc_aligned(EXPORT_ROWS * width, sizeof *block);
    l2cdb_status rc = id != NULL && block != NULL
                          ? L2CDB_OK
                          : l2c_fail_nomem(err, EXPORT_ROWS * width * sizeof *block);
    while (rc == L2CDB_OK && got > 0) {
        rc = l2c_vectors_pull(db->store, v->generation.space[kind], kind, width, id, block,
                              EXPORT_ROWS, &got, last, err);
        if (rc == L2CDB_OK && got > 0) {
            rc = l2c_writer_write(&vectors->writer, block, got * width * sizeof *block, err);
            last = id[got - 1];
            *rows += got;
        }
        if (rc == L2CDB_OK && got > 0 && ids != NULL) {
            rc = l2c_writer_write(&ids->writer, id, got * sizeof *id, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_db_poll(db, err);
        }
    }
    l2c_free(id);
    l2c_free(block);
    return rc;
}

static l2cdb_status export_view(l2cdb *db, const l2c_view *v, l2cdb_target target,
                                const char *npy_path, const char *ids_path, uint64_t *rows,
                                l2cdb_error *err) {
    if (v->generation.id == 0) {
        return l2c_fail(err, L2CDB_E_NOTFOUND, "%s: the database is empty", db->path);
    }
    npy_out vectors = { .writer = { .fd = -1 }, .descr = "<f4", .width = v->generation.width };
    npy_out ids = { .writer = { .fd = -1 }, .descr = "<i8" };
    l2cdb_status rc = out_open(&vectors, npy_path, err);
    if (rc == L2CDB_OK && ids_path != NULL) {
        rc = out_open(&ids, ids_path, err);
    }
    if (rc == L2CDB_OK) {
        rc = export_rows(db, v, l2c_target_kind(target), &vectors, ids_path != NULL ? &ids : NULL,
                         rows, err);
    }
    if (rc == L2CDB_OK && ids_path != NULL) {
        rc = out_commit(&ids, (size_t)*rows, err);
    }
    if (rc == L2CDB_OK) {
        rc = out_commit(&vectors, (size_t)*rows, err);
    }
    l2c_writer_abort(&vectors.writer);
    l2c_writer_abort(&ids.writer);
    return rc;
}

l2cdb_status l2cdb_export_vectors(l2cdb *db, l2cdb_target target, const char *npy_path,
                                  const char *ids_path, uint64_t *rows, l2cdb_error *err) {
    l2cdb_error_clear(err);
    uint64_t ignored;
    rows = rows != NULL ? rows : &ignored;
    *rows = 0;
    l2c_db_enter(db);
    l2c_view *v;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc == L2CDB_OK) {
        rc = export_view(db, v, target, npy_path, ids_path, rows, err);
        l2c_view_release(db, v);
    }
    l2c_db_leave(db);
    return rc;
}

/* ---- Query files ----------------------------------------------------------------------------- */

l2cdb_status l2cdb_vectors_read(const char *npy_path, float **out, size_t *rows, size_t *width,
                                l2cdb_error *err) {
    *out = NULL;
    l2cdb_error_clear(err);
    l2c_npy in;
    l2cdb_status rc = l2c_npy_open(&in, npy_path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t count;
    if (l2c_mul_size(&count, in.rows, in.width)) {
        *out = l2c_alloc_aligned(count, sizeof **out);
    }
    rc = *out != NULL ? l2c_npy_read(&in, *out, in.rows, err)
                      : l2c_fail_nomem(err, in.rows * in.width * sizeof **out);
    if (rc != L2CDB_OK) {
        l2c_free(*out);
        *out = NULL;
        l2c_context(err, "%s", npy_path);
    }
    *rows = in.rows;
    *width = in.width;
    l2c_npy_close(&in);
    return rc;
}

void l2cdb_vectors_free(float *v) {
    l2c_free(v);
}
