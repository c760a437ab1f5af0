/* Training speed: steps of the heads on random features in true shapes.
 *
 *   tune_bench [--d 2048] [--e 1280] [--batch 1024] [--steps 8] [--threads 2] [--json]
 *   tune_bench --project 100000 [--d 1024] [--e 1280] [--threads 2]
 *
 * Prints pairs a second and the share of the f32 product rate measured beside it. --project takes
 * that many rows through an image projection, as reindex does, and says how long a million takes.
 * The opponent is tests/bench/peers/tune_torch.py, which runs this program and PyTorch in turns. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "encoders/adapter_grad.h"
#include "encoders/gemm.h"
#include "encoders/model.h"
#include "encoders/trainer.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t state = 1;

static float uniform(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(state >> 40) / 8388608.0 - 1.0);
}

static void check(l2cdb_status rc, const l2cdb_error *err) {
    if (rc != L2CDB_OK) {
        fprintf(stderr, "tune_bench: %s\n", err->message);
        exit(1);
    }
}

/* Heads with PyTorch's default initialisation, through the same door as a model's. */
static l2c_heads *random_heads(size_t d, size_t E, size_t threads) {
    static l2c_bundle b;
    l2cdb_error err;
    const l2c_head_shape shape = {
        .width = E, .text_width = d, .text_hidden = 2 * d, .blocks = 4, .normalize_input = true
    };
    l2c_param_table t;
    check(l2c_param_table_init(&t, &shape, &err), &err);
    float *block = calloc(t.floats, sizeof *block);
    l2c_tensors_init(&b.head_tensors);
    for (size_t i = 0; i < t.count; i++) {
        const l2c_param *p = &t.params[i];
        if (i == t.logit_scale) {
            continue;
        }
        float *values = block + p->offset;
        bool norm = p->columns == 0 && strstr(p->name, "weight") != NULL;
        double scale = p->columns > 0 ? 1.0 / (double)p->columns : 0;
        for (size_t j = 0; j < p->count; j++) {
            values[j] = norm ? 1.0f : uniform() * (float)(scale > 0 ? 1.7 * scale : 0);
        }
        l2c_tensor x = { .dtype = L2C_DTYPE_F32,
                         .ndim = p->columns > 0 ? 2 : 1,
                         .shape = { p->rows, p->columns },
                         .data = values,
                         .count = p->count,
                         .bytes = p->count * sizeof(float) };
        if (l2c_tensors_add(&b.head_tensors, &x, p->name, strlen(p->name)) == NULL) {
            exit(1);
        }
    }
    check(l2c_tensors_seal(&b.head_tensors, "random heads", &err), &err);
    b.has_adapter = true;
    b.logit_scale = 2.6593f;
    b.heads = (l2c_heads_config){ .width = E,
                                  .text_width = d,
                                  .blocks = 4,
                                  .text_hidden = 2 * d,
                                  .image_width = E,
                                  .normalize_input = true };
    l2c_heads *h;
    check(l2c_heads_from_bundle(&h, &b, L2C_PRECISION_F32, threads, &err), &err);
    l2c_param_table_fini(&t);
    return h; // borrows `block`, which lives as long as the program
}

/* GFLOP/s of the largest product of a step. */
static double product_rate(size_t rows, size_t d, size_t threads) {
    const size_t h = 2 * d;
    float *a = calloc(rows * d, sizeof *a), *w = calloc(h * d, sizeof *w);
    float *y = calloc(rows * h, sizeof *y);
    for (size_t i = 0; i < h * d; i++) {
        w[i] = uniform();
    }
    const l2c_gemm_args args = { .transpose_b = true,
                                 .m = rows,
                                 .n = h,
                                 .k = d,
                                 .alpha = 1,
                                 .a = a,
                                 .lda = d,
                                 .b = w,
                                 .ldb = d,
                                 .c = y,
                                 .ldc = h };
    l2c_team team = l2c_team_begin(threads);
    l2cdb_error err;
    double best = 1e9;
    for (int i = 0; i < 8; i++) {
        double start = now();
        check(l2c_gemm(&args, &err), &err);
        double took = now() - start;
        best = took < best ? took : best;
    }
    l2c_team_end(team);
    free(a);
    free(w);
    free(y);
    return 2e-9 * (double)rows * (double)d * (double)h / best;
}

/* Seconds for a million rows of d values through a projection to E, 1,024 rows at a time. */
static double project(size_t rows, size_t d, size_t E, size_t threads) {
    enum { ROWS = 1024 };
    l2cdb_error err;
    float *w = malloc(E * d * sizeof *w), *x = malloc(ROWS * d * sizeof *x);
    float *y = malloc(ROWS * E * sizeof *y);
    for (size_t i = 0; i < E * d; i++) {
        w[i] = uniform();
    }
    for (size_t i = 0; i < ROWS * d; i++) {
        x[i] = uniform();
    }
    static l2c_bundle b;
    l2c_tensors_init(&b.head_tensors);
    const l2c_tensor t = { .dtype = L2C_DTYPE_F32,
                           .ndim = 2,
                           .shape = { E, d },
                           .data = w,
                           .count = E * d,
                           .bytes = E * d * sizeof *w };
    const char *name = "visual_projection.weight";
    if (l2c_tensors_add(&b.head_tensors, &t, name, strlen(name)) == NULL) {
        exit(1);
    }
    check(l2c_tensors_seal(&b.head_tensors, "random projection", &err), &err);
    b.has_vision = true;
    b.heads = (l2c_heads_config){ .width = E, .image_width = d, .has_projection = true };
    l2c_heads *h;
    check(l2c_heads_from_bundle(&h, &b, L2C_PRECISION_F32, threads, &err), &err);
    check(l2c_heads_image(h, y, x, ROWS, &err), &err);
    double start = now();
    for (size_t done = 0; done < rows; done += ROWS) {
        check(l2c_heads_image(h, y, x, ROWS, &err), &err);
    }
    double took = now() - start;
    l2c_heads_free(h);
    free(x);
    free(y);
    return took * 1e6 / (double)rows;
}

static size_t option(int argc, char **argv, const char *name, size_t otherwise) {
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return (size_t)strtoull(argv[i + 1], NULL, 10);
        }
    }
    return otherwise;
}

int main(int argc, char **argv) {
    const size_t rows = option(argc, argv, "--project", 0);
    const size_t d = option(argc, argv, "--d", rows > 0 ? 1024 : 2048),
                 E = option(argc, argv, "--e", 1280);
    const size_t B = option(argc, argv, "--batch", 1024), steps = option(argc, argv, "--steps", 8);
    const size_t threads = option(argc, argv, "--threads", 2);
    if (rows > 0) {
        printf("a million rows %zu → %zu: %.1f s\n", d, E, project(rows, d, E, threads));
        return 0;
    }
    bool json = argc > 1 && strcmp(argv[argc - 1], "--json") == 0;
    l2cdb_error err;
    l2c_heads *heads = random_heads(d, E, threads);
    float *text = malloc(B * d * sizeof *text), *image = malloc(B * E * sizeof *image);
    for (size_t i = 0; i < B * d; i++) {
        text[i] = uniform();
    }
    for (size_t i = 0; i < B * E; i++) {
        image[i] = uniform();
    }
    l2c_trainer_options o;
    l2c_trainer_options_init(&o);
    o.lr = 1e-5;
    o.batch_max = B;
    o.steps_total = steps + 1;
    l2c_trainer *t;
    check(l2c_trainer_new(&t, heads, &o, &err), &err);
    l2c_train_batch batch = { .rows = B, .text = text, .image = image };
    check(l2c_trainer_step(t, &batch, NULL, &err), &err); // the libraries compile their kernels
    double start = now();
    for (size_t i = 0; i < steps; i++) {
        check(l2c_trainer_step(t, &batch, NULL, &err), &err);
    }
    double took = now() - start, pairs = (double)(steps * B) / took;
    // Forward, and twice that backward, of the adapter's products.
    double flops = 6.0 * (double)B * (16.0 * (double)d * (double)d + (double)d * (double)E);
    double rate = flops * (double)steps / took * 1e-9, most = product_rate(B, d, threads);
    if (json) {
        printf("{\"d\":%zu,\"e\":%zu,\"batch\":%zu,\"step_ms\":%.2f,\"pairs_per_s\":%.1f,"
               "\"gflops\":%.1f,\"product_gflops\":%.1f}\n",
               d, E, B, took / (double)steps * 1e3, pairs, rate, most);
    } else {
        printf("d %zu, E %zu, batch %zu, %zu threads: %.1f ms a step, %.0f pairs/s, %.0f GFLOP/s "
               "(%.0f %% of the product rate, %.0f)\n",
               d, E, B, threads, took / (double)steps * 1e3, pairs, rate, 100 * rate / most, most);
    }
    l2c_trainer_free(t);
    l2c_heads_free(heads);
    free(text);
    free(image);
    return 0;
}
