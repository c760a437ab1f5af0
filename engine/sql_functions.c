/* SQL functions: encoders, cosine distance, vector algebra, JSON.
 *
 * A vector is a blob of little-endian f32, the same as in sqlite-vec, with a subtype that marks it;
 * text like '[0.1, 0.2]' is read as one wherever a vector is expected, as in pgvector. vec_add and
 * its kin do plain arithmetic on two numbers, so that the rewriter needs no types (sql_rewrite.c).
 * NULL in, NULL out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/vec.h"
#include "engine/sql_engine.h"

#define VECTOR_WIDTH_MAX 65536

/* ---- Values -----------------------------------------------------------------------------------
 */

static l2cdb_status vector_of_text(const char *text, size_t size, l2c_sql_vector *out,
                                   l2cdb_error *err) {
    json_t *array;
    l2cdb_status rc = l2c_json_parse(&array, text, size, "vector", err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t n = json_array_size(array);
    if (!json_is_array(array) || n == 0 || n > VECTOR_WIDTH_MAX) {
        json_decref(array);
        return l2c_fail(err, L2CDB_E_INVALID,
                        "a vector is a JSON array of 1 to %d numbers, this text is not",
                        VECTOR_WIDTH_MAX);
    }
    out->own = l2c_alloc_aligned(n, sizeof *out->own);
    if (out->own == NULL) {
        json_decref(array);
        return l2c_fail_nomem(err, n * sizeof *out->own);
    }
    for (size_t i = 0; i < n && rc == L2CDB_OK; i++) {
        const json_t *value = json_array_get(array, i);
        out->own[i] = (float)json_number_value(value);
        if (!json_is_number(value) || !isfinite(out->own[i])) {
            rc = l2c_fail(err, L2CDB_E_INVALID, "value %zu of the vector is not a number", i + 1);
        }
    }
    json_decref(array);
    if (rc != L2CDB_OK) {
        l2c_free(out->own);
        *out = (l2c_sql_vector){ 0 };
        return rc;
    }
    out->data = out->own;
    out->width = n;
    return L2CDB_OK;
}

static l2cdb_status vector_of_blob(const void *blob, size_t size, l2c_sql_vector *out,
                                   l2cdb_error *err) {
    size_t n = size / sizeof(float);
    if (size == 0 || size % sizeof(float) != 0 || n > VECTOR_WIDTH_MAX) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "a blob of %zu bytes is no vector (4 bytes a value, 1 to %d values)", size,
                        VECTOR_WIDTH_MAX);
    }
    out->data = blob;
    out->width = n;
    if ((uintptr_t)blob % sizeof(float) != 0) {
        out->own = l2c_alloc_aligned(n, sizeof *out->own);
        if (out->own == NULL) {
            return l2c_fail_nomem(err, size);
        }
        memcpy(out->own, blob, size);
        out->data = out->own;
    }
    if (!l2c_vec_finite(out->data, n)) {
        l2c_free(out->own);
        *out = (l2c_sql_vector){ 0 };
        return l2c_fail(err, L2CDB_E_INVALID, "a vector holds values that are not finite");
    }
    return L2CDB_OK;
}

l2cdb_status l2c_sql_vector_of(sqlite3_value *value, l2c_sql_vector *out, l2cdb_error *err) {
    *out = (l2c_sql_vector){ 0 };
    switch (sqlite3_value_type(value)) {
    case SQLITE_BLOB: {
        const void *blob = sqlite3_value_blob(value);
        return vector_of_blob(blob, (size_t)sqlite3_value_bytes(value), out, err);
    }
    case SQLITE_TEXT: {
        const char *text = (const char *)sqlite3_value_text(value);
        size_t size = (size_t)sqlite3_value_bytes(value);
        if (text == NULL) {
            return l2c_fail_nomem(err, 0);
        }
        if (size == 0 || text[0] != '[') {
            l2c_fail(err, L2CDB_E_INVALID, "a vector is expected, found the text '%.*s'",
                     (int)(size < 40 ? size : 40), text);
            return l2c_hint(err, "use embed('…') for the vector of a text");
        }
        return vector_of_text(text, size, out, err);
    }
    case SQLITE_NULL:
        return l2c_fail(err, L2CDB_E_INVALID, "a vector is expected, found NULL");
    default:
        return l2c_fail(err, L2CDB_E_INVALID, "a vector is expected, found the number %s",
                        sqlite3_value_text(value));
    }
}

void l2c_sql_result_vector(sqlite3_context *context, const float *data, size_t width) {
    sqlite3_result_blob64(context, data, width * sizeof *data, SQLITE_TRANSIENT);
    sqlite3_result_subtype(context, L2C_SQL_VECTOR_SUBTYPE);
}

static l2c_sql_conn *conn_of(sqlite3_context *context) {
    return sqlite3_user_data(context);
}

static bool is_number(sqlite3_value *value) {
    int type = sqlite3_value_type(value);
    return type == SQLITE_INTEGER || type == SQLITE_FLOAT;
}

static bool any_null(int n, sqlite3_value **args) {
    for (int i = 0; i < n; i++) {
        if (sqlite3_value_type(args[i]) == SQLITE_NULL) {
            return true;
        }
    }
    return false;
}

/* Two vectors of one width; false with the error as the function's result. Both are to be freed
 * either way. */
static bool two_vectors(sqlite3_context *context, sqlite3_value **args, l2c_sql_vector *a,
                        l2c_sql_vector *b) {
    l2cdb_error e;
    *b = (l2c_sql_vector){ 0 };
    l2cdb_status rc = l2c_sql_vector_of(args[0], a, &e);
    if (rc == L2CDB_OK) {
        rc = l2c_sql_vector_of(args[1], b, &e);
    }
    if (rc == L2CDB_OK && a->width != b->width) {
        rc = l2c_fail(&e, L2CDB_E_MISMATCH, "vectors of different widths: %zu and %zu values",
                      a->width, b->width);
    }
    if (rc != L2CDB_OK) {
        l2c_sql_result_fail(context, conn_of(context), &e);
    }
    return rc == L2CDB_OK;
}

/* ---- Distance ---------------------------------------------------------------------------------
 */

/* 1 − a·b / (|a||b|). Vectors within 1e-5 of unit length, as all stored ones are, are not divided
 * again, so that the result equals the index's. */
static double cosine_distance(const float *a, const float *b, size_t n) {
    float aa = l2c_vec_norm(a, n), bb = l2c_vec_norm(b, n);
    float dot = l2c_vec_dot(a, b, n);
    if (fabsf(aa - 1.0f) > 1e-5f) {
        dot /= fmaxf(aa, 1e-12f);
    }
    if (fabsf(bb - 1.0f) > 1e-5f) {
        dot /= fmaxf(bb, 1e-12f);
    }
    return l2c_sql_decimals(1.0 - (double)dot);
}

static void sql_cosine_distance(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2c_sql_vector a, b;
    if (two_vectors(context, args, &a, &b)) {
        sqlite3_result_double(context, cosine_distance(a.data, b.data, a.width));
    }
    l2c_free(a.own);
    l2c_free(b.own);
}

/* ---- Algebra ----------------------------------------------------------------------------------
 */

static void number_result(sqlite3_context *context, sqlite3_value **args, char op) {
    if (sqlite3_value_type(args[0]) == SQLITE_INTEGER &&
        sqlite3_value_type(args[1]) == SQLITE_INTEGER) {
        int64_t x = sqlite3_value_int64(args[0]), y = sqlite3_value_int64(args[1]), r = 0;
        bool overflow = false;
        switch (op) {
        case '+':
            overflow = __builtin_add_overflow(x, y, &r);
            break;
        case '-':
            overflow = __builtin_sub_overflow(x, y, &r);
            break;
        case '*':
            overflow = __builtin_mul_overflow(x, y, &r);
            break;
        default:
            if (y == 0) {
                return; // NULL, as in SQLite
            }
            overflow = x == INT64_MIN && y == -1;
            r = overflow ? 0 : x / y;
        }
        if (!overflow) {
            sqlite3_result_int64(context, r);
            return;
        }
    }
    double x = sqlite3_value_double(args[0]), y = sqlite3_value_double(args[1]);
    if (op == '/' && y == 0) {
        return;
    }
    sqlite3_result_double(context, op == '+'   ? x + y
                                   : op == '-' ? x - y
                                   : op == '*' ? x * y
                                               : x / y);
}

/* a + sign·b of two vectors or two numbers. */
static void add_result(sqlite3_context *context, int n, sqlite3_value **args, float sign) {
    if (any_null(n, args)) {
        return;
    }
    if (is_number(args[0]) && is_number(args[1])) {
        number_result(context, args, sign > 0 ? '+' : '-');
        return;
    }
    l2c_sql_vector a, b;
    if (two_vectors(context, args, &a, &b)) {
        float *sum = l2c_alloc_aligned(a.width, sizeof *sum);
        if (sum == NULL) {
            sqlite3_result_error_nomem(context);
        } else {
            memcpy(sum, a.data, a.width * sizeof *sum);
            l2c_vec_axpy(sum, b.data, sign, a.width);
            l2c_sql_result_vector(context, sum, a.width);
            l2c_free(sum);
        }
    }
    l2c_free(a.own);
    l2c_free(b.own);
}

static void sql_vec_add(sqlite3_context *context, int n, sqlite3_value **args) {
    add_result(context, n, args, 1.0f);
}

static void sql_vec_sub(sqlite3_context *context, int n, sqlite3_value **args) {
    add_result(context, n, args, -1.0f);
}

static void scaled(sqlite3_context *context, sqlite3_value *vector, double factor) {
    l2cdb_error e;
    l2c_sql_vector v;
    if (l2c_sql_vector_of(vector, &v, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, conn_of(context), &e);
        return;
    }
    float *out = l2c_alloc_aligned(v.width, sizeof *out);
    if (out == NULL) {
        sqlite3_result_error_nomem(context);
    } else {
        for (size_t i = 0; i < v.width; i++) {
            out[i] = (float)((double)v.data[i] * factor);
        }
        l2c_sql_result_vector(context, out, v.width);
        l2c_free(out);
    }
    l2c_free(v.own);
}

/* Vector × number in either order, or the product of two numbers. */
static void sql_vec_scale(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    bool first = is_number(args[0]), second = is_number(args[1]);
    if (first && second) {
        number_result(context, args, '*');
    } else if (first || second) {
        scaled(context, args[first ? 1 : 0], sqlite3_value_double(args[first ? 0 : 1]));
    } else {
        l2cdb_error e;
        l2c_fail(&e, L2CDB_E_INVALID, "a vector is multiplied by a number, not by a vector");
        l2c_sql_result_fail(context, conn_of(context), &e);
    }
}

static void sql_vec_div(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2cdb_error e;
    if (is_number(args[0]) && is_number(args[1])) {
        number_result(context, args, '/');
    } else if (is_number(args[1]) && sqlite3_value_double(args[1]) != 0) {
        scaled(context, args[0], 1.0 / sqlite3_value_double(args[1]));
    } else {
        l2c_fail(&e, L2CDB_E_INVALID, "a vector is divided by a number that is not 0");
        l2c_sql_result_fail(context, conn_of(context), &e);
    }
}

static void sql_vec_normalize(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2cdb_error e;
    l2c_sql_vector v;
    if (l2c_sql_vector_of(args[0], &v, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, conn_of(context), &e);
        return;
    }
    float *out = l2c_alloc_aligned(v.width, sizeof *out);
    if (out == NULL) {
        sqlite3_result_error_nomem(context);
    } else {
        memcpy(out, v.data, v.width * sizeof *out);
        l2c_vec_normalize(out, v.width);
        l2c_sql_result_vector(context, out, v.width);
        l2c_free(out);
    }
    l2c_free(v.own);
}

static void sql_vec_from_json(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2cdb_error e;
    l2c_sql_vector v;
    if (l2c_sql_vector_of(args[0], &v, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, conn_of(context), &e);
        return;
    }
    l2c_sql_result_vector(context, v.data, v.width);
    l2c_free(v.own);
}

/* The shortest decimals that read back as the same f32. */
static void put_float(l2c_buf *b, float x) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) {
            break;
        }
    }
    l2c_buf_puts(b, text);
}

static void sql_vec_to_json(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2cdb_error e;
    l2c_sql_vector v;
    if (l2c_sql_vector_of(args[0], &v, &e) != L2CDB_OK) {
        l2c_sql_result_fail(context, conn_of(context), &e);
        return;
    }
    l2c_buf b;
    l2c_buf_init(&b);
    for (size_t i = 0; i < v.width; i++) {
        l2c_buf_putc(&b, i == 0 ? '[' : ',');
        put_float(&b, v.data[i]);
    }
    l2c_buf_putc(&b, ']');
    l2c_free(v.own);
    if (b.failed) {
        sqlite3_result_error_nomem(context);
    } else {
        sqlite3_result_text64(context, b.data, b.size, SQLITE_TRANSIENT, SQLITE_UTF8);
        sqlite3_result_subtype(context, 'J'); // SQLite's own mark for JSON
    }
    l2c_buf_fini(&b);
}

/* ---- Encoders ---------------------------------------------------------------------------------
 */

/* Runs one of the two encoders into a fresh vector of the view's width. */
static void encoded(sqlite3_context *context, const l2cdb_term *term) {
    l2c_sql_conn *c = conn_of(context);
    l2cdb_error e;
    l2c_view *view;
    float *out = NULL;
    double start = l2c_now();
    l2cdb_status rc = l2c_sql_view(c, &view, &e);
    if (rc == L2CDB_OK && view->generation.width == 0) {
        l2c_fail(&e, L2CDB_E_NOTFOUND, "the database is empty: it has no space to embed into yet");
        rc = l2c_hint(&e, "ingest photos first");
    }
    if (rc == L2CDB_OK) {
        out = l2c_alloc_aligned(view->generation.width, sizeof *out);
        rc = out != NULL ? l2c_encode_term(c->db, view, term, out, &e)
                         : l2c_fail_nomem(&e, view->generation.width * sizeof *out);
    }
    c->encode_s += l2c_now() - start;
    if (rc == L2CDB_OK) {
        l2c_sql_result_vector(context, out, view->generation.width);
    } else {
        l2c_sql_result_fail(context, c, &e);
    }
    l2c_free(out);
}

static void sql_embed(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    const char *text = (const char *)sqlite3_value_text(args[0]);
    if (text == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    encoded(context, &(l2cdb_term){ .kind = L2CDB_TERM_TEXT, .text = text, .weight = 1 });
}

static void sql_embed_image(sqlite3_context *context, int n, sqlite3_value **args) {
    if (any_null(n, args)) {
        return;
    }
    l2c_sql_conn *c = conn_of(context);
    if (sqlite3_value_type(args[0]) == SQLITE_BLOB) {
        const void *bytes = sqlite3_value_blob(args[0]);
        encoded(context, &(l2cdb_term){ .kind = L2CDB_TERM_IMAGE_BYTES,
                                        .data = bytes,
                                        .size = (size_t)sqlite3_value_bytes(args[0]),
                                        .weight = 1 });
        return;
    }
    if (c->limits.read_only) {
        l2cdb_error e;
        l2c_fail(&e, L2CDB_E_DENIED, "embed_image of a file is not allowed on this connection");
        l2c_hint(&e, "pass the photo's bytes as a parameter");
        l2c_sql_result_fail(context, c, &e);
        return;
    }
    const char *path = (const char *)sqlite3_value_text(args[0]);
    if (path == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    encoded(context, &(l2cdb_term){ .kind = L2CDB_TERM_IMAGE_FILE, .text = path, .weight = 1 });
}

static void sql_version(sqlite3_context *context, int n, sqlite3_value **args) {
    (void)n;
    (void)args;
    sqlite3_result_text(context, L2CDB_VERSION, -1, SQLITE_STATIC);
}

/* ---- Registration -----------------------------------------------------------------------------
 */

#ifdef SQLITE_RESULT_SUBTYPE // since 3.45 a function says that it gives subtypes
#define GIVES_SUBTYPE SQLITE_RESULT_SUBTYPE
#else
#define GIVES_SUBTYPE 0
#endif

l2cdb_status l2c_sql_functions_register(l2c_sql_conn *c, l2cdb_error *err) {
    static const struct {
        const char *name;
        int args, flags;
        void (*call)(sqlite3_context *, int, sqlite3_value **);
    } functions[] = {
        { "cosine_distance", 2, SQLITE_INNOCUOUS, sql_cosine_distance },
        { "vec_add", 2, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_add },
        { "vec_sub", 2, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_sub },
        { "vec_scale", 2, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_scale },
        { "vec_div", 2, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_div },
        { "vec_normalize", 1, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_normalize },
        { "vec_from_json", 1, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_from_json },
        { "vec_to_json", 1, SQLITE_INNOCUOUS | GIVES_SUBTYPE, sql_vec_to_json },
        { "embed", 1, GIVES_SUBTYPE, sql_embed },
        // Reads files: never from a view or trigger that a foreign database may bring.
        { "embed_image", 1, SQLITE_DIRECTONLY | GIVES_SUBTYPE, sql_embed_image },
        { "l2cdb_version", 0, SQLITE_INNOCUOUS, sql_version },
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        int rc = sqlite3_create_function_v2(c->sqlite, functions[i].name, functions[i].args,
                                            SQLITE_UTF8 | SQLITE_DETERMINISTIC | functions[i].flags,
                                            c, functions[i].call, NULL, NULL, NULL);
        if (rc != SQLITE_OK) {
            return l2c_sql_status(c, rc, err);
        }
    }
    return L2CDB_OK;
}
