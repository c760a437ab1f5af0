/* Features: what frozen trunks made of photos and captions, before the heads. One b-tree in the
 * order (trunk, item), because training and reindexing read them in long runs. */
#include "storage/store_conn.h"

#define TRUNK_MAX (((int64_t)1 << 22) - 1)

static int64_t feature_key(int64_t trunk, int64_t item) {
    return (trunk << L2C_ITEM_BITS) | item;
}

/* The number of a trunk and its width; *id is 0 if it is unknown. */
static l2cdb_status find_trunk(l2c_store_conn *c, l2c_kind kind, const l2c_hash *hash, int64_t *id,
                               size_t *width, l2cdb_error *err) {
    *id = 0;
    *width = 0;
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt, "SELECT id, width FROM trunk WHERE kind = ?1 AND hash = ?2", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int(stmt, 1, (int)kind);
        sqlite3_bind_blob(stmt, 2, hash->bytes, sizeof hash->bytes, SQLITE_STATIC);
        if (l2c_store_conn_row(c, stmt, "looking a trunk up", &rc, err)) {
            *id = sqlite3_column_int64(stmt, 0);
            *width = (size_t)sqlite3_column_int64(stmt, 1);
        }
        sqlite3_reset(stmt);
    }
    return rc;
}

static l2cdb_status make_trunk(l2c_store_conn *c, l2c_kind kind, const l2c_hash *hash, int64_t *id,
                               size_t width, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt, "INSERT INTO trunk(kind, hash, width) VALUES(?1, ?2, ?3)", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int(stmt, 1, (int)kind);
        sqlite3_bind_blob(stmt, 2, hash->bytes, sizeof hash->bytes, SQLITE_STATIC);
        sqlite3_bind_int64(stmt, 3, (int64_t)width);
        rc = l2c_store_conn_run(c, stmt, "storing a trunk", err);
        *id = sqlite3_last_insert_rowid(c->db);
    }
    if (rc == L2CDB_OK && *id > TRUNK_MAX) {
        rc = l2c_fail(err, L2CDB_E_LIMIT, "trunk numbers have passed %lld", (long long)TRUNK_MAX);
    }
    return rc;
}

l2cdb_status l2c_features_put(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, int64_t item_id,
                              const float *v, size_t width, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    size_t known;
    rc = find_trunk(w.conn, kind, trunk, &id, &known, err);
    if (rc == L2CDB_OK && id == 0) {
        rc = make_trunk(w.conn, kind, trunk, &id, width, err);
    } else if (rc == L2CDB_OK && known != width) {
        rc = l2c_fail(err, L2CDB_E_MISMATCH, "a feature has %zu values, its trunk makes %zu", width,
                      known);
    }
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(
            w.conn, &stmt, "INSERT OR REPLACE INTO feature(id, vector) VALUES(?1, ?2)", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, feature_key(id, item_id));
        sqlite3_bind_blob64(stmt, 2, v, width * sizeof *v, SQLITE_STATIC);
        rc = l2c_store_conn_run(w.conn, stmt, "storing a feature", err);
    }
    return l2c_write_end(&w, rc, err);
}

/* Begins a read about a trunk's features; *id is 0 for a trunk without any. */
static l2cdb_status begin_on_trunk(l2c_read *r, l2c_store *s, l2c_kind kind, const l2c_hash *trunk,
                                   int64_t *id, const char *sql, l2cdb_error *err) {
    l2cdb_status rc = l2c_read_begin(r, s, sql, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t width;
    rc = find_trunk(r->conn, kind, trunk, id, &width, err);
    if (rc != L2CDB_OK) {
        l2c_read_end(r);
    }
    return rc;
}

l2cdb_status l2c_features_pull(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                               int64_t *ids, float *v, size_t max, size_t *got, int64_t after_id,
                               l2cdb_error *err) {
    *got = 0;
    l2c_read r;
    int64_t id;
    l2cdb_status rc = begin_on_trunk(&r, s, kind, trunk, &id,
                                     "SELECT id, vector FROM feature WHERE id > ?1 AND id <= ?2"
                                     " ORDER BY id LIMIT ?3",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, feature_key(id, after_id));
    sqlite3_bind_int64(r.stmt, 2, feature_key(id, L2C_ITEM_MAX));
    sqlite3_bind_int64(r.stmt, 3, (int64_t)max);
    while (l2c_read_row(&r, "reading features", &rc, err)) {
        ids[*got] = l2c_key_item(sqlite3_column_int64(r.stmt, 0));
        rc = l2c_column_vector(v + *got * width, r.stmt, 1, width, "feature", ids[*got], err);
        *got += rc == L2CDB_OK ? 1 : 0;
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_features_get(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                              int64_t item_id, float *v, l2cdb_error *err) {
    l2c_read r;
    int64_t id;
    l2cdb_status rc =
        begin_on_trunk(&r, s, kind, trunk, &id, "SELECT vector FROM feature WHERE id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, feature_key(id, item_id));
    if (l2c_read_row(&r, "reading a feature", &rc, err)) {
        rc = l2c_column_vector(v, r.stmt, 0, width, "feature", item_id, err);
    } else if (rc == L2CDB_OK) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "item %lld has no feature of this model",
                      (long long)item_id);
    }
    l2c_read_end(&r);
    return rc;
}

/* Ends a read whose rows are ids; parameters are bound by the caller. */
static l2cdb_status collect_ids(l2c_read *r, int64_t *ids, size_t *got, const char *what,
                                l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    while (l2c_read_row(r, what, &rc, err)) {
        ids[(*got)++] = sqlite3_column_int64(r->stmt, 0);
    }
    l2c_read_end(r);
    return rc;
}

l2cdb_status l2c_features_missing(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, int64_t *ids,
                                  size_t max, size_t *got, int64_t after_id, l2cdb_error *err) {
    *got = 0;
    static const char *const statements[] = {
        [L2C_KIND_IMAGE] = "SELECT id FROM image WHERE id > ?1 AND status = 'ok'"
                           " AND hash IS NOT NULL AND NOT EXISTS"
                           " (SELECT 1 FROM feature f WHERE f.id = (?2 << 40) | image.id)"
                           " ORDER BY id LIMIT ?3",
        [L2C_KIND_CAPTION] = "SELECT id FROM caption WHERE id > ?1 AND NOT EXISTS"
                             " (SELECT 1 FROM feature f WHERE f.id = (?2 << 40) | caption.id)"
                             " ORDER BY id LIMIT ?3",
    };
    l2c_read r;
    int64_t id;
    l2cdb_status rc = begin_on_trunk(&r, s, kind, trunk, &id, statements[kind], err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, after_id);
    sqlite3_bind_int64(r.stmt, 2, id);
    sqlite3_bind_int64(r.stmt, 3, (int64_t)max);
    return collect_ids(&r, ids, got, "looking for missing features", err);
}

l2cdb_status l2c_vectors_missing(l2c_store *s, int64_t space, l2c_kind kind, const l2c_hash *trunk,
                                 int64_t *ids, size_t max, size_t *got, int64_t after_id,
                                 l2cdb_error *err) {
    *got = 0;
    l2c_read r;
    int64_t id;
    l2cdb_status rc =
        begin_on_trunk(&r, s, kind, trunk, &id,
                       "SELECT id & 1099511627775 FROM feature f"
                       " WHERE f.id > ?1 AND f.id <= ?2 AND NOT EXISTS"
                       " (SELECT 1 FROM embedding e WHERE e.id = ?3 | (f.id & 1099511627775))"
                       " ORDER BY f.id LIMIT ?4",
                       err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, feature_key(id, after_id));
    sqlite3_bind_int64(r.stmt, 2, feature_key(id, L2C_ITEM_MAX));
    sqlite3_bind_int64(r.stmt, 3, l2c_vector_key(space, kind, 0));
    sqlite3_bind_int64(r.stmt, 4, (int64_t)max);
    return collect_ids(&r, ids, got, "looking for missing vectors", err);
}
