/* Between gemm.c and the backends; nobody else includes this.
 *
 * gemm.c owns shapes, packing to one contiguous matrix, conversion of rows and the epilogue that a
 * backend cannot fuse; a backend owns the layout of the packed weights and the product itself. */
#ifndef L2C_GEMM_BACKEND_H
#define L2C_GEMM_BACKEND_H

#include "encoders/gemm.h"

struct l2c_linear {
    const struct l2c_gemm_backend *backend;
    l2c_precision precision; /* F32, BF16 or INT8 */
    size_t in, in_padded;    /* columns of zeros fill up to what the kernels want */
    size_t out;
    size_t pair;   /* outputs of each of two equal parts; 0: other parts */
    float *bias;   /* [out], or NULL */
    float *scale;  /* [out], int8 only */
    void *weights; /* packed */
    void *layout;  /* the backend's description of `weights`, may be NULL */
};

/* Of a weight or an input in the linear's precision. */
static inline size_t l2c_linear_item_bytes(const l2c_linear *l) {
    return l->precision == L2C_PRECISION_INT8 ? 1 : l->precision == L2C_PRECISION_BF16 ? 2 : 4;
}

/* What a product may write. */
typedef enum l2c_out_type {
    L2C_OUT_F32,
    L2C_OUT_BF16,
    L2C_OUT_I32, /* int8 sums, neither bias nor activation */
} l2c_out_type;

typedef struct l2c_raw_product {
    const void *x; /* [rows, in_padded] of the precision's type; allocated to a multiple of 32 rows
                    * unless f32 */
    const float *x_scale; /* [rows], int8 */
    const int8_t *x_rest; /* as in l2c_rows, int8 where `scales` */
    const bool *x_fine;
    size_t x_stride;
    size_t rows;
    void *y;
    size_t y_stride;
    l2c_out_type y_type;
    bool bias;
    l2c_post post;
    bool accumulate;
} l2c_raw_product;

/* The parts of a matrix that is being packed. */
typedef struct l2c_source {
    const l2c_linear_part *parts;
    size_t parts_count;
} l2c_source;

/* Row `at` of the stacked parts in the linear's type, [in_padded] with zeros at the end; sets
 * scale[at]. wide: f32 scratch [in]. Different rows may be got in different threads. */
void l2c_source_row(l2c_linear *l, const l2c_source *s, size_t at, void *to, float *wide);
/* All rows, [out, in_padded]; freed with l2c_free. NULL without memory. */
void *l2c_source_dense(l2c_linear *l, const l2c_source *s);
/* 64-byte aligned, in huge pages where the system gives them: weights of gigabytes are then neither
 * faulted in by 4 KiB nor looked up by 4 KiB. Freed with l2c_free; NULL without memory. */
void *l2c_alloc_weights(size_t bytes);

typedef struct l2c_gemm_backend {
    const char *name;
    bool has_bf16, has_int8;
    /* Whether this processor multiplies that precision, where a library decides; may be NULL. */
    bool (*takes)(l2c_precision precision);
    bool fuses;  /* bias, activation and accumulation for f32 and bf16 */
    bool scales; /* int8 as well, scales included: y_type is never I32 */
    bool gates;  /* SWIGLU */
    size_t align_f32, align_bf16, align_int8; /* in_padded is a multiple of these */
    /* Fills weights and layout from rows got by l2c_source_row or, all at once, by
     * l2c_source_dense. */
    l2cdb_status (*pack)(l2c_linear *l, const struct l2c_source *source, l2cdb_error *err);
    void (*unpack_free)(l2c_linear *l);
    l2cdb_status (*product)(const l2c_linear *l, const l2c_raw_product *p, l2c_arena *arena,
                            l2cdb_error *err);
    /* NULL: none of its own. */
    l2cdb_status (*gemm)(const l2c_gemm_args *args, l2cdb_error *err);
    void (*describe)(l2c_buf *out);
} l2c_gemm_backend;

extern const l2c_gemm_backend l2c_gemm_naive;
extern const l2c_gemm_backend l2c_gemm_openblas;
extern const l2c_gemm_backend l2c_gemm_onednn;
extern const l2c_gemm_backend l2c_gemm_amx; /* `gemm` is NULL */

/* Whether this processor runs l2c_gemm_amx. */
bool l2c_amx_usable(void);

/* gemm_split.c: l2c_gemm on bf16 tiles, each f32 as two bf16. beta is 0 or 1. */
l2cdb_status l2c_gemm_split(const l2c_gemm_args *args, l2cdb_error *err);
/* Whether this processor has tiles and the product is large enough for them. */
bool l2c_gemm_split_pays(const l2c_gemm_args *args);

/* gemm_openblas.c. Chooses OpenBLAS's kernels again if it took the processor for an older one;
 * true if it did. Runs by itself before main; a second call finds nothing to do. */
bool l2c_openblas_correct(void);
const char *l2c_openblas_core(void);
/* Returns the count before. */
int l2c_openblas_threads(int threads);

#endif
