/* The storage door: records, captions, features, vectors, generations. SQLite holds the truth, and
 * every SQLite statement that reads or writes records is in this folder.
 *
 * One file in WAL mode. A store has one writing connection behind a lock and a few reading ones;
 * any call may come from any thread. A write transaction is opened with l2c_store_begin, and the
 * writing calls between it and commit/rollback belong to the thread that opened it (the lock is
 * held). Writing calls outside a transaction make one of their own.
 *
 * Change numbers. Every transaction that alters what an index holds takes the next number; rows
 * carry the number of their last change and removals are logged, so an index stamped with
 * (generation, change) can catch up. A number covers at most L2C_CHANGE_ROWS rows; a larger
 * transaction takes several. See docs/format.md for the tables. */
#ifndef L2C_STORE_H
#define L2C_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/hash.h"
#include "engine/base/mem.h"

#define L2C_CHANGE_ROWS 256

typedef struct l2c_store l2c_store;

typedef enum l2c_kind { L2C_KIND_IMAGE, L2C_KIND_CAPTION } l2c_kind;

typedef struct l2c_store_options {
    bool read_only, create;
    uint32_t busy_ms; /* 0: 10,000 */
} l2c_store_options;

/* E_VERSION (found and known schema version), E_FORMAT (not our application id), E_NOTFOUND, … */
l2cdb_status l2c_store_open(l2c_store **out, const char *path, const l2c_store_options *o,
                            l2cdb_error *err);
void l2c_store_close(l2c_store *s);
const char *l2c_store_path(const l2c_store *s);

l2cdb_status l2c_store_begin(l2c_store *s, l2cdb_error *err);
l2cdb_status l2c_store_commit(l2c_store *s, l2cdb_error *err);
void l2c_store_rollback(l2c_store *s);
/* This thread has a transaction open: writing calls join it, l2c_store_begin would fail. */
bool l2c_store_in_transaction(const l2c_store *s);

/* Writing inside somebody else's transaction: that of a user's SQL connection, so that its BEGIN,
 * ROLLBACK and SAVEPOINT hold for records as for every other table, and it sees what it has
 * written. Between enter and leave the calls of this thread go to that connection; in between, and
 * for all other threads, the store shows what is committed. */
typedef struct l2c_store_guest l2c_store_guest;
struct sqlite3;
/* `db` (borrowed) has the write lock of the store's file, and has it until close. */
l2cdb_status l2c_store_guest_open(l2c_store_guest **out, l2c_store *s, struct sqlite3 *db,
                                  l2cdb_error *err);
void l2c_store_guest_enter(l2c_store_guest *g);
void l2c_store_guest_leave(l2c_store_guest *g);
/* Right before the commit, entered: stores the change number. */
l2cdb_status l2c_store_guest_finish(l2c_store_guest *g, l2cdb_error *err);
/* After the commit, or when it was rolled back. NULL accepted. */
void l2c_store_guest_close(l2c_store_guest *g);

/* The last committed change number, seen across processes; cheap enough for every query. */
l2cdb_status l2c_store_change(l2c_store *s, int64_t *change, l2cdb_error *err);

/* Settings by name ("exif_rotate", "model_path", "width", …). get: *out is NULL when unset; freed
 * with l2c_free. */
l2cdb_status l2c_store_get(l2c_store *s, const char *key, char **out, l2cdb_error *err);
l2cdb_status l2c_store_set(l2c_store *s, const char *key, const char *value, l2cdb_error *err);

/* ---- Images ---------------------------------------------------------------------------------- */

typedef struct l2c_image_record {
    int64_t id;       /* 0 when new */
    const char *path; /* first path; NULL for imported vectors */
    l2c_hash hash;    /* of the file's bytes; zero for imported vectors */
    int64_t size_bytes, mtime_ns;
    uint32_t width, height;
    const char *format;            /* "jpeg", "png", "webp" */
    const char *taken_at, *camera; /* NULL if unknown */
    int orientation;
    bool has_gps;
    double latitude, longitude;
    const char *status;      /* "ok", "error" */
    const char *error;       /* reason, NULL when ok */
    const char *tags, *meta; /* NULL; meta is JSON */
    const void *original;    /* bytes kept in the database (uploads), or NULL */
    size_t original_size;
} l2c_image_record;

/* What is known of a path: *id 0 if nothing. */
typedef struct l2c_path_state {
    int64_t image_id;
    int64_t size_bytes, mtime_ns;
    size_t paths; /* of that record, this one included */
    bool failed;
} l2c_path_state;
l2cdb_status l2c_images_find_path(l2c_store *s, const char *path, l2c_path_state *out,
                                  l2cdb_error *err);
/* *id 0 if no record has this content; *failed (may be NULL): that record's status is "error". */
l2cdb_status l2c_images_find_hash(l2c_store *s, const l2c_hash *hash, int64_t *id, bool *failed,
                                  l2cdb_error *err);
/* id 0 inserts and sets r->id; else replaces the record's own columns (captions stay; so do tags
 * and meta where r's are NULL). Other content than before (another hash) or status "error" drops
 * the record's features and vectors: the caller puts the new ones in the same transaction. */
l2cdb_status l2c_images_put(l2c_store *s, l2c_image_record *r, l2cdb_error *err);
/* Another path with the same content. A path that belonged to another record leaves it as with
 * remove_path. */
l2cdb_status l2c_images_add_path(l2c_store *s, int64_t id, const char *path, int64_t size_bytes,
                                 int64_t mtime_ns, l2cdb_error *err);
/* Forgets one path. A record without any path left goes with its captions (*deleted, may be NULL).
 * E_NOTFOUND. */
l2cdb_status l2c_images_remove_path(l2c_store *s, const char *path, bool *deleted,
                                    l2cdb_error *err);
/* The user's own columns; meta must be JSON. NULL empties the column. E_NOTFOUND. */
l2cdb_status l2c_images_set_user(l2c_store *s, int64_t id, const char *tags, const char *meta,
                                 l2cdb_error *err);
/* E_NOTFOUND names the first unknown id; then nothing is deleted. The same for captions. */
l2cdb_status l2c_images_delete(l2c_store *s, const int64_t *ids, size_t n, l2cdb_error *err);
/* A copy of the record; strings live in `arena`. E_NOTFOUND. */
l2cdb_status l2c_images_get(l2c_store *s, int64_t id, l2c_image_record *out, l2c_arena *arena,
                            l2cdb_error *err);
l2cdb_status l2c_images_get_original(l2c_store *s, int64_t id, l2c_buf *out, l2cdb_error *err);
/* Every path in order; false stops. For pruning and matching captions. */
typedef bool (*l2c_path_fn)(void *ctx, int64_t image_id, const char *path);
l2cdb_status l2c_images_each_path(l2c_store *s, l2c_path_fn fn, void *ctx, l2cdb_error *err);

l2cdb_status l2c_thumbnails_put(l2c_store *s, int64_t image_id, const void *jpeg, size_t size,
                                l2cdb_error *err);
l2cdb_status l2c_thumbnails_get(l2c_store *s, int64_t image_id, l2c_buf *out, l2cdb_error *err);

/* ---- Captions -------------------------------------------------------------------------------- */

typedef struct l2c_caption_record {
    int64_t id, image_id;
    const char *text, *language, *source;
} l2c_caption_record;
/* Sets c->id. *existed (may be NULL): the same text was there on that photo. */
l2cdb_status l2c_captions_put(l2c_store *s, l2c_caption_record *c, bool *existed, l2cdb_error *err);
l2cdb_status l2c_captions_update(l2c_store *s, int64_t id, const char *text, const char *language,
                                 l2cdb_error *err);
l2cdb_status l2c_captions_delete(l2c_store *s, const int64_t *ids, size_t n, l2cdb_error *err);
l2cdb_status l2c_captions_get(l2c_store *s, int64_t id, l2c_caption_record *out, l2c_arena *arena,
                              l2cdb_error *err);
/* In ascending id after after_id; up to max; strings in the arena. */
l2cdb_status l2c_captions_pull(l2c_store *s, l2c_caption_record *out, size_t max, size_t *got,
                               int64_t after_id, l2c_arena *arena, l2cdb_error *err);

/* ---- Features: what a frozen trunk made of an item; named by the trunk's fingerprint --------- */

l2cdb_status l2c_features_put(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, int64_t item_id,
                              const float *v, size_t width, l2cdb_error *err);
/* Rows in ascending item id after after_id. E_CORRUPT if a stored row has another width. */
l2cdb_status l2c_features_pull(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                               int64_t *ids, float *v, size_t max, size_t *got, int64_t after_id,
                               l2cdb_error *err);
l2cdb_status l2c_features_get(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, size_t width,
                              int64_t item_id, float *v, l2cdb_error *err);
/* Items that have no feature of this trunk yet (ok photos with a file; all captions), ascending. */
l2cdb_status l2c_features_missing(l2c_store *s, l2c_kind kind, const l2c_hash *trunk, int64_t *ids,
                                  size_t max, size_t *got, int64_t after_id, l2cdb_error *err);

/* ---- Generations ----------------------------------------------------------------------------- */

typedef enum l2c_generation_state {
    L2C_GENERATION_FILLING, /* being trained or filled; never answers */
    L2C_GENERATION_READY,   /* complete, inactive */
    L2C_GENERATION_ACTIVE,  /* exactly one */
    L2C_GENERATION_RETIRED, /* was active; rollback goes to the newest of these */
} l2c_generation_state;

typedef struct l2c_generation {
    int64_t id;
    int64_t parent; /* 0: none */
    l2c_generation_state state;
    l2c_hash image_trunk, text_trunk, heads; /* zero for imported vectors */
    /* By l2c_kind: the generation that first made these vectors, its own id or that of an older one
     * whose head for this kind is the same. 0 in a new one: its own. */
    int64_t space[2];
    size_t width;
    char model[512]; /* path or "" for the built-in one; "external" for imported vectors */
    char label[128];
    char report[4096];                /* JSON metrics, "" if none */
    int64_t created_at, activated_at; /* Unix seconds */
} l2c_generation;

l2cdb_status l2c_generations_active(l2c_store *s, l2c_generation *out, l2cdb_error *err);
l2cdb_status l2c_generations_get(l2c_store *s, int64_t id, l2c_generation *out, l2cdb_error *err);
/* g->id is set when 0. */
l2cdb_status l2c_generations_put(l2c_store *s, l2c_generation *g, l2cdb_error *err);
l2cdb_status l2c_generations_list(l2c_store *s, l2c_generation *out, size_t max, size_t *count,
                                  l2cdb_error *err);
/* One transaction: g becomes active, the active one retired. */
l2cdb_status l2c_generations_activate(l2c_store *s, int64_t id, l2cdb_error *err);
/* Not the active one. Removes its heads, and the vectors that no other generation shares. */
l2cdb_status l2c_generations_drop(l2c_store *s, int64_t id, l2cdb_error *err);

/* Heads of a tuned generation: named f32 tensors. */
l2cdb_status l2c_heads_put(l2c_store *s, int64_t generation, const char *name,
                           const size_t shape[2], const float *data, size_t count,
                           l2cdb_error *err);
typedef l2cdb_status (*l2c_heads_row_fn)(void *ctx, const char *name, const size_t shape[2],
                                         const float *data, size_t count, l2cdb_error *err);
l2cdb_status l2c_heads_each(l2c_store *s, int64_t generation, l2c_heads_row_fn fn, void *ctx,
                            l2cdb_error *err);

/* ---- Vectors: unit, one a (space, item); a generation names its space of each kind ----------- */

l2cdb_status l2c_vectors_put(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id,
                             const float *v, size_t width, l2cdb_error *err);
l2cdb_status l2c_vectors_get(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id, float *v,
                             size_t width, l2cdb_error *err);
/* Removes one vector and logs it. */
l2cdb_status l2c_vectors_remove(l2c_store *s, int64_t space, l2c_kind kind, int64_t item_id,
                                l2cdb_error *err);
l2cdb_status l2c_vectors_count(l2c_store *s, int64_t space, l2c_kind kind, size_t *count,
                               l2cdb_error *err);
l2cdb_status l2c_vectors_pull(l2c_store *s, int64_t space, l2c_kind kind, size_t width,
                              int64_t *ids, float *v, size_t max, size_t *got, int64_t after_id,
                              l2cdb_error *err);
/* Items with a feature of `trunk` and no vector in the space, ascending. */
l2cdb_status l2c_vectors_missing(l2c_store *s, int64_t space, l2c_kind kind, const l2c_hash *trunk,
                                 int64_t *ids, size_t max, size_t *got, int64_t after_id,
                                 l2cdb_error *err);
/* Changes newer than `since` in order of change number; semantics of index.h's replay. A batch
 * never ends inside one change number, so max must be at least L2C_CHANGE_ROWS. */
l2cdb_status l2c_vectors_replay(l2c_store *s, int64_t space, l2c_kind kind, size_t width,
                                int64_t *ids, float *v, bool *added, size_t max, size_t *got,
                                int64_t since, int64_t *change, l2cdb_error *err);
/* The removal log up to `change` is no longer needed by any index. */
l2cdb_status l2c_changes_trim(l2c_store *s, int64_t change, l2cdb_error *err);

/* ---- Care ------------------------------------------------------------------------------------ */

typedef struct l2c_store_counts {
    uint64_t images, images_failed, captions, thumbnails, database_bytes;
} l2c_store_counts;
l2cdb_status l2c_store_count(l2c_store *s, l2c_store_counts *out, l2cdb_error *err);
l2cdb_status l2c_store_vacuum(l2c_store *s, l2cdb_error *err);
l2cdb_status l2c_store_backup(l2c_store *s, const char *path,
                              bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                              l2cdb_error *err);
/* "sqlite 3.40.1" */
void l2c_store_describe(l2c_buf *out);
/* What no foreign key can see: *orphans vectors and features of records that are not there, *words
 * false if the full-text table does not agree with the captions. `repair` puts both right. */
l2cdb_status l2c_store_loose(l2c_store *s, bool repair, uint64_t *orphans, bool *words,
                             l2cdb_error *err);
/* SQLite's integrity_check and foreign keys; one call a problem. */
l2cdb_status l2c_store_check(l2c_store *s, void (*finding)(void *ctx, const char *text), void *ctx,
                             l2cdb_error *err);

#endif
