/* The photo page and its parts, compiled in from cli/serve/page/, and the session that lets a
 * browser show pictures (an <img> cannot send a token; a cookie it can).
 *
 * The page may load nothing but what this server gives: its own script, its own style, pictures. */
#include "cli/serve/server.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PAGE_POLICY                                                                                \
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';"            \
    " img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none';"        \
    " frame-ancestors 'none'\r\n"                                                                  \
    "Referrer-Policy: no-referrer\r\nX-Frame-Options: DENY\r\n"                                    \
    "Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"

/* page.S */
extern const char l2c_page_html[], l2c_page_html_end[], l2c_page_css[], l2c_page_css_end[],
    l2c_page_js[], l2c_page_js_end[], l2c_page_icon[], l2c_page_icon_end[], l2c_page_openapi[],
    l2c_page_openapi_end[];

/* FNV-1a; only to tell builds apart. */
static uint64_t hash(const char *data, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ (unsigned char)data[i]) * 0x100000001b3u;
    }
    return h;
}

static verdict give(request *r, const char *type, const char *data, const char *end) {
    size_t n = (size_t)(end - data);
    snprintf(r->etag, sizeof r->etag, "%016" PRIx64, hash(data, n));
    r->content_type = type;
    r->cache_control = "no-cache";
    l2c_wbuf_str(&r->headers, PAGE_POLICY);
    if (strstr(r->etag_in, r->etag) != NULL) {
        r->status = 304;
    } else {
        l2c_wbuf_put(&r->out, data, n);
    }
    return VERDICT_DONE;
}

static verdict run_page(request *r) {
    return give(r, "text/html; charset=utf-8", l2c_page_html, l2c_page_html_end);
}

static verdict run_css(request *r) {
    return give(r, "text/css; charset=utf-8", l2c_page_css, l2c_page_css_end);
}

static verdict run_js(request *r) {
    return give(r, "text/javascript; charset=utf-8", l2c_page_js, l2c_page_js_end);
}

static verdict run_icon(request *r) {
    return give(r, "image/svg+xml", l2c_page_icon, l2c_page_icon_end);
}

static verdict run_openapi(request *r) {
    return give(r, "application/yaml", l2c_page_openapi, l2c_page_openapi_end);
}

static verdict run_session(request *r) {
    if (r->srv->auth.token != NULL) {
        l2c_wbuf_printf(&r->headers,
                        "Set-Cookie: l2cdb_session=%s; Path=/; HttpOnly; SameSite=Strict\r\n",
                        r->srv->auth.session);
    }
    l2c_wbuf_str(&r->out, "{\"ok\":true}");
    return VERDICT_DONE;
}

static verdict run_end_session(request *r) {
    l2c_wbuf_str(&r->headers, "Set-Cookie: l2cdb_session=; Path=/; Max-Age=0; HttpOnly\r\n");
    l2c_wbuf_str(&r->out, "{\"ok\":true}");
    return VERDICT_DONE;
}

#define STATIC_PART (OP_BARE | OP_HTTP | OP_OPEN | OP_PAGE)
const op l2c_op_page = { "page", LANE_LOOP, STATIC_PART, run_page, NULL };
const op l2c_op_page_css = { "page_css", LANE_LOOP, STATIC_PART, run_css, NULL };
const op l2c_op_page_js = { "page_js", LANE_LOOP, STATIC_PART, run_js, NULL };
const op l2c_op_page_icon = { "page_icon", LANE_LOOP, STATIC_PART, run_icon, NULL };
const op l2c_op_openapi = { "openapi", LANE_LOOP, STATIC_PART, run_openapi, NULL };
const op l2c_op_session = { "session", LANE_LOOP, OP_BARE | OP_HTTP, run_session, NULL };
const op l2c_op_end_session = { "end_session", LANE_LOOP, OP_BARE | OP_HTTP, run_end_session,
                                NULL };
