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

typedef struct l2c_train_kernels {
    /* log Σ_j exp(x_j) */
    double (*log_sum_exp)(const float *x, size_t n);
    /* x_j = exp(x_j - lse) * share */
    void (*probabilities)(float *x, float lse, float share, size_t n);
    /* x_j = (exp(x_j - row_lse) + exp(x_j - column_lse[j])) * share; returns Σ new x_j * old x_j */
    double (*symmetric_row)(float *x, float row_lse, const float *column_lse, float share,
                            size_t n);
    /* g = gelu(u), exact form */
    void (*gelu_row)(float *g, const float *u, size_t n);
    /* g = gelu(u); dg *= gelu'(u) */
    void (*gelu_back_row)(float *g, float *dg, const float *u, size_t n);
    /* xhat = (x - mean) / sqrt(var + eps); z = xhat * weight + bias; returns 1 / sqrt(var + eps) */
    float (*norm_row)(float *z, float *xhat, const float *x, const float *weight, const float *bias,
                      size_t n, float eps);
    /* dx += gradient of the norm above by x */
    void (*norm_back_row)(float *dx, const float *dz, const float *xhat, const float *weight,
                          float inverse, size_t n);
    void (*add_row)(float *sum, const float *a, size_t n);
    void (*add_product_row)(float *sum, const float *a, const float *b, size_t n);
    void (*adamw)(float *p, float *m, float *v, const float *grad, const l2c_adamw_factors *f,
                  size_t n);
    double (*square_sum)(const float *x, size_t n);
} l2c_train_kernels;

/* Never NULL. */
const l2c_train_kernels *l2c_train_kernels_get(void);

#endif
