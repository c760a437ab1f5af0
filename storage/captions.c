/* Captions: sentences that belong to photos. The full-text table follows by triggers. */
#include "storage/store_conn.h"

#include <time.h>

static l2cdb_status find_caption(l2c_store_conn *c, int64_t image_id, const char *text, int64_t *id,
                                 l2cdb_error *err) {
    *id = 0;
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt, "SELECT id FROM caption WHERE image_id = ?1 AND text = ?2", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, image_id);
        l2c_bind_text(stmt, 2, text);
        if (l2c_store_conn_row(c, stmt, "looking for a caption", &rc, err)) {
            *id = sqlite3_column_int64(stmt, 0);
        }
        sqlite3_reset(stmt);
    }
    return rc;
}

static l2cdb_status insert_caption(l2c_store_conn *c, l2c_caption_record *r, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt,
        "INSERT INTO caption(image_id, text, language, source, added_at)"
        " SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM image WHERE id = ?1)",
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(stmt, 1, r->image_id);
    l2c_bind_text(stmt, 2, r->text);
    l2c_bind_text(stmt, 3, r->language);
    l2c_bind_text(stmt, 4, r->source);
    sqlite3_bind_int64(stmt, 5, (int64_t)time(NULL));
    rc = l2c_store_conn_run(c, stmt, "storing a caption", err);
    if (rc == L2CDB_OK && sqlite3_changes(c->db) == 0) {
        return l2c_record_missing(L2C_KIND_IMAGE, r->image_id, err);
    }
    r->id = sqlite3_last_insert_rowid(c->db);
    return rc;
}

l2cdb_status l2c_captions_put(l2c_store *s, l2c_caption_record *r, bool *existed,
                              l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = find_caption(w.conn, r->image_id, r->text, &r->id, err);
    bool there = r->id != 0;
    if (existed != NULL) {
        *existed = there;
    }
    if (rc == L2CDB_OK && !there) {
        rc = insert_caption(w.conn, r, err);
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_captions_update(l2c_store *s, int64_t id, const char *text, const char *language,
                                 l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    bool changes = false;
    sqlite3_stmt *stmt;
    rc = l2c_store_conn_prepare(w.conn, &stmt, "SELECT text IS NOT ?2 FROM caption WHERE id = ?1",
                                err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, id);
        l2c_bind_text(stmt, 2, text);
        if (l2c_store_conn_row(w.conn, stmt, "reading a caption", &rc, err)) {
            changes = sqlite3_column_int(stmt, 0) != 0;
        } else if (rc == L2CDB_OK) {
            rc = l2c_record_missing(L2C_KIND_CAPTION, id, err);
        }
        sqlite3_reset(stmt);
    }
    if (rc == L2CDB_OK && changes) {
        rc = l2c_vectors_forget(s, w.conn, L2C_KIND_CAPTION, id, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(
            w.conn, &stmt, "UPDATE caption SET text = ?2, language = ?3 WHERE id = ?1", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, id);
        l2c_bind_text(stmt, 2, text);
        l2c_bind_text(stmt, 3, language);
        rc = l2c_store_conn_run(w.conn, stmt, "changing a caption", err);
        if (rc == L2CDB_E_EXISTS) {
            l2c_fail(err, rc, "the photo of caption %lld has another caption with this text",
                     (long long)id);
        }
    }
    return l2c_write_end(&w, rc, err);
}

static l2cdb_status delete_caption(l2c_store *s, l2c_store_conn *c, int64_t id, l2cdb_error *err) {
    l2cdb_status rc = l2c_vectors_forget(s, c, L2C_KIND_CAPTION, id, err);
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt, "DELETE FROM caption WHERE id = ?1", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, id);
        rc = l2c_store_conn_run(c, stmt, "deleting a caption", err);
    }
    return rc;
}

l2cdb_status l2c_captions_delete(l2c_store *s, const int64_t *ids, size_t n, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_records_require(w.conn, L2C_KIND_CAPTION, ids, n, err);
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        rc = delete_caption(s, w.conn, ids[i], err);
    }
    return l2c_write_end(&w, rc, err);
}

static l2cdb_status read_caption(sqlite3_stmt *stmt, l2c_caption_record *out, l2c_arena *arena,
                                 l2cdb_error *err) {
    bool failed = false;
    out->id = sqlite3_column_int64(stmt, 0);
    out->image_id = sqlite3_column_int64(stmt, 1);
    out->text = l2c_column_copy(stmt, 2, arena, &failed);
    out->language = l2c_column_copy(stmt, 3, arena, &failed);
    out->source = l2c_column_copy(stmt, 4, arena, &failed);
    return failed ? l2c_fail_nomem(err, 0) : L2CDB_OK;
}

l2cdb_status l2c_captions_get(l2c_store *s, int64_t id, l2c_caption_record *out, l2c_arena *arena,
                              l2cdb_error *err) {
    *out = (l2c_caption_record){ .id = id };
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(
        &r, s, "SELECT id, image_id, text, language, source FROM caption WHERE id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, id);
    if (l2c_read_row(&r, "reading a caption", &rc, err)) {
        rc = read_caption(r.stmt, out, arena, err);
    } else if (rc == L2CDB_OK) {
        rc = l2c_record_missing(L2C_KIND_CAPTION, id, err);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_captions_pull(l2c_store *s, l2c_caption_record *out, size_t max, size_t *got,
                               int64_t after_id, l2c_arena *arena, l2cdb_error *err) {
    *got = 0;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s,
                                     "SELECT id, image_id, text, language, source FROM caption"
                                     " WHERE id > ?1 ORDER BY id LIMIT ?2",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, after_id);
    sqlite3_bind_int64(r.stmt, 2, (int64_t)max);
    while (l2c_read_row(&r, "reading captions", &rc, err)) {
        rc = read_caption(r.stmt, &out[*got], arena, err);
        *got += rc == L2CDB_OK ? 1 : 0;
    }
    l2c_read_end(&r);
    return rc;
}
