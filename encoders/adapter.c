/* The text adapter's forward pass; see adapter.h. */
#include "encoders/adapter.h"

#include <stdio.h>
#include <string.h>

#include "encoders/layers.h"
#include "engine/base/vec.h"

static l2cdb_status load_linear(l2c_linear **out, const l2c_tensors *set, l2c_precision precision,
                                size_t index, const char *inner, l2cdb_error *err) {
    char name[96];
    snprintf(name, sizeof name, "text_adapter.adaptor.%zu%s", index, inner);
    return l2c_load_linear(out, set, precision, (const char *[]){ name, NULL }, err);
}

l2cdb_status l2c_adapter_init(l2c_adapter *a, const l2c_heads_config *c, const l2c_tensors *set,
                              l2c_precision precision, l2cdb_error *err) {
    *a = (l2c_adapter){ .width = c->width,
                        .text_width = c->text_width,
                        .hidden = c->text_hidden,
                        .blocks_count = c->blocks,
                        .normalize_input = c->normalize_input };
    l2c_arena_init(&a->params, 0);
    a->blocks = l2c_calloc(c->blocks, sizeof *a->blocks);
    if (a->blocks == NULL) {
        return l2c_fail_nomem(err, c->blocks * sizeof *a->blocks);
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < c->blocks; i++) {
        l2c_adapter_block *b = &a->blocks[i];
        rc = l2c_load_norm(&b->norm, set, &a->params, err, "text_adapter.adaptor.%zu.ln", i);
        if (rc == L2CDB_OK) {
            rc = load_linear(&b->up, set, precision, i, ".fn.0", err);
        }
        if (rc == L2CDB_OK) {
            rc = load_linear(&b->down, set, precision, i, ".fn.3", err);
        }
    }
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&a->last, set, &a->params, err, "text_adapter.adaptor.%zu", c->blocks);
    }
    if (rc == L2CDB_OK) {
        rc = load_linear(&a->out, set, L2C_PRECISION_F32, c->blocks + 1, "", err);
    }
    return rc;
}

void l2c_adapter_fini(l2c_adapter *a) {
    for (size_t i = 0; a->blocks != NULL && i < a->blocks_count; i++) {
        l2c_linear_free(a->blocks[i].up);
        l2c_linear_free(a->blocks[i].down);
    }
    l2c_free(a->blocks);
    l2c_linear_free(a->out);
    l2c_arena_fini(&a->params);
    *a = (l2c_adapter){ 0 };
}

static void norm_rows(float *out, const l2c_norm *norm, const float *x, size_t n, size_t d) {
    for (size_t r = 0; r < n; r++) {
        l2c_layer_norm(out + r * d, x + r * d, norm->weight, norm->bias, d, L2C_ADAPTER_LN_EPS);
    }
}

/* x += W2 gelu(W1 LN(x) + c1) + c2 */
static l2cdb_status run_block(const l2c_adapter_block *b, float *x, float *z, size_t n,
                              l2c_arena *arena, l2cdb_error *err) {
    size_t d = l2c_linear_in(b->up);
    norm_rows(z, &b->norm, x, n, d);
    l2c_rows hidden = l2c_linear_rows(b->down, n, arena);
    if (hidden.data == NULL) {
        return l2c_fail_nomem(err, n * l2c_linear_in(b->down) * sizeof(float));
    }
    l2cdb_status rc = l2c_linear_apply(
        b->up, &(l2c_product){ .x = z, .rows = n, .y_rows = &hidden, .post = L2C_POST_GELU }, arena,
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    return l2c_linear_apply(
        b->down, &(l2c_product){ .x_rows = &hidden, .rows = n, .y = x, .accumulate = true }, arena,
        err);
}

l2cdb_status l2c_adapter_apply(const l2c_adapter *a, float *y, const float *v, size_t n,
                               l2c_arena *arena, l2cdb_error *err) {
    size_t d = a->text_width;
    l2c_arena_mark outer = l2c_arena_get_mark(arena);
    float *x = l2c_arena_alloc(arena, n * d, sizeof *x);
    float *z = l2c_arena_alloc(arena, n * d, sizeof *z);
    if (x == NULL || z == NULL) {
        l2c_arena_reset(arena, outer);
        return l2c_fail_nomem(err, n * d * sizeof *x);
    }
    memcpy(x, v, n * d * sizeof *x);
    for (size_t r = 0; a->normalize_input && r < n; r++) {
        l2c_vec_normalize(x + r * d, d);
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < a->blocks_count; i++) {
        l2c_arena_mark inner = l2c_arena_get_mark(arena);
        rc = run_block(&a->blocks[i], x, z, n, arena, err);
        l2c_arena_reset(arena, inner);
    }
    if (rc == L2CDB_OK) {
        norm_rows(z, &a->last, x, n, d);
        rc = l2c_linear_apply(a->out, &(l2c_product){ .x = z, .rows = n, .y = y }, arena, err);
    }
    l2c_arena_reset(arena, outer);
    return rc;
}
