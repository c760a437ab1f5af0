/* What a request carries: its arguments read with care, its errors, its reply's common parts. */
#include "cli/serve/server.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID_BYTES_MAX 256

request *l2c_request_new(server *srv, conn *c, bool http) {
    request *r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->srv = srv;
        r->c = c;
        r->http = http;
        r->error.offset = -1;
        r->started = uv_hrtime();
        atomic_init(&r->gone, false);
    }
    return r;
}

void l2c_request_free(request *r) {
    if (r == NULL) {
        return;
    }
    if (r->state != NULL) {
        r->op->release(r->state);
    }
    l2c_http_drop_header(r);
    atomic_fetch_sub(&r->srv->body_bytes, r->body.size);
    json_decref(r->args);
    for (size_t i = 0; i < r->cuts_count; i++) {
        free(r->cuts[i].data);
    }
    free(r->cuts);
    free(r->target);
    free(r->id_text);
    l2c_wbuf_fini(&r->body);
    l2c_wbuf_fini(&r->out);
    l2c_wbuf_fini(&r->headers);
    free(r);
}

/* ---- Errors -------------------------------------------------------------------------------- */

void l2c_request_fail(request *r, int status, l2cdb_status code, const char *hint, const char *fmt,
                      ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->error.message, sizeof r->error.message, fmt, args);
    va_end(args);
    snprintf(r->error.hint, sizeof r->error.hint, "%s", hint);
    r->error.code = code;
    r->error.offset = -1;
    r->error_status = status;
}

bool l2c_request_ok(request *r, l2cdb_status rc) {
    if (rc == L2CDB_OK) {
        l2cdb_error_clear(&r->error);
    } else if (r->error.code == L2CDB_OK) {
        l2c_request_fail(r, 0, rc, "", "%s", l2cdb_status_text(rc));
    }
    return rc == L2CDB_OK;
}

static int status_of(l2cdb_status code) {
    switch (code) {
    case L2CDB_OK:
        return 200;
    case L2CDB_E_INVALID:
    case L2CDB_E_FORMAT:
    case L2CDB_E_SQL:
        return 400;
    case L2CDB_E_DENIED:
        return 403;
    case L2CDB_E_NOTFOUND:
        return 404;
    case L2CDB_E_EXISTS:
    case L2CDB_E_MISMATCH:
        return 409;
    case L2CDB_E_UNSUPPORTED:
    case L2CDB_E_LIMIT:
        return 422;
    case L2CDB_E_NOMEM:
    case L2CDB_E_BUSY:
    case L2CDB_E_CANCELLED:
        return 503;
    case L2CDB_E_TIMEOUT:
        return 504;
    case L2CDB_E_FULL:
        return 507;
    default:
        return 500;
    }
}

void l2c_request_error_body(request *r) {
    r->status = r->error_status != 0 ? r->error_status : status_of(r->error.code);
    r->content_type = NULL;
    r->cache_control = NULL;
    r->etag[0] = '\0';
    if (r->status == 503 && r->retry_after_s == 0) {
        r->retry_after_s = 1;
    }
    l2c_wbuf_fini(&r->out);
    l2c_wbuf_str(&r->out, "{\"error\":{\"code\":");
    l2c_wbuf_json(&r->out, l2cdb_status_name(r->error.code));
    l2c_wbuf_str(&r->out, ",\"message\":");
    l2c_wbuf_json(&r->out, r->error.message);
    l2c_wbuf_str(&r->out, ",\"hint\":");
    l2c_wbuf_json(&r->out, r->error.hint);
    if (r->error.offset >= 0) {
        l2c_wbuf_str(&r->out, ",\"offset\":");
        l2c_wbuf_int(&r->out, r->error.offset);
    }
    l2c_wbuf_str(&r->out, "}}");
}

/* ---- Parsing ------------------------------------------------------------------------------- */

static json_t *load(const wbuf *text, json_error_t *error) {
    return json_loadb(text->data, text->size, JSON_REJECT_DUPLICATES, error);
}

static bool parse_json(request *r) {
    wbuf rest = { 0 };
    bool fits = l2c_vector_cut(r, r->op == &l2c_op_search, &rest);
    json_error_t error;
    json_t *root = NULL;
    if (fits && r->cuts_count > 0 && !rest.failed) {
        root = load(&rest, &error);
    }
    l2c_wbuf_fini(&rest);
    if (!fits) {
        l2c_request_fail(r, 400, L2CDB_E_LIMIT, "", "JSON nested deeper than %d",
                         SERVE_JSON_DEPTH_MAX);
        return false;
    }
    // Without cuts; and with them an error's place is told in the whole text.
    root = root != NULL ? root : load(&r->body, &error);
    if (root == NULL) {
        l2c_request_fail(r, 400, L2CDB_E_FORMAT, "", "the body is not JSON: %s", error.text);
        r->error.offset = error.position;
        return false;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "the body must be a JSON object");
        return false;
    }
    if (json_object_update(r->args, root) != 0) {
        json_decref(root);
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the request");
        return false;
    }
    json_decref(root);
    return true;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Decodes in place; returns the length. */
static size_t percent_decode(char *text, size_t n) {
    size_t size = 0;
    for (size_t i = 0; i < n; i++) {
        char ch = text[i] == '+' ? ' ' : text[i];
        if (ch == '%' && i + 2 < n && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
            ch = (char)(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
            i += 2;
        }
        text[size++] = ch;
    }
    return size;
}

static bool parse_query_string(request *r) {
    const char *mark = r->target != NULL ? strchr(r->target, '?') : NULL;
    if (mark == NULL) {
        return true;
    }
    char *copy = strdup(mark + 1);
    if (copy == NULL) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the request");
        return false;
    }
    bool good = true;
    char *rest = NULL;
    for (char *pair = strtok_r(copy, "&", &rest); pair != NULL && good;
         pair = strtok_r(NULL, "&", &rest)) {
        char *equals = strchr(pair, '=');
        size_t key_size = equals != NULL ? (size_t)(equals - pair) : strlen(pair);
        char *value = equals != NULL ? equals + 1 : pair + key_size;
        size_t value_size = percent_decode(value, strlen(value));
        key_size = percent_decode(pair, key_size);
        json_t *text = json_stringn(value, value_size); // NULL if it is not UTF-8
        good = text != NULL && memchr(value, 0, value_size) == NULL;
        if (good) {
            good = json_object_setn_new(r->args, pair, key_size, text) == 0;
        } else {
            json_decref(text);
        }
    }
    free(copy);
    if (!good) {
        l2c_request_fail(r, 400, L2CDB_E_FORMAT, "", "the query string is not percent-coded UTF-8");
    }
    return good;
}

/* "id" and "op" of a line. */
static bool parse_line(request *r) {
    const json_t *id = json_object_get(r->args, "id");
    if (id != NULL) {
        if (!json_is_string(id) && !json_is_integer(id) && !json_is_null(id)) {
            l2c_request_fail(r, 0, L2CDB_E_INVALID, "",
                             "\"id\" must be a string or a whole number");
            return false;
        }
        r->id_text = json_dumps(id, JSON_ENCODE_ANY);
        if (r->id_text == NULL || strlen(r->id_text) > ID_BYTES_MAX) {
            free(r->id_text);
            r->id_text = NULL;
            l2c_request_fail(r, 0, L2CDB_E_LIMIT, "", "\"id\" is longer than %d bytes",
                             ID_BYTES_MAX);
            return false;
        }
    }
    const json_t *name = json_object_get(r->args, "op");
    const op *found = json_is_string(name)
                          ? l2c_routes_op(json_string_value(name), json_string_length(name))
                          : NULL;
    if (found == NULL) {
        l2c_request_fail(r, 404, L2CDB_E_NOTFOUND, "docs/server.md lists the operations",
                         "unknown \"op\" %s%s%s", json_is_string(name) ? "'" : "",
                         json_is_string(name) ? json_string_value(name) : "(none)",
                         json_is_string(name) ? "'" : "");
        return false;
    }
    r->op = found;
    return true;
}

bool l2c_request_parse(request *r) {
    r->args = json_object();
    if (r->args == NULL) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the request");
        return false;
    }
    if (r->http && !parse_query_string(r)) {
        return false;
    }
    bool json = !r->raw_image && r->body.size > 0;
    if (json && r->http && (r->op->flags & OP_BARE)) {
        return true; // a body that means nothing here
    }
    return (!json || parse_json(r)) && (r->http || parse_line(r));
}

verdict l2c_request_run(request *r) {
    verdict v = VERDICT_DONE;
    if (r->error.code == L2CDB_OK && r->op->run != NULL) {
        v = r->op->run(r);
    }
    if (r->error.code != L2CDB_OK && !r->streaming) {
        l2c_request_error_body(r);
        return VERDICT_DONE;
    }
    return v;
}

void l2c_request_timings(request *r, wbuf *out) {
    l2c_wbuf_str(out, "\"queue_ms\":");
    l2c_wbuf_fixed(out, r->queue_ms, 3);
    l2c_wbuf_str(out, ",\"encode_ms\":");
    l2c_wbuf_fixed(out, r->encode_ms, 3);
    l2c_wbuf_str(out, ",\"search_ms\":");
    l2c_wbuf_fixed(out, r->search_ms, 3);
    l2c_wbuf_str(out, ",\"fetch_ms\":");
    l2c_wbuf_fixed(out, r->fetch_ms, 3);
}

/* ---- Arguments ----------------------------------------------------------------------------- */

static const json_t *member(request *r, const char *key) {
    const json_t *v = json_object_get(r->args, key);
    return json_is_null(v) ? NULL : v;
}

static bool wrong(request *r, const char *key, const char *expected) {
    l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"%s\" must be %s", key, expected);
    return false;
}

bool l2c_request_int(request *r, const char *key, int64_t *out, int64_t least, int64_t most) {
    const json_t *v = member(r, key);
    if (v == NULL) {
        return true;
    }
    int64_t n = 0;
    bool good = json_is_integer(v);
    if (good) {
        n = json_integer_value(v);
    } else if (json_is_string(v) && r->http) {
        char *end;
        errno = 0;
        n = strtoll(json_string_value(v), &end, 10);
        good = end != json_string_value(v) && *end == '\0' && errno == 0;
    }
    if (!good || n < least || n > most) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         "\"%s\" must be a whole number from %lld to %lld", key, (long long)least,
                         (long long)most);
        return false;
    }
    *out = n;
    return true;
}

bool l2c_request_double(request *r, const char *key, double *out) {
    const json_t *v = member(r, key);
    if (v == NULL) {
        return true;
    }
    double n = json_number_value(v);
    bool good = json_is_number(v);
    if (!good && json_is_string(v) && r->http) {
        char *end;
        n = strtod(json_string_value(v), &end);
        good = end != json_string_value(v) && *end == '\0';
    }
    if (!good || !isfinite(n)) {
        return wrong(r, key, "a number");
    }
    *out = n;
    return true;
}

bool l2c_request_bool(request *r, const char *key, bool *out) {
    const json_t *v = member(r, key);
    if (v == NULL) {
        return true;
    }
    if (json_is_string(v) && r->http) {
        const char *text = json_string_value(v);
        *out = strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
        return *out || strcmp(text, "false") == 0 || strcmp(text, "0") == 0 ||
               wrong(r, key, "true or false");
    }
    *out = json_is_true(v);
    return json_is_boolean(v) || wrong(r, key, "true or false");
}

bool l2c_request_string(request *r, const char *key, const char **out) {
    const json_t *v = member(r, key);
    if (v == NULL) {
        return true;
    }
    *out = json_string_value(v);
    return json_is_string(v) || wrong(r, key, "a string");
}

bool l2c_request_id(request *r, const char *key, int64_t *out) {
    *out = r->path_id;
    if (r->http) {
        return true;
    }
    *out = -1;
    if (!l2c_request_int(r, key, out, 0, INT64_MAX)) {
        return false;
    }
    return *out >= 0 || wrong(r, key, "a whole number");
}
