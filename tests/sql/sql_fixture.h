/* A database of imported random vectors for the SQL tests: no model is needed.
 *
 * Photos 1 … n with cameras, times, sizes, places, tags and meta; every 5th shares its vector with
 * an earlier one, every 37th has none. Each photo has 0 to 3 captions with vectors of their own.
 * Everything comes from a seed and is the same on every machine. */
#ifndef L2C_SQL_FIXTURE_H
#define L2C_SQL_FIXTURE_H

#include <math.h>
#include <stdbool.h>

#include "engine/base/mem.h"
#include "engine/base/vec.h"
#include "engine/l2cdb.h"
#include "storage/store.h"
#include "tests/test.h"

typedef struct sql_random {
    uint64_t state;
} sql_random;

static inline uint64_t sql_next(sql_random *r) {
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline size_t sql_below(sql_random *r, size_t n) {
    return (size_t)(sql_next(r) % n);
}

static inline double sql_unit(sql_random *r) {
    return (double)(sql_next(r) >> 11) * 0x1p-53;
}

static inline void sql_vector(sql_random *r, float *v, size_t width) {
    for (size_t i = 0; i < width; i++) {
        double u = sql_unit(r) + 1e-12, w = sql_unit(r);
        v[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * w));
    }
    l2c_vec_normalize(v, width);
}

/* Photo i (from 0); NULL strings where it has none. */
typedef struct sql_photo {
    char path[64], taken_at[32], meta[64], tags[16];
    const char *camera;
} sql_photo;

static inline void sql_photo_make(sql_photo *p, size_t i, sql_random *r) {
    static const char *const cameras[] = { "X100V", "X100F", "Pixel 7", "D750", "x100v", NULL };
    p->camera = cameras[sql_below(r, 6)];
    snprintf(p->path, sizeof p->path, "/photos/%zu/img_%04zu.jpg", i % 7, i);
    snprintf(p->taken_at, sizeof p->taken_at, "20%02zu-%02zu-%02zuT12:00:00", 15 + sql_below(r, 9),
             1 + sql_below(r, 12), 1 + sql_below(r, 28));
    snprintf(p->tags, sizeof p->tags, "t%zu", sql_below(r, 12));
    snprintf(p->meta, sizeof p->meta, "{\"n\":%zu,\"colour\":\"%s\"}", i,
             sql_below(r, 2) == 0 ? "red" : "blue");
}

static inline void sql_fixture_photo(l2c_store *store, int64_t generation, size_t i, size_t width,
                                     float *previous, sql_random *r, bool holes) {
    l2cdb_error err;
    sql_photo p;
    sql_photo_make(&p, i, r);
    l2c_image_record rec = { .path = p.path,
                             .size_bytes = (int64_t)(1000 + sql_below(r, 9000)),
                             .mtime_ns = 1,
                             .width = (uint32_t)(640 * (1 + sql_below(r, 4))),
                             .height = (uint32_t)(480 * (1 + sql_below(r, 3))),
                             .format = sql_below(r, 4) == 0 ? "png" : "jpeg",
                             .taken_at = sql_below(r, 5) == 0 ? NULL : p.taken_at,
                             .camera = p.camera,
                             .orientation = 1 + (int)sql_below(r, 8),
                             .has_gps = sql_below(r, 3) == 0,
                             .latitude = sql_unit(r) * 180 - 90,
                             .longitude = sql_unit(r) * 360 - 180,
                             .status = "ok",
                             .tags = p.tags,
                             .meta = p.meta };
    rec.hash = l2c_hash_of(p.path, strlen(p.path));
    assert_ok(l2c_images_put(store, &rec, &err), &err);
    float v[256];
    if (i % 5 != 4) {
        sql_vector(r, previous, width);
    }
    memcpy(v, previous, width * sizeof *v);
    if (!holes || i % 37 != 36) {
        assert_ok(l2c_vectors_put(store, generation, L2C_KIND_IMAGE, rec.id, v, width, &err), &err);
    }
    static const char *const words[] = { "dog", "boat", "sofa", "beach", "tree", "red", "old" };
    for (size_t c = sql_below(r, 4); c > 0; c--) {
        char text[96];
        snprintf(text, sizeof text, "a %s %s near the %s %zu", words[sql_below(r, 7)],
                 words[sql_below(r, 7)], words[sql_below(r, 7)], c);
        l2c_caption_record cap = { .image_id = rec.id,
                                   .text = text,
                                   .language = sql_below(r, 3) == 0 ? "de" : "en",
                                   .source = "fixture" };
        assert_ok(l2c_captions_put(store, &cap, NULL, &err), &err);
        sql_vector(r, v, width);
        assert_ok(l2c_vectors_put(store, generation, L2C_KIND_CAPTION, cap.id, v, width, &err),
                  &err);
    }
}

/* Makes the database at `path`. `holes` leaves every 37th photo without a vector. */
static inline void sql_fixture_make(const char *path, size_t n, size_t width, uint64_t seed,
                                    bool holes) {
    l2cdb_error err;
    l2c_store *store;
    l2c_store_options o = { .create = true };
    assert_ok(l2c_store_open(&store, path, &o, &err), &err);
    assert_ok(l2c_store_begin(store, &err), &err);
    l2c_generation g = { .state = L2C_GENERATION_READY, .width = width };
    snprintf(g.model, sizeof g.model, "external");
    snprintf(g.label, sizeof g.label, "imported vectors");
    assert_ok(l2c_generations_put(store, &g, &err), &err);
    sql_random r = { seed };
    float previous[256] = { 0 };
    for (size_t i = 0; i < n; i++) {
        sql_fixture_photo(store, g.id, i, width, previous, &r, holes);
    }
    assert_ok(l2c_store_commit(store, &err), &err);
    assert_ok(l2c_generations_activate(store, g.id, &err), &err);
    l2c_store_close(store);
}

/* Removes the folder that `path` is in. */
static inline void sql_fixture_remove(const char *path) {
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%.*s'", (int)(strrchr(path, '/') - path), path);
    assert_int_equal(system(command), 0);
}

static inline l2cdb *sql_fixture_open(const char *path) {
    l2cdb *db;
    l2cdb_error err;
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.no_model = true;
    assert_ok(l2cdb_open(&db, path, &o, &err), &err);
    return db;
}

/* Runs a statement to its end, or fails the test with its text. */
static inline void sql_run(l2cdb *db, const char *sql) {
    l2cdb_stmt *s;
    l2cdb_error err;
    bool row = true;
    if (l2cdb_prepare(db, sql, NULL, &s, &err) != L2CDB_OK) {
        fail_msg("%s: %s", sql, err.message);
    }
    while (row) {
        if (l2cdb_step(s, &row, &err) != L2CDB_OK) {
            fail_msg("%s: %s", sql, err.message);
        }
    }
    l2cdb_finalize(s);
}

#endif
