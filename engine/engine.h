/* The inside of the handle: what the files of engine/ share with each other and with nobody else.
 *
 * A question is answered from one *view*: one generation with its heads and its two indexes. A
 * view is counted; whoever asks holds it until the answer is complete, so a switch of generations
 * is one pointer swap and no answer ever mixes two spaces:
 *
 *   l2c_view *v;
 *   l2c_view_get(db, &v, err);                           // caught up with every committed change
 *   l2c_encode_texts(db, v, &text, 1, query, NULL, err); // unit vector of v's space
 *   l2c_view_index(db, v, L2C_KIND_IMAGE, &ix, err);     // NULL while there is no generation
 *   l2c_scan_open(&scan, ix, query, …);
 *   …
 *   l2c_view_release(db, v);
 *
 * What always holds:
 *  1. Rows reach an index only from the store, by replay of what is newer than the index. A writer
 *     commits and calls l2c_view_catch_up; a reader's l2c_view_get does the same when it sees a
 *     change number that another process has written. There is no second way in.
 *  2. l2cdb.lock is a leaf: nothing else is locked and nothing slow is done under it. The order of
 *     the others is: store transaction, heads_lock, side.write, model_lock.
 *  3. A generation's vectors and its heads never change once it has been active, but for rows
 *     that come and go with their photos. */
#ifndef L2C_ENGINE_H
#define L2C_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "encoders/encoders.h"
#include "engine/base/clock.h"
#include "engine/base/flag.h"
#include "engine/base/mem.h"
#include "engine/l2cdb.h"
#include "index/index.h"
#include "storage/store.h"

/* ---- Views ----------------------------------------------------------------------------------- */

typedef struct l2c_view l2c_view;

/* The vectors of one space and their index. Views of generations that share the space share it. */
typedef struct l2c_view_side {
    l2cdb *db;
    l2c_kind kind;
    int64_t space; /* 0: no generation yet */
    size_t width;
    pthread_mutex_t write;      /* one writer an index: open, add, remove, build, close */
    _Atomic(l2c_index *) index; /* opened at first need, under write; NULL before */
    int64_t change;             /* the store's number it has reached; under write */
    unsigned references;        /* under db->lock */
} l2c_view_side;

struct l2c_view {
    l2cdb *db;
    /* id 0, width of the model or 0: the database has no generation yet. */
    l2c_generation generation;
    l2c_view_side *side[2];     /* by l2c_kind */
    pthread_mutex_t heads_lock; /* of the next */
    l2c_heads *heads_own;       /* built from the store for a tuned generation */
    atomic_int_fast64_t change; /* the store's number this view is known to agree with */
    unsigned references;        /* under db->lock */
};

/* The active generation, caught up with what is committed. Released with l2c_view_release (NULL
 * accepted). A database without a generation gives a view with generation.id 0. */
l2cdb_status l2c_view_get(l2cdb *db, l2c_view **out, l2cdb_error *err);
/* A view of any generation, for filling and measuring one that does not answer yet. */
l2cdb_status l2c_view_get_of(l2cdb *db, int64_t generation, l2c_view **out, l2cdb_error *err);
void l2c_view_release(l2cdb *db, l2c_view *v);
/* One more holder of the same view (for a statement that outlives the call). */
l2c_view *l2c_view_retain(l2c_view *v);

/* The view's index of a kind, opened at first need. *out is NULL when the view has no generation;
 * borrowed, lives as long as the view is held. */
l2cdb_status l2c_view_index(l2cdb *db, l2c_view *v, l2c_kind kind, l2c_index **out,
                            l2cdb_error *err);
/* The width of its vectors; loads the model only while there is no generation. */
l2cdb_status l2c_view_width(l2cdb *db, l2c_view *v, size_t *width, l2cdb_error *err);
/* The heads that make vectors of this view's space (the model is loaded if need be); borrowed. */
l2cdb_status l2c_view_heads(l2cdb *db, l2c_view *v, const l2c_heads **out, l2cdb_error *err);
/* The model of this view's generation, loaded at first need; lives as long as the handle.
 * E_UNSUPPORTED for imported vectors without a model and under no_model; E_MISMATCH if the files
 * at the model's path are not those the generation was made with. */
l2cdb_status l2c_view_model(l2cdb *db, l2c_view *v, l2c_model **out, l2cdb_error *err);

/* Begins a store transaction for rows of v's space. *current false: another generation answers by
 * now, and no transaction is open; take a new view and encode again. */
l2cdb_status l2c_view_begin(l2cdb *db, l2c_view *v, bool *current, l2cdb_error *err);
/* Call after every commit that touched vectors or generations: brings the open indexes of the
 * current view up to date and starts a background build where one is wanted. Errors are logged,
 * not returned: the rows are safe, and the next l2c_view_get tries again. */
void l2c_view_catch_up(l2cdb *db);
/* Makes `generation` the active one in the store and swaps the view in one step. `prepared` is a
 * view of it from l2c_view_get_of whose indexes are already open, or NULL. Must not be called
 * inside a transaction unless `in_transaction`, which commits it together with the switch. */
l2cdb_status l2c_view_switch(l2cdb *db, int64_t generation, l2c_view *prepared, bool in_transaction,
                             l2cdb_error *err);
/* The active generation, made from the handle's model when there is none yet. Writers call it
 * before their first vector. */
l2cdb_status l2c_view_ensure_generation(l2cdb *db, l2cdb_error *err);
/* The same for vectors that come without a model; E_MISMATCH if the active ones have another width.
 */
l2cdb_status l2c_view_ensure_external(l2cdb *db, size_t width, l2cdb_error *err);
/* Starts a background build of an opened index that wants one and has none running. `wanted`: on
 * behalf of a writer, so that close waits for it. */
void l2c_view_start_build(l2cdb *db, l2c_view *v, bool wanted);
void l2c_view_wait_build(l2cdb *db);
/* What l2cdb_index_create has stored for a kind, else auto; and its text form, "kind=hnsw m=32". */
l2cdb_status l2c_view_index_params(l2cdb *db, l2c_kind kind, l2c_index_params *out,
                                   l2cdb_error *err);
l2cdb_status l2c_index_params_read(l2c_index_params *out, const char *text, l2cdb_error *err);
/* "photos.l2cdb-g3-images.idx" for space 3; freed with l2c_free, NULL without memory. */
char *l2c_view_index_path(const l2cdb *db, int64_t space, l2c_kind kind);

/* A model by path ("" or NULL: built in), shared by all who ask and kept until close. */
l2cdb_status l2c_db_model(l2cdb *db, const char *path, l2c_model **out, l2cdb_error *err);

/* ---- The handle ------------------------------------------------------------------------------ */

typedef struct l2c_query_cache l2c_query_cache;

/* Search settings of this handle (l2cdb_set). */
typedef struct l2c_settings {
    bool exact;
    size_t ef_search, nprobe; /* 0: the index's own */
} l2c_settings;

struct l2cdb {
    char *path;     /* as the user gave it; ":memory:" stays so, the store has the real one */
    char *temp_dir; /* of a ":memory:" database; removed at close */
    l2c_store *store;
    l2cdb_open_options options; /* strings are copies */
    bool exif_rotate;           /* of the database */

    l2c_flag interrupted; /* handed as `cancel` to encoders and scans */

    pthread_mutex_t lock; /* leaf: view, references, calls, settings */
    unsigned calls;       /* public calls that are running */
    l2c_view *view;       /* the one l2c_view_get gives */
    l2c_settings settings;

    pthread_mutex_t model_lock; /* models, and the loading of one */
    struct l2c_db_model_entry *models;

    l2c_query_cache *cache; /* its own lock */

    pthread_mutex_t build_lock; /* of what follows; background builds run one at a time */
    pthread_cond_t build_done;
    bool building;
    bool build_wanted; /* by a writer of this handle: close waits for it */
    l2c_flag build_stop, closing;

    /* The SQL side's own state (connections, …), made by it at first use; close calls sql_close. */
    pthread_mutex_t sql_lock;
    void *sql;
    void (*sql_close)(l2cdb *db);
};

/* Every public call that takes long or can be interrupted is between enter and leave. The first
 * call that enters an idle handle clears `interrupted`. */
void l2c_db_enter(l2cdb *db);
void l2c_db_leave(l2cdb *db);
/* E_CANCELLED if interrupted, else OK; for loops. */
l2cdb_status l2c_db_poll(l2cdb *db, l2cdb_error *err);
/* E_INVALID "… opened read-only" with its remedy, else OK. */
l2cdb_status l2c_db_writable(l2cdb *db, l2cdb_error *err);
/* The handle's settings and interrupt flag as search parameters; the query's own values (0/false:
 * none) go first. */
void l2c_db_search_params(l2cdb *db, l2c_search_params *out, bool exact, size_t ef_search,
                          size_t nprobe);
/* "hnsw sq8, ef 64, rerank 40" into out; what EXPLAIN and l2cdb_timings.plan show. */
void l2c_plan_describe(char *out, size_t size, const l2c_search_plan *plan);

static inline l2c_kind l2c_target_kind(l2cdb_target t) {
    return t == L2CDB_CAPTIONS ? L2C_KIND_CAPTION : L2C_KIND_IMAGE;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

/* n texts → out f32 [n, v->generation.width] unit vectors; features (NULL, or f32 [n, text_width])
 * gets the trunk's vectors too. Repeated texts come from the query cache when features is NULL. */
l2cdb_status l2c_encode_texts(l2cdb *db, l2c_view *v, const char *const *texts, size_t n,
                              float *out, float *features, l2cdb_error *err);
/* Any term but its weight → unit vector out f32 [width]. Reads files for IMAGE_FILE. */
l2cdb_status l2c_encode_term(l2cdb *db, l2c_view *v, const l2cdb_term *term, float *out,
                             l2cdb_error *err);
/* The flags for l2c_image_decode that this database was made with. */
unsigned l2c_db_decode_flags(const l2cdb *db);

/* Features and active vectors for every caption that lacks them, in batches of one transaction.
 * The source of captions does not matter; ingest, add, tune and check --repair all end here. */
l2cdb_status l2c_captions_encode(l2cdb *db, l2cdb_progress_fn progress, void *ctx,
                                 l2cdb_error *err);
/* Vectors of generation g for every item that has features of its trunks but no vector in g, in
 * batches of one transaction, or all in the one that is open; rows already there are left. *filled
 * may be NULL. */
l2cdb_status l2c_view_fill(l2cdb *db, l2c_view *v, l2cdb_progress_fn progress, void *ctx,
                           uint64_t *filled, l2cdb_error *err);

#define L2C_CAPTION_BYTES_MAX 16384
/* E_INVALID if a caption's text is NULL, blank or not UTF-8, E_LIMIT if it is too long. */
l2cdb_status l2c_caption_check(const char *text, l2cdb_error *err);

/* ---- Files of captions ----------------------------------------------------------------------- */

typedef struct l2c_caption_line {
    const char *image;    /* path, file name, or NULL when `id` names it */
    int64_t id;           /* image id in the database, 0 if `image` names it */
    const char *text;     /* valid UTF-8, trimmed, not empty */
    const char *language; /* NULL: unknown */
    size_t line;          /* from 1; COCO: number of the annotation */
} l2c_caption_line;
/* An error from fn stops the reading and is returned. Strings live during the call. */
typedef l2cdb_status (*l2c_caption_line_fn)(void *ctx, const l2c_caption_line *c, l2cdb_error *err);
/* JSONL, CSV or COCO json, told apart by content (l2cdb_ingest_options.captions_file). E_FORMAT
 * names file, line, what was found and expected. */
l2cdb_status l2c_captions_read(const char *path, l2c_caption_line_fn fn, void *ctx,
                               l2cdb_error *err);

/* ---- Evaluation ------------------------------------------------------------------------------ */

/* Recall of caption vectors f32 [captions_count, width] against photos f32 [images_count, width];
 * owner[c] is the row of caption c's photo. Spec 6.5; ties by lowest row. `cancel` may be NULL. */
l2cdb_status l2c_eval_vectors(l2cdb_eval_report *out, const float *images, size_t images_count,
                              const float *captions, const size_t *owner, size_t captions_count,
                              size_t width, size_t threads, const l2c_flag *cancel,
                              l2cdb_error *err);

/* ---- Progress -------------------------------------------------------------------------------- */

/* Rate over the last seconds and time left, for l2cdb_progress_fn. */
typedef struct l2c_meter {
    l2cdb_progress_fn fn;
    void *ctx;
    const char *phase;
    uint64_t total;
    struct {
        double at;
        uint64_t done;
    } past[16]; /* a ring of samples, half a second apart at least */
    size_t past_count;
    double shown_at;
} l2c_meter;

void l2c_meter_start(l2c_meter *m, l2cdb_progress_fn fn, void *ctx, const char *phase,
                     uint64_t total);
/* Calls fn at most 20 times a second, and always when done equals total. False: cancel. */
bool l2c_meter_tick(l2c_meter *m, uint64_t done, const char *detail);

/* ---- SQL (engine/sql_filter.c) --------------------------------------------------------------- */

/* The ids of `target`'s rows that satisfy `where`, ascending and unique; freed with l2c_free.
 * timeout_ms 0: no limit. */
l2cdb_status l2c_sql_filter_ids(l2cdb *db, l2cdb_target target, const char *where,
                                uint32_t timeout_ms, int64_t **ids, size_t *count,
                                l2cdb_error *err);

#endif
