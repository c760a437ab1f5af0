/* Import: every fixture in every precision, what is refused, what is left behind. */
#include "tests/test.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "encoders/bundle_file.h"
#include "encoders/layout.h"
#include "engine/base/vec.h"

static l2cdb_error err;
static char temp[4096];

#define FIXTURES "fixtures/llm2clip/"

static int make_temp(void **state) {
    (void)state;
    snprintf(temp, sizeof temp, "%s", test_temp_dir());
    return 0;
}

static int remove_temp(void **state) {
    (void)state;
    l2c_buf command;
    l2c_buf_init(&command);
    l2c_buf_printf(&command, "rm -rf %s", temp);
    int rc = system(command.data);
    l2c_buf_fini(&command);
    return rc;
}

/* Names in the temporary directory, "." and ".." aside. */
static int entries(void) {
    l2c_buf command;
    l2c_buf_init(&command);
    l2c_buf_printf(&command, "ls -A %s | wc -l", temp);
    FILE *f = popen(command.data, "r");
    int n = -1;
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    l2c_buf_fini(&command);
    return n;
}

static void out_path(char out[4200], const char *name) {
    snprintf(out, 4200, "%s/%s", temp, name);
}

static void to_f32(const l2c_tensors *set, const l2c_tensor *t, float *out) {
    l2c_tensor_to_f32(t, out);
    if (t->dtype == L2C_DTYPE_I8) {
        const l2c_tensor *s = l2c_bundle_get(set, "%s_scale", t->name);
        assert_non_null(s);
        float *scale = malloc(s->bytes);
        l2c_tensor_to_f32(s, scale);
        for (size_t i = 0; i < t->count; i++) {
            out[i] *= scale[i / t->shape[1]];
        }
        free(scale);
    }
}

/* Largest difference of a row relative to its largest value, over all tensors. */
static double compare(const l2c_tensors *source, const l2c_tensors *stored) {
    double worst = 0.0;
    for (size_t i = 0; i < source->count; i++) {
        const l2c_tensor *a = &source->items[i], *b = l2c_tensors_find(stored, a->name);
        assert_non_null(b);
        assert_int_equal(a->count, b->count);
        size_t cols = a->ndim == 2 ? a->shape[1] : a->count;
        float *x = malloc(a->count * sizeof *x), *y = malloc(a->count * sizeof *y);
        l2c_tensor_to_f32(a, x);
        to_f32(stored, b, y);
        for (size_t r = 0; r < a->count; r += cols) {
            double most = 1e-30, difference = 0.0;
            for (size_t k = r; k < r + cols; k++) {
                most = fmax(most, fabs((double)x[k]));
                difference = fmax(difference, fabs((double)x[k] - (double)y[k]));
            }
            worst = fmax(worst, difference / most);
        }
        free(x);
        free(y);
    }
    return worst;
}

typedef struct fixture {
    const char *name, *vision, *llm, *lora;
} fixture;

static const fixture fixtures[] = {
    { "hf", FIXTURES "openai-hf", NULL, NULL },
    { "defaults", FIXTURES "openai-hf-defaults", NULL, NULL },
    { "train", FIXTURES "openai-train/clip.pt", NULL, NULL },
    { "nested", FIXTURES "openai-train/small-nested.pt", NULL, NULL },
    { "model", FIXTURES "openai-train/small-model.pt", NULL, NULL },
    { "g16", FIXTURES "eva02/g16.pt", NULL, NULL },
    { "g4", FIXTURES "eva02/g4.pt", NULL, NULL },
    { "qbias", FIXTURES "eva02/qbias.pt", NULL, NULL },
    { "so", FIXTURES "siglip2/so.pt", NULL, NULL },
    { "bias", FIXTURES "siglip2/bias.pt", NULL, NULL },
    { "8b", NULL, FIXTURES "llama-8b-like", NULL },
    { "1b", NULL, FIXTURES "llama-1b-like", NULL },
    { "prefix", NULL, FIXTURES "llama-1b-like-prefix", NULL },
    { "plain", NULL, FIXTURES "llama-lora/base", FIXTURES "llama-lora/plain" },
    { "rslora", NULL, FIXTURES "llama-lora/base", FIXTURES "llama-lora/rslora" },
    { "both", FIXTURES "openai-hf", FIXTURES "llama-1b-like", NULL },
};

static const char *optional(const char *relative, char out[1024]) {
    if (relative == NULL) {
        return NULL;
    }
    snprintf(out, 1024, "%s", test_shared(relative));
    return out;
}

static void check_round_trip(const fixture *f, l2c_precision precision) {
    char paths[3][1024], out[4200], name[64];
    snprintf(name, sizeof name, "%s-%s", f->name, l2c_precision_name(precision));
    out_path(out, name);
    l2c_import_options o = { .vision = optional(f->vision, paths[0]),
                             .llm = optional(f->llm, paths[1]),
                             .lora = optional(f->lora, paths[2]),
                             .out_dir = out,
                             .precision = precision };
    assert_ok(l2c_import(&o, &err), &err);
    l2c_bundle *source, *stored;
    assert_ok(l2c_bundle_open_parts(&source, o.vision, o.llm, o.lora, &err), &err);
    assert_ok(l2c_bundle_open(&stored, out, &err), &err);
    assert_string_equal(stored->name, name);
    assert_int_equal(stored->precision, precision);
    assert_int_equal(stored->parameters, source->parameters);
    assert_memory_equal(&stored->heads_hash, &source->heads_hash, sizeof source->heads_hash);
    assert_memory_equal(&stored->llm, &source->llm, sizeof source->llm);
    assert_true(stored->logit_scale == source->logit_scale);
    assert_int_equal(stored->heads.normalize_input, source->heads.normalize_input);
    assert_int_equal(stored->vision.kind, source->vision.kind);
    assert_true(
        memcmp(&stored->vision.pixels, &source->vision.pixels, sizeof source->vision.pixels) == 0);

    double worst = fmax(compare(&source->llm_tensors, &stored->llm_tensors),
                        compare(&source->vision_tensors, &stored->vision_tensors));
    if (precision == L2C_PRECISION_INT8 && stored->vision.kind == L2C_VISION_OPENAI &&
        stored->has_vision) {
        // What a model computes in more than int8 is not stored in less.
        const l2c_tensors *set = &stored->vision_tensors;
        assert_int_equal(
            l2c_bundle_get(set, "vision_model.encoder.layers.%d.mlp.fc1.weight", 0)->dtype,
            L2C_DTYPE_I8);
        assert_int_not_equal(
            l2c_bundle_get(set, "vision_model.encoder.layers.%d.mlp.fc2.weight", 0)->dtype,
            L2C_DTYPE_I8);
    }
    double allowed = precision == L2C_PRECISION_F32    ? 0.0
                     : precision == L2C_PRECISION_BF16 ? 1.0 / 256
                                                       : 0.5 / 127 + 1e-6;
    assert_true(worst <= allowed);
    assert_true(compare(&source->head_tensors, &stored->head_tensors) == 0.0);

    // The fingerprints in the manifest are those of the tensors beside it; of f32 bundles they are
    // the source's own.
    l2c_hash text = stored->text_trunk, image = stored->image_trunk, heads = stored->heads_hash;
    assert_ok(l2c_layout_finish(stored, &err), &err);
    assert_memory_equal(&stored->text_trunk, &text, sizeof text);
    assert_memory_equal(&stored->image_trunk, &image, sizeof image);
    assert_memory_equal(&stored->heads_hash, &heads, sizeof heads);
    if (precision == L2C_PRECISION_F32) {
        assert_memory_equal(&source->text_trunk, &text, sizeof text);
        assert_memory_equal(&source->image_trunk, &image, sizeof image);
    }
    l2c_bundle_close(stored);
    l2c_bundle_close(source);
}

/* Broken: a tensor lands under another name, a block boundary loses a row, a scale is wrong. */
static void every_fixture_in_every_precision(void **state) {
    (void)state;
    static const l2c_precision precisions[] = { L2C_PRECISION_F32, L2C_PRECISION_BF16,
                                                L2C_PRECISION_INT8 };
    size_t n = sizeof fixtures / sizeof fixtures[0];
    for (size_t i = 0; i < n; i++) {
        for (size_t p = 0; p < 3; p++) {
            check_round_trip(&fixtures[i], precisions[p]);
        }
    }
    printf("%zu fixtures, three precisions each\n", n);
    assert_int_equal(entries(), (int)(3 * n));
}

static bool cancel_at_once(void *ctx, const char *phase, uint64_t done, uint64_t total) {
    (void)ctx;
    (void)phase;
    assert_true(done <= total);
    return false;
}

static bool count_up(void *ctx, const char *phase, uint64_t done, uint64_t total) {
    uint64_t *last = ctx;
    assert_non_null(phase);
    assert_true(done > *last && done <= total);
    *last = done;
    return true;
}

/* Broken: a failed import leaves half a directory, or one that opens. */
static void nothing_is_left_behind(void **state) {
    (void)state;
    char out[4200];
    out_path(out, "target");
    l2c_import_options o = { .vision = test_shared(FIXTURES "openai-hf"),
                             .out_dir = out,
                             .precision = L2C_PRECISION_BF16,
                             .progress = cancel_at_once };
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_CANCELLED);
    assert_int_equal(entries(), 0);

    o.progress = NULL;
    l2c_buf bad;
    l2c_buf_init(&bad);
    l2c_buf_printf(&bad, "%s/model-llm", test_shared(FIXTURES "broken"));
    // NaN in a weight is found while writing, when half of the bundle is there.
    char folder[4200];
    out_path(folder, "source");
    assert_int_equal(mkdir(folder, 0755), 0);
    l2c_buf command;
    l2c_buf_init(&command);
    l2c_buf_printf(&command,
                   "cp %s/../base-llm/config.json %s/../base-llm/tokenizer.json %s/ && "
                   "cp %s/nan_weight.safetensors %s/model.safetensors",
                   bad.data, bad.data, folder, bad.data, folder);
    assert_int_equal(system(command.data), 0);
    l2c_buf_fini(&command);
    l2c_buf_fini(&bad);
    o.vision = NULL;
    o.llm = folder;
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_FORMAT);
    assert_non_null(strstr(err.message, "q_proj"));
    assert_int_equal(entries(), 1);

    o.llm = NULL;
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_INVALID);
    o.vision = "/nonexistent/file.pt";
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_NOTFOUND);
    o.vision = test_shared(FIXTURES "openai-hf");
    o.llm = test_shared(FIXTURES "llama-1b-like-prefix");
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_MISMATCH);
    o.llm = NULL;
    o.out_dir = folder;
    assert_int_equal(l2c_import(&o, &err), L2CDB_E_EXISTS);
    assert_int_equal(entries(), 1);

    uint64_t last = 0;
    l2c_buf slash;
    l2c_buf_init(&slash);
    l2c_buf_printf(&slash, "%s//", out);
    o.out_dir = slash.data;
    o.progress = count_up;
    o.progress_ctx = &last;
    assert_ok(l2c_import(&o, &err), &err);
    assert_int_equal(entries(), 2);
    l2c_bundle *b;
    assert_ok(l2c_bundle_open(&b, out, &err), &err);
    l2c_bundle_close(b);
    l2c_buf_fini(&slash);
}

/* Broken: a manifest of a newer program, or one that was edited, opens all the same. */
static void manifests_are_checked(void **state) {
    (void)state;
    char out[4200], path[4300];
    out_path(out, "bundle");
    l2c_import_options o = { .vision = test_shared(FIXTURES "eva02/g4.pt"),
                             .llm = NULL,
                             .out_dir = out,
                             .precision = L2C_PRECISION_F32 };
    assert_ok(l2c_import(&o, &err), &err);
    snprintf(path, sizeof path, "%s/bundle.json", out);
    l2c_buf text;
    l2c_buf_init(&text);
    assert_ok(l2c_file_read(&text, path, 1 << 20, &err), &err);
    static const struct {
        const char *from, *to;
        l2cdb_status status;
    } edits[] = {
        { "\"version\": 1", "\"version\": 2", L2CDB_E_VERSION },
        { "l2cdb-bundle", "l2cdb-bungle", L2CDB_E_FORMAT },
        { "\"heads\": 2,", "\"heads\": 3,", L2CDB_E_FORMAT },
        { "\"layers\": 2,", "\"layers\": 3,", L2CDB_E_FORMAT },
        { "\"layers\": 2,", "\"layers\": 1,", L2CDB_E_MISMATCH },
        { "\"patch\": 14,", "\"patch\": 15,", L2CDB_E_FORMAT },
        { "\"kind\": \"eva02\"", "\"kind\": \"siglip2\"", L2CDB_E_FORMAT },
        { "\"rope_grid\": 16", "\"rope_grid\": 0", L2CDB_E_FORMAT },
        { "\"fingerprint\": \"", "\"fingerprint\": \"x", L2CDB_E_FORMAT },
        { "\"crop\": 56", "\"crop\": 55", L2CDB_E_FORMAT },
        { "\"projection_bias\": true", "\"projection_bias\": false", L2CDB_E_MISMATCH },
    };
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        const char *at = strstr(text.data, edits[i].from);
        if (at == NULL) {
            fail_msg("%s is not in:\n%s", edits[i].from, text.data);
        }
        l2c_buf changed;
        l2c_buf_init(&changed);
        l2c_buf_append(&changed, text.data, (size_t)(at - text.data));
        l2c_buf_puts(&changed, edits[i].to);
        l2c_buf_puts(&changed, at + strlen(edits[i].from));
        assert_ok(l2c_file_replace(path, changed.data, changed.size, &err), &err);
        l2c_buf_fini(&changed);
        l2c_bundle *b;
        l2cdb_status rc = l2c_bundle_open(&b, out, &err);
        if (rc != edits[i].status) {
            fail_msg("%s: %s (%s)", edits[i].to, l2cdb_status_name(rc), err.message);
        }
    }
    l2c_buf_fini(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_fixture_in_every_precision, make_temp, remove_temp),
        cmocka_unit_test_setup_teardown(nothing_is_left_behind, make_temp, remove_temp),
        cmocka_unit_test_setup_teardown(manifests_are_checked, make_temp, remove_temp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
