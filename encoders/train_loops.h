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

/* For each column of S [rows, n]: its largest value, and the sum of exp(x - largest). */
TARGET static void FN(columns_sum_exp)(float *most, float *sum, const float *S, size_t stride,
                                       size_t rows, size_t n) {
    for (size_t j = 0; j < n; j++) {
        most[j] = S[j];
        sum[j] = 0.0F;
    }
    for (size_t i = 1; i < rows; i++) {
        const float *x = S + i * stride;
#pragma omp simd
        for (size_t j = 0; j < n; j++) {
            most[j] = x[j] > most[j] ? x[j] : most[j];
        }
    }
    for (size_t i = 0; i < rows; i++) {
        const float *x = S + i * stride;
#pragma omp simd
        for (size_t j = 0; j < n; j++) {
            sum[j] += FN(exp)(x[j] - most[j]);
        }
    }
}

/* Two such results into the first. */
TARGET static void FN(columns_merge)(float *most, float *sum, const float *more_most,
                                     const float *more_sum, size_t n) {
#pragma omp simd
    for (size_t j = 0; j < n; j++) {
        float m = more_most[j] > most[j] ? more_most[j] : most[j];
        sum[j] = sum[j] * FN(exp)(most[j] - m) + more_sum[j] * FN(exp)(more_most[j] - m);
        most[j] = m;
    }
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

/* With v = u + bias: g = gelu(v), and in u's place gelu'(v) = Φ(v) + v φ(v). */
TARGET static void FN(gelu_row)(float *g, float *u, const float *bias, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float x = u[i] + bias[i];
        float cdf = 0.5F * (1.0F + FN(erf)(x * 0.70710678F));
        float pdf = 0.39894228F * FN(exp)(-0.5F * x * x);
        g[i] = x * cdf;
        u[i] = cdf + x * pdf;
    }
}

/* a *= b, and that into the sum over rows. */
TARGET static void FN(multiply_row)(float *a, float *sum, const float *b, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float product = a[i] * b[i];
        a[i] = product;
        sum[i] += product;
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

/* z = xhat * weight + bias */
TARGET static void FN(affine_row)(float *z, const float *xhat, const float *weight,
                                  const float *bias, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        z[i] = xhat[i] * weight[i] + bias[i];
    }
}

/* dx += inverse * (dh - mean(dh) - xhat * mean(dh * xhat)), dh = dz * weight; and the sums over
 * rows of dz * xhat, dz and the new dx. */
TARGET static void FN(norm_back_row)(float *dx, const l2c_norm_sums *sums, const float *dz,
                                     const float *xhat, const float *weight, float inverse,
                                     size_t n) {
    float *dweight = sums->dweight, *dbias = sums->dbias, *dx_sum = sums->dx;
    float mean = 0, along = 0;
#pragma omp simd reduction(+ : mean, along)
    for (size_t i = 0; i < n; i++) {
        float dh = dz[i] * weight[i];
        mean += dh;
        along += dh * xhat[i];
        dweight[i] += dz[i] * xhat[i];
        dbias[i] += dz[i];
    }
    mean /= (float)n;
    along /= (float)n;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float d = dx[i] + inverse * (dz[i] * weight[i] - mean - xhat[i] * along);
        dx[i] = d;
        dx_sum[i] += d;
    }
}

/* sum[i] += a[i] */
TARGET static void FN(add_row)(float *sum, const float *a, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        sum[i] += a[i];
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
