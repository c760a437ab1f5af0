/* AdamW; one fused pass, since a step is bound by memory: four streams in, three out. */
#include "encoders/adamw.h"

#include <math.h>

void l2c_adamw_step(const l2c_adamw *o, float *restrict p, float *restrict m, float *restrict v,
                    const float *restrict grad, float scale, size_t n) {
    const double t = (double)o->step;
    const float keep = (float)(1.0 - o->lr * o->weight_decay);
    const float b1 = (float)o->beta1, b2 = (float)o->beta2;
    const float c1 = (float)(1.0 - o->beta1), c2 = (float)(1.0 - o->beta2);
    const float rate = (float)(o->lr / (1.0 - pow(o->beta1, t)));
    const float root = (float)(1.0 / sqrt(1.0 - pow(o->beta2, t)));
    const float eps = (float)o->eps;
#pragma omp parallel for simd schedule(static) if (n > 65536)
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * scale;
        float mi = b1 * m[i] + c1 * g;
        float vi = b2 * v[i] + c2 * g * g;
        m[i] = mi;
        v[i] = vi;
        p[i] = keep * p[i] - rate * mi / (sqrtf(vi) * root + eps);
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
