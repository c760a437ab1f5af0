/* engine/eval: ranks against the definition, ties included. */
#include "tests/test.h"

#include <math.h>

#include "engine/engine.h"

enum { IMAGES = 40, CAPTIONS = 90, WIDTH = 3 };

static float dot(const float *a, const float *b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

/* The place of row `own` when rows are sorted by falling score, ties by the lower row; from 1. */
static int place(const float *scores, int n, int own) {
    int rank = 1;
    for (int i = 0; i < n; i++) {
        rank += scores[i] > scores[own] || (scores[i] == scores[own] && i < own);
    }
    return rank;
}

static int by_value(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

static void expect(const l2cdb_recall_at *r, int *ranks, int n) {
    int at[3] = { 0 };
    for (int i = 0; i < n; i++) {
        at[0] += ranks[i] <= 1;
        at[1] += ranks[i] <= 5;
        at[2] += ranks[i] <= 10;
    }
    qsort(ranks, (size_t)n, sizeof *ranks, by_value);
    assert_int_equal(r->queries, n);
    assert_true(fabs(r->r1 - 100.0 * at[0] / n) < 1e-9);
    assert_true(fabs(r->r5 - 100.0 * at[1] / n) < 1e-9);
    assert_true(fabs(r->r10 - 100.0 * at[2] / n) < 1e-9);
    double median = n % 2 == 1 ? ranks[n / 2] : (ranks[n / 2 - 1] + ranks[n / 2]) / 2.0;
    assert_true(fabs(r->median_rank - median) < 1e-9);
}

/* Broken: a recall is computed otherwise than spec 6.5 says. */
static void ranks_agree_with_the_definition(void **state) {
    (void)state;
    srand(2);
    for (int round = 0; round < 30; round++) {
        float images[IMAGES][WIDTH], captions[CAPTIONS][WIDTH];
        size_t owner[CAPTIONS];
        for (int i = 0; i < IMAGES * WIDTH; i++) {
            images[i / WIDTH][i % WIDTH] = (float)(rand() % 3); // few values: many ties
        }
        for (int c = 0; c < CAPTIONS; c++) {
            owner[c] = (size_t)(c < IMAGES ? c : rand() % IMAGES);
            for (int d = 0; d < WIDTH; d++) {
                captions[c][d] = (float)(rand() % 3);
            }
        }
        int t2i[CAPTIONS], i2t[IMAGES];
        float scores[CAPTIONS];
        for (int c = 0; c < CAPTIONS; c++) {
            for (int i = 0; i < IMAGES; i++) {
                scores[i] = dot(captions[c], images[i]);
            }
            t2i[c] = place(scores, IMAGES, (int)owner[c]);
        }
        for (int i = 0; i < IMAGES; i++) {
            i2t[i] = CAPTIONS + 1;
            for (int c = 0; c < CAPTIONS; c++) {
                scores[c] = dot(captions[c], images[i]);
            }
            for (int c = 0; c < CAPTIONS; c++) { // any caption of the photo is a hit
                int p = owner[c] == (size_t)i ? place(scores, CAPTIONS, c) : CAPTIONS + 1;
                i2t[i] = p < i2t[i] ? p : i2t[i];
            }
        }
        l2cdb_eval_report r;
        l2cdb_error e;
        assert_ok(l2c_eval_vectors(&r, images[0], IMAGES, captions[0], owner, CAPTIONS, WIDTH, 3,
                                   NULL, &e),
                  &e);
        expect(&r.t2i, t2i, CAPTIONS);
        expect(&r.i2t, i2t, IMAGES);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(ranks_agree_with_the_definition) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
