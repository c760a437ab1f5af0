/* AdamW (Loshchilov & Hutter 2019) on one block of parameters, as torch.optim.AdamW computes it. */
#ifndef L2C_ADAMW_H
#define L2C_ADAMW_H

#include <stddef.h>
#include <stdint.h>

typedef struct l2c_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    uint64_t step; /* from 1: the step being taken, for the bias correction */
} l2c_adamw;

/* For n parameters p with gradient g and moments m, v:
 *   p *= 1 - lr*wd;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;
 *   p -= lr * (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + eps)
 * with g = scale * grad (the clip factor). Gradients are not changed. */
void l2c_adamw_step(const l2c_adamw *o, float *p, float *m, float *v, const float *grad,
                    float scale, size_t n);

/* Learning rate of step t (from 0): linear warmup (t+1)/warmup, then cosine to 0 at `total`. */
double l2c_lr_cosine(double peak, uint64_t t, uint64_t warmup, uint64_t total);

#endif
