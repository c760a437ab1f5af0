/* JSON lines on a connection: one request a line, one reply a line, in order.
 *
 * A line is cut out and handed over unparsed; only the name of its operation is peeked at, so that
 * writes get the writer's lane and their order. The full parse, on a worker, has the last word. */
#include "cli/serve/server.h"

#include <stdlib.h>
#include <string.h>

#define PEEK_BYTES 512
#define AUTH_LINE_BYTES_MAX 4096

static const char *skip_spaces(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r')) {
        at++;
    }
    return at;
}

/* at is past the opening quote; returns the closing one, or NULL if it is not before end. */
static const char *string_end(const char *at, const char *end) {
    while (at < end && *at != '"') {
        at += *at == '\\' ? 2 : 1;
    }
    return at < end ? at : NULL;
}

/* The operation named by a top-level "op" near the start of the line; NULL if not seen. */
static const op *peek(const char *line, size_t n) {
    const char *at = line, *end = line + (n < PEEK_BYTES ? n : PEEK_BYTES);
    int depth = 0;
    bool name = false; // the next string at depth 1 is a member's name
    while (at < end) {
        char ch = *at++;
        if (ch == '{' || ch == '[') {
            depth++;
            name = ch == '{';
        } else if (ch == '}' || ch == ']') {
            depth--;
        } else if (ch == ',') {
            name = true;
        } else if (ch == '"') {
            const char *close = string_end(at, end);
            if (close == NULL) {
                return NULL;
            }
            bool is_op = depth == 1 && name && close - at == 2 && memcmp(at, "op", 2) == 0;
            at = close + 1;
            name = false;
            if (is_op) {
                at = skip_spaces(at, end);
                at = at < end && *at == ':' ? skip_spaces(at + 1, end) : end;
                if (at == end || *at != '"' || (close = string_end(at + 1, end)) == NULL) {
                    return NULL;
                }
                return l2c_routes_op(at + 1, (size_t)(close - at - 1));
            }
        }
    }
    return NULL;
}

static void refuse_auth(conn *c, request *r) {
    c->srv->metrics.unauthorised++;
    l2c_request_fail(r, 401, L2CDB_E_DENIED, "send {\"auth\":\"TOKEN\"} as the first line",
                     "this server asks for a token");
    r->close_after = true;
    l2c_conn_request(c, r);
}

/* {"auth":"…"}: answered here, on the loop. False: the line is something else. */
static bool take_auth(conn *c, request *r, const char *line, size_t n) {
    json_t *root =
        n <= AUTH_LINE_BYTES_MAX ? json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const json_t *given = json_object_get(root, "auth");
    bool is_auth = json_is_string(given);
    bool right = is_auth &&
                 l2c_auth_token(&c->srv->auth, json_string_value(given), json_string_length(given));
    json_decref(root);
    if (!is_auth) {
        return false;
    }
    if (!right) {
        refuse_auth(c, r);
        return true;
    }
    c->authed = true;
    static const op op_auth = { .name = "auth", .lane = LANE_LOOP, .run = NULL };
    r->op = &op_auth;
    l2c_wbuf_str(&r->out, "{\"ok\":true}");
    l2c_conn_request(c, r);
    return true;
}

static void take_line(conn *c, const char *line, size_t n) {
    const char *start = skip_spaces(line, line + n);
    if (start == line + n) {
        return; // an empty line
    }
    request *r = l2c_request_new(c->srv, c, false);
    if (r == NULL) {
        c->broken = true;
        return;
    }
    r->keep_alive = true;
    r->bytes_in = n + 1;
    bool wanted = c->srv->auth.token != NULL && !c->authed;
    if ((wanted || (n > 8 && memcmp(start, "{\"auth\"", 7) == 0)) && take_auth(c, r, line, n)) {
        return;
    }
    if (wanted) {
        refuse_auth(c, r);
        return;
    }
    l2c_wbuf_put(&r->body, line, n);
    if (r->body.failed) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the line");
    } else {
        atomic_fetch_add(&c->srv->body_bytes, n);
    }
    r->op = peek(line, n);
    l2c_conn_request(c, r);
}

static void refuse_length(conn *c) {
    request *r = l2c_request_new(c->srv, c, false);
    if (r == NULL) {
        c->broken = true;
        return;
    }
    l2c_request_fail(r, 413, L2CDB_E_LIMIT, "", "the line is longer than %zu bytes",
                     SERVE_JSON_BYTES_MAX);
    r->close_after = true;
    l2c_conn_request(c, r);
}

bool l2c_jsonl_feed(conn *c, const char *data, size_t n, size_t *used) {
    size_t line_max =
        c->srv->auth.token != NULL && !c->authed ? AUTH_LINE_BYTES_MAX : SERVE_JSON_BYTES_MAX;
    size_t at = 0;
    while (c->stalled == NULL && !c->ending && !c->broken) {
        size_t from = at + c->scanned;
        const char *end = from < n ? memchr(data + from, '\n', n - from) : NULL;
        if (end == NULL) {
            break;
        }
        size_t size = (size_t)(end - (data + at));
        c->scanned = 0;
        if (size > SERVE_JSON_BYTES_MAX) {
            refuse_length(c);
            break;
        }
        take_line(c, data + at, size);
        at += size + 1;
    }
    *used = c->ending ? n : at;
    if (c->ending || c->stalled != NULL) {
        return true;
    }
    c->scanned = n - at;
    c->partial_bytes = n - at;
    if (n - at > line_max) {
        refuse_length(c);
        *used = n;
    } else if (n == at) {
        c->partial_since = 0;
    } else if (c->partial_since == 0) {
        c->partial_since = uv_now(&c->srv->loop);
    }
    return true;
}

void l2c_jsonl_finish(conn *c) {
    if (c->in.size > 0) {
        wbuf line = c->in;
        c->in = (wbuf){ 0 };
        c->scanned = 0;
        take_line(c, line.data, line.size);
        l2c_wbuf_fini(&line);
    }
}

void l2c_jsonl_head(request *r, wbuf *out) {
    l2c_wbuf_char(out, '{');
    if (r->id_text != NULL) {
        l2c_wbuf_str(out, "\"id\":");
        l2c_wbuf_str(out, r->id_text);
    }
}
