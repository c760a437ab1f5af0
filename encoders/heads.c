/* Heads: features to unit vectors. The text adapter, the image projection and the logit scale,
 * packed for products, and the same as named tensors for a database that keeps generations of them.
 */
#include "encoders/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/vec.h"

enum { ROWS_AT_ONCE = 256 };

/* Small adapters cost nothing and stay exact; from this width on memory traffic counts. */
enum { HALF_FROM_WIDTH = 1024 };

static l2c_precision blocks_precision(const l2c_heads_config *c, l2c_precision model) {
    return model == L2C_PRECISION_F32 || c->text_width < HALF_FROM_WIDTH ? L2C_PRECISION_F32
                                                                         : L2C_PRECISION_BF16;
}

static l2cdb_status build(l2c_heads *h, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    h->workspaces = l2c_calloc(1, sizeof *h->workspaces);
    if (h->workspaces == NULL) {
        return l2c_fail_nomem(err, sizeof *h->workspaces);
    }
    l2c_workspaces_init(h->workspaces, h->threads);
    if (h->has_text) {
        rc = l2c_adapter_init(&h->adapter, &h->config, h->tensors, h->precision, err);
    }
    if (rc == L2CDB_OK && h->config.has_projection) {
        rc = l2c_load_linear(&h->projection, h->tensors, L2C_PRECISION_F32,
                             (const char *[]){ "visual_projection", NULL }, err);
    }
    return rc;
}

l2cdb_status l2c_heads_from_bundle(l2c_heads **out, const l2c_bundle *b, l2c_precision precision,
                                   size_t threads, l2cdb_error *err) {
    *out = NULL;
    if (!b->has_adapter && !b->has_vision) {
        return L2CDB_OK;
    }
    l2c_heads *h = l2c_calloc(1, sizeof *h);
    if (h == NULL) {
        return l2c_fail_nomem(err, sizeof *h);
    }
    h->config = b->heads;
    h->precision = blocks_precision(&b->heads, precision);
    h->has_text = b->has_adapter;
    h->logit_scale = b->logit_scale;
    h->hash = b->heads_hash;
    h->tensors = &b->head_tensors;
    h->threads = threads;
    l2cdb_status rc = build(h, err);
    if (rc != L2CDB_OK) {
        l2c_heads_free(h);
        return rc;
    }
    *out = h;
    return L2CDB_OK;
}

void l2c_heads_free(l2c_heads *h) {
    if (h == NULL) {
        return;
    }
    if (h->workspaces != NULL) {
        l2c_workspaces_fini(h->workspaces);
        l2c_free(h->workspaces);
    }
    l2c_adapter_fini(&h->adapter);
    l2c_linear_free(h->projection);
    l2c_tensors_fini(&h->owned);
    l2c_free(h->values);
    l2c_free(h);
}

l2c_hash l2c_heads_fingerprint(const l2c_heads *h) {
    return h->hash;
}

float l2c_heads_logit_scale(const l2c_heads *h) {
    return expf(h->logit_scale);
}

/* ---- Features to vectors -------------------------------------------------------------------- */

/* One side, for some rows. */
typedef l2cdb_status (*side_fn)(const l2c_heads *h, float *out, const float *features, size_t n,
                                l2c_arena *arena, l2cdb_error *err);

static l2cdb_status text_side(const l2c_heads *h, float *out, const float *features, size_t n,
                              l2c_arena *arena, l2cdb_error *err) {
    return l2c_adapter_apply(&h->adapter, out, features, n, arena, err);
}

static l2cdb_status image_side(const l2c_heads *h, float *out, const float *features, size_t n,
                               l2c_arena *arena, l2cdb_error *err) {
    if (h->projection == NULL) {
        memcpy(out, features, n * h->config.width * sizeof *out);
        return L2CDB_OK;
    }
    return l2c_linear_apply(h->projection, &(l2c_product){ .x = features, .rows = n, .y = out },
                            arena, err);
}

typedef struct pass {
    const l2c_heads *h;
    side_fn side;
    float *out;
    const float *features;
    size_t features_width;
} pass;

static l2cdb_status run_rows(void *ctx, size_t first, size_t count, l2c_arena *arena,
                             l2cdb_error *err) {
    const pass *p = ctx;
    size_t E = p->h->config.width;
    float *out = p->out + first * E;
    l2cdb_status rc =
        p->side(p->h, out, p->features + first * p->features_width, count, arena, err);
    for (size_t r = 0; rc == L2CDB_OK && r < count; r++) {
        float norm = l2c_vec_normalize(out + r * E, E);
        if (!isfinite(norm) || norm < 1e-12F) {
            rc = l2c_fail(err, L2CDB_E_INVALID,
                          "row %zu: the vector has length %g, expected a positive number",
                          first + r, (double)norm);
            l2c_hint(err, "the features of this row are damaged; encode it again");
        }
    }
    return rc;
}

static l2cdb_status run_side(const l2c_heads *h, side_fn side, float *out, const float *features,
                             size_t features_width, size_t n, l2cdb_error *err) {
    l2c_workspace *ws;
    l2cdb_status rc = l2c_workspaces_take(h->workspaces, &ws, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    pass p = {
        .h = h, .side = side, .out = out, .features = features, .features_width = features_width
    };
    l2c_team team = l2c_team_begin(h->threads);
    rc = l2c_deal_rows(ws, n, ROWS_AT_ONCE, run_rows, &p, err);
    l2c_team_end(team);
    l2c_workspaces_give(h->workspaces, ws);
    return rc;
}

l2cdb_status l2c_heads_text(const l2c_heads *h, float *out, const float *features, size_t n,
                            l2cdb_error *err) {
    if (!h->has_text) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no text adapter");
    }
    return run_side(h, text_side, out, features, h->config.text_width, n, err);
}

l2cdb_status l2c_heads_image(const l2c_heads *h, float *out, const float *features, size_t n,
                             l2cdb_error *err) {
    if (h->config.image_width == 0) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no vision tower");
    }
    return run_side(h, image_side, out, features, h->config.image_width, n, err);
}

/* ---- As named tensors ----------------------------------------------------------------------- */

static const char logit_scale_name[] = "logit_scale";

l2cdb_status l2c_heads_visit(const l2c_heads *h, l2c_head_visit_fn visit, void *ctx,
                             l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    bool go_on = visit(ctx, &(l2c_head_tensor){ .name = logit_scale_name,
                                                .shape = { 1, 0 },
                                                .data = &h->logit_scale,
                                                .count = 1 });
    for (size_t i = 0; go_on && rc == L2CDB_OK && i < h->tensors->count; i++) {
        const l2c_tensor *t = &h->tensors->items[i];
        if (strcmp(t->name, logit_scale_name) == 0) {
            continue;
        }
        float *data = l2c_alloc(t->count, sizeof *data);
        if (data == NULL) {
            return l2c_fail_nomem(err, t->count * sizeof *data);
        }
        l2c_tensor_to_f32(t, data);
        go_on =
            visit(ctx, &(l2c_head_tensor){ .name = t->name,
                                           .shape = { t->shape[0], t->ndim > 1 ? t->shape[1] : 0 },
                                           .data = data,
                                           .count = t->count });
        l2c_free(data);
    }
    return go_on ? rc : l2c_fail(err, L2CDB_E_CANCELLED, "stopped by the visitor");
}

/* Values for one tensor of the new heads. */
static l2cdb_status check_given(const l2c_head_tensor *given, const l2c_tensor *t,
                                l2cdb_error *err) {
    size_t columns = t->ndim > 1 ? t->shape[1] : 0;
    if (given->count != t->count || given->shape[0] != t->shape[0] || given->shape[1] != columns) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "head tensor %s has shape [%zu,%zu], expected [%zu,%zu]", given->name,
                        given->shape[0], given->shape[1], t->shape[0], columns);
    }
    if (!l2c_vec_finite(given->data, given->count)) {
        return l2c_fail(err, L2CDB_E_FORMAT, "head tensor %s holds a value that is not finite",
                        given->name);
    }
    return L2CDB_OK;
}

static const l2c_head_tensor *find_given(const l2c_head_tensor *tensors, size_t count,
                                         const char *name) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(tensors[i].name, name) == 0) {
            return &tensors[i];
        }
    }
    return NULL;
}

/* Names that `like` does not have. */
static l2cdb_status check_names(const l2c_heads *like, const l2c_head_tensor *tensors, size_t count,
                                l2cdb_error *err) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(tensors[i].name, logit_scale_name) != 0 &&
            l2c_tensors_find(like->tensors, tensors[i].name) == NULL) {
            return l2c_fail(err, L2CDB_E_MISMATCH, "these heads have no tensor %s",
                            tensors[i].name);
        }
    }
    return L2CDB_OK;
}

/* Copies every tensor of `like` into h->owned, with the given values where there are some. */
static l2cdb_status copy_tensors(l2c_heads *h, const l2c_heads *like,
                                 const l2c_head_tensor *tensors, size_t count, l2cdb_error *err) {
    size_t total = 0;
    for (size_t i = 0; i < like->tensors->count; i++) {
        total += like->tensors->items[i].count;
    }
    h->values = l2c_alloc(total, sizeof *h->values);
    if (h->values == NULL) {
        return l2c_fail_nomem(err, total * sizeof *h->values);
    }
    float *to = h->values;
    for (size_t i = 0; i < like->tensors->count; i++) {
        l2c_tensor t = like->tensors->items[i];
        const l2c_head_tensor *given = find_given(tensors, count, t.name);
        if (given != NULL) {
            l2cdb_status rc = check_given(given, &t, err);
            if (rc != L2CDB_OK) {
                return rc;
            }
            memcpy(to, given->data, t.count * sizeof *to);
        } else {
            l2c_tensor_to_f32(&t, to);
        }
        t.dtype = L2C_DTYPE_F32;
        t.data = to;
        t.bytes = t.count * sizeof *to;
        if (l2c_tensors_add(&h->owned, &t, t.name, strlen(t.name)) == NULL) {
            return l2c_fail_nomem(err, sizeof t);
        }
        to += t.count;
    }
    return l2c_tensors_seal(&h->owned, "heads", err);
}

/* Names, shapes and values in name order, and what else decides a vector. */
static l2cdb_status fingerprint(l2c_heads *h, l2cdb_error *err) {
    l2c_hasher *hasher = l2c_hasher_new();
    if (hasher == NULL) {
        return l2c_fail_nomem(err, sizeof(l2c_hash));
    }
    char line[256];
    int n = snprintf(line, sizeof line, "heads %zu %zu %zu %zu %zu %d\n", h->config.width,
                     h->config.text_width, h->config.blocks, h->config.text_hidden,
                     h->config.image_width, h->config.normalize_input);
    l2c_hasher_add(hasher, line, (size_t)n);
    l2c_hasher_add(hasher, &h->logit_scale, sizeof h->logit_scale);
    for (size_t i = 0; i < h->tensors->count; i++) {
        const l2c_tensor *t = &h->tensors->items[i];
        l2c_hasher_add(hasher, t->name, strlen(t->name) + 1);
        l2c_hasher_add(hasher, t->data, t->bytes);
    }
    h->hash = l2c_hasher_get(hasher);
    l2c_hasher_free(hasher);
    return L2CDB_OK;
}

l2cdb_status l2c_heads_new(l2c_heads **out, const l2c_heads *like, const l2c_head_tensor *tensors,
                           size_t tensors_count, l2cdb_error *err) {
    *out = NULL;
    l2cdb_status rc = check_names(like, tensors, tensors_count, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_heads *h = l2c_calloc(1, sizeof *h);
    if (h == NULL) {
        return l2c_fail_nomem(err, sizeof *h);
    }
    h->config = like->config;
    h->precision = like->precision;
    h->has_text = like->has_text;
    h->logit_scale = like->logit_scale;
    h->threads = like->threads;
    l2c_tensors_init(&h->owned);
    h->tensors = &h->owned;
    rc = copy_tensors(h, like, tensors, tensors_count, err);
    const l2c_head_tensor *scale = find_given(tensors, tensors_count, logit_scale_name);
    if (rc == L2CDB_OK && scale != NULL) {
        if (scale->count != 1 || !isfinite(scale->data[0])) {
            rc = l2c_fail(err, L2CDB_E_FORMAT, "logit_scale is not one finite number");
        } else {
            h->logit_scale = scale->data[0];
        }
    }
    if (rc == L2CDB_OK) {
        rc = fingerprint(h, err);
    }
    if (rc == L2CDB_OK) {
        l2c_team team = l2c_team_begin(h->threads);
        rc = build(h, err);
        l2c_team_end(team);
    }
    if (rc != L2CDB_OK) {
        l2c_heads_free(h);
        return rc;
    }
    *out = h;
    return L2CDB_OK;
}
