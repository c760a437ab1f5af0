/* The loops of training beside the products, included once per processor level with FN and TARGET
 * defined (layers.c shows the pattern). Called by loss.c, adapter_grad.c and adamw.c through
 * train_kernels.c. */

#include "encoders/math_kernels.h"

/* log Σ_j exp(x_j). Short f32 runs keep the loop vectorised and the error far below that of one f32
 * sum over a wide row. */
TARGET static double FN(log_sum_exp)(const float *x, size_t n) {
    float most = x[0];
#pragma omp simd reduction(max : most)
    for (size_t j = 0; j < n; j++) {
        most = x[j] > most ? x[j] : most;
    }
    double sum = 0;
    for (size_t j = 0; j < n;) {
        size_t end = j + 256 < n ? j + 256 : n;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (size_t i = j; i < end; i++) {
            part += FN(exp)(x[i] - most);
        }
        sum += (double)part;
        j = end;
    }
    return (double)most + log(sum);
}

/* x_j = exp(x_j - lse) * share */
TARGET static void FN(probabilities)(float *x, float lse, float share, size_t n) {
#pragma omp simd
    for (size_t j = 0; j < n; j++) {
        float e = x[j] - lse;
        // exp is clamped at -87: what is further away has no share at all.
        x[j] = e < -86.0F ? 0.0F : FN(exp)(e) * share;
    }
}

/* One row of the symmetric loss: x_j = (P_j + Q_j) * share; returns Σ x_j * logit_j. */
TARGET static double FN(symmetric_row)(float *x, float row_lse, const float *column_lse,
                                       float share, size_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < n; j++) {
        float logit = x[j];
        float r = logit - row_lse, c = logit - column_lse[j];
        float p = r < -86.0F ? 0.0F : FN(exp)(r);
        float q = c < -86.0F ? 0.0F : FN(exp)(c);
        float d = (p + q) * share;
        sum += d > 0.0F ? d * logit : 0.0F;
        x[j] = d;
    }
    return (double)sum;
}

/* g = gelu(u) */
TARGET static void FN(gelu_row)(float *g, const float *u, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        g[i] = 0.5F * u[i] * (1.0F + FN(erf)(u[i] * 0.70710678F));
    }
}

/* g = gelu(u) again, and dg *= gelu'(u) = Φ(u) + u φ(u). */
TARGET static void FN(gelu_back_row)(float *g, float *dg, const float *u, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float x = u[i];
        float cdf = 0.5F * (1.0F + FN(erf)(x * 0.70710678F));
        float pdf = 0.39894228F * FN(exp)(-0.5F * x * x);
        g[i] = x * cdf;
        dg[i] *= cdf + x * pdf;
    }
}

/* xhat = (x - mean) * inverse, z = xhat * weight + bias; returns inverse = 1 / sqrt(var + eps). */
TARGET static float FN(norm_row)(float *z, float *xhat, const float *x, const float *weight,
                                 const float *bias, size_t n, float eps) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
    }
    float mean = sum / (float)n;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < n; i++) {
        squares += (x[i] - mean) * (x[i] - mean);
    }
    float inverse = 1.0F / __builtin_sqrtf(squares / (float)n + eps);
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float h = (x[i] - mean) * inverse;
        xhat[i] = h;
        z[i] = h * weight[i] + bias[i];
    }
    return inverse;
}

/* dx += inverse * (dh - mean(dh) - xhat * mean(dh * xhat)), dh = dz * weight. */
TARGET static void FN(norm_back_row)(float *dx, const float *dz, const float *xhat,
                                     const float *weight, float inverse, size_t n) {
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (size_t i = 0; i < n; i++) {
        float dh = dz[i] * weight[i];
        sum += dh;
        along += dh * xhat[i];
    }
    sum /= (float)n;
    along /= (float)n;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        dx[i] += inverse * (dz[i] * weight[i] - sum - xhat[i] * along);
    }
}

/* sum[i] += a[i], and sum[i] += a[i] * b[i]. */
TARGET static void FN(add_row)(float *sum, const float *a, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        sum[i] += a[i];
    }
}

TARGET static void FN(add_product_row)(float *sum, const float *a, const float *b, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        sum[i] += a[i] * b[i];
    }
}

/* One pass over a block, since AdamW is bound by memory: four streams in, three out. */
TARGET static void FN(adamw)(float *p, float *m, float *v, const float *grad,
                             const l2c_adamw_factors *f, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * f->scale;
        float mi = f->beta1 * m[i] + f->rest1 * g;
        float vi = f->beta2 * v[i] + f->rest2 * g * g;
        m[i] = mi;
        v[i] = vi;
        p[i] = f->keep * p[i] - f->rate * mi / (__builtin_sqrtf(vi) * f->root + f->eps);
    }
}

TARGET static double FN(square_sum)(const float *x, size_t n) {
    double sum = 0;
    for (size_t j = 0; j < n;) {
        size_t end = j + 1024 < n ? j + 1024 : n;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (size_t i = j; i < end; i++) {
            part += x[i] * x[i];
        }
        sum += (double)part;
        j = end;
    }
    return sum;
}
