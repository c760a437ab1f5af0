/* Records of photos, their paths, originals and thumbnails.
 *
 * A record is a content: files with equal bytes share one, and image_path says where it lives.
 * image.path repeats the first of them, so that the common question needs no join. */
#include "storage/store_conn.h"

#include <string.h>
#include <time.h>

static bool hash_is_zero(const l2c_hash *h) {
    static const l2c_hash zero;
    return memcmp(h, &zero, sizeof zero) == 0;
}

static void bind_hash(sqlite3_stmt *stmt, int i, const l2c_hash *h) {
    if (hash_is_zero(h)) {
        sqlite3_bind_null(stmt, i);
    } else {
        sqlite3_bind_blob(stmt, i, h->bytes, sizeof h->bytes, SQLITE_STATIC);
    }
}

l2cdb_status l2c_images_find_path(l2c_store *s, const char *path, l2c_path_state *out,
                                  l2cdb_error *err) {
    *out = (l2c_path_state){ 0 };
    l2c_read r;
    l2cdb_status rc =
        l2c_read_begin(&r, s,
                       "SELECT p.image_id, p.size_bytes, p.mtime_ns, i.status = 'error',"
                       " (SELECT count(*) FROM image_path q WHERE q.image_id = p.image_id)"
                       " FROM image_path p JOIN image i ON i.id = p.image_id WHERE p.path = ?1",
                       err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_bind_text(r.stmt, 1, path);
    if (l2c_read_row(&r, "looking a path up", &rc, err)) {
        out->image_id = sqlite3_column_int64(r.stmt, 0);
        out->size_bytes = sqlite3_column_int64(r.stmt, 1);
        out->mtime_ns = sqlite3_column_int64(r.stmt, 2);
        out->failed = sqlite3_column_int(r.stmt, 3) != 0;
        out->paths = (size_t)sqlite3_column_int64(r.stmt, 4);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_images_find_hash(l2c_store *s, const l2c_hash *hash, int64_t *id, bool *failed,
                                  l2cdb_error *err) {
    *id = 0;
    l2c_read r;
    l2cdb_status rc =
        l2c_read_begin(&r, s, "SELECT id, status = 'error' FROM image WHERE hash = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    bind_hash(r.stmt, 1, hash);
    if (l2c_read_row(&r, "looking a content up", &rc, err)) {
        *id = sqlite3_column_int64(r.stmt, 0);
        if (failed != NULL) {
            *failed = sqlite3_column_int(r.stmt, 1) != 0;
        }
    }
    l2c_read_end(&r);
    return rc;
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* Runs a one-parameter statement on an id. */
static l2cdb_status run_on(l2c_store_conn *c, const char *sql, int64_t id, const char *what,
                           l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(c, &stmt, sql, err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, id);
        rc = l2c_store_conn_run(c, stmt, what, err);
    }
    return rc;
}

static l2cdb_status forget_captions(l2c_store *s, l2c_store_conn *c, int64_t image_id,
                                    l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc =
        l2c_store_conn_prepare(c, &stmt, "SELECT id FROM caption WHERE image_id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(stmt, 1, image_id);
    while (l2c_store_conn_row(c, stmt, "looking for captions", &rc, err)) {
        rc = l2c_vectors_forget(s, c, L2C_KIND_CAPTION, sqlite3_column_int64(stmt, 0), err);
    }
    sqlite3_reset(stmt);
    return rc;
}

static l2cdb_status delete_record(l2c_store *s, l2c_store_conn *c, int64_t id, l2cdb_error *err) {
    static const char *const statements[] = {
        "DELETE FROM caption WHERE image_id = ?1",  "DELETE FROM thumbnail WHERE image_id = ?1",
        "DELETE FROM original WHERE image_id = ?1", "DELETE FROM image_path WHERE image_id = ?1",
        "DELETE FROM image WHERE id = ?1",
    };
    l2cdb_status rc = forget_captions(s, c, id, err);
    if (rc == L2CDB_OK) {
        rc = l2c_vectors_forget(s, c, L2C_KIND_IMAGE, id, err);
    }
    for (size_t i = 0; i < sizeof statements / sizeof *statements && rc == L2CDB_OK; i++) {
        rc = run_on(c, statements[i], id, "deleting a photo", err);
    }
    return rc;
}

/* After a path has left record `id`: the record goes with its last path, or takes another one as
 * its first. */
static l2cdb_status settle_paths(l2c_store *s, l2c_store_conn *c, int64_t id, bool *deleted,
                                 l2cdb_error *err) {
    l2cdb_status rc =
        run_on(c,
               "UPDATE image SET path = (SELECT p.path FROM image_path p WHERE p.image_id = ?1"
               " ORDER BY p.rowid LIMIT 1) WHERE id = ?1 AND"
               " NOT EXISTS (SELECT 1 FROM image_path p WHERE p.path = image.path"
               " AND p.image_id = ?1)",
               id, "moving a path", err);
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt, "SELECT path IS NULL FROM image WHERE id = ?1", err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(stmt, 1, id);
    bool gone =
        l2c_store_conn_row(c, stmt, "moving a path", &rc, err) && sqlite3_column_int(stmt, 0) != 0;
    sqlite3_reset(stmt);
    if (deleted != NULL) {
        *deleted = gone;
    }
    return gone ? delete_record(s, c, id, err) : rc;
}

static l2cdb_status owner_of_path(l2c_store_conn *c, const char *path, int64_t *id,
                                  l2cdb_error *err) {
    *id = 0;
    sqlite3_stmt *stmt;
    l2cdb_status rc =
        l2c_store_conn_prepare(c, &stmt, "SELECT image_id FROM image_path WHERE path = ?1", err);
    if (rc == L2CDB_OK) {
        l2c_bind_text(stmt, 1, path);
        if (l2c_store_conn_row(c, stmt, "looking a path up", &rc, err)) {
            *id = sqlite3_column_int64(stmt, 0);
        }
        sqlite3_reset(stmt);
    }
    return rc;
}

static l2cdb_status put_path(l2c_store *s, l2c_store_conn *c, int64_t id, const char *path,
                             int64_t size_bytes, int64_t mtime_ns, l2cdb_error *err) {
    int64_t before;
    l2cdb_status rc = owner_of_path(c, path, &before, err);
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt,
                                    "INSERT INTO image_path(path, image_id, size_bytes, mtime_ns)"
                                    " VALUES(?1, ?2, ?3, ?4) ON CONFLICT(path) DO UPDATE SET"
                                    " image_id = ?2, size_bytes = ?3, mtime_ns = ?4",
                                    err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_bind_text(stmt, 1, path);
    sqlite3_bind_int64(stmt, 2, id);
    sqlite3_bind_int64(stmt, 3, size_bytes);
    sqlite3_bind_int64(stmt, 4, mtime_ns);
    rc = l2c_store_conn_run(c, stmt, "storing a path", err);
    if (rc == L2CDB_OK && before != 0 && before != id) {
        rc = settle_paths(s, c, before, NULL, err);
    }
    return rc;
}

static l2cdb_status put_original(l2c_store_conn *c, const l2c_image_record *r, l2cdb_error *err) {
    if (r->original == NULL) {
        return run_on(c, "DELETE FROM original WHERE image_id = ?1", r->id, "storing a photo", err);
    }
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt, "INSERT OR REPLACE INTO original(image_id, data) VALUES(?1, ?2)", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, r->id);
        sqlite3_bind_blob64(stmt, 2, r->original, r->original_size, SQLITE_STATIC);
        rc = l2c_store_conn_run(c, stmt, "storing a photo's bytes", err);
    }
    return rc;
}

/* Whether the stored record has another content, or is to lose its vectors. */
static l2cdb_status content_changes(l2c_store_conn *c, const l2c_image_record *r, bool *out,
                                    l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc =
        l2c_store_conn_prepare(c, &stmt, "SELECT hash IS NOT ?2 FROM image WHERE id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(stmt, 1, r->id);
    bind_hash(stmt, 2, &r->hash);
    if (l2c_store_conn_row(c, stmt, "reading a photo's record", &rc, err)) {
        *out = sqlite3_column_int(stmt, 0) != 0 || strcmp(r->status, "ok") != 0;
    } else if (rc == L2CDB_OK) {
        rc = l2c_record_missing(L2C_KIND_IMAGE, r->id, err);
    }
    sqlite3_reset(stmt);
    return rc;
}

#define IMAGE_COLUMNS                                                                              \
    "path, hash, size_bytes, width, height, format, taken_at, camera, orientation, latitude,"      \
    " longitude, status, error, tags, meta"

static void bind_record(sqlite3_stmt *stmt, const l2c_image_record *r) {
    l2c_bind_text(stmt, 1, r->path);
    bind_hash(stmt, 2, &r->hash);
    sqlite3_bind_int64(stmt, 3, r->size_bytes);
    if (r->width != 0) {
        sqlite3_bind_int64(stmt, 4, r->width);
        sqlite3_bind_int64(stmt, 5, r->height);
    }
    l2c_bind_text(stmt, 6, r->format);
    l2c_bind_text(stmt, 7, r->taken_at);
    l2c_bind_text(stmt, 8, r->camera);
    if (r->orientation != 0) {
        sqlite3_bind_int(stmt, 9, r->orientation);
    }
    if (r->has_gps) {
        sqlite3_bind_double(stmt, 10, r->latitude);
        sqlite3_bind_double(stmt, 11, r->longitude);
    }
    l2c_bind_text(stmt, 12, r->status);
    l2c_bind_text(stmt, 13, r->error);
    l2c_bind_text(stmt, 14, r->tags);
    l2c_bind_text(stmt, 15, r->meta);
}

static l2cdb_status insert_record(l2c_store_conn *c, l2c_image_record *r, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc =
        l2c_store_conn_prepare(c, &stmt,
                               "INSERT INTO image(" IMAGE_COLUMNS ", added_at)"
                               " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)",
                               err);
    if (rc == L2CDB_OK) {
        bind_record(stmt, r);
        sqlite3_bind_int64(stmt, 16, (int64_t)time(NULL));
        rc = l2c_store_conn_run(c, stmt, "storing a photo's record", err);
        r->id = sqlite3_last_insert_rowid(c->db);
    }
    if (rc == L2CDB_OK && r->id > L2C_ITEM_MAX) {
        rc = l2c_fail(err, L2CDB_E_LIMIT, "photo ids have passed %lld", (long long)L2C_ITEM_MAX);
    }
    return rc;
}

static l2cdb_status update_record(l2c_store *s, l2c_store_conn *c, const l2c_image_record *r,
                                  l2cdb_error *err) {
    bool changes = false;
    l2cdb_status rc = content_changes(c, r, &changes, err);
    if (rc == L2CDB_OK && changes) {
        rc = l2c_vectors_forget(s, c, L2C_KIND_IMAGE, r->id, err);
    }
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt,
                                    "UPDATE image SET (" IMAGE_COLUMNS ") = (coalesce(?1, path),"
                                    "?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,"
                                    "coalesce(?14, tags),coalesce(?15, meta)) WHERE id = ?16",
                                    err);
    }
    if (rc == L2CDB_OK) {
        bind_record(stmt, r);
        sqlite3_bind_int64(stmt, 16, r->id);
        rc = l2c_store_conn_run(c, stmt, "updating a photo's record", err);
    }
    return rc;
}

l2cdb_status l2c_images_put(l2c_store *s, l2c_image_record *r, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    bool fresh = r->id == 0;
    rc = fresh ? insert_record(w.conn, r, err) : update_record(s, w.conn, r, err);
    if (rc == L2CDB_OK && r->path != NULL) {
        rc = put_path(s, w.conn, r->id, r->path, r->size_bytes, r->mtime_ns, err);
    }
    if (rc == L2CDB_OK && (!fresh || r->original != NULL)) {
        rc = put_original(w.conn, r, err);
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_images_add_path(l2c_store *s, int64_t id, const char *path, int64_t size_bytes,
                                 int64_t mtime_ns, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = put_path(s, w.conn, id, path, size_bytes, mtime_ns, err);
    if (rc == L2CDB_OK) { // a record that came as bytes takes its first path
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(
            w.conn, &stmt, "UPDATE image SET path = ?2 WHERE id = ?1 AND path IS NULL", err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, id);
            l2c_bind_text(stmt, 2, path);
            rc = l2c_store_conn_run(w.conn, stmt, "storing a path", err);
        }
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_images_remove_path(l2c_store *s, const char *path, bool *deleted,
                                    l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    rc = owner_of_path(w.conn, path, &id, err);
    if (rc == L2CDB_OK && id == 0) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "path %s is not in the database", path);
    }
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(w.conn, &stmt, "DELETE FROM image_path WHERE path = ?1", err);
    }
    if (rc == L2CDB_OK) {
        l2c_bind_text(stmt, 1, path);
        rc = l2c_store_conn_run(w.conn, stmt, "forgetting a path", err);
    }
    if (rc == L2CDB_OK) {
        rc = settle_paths(s, w.conn, id, deleted, err);
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_images_set_user(l2c_store *s, int64_t id, const char *tags, const char *meta,
                                 l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_records_require(w.conn, L2C_KIND_IMAGE, &id, 1, err);
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(w.conn, &stmt,
                                    "UPDATE image SET tags = ?2, meta = ?3 WHERE id = ?1", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, id);
        l2c_bind_text(stmt, 2, tags);
        l2c_bind_text(stmt, 3, meta);
        rc = l2c_store_conn_run(w.conn, stmt, "storing tags", err);
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_images_delete(l2c_store *s, const int64_t *ids, size_t n, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_records_require(w.conn, L2C_KIND_IMAGE, ids, n, err);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        rc = delete_record(s, w.conn, ids[i], err);
    }
    return l2c_write_end(&w, rc, err);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static l2cdb_status read_record(sqlite3_stmt *stmt, l2c_image_record *out, l2c_arena *arena,
                                l2cdb_error *err) {
    bool failed = false;
    out->path = l2c_column_copy(stmt, 0, arena, &failed);
    const void *hash = sqlite3_column_blob(stmt, 1);
    if (hash != NULL && sqlite3_column_bytes(stmt, 1) == L2C_HASH_BYTES) {
        memcpy(out->hash.bytes, hash, L2C_HASH_BYTES);
    }
    out->size_bytes = sqlite3_column_int64(stmt, 2);
    out->width = (uint32_t)sqlite3_column_int64(stmt, 3);
    out->height = (uint32_t)sqlite3_column_int64(stmt, 4);
    out->format = l2c_column_copy(stmt, 5, arena, &failed);
    out->taken_at = l2c_column_copy(stmt, 6, arena, &failed);
    out->camera = l2c_column_copy(stmt, 7, arena, &failed);
    out->orientation = sqlite3_column_int(stmt, 8);
    out->has_gps = sqlite3_column_type(stmt, 9) != SQLITE_NULL;
    out->latitude = sqlite3_column_double(stmt, 9);
    out->longitude = sqlite3_column_double(stmt, 10);
    out->status = l2c_column_copy(stmt, 11, arena, &failed);
    out->error = l2c_column_copy(stmt, 12, arena, &failed);
    out->tags = l2c_column_copy(stmt, 13, arena, &failed);
    out->meta = l2c_column_copy(stmt, 14, arena, &failed);
    out->mtime_ns = sqlite3_column_int64(stmt, 15);
    return failed ? l2c_fail_nomem(err, 0) : L2CDB_OK;
}

l2cdb_status l2c_images_get(l2c_store *s, int64_t id, l2c_image_record *out, l2c_arena *arena,
                            l2cdb_error *err) {
    *out = (l2c_image_record){ .id = id };
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(
        &r, s,
        "SELECT " IMAGE_COLUMNS ","
        " (SELECT mtime_ns FROM image_path p WHERE p.path = image.path) FROM image WHERE id = ?1",
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, id);
    if (l2c_read_row(&r, "reading a photo's record", &rc, err)) {
        rc = read_record(r.stmt, out, arena, err);
    } else if (rc == L2CDB_OK) {
        rc = l2c_record_missing(L2C_KIND_IMAGE, id, err);
    }
    l2c_read_end(&r);
    return rc;
}

static l2cdb_status get_blob(l2c_store *s, const char *sql, const char *what, int64_t id,
                             l2c_buf *out, l2cdb_error *err) {
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s, sql, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, id);
    if (l2c_read_row(&r, "reading a photo's bytes", &rc, err)) {
        const void *data = sqlite3_column_blob(r.stmt, 0);
        l2c_buf_append(out, data, (size_t)sqlite3_column_bytes(r.stmt, 0));
        rc = out->failed ? l2c_fail_nomem(err, 0) : L2CDB_OK;
    } else if (rc == L2CDB_OK) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "photo %lld has no %s in the database", (long long)id,
                      what);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_images_get_original(l2c_store *s, int64_t id, l2c_buf *out, l2cdb_error *err) {
    return get_blob(s, "SELECT data FROM original WHERE image_id = ?1", "original", id, out, err);
}

l2cdb_status l2c_thumbnails_get(l2c_store *s, int64_t image_id, l2c_buf *out, l2cdb_error *err) {
    return get_blob(s, "SELECT jpeg FROM thumbnail WHERE image_id = ?1", "thumbnail", image_id, out,
                    err);
}

l2cdb_status l2c_thumbnails_put(l2c_store *s, int64_t image_id, const void *jpeg, size_t size,
                                l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_stmt *stmt;
    rc = l2c_store_conn_prepare(
        w.conn, &stmt, "INSERT OR REPLACE INTO thumbnail(image_id, jpeg) VALUES(?1, ?2)", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, image_id);
        sqlite3_bind_blob64(stmt, 2, jpeg, size, SQLITE_STATIC);
        rc = l2c_store_conn_run(w.conn, stmt, "storing a thumbnail", err);
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_images_each_path(l2c_store *s, l2c_path_fn fn, void *ctx, l2cdb_error *err) {
    l2c_read r;
    l2cdb_status rc =
        l2c_read_begin(&r, s, "SELECT image_id, path FROM image_path ORDER BY path", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    while (l2c_read_row(&r, "listing paths", &rc, err)) {
        const char *path = (const char *)sqlite3_column_text(r.stmt, 1);
        if (path != NULL && !fn(ctx, sqlite3_column_int64(r.stmt, 0), path)) {
            break;
        }
    }
    l2c_read_end(&r);
    return rc;
}
