/* Forward and backward of the trained heads; see adapter_grad.h.
 *
 * Products go through l2c_gemm; what stands between them is done by rows, each row by one thread.
 * gelu(u) is not kept: backward needs Φ(u) anyway and gets it back for one multiplication, which
 * saves a third of the tape. */
#include "encoders/adapter_grad.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "encoders/gemm.h"
#include "encoders/train_kernels.h"
#include "engine/base/vec.h"

static const float LN_EPS = 1e-5f;

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

/* ---- The tape ---- */

l2cdb_status l2c_adapter_tape_init(l2c_adapter_tape *tape, const l2c_head_shape *s, size_t rows_max,
                                   l2cdb_error *err) {
    *tape = (l2c_adapter_tape){ .rows_max = rows_max };
    const size_t d = s->text_width, h = s->text_hidden;
    // A row: xhat and its inverse for each norm, u for each block, and one x, z, g, dg.
    size_t per_row = (s->blocks + 1) * (d + 1) + s->blocks * h + 2 * d + 2 * h + 1;
    size_t floats;
    if (!l2c_mul_size(&floats, per_row, rows_max)) {
        return l2c_fail_nomem(err, UINT64_MAX);
    }
    float *m = l2c_alloc_aligned(floats, sizeof *m);
    if (m == NULL) {
        return l2c_fail_nomem(err, floats * sizeof *m);
    }
    tape->memory = m;
    tape->xhat = m, m += (s->blocks + 1) * rows_max * d;
    tape->u = m, m += s->blocks * rows_max * h;
    tape->x = m, m += rows_max * d;
    tape->z = m, m += rows_max * d;
    tape->g = m, m += rows_max * h;
    tape->dg = m, m += rows_max * h;
    tape->inverse = m, m += (s->blocks + 1) * rows_max;
    tape->input_norm = m;
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

/* dW[out,in] += dy[rows,out]ᵀ x[rows,in] */
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
                                 .beta = 1,
                                 .c = dW,
                                 .ldc = in };
    return l2c_gemm(&args, err);
}

static void add_bias(float *y, const float *bias, size_t rows, size_t width) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        K->add_row(y + i * width, bias, width);
    }
}

/* db[width] += Σ_rows dy. Serial: its order must not depend on the thread count, and it is a
 * hundredth of the product beside it. */
static void back_bias(float *db, const float *dy, size_t rows, size_t width) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    for (size_t i = 0; i < rows; i++) {
        K->add_row(db, dy + i * width, width);
    }
}

/* z = LN(x) for norm number n of the tape. */
static void norm_forward(l2c_adapter_tape *tape, size_t n, const float *weight, const float *bias,
                         size_t rows, size_t d) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    float *xhat = tape->xhat + n * tape->rows_max * d,
          *inverse = tape->inverse + n * tape->rows_max;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        inverse[i] =
            K->norm_row(tape->z + i * d, xhat + i * d, tape->x + i * d, weight, bias, d, LN_EPS);
    }
}

/* dx += LNback(dz), and the gradients of weight and bias. */
static void norm_backward(const l2c_adapter_tape *tape, size_t n, float *dx, const float *dz,
                          const float *weight, float *dweight, float *dbias, size_t rows,
                          size_t d) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const float *xhat = tape->xhat + n * tape->rows_max * d;
    const float *inverse = tape->inverse + n * tape->rows_max;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        K->norm_back_row(dx + i * d, dz + i * d, xhat + i * d, weight, inverse[i], d);
    }
    for (size_t i = 0; i < rows; i++) {
        K->add_product_row(dweight, dz + i * d, xhat + i * d, d);
    }
    back_bias(dbias, dz, rows, d);
}

/* z = xhat * weight + bias again, for dW1 = duᵀ z. */
static void norm_again(l2c_adapter_tape *tape, size_t n, const float *weight, const float *bias,
                       size_t rows, size_t d) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const float *xhat = tape->xhat + n * tape->rows_max * d;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < rows; i++) {
        memcpy(tape->z + i * d, bias, d * sizeof(float));
        K->add_product_row(tape->z + i * d, xhat + i * d, weight, d);
    }
}

/* ---- The adapter ---- */

l2cdb_status l2c_adapter_forward(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape,
                                 float *y, const float *v, size_t rows, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t d = t->shape.text_width, h = t->shape.text_hidden, E = t->shape.width;
    memcpy(tape->x, v, rows * d * sizeof(float));
    if (t->shape.normalize_input) {
        for (size_t i = 0; i < rows; i++) {
            tape->input_norm[i] = fmaxf(l2c_vec_normalize(tape->x + i * d, d), 1e-12f);
        }
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t b = 0; b < t->shape.blocks && rc == L2CDB_OK; b++) {
        const size_t at = L2C_PARAMS_PER_BLOCK * b;
        float *u = tape->u + b * tape->rows_max * h;
        norm_forward(tape, b, view(t, p, at), view(t, p, at + 1), rows, d);
        rc = forward(u, 0, tape->z, view(t, p, at + 2), rows, h, d, err);
        if (rc != L2CDB_OK) {
            break;
        }
        const float *c1 = view(t, p, at + 3);
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) {
            K->add_row(u + i * h, c1, h);
            K->gelu_row(tape->g + i * h, u + i * h, h);
        }
        rc = forward(tape->x, 1, tape->g, view(t, p, at + 4), rows, d, h, err);
        add_bias(tape->x, view(t, p, at + 5), rows, d);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    norm_forward(tape, t->shape.blocks, view(t, p, t->last_norm), view(t, p, t->last_norm + 1),
                 rows, d);
    rc = forward(y, 0, tape->z, view(t, p, t->out), rows, E, d, err);
    add_bias(y, view(t, p, t->out + 1), rows, E);
    return rc;
}

l2cdb_status l2c_adapter_backward(const l2c_param_table *t, const float *p, float *g,
                                  l2c_adapter_tape *tape, float *dy, float *dv, const float *v,
                                  size_t rows, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t d = t->shape.text_width, h = t->shape.text_hidden, E = t->shape.width;
    const size_t last = t->last_norm;
    float *dx = tape->x; // x itself is not needed any more

    // y = W LN(x) + b
    norm_again(tape, t->shape.blocks, view(t, p, last), view(t, p, last + 1), rows, d);
    l2cdb_status rc = back_weight(view_mut(t, g, t->out), dy, tape->z, rows, E, d, err);
    back_bias(view_mut(t, g, t->out + 1), dy, rows, E);
    if (rc == L2CDB_OK) {
        rc = back_input(tape->z, dy, view(t, p, t->out), rows, E, d, err);
    }
    memset(dx, 0, rows * d * sizeof(float));
    norm_backward(tape, t->shape.blocks, dx, tape->z, view(t, p, last), view_mut(t, g, last),
                  view_mut(t, g, last + 1), rows, d);

    for (size_t b = t->shape.blocks; b-- > 0 && rc == L2CDB_OK;) {
        const size_t at = L2C_PARAMS_PER_BLOCK * b;
        const float *u = tape->u + b * tape->rows_max * h;
        // x' = x + W2 gelu(u) + c2: dg = dx' W2
        rc = back_input(tape->dg, dx, view(t, p, at + 4), rows, d, h, err);
        // du = dg * gelu'(u)
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) {
            K->gelu_back_row(tape->g + i * h, tape->dg + i * h, u + i * h, h);
        }
        if (rc == L2CDB_OK) {
            rc = back_weight(view_mut(t, g, at + 4), dx, tape->g, rows, d, h, err);
        }
        back_bias(view_mut(t, g, at + 5), dx, rows, d);
        // u = W1 z + c1
        norm_again(tape, b, view(t, p, at), view(t, p, at + 1), rows, d);
        if (rc == L2CDB_OK) {
            rc = back_weight(view_mut(t, g, at + 2), tape->dg, tape->z, rows, h, d, err);
        }
        back_bias(view_mut(t, g, at + 3), tape->dg, rows, h);
        if (rc == L2CDB_OK) {
            rc = back_input(tape->z, tape->dg, view(t, p, at + 2), rows, h, d, err);
        }
        // z = LN(x), beside the residual: dx = dx' + LNback(dz)
        norm_backward(tape, b, dx, tape->z, view(t, p, at), view_mut(t, g, at),
                      view_mut(t, g, at + 1), rows, d);
    }
    if (rc == L2CDB_OK && dv != NULL) {
        memcpy(dv, dx, rows * d * sizeof(float));
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
