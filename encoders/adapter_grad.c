/* Forward and backward of the trained heads; see adapter_grad.h.
 *
 * Products go through l2c_gemm. What stands between two of them is one pass over slices of SLICE
 * rows, each by one thread, while they are in its cache. Sums over rows (biases, norms) are taken
 * slice by slice and then over the slices, in the same order whatever the number of threads.
 * gelu(u) and its derivative are both kept, since one exp and one erf give both.
 */
#include "encoders/adapter_grad.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "encoders/gemm.h"
#include "encoders/train_kernels.h"
#include "engine/base/vec.h"

static const float LN_EPS = 1e-5f;

enum { SLICE = 32 };

/* ---- The table ---- */

static void piece(l2c_param_table *t, size_t rows, size_t columns, const char *name) {
    l2c_param *p = &t->params[t->count++];
    snprintf(p->name, sizeof p->name, "%s", name);
    p->rows = rows;
    p->columns = columns;
    p->count = columns > 0 ? rows * columns : rows;
    p->offset = t->floats;
    p->decay = columns > 0;
    t->floats += (p->count + 15) & ~(size_t)15;
}

static void adapter_piece(l2c_param_table *t, size_t rows, size_t columns, size_t index,
                          const char *leaf) {
    char name[sizeof t->params->name];
    snprintf(name, sizeof name, "text_adapter.adaptor.%zu.%s", index, leaf);
    piece(t, rows, columns, name);
}

l2cdb_status l2c_param_table_init(l2c_param_table *t, const l2c_head_shape *s, l2cdb_error *err) {
    *t = (l2c_param_table){ .shape = *s };
    const size_t d = s->text_width, h = s->text_hidden;
    size_t most = L2C_PARAMS_PER_BLOCK * s->blocks + 7;
    t->params = l2c_calloc(most, sizeof *t->params);
    if (t->params == NULL) {
        return l2c_fail_nomem(err, most * sizeof *t->params);
    }
    for (size_t b = 0; b < s->blocks; b++) {
        adapter_piece(t, d, 0, b, "ln.weight");
        adapter_piece(t, d, 0, b, "ln.bias");
        adapter_piece(t, h, d, b, "fn.0.weight");
        adapter_piece(t, h, 0, b, "fn.0.bias");
        adapter_piece(t, d, h, b, "fn.3.weight");
        adapter_piece(t, d, 0, b, "fn.3.bias");
    }
    t->last_norm = t->count;
    adapter_piece(t, d, 0, s->blocks, "weight");
    adapter_piece(t, d, 0, s->blocks, "bias");
    t->out = t->count;
    adapter_piece(t, s->width, d, s->blocks + 1, "weight");
    adapter_piece(t, s->width, 0, s->blocks + 1, "bias");
    if (s->image_width > 0) {
        t->image = t->count;
        piece(t, s->width, s->image_width, "visual_projection.weight");
        if (s->image_bias) {
            piece(t, s->width, 0, "visual_projection.bias");
        }
    }
    t->logit_scale = t->count;
    piece(t, 1, 0, "logit_scale");
    return L2CDB_OK;
}

void l2c_param_table_fini(l2c_param_table *t) {
    l2c_free(t->params);
    *t = (l2c_param_table){ 0 };
}

static const float *view(const l2c_param_table *t, const float *block, size_t i) {
    return block + t->params[i].offset;
}

static float *view_mut(const l2c_param_table *t, float *block, size_t i) {
    return block + t->params[i].offset;
}

/* ln.weight of norm number n: the blocks', then the last. Its bias follows. */
static size_t norm_at(const l2c_param_table *t, size_t n) {
    return n < t->shape.blocks ? L2C_PARAMS_PER_BLOCK * n : t->last_norm;
}

/* ---- The tape ---- */

l2cdb_status l2c_adapter_tape_init(l2c_adapter_tape *tape, const l2c_head_shape *s, size_t rows_max,
                                   l2cdb_error *err) {
    *tape = (l2c_adapter_tape){ .rows_max = rows_max };
    const size_t d = s->text_width, h = s->text_hidden;
    // A row: xhat and its inverse for each norm, g and slope for each block, and one x, z, dg. A
    // slice: the widest sums, which are those of a norm or of u.
    const size_t per_row = (s->blocks + 1) * (d + 1) + 2 * s->blocks * h + 2 * d + h + 1;
    const size_t per_slice = 3 * d > h ? 3 * d : h;
    size_t floats;
    if (!l2c_mul_size(&floats, per_row + per_slice, rows_max + SLICE)) {
        return l2c_fail_nomem(err, UINT64_MAX);
    }
    floats = per_row * rows_max + per_slice * ((rows_max + SLICE - 1) / SLICE);
    float *m = l2c_alloc_aligned(floats, sizeof *m);
    if (m == NULL) {
        return l2c_fail_nomem(err, floats * sizeof *m);
    }
    tape->memory = m;
    tape->xhat = m, m += (s->blocks + 1) * rows_max * d;
    tape->g = m, m += s->blocks * rows_max * h;
    tape->slope = m, m += s->blocks * rows_max * h;
    tape->x = m, m += rows_max * d;
    tape->z = m, m += rows_max * d;
    tape->dg = m, m += rows_max * h;
    tape->inverse = m, m += (s->blocks + 1) * rows_max;
    tape->input_norm = m, m += rows_max;
    tape->sums = m;
    return L2CDB_OK;
}

void l2c_adapter_tape_fini(l2c_adapter_tape *tape) {
    l2c_free(tape->memory);
    *tape = (l2c_adapter_tape){ 0 };
}

/* ---- Products and rows ---- */

/* y[rows,out] = beta y + x[rows,in] W[out,in]ᵀ */
static l2cdb_status forward(float *y, float beta, const float *x, const float *W, size_t rows,
                            size_t out, size_t in, l2cdb_error *err) {
    const l2c_gemm_args args = { .transpose_b = true,
                                 .m = rows,
                                 .n = out,
                                 .k = in,
                                 .alpha = 1,
                                 .a = x,
                                 .lda = in,
                                 .b = W,
                                 .ldb = in,
                                 .beta = beta,
                                 .c = y,
                                 .ldc = out };
    return l2c_gemm(&args, err);
}

/* dx[rows,in] = dy[rows,out] W[out,in] */
static l2cdb_status back_input(float *dx, const float *dy, const float *W, size_t rows, size_t out,
                               size_t in, l2cdb_error *err) {
    const l2c_gemm_args args = { .m = rows,
                                 .n = in,
                                 .k = out,
                                 .alpha = 1,
                                 .a = dy,
                                 .lda = out,
                                 .b = W,
                                 .ldb = in,
                                 .c = dx,
                                 .ldc = in };
    return l2c_gemm(&args, err);
}

/* dW[out,in] = dy[rows,out]ᵀ x[rows,in] */
static l2cdb_status back_weight(float *dW, const float *dy, const float *x, size_t rows, size_t out,
                                size_t in, l2cdb_error *err) {
    const l2c_gemm_args args = { .transpose_a = true,
                                 .m = out,
                                 .n = in,
                                 .k = rows,
                                 .alpha = 1,
                                 .a = dy,
                                 .lda = out,
                                 .b = x,
                                 .ldb = in,
                                 .c = dW,
                                 .ldc = in };
    return l2c_gemm(&args, err);
}

static size_t slices(size_t rows) {
    return (rows + SLICE - 1) / SLICE;
}

static size_t slice_end(size_t slice, size_t rows) {
    return (slice + 1) * SLICE < rows ? (slice + 1) * SLICE : rows;
}

/* to[width] = Σ over slices of parts[slice, stride]. */
static void add_slices(float *to, const float *parts, size_t stride, size_t rows, size_t width) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    memcpy(to, parts, width * sizeof *to);
    for (size_t i = 1; i < slices(rows); i++) {
        K->add_row(to, parts + i * stride, width);
    }
}

/* y += bias, by rows. */
static void add_bias(float *y, const float *bias, size_t rows, size_t width) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        K->add_row(y + i * width, bias, width);
    }
}

/* db = Σ_rows dy. */
static void back_bias(float *db, const float *dy, size_t rows, size_t width) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    memset(db, 0, width * sizeof *db);
    for (size_t i = 0; i < rows; i++) {
        K->add_row(db, dy + i * width, width);
    }
}

/* x += bias (NULL: none); z = LN(x) for norm number n of the tape. */
static void norm_forward(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape, size_t n,
                         const float *x_bias, size_t rows) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t d = t->shape.text_width, at = norm_at(t, n);
    const float *weight = view(t, p, at), *bias = view(t, p, at + 1);
    float *xhat = tape->xhat + n * tape->rows_max * d;
    float *inverse = tape->inverse + n * tape->rows_max;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        float *x = tape->x + i * d;
        if (x_bias != NULL) {
            K->add_row(x, x_bias, d);
        }
        inverse[i] = K->norm_row(tape->z + i * d, xhat + i * d, x, weight, bias, d, LN_EPS);
    }
}

/* dx += LNback(dz) with dz in tape->z, dx in tape->x, for norm number n; the gradients of the
 * norm's weight and bias into g, and Σ_rows dx into dx_sum (NULL: not wanted): the gradient of the
 * bias that was added to the x before. The first norm to go back through, the last, starts from
 * dx = 0. */
static void norm_backward(const l2c_param_table *t, const float *p, float *g,
                          l2c_adapter_tape *tape, size_t n, float *dx_sum, size_t rows) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t d = t->shape.text_width, at = norm_at(t, n), stride = 3 * d;
    const float *weight = view(t, p, at);
    const float *xhat = tape->xhat + n * tape->rows_max * d;
    const float *inverse = tape->inverse + n * tape->rows_max;
    float *sums = tape->sums;
#pragma omp parallel for schedule(static)
    for (size_t s = 0; s < slices(rows); s++) {
        float *mine = sums + s * stride;
        const l2c_norm_sums to = { .dweight = mine, .dbias = mine + d, .dx = mine + 2 * d };
        memset(mine, 0, stride * sizeof *mine);
        for (size_t i = s * SLICE; i < slice_end(s, rows); i++) {
            float *dx = tape->x + i * d;
            if (n == t->shape.blocks) {
                memset(dx, 0, d * sizeof *dx);
            }
            K->norm_back_row(dx, &to, tape->z + i * d, xhat + i * d, weight, inverse[i], d);
        }
    }
    add_slices(view_mut(t, g, at), sums, stride, rows, d);
    add_slices(view_mut(t, g, at + 1), sums + d, stride, rows, d);
    if (dx_sum != NULL) {
        add_slices(dx_sum, sums + 2 * d, stride, rows, d);
    }
}

/* z = xhat * weight + bias again, for the gradient of the matrix behind norm number n. */
static void norm_again(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape, size_t n,
                       size_t i) {
    const size_t d = t->shape.text_width, at = norm_at(t, n);
    const float *xhat = tape->xhat + (n * tape->rows_max + i) * d;
    l2c_train_kernels_get()->affine_row(tape->z + i * d, xhat, view(t, p, at), view(t, p, at + 1),
                                        d);
}

/* Block b from dg in tape->dg: du in its place, with Σ_rows du into du_sum; and z once more. */
static void middle_backward(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape,
                            size_t b, float *du_sum, size_t rows) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t h = t->shape.text_hidden;
    const float *slope = tape->slope + b * tape->rows_max * h;
    float *sums = tape->sums;
#pragma omp parallel for schedule(static)
    for (size_t s = 0; s < slices(rows); s++) {
        memset(sums + s * h, 0, h * sizeof *sums);
        for (size_t i = s * SLICE; i < slice_end(s, rows); i++) {
            K->multiply_row(tape->dg + i * h, sums + s * h, slope + i * h, h);
            norm_again(t, p, tape, b, i);
        }
    }
    add_slices(du_sum, sums, h, rows, h);
}

/* ---- The adapter ---- */

l2cdb_status l2c_adapter_forward(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape,
                                 float *y, const float *v, size_t rows, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t d = t->shape.text_width, h = t->shape.text_hidden, E = t->shape.width;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        memcpy(tape->x + i * d, v + i * d, d * sizeof *v);
        if (t->shape.normalize_input) {
            tape->input_norm[i] = fmaxf(l2c_vec_normalize(tape->x + i * d, d), 1e-12f);
        }
    }
    const float *x_bias = NULL; // of the block before, added when x is next read
    for (size_t b = 0; b < t->shape.blocks; b++) {
        const size_t at = L2C_PARAMS_PER_BLOCK * b;
        float *g = tape->g + b * tape->rows_max * h, *u = tape->slope + b * tape->rows_max * h;
        norm_forward(t, p, tape, b, x_bias, rows);
        l2cdb_status rc = forward(u, 0, tape->z, view(t, p, at + 2), rows, h, d, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
        const float *c1 = view(t, p, at + 3);
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) {
            K->gelu_row(g + i * h, u + i * h, c1, h);
        }
        rc = forward(tape->x, 1, g, view(t, p, at + 4), rows, d, h, err);
        if (rc != L2CDB_OK) {
            return rc;
        }
        x_bias = view(t, p, at + 5);
    }
    norm_forward(t, p, tape, t->shape.blocks, x_bias, rows);
    l2cdb_status rc = forward(y, 0, tape->z, view(t, p, t->out), rows, E, d, err);
    add_bias(y, view(t, p, t->out + 1), rows, E);
    return rc;
}

/* x' = x + W2 gelu(u) + c2, u = W1 LN(x) + c1: from dx' in tape->x to dx there. The gradient of c2
 * is there already. */
static l2cdb_status block_backward(const l2c_param_table *t, const float *p, float *g,
                                   l2c_adapter_tape *tape, size_t b, size_t rows,
                                   l2cdb_error *err) {
    const size_t d = t->shape.text_width, h = t->shape.text_hidden, at = L2C_PARAMS_PER_BLOCK * b;
    const float *W1 = view(t, p, at + 2), *W2 = view(t, p, at + 4);
    const float *gelu = tape->g + b * tape->rows_max * h;
    l2cdb_status rc = back_input(tape->dg, tape->x, W2, rows, d, h, err);
    if (rc == L2CDB_OK) {
        middle_backward(t, p, tape, b, view_mut(t, g, at + 3), rows);
        rc = back_weight(view_mut(t, g, at + 4), tape->x, gelu, rows, d, h, err);
    }
    if (rc == L2CDB_OK) {
        rc = back_weight(view_mut(t, g, at + 2), tape->dg, tape->z, rows, h, d, err);
    }
    if (rc == L2CDB_OK) {
        rc = back_input(tape->z, tape->dg, W1, rows, h, d, err);
    }
    if (rc == L2CDB_OK) {
        // What flows into x is the gradient of the bias that the block before added to it.
        float *c2_before = b > 0 ? view_mut(t, g, at - L2C_PARAMS_PER_BLOCK + 5) : NULL;
        norm_backward(t, p, g, tape, b, c2_before, rows);
    }
    return rc;
}

l2cdb_status l2c_adapter_backward(const l2c_param_table *t, const float *p, float *g,
                                  l2c_adapter_tape *tape, const float *dy, float *dv,
                                  const float *v, size_t rows, l2cdb_error *err) {
    const size_t d = t->shape.text_width, E = t->shape.width, blocks = t->shape.blocks;
    // y = W LN(x) + b
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        norm_again(t, p, tape, blocks, i);
    }
    back_bias(view_mut(t, g, t->out + 1), dy, rows, E);
    l2cdb_status rc = back_weight(view_mut(t, g, t->out), dy, tape->z, rows, E, d, err);
    if (rc == L2CDB_OK) {
        rc = back_input(tape->z, dy, view(t, p, t->out), rows, E, d, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    float *c2_last = blocks > 0 ? view_mut(t, g, L2C_PARAMS_PER_BLOCK * blocks - 1) : NULL;
    norm_backward(t, p, g, tape, blocks, c2_last, rows);
    for (size_t b = blocks; b-- > 0 && rc == L2CDB_OK;) {
        rc = block_backward(t, p, g, tape, b, rows, err);
    }
    if (rc == L2CDB_OK && dv != NULL) {
        memcpy(dv, tape->x, rows * d * sizeof(float));
        if (t->shape.normalize_input) {
            memcpy(tape->z, v, rows * d * sizeof(float));
            l2c_unit_forward(tape->z, tape->input_norm, rows, d);
            l2c_unit_backward(dv, tape->z, tape->input_norm, rows, d);
        }
    }
    return rc;
}

/* ---- The image projection and the unit sphere ---- */

l2cdb_status l2c_projection_forward(const l2c_param_table *t, const float *p, float *y,
                                    const float *x, size_t rows, l2cdb_error *err) {
    const l2c_head_shape *s = &t->shape;
    l2cdb_status rc = forward(y, 0, x, view(t, p, t->image), rows, s->width, s->image_width, err);
    if (rc == L2CDB_OK && s->image_bias) {
        add_bias(y, view(t, p, t->image + 1), rows, s->width);
    }
    return rc;
}

l2cdb_status l2c_projection_backward(const l2c_param_table *t, float *g, const float *dy,
                                     const float *x, size_t rows, l2cdb_error *err) {
    const l2c_head_shape *s = &t->shape;
    if (s->image_bias) {
        back_bias(view_mut(t, g, t->image + 1), dy, rows, s->width);
    }
    return back_weight(view_mut(t, g, t->image), dy, x, rows, s->width, s->image_width, err);
}

void l2c_unit_forward(float *y, float *norms, size_t rows, size_t width) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        norms[i] = fmaxf(l2c_vec_normalize(y + i * width, width), 1e-12f);
    }
}

void l2c_unit_backward(float *de, const float *e, const float *norms, size_t rows, size_t width) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        float *g = de + i * width;
        const float *unit = e + i * width;
        float along = l2c_vec_dot(unit, g, width);
        float inverse = 1.0f / norms[i];
        for (size_t j = 0; j < width; j++) {
            g[j] = (g[j] - unit[j] * along) * inverse;
        }
    }
}
