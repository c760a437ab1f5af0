/* Contrastive losses, forward and backward together.
 *
 * The logits S (and, for the symmetric loss, their transpose, so that columns are read as rows) are
 * the only arrays of size B×B. log-sum-exp is kept in f64 over exponentials in f32; S is then
 * overwritten by dS.
 * Logits of two rows of one group are -FLT_MAX before the exponential, which makes their
 * probability 0 and their gradient 0. */
#include "encoders/loss.h"

#include <float.h>
#include <math.h>

#include "encoders/gemm.h"
#include "encoders/train_kernels.h"

static void mask_groups(float *S, size_t stride, const int64_t *group, size_t B) {
    if (group == NULL) {
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B; i++) {
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

static void transpose_into(float *out, const float *in, size_t B) {
    enum { TILE = 32 };
#pragma omp parallel for schedule(static)
    for (size_t i0 = 0; i0 < B; i0 += TILE) {
        for (size_t j0 = 0; j0 < B; j0 += TILE) {
            for (size_t i = i0; i < i0 + TILE && i < B; i++) {
                for (size_t j = j0; j < j0 + TILE && j < B; j++) {
                    out[j * B + i] = in[i * B + j];
                }
            }
        }
    }
}

l2cdb_status l2c_loss_infonce(double *loss, float *dv, float *dt, double *dscale, float *scratch,
                              const float *v, const float *t, const int64_t *group, size_t B,
                              size_t E, double log_scale, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const double s = exp(log_scale);
    float *S = scratch, *ST = scratch + B * B;
    l2cdb_status rc = logits(S, B, v, t, B, B, E, s, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    mask_groups(S, B, group, B);
    transpose_into(ST, S, B);
    double sum = 0;
    // dv and dt hold the log-sums by row and column until the gradients overwrite them.
    float *row_lse = dv, *column_lse = dt;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (size_t i = 0; i < B; i++) {
        double r = K->log_sum_exp(S + i * B, B), c = K->log_sum_exp(ST + i * B, B);
        row_lse[i] = (float)r;
        column_lse[i] = (float)c;
        sum += 0.5 * (r + c) - (double)S[i * B + i];
    }
    *loss = sum / (double)B;

    // dS = (P - I + Q - I) / 2B, and d log_scale = Σ dS*S, both while S is still there.
    const float share = 0.5f / (float)B;
    double dlog = 0;
#pragma omp parallel for schedule(static) reduction(+ : dlog)
    for (size_t i = 0; i < B; i++) {
        float *row = S + i * B;
        double diagonal = (double)row[i];
        dlog += K->symmetric_row(row, row_lse[i], column_lse, share, B);
        dlog -= 2.0 * (double)share * diagonal;
        row[i] -= 2.0f * share;
    }
    *dscale = dlog;
    rc = back(dv, 0, S, B, false, t, B, B, E, s, err);
    return rc == L2CDB_OK ? back(dt, 0, S, B, true, v, B, B, E, s, err) : rc;
}

l2cdb_status l2c_loss_captions(double *loss, float *dq, float *dp, float *dn, float *scratch,
                               const float *q, const float *p, const float *n, const int64_t *group,
                               size_t B, size_t N, size_t E, double scale, l2cdb_error *err) {
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t C = B + N;
    float *S = scratch;
    l2cdb_status rc = logits(S, C, q, p, B, B, E, scale, err);
    if (rc == L2CDB_OK && N > 0) {
        rc = logits(S + B, C, q, n, B, N, E, scale, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    mask_groups(S, C, group, B);
    const float share = 1.0f / (float)B;
    double sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (size_t i = 0; i < B; i++) {
        float *row = S + i * C;
        double lse = K->log_sum_exp(row, C);
        sum += lse - (double)row[i];
        K->probabilities(row, (float)lse, share, C);
        row[i] -= share;
    }
    *loss = sum / (double)B;
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
