/* The referee: products as the formulas say, in plain C. Slow on purpose; sums are kept in double
 * (f32, bf16) or exactly in int32, so it is also the most accurate backend. */
#include "encoders/gemm_backend.h"

#include <math.h>

#include "engine/base/vec.h"

static l2cdb_status pack(l2c_linear *l, const l2c_source *source, l2cdb_error *err) {
    l->weights = l2c_source_dense(l, source);
    return l->weights != NULL
               ? L2CDB_OK
               : l2c_fail_nomem(err, l->out * l->in_padded * l2c_linear_item_bytes(l));
}

static void unpack_free(l2c_linear *l) {
    l2c_free(l->weights);
}

static double activate(double z, l2c_post post) {
    switch (post) {
    case L2C_POST_GELU:
        return 0.5 * z * (1 + erf(z * 0.70710678118654752440));
    case L2C_POST_GELU_TANH:
        return 0.5 * z * (1 + tanh(0.79788456080286535588 * (z + 0.044715 * z * z * z)));
    case L2C_POST_QUICK_GELU:
        return z / (1 + exp(-1.702 * z));
    case L2C_POST_SILU:
        return z / (1 + exp(-z));
    case L2C_POST_SWIGLU: // gemm.c
    case L2C_POST_NONE:
        break;
    }
    return z;
}

static double sum_float(const l2c_linear *l, const void *x, size_t o) {
    double sum = 0;
    if (l->precision == L2C_PRECISION_F32) {
        const float *a = x, *w = (const float *)l->weights + o * l->in_padded;
        for (size_t i = 0; i < l->in_padded; i++) {
            sum += (double)a[i] * (double)w[i];
        }
    } else {
        const uint16_t *a = x, *w = (const uint16_t *)l->weights + o * l->in_padded;
        for (size_t i = 0; i < l->in_padded; i++) {
            sum += (double)l2c_bf16_to_f32(a[i]) * (double)l2c_bf16_to_f32(w[i]);
        }
    }
    return sum;
}

static int32_t sum_int8(const l2c_linear *l, const int8_t *x, size_t o) {
    const int8_t *w = (const int8_t *)l->weights + o * l->in_padded;
    int32_t sum = 0;
    for (size_t i = 0; i < l->in_padded; i++) {
        sum += (int32_t)x[i] * w[i];
    }
    return sum;
}

static l2cdb_status product(const l2c_linear *l, const l2c_raw_product *p, l2c_arena *arena,
                            l2cdb_error *err) {
    (void)arena;
    (void)err;
    size_t item = l2c_linear_item_bytes(l);
    for (size_t r = 0; r < p->rows; r++) {
        const char *x = (const char *)p->x + r * p->x_stride * item;
        for (size_t o = 0; o < l->out; o++) {
            size_t at = r * p->y_stride + o;
            if (p->y_type == L2C_OUT_I32) {
                ((int32_t *)p->y)[at] = sum_int8(l, (const int8_t *)x, o);
                continue;
            }
            double z = sum_float(l, x, o);
            z = activate(p->bias ? z + (double)l->bias[o] : z, p->post);
            if (p->y_type == L2C_OUT_BF16) {
                ((uint16_t *)p->y)[at] = l2c_f32_to_bf16((float)z);
            } else {
                float *y = (float *)p->y + at;
                *y = (float)(p->accumulate ? (double)*y + z : z);
            }
        }
    }
    return L2CDB_OK;
}

static l2cdb_status gemm(const l2c_gemm_args *g, l2cdb_error *err) {
    (void)err;
    for (size_t i = 0; i < g->m; i++) {
        for (size_t j = 0; j < g->n; j++) {
            double sum = 0;
            for (size_t k = 0; k < g->k; k++) {
                float a = g->transpose_a ? g->a[k * g->lda + i] : g->a[i * g->lda + k];
                float b = g->transpose_b ? g->b[j * g->ldb + k] : g->b[k * g->ldb + j];
                sum += (double)a * (double)b;
            }
            float *c = g->c + i * g->ldc + j;
            double z = (double)g->alpha * sum;
            *c = (float)(g->beta == 0 ? z : z + (double)g->beta * (double)*c);
        }
    }
    return L2CDB_OK;
}

static void describe(l2c_buf *out) {
    l2c_buf_puts(out, "naive: plain C referee\n");
}

const l2c_gemm_backend l2c_gemm_naive = {
    .name = "naive",
    .has_bf16 = true,
    .has_int8 = true,
    .fuses = true,
    .align_f32 = 1,
    .align_bf16 = 1,
    .align_int8 = 1,
    .pack = pack,
    .unpack_free = unpack_free,
    .product = product,
    .gemm = gemm,
    .describe = describe,
};
