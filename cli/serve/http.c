/* HTTP/1.1 on a connection: llhttp finds the pieces, this file judges them.
 *
 * Everything that can be refused is refused when the header is complete, before a byte of the body
 * is kept: unknown routes, missing tokens, foreign origins, bodies that are announced too long. A
 * refused request with a body ends its connection, since the body is never read. */
#include "cli/serve/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEADERS_MAX 100
#define TARGET_BYTES_MAX 8192

/* Lives while the header of a request is being received. */
struct header_values {
    size_t bytes, count;
    wbuf target, field, value;
    bool in_value;
    wbuf host, origin, fetch_site, authorization, cookie, accept;
};

static void header_free(struct header_values *h) {
    if (h != NULL) {
        wbuf *all[] = { &h->target,     &h->field,         &h->value,  &h->host,  &h->origin,
                        &h->fetch_site, &h->authorization, &h->cookie, &h->accept };
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            l2c_wbuf_fini(all[i]);
        }
        free(h);
    }
}

void l2c_http_drop_header(request *r) {
    header_free(r->header);
    r->header = NULL;
}

static const char *text_or_null(wbuf *b) {
    return b->size > 0 ? l2c_wbuf_cstr(b) : NULL;
}

/* ---- What llhttp calls --------------------------------------------------------------------- */

static int on_begin(llhttp_t *parser) {
    conn *c = parser->data;
    c->current = l2c_request_new(c->srv, c, true);
    if (c->current == NULL) {
        return -1;
    }
    c->current->header = calloc(1, sizeof *c->current->header);
    c->partial_since = uv_now(&c->srv->loop);
    c->partial_bytes = 0;
    return c->current->header != NULL ? 0 : -1;
}

/* Counts header bytes; -1 when there are too many. */
static int grow_header(conn *c, wbuf *into, const char *at, size_t n) {
    request *r = c->current;
    r->header->bytes += n;
    if (r->header->bytes > SERVE_HEADER_BYTES_MAX) {
        l2c_request_fail(r, 431, L2CDB_E_LIMIT, "", "the header is longer than %zu bytes",
                         SERVE_HEADER_BYTES_MAX);
        return -1;
    }
    l2c_wbuf_put(into, at, n);
    return into->failed ? -1 : 0;
}

static int on_url(llhttp_t *parser, const char *at, size_t n) {
    conn *c = parser->data;
    if (c->current->header->target.size + n > TARGET_BYTES_MAX) {
        l2c_request_fail(c->current, 414, L2CDB_E_LIMIT, "", "the address is longer than %d bytes",
                         TARGET_BYTES_MAX);
        return -1;
    }
    return grow_header(c, &c->current->header->target, at, n);
}

static bool is(const wbuf *field, const char *name) {
    return field->size == strlen(name) && strncasecmp(field->data, name, field->size) == 0;
}

static void copy_cut(char *out, size_t room, const wbuf *value) {
    snprintf(out, room, "%.*s", (int)(value->size < room ? value->size : room - 1),
             value->size > 0 ? value->data : "");
}

/* Keeps what matters of a header line that is complete. */
static void take_line(request *r) {
    struct header_values *h = r->header;
    struct {
        const char *name;
        wbuf *into;
    } kept[] = {
        { "host", &h->host },     { "origin", &h->origin },
        { "cookie", &h->cookie }, { "authorization", &h->authorization },
        { "accept", &h->accept }, { "sec-fetch-site", &h->fetch_site },
    };
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        if (is(&h->field, kept[i].name)) {
            l2c_wbuf_fini(kept[i].into);
            *kept[i].into = h->value;
            h->value = (wbuf){ 0 };
        }
    }
    if (is(&h->field, "content-type")) {
        copy_cut(r->content_type_in, sizeof r->content_type_in, &h->value);
    } else if (is(&h->field, "if-none-match")) {
        copy_cut(r->etag_in, sizeof r->etag_in, &h->value);
    } else if (is(&h->field, "expect")) {
        r->expect_100 = h->value.size == 12 && strncasecmp(h->value.data, "100-continue", 12) == 0;
    }
    h->field.size = h->value.size = 0;
    h->in_value = false;
}

static int on_field(llhttp_t *parser, const char *at, size_t n) {
    conn *c = parser->data;
    struct header_values *h = c->current->header;
    if (h == NULL) {
        return 0; // a trailer after the last chunk
    }
    if (h->in_value) {
        take_line(c->current);
    }
    if (h->field.size == 0 && ++h->count > HEADERS_MAX) {
        l2c_request_fail(c->current, 431, L2CDB_E_LIMIT, "", "more than %d header lines",
                         HEADERS_MAX);
        return -1;
    }
    return grow_header(c, &h->field, at, n);
}

static int on_value(llhttp_t *parser, const char *at, size_t n) {
    conn *c = parser->data;
    struct header_values *h = c->current->header;
    if (h == NULL) {
        return 0;
    }
    h->in_value = true;
    return grow_header(c, &h->value, at, n);
}

static size_t body_max(const request *r) {
    if (r->op != NULL && (r->op->flags & OP_RAW) && r->raw_image) {
        return SERVE_BODY_BYTES_MAX;
    }
    return SERVE_JSON_BYTES_MAX;
}

static void refuse_length(request *r) {
    l2c_request_fail(r, 413, L2CDB_E_LIMIT, "", "the body is longer than %zu bytes", body_max(r));
}

/* Token and origin, before anything else of the request is looked at. */
static void check_access(request *r) {
    struct header_values *h = r->header;
    server *srv = r->srv;
    unsigned flags = r->op != NULL ? r->op->flags : 0;
    if (!l2c_auth_same_site(srv, text_or_null(&h->host), text_or_null(&h->origin),
                            text_or_null(&h->fetch_site), (flags & OP_PAGE) != 0)) {
        l2c_request_fail(r, 403, L2CDB_E_DENIED,
                         "start the server with --cors or --host to allow it",
                         "a page of another site may not call this server");
        return;
    }
    if ((flags & OP_OPEN) || l2c_auth_header(&srv->auth, text_or_null(&h->authorization)) ||
        l2c_auth_cookie(&srv->auth, text_or_null(&h->cookie))) {
        return;
    }
    srv->metrics.unauthorised++;
    r->op = NULL; // an unknown client learns nothing about routes
    l2c_wbuf_str(&r->headers, "WWW-Authenticate: Bearer\r\n");
    l2c_request_fail(r, 401, L2CDB_E_DENIED, "send \"Authorization: Bearer TOKEN\"",
                     "this server asks for a token");
}

static void allow_origin(request *r) {
    const char *cors = r->srv->o.cors;
    struct header_values *h = r->header;
    if (cors != NULL && h->origin.size > 0) {
        l2c_wbuf_printf(&r->headers, "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n", cors);
    }
}

static int on_headers(llhttp_t *parser) {
    conn *c = parser->data;
    request *r = c->current;
    struct header_values *h = r->header;
    if (h->in_value) {
        take_line(r);
    }
    r->method = (llhttp_method_t)llhttp_get_method(parser);
    r->minor0 = parser->http_major == 1 && parser->http_minor == 0;
    r->head_only = r->method == HTTP_HEAD;
    r->keep_alive = llhttp_should_keep_alive(parser) && !c->srv->draining;
    r->target = h->target.data;
    (void)l2c_wbuf_cstr(&h->target);
    r->target = h->target.data;
    h->target = (wbuf){ 0 };
    r->ndjson = h->accept.size > 0 && strstr(l2c_wbuf_cstr(&h->accept), "ndjson") != NULL;
    bool has_body = parser->content_length > 0 || (parser->flags & F_CHUNKED) != 0;
    if (r->target == NULL || parser->http_major != 1) {
        l2c_request_fail(r, 505, L2CDB_E_UNSUPPORTED, "", "only HTTP/1.0 and 1.1 are spoken here");
    } else {
        bool found = l2c_routes_find(r);
        l2cdb_error error = r->error;
        int status = r->error_status;
        l2cdb_error_clear(&r->error);
        check_access(r);
        if (r->error.code == L2CDB_OK && !found) {
            r->error = error;
            r->error_status = status;
        }
    }
    allow_origin(r);
    r->raw_image = r->op != NULL && (r->op->flags & OP_RAW) &&
                   strncasecmp(r->content_type_in, "application/json", 16) != 0 &&
                   (r->method == HTTP_PUT || strncasecmp(r->content_type_in, "image/", 6) == 0 ||
                    strncasecmp(r->content_type_in, "application/octet-stream", 24) == 0);
    if (r->error.code == L2CDB_OK && parser->content_length > body_max(r) &&
        !(parser->flags & F_CHUNKED)) {
        refuse_length(r);
    }
    if (r->error.code == L2CDB_OK && has_body &&
        atomic_load(&c->srv->body_bytes) > SERVE_HELD_BYTES_MAX) {
        r->retry_after_s = 1;
        l2c_request_fail(r, 503, L2CDB_E_BUSY, "try again in a second",
                         "the server holds too many unfinished uploads");
    }
    l2c_http_drop_header(r);
    c->partial_since = uv_now(&c->srv->loop);
    if (r->error.code != L2CDB_OK && has_body) {
        return -1;
    }
    if (r->expect_100 && c->first == NULL && has_body) {
        r->expect_100 = false;
        l2c_wbuf_str(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    }
    return 0;
}

static int on_body(llhttp_t *parser, const char *at, size_t n) {
    conn *c = parser->data;
    request *r = c->current;
    if (r->body.size + n > body_max(r)) {
        refuse_length(r);
        return -1;
    }
    if (r->body.size == 0 && parser->content_length <= SERVE_BODY_BYTES_MAX) {
        l2c_wbuf_reserve(&r->body, (size_t)parser->content_length);
    }
    l2c_wbuf_put(&r->body, at, n);
    if (r->body.failed) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the body");
        return -1;
    }
    atomic_fetch_add(&c->srv->body_bytes, n);
    c->partial_bytes += n;
    return 0;
}

static int on_complete(llhttp_t *parser) {
    conn *c = parser->data;
    request *r = c->current;
    c->current = NULL;
    r->bytes_in = r->body.size;
    r->expect_100 = false;
    r->close_after = !r->keep_alive;
    l2c_conn_request(c, r);
    return c->stalled != NULL || c->ending ? HPE_PAUSED : 0;
}

static const llhttp_settings_t settings = {
    .on_message_begin = on_begin,
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_headers,
    .on_body = on_body,
    .on_message_complete = on_complete,
};

/* ---- The door ------------------------------------------------------------------------------ */

void l2c_http_init(conn *c) {
    llhttp_init(&c->parser, HTTP_REQUEST, &settings);
    c->parser.data = c;
}

/* The parser gave up, or a callback did: the reason becomes the last reply. */
static void refuse(conn *c) {
    request *r = c->current;
    c->current = NULL;
    if (r == NULL) {
        r = l2c_request_new(c->srv, c, true);
    }
    if (r == NULL) {
        c->broken = true;
        return;
    }
    if (r->error.code == L2CDB_OK) {
        c->srv->metrics.bad_requests++;
        l2c_request_fail(r, 400, L2CDB_E_FORMAT, "", "not HTTP: %s",
                         llhttp_get_error_reason(&c->parser) != NULL
                             ? llhttp_get_error_reason(&c->parser)
                             : "malformed request");
    }
    l2c_http_drop_header(r);
    r->close_after = true;
    l2c_conn_request(c, r);
}

bool l2c_http_feed(conn *c, const char *data, size_t n, size_t *used) {
    llhttp_errno_t rc = llhttp_execute(&c->parser, data, n);
    *used = n;
    if (rc == HPE_OK) {
        return true;
    }
    if (rc == HPE_PAUSED || rc == HPE_PAUSED_UPGRADE) {
        *used = (size_t)(llhttp_get_error_pos(&c->parser) - data);
        if (rc == HPE_PAUSED) {
            llhttp_resume(&c->parser);
        } else {
            llhttp_resume_after_upgrade(&c->parser); // we go on speaking HTTP/1.1
        }
        return true;
    }
    refuse(c);
    return false;
}

static const char *status_text(int status) {
    static const struct {
        int status;
        const char *text;
    } table[] = {
        { 200, "OK" },
        { 201, "Created" },
        { 202, "Accepted" },
        { 204, "No Content" },
        { 304, "Not Modified" },
        { 400, "Bad Request" },
        { 401, "Unauthorized" },
        { 403, "Forbidden" },
        { 404, "Not Found" },
        { 405, "Method Not Allowed" },
        { 408, "Request Timeout" },
        { 409, "Conflict" },
        { 413, "Content Too Large" },
        { 414, "URI Too Long" },
        { 422, "Unprocessable Content" },
        { 431, "Request Header Fields Too Large" },
        { 503, "Service Unavailable" },
        { 504, "Gateway Timeout" },
        { 505, "HTTP Version Not Supported" },
        { 507, "Insufficient Storage" },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].status == status) {
            return table[i].text;
        }
    }
    return "Internal Server Error";
}

static const char *http_date(server *srv) {
    time_t now = time(NULL);
    if (now != srv->date_of) {
        struct tm tm;
        gmtime_r(&now, &tm);
        strftime(srv->date, sizeof srv->date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
        srv->date_of = now;
    }
    return srv->date;
}

void l2c_http_head(request *r, wbuf *out, size_t length) {
    int status = r->status != 0 ? r->status : 200;
    l2c_wbuf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, status_text(status),
                    http_date(r->srv));
    if (length == SIZE_MAX && r->minor0) {
        r->keep_alive = false;
    } else if (length == SIZE_MAX) {
        l2c_wbuf_str(out, "Transfer-Encoding: chunked\r\n");
    } else if (status != 204 && status != 304) {
        l2c_wbuf_printf(out, "Content-Length: %zu\r\n", length);
    }
    if (status != 204 && status != 304) {
        l2c_wbuf_printf(out, "Content-Type: %s\r\n",
                        r->content_type != NULL ? r->content_type : "application/json");
    }
    l2c_wbuf_printf(out, "Cache-Control: %s\r\nX-Content-Type-Options: nosniff\r\n",
                    r->cache_control != NULL ? r->cache_control : "no-store");
    if (r->etag[0] != '\0') {
        l2c_wbuf_printf(out, "ETag: \"%s\"\r\n", r->etag);
    }
    if (r->retry_after_s > 0) {
        l2c_wbuf_printf(out, "Retry-After: %u\r\n", r->retry_after_s);
    }
    l2c_wbuf_put(out, r->headers.data, r->headers.size);
    if (r->close_after || !r->keep_alive) {
        l2c_wbuf_str(out, "Connection: close\r\n\r\n");
    } else if (r->minor0) {
        l2c_wbuf_str(out, "Connection: keep-alive\r\n\r\n");
    } else {
        l2c_wbuf_str(out, "\r\n");
    }
}
