/* Which operation answers what: the table of HTTP routes and the names of JSON lines. */
#include "cli/serve/server.h"

#include <stdio.h>
#include <string.h>

static const route table[] = {
    { HTTP_POST, "/v1/search", &l2c_op_search },
    { HTTP_POST, "/v1/encode", &l2c_op_encode },
    { HTTP_POST, "/v1/query", &l2c_op_query },
    { HTTP_PUT, "/v1/images", &l2c_op_put_image },
    { HTTP_GET, "/v1/images/:id", &l2c_op_image },
    { HTTP_DELETE, "/v1/images/:id", &l2c_op_delete_image },
    { HTTP_GET, "/v1/images/:id/thumb", &l2c_op_thumb },
    { HTTP_GET, "/v1/images/:id/original", &l2c_op_original },
    { HTTP_GET, "/v1/images/:id/captions", &l2c_op_captions },
    { HTTP_POST, "/v1/captions", &l2c_op_add_caption },
    { HTTP_PUT, "/v1/captions/:id", &l2c_op_update_caption },
    { HTTP_DELETE, "/v1/captions/:id", &l2c_op_delete_caption },
    { HTTP_POST, "/v1/ingest", &l2c_op_ingest },
    { HTTP_POST, "/v1/tune", &l2c_op_tune },
    { HTTP_POST, "/v1/reindex", &l2c_op_reindex },
    { HTTP_POST, "/v1/rollback", &l2c_op_rollback },
    { HTTP_GET, "/v1/jobs", &l2c_op_jobs },
    { HTTP_GET, "/v1/jobs/:id", &l2c_op_job },
    { HTTP_DELETE, "/v1/jobs/:id", &l2c_op_cancel_job },
    { HTTP_GET, "/v1/jobs/:id/events", &l2c_op_job_events },
    { HTTP_GET, "/v1/stats", &l2c_op_stats },
    { HTTP_POST, "/v1/session", &l2c_op_session },
    { HTTP_DELETE, "/v1/session", &l2c_op_end_session },
    { HTTP_GET, "/metrics", &l2c_op_metrics },
    { HTTP_GET, "/healthz", &l2c_op_health },
    { HTTP_GET, "/livez", &l2c_op_live },
    { HTTP_GET, "/readyz", &l2c_op_ready },
    { HTTP_GET, "/", &l2c_op_page },
    { HTTP_GET, "/app.css", &l2c_op_page_css },
    { HTTP_GET, "/app.js", &l2c_op_page_js },
    { HTTP_GET, "/icon.svg", &l2c_op_page_icon },
    { HTTP_GET, "/openapi.yaml", &l2c_op_openapi },
};
#define ROUTES (sizeof table / sizeof table[0])

/* Whole numbers without a sign and at most 18 digits. */
static bool take_id(const char **at, const char *end, int64_t *id) {
    const char *start = *at;
    int64_t v = 0;
    while (*at < end && **at >= '0' && **at <= '9' && *at - start < 18) {
        v = v * 10 + (*(*at)++ - '0');
    }
    *id = v;
    return *at > start;
}

static bool matches(const char *pattern, const char *path, size_t n, int64_t *id) {
    const char *at = path, *end = path + n;
    while (*pattern != '\0') {
        if (*pattern == ':') {
            if (!take_id(&at, end, id)) {
                return false;
            }
            pattern += strlen(":id");
        } else if (at < end && *at == *pattern) {
            at++;
            pattern++;
        } else {
            return false;
        }
    }
    return at == end;
}

static void refuse_method(request *r, const char *path) {
    char allow[128] = "";
    size_t size = 0;
    int64_t id;
    for (size_t i = 0; i < ROUTES; i++) {
        if (matches(table[i].pattern, path, r->path_size, &id)) {
            const char *name = llhttp_method_name(table[i].method);
            size +=
                (size_t)snprintf(allow + size, sizeof allow - size, "%s%s%s", size > 0 ? ", " : "",
                                 name, table[i].method == HTTP_GET ? ", HEAD" : "");
        }
    }
    if (size == 0 && r->method != HTTP_OPTIONS) {
        l2c_request_fail(r, 404, L2CDB_E_NOTFOUND, "docs/server.md lists the addresses",
                         "nothing is at this address");
        return;
    }
    l2c_wbuf_printf(&r->headers, "Allow: %s%sOPTIONS\r\n", allow, size > 0 ? ", " : "");
    if (r->method == HTTP_OPTIONS) {
        r->op = &l2c_op_options;
        return;
    }
    l2c_request_fail(r, 405, L2CDB_E_UNSUPPORTED, "", "this address allows %s", allow);
}

bool l2c_routes_find(request *r) {
    const char *path = r->target;
    r->path_size = strcspn(path, "?#");
    llhttp_method_t method = r->method == HTTP_HEAD ? HTTP_GET : r->method;
    for (size_t i = 0; i < ROUTES; i++) {
        if (table[i].method == method &&
            matches(table[i].pattern, path, r->path_size, &r->path_id)) {
            r->op = table[i].op;
            return true;
        }
    }
    refuse_method(r, path);
    return r->op != NULL;
}

size_t l2c_routes_ops(const op *const **list) {
    static const op *ops[ROUTES];
    for (size_t i = 0; i < ROUTES; i++) {
        ops[i] = table[i].op;
    }
    *list = ops;
    return ROUTES;
}

const op *l2c_routes_op(const char *name, size_t n) {
    for (size_t i = 0; i < ROUTES; i++) {
        const op *o = table[i].op;
        if (!(o->flags & OP_HTTP) && strlen(o->name) == n && memcmp(o->name, name, n) == 0) {
            return o;
        }
    }
    return NULL;
}
