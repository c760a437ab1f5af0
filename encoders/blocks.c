/* Transformer blocks; see blocks.h. Source: spec 3.4, 4.3, 4.4, 4.5. */
#define _DEFAULT_SOURCE // madvise
#include "encoders/blocks.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "encoders/layers.h"
#include "engine/base/cpu.h"

enum { ROWS_PER_BLOCK = 384, PARTS_MAX = 4, NAME_BYTES = 256 };

l2cdb_status l2c_blocks_init(l2c_blocks *b, size_t count, l2cdb_error *err) {
    *b = (l2c_blocks){ .count = count };
    l2c_arena_init(&b->params, 0);
    b->items = l2c_calloc(count, sizeof *b->items);
    return b->items != NULL ? L2CDB_OK : l2c_fail_nomem(err, count * sizeof *b->items);
}

void l2c_blocks_fini(l2c_blocks *b) {
    for (size_t i = 0; b->items != NULL && i < b->count; i++) {
        l2c_linear_free(b->items[i].qkv);
        l2c_linear_free(b->items[i].proj);
        l2c_linear_free(b->items[i].up);
        l2c_linear_free(b->items[i].down);
    }
    l2c_free(b->items);
    l2c_arena_fini(&b->params);
    *b = (l2c_blocks){ 0 };
}

void l2c_norm_row(const l2c_blocks *b, const l2c_norm *n, float *out, const float *x,
                  size_t width) {
    if (b->rms) {
        l2c_rms_norm(out, x, n->weight, width, b->eps);
    } else {
        l2c_layer_norm(out, x, n->weight, n->bias, width, b->eps);
    }
}

/* ---- One pass ------------------------------------------------------------------------------- */

typedef struct pass {
    const l2c_blocks *b;
    float *x, *qkv, *heads; /* [rows, width], [rows, qkv_width], [rows, heads*head_dim] */
    size_t qkv_width;
    const size_t *positions;
    const l2c_block *tail, *head; /* finish this block, begin that one; either may be NULL */
} pass;

/* rows of norm(x) in the form that `l` multiplies. */
static l2cdb_status norm_rows(const l2c_blocks *b, const l2c_norm *n, const l2c_linear *l,
                              l2c_rows *rows, const float *x, size_t count, l2c_arena *arena,
                              l2cdb_error *err) {
    size_t width = l2c_linear_in(l);
    *rows = l2c_linear_rows(l, count, arena);
    float *wide = l2c_arena_alloc(arena, width, sizeof *wide);
    if (rows->data == NULL || wide == NULL) {
        return l2c_fail_nomem(err, count * width * sizeof(float));
    }
    for (size_t r = 0; r < count; r++) {
        if (rows->type == L2C_ROW_F32) {
            l2c_norm_row(b, n, (float *)rows->data + r * rows->stride, x + r * width, width);
            continue;
        }
        l2c_norm_row(b, n, wide, x + r * width, width);
        l2c_rows_set(rows, r, wide, width);
    }
    return L2CDB_OK;
}

static l2cdb_status begin_block(const pass *p, size_t first, size_t count, l2c_arena *arena,
                                l2cdb_error *err) {
    const l2c_blocks *b = p->b;
    l2c_rows rows;
    l2cdb_status rc = norm_rows(b, &p->head->before_attention, p->head->qkv, &rows,
                                p->x + first * b->width, count, arena, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    float *qkv = p->qkv + first * p->qkv_width;
    rc = l2c_linear_apply(p->head->qkv, &(l2c_product){ .x_rows = &rows, .rows = count, .y = qkv },
                          arena, err);
    for (size_t r = 0; rc == L2CDB_OK && b->rope != NULL && r < count; r++) {
        // q and k lie side by side and turn alike.
        l2c_rope_apply(b->rope, qkv + r * p->qkv_width, b->heads + b->kv_heads,
                       p->positions[first + r]);
    }
    return rc;
}

/* EVA02's MLP: a norm stands between the gated rows and the second matrix. */
static l2cdb_status gated_norm(const l2c_blocks *b, const l2c_block *k, const l2c_rows *in,
                               l2c_rows *hidden, size_t count, l2c_arena *arena, l2cdb_error *err) {
    float *rows = l2c_arena_alloc(arena, count * b->hidden, sizeof *rows);
    if (rows == NULL) {
        return l2c_fail_nomem(err, count * b->hidden * sizeof *rows);
    }
    l2cdb_status rc = l2c_linear_apply(
        k->up, &(l2c_product){ .x_rows = in, .rows = count, .y = rows, .post = L2C_POST_SWIGLU },
        arena, err);
    for (size_t r = 0; rc == L2CDB_OK && r < count; r++) {
        float *row = rows + r * b->hidden;
        l2c_norm_row(b, &k->inside_mlp, row, row, b->hidden);
    }
    if (rc == L2CDB_OK) {
        l2c_rows_fill(k->down, hidden, rows, b->hidden, count);
    }
    return rc;
}

static l2cdb_status end_block(const pass *p, size_t first, size_t count, l2c_arena *arena,
                              l2cdb_error *err) {
    const l2c_blocks *b = p->b;
    const l2c_block *k = p->tail;
    size_t heads_width = b->heads * b->head_dim;
    float *x = p->x + first * b->width, *heads = p->heads + first * heads_width;
    for (size_t r = 0; k->inside_attention.weight != NULL && r < count; r++) {
        float *row = heads + r * heads_width;
        l2c_norm_row(b, &k->inside_attention, row, row, heads_width);
    }
    l2cdb_status rc = l2c_linear_apply(
        k->proj, &(l2c_product){ .x = heads, .rows = count, .y = x, .accumulate = true }, arena,
        err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_rows in, hidden = l2c_linear_rows(k->down, count, arena);
    if (hidden.data == NULL) {
        return l2c_fail_nomem(err, count * b->hidden * sizeof(float));
    }
    rc = norm_rows(b, &k->before_mlp, k->up, &in, x, count, arena, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (k->inside_mlp.weight != NULL) {
        rc = gated_norm(b, k, &in, &hidden, count, arena, err);
    } else {
        rc = l2c_linear_apply(k->up,
                              &(l2c_product){ .x_rows = &in,
                                              .rows = count,
                                              .y_rows = &hidden,
                                              .post = b->gated ? L2C_POST_SWIGLU : b->post },
                              arena, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    return l2c_linear_apply(
        k->down, &(l2c_product){ .x_rows = &hidden, .rows = count, .y = x, .accumulate = true },
        arena, err);
}

/* What one thread does with its rows between two attentions. */
static l2cdb_status between(void *ctx, size_t first, size_t count, l2c_arena *arena,
                            l2cdb_error *err) {
    const pass *p = ctx;
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    l2cdb_status rc = L2CDB_OK;
    if (p->tail != NULL) {
        rc = end_block(p, first, count, arena, err);
        l2c_arena_reset(arena, mark);
    }
    if (rc == L2CDB_OK && p->head != NULL) {
        rc = begin_block(p, first, count, arena, err);
        l2c_arena_reset(arena, mark);
    }
    return rc;
}

/* Moves the kept rows of a matrix to its front; returns how many there are. */
static size_t compact(float *m, size_t width, const l2c_sequences *s) {
    size_t to = 0;
    for (size_t i = 0; i < s->count; i++) {
        const float *from = m + (s->offset[i] + s->keep_first[i]) * width;
        memmove(m + to * width, from, s->keep_count[i] * width * sizeof *m);
        to += s->keep_count[i];
    }
    return to;
}

static l2cdb_status attend(const pass *p, const l2c_sequences *s, const float *q, size_t q_stride,
                           const size_t *q_offset, l2c_workspace *ws, l2cdb_error *err) {
    const l2c_blocks *b = p->b;
    const float *k = p->qkv + b->heads * b->head_dim;
    return l2c_attention(
        &(l2c_attention_args){ .q = q,
                               .k = k,
                               .v = k + b->kv_heads * b->head_dim,
                               .q_stride = q_stride,
                               .k_stride = p->qkv_width,
                               .v_stride = p->qkv_width,
                               .out = p->heads,
                               .out_stride = b->heads * b->head_dim,
                               .heads = b->heads,
                               .kv_heads = b->kv_heads,
                               .head_dim = b->head_dim,
                               .sequences = s->count,
                               .q_offset = q_offset,
                               .kv_offset = s->offset,
                               .bf16 = b->items[0].qkv != NULL &&
                                       l2c_linear_precision(b->items[0].qkv) != L2C_PRECISION_F32 },
        ws, err);
}

/* The last attention for the kept rows alone; *rows becomes their number. */
static l2cdb_status attend_kept(const pass *p, const l2c_sequences *s, size_t *rows,
                                l2c_workspace *ws, l2cdb_error *err) {
    const l2c_blocks *b = p->b;
    size_t q_width = b->heads * b->head_dim;
    *rows = compact(p->x, b->width, s);
    float *q = l2c_arena_alloc(&ws->shared, *rows * q_width, sizeof *q);
    size_t *offset = l2c_arena_alloc(&ws->shared, s->count + 1, sizeof *offset);
    if (q == NULL || offset == NULL) {
        return l2c_fail_nomem(err, *rows * q_width * sizeof *q);
    }
    size_t to = 0;
    for (size_t i = 0; i < s->count; i++) {
        offset[i] = to;
        for (size_t r = 0; r < s->keep_count[i]; r++, to++) {
            size_t from = s->offset[i] + s->keep_first[i] + r;
            memcpy(q + to * q_width, p->qkv + from * p->qkv_width, q_width * sizeof *q);
        }
    }
    offset[s->count] = to;
    return attend(p, s, q, q_width, offset, ws, err);
}

static l2cdb_status run_all(pass *p, const l2c_sequences *s, size_t rows, l2c_workspace *ws,
                            l2cdb_error *err) {
    const l2c_blocks *b = p->b;
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i <= b->count && rc == L2CDB_OK; i++) {
        p->tail = i > 0 ? &b->items[i - 1] : NULL;
        p->head = i < b->count ? &b->items[i] : NULL;
        rc = l2c_deal_rows(ws, rows, ROWS_PER_BLOCK, between, p, err);
        if (rc != L2CDB_OK || p->head == NULL) {
            break;
        }
        if (i + 1 == b->count && s->keep_first != NULL) {
            rc = attend_kept(p, s, &rows, ws, err);
        } else {
            rc = attend(p, s, p->qkv, p->qkv_width, s->offset, ws, err);
        }
    }
    return rc;
}

l2cdb_status l2c_blocks_run(const l2c_blocks *b, float *x, const l2c_sequences *s,
                            l2c_workspace *ws, l2cdb_error *err) {
    size_t rows = s->offset[s->count];
    pass p = { .b = b, .x = x, .positions = s->positions };
    p.qkv_width = (b->heads + 2 * b->kv_heads) * b->head_dim;
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    p.qkv = l2c_arena_alloc(&ws->shared, rows * p.qkv_width, sizeof *p.qkv);
    p.heads = l2c_arena_alloc(&ws->shared, rows * b->heads * b->head_dim, sizeof *p.heads);
    l2cdb_status rc = p.qkv != NULL && p.heads != NULL
                          ? run_all(&p, s, rows, ws, err)
                          : l2c_fail_nomem(err, rows * p.qkv_width * sizeof *p.qkv);
    l2c_arena_reset(&ws->shared, mark);
    return rc;
}

/* ---- Reading weights ------------------------------------------------------------------------ */

static l2cdb_status missing(const char *name, l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_FORMAT, "tensor %s is missing", name);
}

static l2cdb_status load_vector(const float **out, const l2c_tensors *set, l2c_arena *arena,
                                const char *name, l2cdb_error *err) {
    const l2c_tensor *t = l2c_tensors_find(set, name);
    if (t == NULL) {
        return missing(name, err);
    }
    float *to = l2c_arena_alloc(arena, t->count, sizeof *to);
    if (to == NULL) {
        return l2c_fail_nomem(err, t->count * sizeof *to);
    }
    l2c_tensor_to_f32(t, to);
    *out = to;
    return L2CDB_OK;
}

l2cdb_status l2c_load_vector(const float **out, const l2c_tensors *set, l2c_arena *arena,
                             l2cdb_error *err, const char *fmt, ...) {
    char name[NAME_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return load_vector(out, set, arena, name, err);
}

l2cdb_status l2c_load_norm(l2c_norm *out, const l2c_tensors *set, l2c_arena *arena,
                           l2cdb_error *err, const char *fmt, ...) {
    char prefix[NAME_BYTES], name[NAME_BYTES + 16];
    va_list args;
    va_start(args, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, args);
    va_end(args);
    *out = (l2c_norm){ 0 };
    snprintf(name, sizeof name, "%s.weight", prefix);
    l2cdb_status rc = load_vector(&out->weight, set, arena, name, err);
    snprintf(name, sizeof name, "%s.bias", prefix);
    if (rc == L2CDB_OK && l2c_tensors_find(set, name) != NULL) {
        rc = load_vector(&out->bias, set, arena, name, err);
    }
    return rc;
}

static l2cdb_status load_part(l2c_linear_part *part, const l2c_tensors *set, const char *prefix,
                              size_t *in, l2c_arena *arena, l2cdb_error *err) {
    char name[NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s.weight", prefix);
    const l2c_tensor *w = l2c_tensors_find(set, name);
    if (w == NULL || w->ndim < 2) {
        return missing(name, err);
    }
    *part = (l2c_linear_part){ .weight = w->data, .type = w->dtype, .out = w->shape[0] };
    *in = w->count / w->shape[0];
    snprintf(name, sizeof name, "%s.bias", prefix);
    if (l2c_tensors_find(set, name) != NULL) {
        l2cdb_status rc = load_vector(&part->bias, set, arena, name, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    if (w->dtype != L2C_DTYPE_I8) {
        return L2CDB_OK;
    }
    snprintf(name, sizeof name, "%s.weight_scale", prefix);
    return load_vector(&part->scale, set, arena, name, err);
}

l2c_precision l2c_linear_policy(l2c_precision precision, const char *name) {
    static const char *const spared[] = {
        "mlp.fc2",
        "mlp.w3", // blocks of the three towers
        "patch_embedding",
        "patch_embed.proj", // pixels have more than eight bits; 1 % of the work
    };
    if (precision != L2C_PRECISION_INT8) {
        return precision;
    }
    for (size_t i = 0; i < sizeof spared / sizeof *spared; i++) {
        size_t name_size = strlen(name), tail = strlen(spared[i]);
        if (name_size >= tail && strcmp(name + name_size - tail, spared[i]) == 0) {
            return l2c_cpu_get()->avx512_bf16 ? L2C_PRECISION_BF16 : L2C_PRECISION_F32;
        }
    }
    return precision;
}

/* A packed weight is not read again: its pages of the mapped file need not stay in memory. Only
 * mappings; memory of the process would lose its contents. */
static void forget_pages(const l2c_tensors *set, const l2c_linear_part *part, size_t in) {
    const size_t page = 4096;
    size_t bytes = part->out * in * l2c_dtype_bytes(part->type);
    uintptr_t begin = ((uintptr_t)part->weight + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)part->weight + bytes) / page * page;
    for (size_t i = 0; i < set->maps_count; i++) {
        uintptr_t map = (uintptr_t)set->maps[i].data;
        if (begin >= map && end <= map + set->maps[i].size && begin < end) {
            madvise((char *)(uintptr_t)part->weight + (begin - (uintptr_t)part->weight),
                    end - begin, MADV_DONTNEED);
        }
    }
}

l2cdb_status l2c_load_linear(l2c_linear **out, const l2c_tensors *set, l2c_precision precision,
                             const char *const *prefixes, l2cdb_error *err) {
    l2c_linear_part parts[PARTS_MAX];
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    size_t count = 0, in = 0;
    l2cdb_status rc = L2CDB_OK;
    for (; rc == L2CDB_OK && count < PARTS_MAX && prefixes[count] != NULL; count++) {
        rc = load_part(&parts[count], set, prefixes[count], &in, &arena, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_linear_new(out, parts, count, in, l2c_linear_policy(precision, prefixes[0]),
                            L2C_BACKEND_AUTO, err);
    }
    for (size_t i = 0; rc == L2CDB_OK && i < count; i++) {
        forget_pages(set, &parts[i], in);
    }
    if (rc != L2CDB_OK) {
        l2c_context(err, "%s", prefixes[0]);
    }
    l2c_arena_fini(&arena);
    return rc;
}
