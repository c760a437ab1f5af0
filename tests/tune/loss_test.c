/* Losses and AdamW: against PyTorch's numbers (fixtures/llm2clip/stage1), finite differences in
 * f64, and a step worked by hand. */
#include "tests/test.h"

#include <math.h>

#include "encoders/adamw.h"
#include "encoders/adapter_grad.h"
#include "encoders/loss.h"

enum { B = 70, E = 6 }; // B: more than a slice of rows

/* Symmetric InfoNCE in f64 with columns of the same group left out. */
static double infonce64(const double *v, const double *t, const int64_t *group, double log_scale) {
    double s = exp(log_scale), total = 0, S[B][B];
    for (size_t i = 0; i < B; i++) {
        for (size_t j = 0; j < B; j++) {
            S[i][j] = 0;
            for (size_t k = 0; k < E; k++) {
                S[i][j] += s * v[i * E + k] * t[j * E + k];
            }
        }
    }
    for (size_t i = 0; i < B; i++) {
        double row = 0, column = 0;
        for (size_t j = 0; j < B; j++) {
            if (i == j || group == NULL || group[i] != group[j]) {
                row += exp(S[i][j]);
                column += exp(S[j][i]);
            }
        }
        total += 0.5 * (log(row) + log(column)) - S[i][i];
    }
    return total / B;
}

static void check_infonce(const int64_t *group, double log_scale) {
    float v[B * E], t[B * E], dv[B * E], dt[B * E], norms[B];
    float *scratch = calloc(l2c_loss_scratch(B, 0), sizeof *scratch);
    double v64[B * E], t64[B * E], loss, dscale;
    for (size_t i = 0; i < B * E; i++) {
        v[i] = (float)(rand() % 2001 - 1000);
        t[i] = (float)(rand() % 2001 - 1000);
    }
    l2c_unit_forward(v, norms, B, E);
    l2c_unit_forward(t, norms, B, E);
    for (size_t i = 0; i < B * E; i++) {
        v64[i] = (double)v[i], t64[i] = (double)t[i];
    }
    l2cdb_error err;
    assert_ok(l2c_loss_infonce(&loss, dv, dt, &dscale, scratch, v, t, group, B, E, log_scale, &err),
              &err);
    double want = infonce64(v64, t64, group, log_scale);
    assert_true(fabs(loss - want) <= 1e-5 * (1 + fabs(want)));
    const double h = 1e-6, limit = 3e-5 * exp(log_scale);
    double numeric =
        (infonce64(v64, t64, group, log_scale + h) - infonce64(v64, t64, group, log_scale - h)) /
        (2 * h);
    assert_true(fabs(numeric - dscale) <= limit);
    for (size_t i = 0; i < B * E; i++) {
        double sides[2];
        for (int side = 0; side < 2; side++) {
            v64[i] = (double)v[i] + (side ? h : -h);
            sides[side] = infonce64(v64, t64, group, log_scale);
        }
        v64[i] = (double)v[i];
        assert_true(fabs((sides[1] - sides[0]) / (2 * h) - (double)dv[i]) <= limit);
        for (int side = 0; side < 2; side++) {
            t64[i] = (double)t[i] + (side ? h : -h);
            sides[side] = infonce64(v64, t64, group, log_scale);
        }
        t64[i] = (double)t[i];
        assert_true(fabs((sides[1] - sides[0]) / (2 * h) - (double)dt[i]) <= limit);
    }
    free(scratch);
}

/* Broken: the loss or its gradient is wrong, or two captions of one photo push each other away. */
static void infonce_is_its_definition(void **state) {
    (void)state;
    srand(1);
    int64_t group[B];
    for (size_t i = 0; i < B; i++) {
        group[i] = (int64_t)(i * i % 23); // some thrice, some alone
    }
    check_infonce(NULL, 0.0);
    check_infonce(NULL, 2.6593);
    check_infonce(NULL, 4.6052);
    check_infonce(group, 2.6593);
    check_infonce(group, 4.6052);
}

static double worst(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    }
    return most;
}

/* Broken: caption contrast differs from the reference's loss, with and without hard negatives. */
static void caption_contrast_is_that_of_torch(void **state) {
    (void)state;
#define LOAD(name) test_npy_load(test_shared("fixtures/llm2clip/stage1/loss/" name ".npy"))
    test_npy q = LOAD("q"), p = LOAD("p"), n = LOAD("n");
    const size_t rows = q.shape[0], more = n.shape[0], width = q.shape[1];
    l2cdb_error err;
    for (int with = 0; with < 2; with++) {
        size_t N = with ? more : 0;
        float *unit = calloc((2 * rows + more) * width, sizeof *unit);
        float *grad = calloc((2 * rows + more) * width, sizeof *grad);
        float *norms = calloc(2 * rows + more, sizeof *norms);
        float *scratch = calloc(l2c_loss_scratch(rows, N), sizeof *scratch);
        float *uq = unit, *up = unit + rows * width, *un = unit + 2 * rows * width;
        float *gq = grad, *gp = grad + rows * width, *gn = grad + 2 * rows * width;
        memcpy(uq, q.data, rows * width * sizeof(float));
        memcpy(up, p.data, rows * width * sizeof(float));
        memcpy(un, n.data, more * width * sizeof(float));
        l2c_unit_forward(unit, norms, 2 * rows + more, width);
        double loss;
        assert_ok(l2c_loss_captions(&loss, gq, gp, with ? gn : NULL, scratch, uq, up,
                                    with ? un : NULL, NULL, rows, N, width, 50.0, &err),
                  &err);
        l2c_unit_backward(grad, unit, norms, 2 * rows + N, width);
        test_npy want = with ? LOAD("loss_with_negatives") : LOAD("loss_without_negatives");
        test_npy wq = with ? LOAD("grad_q_with_negatives") : LOAD("grad_q_without_negatives");
        test_npy wp = with ? LOAD("grad_p_with_negatives") : LOAD("grad_p_without_negatives");
        double off = fabs(loss - (double)*(float *)want.data);
        double off_q = worst(gq, wq.data, rows * width), off_p = worst(gp, wp.data, rows * width);
        printf("negatives %zu: loss off %.2g, gradients off %.2g %.2g\n", N, off, off_q, off_p);
        assert_true(off <= 1e-5 && off_q <= 9e-6 && off_p <= 9e-6);
        if (with) {
            test_npy wn = LOAD("grad_n_with_negatives");
            assert_true(worst(gn, wn.data, more * width) <= 9e-6);
            free(wn.data);
        }
        free(want.data), free(wq.data), free(wp.data);
        free(unit), free(grad), free(norms), free(scratch);
    }
    free(q.data), free(p.data), free(n.data);
#undef LOAD
}

/* Broken: decay, bias correction or the order of AdamW's operations. Two steps by hand. */
static void adamw_is_that_of_torch(void **state) {
    (void)state;
    float p = 1.0f, m = 0, v = 0, g = 0.5f;
    l2c_adamw o = { .lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.05 };
    double P = 1, M = 0, V = 0;
    for (o.step = 1; o.step <= 50; o.step++) {
        l2c_adamw_step(&o, &p, &m, &v, &g, 0.5f, 1);
        double G = 0.5 * (double)g, t = (double)o.step;
        P *= 1 - 0.1 * 0.05;
        M = 0.9 * M + 0.1 * G;
        V = 0.999 * V + 0.001 * G * G;
        P -= 0.1 * (M / (1 - pow(0.9, t))) / (sqrt(V / (1 - pow(0.999, t))) + 1e-8);
        assert_true(fabs(P - (double)p) < 2e-5);
        g = -g * 0.9f + 0.1f;
    }
    // Warmup from lr/warmup, cosine to nearly 0 (spec 6.2).
    assert_true(fabs(l2c_lr_cosine(1.0, 0, 3, 20) - 1.0 / 3) < 1e-12);
    assert_true(fabs(l2c_lr_cosine(1.0, 2, 3, 20) - 1.0) < 1e-12);
    assert_true(fabs(l2c_lr_cosine(1.0, 0, 0, 8) - 1.0) < 1e-12);
    assert_true(fabs(l2c_lr_cosine(1.0, 1, 0, 8) - 0.9619397662556434) < 1e-12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(infonce_is_its_definition),
        cmocka_unit_test(caption_contrast_is_that_of_torch),
        cmocka_unit_test(adamw_is_that_of_torch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
