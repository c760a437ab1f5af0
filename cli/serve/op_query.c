/* query: one SQL statement under the read-only role, its rows streamed as they come.
 *
 * A piece of SERVE_CHUNK_BYTES is made, handed to the loop and written; only then is the statement
 * stepped again, by whichever worker is free. So a client that reads slowly holds a statement but
 * no thread, and the statement's own time limit ends that too. An error before the first piece is
 * an HTTP error; later it closes the object: …],"error":{…}}. */
#include "cli/serve/server.h"

#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 128
/* Rows between two looks at whether the client is still there. */
#define LOOK_ROWS 64

typedef struct query_state {
    l2cdb_stmt *stmt;
    bool header_written, arrays;
    uint64_t rows;
} query_state;

static void release(void *state) {
    query_state *s = state;
    l2cdb_finalize(s->stmt);
    free(s);
}

/* ---- Parameters ---------------------------------------------------------------------------- */

static bool bad_param(request *r, const char *what) {
    l2c_request_fail(r, 400, L2CDB_E_INVALID,
                     "a parameter is null, a boolean, a number, a string, an array of numbers,"
                     " {\"vector\": base64 of f32} or {\"blob\": base64}",
                     "%s", what);
    return false;
}

static l2cdb_status bind_array(l2cdb_stmt *s, int i, const json_t *v) {
    size_t n = json_array_size(v);
    float *values = malloc((n + 1) * sizeof *values);
    if (values == NULL) {
        return L2CDB_E_NOMEM;
    }
    l2cdb_status rc = n > 0 ? L2CDB_OK : L2CDB_E_INVALID;
    for (size_t at = 0; at < n; at++) {
        const json_t *x = json_array_get(v, at);
        rc = json_is_number(x) ? rc : L2CDB_E_INVALID;
        values[at] = (float)json_number_value(x);
    }
    rc = rc == L2CDB_OK ? l2cdb_bind_vector(s, i, values, n) : rc;
    free(values);
    return rc;
}

static l2cdb_status bind_base64(l2cdb_stmt *s, int i, const json_t *text, bool vector) {
    size_t n = json_string_length(text);
    void *data = malloc(n / 4 * 3 + 4);
    if (data == NULL) {
        return L2CDB_E_NOMEM;
    }
    size_t size = l2c_wbuf_base64_decode(data, json_string_value(text), n);
    l2cdb_status rc = L2CDB_E_INVALID;
    if (size != SIZE_MAX && vector && size % sizeof(float) == 0) {
        rc = l2cdb_bind_vector(s, i, data, size / sizeof(float));
    } else if (size != SIZE_MAX && !vector) {
        rc = l2cdb_bind_blob(s, i, data, size);
    }
    free(data);
    return rc;
}

static l2cdb_status bind_value(l2cdb_stmt *s, int i, const json_t *v) {
    const json_t *inner;
    switch (json_typeof(v)) {
    case JSON_NULL:
        return l2cdb_bind_null(s, i);
    case JSON_TRUE:
    case JSON_FALSE:
        return l2cdb_bind_int64(s, i, json_is_true(v));
    case JSON_INTEGER:
        return l2cdb_bind_int64(s, i, json_integer_value(v));
    case JSON_REAL:
        return l2cdb_bind_double(s, i, json_real_value(v));
    case JSON_STRING:
        return l2cdb_bind_text(s, i, json_string_value(v), json_string_length(v));
    case JSON_ARRAY:
        return bind_array(s, i, v);
    case JSON_OBJECT:
        if (json_is_string(inner = json_object_get(v, "vector"))) {
            return bind_base64(s, i, inner, true);
        }
        if (json_is_string(inner = json_object_get(v, "blob"))) {
            return bind_base64(s, i, inner, false);
        }
    }
    return L2CDB_E_INVALID;
}

/* A name with its sign, or without it. */
static int find_param(const l2cdb_stmt *s, const char *key) {
    int i = l2cdb_bind_index(s, key);
    for (const char *sign = ":@$"; i == 0 && *sign != '\0'; sign++) {
        char name[NAME_BYTES_MAX];
        size_t n = strlen(key);
        if (n < sizeof name - 1) {
            name[0] = *sign;
            memcpy(name + 1, key, n + 1);
            i = l2cdb_bind_index(s, name);
        }
    }
    return i;
}

static bool bind_named(request *r, l2cdb_stmt *s, json_t *params) {
    const char *key;
    json_t *v;
    json_object_foreach(params, key, v) {
        int i = find_param(s, key);
        if (i == 0) {
            l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "the statement has no parameter \"%s\"",
                             key);
            return false;
        }
        if (bind_value(s, i, v) != L2CDB_OK) {
            return bad_param(r, "a parameter could not be bound");
        }
    }
    return true;
}

static bool bind_all(request *r, l2cdb_stmt *s) {
    json_t *params = json_object_get(r->args, "params");
    int wanted = l2cdb_bind_count(s);
    if (json_is_object(params)) {
        return bind_named(r, s, params);
    }
    if (params != NULL && !json_is_null(params) && !json_is_array(params)) {
        return bad_param(r, "\"params\" must be an array or an object");
    }
    size_t given = json_array_size(params);
    if (given != (size_t)wanted) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         "the statement has %d parameters, %zu are given", wanted, given);
        return false;
    }
    for (size_t i = 0; i < given; i++) {
        if (bind_value(s, (int)i + 1, json_array_get(params, i)) != L2CDB_OK) {
            return bad_param(r, "a parameter could not be bound");
        }
    }
    return true;
}

/* ---- Rows ---------------------------------------------------------------------------------- */

static void put_value(wbuf *out, const query_state *s, int i) {
    l2cdb_stmt *stmt = s->stmt;
    switch (l2cdb_column_type(stmt, i)) {
    case L2CDB_NULL:
        l2c_wbuf_str(out, "null");
        break;
    case L2CDB_INTEGER:
        l2c_wbuf_int(out, l2cdb_column_int64(stmt, i));
        break;
    case L2CDB_FLOAT:
        l2c_wbuf_double(out, l2cdb_column_double(stmt, i));
        break;
    case L2CDB_TEXT: {
        const char *text = l2cdb_column_text(stmt, i);
        l2c_wbuf_json_n(out, text != NULL ? text : "", l2cdb_column_bytes(stmt, i));
        break;
    }
    case L2CDB_VECTOR:
        if (s->arrays) {
            const void *v = l2cdb_column_blob(stmt, i);
            l2c_wbuf_floats(out, v, l2cdb_column_bytes(stmt, i) / sizeof(float));
            break;
        }
        l2c_wbuf_str(out, "{\"vector\":\"");
        l2c_wbuf_base64(out, l2cdb_column_blob(stmt, i), l2cdb_column_bytes(stmt, i));
        l2c_wbuf_str(out, "\"}");
        break;
    case L2CDB_BLOB:
        l2c_wbuf_str(out, "{\"blob\":\"");
        l2c_wbuf_base64(out, l2cdb_column_blob(stmt, i), l2cdb_column_bytes(stmt, i));
        l2c_wbuf_str(out, "\"}");
        break;
    }
}

static void put_header(request *r, query_state *s) {
    l2c_wbuf_str(&r->out, "{\"columns\":[");
    for (int i = 0; i < l2cdb_column_count(s->stmt); i++) {
        l2c_wbuf_str(&r->out, i > 0 ? "," : "");
        l2c_wbuf_json(&r->out, l2cdb_column_name(s->stmt, i));
    }
    l2c_wbuf_str(&r->out, r->ndjson ? "]}\n" : "],\"rows\":[");
    s->header_written = true;
}

static void put_row(request *r, query_state *s) {
    if (s->rows++ > 0 && !r->ndjson) {
        l2c_wbuf_char(&r->out, ',');
    }
    l2c_wbuf_char(&r->out, '[');
    for (int i = 0; i < l2cdb_column_count(s->stmt); i++) {
        if (i > 0) {
            l2c_wbuf_char(&r->out, ',');
        }
        put_value(&r->out, s, i);
    }
    l2c_wbuf_str(&r->out, r->ndjson ? "]\n" : "]");
}

static void put_end(request *r, query_state *s, const l2cdb_error *err) {
    l2c_wbuf_str(&r->out, r->ndjson ? "{" : "],");
    l2c_wbuf_printf(&r->out, "\"row_count\":%llu,", (unsigned long long)s->rows);
    if (err->code != L2CDB_OK) {
        l2c_wbuf_str(&r->out, "\"error\":{\"code\":");
        l2c_wbuf_json(&r->out, l2cdb_status_name(err->code));
        l2c_wbuf_str(&r->out, ",\"message\":");
        l2c_wbuf_json(&r->out, err->message);
        l2c_wbuf_str(&r->out, ",\"hint\":");
        l2c_wbuf_json(&r->out, err->hint);
        l2c_wbuf_str(&r->out, "},");
    }
    l2c_request_timings(r, &r->out);
    l2c_wbuf_str(&r->out, r->ndjson ? "}\n" : "}");
}

static verdict step(request *r, query_state *s) {
    uint64_t started = uv_hrtime();
    l2cdb_error err;
    l2cdb_error_clear(&err);
    bool row = true, full = false;
    while (!full) {
        if (s->rows % LOOK_ROWS == 0 && atomic_load(&r->gone)) {
            row = false;
            break;
        }
        l2cdb_status rc = l2cdb_step(s->stmt, &row, &err);
        if (rc == L2CDB_OK) {
            l2cdb_error_clear(&err);
        }
        if (rc != L2CDB_OK || !row) {
            break;
        }
        if (!s->header_written) {
            put_header(r, s);
        }
        put_row(r, s);
        full = r->out.size >= SERVE_CHUNK_BYTES || r->out.failed;
    }
    r->search_ms += (double)(uv_hrtime() - started) / 1e6;
    if (err.code != L2CDB_OK && !r->streaming) {
        r->error = err;
        return VERDICT_DONE;
    }
    if (full) {
        return VERDICT_MORE;
    }
    if (!s->header_written) {
        put_header(r, s);
    }
    put_end(r, s, &err);
    return VERDICT_DONE;
}

/* ---- The operation ------------------------------------------------------------------------- */

static bool read_limits(request *r, l2cdb_sql_limits *limits) {
    int64_t ms = r->srv->o.sql_ms_max;
    int64_t rows = (int64_t)r->srv->o.sql_rows_max;
    if (!l2c_request_int(r, "timeout_ms", &ms, 1, ms) ||
        !l2c_request_int(r, "rows_max", &rows, 1, rows)) {
        return false;
    }
    *limits = (l2cdb_sql_limits){ .read_only = true,
                                  .timeout_ms = (uint32_t)ms,
                                  .rows_max = (uint64_t)rows };
    return true;
}

/* Whether what follows the statement is more than spaces and comments. */
static bool more_follows(request *r, const char *tail, const l2cdb_sql_limits *limits) {
    l2cdb_stmt *second = NULL;
    bool more =
        l2cdb_prepare(r->srv->db, tail, limits, &second, NULL) != L2CDB_OK || second != NULL;
    l2cdb_finalize(second);
    return more;
}

static bool prepare(request *r, query_state *s) {
    const char *sql = NULL, *tail = NULL;
    l2cdb_sql_limits limits;
    if (!l2c_request_string(r, "sql", &sql) || !read_limits(r, &limits)) {
        return false;
    }
    if (sql == NULL) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"sql\" is missing");
        return false;
    }
    if (!l2c_request_ok(r,
                        l2cdb_prepare_next(r->srv->db, sql, &limits, &s->stmt, &tail, &r->error))) {
        return false;
    }
    if (s->stmt == NULL) {
        l2c_request_fail(r, 400, L2CDB_E_SQL, "", "\"sql\" holds no statement");
        return false;
    }
    if (tail != NULL && *tail != '\0' && more_follows(r, tail, &limits)) {
        l2c_request_fail(r, 400, L2CDB_E_SQL, "send one request for each",
                         "more than one statement in a request");
        return false;
    }
    return bind_all(r, s->stmt);
}

static verdict run_query(request *r) {
    query_state *s = r->state;
    if (s == NULL) {
        s = r->state = calloc(1, sizeof *s);
        const char *vectors = NULL;
        if (s == NULL) {
            l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the query");
            return VERDICT_DONE;
        }
        r->ndjson = r->ndjson && r->http;
        r->content_type = r->ndjson ? "application/x-ndjson" : NULL;
        if (!l2c_request_string(r, "vectors", &vectors) || !prepare(r, s)) {
            return VERDICT_DONE;
        }
        s->arrays = vectors != NULL && strcmp(vectors, "array") == 0;
    }
    return step(r, s);
}

const op l2c_op_query = { "query", LANE_READ, 0, run_query, release };
