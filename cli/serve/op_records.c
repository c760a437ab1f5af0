/* Photos and captions: put, get, change, delete. */
#include "cli/serve/server.h"

#include <stdlib.h>
#include <string.h>

/* ---- Records ------------------------------------------------------------------------------- */

static bool skipped_column(const char *name, l2cdb_type type) {
    return type == L2CDB_BLOB || type == L2CDB_VECTOR || type == L2CDB_NULL ||
           strcmp(name, "score") == 0 || strcmp(name, "distance") == 0 ||
           strcmp(name, "embedding") == 0;
}

/* The row of a statement as a JSON object without vectors and nulls; its id is called `id_name`. */
static void put_object(l2cdb_stmt *s, const char *id_name, wbuf *out) {
    bool first = true;
    l2c_wbuf_char(out, '{');
    for (int i = 0; i < l2cdb_column_count(s); i++) {
        const char *name = l2cdb_column_name(s, i);
        l2cdb_type type = l2cdb_column_type(s, i);
        if (skipped_column(name, type)) {
            continue;
        }
        l2c_wbuf_str(out, first ? "" : ",");
        first = false;
        l2c_wbuf_json(out, strcmp(name, "id") == 0 ? id_name : name);
        l2c_wbuf_char(out, ':');
        if (type == L2CDB_INTEGER) {
            l2c_wbuf_int(out, l2cdb_column_int64(s, i));
        } else if (type == L2CDB_FLOAT) {
            l2c_wbuf_double(out, l2cdb_column_double(s, i));
        } else {
            l2c_wbuf_json_n(out, l2cdb_column_text(s, i), l2cdb_column_bytes(s, i));
        }
    }
    l2c_wbuf_char(out, '}');
}

/* Rows of `sql` with ?1 = id, as objects with commas between. False: the request has failed. */
static bool put_rows(request *r, const char *sql, const char *id_name, int64_t id, size_t *count) {
    l2cdb_sql_limits limits = { .read_only = true, .timeout_ms = r->srv->o.sql_ms_max };
    l2cdb_stmt *s = NULL;
    uint64_t started = uv_hrtime();
    bool row = false;
    *count = 0;
    if (!l2c_request_ok(r, l2cdb_prepare(r->srv->db, sql, &limits, &s, &r->error))) {
        return false;
    }
    l2cdb_status rc = l2cdb_bind_int64(s, 1, id);
    while (rc == L2CDB_OK && (rc = l2cdb_step(s, &row, &r->error)) == L2CDB_OK && row) {
        l2c_wbuf_str(&r->out, (*count)++ > 0 ? "," : "");
        put_object(s, id_name, &r->out);
    }
    l2cdb_finalize(s);
    r->fetch_ms += (double)(uv_hrtime() - started) / 1e6;
    return l2c_request_ok(r, rc);
}

static void no_such(request *r, const char *what, int64_t id) {
    l2c_request_fail(r, 404, L2CDB_E_NOTFOUND, "", "no %s has id %lld", what, (long long)id);
}

#define CAPTIONS_SQL                                                                               \
    "SELECT id, text, language, source FROM captions WHERE image_id = ?1 ORDER BY id"

static bool put_captions(request *r, int64_t id) {
    size_t n;
    l2c_wbuf_str(&r->out, "\"captions\":[");
    if (!put_rows(r, CAPTIONS_SQL, "id", id, &n)) {
        return false;
    }
    l2c_wbuf_char(&r->out, ']');
    return true;
}

static verdict run_image(request *r) {
    int64_t id;
    size_t n;
    // A line's own "id" stands first in its reply.
    if (!l2c_request_id(r, "image_id", &id) ||
        !put_rows(r, "SELECT * FROM images WHERE id = ?1", r->http ? "id" : "image_id", id, &n)) {
        return VERDICT_DONE;
    }
    if (n == 0) {
        no_such(r, "photo", id);
        return VERDICT_DONE;
    }
    r->out.size--; // the object goes on
    l2c_wbuf_char(&r->out, ',');
    if (put_captions(r, id)) {
        l2c_wbuf_char(&r->out, ',');
        l2c_request_timings(r, &r->out);
        l2c_wbuf_char(&r->out, '}');
    }
    return VERDICT_DONE;
}

static verdict run_captions(request *r) {
    int64_t id;
    if (!l2c_request_id(r, "image_id", &id)) {
        return VERDICT_DONE;
    }
    l2c_wbuf_char(&r->out, '{');
    if (put_captions(r, id)) {
        l2c_wbuf_char(&r->out, '}');
    }
    return VERDICT_DONE;
}

/* ---- Bytes --------------------------------------------------------------------------------- */

static void put_bytes(request *r, const l2cdb_bytes *b) {
    strcpy(r->content_type_text, b->content_type);
    if (!r->http) {
        l2c_wbuf_str(&r->out, "{\"content_type\":");
        l2c_wbuf_json(&r->out, b->content_type);
        l2c_wbuf_str(&r->out, ",\"data\":\"");
        l2c_wbuf_base64(&r->out, b->data, b->size);
        l2c_wbuf_str(&r->out, "\"}");
        return;
    }
    r->content_type = r->content_type_text;
    strcpy(r->etag, b->etag);
    r->cache_control = "private, max-age=86400";
    // Whatever the bytes are, a browser must not run them under our name.
    l2c_wbuf_str(&r->headers, "Content-Security-Policy: default-src 'none'; sandbox\r\n"
                              "Cross-Origin-Resource-Policy: same-origin\r\n");
    if (b->etag[0] != '\0' && strstr(r->etag_in, b->etag) != NULL) {
        r->status = 304;
        return;
    }
    l2c_wbuf_put(&r->out, b->data, b->size);
}

static verdict run_bytes(request *r,
                         l2cdb_status (*get)(l2cdb *, int64_t, l2cdb_bytes *, l2cdb_error *)) {
    int64_t id;
    l2cdb_bytes bytes = { 0 };
    if (!l2c_request_id(r, "image_id", &id)) {
        return VERDICT_DONE;
    }
    uint64_t started = uv_hrtime();
    if (l2c_request_ok(r, get(r->srv->db, id, &bytes, &r->error))) {
        if (strncmp(bytes.content_type, "image/", 6) == 0) {
            put_bytes(r, &bytes);
        } else { // the file was exchanged since it was ingested
            l2c_request_fail(r, 404, L2CDB_E_NOTFOUND, "ingest its folder again",
                             "photo %lld is no picture any more", (long long)id);
        }
        l2cdb_bytes_free(&bytes);
    }
    r->fetch_ms = (double)(uv_hrtime() - started) / 1e6;
    return VERDICT_DONE;
}

static verdict run_thumb(request *r) {
    return run_bytes(r, l2cdb_get_thumbnail);
}

static verdict run_original(request *r) {
    return run_bytes(r, l2cdb_get_original);
}

/* ---- Changes ------------------------------------------------------------------------------- */

static bool picture(request *r, const void **data, size_t *size, void **owned) {
    const char *text = NULL;
    if (r->raw_image) {
        *data = r->body.data;
        *size = r->body.size;
    } else if (!l2c_request_string(r, "data", &text)) {
        return false;
    } else if (text != NULL) {
        *owned = malloc(strlen(text) / 4 * 3 + 3);
        *data = *owned;
        *size = *owned != NULL ? l2c_wbuf_base64_decode(*owned, text, strlen(text)) : SIZE_MAX;
    }
    if (*size == 0 || *size == SIZE_MAX) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         *size == 0 ? "no picture in the request" : "\"data\" is not base64");
        return false;
    }
    return true;
}

static verdict run_put_image(request *r) {
    const char *name = NULL;
    const void *data = NULL;
    void *owned = NULL;
    size_t size = 0;
    int64_t id = 0;
    l2cdb_file_outcome outcome = L2CDB_FILE_FAILED;
    uint64_t started = uv_hrtime();
    if (l2c_request_string(r, "name", &name) && picture(r, &data, &size, &owned) &&
        l2c_request_ok(r,
                       l2cdb_put_image(r->srv->db, name, data, size, &id, &outcome, &r->error))) {
        r->encode_ms = (double)(uv_hrtime() - started) / 1e6;
        r->status = outcome == L2CDB_FILE_ADDED ? 201 : 200;
        if (r->status == 201) {
            l2c_wbuf_printf(&r->headers, "Location: /v1/images/%lld\r\n", (long long)id);
        }
        l2c_wbuf_printf(&r->out, "{\"%s\":%lld,\"outcome\":\"%s\"}", r->http ? "id" : "image_id",
                        (long long)id, l2cdb_file_outcome_name(outcome));
    }
    free(owned);
    return VERDICT_DONE;
}

static void put_ok(request *r) {
    l2c_wbuf_str(&r->out, "{\"ok\":true}");
}

static verdict run_delete_image(request *r) {
    int64_t id;
    if (l2c_request_id(r, "image_id", &id) &&
        l2c_request_ok(r, l2cdb_delete_images(r->srv->db, &id, 1, &r->error))) {
        put_ok(r);
    }
    return VERDICT_DONE;
}

static bool caption_text(request *r, const char **text, const char **language) {
    if (!l2c_request_string(r, "text", text) || !l2c_request_string(r, "language", language)) {
        return false;
    }
    if (*text == NULL || (*text)[strspn(*text, " \t\r\n")] == '\0') {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"text\" is missing or empty");
        return false;
    }
    return true;
}

static verdict run_add_caption(request *r) {
    const char *text = NULL, *language = NULL;
    int64_t image_id = -1, id = 0;
    if (!l2c_request_int(r, "image_id", &image_id, 0, INT64_MAX) ||
        !caption_text(r, &text, &language)) {
        return VERDICT_DONE;
    }
    if (image_id < 0) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"image_id\" is missing");
    } else if (l2c_request_ok(r, l2cdb_add_caption(r->srv->db, image_id, text, language, "api", &id,
                                                   &r->error))) {
        r->status = 201;
        l2c_wbuf_printf(&r->out, "{\"%s\":%lld}", r->http ? "id" : "caption_id", (long long)id);
    }
    return VERDICT_DONE;
}

static verdict run_update_caption(request *r) {
    const char *text = NULL, *language = NULL;
    int64_t id;
    if (l2c_request_id(r, "caption_id", &id) && caption_text(r, &text, &language) &&
        l2c_request_ok(r, l2cdb_update_caption(r->srv->db, id, text, language, &r->error))) {
        put_ok(r);
    }
    return VERDICT_DONE;
}

static verdict run_delete_caption(request *r) {
    int64_t id;
    if (l2c_request_id(r, "caption_id", &id) &&
        l2c_request_ok(r, l2cdb_delete_captions(r->srv->db, &id, 1, &r->error))) {
        put_ok(r);
    }
    return VERDICT_DONE;
}

const op l2c_op_image = { "image", LANE_READ, OP_BARE, run_image, NULL };
const op l2c_op_captions = { "captions", LANE_READ, OP_BARE, run_captions, NULL };
const op l2c_op_thumb = { "thumb", LANE_READ, OP_BARE, run_thumb, NULL };
const op l2c_op_original = { "original", LANE_READ, OP_BARE, run_original, NULL };
const op l2c_op_put_image = { "put_image", LANE_WRITE, OP_RAW, run_put_image, NULL };
const op l2c_op_delete_image = { "delete_image", LANE_WRITE, OP_BARE, run_delete_image, NULL };
const op l2c_op_add_caption = { "add_caption", LANE_WRITE, 0, run_add_caption, NULL };
const op l2c_op_update_caption = { "update_caption", LANE_WRITE, 0, run_update_caption, NULL };
const op l2c_op_delete_caption = { "delete_caption", LANE_WRITE, OP_BARE, run_delete_caption,
                                   NULL };
