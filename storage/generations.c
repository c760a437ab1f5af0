/* Generations: which trunks and heads made a set of vectors, and which set answers. Exactly one is
 * active once there is any; a unique partial index in the schema holds it to that. */
#include "storage/store_conn.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const state_names[] = { "filling", "ready", "active", "retired" };

#define SELECT_GENERATION                                                                          \
    "SELECT id, parent, state, image_trunk, text_trunk, heads, width, model, label, report,"       \
    " created_at, activated_at, image_space, caption_space FROM generation "

static void bind_hash(sqlite3_stmt *stmt, int i, const l2c_hash *h) {
    static const l2c_hash zero;
    if (memcmp(h, &zero, sizeof zero) != 0) {
        sqlite3_bind_blob(stmt, i, h->bytes, sizeof h->bytes, SQLITE_STATIC);
    }
}

static void read_hash(sqlite3_stmt *stmt, int i, l2c_hash *out) {
    memset(out, 0, sizeof *out);
    const void *blob = sqlite3_column_blob(stmt, i);
    if (blob != NULL && sqlite3_column_bytes(stmt, i) == L2C_HASH_BYTES) {
        memcpy(out->bytes, blob, L2C_HASH_BYTES);
    }
}

static void read_text(sqlite3_stmt *stmt, int i, char *out, size_t size) {
    const unsigned char *text = sqlite3_column_text(stmt, i);
    snprintf(out, size, "%s", text != NULL ? (const char *)text : "");
}

static l2cdb_status read_generation(sqlite3_stmt *stmt, l2c_generation *g, l2cdb_error *err) {
    memset(g, 0, sizeof *g);
    g->id = sqlite3_column_int64(stmt, 0);
    g->parent = sqlite3_column_int64(stmt, 1);
    const char *state = (const char *)sqlite3_column_text(stmt, 2);
    size_t i = 0;
    while (i < 4 && (state == NULL || strcmp(state, state_names[i]) != 0)) {
        i++;
    }
    if (i == 4) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "generation %lld has the state \"%s\"",
                        (long long)g->id, state != NULL ? state : "NULL");
    }
    g->state = (l2c_generation_state)i;
    read_hash(stmt, 3, &g->image_trunk);
    read_hash(stmt, 4, &g->text_trunk);
    read_hash(stmt, 5, &g->heads);
    g->width = (size_t)sqlite3_column_int64(stmt, 6);
    read_text(stmt, 7, g->model, sizeof g->model);
    read_text(stmt, 8, g->label, sizeof g->label);
    read_text(stmt, 9, g->report, sizeof g->report);
    g->created_at = sqlite3_column_int64(stmt, 10);
    g->activated_at = sqlite3_column_int64(stmt, 11);
    g->space[L2C_KIND_IMAGE] = sqlite3_column_int64(stmt, 12);
    g->space[L2C_KIND_CAPTION] = sqlite3_column_int64(stmt, 13);
    return L2CDB_OK;
}

/* sql is a literal; ?1 is bound to `id` if it is not 0. *count may exceed max: the rest is left. */
static l2cdb_status read_many(l2c_store *s, const char *sql, int64_t id, l2c_generation *out,
                              size_t max, size_t *count, l2cdb_error *err) {
    *count = 0;
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s, sql, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (id != 0) {
        sqlite3_bind_int64(r.stmt, 1, id);
    }
    while (l2c_read_row(&r, "reading generations", &rc, err)) {
        if (*count < max) {
            rc = read_generation(r.stmt, &out[*count], err);
        }
        ++*count;
    }
    l2c_read_end(&r);
    return rc;
}

l2cdb_status l2c_generations_active(l2c_store *s, l2c_generation *out, l2cdb_error *err) {
    size_t count;
    l2cdb_status rc =
        read_many(s, SELECT_GENERATION "WHERE state = 'active'", 0, out, 1, &count, err);
    if (rc == L2CDB_OK && count == 0) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "%s: no generation is active yet", s->path);
    }
    return rc;
}

l2cdb_status l2c_generations_get(l2c_store *s, int64_t id, l2c_generation *out, l2cdb_error *err) {
    size_t count;
    l2cdb_status rc = read_many(s, SELECT_GENERATION "WHERE id = ?1", id, out, 1, &count, err);
    if (rc == L2CDB_OK && (count == 0 || id == 0)) {
        l2c_fail(err, L2CDB_E_NOTFOUND, "there is no generation %lld", (long long)id);
        rc = l2c_hint(err, "`l2cdb generations` lists them");
    }
    return rc;
}

l2cdb_status l2c_generations_list(l2c_store *s, l2c_generation *out, size_t max, size_t *count,
                                  l2cdb_error *err) {
    return read_many(s, SELECT_GENERATION "ORDER BY id", 0, out, max, count, err);
}

/* A new generation knows its number, and so its own spaces, only when its row is there. */
static l2cdb_status put_spaces(l2c_store_conn *c, l2c_generation *g, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt, "UPDATE generation SET image_space = ?2, caption_space = ?3 WHERE id = ?1", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(stmt, 1, g->id);
    for (int kind = 0; kind < 2; kind++) {
        g->space[kind] = g->space[kind] != 0 ? g->space[kind] : g->id;
        sqlite3_bind_int64(stmt, 2 + kind, g->space[kind]);
    }
    return l2c_store_conn_run(c, stmt, "storing a generation", err);
}

static l2cdb_status put_row(l2c_store_conn *c, l2c_generation *g, l2cdb_error *err) {
    sqlite3_stmt *stmt;
    l2cdb_status rc = l2c_store_conn_prepare(
        c, &stmt,
        "INSERT INTO generation(id, parent, state, image_trunk, text_trunk, heads, width, model,"
        " label, report, created_at, activated_at, image_space, caption_space)"
        " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,0,0) ON CONFLICT(id) DO UPDATE SET"
        " parent=?2, state=?3, image_trunk=?4, text_trunk=?5, heads=?6, width=?7, model=?8,"
        " label=?9, report=?10, created_at=?11, activated_at=?12",
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (g->id != 0) {
        sqlite3_bind_int64(stmt, 1, g->id);
    }
    if (g->parent != 0) {
        sqlite3_bind_int64(stmt, 2, g->parent);
    }
    l2c_bind_text(stmt, 3, state_names[g->state]);
    bind_hash(stmt, 4, &g->image_trunk);
    bind_hash(stmt, 5, &g->text_trunk);
    bind_hash(stmt, 6, &g->heads);
    sqlite3_bind_int64(stmt, 7, (int64_t)g->width);
    l2c_bind_text(stmt, 8, g->model);
    l2c_bind_text(stmt, 9, g->label);
    l2c_bind_text(stmt, 10, g->report);
    sqlite3_bind_int64(stmt, 11, g->created_at);
    if (g->activated_at != 0) {
        sqlite3_bind_int64(stmt, 12, g->activated_at);
    }
    rc = l2c_store_conn_run(c, stmt, "storing a generation", err);
    if (g->id == 0) {
        g->id = sqlite3_last_insert_rowid(c->db);
    }
    return rc == L2CDB_OK ? put_spaces(c, g, err) : rc;
}

l2cdb_status l2c_generations_put(l2c_store *s, l2c_generation *g, l2cdb_error *err) {
    if (g->width == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "a generation of width 0");
    }
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_generation before = *g;
    if (g->created_at == 0) {
        g->created_at = (int64_t)time(NULL);
    }
    rc = put_row(w.conn, g, err);
    l2c_write_change(s); // who holds a view looks at the generations again
    rc = l2c_write_end(&w, rc, err);
    if (rc != L2CDB_OK) {
        *g = before;
    }
    return rc;
}

static l2cdb_status set_state(l2c_store_conn *c, int64_t id, l2cdb_error *err) {
    static const char *const statements[] = {
        "UPDATE generation SET state = 'retired' WHERE state = 'active' AND id <> ?1",
        "UPDATE generation SET state = 'active', activated_at = ?2 WHERE id = ?1",
    };
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(c, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, id);
            if (i == 1) {
                sqlite3_bind_int64(stmt, 2, (int64_t)time(NULL));
            }
            rc = l2c_store_conn_run(c, stmt, "switching generations", err);
        }
    }
    return rc;
}

l2cdb_status l2c_generations_activate(l2c_store *s, int64_t id, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_generation g;
    rc = l2c_generations_get(s, id, &g, err);
    if (rc == L2CDB_OK && g.state == L2C_GENERATION_FILLING) {
        l2c_fail(err, L2CDB_E_INVALID, "generation %lld is not complete", (long long)id);
        rc = l2c_hint(err, "run `l2cdb reindex --generation %lld` first", (long long)id);
    }
    if (rc == L2CDB_OK) {
        rc = set_state(w.conn, id, err);
        l2c_write_change(s);
    }
    return l2c_write_end(&w, rc, err);
}

/* The vectors of a space, unless a generation that is left has it. */
static l2cdb_status drop_space(l2c_store_conn *c, int64_t space, int kind, l2cdb_error *err) {
#define IN_SPACE                                                                                   \
    " WHERE id >= ((?1 << 41) | (?2 << 40)) AND id < ((?1 << 41) | (?2 << 40)) + (1 << 40)"        \
    " AND NOT EXISTS (SELECT 1 FROM generation WHERE"                                              \
    "  ?1 = CASE ?2 WHEN 0 THEN image_space ELSE caption_space END)"
    static const char *const statements[] = { "DELETE FROM embedding" IN_SPACE,
                                              "DELETE FROM removal" IN_SPACE };
#undef IN_SPACE
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(c, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, space);
            sqlite3_bind_int(stmt, 2, kind);
            rc = l2c_store_conn_run(c, stmt, "dropping vectors", err);
        }
    }
    return rc;
}

l2cdb_status l2c_generations_drop(l2c_store *s, int64_t id, l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_generation g;
    rc = l2c_generations_get(s, id, &g, err);
    if (rc == L2CDB_OK && g.state == L2C_GENERATION_ACTIVE) {
        l2c_fail(err, L2CDB_E_INVALID, "generation %lld is the active one", (long long)id);
        rc = l2c_hint(err, "switch to another one before dropping it");
    }
    static const char *const statements[] = {
        "DELETE FROM head WHERE generation = ?1",
        "DELETE FROM generation WHERE id = ?1",
    };
    for (size_t i = 0; i < 2 && rc == L2CDB_OK; i++) {
        sqlite3_stmt *stmt;
        rc = l2c_store_conn_prepare(w.conn, &stmt, statements[i], err);
        if (rc == L2CDB_OK) {
            sqlite3_bind_int64(stmt, 1, id);
            rc = l2c_store_conn_run(w.conn, stmt, "dropping a generation", err);
        }
    }
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        rc = drop_space(w.conn, g.space[kind], kind, err);
    }
    l2c_write_change(s);
    return l2c_write_end(&w, rc, err);
}

/* ---- Heads ----------------------------------------------------------------------------------- */

l2cdb_status l2c_heads_put(l2c_store *s, int64_t generation, const char *name,
                           const size_t shape[2], const float *data, size_t count,
                           l2cdb_error *err) {
    l2c_write w;
    l2cdb_status rc = l2c_write_begin(&w, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_stmt *stmt;
    rc = l2c_store_conn_prepare(w.conn, &stmt,
                                "INSERT OR REPLACE INTO head(generation, name, rows, columns, data)"
                                " VALUES(?1, ?2, ?3, ?4, ?5)",
                                err);
    if (rc == L2CDB_OK) {
        sqlite3_bind_int64(stmt, 1, generation);
        l2c_bind_text(stmt, 2, name);
        sqlite3_bind_int64(stmt, 3, (int64_t)shape[0]);
        sqlite3_bind_int64(stmt, 4, (int64_t)shape[1]);
        sqlite3_bind_blob64(stmt, 5, data, count * sizeof *data, SQLITE_STATIC);
        rc = l2c_store_conn_run(w.conn, stmt, "storing heads", err);
    }
    return l2c_write_end(&w, rc, err);
}

static l2cdb_status visit_head(sqlite3_stmt *stmt, l2c_heads_row_fn fn, void *ctx,
                               l2cdb_error *err) {
    const char *name = (const char *)sqlite3_column_text(stmt, 0);
    size_t shape[2] = { (size_t)sqlite3_column_int64(stmt, 1),
                        (size_t)sqlite3_column_int64(stmt, 2) };
    size_t bytes = (size_t)sqlite3_column_bytes(stmt, 3), count;
    bool fits = l2c_mul_size(&count, shape[0], shape[1] != 0 ? shape[1] : 1) &&
                bytes % sizeof(float) == 0 && bytes / sizeof(float) == count;
    if (name == NULL || !fits) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "head %s has %zu bytes, expected [%zu, %zu] floats",
                        name != NULL ? name : "NULL", bytes, shape[0], shape[1]);
    }
    // SQLite promises no alignment of blobs.
    float *data = l2c_alloc(count, sizeof *data);
    if (data == NULL) {
        return l2c_fail_nomem(err, bytes);
    }
    if (bytes > 0) {
        memcpy(data, sqlite3_column_blob(stmt, 3), bytes);
    }
    l2cdb_status rc = fn(ctx, name, shape, data, count, err);
    l2c_free(data);
    return rc;
}

l2cdb_status l2c_heads_each(l2c_store *s, int64_t generation, l2c_heads_row_fn fn, void *ctx,
                            l2cdb_error *err) {
    l2c_read r;
    l2cdb_status rc = l2c_read_begin(&r, s,
                                     "SELECT name, rows, columns, data FROM head"
                                     " WHERE generation = ?1 ORDER BY name",
                                     err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    sqlite3_bind_int64(r.stmt, 1, generation);
    while (l2c_read_row(&r, "reading heads", &rc, err)) {
        rc = visit_head(r.stmt, fn, ctx, err);
    }
    l2c_read_end(&r);
    return rc;
}
