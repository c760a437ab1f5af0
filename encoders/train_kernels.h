/* The loops of training beside the products, chosen once by the processor: rows of the losses,
 * activations and norms backward, AdamW. The loops themselves are in train_loops.h. Pointers may be
 * unaligned; any thread. */
#ifndef L2C_TRAIN_KERNELS_H
#define L2C_TRAIN_KERNELS_H

#include <stddef.h>

/* AdamW with everything that does not depend on the element worked out (adamw.c). */
typedef struct l2c_adamw_factors {
    float scale;                      /* of the gradient */
    float beta1, rest1, beta2, rest2; /* rest = 1 - beta */
    float keep;                       /* 1 - lr * weight_decay */
    float rate;                       /* lr / (1 - beta1^t) */
    float root;                       /* 1 / sqrt(1 - beta2^t) */
    float eps;
} l2c_adamw_factors;

/* Sums over rows that the backward of a norm adds to: of its weight's and its bias's gradient, and
 * of the gradient that it hands on. */
typedef struct l2c_norm_sums {
    float *dweight, *dbias, *dx;
} l2c_norm_sums;

typedef struct l2c_train_kernels {
    /* log Σ_j exp(x_j) */
    double (*log_sum_exp)(const float *x, size_t n);
    /* For each column of S [rows, n] its largest value and Σ exp(x - largest); and two such results
     * into the first. */
    void (*columns_sum_exp)(float *most, float *sum, const float *S, size_t stride, size_t rows,
                            size_t n);
    void (*columns_merge)(float *most, float *sum, const float *more_most, const float *more_sum,
                          size_t n);
    /* x_j = exp(x_j - lse) * share */
    void (*probabilities)(float *x, float lse, float share, size_t n);
    /* x_j = (exp(x_j - row_lse) + exp(x_j - column_lse[j])) * share; returns Σ new x_j * old x_j */
    double (*symmetric_row)(float *x, float row_lse, const float *column_lse, float share,
                            size_t n);
    /* With v = u + bias: g = gelu(v), exact form, and u becomes gelu'(v) */
    void (*gelu_row)(float *g, float *u, const float *bias, size_t n);
    /* a *= b; sum += a */
    void (*multiply_row)(float *a, float *sum, const float *b, size_t n);
    /* xhat = (x - mean) / sqrt(var + eps); z = xhat * weight + bias; returns 1 / sqrt(var + eps) */
    float (*norm_row)(float *z, float *xhat, const float *x, const float *weight, const float *bias,
                      size_t n, float eps);
    /* z = xhat * weight + bias */
    void (*affine_row)(float *z, const float *xhat, const float *weight, const float *bias,
                       size_t n);
    /* dx += gradient of the norm above by x */
    void (*norm_back_row)(float *dx, const l2c_norm_sums *sums, const float *dz, const float *xhat,
                          const float *weight, float inverse, size_t n);
    void (*add_row)(float *sum, const float *a, size_t n);
    void (*adamw)(float *p, float *m, float *v, const float *grad, const l2c_adamw_factors *f,
                  size_t n);
    double (*square_sum)(const float *x, size_t n);
} l2c_train_kernels;

/* Never NULL. */
const l2c_train_kernels *l2c_train_kernels_get(void);

#endif
