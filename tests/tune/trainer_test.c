/* The trainer, step by step against torch.optim.AdamW and autograd (fixtures/llm2clip/training and
 * training-linear-image), and what a caller relies on: resuming, determinism, refusals. */
#include "tests/test.h"

#include <math.h>

#include "encoders/model.h"
#include "encoders/trainer.h"
#include "engine/base/json.h"

enum { BATCH = 16 };

/* Heads as a bundle would hold them, from a file of weights. */
static l2c_heads *heads_from(const char *path, size_t image_width, bool projection) {
    static l2c_bundle bundle;
    l2cdb_error err;
    memset(&bundle, 0, sizeof bundle);
    l2c_tensors file;
    assert_ok(l2c_tensors_open(&file, path, &err), &err);
    const l2c_tensor *scale = l2c_tensors_find(&file, "logit_scale");
    assert_non_null(scale);
    l2c_tensor_to_f32(scale, &bundle.logit_scale);
    // A bundle keeps the logit scale beside its head tensors, not among them.
    l2c_tensors_init(&bundle.head_tensors);
    for (size_t i = 0; i < file.count; i++) {
        const l2c_tensor *t = &file.items[i];
        if (t != scale) {
            assert_non_null(l2c_tensors_add(&bundle.head_tensors, t, t->name, strlen(t->name)));
        }
    }
    assert_ok(l2c_tensors_seal(&bundle.head_tensors, path, &err), &err);
    bundle.has_adapter = true;
    bundle.heads = (l2c_heads_config){ .width = 24,
                                       .text_width = 32,
                                       .blocks = 4,
                                       .text_hidden = 64,
                                       .image_width = image_width,
                                       .has_projection = projection,
                                       .normalize_input = true };
    l2c_heads *borrowed, *own;
    assert_ok(l2c_heads_from_bundle(&borrowed, &bundle, L2C_PRECISION_F32, 1, &err), &err);
    assert_ok(l2c_heads_new(&own, borrowed, NULL, 0, &err), &err);
    l2c_heads_free(borrowed);
    l2c_tensors_fini(&bundle.head_tensors);
    l2c_tensors_fini(&file);
    return own;
}

typedef struct difference {
    l2c_tensors want;
    double sum, most;
    size_t count;
} difference;

static bool compare(void *ctx, const l2c_head_tensor *h) {
    difference *d = ctx;
    const l2c_tensor *t = l2c_tensors_find(&d->want, h->name);
    assert_non_null(t);
    assert_int_equal(t->count, h->count);
    float *want = malloc(t->count * sizeof *want);
    l2c_tensor_to_f32(t, want);
    for (size_t i = 0; i < t->count; i++) {
        double off = (double)want[i] - (double)h->data[i];
        d->sum += off * off;
        d->most = fmax(d->most, fabs(off));
    }
    d->count += t->count;
    free(want);
    return true;
}

static void compare_weights(const l2c_trainer *t, const char *path) {
    difference d = { 0 };
    l2cdb_error err;
    l2c_heads *now;
    assert_ok(l2c_tensors_open(&d.want, path, &err), &err);
    assert_ok(l2c_trainer_get_heads(t, 1, &now, &err), &err);
    assert_ok(l2c_heads_visit(now, compare, &d, &err), &err);
    double rms = sqrt(d.sum / (double)d.count);
    printf("  weights off by rms %.2g, at most %.2g\n", rms, d.most);
    assert_true(rms <= 1e-6 && d.most <= 1e-4);
    l2c_heads_free(now);
    l2c_tensors_fini(&d.want);
}

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    assert_non_null(v);
    return json_number_value(v);
}

static void near(double found, double want, double tolerance, const char *what, size_t step) {
    if (!(fabs(found - want) <= tolerance)) {
        fail_msg("step %zu: %s is %.9g, torch has %.9g", step, what, found, want);
    }
}

static void follow(const char *folder, const char *run_name, bool projection, bool weights) {
    char path[512];
    l2cdb_error err;
#define AT(name)                                                                                   \
    (snprintf(path, sizeof path, "fixtures/llm2clip/%s/%s", folder, name), test_shared(path))
    json_t *golden;
    assert_ok(l2c_json_read(&golden, AT("golden.json"), 1 << 24, &err), &err);
    const json_t *run = json_object_get(json_object_get(golden, "runs"), run_name);
    const json_t *hyper = json_object_get(run, "hyper"), *steps = json_object_get(run, "steps");
    const json_t *batches = json_object_get(golden, "batches");
    const json_t *tolerance = json_object_get(run, "tolerance");
    test_npy text = test_npy_load(AT("text.npy")), image = test_npy_load(AT("image.npy"));
    const size_t d = text.shape[1], W = image.shape[1];
    l2c_heads *loaded = heads_from(AT("weights_0.safetensors"), W, projection), *start;
    float log_scale = (float)number(run, "logit_scale_start");
    l2c_head_tensor scale = {
        .name = "logit_scale", .shape = { 1, 0 }, .data = &log_scale, .count = 1
    };
    assert_ok(l2c_heads_new(&start, loaded, &scale, 1, &err), &err);

    l2c_trainer_options o;
    l2c_trainer_options_init(&o);
    o.lr = number(hyper, "lr");
    o.weight_decay = number(hyper, "weight_decay");
    o.clip = number(hyper, "clip");
    o.steps_warmup = (uint64_t)number(hyper, "warmup");
    o.steps_total = (uint64_t)number(hyper, "total_steps");
    o.train_image = projection;
    o.batch_max = BATCH;
    l2c_trainer *t;
    assert_ok(l2c_trainer_new(&t, start, &o, &err), &err);
    double worst_loss = 0;
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *rows = json_array_get(batches, i), *want = json_array_get(steps, i);
        float *bt = malloc(BATCH * d * sizeof *bt), *bi = malloc(BATCH * W * sizeof *bi);
        assert_int_equal(json_array_size(rows), BATCH);
        for (size_t r = 0; r < BATCH; r++) {
            size_t row = (size_t)json_integer_value(json_array_get(rows, r));
            memcpy(bt + r * d, (float *)text.data + row * d, d * sizeof *bt);
            memcpy(bi + r * W, (float *)image.data + row * W, W * sizeof *bi);
        }
        l2c_train_step step;
        assert_ok(l2c_trainer_step(t, &(l2c_train_batch){ .rows = BATCH, .text = bt, .image = bi },
                                   &step, &err),
                  &err);
        near(step.loss, number(want, "loss"), number(tolerance, "loss"), "loss", i + 1);
        near(step.grad_norm, number(want, "grad_norm"),
             number(tolerance, "grad_norm") + 1e-6 * step.grad_norm, "gradient norm", i + 1);
        near(step.lr, number(want, "lr"), 1e-9, "learning rate", i + 1);
        near(step.logit_scale_unclamped, number(want, "logit_scale_before_clamp"),
             number(tolerance, "logit_scale"), "logit scale before the clamp", i + 1);
        near(step.logit_scale, number(want, "logit_scale"), number(tolerance, "logit_scale"),
             "logit scale", i + 1);
        worst_loss = fmax(worst_loss, fabs(step.loss - number(want, "loss")));
        if (weights && i == 0) {
            compare_weights(t, AT("weights_1.safetensors"));
        }
        free(bt);
        free(bi);
    }
    if (weights) {
        compare_weights(t, AT("weights_8.safetensors"));
    }
    printf("%s/%s: %zu steps, loss off by %.2g at most\n", folder, run_name, json_array_size(steps),
           worst_loss);
    l2c_trainer_free(t);
    l2c_heads_free(start);
    l2c_heads_free(loaded);
    json_decref(golden);
    free(text.data);
    free(image.data);
#undef AT
}

/* Broken: training is not the reference's training. */
static void steps_are_those_of_torch(void **state) {
    (void)state;
    follow("training", "run", false, true);
    follow("training-linear-image", "run", true, true);
    follow("training-linear-image", "low", true, false);
}

/* ---- What callers rely on ---- */

static float unit(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / 8388608.0 - 1.0);
}

static void run_some(l2c_trainer *t, size_t from, size_t to) {
    l2cdb_error err;
    for (size_t i = from; i < to; i++) {
        float text[BATCH * 32], image[BATCH * 24], positive[BATCH * 32];
        int64_t group[BATCH];
        uint64_t seed = i;
        for (size_t j = 0; j < BATCH * 32; j++) {
            text[j] = unit(&seed);
            positive[j] = unit(&seed);
            image[j % (BATCH * 24)] = unit(&seed);
        }
        for (size_t j = 0; j < BATCH; j++) {
            group[j] = (int64_t)(j % 12);
        }
        l2c_train_batch b = {
            .rows = BATCH, .text = text, .image = image, .positive = positive, .group = group
        };
        assert_ok(l2c_trainer_step(t, &b, NULL, &err), &err);
    }
}

static l2c_hash fingerprint(const l2c_trainer *t) {
    l2c_heads *h;
    l2cdb_error err;
    assert_ok(l2c_trainer_get_heads(t, 1, &h, &err), &err);
    l2c_hash hash = l2c_heads_fingerprint(h);
    l2c_heads_free(h);
    return hash;
}

/* Broken: an interrupted run that is resumed ends elsewhere than one that was not interrupted. */
static void resumed_runs_end_where_others_do(void **state) {
    (void)state;
    l2cdb_error err;
    l2c_heads *start =
        heads_from(test_shared("fixtures/llm2clip/training/weights_0.safetensors"), 24, false);
    l2c_trainer_options o;
    l2c_trainer_options_init(&o);
    o.steps_total = 10;
    o.captions = true;
    o.batch_max = BATCH;
    l2c_trainer *a, *b, *c;
    assert_ok(l2c_trainer_new(&a, start, &o, &err), &err);
    assert_ok(l2c_trainer_new(&b, start, &o, &err), &err);
    assert_ok(l2c_trainer_new(&c, start, &o, &err), &err);
    l2c_hash before = fingerprint(a);
    run_some(a, 0, 10);
    run_some(b, 0, 4);
    l2c_buf saved;
    l2c_buf_init(&saved);
    assert_ok(l2c_trainer_save(b, &saved, &err), &err);
    assert_ok(l2c_trainer_load(c, saved.data, saved.size, &err), &err);
    run_some(c, 4, 10);
    l2c_hash whole = fingerprint(a), resumed = fingerprint(c);
    assert_memory_equal(&whole, &resumed, sizeof whole);
    assert_memory_not_equal(&whole, &before, sizeof whole);

    assert_int_equal(l2c_trainer_load(c, saved.data, saved.size - 1, &err), L2CDB_E_CORRUPT);
    assert_int_equal(l2c_trainer_load(c, saved.data, 7, &err), L2CDB_E_CORRUPT);
    saved.data[saved.size / 2] ^= 1;
    assert_int_equal(l2c_trainer_load(c, saved.data, saved.size, &err), L2CDB_E_CORRUPT);
    l2c_hash untouched = fingerprint(c);
    assert_memory_equal(&whole, &untouched, sizeof whole);
    l2c_buf_fini(&saved);
    l2c_trainer_free(a);
    l2c_trainer_free(b);
    l2c_trainer_free(c);
    l2c_heads_free(start);
}

/* Broken: a damaged feature spoils the weights, or a wrong option is taken. */
static void bad_input_is_refused_and_harmless(void **state) {
    (void)state;
    l2cdb_error err;
    l2c_heads *start =
        heads_from(test_shared("fixtures/llm2clip/training/weights_0.safetensors"), 24, false);
    l2c_trainer_options o;
    l2c_trainer *t;
    l2c_trainer_options_init(&o);
    assert_int_equal(l2c_trainer_new(&t, start, &o, &err), L2CDB_E_INVALID); // no steps
    o.steps_total = 10;
    o.lr = 0;
    assert_int_equal(l2c_trainer_new(&t, start, &o, &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "learning rate is 0"));
    o.lr = 1e-3;
    o.train_image = true;
    assert_int_equal(l2c_trainer_new(&t, start, &o, &err), L2CDB_E_UNSUPPORTED);
    o.train_image = false;
    o.batch_max = BATCH;
    assert_ok(l2c_trainer_new(&t, start, &o, &err), &err);
    l2c_hash before = fingerprint(t);
    float text[BATCH * 32] = { 0 }, image[BATCH * 24] = { 0 };
    for (size_t i = 0; i < BATCH * 24; i++) {
        text[i] = (float)(i % 7) + 1;
        image[i] = (float)(i % 5) + 1;
    }
    text[3 * 32 + 1] = NAN;
    l2c_train_batch b = { .rows = BATCH, .text = text, .image = image };
    assert_int_equal(l2c_trainer_step(t, &b, NULL, &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "row 3 of the caption features"));
    b.image = NULL;
    text[3 * 32 + 1] = 0;
    assert_int_equal(l2c_trainer_step(t, &b, NULL, &err), L2CDB_E_INVALID);
    b.rows = BATCH + 1;
    b.image = image;
    assert_int_equal(l2c_trainer_step(t, &b, NULL, &err), L2CDB_E_INVALID);
    l2c_hash after = fingerprint(t);
    assert_memory_equal(&before, &after, sizeof before);
    l2c_trainer_free(t);
    l2c_heads_free(start);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_those_of_torch),
        cmocka_unit_test(resumed_runs_end_where_others_do),
        cmocka_unit_test(bad_input_is_refused_and_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
