/* Matrix products, the one place where a library is chosen.
 *
 *   l2c_linear_part q = { .weight = wq, .type = L2C_DTYPE_BF16, .out = 2048, .bias = NULL };
 *   l2c_linear_new(&l, &q, 1, 2048, L2C_PRECISION_INT8, L2C_BACKEND_AUTO, &err);
 *   l2c_linear_apply(l, &(l2c_product){ .x = x, .rows = T, .y = y }, &arena, &err);
 *
 * Two kinds of product:
 *   - y = x W^T + b with fixed weights: an `l2c_linear`, packed once into the layout its library
 *     likes, in f32, bf16 or int8. Several matrices over the same input (q, k and v) are one.
 *   - C = alpha op(A) op(B) + beta C on plain f32 arrays: `l2c_gemm`, for training.
 *
 * Backends: oneDNN (default where it was found when l2cdb was built), OpenBLAS, and a naive referee
 * in plain C that does what the fast ones do in the order a reader expects.
 *
 * Precision. f32: on tiles, made of bf16 terms and as exact as sums of f32 (amx_split.h). bf16:
 * weights and inputs are rounded to bf16, sums are f32. int8: weights symmetric with one scale an
 * output, inputs symmetric with one scale a row, found when the row is seen; sums are exact in
 * int32. OpenBLAS has neither, so weights given in bf16 or int8 are widened to f32.
 *
 * Threads. Towers deal their rows to a crew (workspace.h) and call from inside, where a product
 * keeps to its thread: measured on two cores with AMX (1024 → 4096, Debian's oneDNN 2.6.3) 2,790
 * against 1,960 GOP/s in bf16 and 5,580 against 1,840 in int8, because everything between two
 * products stays in that core's cache. Outside of a deal, oneDNN uses as many threads as
 * l2c_team_begin said. */
#ifndef L2C_GEMM_H
#define L2C_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "encoders/encoders.h"
#include "encoders/tensors.h"
#include "engine/base/mem.h"

typedef enum l2c_backend {
    L2C_BACKEND_AUTO, /* L2CDB_GEMM=naive|openblas|onednn|amx in the environment, else the best
                         built */
    L2C_BACKEND_NAIVE,
    L2C_BACKEND_OPENBLAS,
    L2C_BACKEND_ONEDNN,
    L2C_BACKEND_AMX, /* our own tile kernels; plain products go to the best of the others */
} l2c_backend;

/* What AUTO means in this process; never AUTO. */
l2c_backend l2c_gemm_default(void);
/* Whether this build holds the backend. */
bool l2c_gemm_has(l2c_backend backend);
const char *
l2c_backend_name(l2c_backend backend); /* "auto", "naive", "openblas", "onednn", "amx" */

/* ---- The team of threads -------------------------------------------------------------------- */

typedef struct l2c_team {
    int omp_before, blas_before;
} l2c_team;

/* Makes `threads` (0: every core of the process) the team of the calling thread until end. */
l2c_team l2c_team_begin(size_t threads);
void l2c_team_end(l2c_team before);

/* ---- Products with fixed weights ------------------------------------------------------------ */

typedef struct l2c_linear_part {
    const void *weight; /* [out, in] row-major, any alignment; only read during l2c_linear_new */
    l2c_dtype type;     /* F32, F16, BF16; or I8 with `scale` */
    const float *scale; /* [out], any alignment: w = scale * weight */
    const float *bias;  /* [out], or NULL */
    size_t out;
} l2c_linear_part;

/* What is done to a product before it is written. */
typedef enum l2c_post {
    L2C_POST_NONE,
    L2C_POST_GELU, /* exact, erf */
    L2C_POST_GELU_TANH,
    L2C_POST_QUICK_GELU, /* z σ(1.702 z) */
    L2C_POST_SILU,       /* z σ(z) */
    L2C_POST_SWIGLU,     /* of two equal parts, gate and up: silu(gate) * up, half as many outputs;
                          * not with `accumulate` */
} l2c_post;

typedef struct l2c_linear l2c_linear;

/* Parts are stacked along the output, in order. Weights of another type are converted; int8 weights
 * under another precision are multiplied out. AUTO precision is f32. E_NOMEM, E_UNSUPPORTED if the
 * backend is not built in or its library refuses, E_INVALID for an empty shape. */
l2cdb_status l2c_linear_new(l2c_linear **out, const l2c_linear_part *parts, size_t parts_count,
                            size_t in, l2c_precision precision, l2c_backend backend,
                            l2cdb_error *err);
void l2c_linear_free(l2c_linear *l);
size_t l2c_linear_in(const l2c_linear *l);
size_t l2c_linear_out(const l2c_linear *l);
/* What is multiplied in the end: f32 where OpenBLAS widened. */
l2c_precision l2c_linear_precision(const l2c_linear *l);

/* Rows in the form a linear multiplies, so that a chain of them need not pass through f32. */
typedef enum l2c_row_type {
    L2C_ROW_F32,
    L2C_ROW_BF16,
    L2C_ROW_I8,
} l2c_row_type;

typedef struct l2c_rows {
    void *data;    /* [count, stride] of `type`, allocated to a multiple of 32 rows unless f32 */
    size_t stride; /* elements between rows; elements past the width are zero unless f32 */
    l2c_row_type type;
    /* int8 only: value = scale * data; in rows that are fine (their outliers would leave the others
     * too few steps) + scale * rest / L2C_REST_STEPS, where rest has a row for each of these. */
    float *scale; /* [count] */
    bool *fine;   /* [count] */
    int8_t *rest; /* [rest_count, stride] */
    size_t rest_count;
} l2c_rows;

l2c_row_type l2c_linear_row_type(const l2c_linear *l);
/* Rows for the input of `l` out of the arena, padding zeroed; data NULL without memory. */
l2c_rows l2c_linear_rows(const l2c_linear *l, size_t count, l2c_arena *arena);
/* f32 x [n] into row r of rows made by l2c_linear_rows; row after row from 0 on. */
void l2c_rows_set(l2c_rows *rows, size_t r, const float *x, size_t n);
/* f32 x [count, in], stride x_stride, into rows made by l2c_linear_rows. */
void l2c_rows_fill(const l2c_linear *l, l2c_rows *rows, const float *x, size_t x_stride,
                   size_t count);

typedef struct l2c_product {
    const float *x;         /* f32 [rows, in]; or NULL and x_rows */
    size_t x_stride;        /* 0: in */
    const l2c_rows *x_rows; /* of l2c_linear_row_type */
    size_t rows;
    float *y;         /* f32 [rows, out], half of it for SWIGLU; or NULL and y_rows */
    size_t y_stride;  /* 0: out */
    l2c_rows *y_rows; /* made by l2c_linear_rows of the next linear */
    l2c_post post;
    bool accumulate; /* y += post(x W^T + b), f32 only: the residual */
} l2c_product;

/* Scratch comes from `arena` and is released before return. E_NOMEM, E_INTERNAL if the library
 * fails. Any number of threads, one arena each. */
l2cdb_status l2c_linear_apply(const l2c_linear *l, const l2c_product *p, l2c_arena *arena,
                              l2cdb_error *err);

/* ---- Products on plain arrays ---------------------------------------------------------------- */

typedef struct l2c_gemm_args {
    bool transpose_a, transpose_b;
    size_t m, n, k;
    float alpha;
    const float *a; /* [m,k] row-major, or [k,m] if transposed; lda elements a row */
    size_t lda;
    const float *b; /* [k,n], or [n,k] if transposed */
    size_t ldb;
    float beta; /* 0: c is not read */
    float *c;   /* [m,n] */
    size_t ldc;
} l2c_gemm_args;

/* f32. E_INTERNAL if the library refuses (then c is unspecified). Where AUTO means AMX, a large
 * product is made of three in bf16 (gemm_split.c): its error stays near that of an f32 one. */
l2cdb_status l2c_gemm(const l2c_gemm_args *args, l2cdb_error *err);
/* Gives back the scratch that large products keep between calls. */
void l2c_gemm_trim(void);
l2cdb_status l2c_gemm_with(l2c_backend backend, const l2c_gemm_args *args, l2cdb_error *err);

/* Lines "key: value" on the libraries, their kernels and the correction of OpenBLAS. */
void l2c_gemm_describe(l2c_buf *out);

#endif
