/* AdamW: the factors of a step, and the block cut among the team's threads. */
#include "encoders/adamw.h"

#include <math.h>

#include "encoders/train_kernels.h"

void l2c_adamw_step(const l2c_adamw *o, float *p, float *m, float *v, const float *grad,
                    float scale, size_t n) {
    const double t = (double)o->step;
    const l2c_adamw_factors f = {
        .scale = scale,
        .beta1 = (float)o->beta1,
        .rest1 = (float)(1.0 - o->beta1),
        .beta2 = (float)o->beta2,
        .rest2 = (float)(1.0 - o->beta2),
        .keep = (float)(1.0 - o->lr * o->weight_decay),
        .rate = (float)(o->lr / (1.0 - pow(o->beta1, t))),
        .root = (float)(1.0 / sqrt(1.0 - pow(o->beta2, t))),
        .eps = (float)o->eps,
    };
    const l2c_train_kernels *k = l2c_train_kernels_get();
    const size_t piece = (size_t)1 << 13;
#pragma omp parallel for schedule(static) if (n > piece)
    for (size_t i = 0; i < n; i += piece) {
        k->adamw(p + i, m + i, v + i, grad + i, &f, n - i < piece ? n - i : piece);
    }
}

double l2c_lr_cosine(double peak, uint64_t t, uint64_t warmup, uint64_t total) {
    if (t < warmup) {
        return peak * (double)(t + 1) / (double)warmup;
    }
    if (total <= warmup) {
        return peak;
    }
    const double pi = 3.14159265358979323846;
    double x = (double)(t - warmup) / (double)(total - warmup);
    return peak * 0.5 * (1.0 + cos(pi * (x < 1.0 ? x : 1.0)));
}
