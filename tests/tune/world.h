/* A database without photos for the tests of tuning: records, captions and features are made up,
 * heads and vectors are real. Photos and captions of one item share a latent direction that the
 * built-in heads know nothing of, and every caption of a photo is in a language of its own, so
 * there is a lot to learn and every run is quick. */
#ifndef L2C_TEST_WORLD_H
#define L2C_TEST_WORLD_H

#include <math.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/test.h"

enum { WORLD_LATENT = 24, WORLD_CAPTIONS = 3 };

static inline double world_draw(uint64_t *state) {
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-52 - 1.0;
}

/* out[width] = latent through a fixed random matrix, plus noise. */
static inline void world_feature(float *out, size_t width, const double *latent, uint64_t matrix,
                                 double noise, uint64_t *state) {
    for (size_t i = 0; i < width; i++) {
        uint64_t row = matrix * 1000003u + i;
        double sum = noise * world_draw(state);
        for (size_t j = 0; j < WORLD_LATENT; j++) {
            sum += latent[j] * world_draw(&row);
        }
        out[i] = (float)sum;
    }
}

static inline void world_put_photo(l2cdb *db, const l2c_model_info *info, size_t i,
                                   uint64_t *state) {
    l2cdb_error err;
    char path[64], text[64];
    snprintf(path, sizeof path, "/world/%05zu.jpg", i);
    l2c_image_record r = { .path = path,
                           .hash = l2c_hash_of(path, strlen(path)),
                           .size_bytes = 1,
                           .width = 4,
                           .height = 3,
                           .format = "jpeg",
                           .status = "ok" };
    float feature[4096];
    double latent[WORLD_LATENT];
    for (size_t j = 0; j < WORLD_LATENT; j++) {
        latent[j] = world_draw(state);
    }
    assert_ok(l2c_images_put(db->store, &r, &err), &err);
    world_feature(feature, info->image_width, latent, 1, 0.2, state);
    assert_ok(l2c_features_put(db->store, L2C_KIND_IMAGE, &info->image_trunk, r.id, feature,
                               info->image_width, &err),
              &err);
    for (size_t c = 0; c < WORLD_CAPTIONS; c++) {
        snprintf(text, sizeof text, "item %zu, words %zu", i, c);
        l2c_caption_record caption = {
            .image_id = r.id, .text = text, .language = "en", .source = "world"
        };
        assert_ok(l2c_captions_put(db->store, &caption, NULL, &err), &err);
        world_feature(feature, info->text_width, latent, 2 + c, 0.2, state);
        assert_ok(l2c_features_put(db->store, L2C_KIND_CAPTION, &info->text_trunk, caption.id,
                                   feature, info->text_width, &err),
                  &err);
    }
}

/* `photos` more photos, numbered from `first`, with vectors of the active generation. */
static inline void world_add(l2cdb *db, size_t first, size_t photos, uint64_t seed) {
    l2cdb_error err;
    l2c_view *v;
    l2c_model *model;
    assert_ok(l2c_view_ensure_generation(db, &err), &err);
    assert_ok(l2c_view_get(db, &v, &err), &err);
    assert_ok(l2c_view_model(db, v, &model, &err), &err);
    assert_ok(l2c_store_begin(db->store, &err), &err);
    for (size_t i = 0; i < photos; i++) {
        world_put_photo(db, l2c_model_get_info(model), first + i, &seed);
    }
    assert_ok(l2c_view_fill(db, v, NULL, NULL, NULL, &err), &err);
    assert_ok(l2c_store_commit(db->store, &err), &err);
    l2c_view_release(db, v);
    l2c_view_catch_up(db);
}

static inline l2cdb *world_open(const char *path, size_t threads) {
    l2cdb_error err;
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.threads = threads;
    l2cdb *db;
    assert_ok(l2cdb_open(&db, path, &o, &err), &err);
    return db;
}

static inline int64_t world_active(l2cdb *db) {
    l2cdb_error err;
    l2c_generation g;
    assert_ok(l2c_generations_active(db->store, &g, &err), &err);
    return g.id;
}

/* Every vector of a kind in generation `id`: f32 [*count, width], ids ascending. Freed by the
 * caller with l2c_free. */
static inline float *world_vectors(l2cdb *db, int64_t id, l2c_kind kind, int64_t **ids,
                                   size_t *count, size_t *width) {
    l2cdb_error err;
    l2c_generation g;
    assert_ok(l2c_generations_get(db->store, id, &g, &err), &err);
    *width = g.width;
    size_t most;
    assert_ok(l2c_vectors_count(db->store, g.space[kind], kind, &most, &err), &err);
    float *v = l2c_alloc((most + 1) * g.width, sizeof *v);
    *ids = l2c_alloc(most + 1, sizeof **ids);
    assert_ok(l2c_vectors_pull(db->store, g.space[kind], kind, g.width, *ids, v, most + 1, count, 0,
                               &err),
              &err);
    assert_int_equal(*count, most);
    return v;
}

/* That every feature of a kind has a vector in the active generation, and that it is the one that
 * the generation's own heads make: no other space has got in. */
static inline void world_check_kind(l2cdb *db, l2c_kind kind) {
    l2cdb_error err;
    l2c_view *v;
    l2c_model *model;
    const l2c_heads *heads;
    assert_ok(l2c_view_get(db, &v, &err), &err);
    assert_ok(l2c_view_model(db, v, &model, &err), &err);
    assert_ok(l2c_view_heads(db, v, &heads, &err), &err);
    const l2c_model_info *info = l2c_model_get_info(model);
    size_t features_width = kind == L2C_KIND_IMAGE ? info->image_width : info->text_width;
    const l2c_hash *trunk = kind == L2C_KIND_IMAGE ? &info->image_trunk : &info->text_trunk;
    int64_t *ids;
    size_t count, width, got;
    float *stored = world_vectors(db, v->generation.id, kind, &ids, &count, &width);
    int64_t *feature_ids = l2c_alloc(count + 1, sizeof *feature_ids);
    float *features = l2c_alloc_aligned((count + 1) * features_width, sizeof *features);
    float *made = l2c_alloc_aligned((count + 1) * width, sizeof *made);
    assert_ok(l2c_features_pull(db->store, kind, trunk, features_width, feature_ids, features,
                                count + 1, &got, 0, &err),
              &err);
    assert_int_equal(got, count);
    assert_memory_equal(ids, feature_ids, count * sizeof *ids);
    assert_ok(kind == L2C_KIND_IMAGE ? l2c_heads_image(heads, made, features, count, &err)
                                     : l2c_heads_text(heads, made, features, count, &err),
              &err);
    for (size_t i = 0; i < count * width; i++) {
        assert_true(fabsf(made[i] - stored[i]) < 1e-5f);
    }
    l2c_free(ids);
    l2c_free(feature_ids);
    l2c_free(stored);
    l2c_free(features);
    l2c_free(made);
    l2c_view_release(db, v);
}

static inline void world_check(l2cdb *db) {
    world_check_kind(db, L2C_KIND_IMAGE);
    world_check_kind(db, L2C_KIND_CAPTION);
}

#endif
