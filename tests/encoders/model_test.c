/* The model's door: l2c-mini end to end against its reference in every precision, texts and photos
 * of the end-to-end fixture, heads that come and go, threads, cancellation, lack of memory. */
#include "tests/test.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>

#include "encoders/model.h"
#include "engine/base/cpu.h"
#include "engine/base/file.h"
#include "engine/base/vec.h"
#include "tests/encoders/tolerances.h"

static json_t *read_json(const char *path) {
    json_error_t e;
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (j == NULL) {
        fail_msg("%s: %s", path, e.text);
    }
    return j;
}

static double worst_cosine(const float *a, const float *b, size_t rows, size_t width,
                           double *most) {
    double worst = 2;
    *most = 0;
    for (size_t r = 0; r < rows; r++) {
        double dot = 0, aa = 0, bb = 0;
        for (size_t i = 0; i < width; i++) {
            double x = (double)a[r * width + i], y = (double)b[r * width + i];
            dot += x * y;
            aa += x * x;
            bb += y * y;
            *most = fmax(*most, fabs(x - y));
        }
        double c = dot / sqrt(aa * bb);
        worst = isnan(c) ? -1 : fmin(worst, c);
    }
    return worst;
}

static void judge(const char *what, l2c_precision p, const float *got, const test_npy *want,
                  double least) {
    double most, cosine = worst_cosine(got, want->data, want->shape[0], want->shape[1], &most);
    print_message("%-18s %-4s max abs %.2e  cosine %.8f\n", what, l2c_precision_name(p), most,
                  cosine);
    if (!(cosine >= least)) {
        fail_msg("%s in %s: cosine %.8f, expected at least %g", what, l2c_precision_name(p), cosine,
                 least);
    }
}

static void load_photo(l2c_image *image, const char *path, unsigned flags) {
    l2cdb_error err = { 0 };
    l2c_buf file;
    l2c_buf_init(&file);
    assert_ok(l2c_file_read(&file, path, 1u << 28, &err), &err);
    assert_ok(l2c_image_decode(image, (const uint8_t *)file.data, file.size, flags, NULL, &err),
              &err);
    l2c_buf_fini(&file);
}

static void mini_texts(l2c_model *m, json_t *j, double least) {
    const l2c_model_info *info = l2c_model_get_info(m);
    l2cdb_error err = { 0 };
    json_t *list = json_object_get(j, "texts"), *all_ids = json_object_get(j, "ids");
    size_t n = json_array_size(list);
    const char **texts = calloc(n, sizeof *texts);
    for (size_t i = 0; i < n; i++) {
        texts[i] = json_string_value(json_array_get(list, i));
        int32_t ids[L2C_TOKENS_MAX];
        size_t count, pooled;
        assert_ok(
            l2c_model_tokenize(m, ids, L2C_TOKENS_MAX, &count, &pooled, texts[i], 0, false, &err),
            &err);
        json_t *want = json_array_get(all_ids, i);
        assert_int_equal(count, json_array_size(want));
        for (size_t k = 0; k < count; k++) {
            assert_int_equal(ids[k], json_integer_value(json_array_get(want, k)));
        }
    }
    float *features = calloc(n * info->text_width, sizeof *features);
    float *vectors = calloc(n * info->width, sizeof *vectors);
    assert_ok(l2c_model_text_features(m, features, texts, n, 0, NULL, &err), &err);
    test_npy pooled = test_npy_load(test_shared("models/l2c-mini/reference/pooled.npy"));
    judge("l2c-mini pooled", info->precision, features, &pooled, least);
    assert_ok(l2c_heads_text(l2c_model_get_heads(m), vectors, features, n, &err), &err);
    test_npy unit = test_npy_load(test_shared("models/l2c-mini/reference/texts.npy"));
    judge("l2c-mini texts", info->precision, vectors, &unit, least);
    free(unit.data);
    free(pooled.data);
    free(vectors);
    free(features);
    free(texts);
}

static void mini_photos(l2c_model *m, json_t *j, double least) {
    const l2c_model_info *info = l2c_model_get_info(m);
    l2cdb_error err = { 0 };
    json_t *list = json_object_get(j, "images");
    size_t n = json_array_size(list), count = l2c_model_pixels_count(m);
    float *pixels = calloc(n * count, sizeof *pixels);
    for (size_t i = 0; i < n; i++) {
        char relative[512];
        snprintf(relative, sizeof relative, "models/l2c-mini/reference/%s",
                 json_string_value(json_array_get(list, i)));
        l2c_image image;
        load_photo(&image, test_shared(relative), 0);
        assert_ok(l2c_model_preprocess(m, pixels + i * count, &image, &err), &err);
        l2c_image_fini(&image);
    }
    float *features = calloc(n * info->image_width, sizeof *features);
    float *vectors = calloc(n * info->width, sizeof *vectors);
    assert_ok(l2c_model_image_features(m, features, pixels, n, &err), &err);
    assert_ok(l2c_heads_image(l2c_model_get_heads(m), vectors, features, n, &err), &err);
    test_npy unit = test_npy_load(test_shared("models/l2c-mini/reference/images.npy"));
    judge("l2c-mini photos", info->precision, vectors, &unit, least);
    free(unit.data);
    free(vectors);
    free(features);
    free(pixels);
}

/* Broken: the default model gives other vectors than it was trained to, in some precision. */
static void mini_agrees(void **state) {
    (void)state;
    json_t *j = read_json(test_shared("models/l2c-mini/reference/reference.json"));
    const struct {
        l2c_precision precision;
        double text, photo;
    } cases[] = {
        { L2C_PRECISION_F32, TOL_COS_MINI_TEXT_F32, TOL_COS_MINI_IMAGE_F32 },
        { L2C_PRECISION_BF16, TOL_COS_MINI_BF16, TOL_COS_MINI_BF16 },
        { L2C_PRECISION_INT8, TOL_COS_MINI_INT8, TOL_COS_MINI_INT8 },
        { L2C_PRECISION_AUTO, TOL_COS_MINI_INT8, TOL_COS_MINI_INT8 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        l2cdb_error err = { 0 };
        l2c_model *m;
        assert_ok(l2c_model_open(&m, &(l2c_model_options){ .precision = cases[i].precision }, &err),
                  &err);
        assert_true(l2c_model_get_info(m)->precision != L2C_PRECISION_AUTO);
        mini_texts(m, j, cases[i].text);
        mini_photos(m, j, cases[i].photo);
        l2c_model_close(m);
    }
    json_decref(j);
}

/* Broken: a text's or photo's vector depends on what is encoded beside it or on the thread count.
 */
static void batches_do_not_matter(void **state) {
    (void)state;
    static const char *const texts[] = { "a dog", "", "Ein Hund läuft am Strand.", "x", "a dog" };
    enum { N = 5 };
    l2cdb_error err = { 0 };
    float first[N * 512], again[N * 512];
    for (size_t threads = 1; threads <= 3; threads++) {
        l2c_model *m;
        assert_ok(l2c_model_open(
                      &m,
                      &(l2c_model_options){ .precision = L2C_PRECISION_F32, .threads = threads },
                      &err),
                  &err);
        size_t d = l2c_model_get_info(m)->text_width;
        assert_true(d <= 512);
        assert_ok(l2c_model_text_features(m, again, texts, N, 0, NULL, &err), &err);
        for (size_t i = 0; i < N; i++) {
            float alone[512];
            double most;
            assert_ok(l2c_model_text_features(m, alone, texts + i, 1, 0, NULL, &err), &err);
            assert_true(worst_cosine(alone, again + i * d, 1, d, &most) > 0.9999999);
        }
        if (threads == 1) {
            memcpy(first, again, sizeof first);
        }
        double most;
        assert_true(worst_cosine(first, again, N, d, &most) > 0.9999999);
        l2c_model_close(m);
    }
}

/* ---- The end-to-end fixture ----------------------------------------------------------------- */

/* Broken: the seam between tokenizer, LLM, adapter and tower, on strings with corners. */
static void end_to_end_agrees(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    char vision[4096];
    snprintf(vision, sizeof vision, "%s", test_shared("fixtures/llm2clip/openai-hf"));
    l2c_bundle *b;
    assert_ok(l2c_bundle_open_parts(&b, vision, test_shared("fixtures/llm2clip/llama-1b-like"),
                                    NULL, &err),
              &err);
    l2c_workspace *ws;
    l2c_llama llama;
    l2c_heads *heads;
    assert_ok(l2c_workspace_new(&ws, 2, &err), &err);
    assert_ok(
        l2c_llama_init(&llama, &b->llm, &b->llm_tensors, L2C_TOKENS_MAX, L2C_PRECISION_F32, &err),
        &err);
    assert_ok(l2c_heads_from_bundle(&heads, b, L2C_PRECISION_F32, 2, &err), &err);
    json_t *j = read_json(test_shared("fixtures/llm2clip/end-to-end/texts.json"));
    test_npy pooled_want =
        test_npy_load(test_shared("fixtures/llm2clip/end-to-end/text_pooled.npy"));
    test_npy unit_want = test_npy_load(test_shared("fixtures/llm2clip/end-to-end/text_unit.npy"));
    size_t d = b->llm.width, E = b->heads.width, checked = 0;
    for (size_t i = 0; i < json_array_size(j); i++) {
        json_t *c = json_array_get(j, i), *text = json_object_get(c, "text");
        int32_t ids[L2C_TOKENS_MAX];
        size_t offset[2] = { 0, 0 }, pooled;
        l2cdb_status rc =
            l2c_prompt_encode(b->tokenizer, ids, &offset[1], &pooled, json_string_value(text),
                              json_string_length(text), L2C_TEXT_TRUSTED, &err);
        if (json_integer_value(json_object_get(c, "pooled")) == 0) {
            assert_int_equal(rc, L2CDB_E_INVALID);
            continue;
        }
        assert_ok(rc, &err);
        float v[256], u[256];
        assert_ok(l2c_llama_features(&llama, v, ids, offset, &pooled, 1, ws, &err), &err);
        double most;
        assert_true(worst_cosine(v, (float *)pooled_want.data + i * d, 1, d, &most) > 0.9999999);
        assert_true(most < 2e-5);
        assert_ok(l2c_heads_text(heads, u, v, 1, &err), &err);
        worst_cosine(u, (float *)unit_want.data + i * E, 1, E, &most);
        assert_true(most < 4e-6);
        checked++;
    }
    assert_true(checked >= 40);
    json_decref(j);
    free(pooled_want.data);
    free(unit_want.data);

    l2c_tower t;
    assert_ok(l2c_tower_init(&t, &b->vision, &b->vision_tensors, L2C_PRECISION_F32, &err), &err);
    static const char *const files[] = { "a.jpg", "b.jpg", "c.png", "d.png", "e.webp", "f.png" };
    test_npy photos = test_npy_load(test_shared("fixtures/llm2clip/end-to-end/image_unit.npy"));
    for (size_t i = 0; i < 6; i++) {
        char relative[256];
        snprintf(relative, sizeof relative, "fixtures/llm2clip/end-to-end/images/%s", files[i]);
        l2c_image image;
        load_photo(&image, test_shared(relative), 0);
        float *pixels = calloc(3 * t.config.image_side * t.config.image_side, sizeof *pixels);
        float f[256], u[256];
        assert_ok(l2c_pixels_preprocess(&b->vision.pixels, pixels, image.rgb, image.width,
                                        image.height, &err),
                  &err);
        assert_ok(l2c_tower_features(&t, f, pixels, 1, ws, &err), &err);
        assert_ok(l2c_heads_image(heads, u, f, 1, &err), &err);
        double most;
        assert_true(worst_cosine(u, (float *)photos.data + i * E, 1, E, &most) >
                    TOL_COS_FIXTURE_F32);
        free(pixels);
        l2c_image_fini(&image);
    }
    free(photos.data);
    l2c_tower_fini(&t);
    l2c_heads_free(heads);
    l2c_llama_fini(&llama);
    l2c_workspace_free(ws);
    l2c_bundle_close(b);
}

/* ---- Heads ---------------------------------------------------------------------------------- */

enum { HEADS_MOST = 64 };

typedef struct copies {
    l2c_head_tensor items[HEADS_MOST];
    size_t count;
} copies;

static bool copy_head(void *ctx, const l2c_head_tensor *t) {
    copies *c = ctx;
    l2c_head_tensor *to = &c->items[c->count++];
    float *data = malloc(t->count * sizeof *data);
    memcpy(data, t->data, t->count * sizeof *data);
    *to = *t;
    to->data = data;
    to->name = strdup(t->name);
    return c->count < HEADS_MOST;
}

static bool stop_at_once(void *ctx, const l2c_head_tensor *t) {
    (void)t;
    ++*(int *)ctx;
    return false;
}

/* Broken: heads read back from a database differ from those written, or wrong ones are taken. */
static void heads_round_trip(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    l2c_model *m;
    assert_ok(l2c_model_open(&m, &(l2c_model_options){ .precision = L2C_PRECISION_F32 }, &err),
              &err);
    const l2c_heads *heads = l2c_model_get_heads(m);
    size_t d = l2c_model_get_info(m)->text_width, E = l2c_model_get_info(m)->width;
    copies c = { .count = 0 };
    assert_ok(l2c_heads_visit(heads, copy_head, &c, &err), &err);
    assert_int_equal(c.count, 1 + 4 * 6 + 4 + 1); // logit scale, blocks, last two, projection
    int calls = 0;
    assert_int_equal(l2c_heads_visit(heads, stop_at_once, &calls, &err), L2CDB_E_CANCELLED);
    assert_int_equal(calls, 1);

    l2c_heads *same, *other;
    assert_ok(l2c_heads_new(&same, heads, c.items, c.count, &err), &err);
    float in[512], a[512], b[512];
    for (size_t i = 0; i < d; i++) {
        in[i] = (float)((i * 7919) % 101) / 50 - 1;
    }
    assert_ok(l2c_heads_text(heads, a, in, 1, &err), &err);
    assert_ok(l2c_heads_text(same, b, in, 1, &err), &err);
    assert_memory_equal(a, b, E * sizeof *a);
    assert_true(l2c_heads_logit_scale(heads) == l2c_heads_logit_scale(same));

    // One value changed: other vectors, another fingerprint; the rest stays like's.
    size_t last = c.count;
    while (strcmp(c.items[--last].name, "text_adapter.adaptor.5.bias") != 0) {
    }
    float *bias = malloc(c.items[last].count * sizeof *bias);
    memcpy(bias, c.items[last].data, c.items[last].count * sizeof *bias);
    bias[0] += 1;
    l2c_head_tensor one = c.items[last];
    one.data = bias;
    assert_ok(l2c_heads_new(&other, heads, &one, 1, &err), &err);
    assert_ok(l2c_heads_text(other, b, in, 1, &err), &err);
    assert_memory_not_equal(a, b, E * sizeof *a);
    l2c_hash x = l2c_heads_fingerprint(same), y = l2c_heads_fingerprint(other);
    assert_memory_not_equal(&x, &y, sizeof x);
    l2c_heads_free(other);

    bias[1] = NAN;
    assert_int_equal(l2c_heads_new(&other, heads, &one, 1, &err), L2CDB_E_FORMAT);
    one.shape[0]--;
    one.count--;
    assert_int_equal(l2c_heads_new(&other, heads, &one, 1, &err), L2CDB_E_MISMATCH);
    one.name = "text_adapter.adaptor.9.bias";
    assert_int_equal(l2c_heads_new(&other, heads, &one, 1, &err), L2CDB_E_MISMATCH);
    assert_null(other);
    // Features that are damaged are refused, with their row.
    float two[1024] = { 0 };
    memcpy(two, in, d * sizeof *in);
    two[d] = NAN;
    float out[1024];
    assert_int_equal(l2c_heads_text(heads, out, two, 2, &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "row 1"));

    free(bias);
    for (size_t i = 0; i < c.count; i++) {
        free((void *)(uintptr_t)c.items[i].data);
        free((void *)(uintptr_t)c.items[i].name);
    }
    l2c_heads_free(same);
    l2c_model_close(m);
}

/* ---- Behaviour ------------------------------------------------------------------------------ */

typedef struct worker {
    l2c_model *m;
    const float *want;
    bool ok;
} worker;

static const char *const words[] = { "a red car", "two dogs in the snow", "ein Kind am Strand" };

static void *encode_many(void *ctx) {
    worker *w = ctx;
    size_t d = l2c_model_get_info(w->m)->text_width;
    float got[3 * 512];
    w->ok = true;
    for (int i = 0; i < 10; i++) {
        l2cdb_error err = { 0 };
        double most;
        w->ok = w->ok && l2c_model_text_features(w->m, got, words, 3, 0, NULL, &err) == L2CDB_OK &&
                worst_cosine(got, w->want, 3, d, &most) > 0.9999999;
    }
    return NULL;
}

/* Broken: two callers share scratch. */
static void several_threads(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    l2c_model *m;
    assert_ok(l2c_model_open(&m, &(l2c_model_options){ .precision = L2C_PRECISION_F32 }, &err),
              &err);
    float want[3 * 512];
    assert_ok(l2c_model_text_features(m, want, words, 3, 0, NULL, &err), &err);
    worker workers[4];
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        workers[i] = (worker){ .m = m, .want = want };
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &workers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(workers[i].ok);
    }
    l2c_model_close(m);
}

/* Broken: a stop is ignored, a bad text is not named, a missing part crashes. */
static void refusals(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    l2c_model *m;
    assert_ok(l2c_model_open(&m, &(l2c_model_options){ .precision = L2C_PRECISION_F32 }, &err),
              &err);
    float out[2 * 512];
    l2c_flag stop = { true };
    assert_int_equal(l2c_model_text_features(m, out, words, 2, 0, &stop, &err), L2CDB_E_CANCELLED);
    const char *bad[] = { "fine", "\xff\xfe" };
    assert_int_equal(l2c_model_text_features(m, out, bad, 2, 0, NULL, &err), L2CDB_E_INVALID);
    assert_non_null(strstr(err.message, "text 1"));
    l2c_model_close(m);
    assert_int_equal(l2c_model_open(&m, &(l2c_model_options){ .path = "/nonexistent/model" }, &err),
                     L2CDB_E_NOTFOUND);
    assert_null(m);

    assert_ok(
        l2c_model_open(
            &m, &(l2c_model_options){ .path = test_shared("fixtures/llm2clip/openai-hf") }, &err),
        &err);
    assert_false(l2c_model_get_info(m)->has_text);
    assert_int_equal(l2c_model_text_features(m, out, words, 1, 0, NULL, &err), L2CDB_E_UNSUPPORTED);
    l2c_model_close(m);
    assert_ok(l2c_model_open(
                  &m,
                  &(l2c_model_options){ .path = test_shared("fixtures/llm2clip/llama-8b-like") },
                  &err),
              &err);
    assert_false(l2c_model_get_info(m)->has_image);
    assert_int_equal(l2c_model_image_features(m, out, out, 1, &err), L2CDB_E_UNSUPPORTED);
    assert_ok(l2c_model_text_features(m, out, words, 1, 0, NULL, &err), &err);
    l2c_model_close(m);

    l2c_precision p;
    assert_int_equal(l2c_precision_parse(&p, "f16", &err), L2CDB_E_INVALID);
    assert_ok(l2c_precision_parse(&p, "int8", &err), &err);
    assert_int_equal(p, L2C_PRECISION_INT8);
}

/* Broken: an allocation that fails leaks, crashes or is taken for success. Every one of a pass. */
static void no_memory_is_an_error(void **state) {
    (void)state;
    l2cdb_error err = { 0 };
    char path[4096];
    snprintf(path, sizeof path, "%s", test_shared("fixtures/llm2clip/openai-hf"));
    size_t failures = 0;
    for (uint64_t n = 1; n <= 400; n++) {
        l2c_model *m;
        l2c_alloc_fail_at(n);
        l2cdb_status rc =
            l2c_model_open(&m, &(l2c_model_options){ .path = path, .threads = 1 }, &err);
        float f[256], u[256];
        if (rc == L2CDB_OK) {
            static float pixels[3 * 56 * 56];
            rc = l2c_model_image_features(m, f, pixels, 1, &err);
            if (rc == L2CDB_OK) {
                rc = l2c_heads_image(l2c_model_get_heads(m), u, f, 1, &err);
            }
        }
        l2c_alloc_fail_at(0);
        l2c_model_close(m);
        failures += rc != L2CDB_OK;
        if (rc != L2CDB_OK && rc != L2CDB_E_NOMEM) {
            fail_msg("allocation %llu: %s: %s", (unsigned long long)n, l2cdb_status_name(rc),
                     err.message);
        }
    }
    assert_true(failures > 50);
}

/* Broken: `version --verbose` hides what runs. */
static void description(void **state) {
    (void)state;
    l2c_buf out;
    l2c_buf_init(&out);
    l2c_encoders_describe(&out);
    static const char *const wanted[] = { "processor: ", "precision auto: ", "products: ",
                                          "openblas: " };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        assert_non_null(strstr(out.data, wanted[i]));
    }
    print_message("%s", out.data);
    l2c_buf_fini(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mini_agrees),           cmocka_unit_test(batches_do_not_matter),
        cmocka_unit_test(end_to_end_agrees),     cmocka_unit_test(heads_round_trip),
        cmocka_unit_test(several_threads),       cmocka_unit_test(refusals),
        cmocka_unit_test(no_memory_is_an_error), cmocka_unit_test(description),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
