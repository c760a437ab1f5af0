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
        int step = sqlite3_step(stmt);
        if (step == SQLITE_ROW) {
            *id = sqlite3_column_int64(stmt, 0);
            *width = (size_t)sqlite3_column_int64(stmt, 1);
        } else if (step != SQLITE_DONE) {
            rc = l2c_sqlite_fail(err, c->db, step, "looking a trunk up");
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

l2cdb_status l2c_features_pull(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                               int64_t *ids, float *v, size_t max, size_t *got, int64_t after_id,
                               l2cdb_error *err) {
    *got = 0;
    l2c_store_conn *c;
    l2cdb_status rc = l2c_reader_get(s, &c, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    size_t known;
    rc = find_trunk(c, kind, trunk, &id, &known, err);
    sqlite3_stmt *stmt = NULL;
    if (rc == L2CDB_OK && id != 0) {
        rc = l2c_store_conn_prepare(c, &stmt,
                                    "SELECT id, vector FROM feature WHERE id > ?1 AND id <= ?2"
                                    " ORDER BY id LIMIT ?3",
                                    err);
    }
    if (rc == L2CDB_OK && stmt != NULL) {
        sqlite3_bind_int64(stmt, 1, feature_key(id, after_id));
        sqlite3_bind_int64(stmt, 2, feature_key(id, L2C_ITEM_MAX));
        sqlite3_bind_int64(stmt, 3, (int64_t)max);
        int step = SQLITE_DONE;
        while (rc == L2CDB_OK && (step = sqlite3_step(stmt)) == SQLITE_ROW) {
            ids[*got] = l2c_key_item(sqlite3_column_int64(stmt, 0));
            rc = l2c_column_vector(v + *got * width, stmt, 1, width, "feature", ids[*got], err);
            *got += rc == L2CDB_OK ? 1 : 0;
        }
        if (rc == L2CDB_OK && step != SQLITE_DONE) {
            rc = l2c_sqlite_fail(err, c->db, step, "reading features");
        }
        sqlite3_reset(stmt);
    }
    l2c_reader_put(s, c);
    return rc;
}

l2cdb_status l2c_features_get(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                              int64_t item_id, float *v, l2cdb_error *err) {
    l2c_store_conn *c;
    l2cdb_status rc = l2c_reader_get(s, &c, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    size_t known;
    rc = find_trunk(c, kind, trunk, &id, &known, err);
    sqlite3_stmt *stmt = NULL;
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt, "SELECT vector FROM feature WHERE id = ?1", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, feature_key(id, item_id));
        if (sqlite3_step(stmt) == SQLITE_ROW) {
            rc = l2c_column_vector(v, stmt, 0, width, "feature", item_id, err);
        } else {
            rc = l2c_fail(err, L2CDB_E_NOTFOUND, "item %lld has no feature of this model",
                          (long long)item_id);
        }
        sqlite3_reset(stmt);
    }
    l2c_reader_put(s, c);
    return rc;
}

/* Runs a statement whose rows are ids; parameters are bound by the caller. */
static l2cdb_status collect_ids(l2c_store_conn *c, sqlite3_stmt *stmt, int64_t *ids, size_t *got,
                                const char *what, l2cdb_error *err) {
    int step;
    while ((step = sqlite3_step(stmt)) == SQLITE_ROW) {
        ids[(*got)++] = sqlite3_column_int64(stmt, 0);
    }
    l2cdb_status rc = step == SQLITE_DONE ? L2CDB_OK : l2c_sqlite_fail(err, c->db, step, what);
    sqlite3_reset(stmt);
    return rc;
}

l2cdb_status l2c_features_missing(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, int64_t *ids,
                                  size_t max, size_t *got, int64_t after_id, l2cdb_error *err) {
    *got = 0;
    l2c_store_conn *c;
    l2cdb_status rc = l2c_reader_get(s, &c, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    size_t known;
    rc = find_trunk(c, kind, trunk, &id, &known, err); // 0 has no features: everything is missing
    sqlite3_stmt *stmt;
    if (rc == L2CDB_OK && kind == L2C_KIND_IMAGE) {
        rc = l2c_store_conn_prepare(c, &stmt,
                                    "SELECT id FROM image WHERE id > ?1 AND status = 'ok'"
                                    " AND hash IS NOT NULL AND NOT EXISTS"
                                    " (SELECT 1 FROM feature f WHERE f.id = (?2 << 40) | image.id)"
                                    " ORDER BY id LIMIT ?3",
                                    err);
    } else if (rc == L2CDB_OK) {
        rc =
            l2c_store_conn_prepare(c, &stmt,
                                   "SELECT id FROM caption WHERE id > ?1 AND NOT EXISTS"
                                   " (SELECT 1 FROM feature f WHERE f.id = (?2 << 40) | caption.id)"
                                   " ORDER BY id LIMIT ?3",
                                   err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, after_id);
        sqlite3_bind_int64(stmt, 2, id);
        sqlite3_bind_int64(stmt, 3, (int64_t)max);
        rc = collect_ids(c, stmt, ids, got, "looking for missing features", err);
    }
    l2c_reader_put(s, c);
    return rc;
}

l2cdb_status l2c_vectors_missing(l2c_store *s, int64_t space, l2c_kind kind, const l2c_hash *trunk,
                                 int64_t *ids, size_t max, size_t *got, int64_t after_id,
                                 l2cdb_error *err) {
    *got = 0;
    l2c_store_conn *c;
    l2cdb_status rc = l2c_reader_get(s, &c, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t id;
    size_t known;
    rc = find_trunk(c, kind, trunk, &id, &known, err);
    sqlite3_stmt *stmt = NULL;
    if (rc == L2CDB_OK && id != 0) {
        rc = l2c_store_conn_prepare(
            c, &stmt,
            "SELECT id & 1099511627775 FROM feature f"
            " WHERE f.id > ?1 AND f.id <= ?2 AND NOT EXISTS"
            " (SELECT 1 FROM embedding e WHERE e.id = ?3 | (f.id & 1099511627775))"
            " ORDER BY f.id LIMIT ?4",
            err);
    }
    if (rc == L2CDB_OK && stmt != NULL) {
        sqlite3_bind_int64(stmt, 1, feature_key(id, after_id));
        sqlite3_bind_int64(stmt, 2, feature_key(id, L2C_ITEM_MAX));
        sqlite3_bind_int64(stmt, 3, l2c_vector_key(space, kind, 0));
        sqlite3_bind_int64(stmt, 4, (int64_t)max);
        rc = collect_ids(c, stmt, ids, got, "looking for missing vectors", err);
    }
    l2c_reader_put(s, c);
    return rc;
}
