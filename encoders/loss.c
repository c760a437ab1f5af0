/* Contrastive losses, forward and backward together.
 *
 * The logits S are the only array of size B×B; they are gone through twice, in slices of rows that
 * stay in a core's cache: once for log-sum-exp by row (f64 over exponentials in f32) and by column
 * (f32, slice by slice, always in the same order), once to become dS.
 * Logits of two rows of one group are -FLT_MAX before the exponential, which makes their
 * probability 0 and their gradient 0. */
#include "encoders/loss.h"

#include <float.h>
#include <math.h>

#include "encoders/gemm.h"
#include "encoders/train_kernels.h"

enum { SLICE = 64 };

/* Rows i up to end of S: rows of one group are no negatives of each other. */
static void mask_groups(float *S, size_t stride, const int64_t *group, size_t i, size_t end,
                        size_t B) {
    for (; group != NULL && i < end; i++) {
        for (size_t j = 0; j < B; j++) {
            if (i != j && group[i] == group[j]) {
                S[i * stride + j] = -FLT_MAX;
            }
        }
    }
}

/* S[m,n] = s A Bᵀ with A [m,E], B [n,E]; `stride` elements between the rows of S. */
static l2cdb_status logits(float *S, size_t stride, const float *A, const float *B, size_t m,
                           size_t n, size_t E, double s, l2cdb_error *err) {
    const l2c_gemm_args args = { .transpose_b = true,
                                 .m = m,
                                 .n = n,
                                 .k = E,
                                 .alpha = (float)s,
                                 .a = A,
                                 .lda = E,
                                 .b = B,
                                 .ldb = E,
                                 .c = S,
                                 .ldc = stride };
    return l2c_gemm(&args, err);
}

/* out[m,E] = beta out + s op(dS) B with B [k,E]: the gradient of one side of the logits. */
static l2cdb_status back(float *out, float beta, const float *dS, size_t stride, bool transpose,
                         const float *B, size_t m, size_t k, size_t E, double s, l2cdb_error *err) {
    const l2c_gemm_args args = { .transpose_a = transpose,
                                 .m = m,
                                 .n = E,
                                 .k = k,
                                 .alpha = (float)s,
                                 .a = dS,
                                 .lda = stride,
                                 .b = B,
                                 .ldb = E,
                                 .beta = beta,
                                 .c = out,
                                 .ldc = E };
    return l2c_gemm(&args, err);
}

/* The same sum whichever threads made the terms. */
static double in_order(const float *terms, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)terms[i];
    }
    return sum;
}

/* Log-sums of the columns out of every slice's [most, sum]; the first slice is overwritten. */
static void column_log_sums(float *out, float *slices, size_t count, size_t B) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    for (size_t s = 1; s < count; s++) {
        const float *more = slices + s * 2 * B;
        K->columns_merge(slices, slices + B, more, more + B, B);
    }
    for (size_t j = 0; j < B; j++) {
        out[j] = slices[j] + logf(slices[B + j]);
    }
}

size_t l2c_loss_scratch(size_t B, size_t N) {
    return B * (B + N) + 2 * B * ((B + SLICE - 1) / SLICE) + B;
}

l2cdb_status l2c_loss_infonce(double *loss, float *dv, float *dt, double *dscale, float *scratch,
                              const float *v, const float *t, const int64_t *group, size_t B,
                              size_t E, double log_scale, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const double s = exp(log_scale);
    const size_t slices = (B + SLICE - 1) / SLICE;
    float *S = scratch, *columns = scratch + B * B, *terms = columns + 2 * B * slices;
    l2cdb_status rc = logits(S, B, v, t, B, B, E, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    // dv and dt hold the log-sums by row and column until the gradients overwrite them.
    float *row_lse = dv, *column_lse = dt;
#pragma omp parallel for schedule(static)
    for (size_t n = 0; n < slices; n++) {
        size_t first = n * SLICE, end = first + SLICE < B ? first + SLICE : B;
        mask_groups(S, B, group, first, end, B);
        for (size_t i = first; i < end; i++) {
            double lse = K->log_sum_exp(S + i * B, B);
            row_lse[i] = (float)lse;
            terms[i] = (float)(lse - (double)S[i * B + i]); // small where the lse is large
        }
        float *most = columns + n * 2 * B;
        K->columns_sum_exp(most, most + B, S + first * B, B, end - first, B);
    }
    column_log_sums(column_lse, columns, slices, B);
    double sum = 0;
    for (size_t i = 0; i < B; i++) {
        sum += 0.5 * ((double)terms[i] + (double)column_lse[i] - (double)S[i * B + i]);
    }
    *loss = sum / (double)B;

    // dS = (P - I + Q - I) / 2B, and d log_scale = Σ dS*S, both while S is still there.
    const float share = 0.5f / (float)B;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B; i++) {
        float *row = S + i * B;
        double diagonal = (double)row[i];
        double dlog = K->symmetric_row(row, row_lse[i], column_lse, share, B);
        terms[i] = (float)(dlog - 2.0 * (double)share * diagonal);
        row[i] -= 2.0f * share;
    }
    *dscale = in_order(terms, B);
    rc = back(dv, 0, S, B, false, t, B, B, E, s, err);
    return rc == L2CDB_OK ? back(dt, 0, S, B, true, v, B, B, E, s, err) : rc;
}

l2cdb_status l2c_loss_captions(double *loss, float *dq, float *dp, float *dn, float *scratch,
                               const float *q, const float *p, const float *n, const int64_t *group,
                               size_t B, size_t N, size_t E, double scale, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t C = B + N;
    float *S = scratch, *terms = scratch + B * C;
    l2cdb_status rc = logits(S, C, q, p, B, B, E, scale, err);
    if (rc == L2CDB_OK && N > 0) {
        rc = logits(S + B, C, q, n, B, N, E, scale, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const float share = 1.0f / (float)B;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B; i++) {
        float *row = S + i * C;
        mask_groups(S, C, group, i, i + 1, B);
        double lse = K->log_sum_exp(row, C);
        terms[i] = (float)(lse - (double)row[i]);
        K->probabilities(row, (float)lse, share, C);
        row[i] -= share;
    }
    *loss = in_order(terms, B) / (double)B;
    rc = back(dq, 0, S, C, false, p, B, B, E, scale, err);
    if (rc == L2CDB_OK) {
        rc = back(dp, 0, S, C, true, q, B, B, E, scale, err);
    }
    if (rc == L2CDB_OK && N > 0) {
        rc = back(dq, 1, S + B, C, false, n, B, N, E, scale, err);
    }
    if (rc == L2CDB_OK && N > 0) {
        rc = back(dn, 0, S + B, C, true, q, N, B, E, scale, err);
    }
    return rc;
}
