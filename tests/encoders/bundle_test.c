/* Model files of every layout under canonical names; LoRA; pairing; the built-in model. */
#include "tests/test.h"

#include <math.h>

#include "encoders/bundle.h"
#include "encoders/layout.h"
#include "encoders/lora.h"

static l2cdb_error err;

#define FIXTURES "fixtures/llm2clip/"

static l2c_bundle *open_shared(const char *relative) {
    l2c_bundle *b;
    assert_ok(l2c_bundle_open(&b, test_shared(relative), &err), &err);
    return b;
}

static float *values_of(const l2c_tensor *t) {
    float *out = malloc((t->count + 1) * sizeof *out);
    l2c_tensor_to_f32(t, out);
    return out;
}

/* Every tensor of `a` is in `b`, of the same shape, equal within `tolerance`. */
static void expect_same(const l2c_tensors *a, const l2c_tensors *b, double tolerance) {
    assert_int_equal(a->count, b->count);
    for (size_t i = 0; i < a->count; i++) {
        const l2c_tensor *x = &a->items[i], *y = l2c_tensors_find(b, x->name);
        if (y == NULL) {
            fail_msg("%s is missing", x->name);
        }
        assert_int_equal(x->ndim, y->ndim);
        assert_int_equal(x->count, y->count);
        assert_memory_equal(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0]);
        float *p = values_of(x), *q = values_of(y);
        for (size_t k = 0; k < x->count; k++) {
            double difference = fabs((double)p[k] - (double)q[k]);
            if (!(difference <= tolerance * (1.0 + fabs((double)p[k])))) {
                fail_msg("%s[%zu]: %g and %g", x->name, k, (double)p[k], (double)q[k]);
            }
        }
        free(p);
        free(q);
    }
}

/* Broken: the program carries other bytes than the folder, or opens them differently. */
static void built_in_model(void **state) {
    (void)state;
    l2c_bundle *b, *folder;
    assert_ok(l2c_bundle_open(&b, NULL, &err), &err);
    assert_ok(l2c_bundle_open(&folder, test_source("encoders/l2c-mini"), &err), &err);
    assert_string_equal(b->name, "l2c-mini");
    assert_true(b->has_llm && b->has_vision && b->has_adapter);
    assert_int_equal(b->llm.width, 384);
    assert_int_equal(b->llm.kv_heads, 2);
    assert_int_equal(b->vision.width, 192);
    assert_int_equal(b->vision.act, L2C_ACT_GELU);
    assert_true(b->vision.ln_eps == 1e-6);
    assert_int_equal(b->vision.pixels.crop_side, 224);
    assert_true(b->vision.pixels.mean[0] == 0.5F);
    assert_int_equal(b->heads.width, 256);
    assert_int_equal(b->heads.blocks, 4);
    assert_true(b->heads.normalize_input);
    // Stored beside the built-in weights, computed for the folder. If the model or the way of
    // hashing has changed, encoders/l2c-mini/fingerprints must hold these lines.
    const l2c_hash *stored[] = { &b->text_trunk, &b->image_trunk, &b->heads_hash };
    const l2c_hash *fresh[] = { &folder->text_trunk, &folder->image_trunk, &folder->heads_hash };
    int equal = 0;
    for (size_t i = 0; i < 3; i++) {
        char hex[L2C_HASH_HEX_BYTES];
        l2c_hash_hex(fresh[i], hex);
        printf("%s\n", hex);
        equal += memcmp(stored[i], fresh[i], sizeof *stored[i]) == 0;
    }
    assert_int_equal(equal, 3);
    assert_int_equal(b->parameters, folder->parameters);
    l2c_hash ids = l2c_tokenizer_fingerprint(b->tokenizer);
    l2c_hash folder_ids = l2c_tokenizer_fingerprint(folder->tokenizer);
    assert_memory_equal(&ids, &folder_ids, sizeof ids);
    expect_same(&b->llm_tensors, &folder->llm_tensors, 0.0);
    l2c_bundle_close(folder);
    l2c_bundle_close(b);
}

/* Broken: defaults of a config are other than the library's; minimal and full files differ. */
static void openai_hugging_face(void **state) {
    (void)state;
    l2c_bundle *b = open_shared(FIXTURES "openai-hf");
    assert_false(b->has_llm);
    assert_int_equal(b->vision.kind, L2C_VISION_OPENAI);
    assert_int_equal(b->vision.width, 128);
    assert_int_equal(b->vision.head_width, 64);
    assert_int_equal(b->vision.grid, 4);
    assert_int_equal(b->vision.act, L2C_ACT_QUICK_GELU);
    assert_true(b->vision.ln_eps == 1e-5);
    assert_int_equal(b->heads.width, 48);
    assert_int_equal(b->heads.text_width, 64);
    assert_true(b->heads.has_projection && !b->heads.has_projection_bias);
    l2c_bundle_close(b);
    b = open_shared(FIXTURES "openai-hf-defaults");
    assert_int_equal(b->vision.layers, 12);
    assert_int_equal(b->vision.heads, 12);
    assert_int_equal(b->vision.head_width, 2);
    assert_int_equal(b->vision.patch, 32);
    assert_int_equal(b->vision.image_side, 224);
    // fc_in and fc_out are told apart by shape, the norm by rank.
    const l2c_tensor *t =
        l2c_bundle_get(&b->head_tensors, "text_adapter.adaptor.%d.fn.0.weight", 3);
    assert_non_null(t);
    assert_int_equal(t->shape[0], 64);
    assert_int_equal(t->shape[1], 32);
    assert_non_null(l2c_bundle_get(&b->head_tensors, "text_adapter.adaptor.%d.ln.bias", 0));
    l2c_bundle_close(b);
}

/* Broken: q, k and v are cut at the wrong rows, a projection stays transposed, a view is copied in
 * the wrong order: then layout C is not the model that layout A is. */
static void openai_training(void **state) {
    (void)state;
    l2c_bundle *a = open_shared(FIXTURES "openai-hf");
    l2c_bundle *c = open_shared(FIXTURES "openai-train/clip.pt");
    expect_same(&a->vision_tensors, &c->vision_tensors, 6e-4);
    expect_same(&a->head_tensors, &c->head_tensors, 6e-4);
    assert_int_equal(c->vision.heads, a->vision.heads);
    assert_int_equal(c->vision.hidden, a->vision.hidden);
    assert_true(c->logit_scale == 4.60546875F);
    l2c_bundle_close(a);
    l2c_bundle_close(c);

    static const char *const files[] = { "small-nested.pt", "small-module.pt", "small-model.pt" };
    l2c_bundle *plain = open_shared(FIXTURES "openai-train/small.pt");
    for (size_t i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof path, FIXTURES "openai-train/%s", files[i]);
        l2c_bundle *other = open_shared(path);
        expect_same(&plain->vision_tensors, &other->vision_tensors, 1e-3);
        expect_same(&plain->head_tensors, &other->head_tensors, 1e-3);
        assert_true(fabsf(plain->logit_scale - other->logit_scale) < 0.02F);
        for (size_t k = 0; k < other->vision_tensors.count; k++) {
            assert_true(other->vision_tensors.items[k].dtype <= L2C_DTYPE_BF16);
        }
        l2c_bundle_close(other);
    }
    l2c_bundle_close(plain);
}

static void eva02(void **state) {
    (void)state;
    static const struct {
        const char *file;
        size_t W, P, grid, E, d;
    } cases[] = { { "g16", 64, 4, 16, 40, 24 },
                  { "g4", 128, 14, 4, 48, 32 },
                  { "qbias", 64, 8, 6, 32, 16 } };
    for (size_t i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof path, FIXTURES "eva02/%s.pt", cases[i].file);
        l2c_bundle *b = open_shared(path);
        assert_int_equal(b->vision.kind, L2C_VISION_EVA02);
        assert_int_equal(b->vision.width, cases[i].W);
        assert_int_equal(b->vision.patch, cases[i].P);
        assert_int_equal(b->vision.grid, cases[i].grid);
        assert_int_equal(b->vision.rope_grid, 16);
        assert_true(b->vision.ln_eps == 1e-6);
        assert_int_equal(b->heads.width, cases[i].E);
        assert_int_equal(b->heads.text_width, cases[i].d);
        assert_true(b->heads.has_projection_bias && b->heads.normalize_input);
        const l2c_tensor *cls = l2c_tensors_find(&b->vision_tensors, "visual.cls_token");
        assert_int_equal(cls->ndim, 1);
        assert_non_null(l2c_tensors_find(&b->vision_tensors, "visual.blocks.0.attn.v_proj.bias"));
        assert_null(l2c_tensors_find(&b->vision_tensors, "visual.blocks.0.attn.k_proj.bias"));
        l2c_bundle_close(b);
    }
}

/* Broken: a cloned EVA02 repository is refused because of the file that nobody can use. */
static void torch_file_beside_another(void **state) {
    (void)state;
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    l2c_buf command;
    l2c_buf_init(&command);
    l2c_buf_printf(&command, "cp %s %s/LLM2CLIP-EVA.pt && cp ", test_shared(FIXTURES "eva02/g4.pt"),
                   dir);
    l2c_buf_printf(&command, "%s %s/", test_shared(FIXTURES "llama-1b-like/model.safetensors"),
                   dir);
    assert_int_equal(system(command.data), 0);
    l2c_bundle *b;
    assert_ok(l2c_bundle_open(&b, dir, &err), &err);
    assert_int_equal(b->vision.kind, L2C_VISION_EVA02);
    l2c_bundle_close(b);
    l2c_buf_clear(&command);
    l2c_buf_printf(&command, "rm %s/LLM2CLIP-EVA.pt", dir);
    assert_int_equal(system(command.data), 0);
    assert_int_equal(l2c_bundle_open(&b, dir, &err), L2CDB_E_FORMAT);
    assert_non_null(strstr(err.message, "LLM"));
    l2c_buf_clear(&command);
    l2c_buf_printf(&command, "rm -r %s", dir);
    assert_int_equal(system(command.data), 0);
    l2c_buf_fini(&command);
}

static void siglip2(void **state) {
    (void)state;
    l2c_bundle *b = open_shared(FIXTURES "siglip2/so.pt");
    assert_int_equal(b->vision.kind, L2C_VISION_SIGLIP2);
    assert_int_equal(b->vision.heads, 2);
    assert_int_equal(b->vision.head_width, 72);
    assert_int_equal(b->vision.pool_hidden, 160);
    assert_int_equal(b->vision.act, L2C_ACT_GELU);
    assert_false(b->heads.has_projection || b->heads.normalize_input);
    assert_int_equal(b->heads.width, 144);
    l2c_bundle_close(b);
    b = open_shared(FIXTURES "siglip2/bias.pt");
    assert_null(l2c_tensors_find(&b->head_tensors, "logit_bias"));
    l2c_bundle_close(b);
}

static void llms(void **state) {
    (void)state;
    l2c_bundle *b = open_shared(FIXTURES "llama-8b-like");
    assert_int_equal(b->llm.kv_heads, 2);
    assert_false(b->llm.rope_llama3);
    assert_int_equal(b->llm_tensors.items[0].dtype, L2C_DTYPE_BF16);
    assert_int_equal(b->llm_tensors.count, 2 + 9 * 3);
    l2c_bundle_close(b);
    b = open_shared(FIXTURES "llama-1b-like");
    assert_true(b->llm.rope_llama3 && b->llm.rope_factor == 32.0);
    assert_int_equal(b->llm_tensors.items[0].dtype, L2C_DTYPE_F32); // torch_dtype lies
    l2c_bundle_close(b);
    b = open_shared(FIXTURES "llama-1b-like-prefix");
    assert_int_equal(b->llm.head_dim, 20); // not width / heads
    assert_true(b->llm.rope_theta == 500000.0 && b->llm.rope_factor == 8.0);
    assert_null(l2c_tensors_find(&b->llm_tensors, "lm_head.weight"));
    assert_non_null(l2c_tensors_find(&b->llm_tensors, "norm.weight"));
    l2c_bundle_close(b);
}

/* Broken: an adapter meets an LLM of another width, and the user reads about shapes of matrices. */
static void pairs(void **state) {
    (void)state;
    l2c_bundle *b = NULL;
    assert_ok(l2c_bundle_open_parts(&b, test_shared(FIXTURES "openai-hf"),
                                    test_shared(FIXTURES "llama-1b-like"), NULL, &err),
              &err);
    assert_true(b->has_llm && b->has_vision);
    l2c_bundle_close(b);
    assert_int_equal(l2c_bundle_open_parts(&b, test_shared(FIXTURES "openai-hf"),
                                           test_shared(FIXTURES "llama-1b-like-prefix"), NULL,
                                           &err),
                     L2CDB_E_MISMATCH);
    assert_null(b);
    assert_non_null(strstr(err.message, "64"));
    assert_non_null(strstr(err.message, "48"));
    assert_int_equal(l2c_bundle_open(&b, "/nonexistent/model", &err), L2CDB_E_NOTFOUND);
    assert_int_equal(l2c_bundle_open_parts(&b, NULL, NULL, NULL, &err), L2CDB_E_INVALID);

    // The two 8B models have equal shapes: told apart by what is known of them.
    l2c_bundle fake = { .has_llm = true, .has_adapter = true };
    fake.llm.width = fake.heads.text_width = 4096;
    fake.llm.layers = 32;
    fake.vision.kind = L2C_VISION_SIGLIP2;
    assert_int_equal(l2c_layout_check_pair(&fake, false, &err), L2CDB_E_MISMATCH);
    assert_non_null(strstr(err.hint, "LoRA"));
    fake.llm.rope_llama3 = true;
    assert_ok(l2c_layout_check_pair(&fake, true, &err), &err);
    fake.vision.kind = L2C_VISION_EVA02;
    assert_int_equal(l2c_layout_check_pair(&fake, false, &err), L2CDB_E_MISMATCH);
    fake.llm.width = 2048;
    assert_int_equal(l2c_layout_check_pair(&fake, false, &err), L2CDB_E_MISMATCH);
    assert_non_null(strstr(err.hint, "Llama-3-8B"));
}

/* Broken: alpha/r and alpha/sqrt(r) are exchanged, A and B are, or the merge is not rounded as the
 * reference rounds. */
static void lora_merges(void **state) {
    (void)state;
    static const char *const kinds[] = { "plain", "rslora" };
    for (size_t i = 0; i < 2; i++) {
        char path[160];
        snprintf(path, sizeof path, FIXTURES "llama-lora/%s", kinds[i]);
        l2c_bundle *base = open_shared(FIXTURES "llama-lora/base");
        l2c_lora *lora;
        assert_ok(l2c_lora_open(&lora, test_shared(path), &base->llm_tensors, &err), &err);
        const l2c_tensor *t =
            l2c_tensors_find(&base->llm_tensors, "layers.1.self_attn.q_proj.weight");
        float *w = values_of(t);
        // In two halves, as import does it.
        size_t half = t->shape[0] / 2;
        l2c_lora_merge(lora, t->name, w, 0, half);
        l2c_lora_merge(lora, t->name, w + half * t->shape[1], half, t->shape[0] - half);
        snprintf(path, sizeof path,
                 FIXTURES "llama-lora/%s/golden/merged_layers.1.self_attn.q_proj.npy", kinds[i]);
        test_npy golden = test_npy_load(test_shared(path));
        assert_int_equal(golden.count, t->count);
        double worst = 0.0;
        for (size_t k = 0; k < t->count; k++) {
            worst = fmax(worst, fabs((double)w[k] - (double)((float *)golden.data)[k]));
        }
        printf("%s: merged weight, max difference %.2g\n", kinds[i], worst);
        assert_true(worst <= 1e-6);

        snprintf(path, sizeof path, FIXTURES "llama-lora/%s", kinds[i]);
        l2c_bundle *merged;
        assert_ok(l2c_bundle_open_parts(&merged, NULL, test_shared(FIXTURES "llama-lora/base"),
                                        test_shared(path), &err),
                  &err);
        const l2c_tensor *m = l2c_tensors_find(&merged->llm_tensors, t->name);
        assert_int_equal(m->dtype, L2C_DTYPE_BF16);
        float *rounded = values_of(m);
        for (size_t k = 0; k < t->count; k++) {
            assert_true(fabsf(rounded[k] - w[k]) <= fabsf(w[k]) / 256.0F);
        }
        assert_memory_not_equal(&merged->text_trunk, &base->text_trunk, sizeof base->text_trunk);
        free(rounded);
        free(golden.data);
        free(w);
        l2c_bundle_close(merged);
        l2c_lora_close(lora);
        l2c_bundle_close(base);
    }
}

/* Broken: two models that differ in one weight or one setting share a fingerprint, and an index of
 * one answers for the other. */
static void fingerprints(void **state) {
    (void)state;
    l2c_bundle *b;
    assert_ok(l2c_bundle_open(&b, test_shared(FIXTURES "openai-hf"), &err), &err);
    l2c_hash image = b->image_trunk, heads = b->heads_hash;
    b->vision.pixels.mean[1] += 0.25F;
    assert_ok(l2c_layout_finish(b, &err), &err);
    assert_memory_not_equal(&b->image_trunk, &image, sizeof image);
    assert_memory_equal(&b->heads_hash, &heads, sizeof heads);
    b->vision.pixels.mean[1] -= 0.25F;
    float changed[48];
    l2c_tensor *t = &b->vision_tensors.items[0]; // class_embedding [128]
    assert_true(t->count >= 48);
    l2c_tensor_slice_f32(t, 0, 48, changed);
    changed[7] += 1.0F;
    t->data = changed;
    t->count = 48;
    t->bytes = sizeof changed;
    assert_ok(l2c_layout_finish(b, &err), &err);
    assert_memory_not_equal(&b->image_trunk, &image, sizeof image);
    changed[7] = NAN;
    assert_int_equal(l2c_layout_finish(b, &err), L2CDB_E_FORMAT);
    assert_non_null(strstr(err.message, t->name));
    l2c_bundle_close(b);
}

/* Broken: out of memory in the middle of opening leaks or crashes. */
static void memory_failures_are_clean(void **state) {
    (void)state;
    static const char *const paths[] = { FIXTURES "broken/base-llm", FIXTURES "broken/base-clip",
                                         FIXTURES "openai-train/small-nested.pt",
                                         FIXTURES "eva02/qbias.pt" };
    for (size_t i = 0; i < 4; i++) {
        const char *path = test_shared(paths[i]);
        bool opened = false;
        for (uint64_t n = 1; n < 3000 && !opened; n++) {
            l2c_bundle *b;
            l2c_alloc_fail_at(n);
            l2cdb_status rc = l2c_bundle_open(&b, path, &err);
            l2c_alloc_fail_at(0);
            // Names and messages may be cut short by a failed allocation; the status may not lie.
            assert_true(rc == L2CDB_OK || rc == L2CDB_E_NOMEM || rc == L2CDB_E_FORMAT);
            opened = rc == L2CDB_OK && n > 50;
            l2c_bundle_close(b);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(built_in_model),
        cmocka_unit_test(openai_hugging_face),
        cmocka_unit_test(openai_training),
        cmocka_unit_test(eva02),
        cmocka_unit_test(torch_file_beside_another),
        cmocka_unit_test(siglip2),
        cmocka_unit_test(llms),
        cmocka_unit_test(pairs),
        cmocka_unit_test(lora_merges),
        cmocka_unit_test(fingerprints),
        cmocka_unit_test(memory_failures_are_clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
