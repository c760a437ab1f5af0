/* Llama without its mask; see llama.h. */
#include "encoders/llama.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/vec.h"

static l2cdb_status init_block(l2c_block *k, l2c_blocks *b, size_t i, const l2c_tensors *set,
                               l2c_precision precision, l2cdb_error *err) {
    const struct {
        l2c_linear **linear;
        const char *names[3];
    } linears[] = {
        { &k->qkv, { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" } },
        { &k->proj, { "self_attn.o_proj" } },
        { &k->up, { "mlp.gate_proj", "mlp.up_proj" } },
        { &k->down, { "mlp.down_proj" } },
    };
    l2cdb_status rc =
        l2c_load_norm(&k->before_attention, set, &b->params, err, "layers.%zu.input_layernorm", i);
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&k->before_mlp, set, &b->params, err,
                           "layers.%zu.post_attention_layernorm", i);
    }
    for (size_t n = 0; rc == L2CDB_OK && n < sizeof linears / sizeof *linears; n++) {
        char full[3][96];
        const char *prefixes[4] = { NULL };
        for (size_t part = 0; part < 3 && linears[n].names[part] != NULL; part++) {
            snprintf(full[part], sizeof full[part], "layers.%zu.%s", i, linears[n].names[part]);
            prefixes[part] = full[part];
        }
        rc = l2c_load_linear(linears[n].linear, set, precision, prefixes, err);
    }
    return rc;
}

l2cdb_status l2c_llama_init(l2c_llama *m, const l2c_llm_config *c, const l2c_tensors *set,
                            size_t tokens_max, l2c_precision precision, l2cdb_error *err) {
    *m = (l2c_llama){ .config = *c };
    l2cdb_status rc = l2c_blocks_init(&m->blocks, c->layers, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_blocks *b = &m->blocks;
    b->width = c->width;
    b->heads = c->heads;
    b->kv_heads = c->kv_heads;
    b->head_dim = c->head_dim;
    b->hidden = c->hidden;
    b->rms = b->gated = true;
    b->eps = (float)c->rms_eps;
    b->rope = &m->rope;
    m->embeddings = l2c_tensors_find(set, "embed_tokens.weight");
    if (m->embeddings == NULL) {
        return l2c_fail(err, L2CDB_E_FORMAT, "tensor embed_tokens.weight is missing");
    }
    rc = l2c_rope_init_llama(&m->rope, c, tokens_max, err);
    if (rc == L2CDB_OK) {
        rc = l2c_load_norm(&m->last, set, &b->params, err, "norm");
    }
    for (size_t i = 0; rc == L2CDB_OK && i < b->count; i++) {
        rc = init_block(&b->items[i], b, i, set, precision, err);
    }
    return rc;
}

void l2c_llama_fini(l2c_llama *m) {
    l2c_blocks_fini(&m->blocks);
    l2c_rope_fini(&m->rope);
    *m = (l2c_llama){ 0 };
}

static l2cdb_status look_up(const l2c_llama *m, float *x, const int32_t *ids, size_t count,
                            l2cdb_error *err) {
    size_t d = m->config.width;
    for (size_t r = 0; r < count; r++) {
        if (ids[r] < 0 || (size_t)ids[r] >= m->config.vocab) {
            return l2c_fail(err, L2CDB_E_INVALID, "token id %d, expected 0 to %zu", (int)ids[r],
                            m->config.vocab - 1);
        }
        l2c_tensor_slice_f32(m->embeddings, (size_t)ids[r] * d, d, x + r * d);
    }
    return L2CDB_OK;
}

/* x holds the pooled rows of all texts one after another. */
static void pool(const l2c_llama *m, float *out, float *x, const size_t *pooled, size_t n) {
    size_t d = m->config.width;
    for (size_t i = 0; i < n; i++) {
        float *mean = out + i * d;
        memset(mean, 0, d * sizeof *mean);
        for (size_t r = 0; r < pooled[i]; r++, x += d) {
            l2c_norm_row(&m->blocks, &m->last, x, x, d);
            l2c_vec_axpy(mean, x, 1.0F / (float)pooled[i], d);
        }
    }
}

static l2cdb_status run(const l2c_llama *m, float *out, float *x, size_t *scratch,
                        const int32_t *ids, const size_t *offset, const size_t *pooled, size_t n,
                        l2c_workspace *ws, l2cdb_error *err) {
    size_t rows = offset[n], *positions = scratch, *keep = scratch + rows;
    l2cdb_status rc = look_up(m, x, ids, rows, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t r = offset[i]; r < offset[i + 1]; r++) {
            positions[r] = r - offset[i];
        }
        keep[i] = offset[i + 1] - offset[i] - pooled[i];
    }
    rc = l2c_blocks_run(&m->blocks, x,
                        &(l2c_sequences){ .count = n,
                                          .offset = offset,
                                          .positions = positions,
                                          .keep_first = keep,
                                          .keep_count = pooled },
                        ws, err);
    if (rc == L2CDB_OK) {
        pool(m, out, x, pooled, n);
    }
    return rc;
}

l2cdb_status l2c_llama_features(const l2c_llama *m, float *out, const int32_t *ids,
                                const size_t *offset, const size_t *pooled, size_t n,
                                l2c_workspace *ws, l2cdb_error *err) {
    for (size_t i = 0; i < n; i++) {
        size_t length = offset[i + 1] - offset[i];
        if (length > m->rope.positions || pooled[i] == 0 || pooled[i] > length) {
            return l2c_fail(err, L2CDB_E_INVALID,
                            "text %zu: %zu tokens, %zu pooled; expected at most %zu and at least 1",
                            i, length, pooled[i], m->rope.positions);
        }
    }
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    size_t rows = offset[n];
    float *x = l2c_arena_alloc(&ws->shared, rows * m->config.width, sizeof *x);
    size_t *scratch = l2c_arena_alloc(&ws->shared, rows + n, sizeof *scratch);
    l2cdb_status rc = x != NULL && scratch != NULL
                          ? run(m, out, x, scratch, ids, offset, pooled, n, ws, err)
                          : l2c_fail_nomem(err, rows * m->config.width * sizeof *x);
    l2c_arena_reset(&ws->shared, mark);
    return rc;
}
