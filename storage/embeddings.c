/* Vectors of generations, and the log by which indexes follow them.
 *
 * Every (space, kind, item) is in `embedding` with the number of its last change, or in
 * `removal` with the number of its removal, or was never there; never in both. So the state of a
 * space at any later change is what it was plus the rows with newer numbers, in their order.
 */
#include "storage/store_conn.h"

static l2cdb_status check_key(int64_t space, int64_t item, l2cdb_error *err) {
    if (space < 1 || space > L2C_GENERATION_MAX || item < 1 || item > L2C_ITEM_MAX) {
        return l2c_fail(err, L2CDB_E_INVALID, "space %lld or item %lld is out of range",
                        (long long)space, (long long)item);
    }
    return L2CDB_OK;
}

l2cdb_status l2c_vectors_put(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id,
                             const float *v, size_t width, l2cdb_error *err) {
    l2cdb_status rc = check_key(space, item_id, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_write w;
    rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    int64_t key = l2c_vector_key(space, kind, item_id);
    sqlite3_stmt *stmt;
    rc = l2c_store_conn_prepare(w.conn, &stmt, "DELETE FROM removal WHERE id = ?1", err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, key);
        rc = l2c_store_conn_run(w.conn, stmt, "storing a vector", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(
            w.conn, &stmt,
            "INSERT OR REPLACE INTO embedding(id, change, vector) VALUES(?1, ?2, ?3)", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, key);
        sqlite3_bind_int64(stmt, 2, l2c_write_change(s));
        sqlite3_bind_blob64(stmt, 3, v, width * sizeof *v, SQLITE_STATIC);
        rc = l2c_store_conn_run(w.conn, stmt, "storing a vector", err);
    }
    return l2c_write_end(&w, rc, err);
}

/* Every space of kind ?1, once. */
#define SPACES_OF_KIND                                                                             \
    "SELECT DISTINCT CASE ?1 WHEN 0 THEN image_space ELSE caption_space END AS space"              \
    " FROM generation"

l2cdb_status l2c_vectors_forget(l2c_store *s, l2c_store_conn *c, l2c_kind kind, int64_t item_id,
                                l2cdb_error *err) {
    sqlite3_stmt *generations, *log, *stmt;
    l2cdb_status rc =
        l2c_store_conn_prepare(c, &generations,
                               "SELECT e.id FROM (" SPACES_OF_KIND ") g JOIN embedding e"
                               " ON e.id = (g.space << 41) | (?1 << 40) | ?2",
                               err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(
            c, &log, "INSERT OR REPLACE INTO removal(id, change) VALUES(?1, ?2)", err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int(generations, 1, (int)kind);
        sqlite3_bind_int64(generations, 2, item_id);
        while (l2c_store_conn_row(c, generations, "looking for vectors", &rc, err)) {
            sqlite3_bind_int64(log, 1, sqlite3_column_int64(generations, 0));
            sqlite3_bind_int64(log, 2, l2c_write_change(s));
            rc = l2c_store_conn_run(c, log, "noting a removal", err);
        }
        sqlite3_reset(generations);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(
            c, &stmt,
            "DELETE FROM embedding WHERE id IN"
            " (SELECT (g.space << 41) | (?1 << 40) | ?2 FROM (" SPACES_OF_KIND ") g)",
            err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int(stmt, 1, (int)kind);
        sqlite3_bind_int64(stmt, 2, item_id);
        rc = l2c_store_conn_run(c, stmt, "removing vectors", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_store_conn_prepare(c, &stmt,
                                    "DELETE FROM feature WHERE id IN"
                                    " (SELECT (t.id << 40) | ?2 FROM trunk t WHERE t.kind = ?1)",
                                    err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_bind_int(stmt, 1, (int)kind);
        sqlite3_bind_int64(stmt, 2, item_id);
        rc = l2c_store_conn_run(c, stmt, "removing features", err);
    }
    return rc;
}

l2cdb_status l2c_vectors_remove(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id,
                                l2cdb_error *err) {
    static const char *const statements[] = {
        "INSERT OR REPLACE INTO removal(id, change)"
        " SELECT id, ?2 FROM embedding WHERE id = ?1",
        "DELETE FROM embedding WHERE id = ?1",
    };
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(w.conn, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, l2c_vector_key(space, kind, item_id));
            if (i == 0) {
                sqlite3_bind_int64(stmt, 2, l2c_write_change(s));
            }
            rc = l2c_store_conn_run(w.conn, stmt, "removing a vector", err);
        }
    }
    return l2c_write_end(&w, rc, err);
}

l2cdb_status l2c_vectors_get(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id, float *v,
                             size_t width, l2cdb_error *err) {
    l2cdb_status rc = check_key(space, item_id, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_read r;
    rc = l2c_read_begin(&r, s, "SELECT vector FROM embedding WHERE id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, l2c_vector_key(space, kind, item_id));
    if (l2c_read_row(&r, "reading a vector", &rc, err)) {
        rc = l2c_column_vector(v, r.stmt, 0, width, "vector", item_id, err);
    } else if (rc == L2CDB_OK) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "%s %lld has no vector in space %lld",
                      kind == L2C_KIND_IMAGE ? "photo" : "caption", (long long)item_id,
                      (long long)space);
    }
    l2c_read_end(&r);
    return rc;
}

/* Counts in the index by change number: it holds the keys without the vectors, a hundredth of the
 * pages. */
l2cdb_status l2c_vectors_count(l2c_store *s, int64_t space, l2c_kind kind, size_t *count,
                               l2cdb_error *err) {
    *count = 0;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s,
                                     "SELECT count(*) FROM embedding INDEXED BY embedding_by_change"
                                     " WHERE change >= 0 AND +id BETWEEN ?1 AND ?2",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, l2c_vector_key(space, kind, 0));
    sqlite3_bind_int64(r.stmt, 2, l2c_vector_key(space, kind, L2C_ITEM_MAX));
    if (l2c_read_row(&r, "counting vectors", &rc, err)) {
        *count = (size_t)sqlite3_column_int64(r.stmt, 0);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_vectors_pull(l2c_store *s, int64_t space, l2c_kind kind, size_t width,
                              int64_t *ids, float *v, size_t max, size_t *got, int64_t after_id,
                              l2cdb_error *err) {
    *got = 0;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s,
                                     "SELECT id, vector FROM embedding WHERE id > ?1 AND id <= ?2"
                                     " ORDER BY id LIMIT ?3",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, l2c_vector_key(space, kind, after_id < 0 ? 0 : after_id));
    sqlite3_bind_int64(r.stmt, 2, l2c_vector_key(space, kind, L2C_ITEM_MAX));
    sqlite3_bind_int64(r.stmt, 3, (int64_t)max);
    while (l2c_read_row(&r, "reading vectors", &rc, err)) {
        ids[*got] = l2c_key_item(sqlite3_column_int64(r.stmt, 0));
        rc = l2c_column_vector(v + *got * width, r.stmt, 1, width, "vector", ids[*got], err);
        *got += rc == L2CDB_OK ? 1 : 0;
    }
    l2c_read_end(&r);
    return rc;
}

/* ---- Replay ---------------------------------------------------------------------------------- */

static l2cdb_status log_reaches(l2c_store_conn *c, int64_t since, l2cdb_error *err) {
    int64_t last, trimmed;
    l2cdb_status rc = l2c_store_conn_change(c, &last, &trimmed, err);
    if (rc == L2CDB_OK && (since < trimmed || since > last)) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND,
                      "the log holds changes %lld to %lld, asked for those after %lld",
                      (long long)trimmed + 1, (long long)last, (long long)since);
    }
    return rc;
}

static l2cdb_status read_changes(l2c_read *r, size_t width, int64_t *ids, float *v, bool *added,
                                 size_t max, size_t *got, int64_t *change, l2cdb_error *err) {
    size_t whole = 0; // rows of complete change numbers
    int64_t last_whole = *change, current = *change;
    l2cdb_status rc = L2CDB_OK;
    while (l2c_read_row(r, "reading changes", &rc, err)) {
        int64_t number = sqlite3_column_int64(r->stmt, 0), key = sqlite3_column_int64(r->stmt, 1);
        if (number != current) {
            whole = *got;
            last_whole = current;
            current = number;
        }
        if (*got == max) { // no room: what was begun is left for the next call
            *got = whole;
            *change = last_whole;
            return whole > 0 ? L2CDB_OK
                             : l2c_fail(err, L2CDB_E_INTERNAL, "change %lld has more than %zu rows",
                                        (long long)number, max);
        }
        ids[*got] = l2c_key_item(key);
        added[*got] = sqlite3_column_type(r->stmt, 2) != SQLITE_NULL;
        if (added[*got]) {
            rc = l2c_column_vector(v + *got * width, r->stmt, 2, width, "vector", ids[*got], err);
        }
        *got += rc == L2CDB_OK ? 1 : 0;
    }
    if (rc == L2CDB_OK) {
        *change = current;
    }
    return rc;
}

l2cdb_status l2c_vectors_replay(l2c_store *s, int64_t space, l2c_kind kind, size_t width,
                                int64_t *ids, float *v, bool *added, size_t max, size_t *got,
                                int64_t since, int64_t *change, l2cdb_error *err) {
    *got = 0;
    *change = since;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(
        &r, s,
        "SELECT change, id, vector FROM embedding INDEXED BY embedding_by_change"
        " WHERE change > ?1 AND +id BETWEEN ?2 AND ?3"
        " UNION ALL SELECT change, id, NULL FROM removal INDEXED BY removal_by_change"
        " WHERE change > ?1 AND +id BETWEEN ?2 AND ?3 ORDER BY 1, 2 LIMIT ?4",
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = log_reaches(r.conn, since, err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(r.stmt, 1, since);
        sqlite3_bind_int64(r.stmt, 2, l2c_vector_key(space, kind, 0));
        sqlite3_bind_int64(r.stmt, 3, l2c_vector_key(space, kind, L2C_ITEM_MAX));
        sqlite3_bind_int64(r.stmt, 4, (int64_t)max + 1); // one more: does it end in a change?
        rc = read_changes(&r, width, ids, v, added, max, got, change, err);
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_changes_trim(l2c_store *s, int64_t change, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    static const char *const statements[] = {
        "DELETE FROM removal WHERE change <= ?1",
        "UPDATE change SET trimmed = max(trimmed, min(?1, value))",
    };
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(w.conn, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, change);
            rc = l2c_store_conn_run(w.conn, stmt, "trimming the removal log", err);
        }
    }
    return l2c_write_end(&w, rc, err);
}
