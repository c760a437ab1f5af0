/* A condition in SQL as a set of ids, for l2cdb_query.where. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

/* The condition may only read, and only be a condition: it is put in parentheses, and a line break
 * keeps a comment at its end from swallowing the closing one. */
static l2cdb_status prepare_filter(l2cdb *db, l2cdb_target target, const char *where,
                                   uint32_t timeout_ms, l2cdb_stmt **out, l2cdb_error *err) {
    const char *table = target == L2CDB_CAPTIONS ? "captions" : "images";
    l2c_buf sql;
    l2c_buf_init(&sql);
    l2c_buf_printf(&sql, "SELECT id FROM %s WHERE (", table);
    size_t lead = sql.size;
    l2c_buf_puts(&sql, where);
    l2c_buf_puts(&sql, "\n) ORDER BY id");
    l2cdb_status rc;
    if (sql.failed) {
        rc = l2c_fail_nomem(err, sql.size);
    } else {
        const l2cdb_sql_limits limits = { .read_only = true, .timeout_ms = timeout_ms };
        rc = l2cdb_prepare(db, sql.data, &limits, out, err);
    }
    l2c_buf_fini(&sql);
    if (rc != L2CDB_OK && err != NULL) {
        int64_t at = err->offset - (int64_t)lead;
        bool inside = err->offset >= 0 && at >= 0 && at <= (int64_t)strlen(where);
        l2c_context(err, "in the condition");
        err->offset = inside ? at : -1;
    }
    return rc;
}

l2cdb_status l2c_sql_filter_ids(l2cdb *db, l2cdb_target target, const char *where,
                                uint32_t timeout_ms, int64_t **ids, size_t *count,
                                l2cdb_error *err) {
    l2cdb_stmt *s = NULL;
    size_t capacity = 0;
    *ids = NULL;
    *count = 0;
    l2cdb_status rc = prepare_filter(db, target, where, timeout_ms, &s, err);
    if (rc == L2CDB_OK && l2cdb_bind_count(s) > 0) {
        rc = l2c_fail(err, L2CDB_E_INVALID, "a condition has no parameters here");
    }
    bool row = rc == L2CDB_OK;
    while (rc == L2CDB_OK && row) {
        rc = l2cdb_step(s, &row, err);
        if (rc != L2CDB_OK || !row) {
            break;
        }
        if (*count == capacity) {
            capacity = capacity == 0 ? 1024 : capacity * 2;
            int64_t *grown = l2c_realloc(*ids, capacity, sizeof *grown);
            if (grown == NULL) {
                rc = l2c_fail_nomem(err, capacity * sizeof *grown);
                break;
            }
            *ids = grown;
        }
        (*ids)[(*count)++] = l2cdb_column_int64(s, 0);
    }
    l2cdb_finalize(s);
    if (rc != L2CDB_OK) {
        l2c_free(*ids);
        *ids = NULL;
        *count = 0;
    }
    return rc;
}
