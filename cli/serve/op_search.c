/* search and encode: terms of a request → l2cdb_search, with texts taken through the batcher. */
#include "cli/serve/server.h"

#include <stdlib.h>
#include <string.h>

typedef struct search_state {
    l2cdb_term terms[SERVE_TERMS_MAX];
    size_t terms_count;
    const char *texts[SERVE_TERMS_MAX];
    size_t text_terms[SERVE_TERMS_MAX]; /* place in terms of texts[i] */
    size_t texts_count;
    void *owned[SERVE_TERMS_MAX]; /* decoded vectors and pictures */
    size_t owned_count;
    float *vectors; /* of the texts */
    bool encoded;
    l2cdb_query query;
    bool vectors_base64;
} search_state;

static void release(void *state) {
    search_state *s = state;
    for (size_t i = 0; i < s->owned_count; i++) {
        free(s->owned[i]);
    }
    free(s->vectors);
    free(s);
}

/* ---- Terms --------------------------------------------------------------------------------- */

static bool bad_term(request *r, const char *what) {
    l2c_request_fail(r, 400, L2CDB_E_INVALID,
                     "a term has one of text, image (base64), vector, image_id, caption_id", "%s",
                     what);
    return false;
}

static void *own(request *r, search_state *s, size_t bytes) {
    void *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for a term");
        return NULL;
    }
    s->owned[s->owned_count++] = data;
    return data;
}

static bool read_base64(request *r, search_state *s, const json_t *v, l2cdb_term *t) {
    size_t n = json_string_length(v);
    void *data = own(r, s, n / 4 * 3 + 3);
    if (data == NULL) {
        return false;
    }
    t->size = l2c_wbuf_base64_decode(data, json_string_value(v), n);
    t->data = data;
    return t->size != SIZE_MAX || bad_term(r, "not base64");
}

/* A JSON array of numbers or base64 of little-endian f32. */
static bool read_vector(request *r, search_state *s, const json_t *v, l2cdb_term *t) {
    t->kind = L2CDB_TERM_VECTOR;
    const json_t *cut = json_object_get(v, "cut"); // vector_cut.c has read it
    size_t place = json_is_integer(cut) ? (size_t)json_integer_value(cut) : SIZE_MAX;
    if (place < r->cuts_count) {
        t->data = r->cuts[place].data;
        t->size = r->cuts[place].count * sizeof(float);
        return true;
    }
    if (json_is_string(v)) {
        return read_base64(r, s, v, t) &&
               ((t->size > 0 && t->size % sizeof(float) == 0) ||
                bad_term(r, "the vector's base64 does not hold whole f32 numbers"));
    }
    size_t n = json_array_size(v);
    if (n == 0) {
        return bad_term(r, "a vector is an array of numbers or base64 of f32");
    }
    float *out = own(r, s, n * sizeof *out);
    if (out == NULL) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_number(x)) {
            return bad_term(r, "a vector holds something that is not a number");
        }
        out[i] = (float)json_number_value(x);
    }
    t->data = out;
    t->size = n * sizeof *out;
    return true;
}

static bool read_kind(request *r, search_state *s, const json_t *o, l2cdb_term *t) {
    const json_t *v;
    if (json_is_string(v = json_object_get(o, "text"))) {
        t->kind = L2CDB_TERM_TEXT;
        t->text = json_string_value(v);
        s->text_terms[s->texts_count] = s->terms_count;
        s->texts[s->texts_count++] = t->text;
        return true;
    }
    if ((v = json_object_get(o, "vector")) != NULL) {
        return read_vector(r, s, v, t);
    }
    if (json_is_string(v = json_object_get(o, "image"))) {
        t->kind = L2CDB_TERM_IMAGE_BYTES;
        return read_base64(r, s, v, t);
    }
    if (json_is_integer(v = json_object_get(o, "image_id"))) {
        t->kind = L2CDB_TERM_IMAGE_ID;
        t->id = json_integer_value(v);
        return true;
    }
    if (json_is_integer(v = json_object_get(o, "caption_id"))) {
        t->kind = L2CDB_TERM_CAPTION_ID;
        t->id = json_integer_value(v);
        return true;
    }
    return bad_term(r, "a term without a known kind");
}

static bool read_term(request *r, search_state *s, const json_t *o) {
    if (s->terms_count == SERVE_TERMS_MAX) {
        l2c_request_fail(r, 400, L2CDB_E_LIMIT, "", "more than %d terms", SERVE_TERMS_MAX);
        return false;
    }
    l2cdb_term *t = &s->terms[s->terms_count];
    const json_t *weight = json_object_get(o, "weight");
    t->weight = 1;
    if (weight != NULL && !json_is_number(weight)) {
        return bad_term(r, "a term's weight is not a number");
    }
    if (weight != NULL) {
        t->weight = json_number_value(weight);
    }
    if (!read_kind(r, s, o, t)) {
        return false;
    }
    s->terms_count++;
    return true;
}

/* {"q":"…"} and a raw picture are short for one term each. */
static bool read_terms(request *r, search_state *s) {
    const char *q = NULL;
    if (!l2c_request_string(r, "q", &q)) {
        return false;
    }
    if (q != NULL) {
        s->terms[0] = (l2cdb_term){ .kind = L2CDB_TERM_TEXT, .text = q, .weight = 1 };
        s->texts[s->texts_count++] = q;
        s->terms_count = 1;
    }
    if (r->raw_image) {
        s->terms[s->terms_count++] = (l2cdb_term){
            .kind = L2CDB_TERM_IMAGE_BYTES, .data = r->body.data, .size = r->body.size, .weight = 1
        };
    }
    const json_t *terms = json_object_get(r->args, "terms");
    if (terms != NULL && !json_is_array(terms)) {
        return bad_term(r, "\"terms\" must be an array");
    }
    for (size_t i = 0; i < json_array_size(terms); i++) {
        if (!read_term(r, s, json_array_get(terms, i))) {
            return false;
        }
    }
    const json_t *v = json_object_get(r->args, "vector");
    const json_t *id = json_object_get(r->args, "image_id");
    if ((v != NULL || id != NULL) && !read_term(r, s, r->args)) {
        return false;
    }
    return true;
}

/* ---- Search -------------------------------------------------------------------------------- */

static bool read_query(request *r, search_state *s) {
    l2cdb_query *q = &s->query;
    l2cdb_query_init(q);
    q->where_ms = r->srv->o.sql_ms_max;
    int64_t k = 10, offset = 0, ef = 0, nprobe = 0;
    const char *target = "images";
    if (!l2c_request_int(r, "k", &k, 1, SERVE_K_MAX) ||
        !l2c_request_int(r, "offset", &offset, 0, SERVE_K_MAX) ||
        !l2c_request_int(r, "ef_search", &ef, 0, 100000) ||
        !l2c_request_int(r, "nprobe", &nprobe, 0, 1000000) ||
        !l2c_request_string(r, "target", &target) || !l2c_request_string(r, "where", &q->where) ||
        !l2c_request_double(r, "score_min", &q->score_min) ||
        !l2c_request_double(r, "min_p", &q->share_min) ||
        !l2c_request_bool(r, "exact", &q->exact)) {
        return false;
    }
    const json_t *v = json_object_get(r->args, "include_vector");
    s->vectors_base64 = json_is_string(v) && strcmp(json_string_value(v), "base64") == 0;
    q->include_vector = s->vectors_base64;
    if (!s->vectors_base64 && !l2c_request_bool(r, "include_vector", &q->include_vector)) {
        return false;
    }
    if (strcmp(target, "images") != 0 && strcmp(target, "captions") != 0) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         "\"target\" must be \"images\" or \"captions\"");
        return false;
    }
    q->target = strcmp(target, "images") == 0 ? L2CDB_IMAGES : L2CDB_CAPTIONS;
    q->k = (size_t)k;
    q->offset = (size_t)offset;
    q->ef_search = (size_t)ef;
    q->nprobe = (size_t)nprobe;
    q->terms = s->terms;
    q->terms_count = s->terms_count;
    return true;
}

static void put_text(wbuf *out, const char *name, const char *value) {
    if (value != NULL) {
        l2c_wbuf_printf(out, ",\"%s\":", name);
        l2c_wbuf_json(out, value);
    }
}

static void put_row(const search_state *s, const l2cdb_row *row, size_t width, wbuf *out) {
    l2c_wbuf_str(out, "{\"id\":");
    l2c_wbuf_int(out, row->id);
    if (s->query.target == L2CDB_CAPTIONS) {
        l2c_wbuf_str(out, ",\"image_id\":");
        l2c_wbuf_int(out, row->image_id);
    }
    l2c_wbuf_str(out, ",\"score\":");
    l2c_wbuf_fixed(out, (double)row->score, 6);
    l2c_wbuf_str(out, ",\"distance\":");
    l2c_wbuf_fixed(out, (double)row->distance, 6);
    put_text(out, "path", row->path);
    put_text(out, "text", row->text);
    put_text(out, "language", row->language);
    put_text(out, "taken_at", row->taken_at);
    put_text(out, "camera", row->camera);
    if (row->width > 0) {
        l2c_wbuf_printf(out, ",\"width\":%u,\"height\":%u", row->width, row->height);
    }
    if (row->vector != NULL && s->vectors_base64) {
        l2c_wbuf_str(out, ",\"vector\":\"");
        l2c_wbuf_base64(out, row->vector, width * sizeof *row->vector);
        l2c_wbuf_char(out, '"');
    } else if (row->vector != NULL) {
        l2c_wbuf_str(out, ",\"vector\":");
        l2c_wbuf_floats(out, row->vector, width);
    }
    l2c_wbuf_char(out, '}');
}

static void put_results(request *r, const search_state *s, const l2cdb_results *results,
                        size_t width) {
    const l2cdb_timings *t = l2cdb_results_timings(results);
    size_t n = l2cdb_results_count(results);
    r->encode_ms += t->encode_ms;
    r->search_ms += t->search_ms;
    r->fetch_ms += t->fetch_ms;
    wbuf *out = &r->out;
    l2c_wbuf_str(out, "{\"results\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) {
            l2c_wbuf_char(out, ',');
        }
        put_row(s, l2cdb_results_row(results, i), width, out);
    }
    l2c_wbuf_str(out, "],\"generation\":");
    l2c_wbuf_int(out, t->generation);
    l2c_wbuf_str(out, ",\"plan\":");
    l2c_wbuf_json(out, t->plan);
    l2c_wbuf_char(out, ',');
    l2c_request_timings(r, out);
    l2c_wbuf_char(out, '}');
}

/* Room for the texts' vectors; false: let the engine encode (and say what is wrong). */
static bool batch_texts(request *r, search_state *s, size_t width) {
    s->vectors = malloc(s->texts_count * width * sizeof *s->vectors);
    if (s->vectors == NULL) {
        return false;
    }
    r->texts = s->texts;
    r->texts_count = s->texts_count;
    r->vectors = s->vectors;
    r->width = width;
    return true;
}

/* Text terms become the vectors that the batcher made, or texts again. */
static void set_texts(search_state *s, bool vectors, size_t width) {
    for (size_t i = 0; i < s->texts_count; i++) {
        l2cdb_term *t = &s->terms[s->text_terms[i]];
        t->kind = vectors ? L2CDB_TERM_VECTOR : L2CDB_TERM_TEXT;
        t->data = vectors ? s->vectors + i * width : NULL;
        t->size = vectors ? width * sizeof *s->vectors : 0;
    }
}

static void search(request *r, search_state *s, size_t width) {
    l2cdb_results *results = NULL;
    l2cdb_status rc = l2cdb_search(r->srv->db, &s->query, &results, &r->error);
    if (s->encoded &&
        (rc == L2CDB_E_MISMATCH ||
         (rc == L2CDB_OK && l2cdb_results_timings(results)->generation != r->generation))) {
        l2cdb_results_free(results); // the texts' vectors belong to another generation
        results = NULL;
        set_texts(s, false, width);
        rc = l2cdb_search(r->srv->db, &s->query, &results, &r->error);
    }
    if (!l2c_request_ok(r, rc)) {
        return;
    }
    put_results(r, s, results, width);
    l2cdb_results_free(results);
}

static bool check_vectors(request *r, const search_state *s, size_t width) {
    if (s->query.include_vector && width > 0 && s->query.k > SERVE_VECTOR_FLOATS_MAX / width) {
        l2c_request_fail(r, 422, L2CDB_E_LIMIT, "ask for fewer rows, or page with \"offset\"",
                         "include_vector with k × width above %zu", SERVE_VECTOR_FLOATS_MAX);
        return false;
    }
    return true;
}

static verdict run_search(request *r) {
    search_state *s = r->state;
    bool again = s != NULL;
    size_t width = r->width;
    if (!again) {
        s = r->state = calloc(1, sizeof *s);
        if (s == NULL) {
            l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the search");
            return VERDICT_DONE;
        }
        if (!read_terms(r, s) || !read_query(r, s)) {
            return VERDICT_DONE;
        }
        if (s->terms_count == 0) {
            bad_term(r, "nothing to search for: give \"q\", \"terms\", \"vector\" or \"image_id\"");
            return VERDICT_DONE;
        }
        bool known = (s->texts_count == 0 && !s->query.include_vector) ||
                     l2cdb_width(r->srv->db, &width, NULL) == L2CDB_OK;
        if (!check_vectors(r, s, width)) {
            return VERDICT_DONE;
        }
        if (s->texts_count > 0 && known && batch_texts(r, s, width)) {
            return VERDICT_ENCODE;
        }
    } else {
        s->encoded = true;
        set_texts(s, true, width);
    }
    search(r, s, width);
    return VERDICT_DONE;
}

/* ---- Encode -------------------------------------------------------------------------------- */

static void put_vectors(request *r, const float *v, size_t n, size_t width) {
    const char *format = "base64";
    if (!l2c_request_string(r, "format", &format)) {
        return;
    }
    bool array = strcmp(format, "array") == 0;
    l2c_wbuf_printf(&r->out, "{\"width\":%zu,\"vectors\":[", width);
    for (size_t i = 0; i < n; i++) {
        l2c_wbuf_str(&r->out, i > 0 ? "," : "");
        if (array) {
            l2c_wbuf_floats(&r->out, v + i * width, width);
        } else {
            l2c_wbuf_char(&r->out, '"');
            l2c_wbuf_base64(&r->out, v + i * width, width * sizeof *v);
            l2c_wbuf_char(&r->out, '"');
        }
    }
    l2c_wbuf_str(&r->out, "],");
    l2c_request_timings(r, &r->out);
    l2c_wbuf_char(&r->out, '}');
}

static bool read_texts(request *r, search_state *s) {
    const json_t *texts = json_object_get(r->args, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const char *text = json_string_value(json_array_get(texts, i));
        if (text == NULL || s->texts_count == SERVE_TERMS_MAX) {
            l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"texts\" must be at most %d strings",
                             SERVE_TERMS_MAX);
            return false;
        }
        s->texts[s->texts_count++] = text;
    }
    return true;
}

static verdict run_encode(request *r) {
    search_state *s = r->state;
    if (s != NULL) {
        put_vectors(r, s->vectors, s->texts_count, r->width);
        return VERDICT_DONE;
    }
    s = r->state = calloc(1, sizeof *s);
    size_t width = 0;
    if (s == NULL) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory");
        return VERDICT_DONE;
    }
    bool picture = r->raw_image || json_is_string(json_object_get(r->args, "image"));
    bool good = r->raw_image ? read_terms(r, s)
                : picture    ? read_term(r, s, r->args)
                             : read_texts(r, s);
    if (!good || !l2c_request_ok(r, l2cdb_width(r->srv->db, &width, &r->error))) {
        return VERDICT_DONE;
    }
    if (!picture && s->texts_count == 0) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         "give \"texts\", \"image\" or a picture's bytes");
        return VERDICT_DONE;
    }
    s->texts_count = picture ? 1 : s->texts_count;
    if (!batch_texts(r, s, width)) {
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the vectors");
        return VERDICT_DONE;
    }
    if (!picture) {
        return VERDICT_ENCODE;
    }
    uint64_t started = uv_hrtime();
    if (l2c_request_ok(r, l2cdb_encode(r->srv->db, &s->terms[0], s->vectors, width, &r->error))) {
        r->encode_ms = (double)(uv_hrtime() - started) / 1e6;
        put_vectors(r, s->vectors, 1, width);
    }
    return VERDICT_DONE;
}

const op l2c_op_search = { "search", LANE_READ, OP_RAW, run_search, release };
const op l2c_op_encode = { "encode", LANE_READ, OP_RAW, run_encode, release };
