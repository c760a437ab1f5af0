/* Rows of images and captions written in SQL: through the store, on the connection and in the
 * transaction of the statement (l2c_store_guest). */
#include "engine/sql_images.h"

#include <inttypes.h>
#include <string.h>

#include "engine/base/json.h"

static const char *const vector_columns[] = { "embedding", "score", "distance" };

static l2cdb_status begin_write(l2c_sql_conn *c, l2cdb_error *err) {
    if (c->guest != NULL) {
        return L2CDB_OK;
    }
    l2cdb_status rc = l2c_db_writable(c->db, err);
    c->wrote_captions = false;
    return rc == L2CDB_OK ? l2c_store_guest_open(&c->guest, c->db->store, c->sqlite, err) : rc;
}

static const char *text_of(sqlite3_value *v) {
    return sqlite3_value_type(v) == SQLITE_NULL ? NULL : (const char *)sqlite3_value_text(v);
}

/* Column `name` of the new row, or NULL if the statement leaves it alone. */
static sqlite3_value *new_value(const l2c_sql_target *g, sqlite3_value **args, const char *name) {
    for (int i = 0; i < g->count; i++) {
        if (strcmp(g->columns[i].name, name) == 0) {
            return sqlite3_value_nochange(args[2 + i]) ? NULL : args[2 + i];
        }
    }
    return NULL;
}

static const char *column_name(const l2c_sql_target *g, int i) {
    return i < g->count ? g->columns[i].name : vector_columns[i - g->count];
}

static bool in_list(const char *name, const char *const *list) {
    while (*list != NULL && strcmp(*list, name) != 0) {
        list++;
    }
    return *list != NULL;
}

static l2cdb_status not_by_hand(const l2c_sql_target *g, const char *name, l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "column %s of %s is not written by hand", name,
                    g->name);
}

/* UPDATE … FROM gives every column a value: those that are not in `allowed` must keep theirs. */
static l2cdb_status check_kept(const l2c_sql_images *t, sqlite3_value **args,
                               const char *const *allowed, l2cdb_error *err) {
    const l2c_sql_target *g = t->target;
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, "SELECT ");
    for (int i = 0; i < g->count; i++) {
        l2c_buf_printf(&b, "%s%s IS ?%d", i == 0 ? "" : ",", g->columns[i].expression, i + 2);
    }
    l2c_buf_printf(&b, " FROM main.%s t WHERE t.id = ?1", g->record);
    sqlite3_stmt *s = NULL;
    l2cdb_status rc =
        b.failed ? l2c_fail_nomem(err, b.size) : l2c_sql_prepare_own(t->conn, &s, b.data, err);
    l2c_buf_fini(&b);
    if (rc == L2CDB_OK) {
        sqlite3_bind_value(s, 1, args[0]);
        for (int i = 0; i < g->count; i++) {
            sqlite3_bind_value(s, i + 2, args[2 + i]);
        }
        bool there = sqlite3_step(s) == SQLITE_ROW;
        for (int i = 0; i < g->count && there && rc == L2CDB_OK; i++) {
            bool kept = sqlite3_column_int(s, i) != 0;
            rc = kept || in_list(g->columns[i].name, allowed)
                     ? L2CDB_OK
                     : not_by_hand(g, g->columns[i].name, err);
        }
    }
    sqlite3_finalize(s);
    return rc;
}

/* E_UNSUPPORTED if the statement sets a column that is not in `allowed`. */
static l2cdb_status check_columns(const l2c_sql_images *t, sqlite3_value **args, bool insert,
                                  const char *const *allowed, l2cdb_error *err) {
    const l2c_sql_target *g = t->target;
    int set = 0, forbidden = -1;
    for (int i = 0; i < g->count + 3; i++) {
        sqlite3_value *v = args[2 + i];
        if (insert ? sqlite3_value_type(v) != SQLITE_NULL : !sqlite3_value_nochange(v)) {
            set++;
            forbidden = in_list(column_name(g, i), allowed) ? forbidden : i;
        }
    }
    if (forbidden < 0) {
        return L2CDB_OK;
    }
    if (!insert && set == g->count + 3) {
        return check_kept(t, args, allowed, err);
    }
    return not_by_hand(g, column_name(g, forbidden), err);
}

static l2cdb_status insert_row(l2c_sql_images *t, sqlite3_value **args, sqlite3_int64 *id,
                               l2cdb_error *err) {
    const l2c_sql_target *g = t->target;
    if (g->kind == L2C_KIND_IMAGE) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "photos are not inserted by SQL");
        return l2c_hint(err, "ingest their files");
    }
    static const char *const allowed[] = { "image_id", "text", "language", "source", NULL };
    l2cdb_status rc = check_columns(t, args, true, allowed, err);
    l2c_caption_record r = {
        .image_id = sqlite3_value_int64(new_value(g, args, "image_id")),
        .text = text_of(new_value(g, args, "text")),
        .language = text_of(new_value(g, args, "language")),
        .source = text_of(new_value(g, args, "source")),
    };
    if (rc == L2CDB_OK) {
        rc = l2c_caption_check(r.text, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (r.source == NULL) {
        r.source = "sql";
    }
    bool existed = false;
    rc = l2c_captions_put(t->conn->db->store, &r, &existed, err);
    int conflict = sqlite3_vtab_on_conflict(t->conn->sqlite);
    if (rc == L2CDB_OK && existed && conflict == SQLITE_REPLACE) {
        rc = l2c_captions_update(t->conn->db->store, r.id, r.text, r.language, err);
    } else if (rc == L2CDB_OK && existed && conflict != SQLITE_IGNORE) {
        return l2c_fail(err, L2CDB_E_EXISTS, "photo %" PRId64 " has this caption already",
                        r.image_id);
    }
    t->conn->wrote_captions = t->conn->wrote_captions || (rc == L2CDB_OK && !existed);
    *id = r.id;
    return rc;
}

static l2cdb_status rename_image(l2c_store *store, int64_t id, const char *from, const char *to,
                                 l2cdb_error *err) {
    if (to == NULL ? from == NULL : from != NULL && strcmp(from, to) == 0) {
        return L2CDB_OK;
    }
    if (to == NULL || *to == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "a path is not empty");
    }
    l2c_path_state now = { 0 }, then = { 0 };
    l2cdb_status rc = l2c_images_find_path(store, to, &then, err);
    if (rc == L2CDB_OK && then.image_id != 0) {
        return then.image_id == id
                   ? L2CDB_OK
                   : l2c_fail(err, L2CDB_E_EXISTS, "photo %" PRId64 " has the path %s already",
                              then.image_id, to);
    }
    if (rc == L2CDB_OK && from != NULL) {
        rc = l2c_images_find_path(store, from, &now, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_images_add_path(store, id, to, now.size_bytes, now.mtime_ns, err);
    }
    if (rc == L2CDB_OK && from != NULL) {
        rc = l2c_images_remove_path(store, from, NULL, err);
    }
    return rc;
}

static l2cdb_status update_image(l2c_sql_images *t, int64_t id, sqlite3_value **args,
                                 l2cdb_error *err) {
    static const char *const allowed[] = { "path", "tags", "meta", NULL };
    const l2c_sql_target *g = t->target;
    l2c_store *store = t->conn->db->store;
    l2c_image_record r;
    l2c_arena arena;
    l2c_arena_init(&arena, 8192);
    l2cdb_status rc = check_columns(t, args, false, allowed, err);
    if (rc == L2CDB_OK) {
        rc = l2c_images_get(store, id, &r, &arena, err);
    }
    sqlite3_value *path = new_value(g, args, "path"), *tags = new_value(g, args, "tags");
    sqlite3_value *meta = new_value(g, args, "meta");
    if (rc == L2CDB_OK && meta != NULL && text_of(meta) != NULL) {
        json_t *json;
        rc = l2c_json_parse(&json, text_of(meta), strlen(text_of(meta)), "meta", err);
        if (rc == L2CDB_OK) {
            json_decref(json);
        }
    }
    if (rc == L2CDB_OK && path != NULL) { // first: it is what can fail
        rc = rename_image(store, id, r.path, text_of(path), err);
    }
    if (rc == L2CDB_OK && (tags != NULL || meta != NULL)) {
        rc = l2c_images_set_user(store, id, tags != NULL ? text_of(tags) : r.tags,
                                 meta != NULL ? text_of(meta) : r.meta, err);
    }
    l2c_arena_fini(&arena);
    return rc;
}

static l2cdb_status update_caption(l2c_sql_images *t, int64_t id, sqlite3_value **args,
                                   l2cdb_error *err) {
    static const char *const allowed[] = { "text", "language", NULL };
    const l2c_sql_target *g = t->target;
    l2c_store *store = t->conn->db->store;
    l2c_caption_record r;
    l2c_arena arena;
    l2c_arena_init(&arena, 8192);
    l2cdb_status rc = check_columns(t, args, false, allowed, err);
    if (rc == L2CDB_OK) {
        rc = l2c_captions_get(store, id, &r, &arena, err);
    }
    if (rc == L2CDB_OK) {
        sqlite3_value *text = new_value(g, args, "text");
        sqlite3_value *language = new_value(g, args, "language");
        const char *new_text = text != NULL ? text_of(text) : r.text;
        rc = l2c_caption_check(new_text, err);
        if (rc == L2CDB_OK) {
            rc = l2c_captions_update(store, id, new_text,
                                     language != NULL ? text_of(language) : r.language, err);
            t->conn->wrote_captions = t->conn->wrote_captions || strcmp(new_text, r.text) != 0;
        }
    }
    l2c_arena_fini(&arena);
    return rc;
}

static l2cdb_status delete_row(l2c_sql_images *t, int64_t id, l2cdb_error *err) {
    l2c_store *store = t->conn->db->store;
    return t->target->kind == L2C_KIND_IMAGE ? l2c_images_delete(store, &id, 1, err)
                                             : l2c_captions_delete(store, &id, 1, err);
}

static l2cdb_status write_row(l2c_sql_images *t, int argc, sqlite3_value **args, sqlite3_int64 *id,
                              l2cdb_error *err) {
    if (argc == 1) {
        return delete_row(t, sqlite3_value_int64(args[0]), err);
    }
    if (sqlite3_value_type(args[0]) == SQLITE_NULL) {
        return insert_row(t, args, id, err);
    }
    int64_t row = sqlite3_value_int64(args[0]);
    if (sqlite3_value_int64(args[1]) != row) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "the id of a row does not change");
    }
    return t->target->kind == L2C_KIND_IMAGE ? update_image(t, row, args, err)
                                             : update_caption(t, row, args, err);
}

int l2c_sql_images_update(sqlite3_vtab *base, int argc, sqlite3_value **args, sqlite3_int64 *id) {
    l2c_sql_conn *c = ((l2c_sql_images *)base)->conn;
    l2cdb_error e;
    c->internal++;
    l2cdb_status rc = c->db != NULL ? begin_write(c, &e)
                                    : l2c_fail(&e, L2CDB_E_UNSUPPORTED, "no database of l2cdb");
    if (rc == L2CDB_OK) {
        l2c_store_guest_enter(c->guest);
        rc = write_row((l2c_sql_images *)base, argc, args, id, &e);
        l2c_store_guest_leave(c->guest);
    }
    c->internal--;
    return rc == L2CDB_OK ? SQLITE_OK : l2c_sql_table_fail(base, c, &e);
}

int l2c_sql_images_begin(sqlite3_vtab *base) {
    (void)base; // the first row that is written begins
    return SQLITE_OK;
}

int l2c_sql_images_sync(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((l2c_sql_images *)base)->conn;
    l2cdb_error e;
    if (c->guest == NULL) {
        return SQLITE_OK;
    }
    c->internal++;
    l2c_store_guest_enter(c->guest);
    l2cdb_status rc = l2c_store_guest_finish(c->guest, &e);
    l2c_store_guest_leave(c->guest);
    c->internal--;
    return rc == L2CDB_OK ? SQLITE_OK : l2c_sql_table_fail(base, c, &e);
}

/* Captions get their vectors afterwards: a model that is missing must not undo them. */
int l2c_sql_images_commit(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((l2c_sql_images *)base)->conn;
    l2cdb_error e;
    if (c->guest == NULL) {
        return SQLITE_OK;
    }
    l2c_store_guest_close(c->guest);
    c->guest = NULL;
    if (c->wrote_captions && l2c_captions_encode(c->db, NULL, NULL, &e) != L2CDB_OK) {
        l2c_log(L2CDB_LOG_WARN, "captions stored without vectors: %s", e.message);
    }
    l2c_view_catch_up(c->db);
    return SQLITE_OK;
}

int l2c_sql_images_rollback(sqlite3_vtab *base) {
    l2c_sql_conn *c = ((l2c_sql_images *)base)->conn;
    l2c_store_guest_close(c->guest);
    c->guest = NULL;
    return SQLITE_OK;
}
