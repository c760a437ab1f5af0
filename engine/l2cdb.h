/* l2cdb: a vector search database with its encoders inside.
 *
 *   l2cdb *db;
 *   l2cdb_error err;
 *   l2cdb_open_options options;
 *   l2cdb_open_options_init(&options);
 *   if (l2cdb_open(&db, "photos.l2cdb", &options, &err) != L2CDB_OK) { puts(err.message); … }
 *
 *   const char *dirs[] = { "/home/me/Pictures" };
 *   l2cdb_ingest_options in;
 *   l2cdb_ingest_options_init(&in);
 *   l2cdb_ingest_report report;
 *   l2cdb_ingest(db, dirs, 1, &in, &report, &err);
 *
 *   l2cdb_query q;
 *   l2cdb_query_init(&q);
 *   q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_TEXT, .text = "a dog on the beach", .weight = 1 };
 *   q.terms_count = 1;
 *   l2cdb_results *r;
 *   l2cdb_search(db, &q, &r, &err);
 *   for (size_t i = 0; i < l2cdb_results_count(r); i++) { puts(l2cdb_results_row(r, i)->path); }
 *   l2cdb_results_free(r);
 *   l2cdb_close(db);
 *
 * or in SQL:
 *   l2cdb_stmt *s;
 *   l2cdb_prepare(db, "SELECT path, score FROM images"
 *                     " ORDER BY embedding <=> embed(?1) LIMIT 10", NULL, &s, &err);
 *
 * Conventions. Every call returns l2cdb_status (0 = done) and fills the error it is given (NULL
 * accepted). Option structs are prepared by their _init and may then be changed; zeroed fields mean
 * the default wherever a default is named. Strings are UTF-8. Nothing returned must be freed except
 * handles, each by its own close/free; what hangs on a handle lives as long as the handle.
 *
 * Threads. An l2cdb may be used from any number of threads at once; writing calls queue behind each
 * other, readers never wait for them. An l2cdb_stmt and an l2cdb_results belong to one thread at a
 * time. Callbacks run on the calling thread unless said otherwise.
 *
 * Crash safety. The SQLite file holds the truth; a batch is acknowledged only after its commit.
 * Index files beside it ("photos.l2cdb-…idx") are caches and may be deleted at any time. */
#ifndef L2CDB_H
#define L2CDB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/log.h"
#include "engine/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define L2CDB_VERSION "0.1.0"

typedef struct l2cdb l2cdb;

/* ---- Open ---------------------------------------------------------------------------------- */

typedef struct l2cdb_open_options {
    bool read_only;
    bool create; /* default true */
    /* NULL: the model the database was made with, or the built-in one for a new database. Another
     * model than the database's is E_MISMATCH (remedy: reencode). */
    const char *model;
    const char *precision; /* "auto" (default), "f32", "bf16", "int8" */
    size_t threads;        /* for encoders and index builds; 0: every core */
    bool exif_rotate;      /* default true; recorded in a new database, read from an old one */
    bool no_model;         /* stores, searches and counts without ever loading an encoder */
    uint64_t memory_max;   /* bytes for tuning and builds; 0: half of the machine */
} l2cdb_open_options;

L2CDB_API void l2cdb_open_options_init(l2cdb_open_options *o);

/* The model is loaded at first need, not here. Creates the file when it is absent and `create` is
 * set. E_VERSION for a database written by a newer l2cdb, E_FORMAT for a file that is no database
 * of ours, E_BUSY, E_DENIED, E_FULL. path ":memory:" makes one that is gone at close. */
L2CDB_API l2cdb_status l2cdb_open(l2cdb **out, const char *path, const l2cdb_open_options *options,
                                  l2cdb_error *err);
/* NULL accepted. Waits for background work; statements must be finalised before. */
L2CDB_API void l2cdb_close(l2cdb *db);
/* Loads the encoders now instead of at first need. */
L2CDB_API l2cdb_status l2cdb_warm(l2cdb *db, l2cdb_error *err);
/* Makes running and waiting calls on this handle (encoding, scans, tuning, SQL) return E_CANCELLED
 * soon. Async-signal-safe. Cleared when the next public call starts. */
L2CDB_API void l2cdb_interrupt(l2cdb *db);
L2CDB_API const char *l2cdb_path(const l2cdb *db);

/* Long work reports through this; false cancels (E_CANCELLED; what was committed stays). */
typedef struct l2cdb_progress {
    const char *phase;    /* "scan", "ingest", "train", "build", … */
    uint64_t done, total; /* total 0: unknown yet */
    double rate;          /* items a second over the last seconds, 0 if unknown */
    double eta_s;         /* seconds left, -1 if unknown */
    const char *detail;   /* current file, loss, …; may be "" */
} l2cdb_progress;
typedef bool (*l2cdb_progress_fn)(void *ctx, const l2cdb_progress *p);

/* ---- Ingest -------------------------------------------------------------------------------- */

typedef enum l2cdb_file_outcome {
    L2CDB_FILE_ADDED,
    L2CDB_FILE_UPDATED,   /* same path, other content */
    L2CDB_FILE_UNCHANGED, /* known by path, size and time, or by content */
    L2CDB_FILE_DUPLICATE, /* same content as another path, which it now shares a record with */
    L2CDB_FILE_SKIPPED,   /* not a photo, excluded, still being written */
    L2CDB_FILE_FAILED,    /* a photo that could not be read; recorded with its reason */
} l2cdb_file_outcome;
L2CDB_API const char *l2cdb_file_outcome_name(l2cdb_file_outcome o); /* "added", "updated", … */

typedef struct l2cdb_ingest_options {
    /* JSONL ({"path" or "image": …, "caption" | "text": … | "captions": […], "language": …}; also
     * {"image": …, "en": […], "de": "…"} with language codes as keys), CSV
     * (path,caption[,language]; header optional) or COCO json; told apart by content. Paths
     * relative to the file, to a directory being ingested, or a bare file name. */
    const char *captions_file;
    bool sidecars;      /* default true: captions from NAME.txt beside NAME.jpg, one a line */
    bool captions_only; /* adds captions to photos that are known; reads no photo */
    const char *const *excludes; /* gitignore-style patterns, beside .l2cdbignore files */
    size_t excludes_count;
    double settle_s;   /* files modified in the last n seconds are left for later; default 0 */
    bool retry_failed; /* tries again what failed before although it did not change */
    size_t batch;      /* photos a transaction; 0: 32 */
    bool prune;        /* forget photos whose file is gone (and whose directory is there) */
    l2cdb_progress_fn progress;
    /* One call a file with its outcome and, for skipped and failed, the reason ("" otherwise). */
    void (*on_file)(void *ctx, const char *path, l2cdb_file_outcome outcome, const char *reason);
    void *ctx; /* of both callbacks */
} l2cdb_ingest_options;
L2CDB_API void l2cdb_ingest_options_init(l2cdb_ingest_options *o);

typedef struct l2cdb_ingest_report {
    uint64_t found, added, updated, unchanged, duplicates, skipped, failed, pruned;
    uint64_t captions_added, captions_unmatched;  /* lines that named no known photo */
    double seconds, decode_s, encode_s, commit_s; /* decode_s is summed over threads */
} l2cdb_ingest_report;

/* Files and directories (recursive). Resumable: each batch is one transaction; what is known is
 * skipped by path, size and time. A bad file never stops the run. report may be NULL. */
L2CDB_API l2cdb_status l2cdb_ingest(l2cdb *db, const char *const *paths, size_t paths_count,
                                    const l2cdb_ingest_options *options,
                                    l2cdb_ingest_report *report, l2cdb_error *err);
/* One photo from memory. `name` becomes its path: relative, at most 1,024 bytes, no ".." (NULL:
 * "upload/…", named by its hash); the bytes are kept in the database. *id is the record's, *outcome
 * ADDED, UPDATED, UNCHANGED or DUPLICATE.
 */
L2CDB_API l2cdb_status l2cdb_put_image(l2cdb *db, const char *name, const void *bytes, size_t size,
                                       int64_t *id, l2cdb_file_outcome *outcome, l2cdb_error *err);
/* language NULL: unknown. *id may be NULL. The same text twice on one photo is E_EXISTS. */
L2CDB_API l2cdb_status l2cdb_add_caption(l2cdb *db, int64_t image_id, const char *text,
                                         const char *language, const char *source, int64_t *id,
                                         l2cdb_error *err);
L2CDB_API l2cdb_status l2cdb_update_caption(l2cdb *db, int64_t caption_id, const char *text,
                                            const char *language, l2cdb_error *err);
L2CDB_API l2cdb_status l2cdb_delete_captions(l2cdb *db, const int64_t *ids, size_t n,
                                             l2cdb_error *err);
/* Records, captions, features, vectors, thumbnails; files on disk are never touched. */
L2CDB_API l2cdb_status l2cdb_delete_images(l2cdb *db, const int64_t *ids, size_t n,
                                           l2cdb_error *err);

/* Bytes of one image: its thumbnail (JPEG) or the original (from disk, or from the database if it
 * came as bytes). Appended to what *data points to after the call: valid until l2cdb_bytes_free. */
typedef struct l2cdb_bytes {
    void *data;
    size_t size;
    char content_type[64];
    char etag[40];
} l2cdb_bytes;
L2CDB_API l2cdb_status l2cdb_get_thumbnail(l2cdb *db, int64_t id, l2cdb_bytes *out,
                                           l2cdb_error *err);
L2CDB_API l2cdb_status l2cdb_get_original(l2cdb *db, int64_t id, l2cdb_bytes *out,
                                          l2cdb_error *err);
L2CDB_API void l2cdb_bytes_free(l2cdb_bytes *b);

/* The thumbnail decoded, for faces that draw (a terminal): RGB8 [height, width, 3] without padding.
 * Freed with l2cdb_pixels_free. */
typedef struct l2cdb_pixels {
    uint8_t *rgb;
    uint32_t width, height;
} l2cdb_pixels;
L2CDB_API l2cdb_status l2cdb_get_pixels(l2cdb *db, int64_t id, l2cdb_pixels *out, l2cdb_error *err);
L2CDB_API void l2cdb_pixels_free(l2cdb_pixels *p);

/* ---- Search -------------------------------------------------------------------------------- */

typedef enum l2cdb_target { L2CDB_IMAGES, L2CDB_CAPTIONS } l2cdb_target;

typedef enum l2cdb_term_kind {
    L2CDB_TERM_TEXT,
    L2CDB_TERM_IMAGE_FILE,  /* text is a path */
    L2CDB_TERM_IMAGE_BYTES, /* data, size */
    L2CDB_TERM_VECTOR,      /* data is f32 [size / 4]; normalised here */
    L2CDB_TERM_IMAGE_ID,    /* id of a photo in the database */
    L2CDB_TERM_CAPTION_ID,
} l2cdb_term_kind;

/* The query is the normalised sum of weight × unit vector over the terms. */
typedef struct l2cdb_term {
    l2cdb_term_kind kind;
    const char *text;
    const void *data;
    size_t size;
    int64_t id;
    double weight; /* negative subtracts */
} l2cdb_term;

typedef struct l2cdb_query {
    const l2cdb_term *terms;
    size_t terms_count;
    l2cdb_target target;
    size_t k; /* default 10, at most 10,000 */
    size_t offset;
    const char *where; /* an SQL condition on the target's columns, e.g. "camera LIKE 'X100%'" */
    uint32_t where_ms; /* limit on evaluating `where`; 0: none; E_TIMEOUT */
    double score_min;  /* only rows with score ≥ this; default -2 (all) */
    double share_min;  /* --min-p: only rows with score ≥ share × best score; 0: all */
    bool exact;
    size_t ef_search, nprobe; /* 0: the index's own */
    bool include_vector;
} l2cdb_query;
L2CDB_API void l2cdb_query_init(l2cdb_query *q);

typedef struct l2cdb_row {
    int64_t id; /* image id, or caption id when the target is captions */
    int64_t image_id;
    float score, distance;                    /* cosine and 1 − cosine */
    const char *path;                         /* may be NULL (imported vectors) */
    const char *text;                         /* captions: the caption; images: NULL */
    const char *language, *taken_at, *camera; /* NULL if unknown */
    uint32_t width, height;
    const float *vector; /* [width] when include_vector, else NULL */
} l2cdb_row;

typedef struct l2cdb_timings {
    double encode_ms, search_ms, fetch_ms;
    int64_t generation; /* the one all rows come from */
    char plan[160];     /* "hnsw sq8, ef 64, rerank 40" or "exact over 1,204 rows" */
} l2cdb_timings;

typedef struct l2cdb_results l2cdb_results;
L2CDB_API l2cdb_status l2cdb_search(l2cdb *db, const l2cdb_query *q, l2cdb_results **out,
                                    l2cdb_error *err);
L2CDB_API size_t l2cdb_results_count(const l2cdb_results *r);
L2CDB_API const l2cdb_row *l2cdb_results_row(const l2cdb_results *r, size_t i);
L2CDB_API const l2cdb_timings *l2cdb_results_timings(const l2cdb_results *r);
L2CDB_API void l2cdb_results_free(l2cdb_results *r);

/* ---- Encode -------------------------------------------------------------------------------- */

/* Width of the joint space of the active generation (loads the model only if the database is new).
 */
L2CDB_API l2cdb_status l2cdb_width(l2cdb *db, size_t *width, l2cdb_error *err);
/* One term → unit vector f32 [width] (texts of a model that is an LLM alone: its mean-pooled
 * vector). Repeated texts come from a cache. In all three, `width` is what l2cdb_width gave, and
 * E_MISMATCH says that the active generation has another by now. */
L2CDB_API l2cdb_status l2cdb_encode(l2cdb *db, const l2cdb_term *term, float *out, size_t width,
                                    l2cdb_error *err);
/* n texts in one pass, for callers that batch (the server). out f32 [n, width]; *generation (may be
 * NULL) is the one they belong to, as l2cdb_results_timings names the one that was searched. */
L2CDB_API l2cdb_status l2cdb_encode_texts(l2cdb *db, const char *const *texts, size_t n, float *out,
                                          size_t width, int64_t *generation, l2cdb_error *err);
/* n photo files, decoded in all threads and encoded in batches; out f32 [n, width]. The first that
 * cannot be read ends the call; the error names it. */
L2CDB_API l2cdb_status l2cdb_encode_images(l2cdb *db, const char *const *paths, size_t n,
                                           float *out, size_t width, l2cdb_error *err);
/* Token ids as the LLM sees them; tokenizer_path NULL uses the database's model and its template,
 * else a tokenizer.json is used raw. ids_max 0 with ids NULL asks for the count. `trusted` lets
 * special tokens in the text be special. */
L2CDB_API l2cdb_status l2cdb_tokenize(l2cdb *db, const char *tokenizer_path, const char *text,
                                      size_t size, bool trusted, int32_t *ids, size_t ids_max,
                                      size_t *count, size_t *pooled, l2cdb_error *err);

/* ---- SQL ----------------------------------------------------------------------------------- */

typedef struct l2cdb_stmt l2cdb_stmt;

typedef struct l2cdb_sql_limits {
    bool read_only;      /* no writes, ATTACH, PRAGMA that writes, load_extension, file access */
    uint32_t timeout_ms; /* per statement, 0: none; E_TIMEOUT */
    uint64_t rows_max;   /* E_LIMIT beyond; 0: none */
} l2cdb_sql_limits;

/* Compiles the first statement of `sql`. limits NULL: none. *out is NULL for an empty statement
 * (only spaces and comments). err->offset points into `sql` for syntax errors. */
L2CDB_API l2cdb_status l2cdb_prepare(l2cdb *db, const char *sql, const l2cdb_sql_limits *limits,
                                     l2cdb_stmt **out, l2cdb_error *err);
/* The same; *tail is what follows the statement. */
L2CDB_API l2cdb_status l2cdb_prepare_next(l2cdb *db, const char *sql,
                                          const l2cdb_sql_limits *limits, l2cdb_stmt **out,
                                          const char **tail, l2cdb_error *err);
L2CDB_API void l2cdb_finalize(l2cdb_stmt *s);
L2CDB_API l2cdb_status l2cdb_reset(l2cdb_stmt *s);

/* Parameters count from 1; names carry their sign (":q", "@q", "$q"). Text and blobs are copied. */
L2CDB_API int l2cdb_bind_count(const l2cdb_stmt *s);
L2CDB_API int l2cdb_bind_index(const l2cdb_stmt *s, const char *name); /* 0: none */
L2CDB_API const char *l2cdb_bind_name(const l2cdb_stmt *s, int i);     /* NULL: nameless */
L2CDB_API l2cdb_status l2cdb_bind_null(l2cdb_stmt *s, int i);
L2CDB_API l2cdb_status l2cdb_bind_int64(l2cdb_stmt *s, int i, int64_t v);
L2CDB_API l2cdb_status l2cdb_bind_double(l2cdb_stmt *s, int i, double v);
L2CDB_API l2cdb_status l2cdb_bind_text(l2cdb_stmt *s, int i, const char *v, size_t size);
L2CDB_API l2cdb_status l2cdb_bind_blob(l2cdb_stmt *s, int i, const void *v, size_t size);
L2CDB_API l2cdb_status l2cdb_bind_vector(l2cdb_stmt *s, int i, const float *v, size_t n);

/* *row is true when a row is there, false when the statement is done. */
L2CDB_API l2cdb_status l2cdb_step(l2cdb_stmt *s, bool *row, l2cdb_error *err);

typedef enum l2cdb_type {
    L2CDB_NULL,
    L2CDB_INTEGER,
    L2CDB_FLOAT,
    L2CDB_TEXT,
    L2CDB_BLOB,
    L2CDB_VECTOR, /* a blob that is an embedding */
} l2cdb_type;

/* Columns count from 0. Text, blob and vector pointers live until the next step. */
L2CDB_API int l2cdb_column_count(const l2cdb_stmt *s);
L2CDB_API const char *l2cdb_column_name(const l2cdb_stmt *s, int i);
L2CDB_API l2cdb_type l2cdb_column_type(l2cdb_stmt *s, int i);
L2CDB_API int64_t l2cdb_column_int64(l2cdb_stmt *s, int i);
L2CDB_API double l2cdb_column_double(l2cdb_stmt *s, int i);
L2CDB_API const char *l2cdb_column_text(l2cdb_stmt *s, int i);
L2CDB_API const void *l2cdb_column_blob(l2cdb_stmt *s, int i);
L2CDB_API size_t l2cdb_column_bytes(l2cdb_stmt *s, int i);
L2CDB_API int64_t l2cdb_changes(const l2cdb_stmt *s); /* rows written by the statement */
/* For a shell: 1 if `sql` ends in a complete statement. */
L2CDB_API bool l2cdb_sql_complete(const char *sql);

/* ---- Evaluate ------------------------------------------------------------------------------ */

typedef struct l2cdb_recall_at {
    uint64_t queries;
    double r1, r5, r10; /* per cent */
    double median_rank; /* from 1 */
} l2cdb_recall_at;

typedef struct l2cdb_eval_report {
    uint64_t images, captions;
    l2cdb_recall_at t2i, i2t; /* i2t: a hit if any caption of the photo is in the top k */
    double seconds;
} l2cdb_eval_report;

typedef struct l2cdb_eval_options {
    const char *captions_file; /* forms as for ingest; NULL: the captions in the database */
    const char *images_dir;    /* photos to encode; NULL: those in the database */
    const char *language;      /* only captions of this language; NULL: all */
    int64_t generation;        /* 0: active */
    l2cdb_progress_fn progress;
    void *ctx;
} l2cdb_eval_options;
L2CDB_API void l2cdb_eval_options_init(l2cdb_eval_options *o);
/* The gallery is the photos that have at least one caption. Spec 6.5; ties by lowest index. */
L2CDB_API l2cdb_status l2cdb_eval(l2cdb *db, const l2cdb_eval_options *options,
                                  l2cdb_eval_report *out, l2cdb_error *err);

/* ---- Tune, reindex, generations ------------------------------------------------------------- */

typedef enum l2cdb_objective {
    L2CDB_OBJECTIVE_IMAGE,   /* photo ↔ caption, symmetric InfoNCE */
    L2CDB_OBJECTIVE_CAPTION, /* caption → caption of the same photo, s = 50 */
    L2CDB_OBJECTIVE_BOTH,
} l2cdb_objective;

typedef struct l2cdb_tune_options {
    const char *pairs_file;  /* beside the captions in the database; forms as for ingest */
    size_t epochs, batch;    /* 0: 20, and a quarter of the photos between 32 and 1,024 */
    double lr, weight_decay; /* 0: 1e-4 and 0.05; weight_decay -1: none */
    double warmup;           /* share of the steps */
    uint64_t seed;
    bool tune_image_head; /* the image projection too */
    double val_share;     /* 0.1, split by photo */
    bool early_stop;      /* default true */
    bool resume;          /* continue an interrupted run */
    bool force;           /* promote although held-out R@10 fell or the loss rose */
    bool no_promote;      /* leave it inactive */
    l2cdb_objective objective;
    const char *report_dir; /* JSON and SVG written there; NULL: none */
    l2cdb_progress_fn progress;
    void *ctx;
} l2cdb_tune_options;
L2CDB_API void l2cdb_tune_options_init(l2cdb_tune_options *o);

typedef struct l2cdb_tune_report {
    int64_t generation; /* new one */
    bool promoted;
    uint64_t photos, pairs, photos_val, pairs_val, steps;
    uint64_t pairs_unmatched; /* captions of the pairs file that named no known photo */
    double loss_first, loss_last, seconds, pairs_per_s;
    double blend; /* how far the new heads are from the old ones (0) to the trained ones (1) */
    l2cdb_eval_report before, after; /* held-out */
    l2cdb_eval_report general_before,
        general_after; /* a fixed sample of other photos; 0 images: none */
} l2cdb_tune_report;
/* The new generation is promoted if held-out R@10 did not fall and the loss did not rise clearly (a
 * rate too high). A state that cannot be saved for `resume` is a warning in the log; the run goes
 * on. */
L2CDB_API l2cdb_status l2cdb_tune(l2cdb *db, const l2cdb_tune_options *options,
                                  l2cdb_tune_report *out, l2cdb_error *err);

/* Fills generation g (0: the newest that is not active) from cached features, builds its index,
 * measures recall, switches in one transaction. Interrupted runs resume. */
L2CDB_API l2cdb_status l2cdb_reindex(l2cdb *db, int64_t generation, l2cdb_progress_fn progress,
                                     void *ctx, l2cdb_error *err);
/* Back to the generation that was active before. */
L2CDB_API l2cdb_status l2cdb_rollback(l2cdb *db, int64_t *now_active, l2cdb_error *err);
L2CDB_API l2cdb_status l2cdb_drop_generation(l2cdb *db, int64_t generation, l2cdb_error *err);
/* Re-encodes everything with another model into a new generation; resumable. NULL: built-in. */
L2CDB_API l2cdb_status l2cdb_reencode(l2cdb *db, const char *model, l2cdb_progress_fn progress,
                                      void *ctx, l2cdb_error *err);

/* ---- Index --------------------------------------------------------------------------------- */

/* params: "kind=hnsw m=32 quant=sq8 ef_construction=100"; NULL: auto. */
L2CDB_API l2cdb_status l2cdb_index_create(l2cdb *db, l2cdb_target target, const char *params,
                                          l2cdb_progress_fn progress, void *ctx, l2cdb_error *err);
L2CDB_API l2cdb_status l2cdb_index_drop(l2cdb *db, l2cdb_target target, l2cdb_error *err);
/* "hnsw.ef_search" = "100", "ivf.nprobe", "search.exact" = "on". For this handle. */
L2CDB_API l2cdb_status l2cdb_set(l2cdb *db, const char *name, const char *value, l2cdb_error *err);

typedef struct l2cdb_index_info {
    char kind[16], quant[16], why[160], params[160];
    uint64_t rows, base_rows, fresh_rows, tombstones, file_bytes, memory_bytes;
    double build_s, recall; /* recall -1: not measured */
    bool building;
} l2cdb_index_info;
L2CDB_API l2cdb_status l2cdb_index_status(l2cdb *db, l2cdb_target target, l2cdb_index_info *out,
                                          l2cdb_error *err);

typedef struct l2cdb_index_recall {
    uint64_t samples, k;
    double recall, query_ms, exact_ms;
    uint64_t wanted_param; /* smallest ef_search / nprobe for the target; 0: none */
    double wanted_recall;
} l2cdb_index_recall;
L2CDB_API l2cdb_status l2cdb_measure_recall(l2cdb *db, l2cdb_target target, size_t k,
                                            size_t samples, double wanted, bool apply,
                                            l2cdb_index_recall *out, l2cdb_error *err);

/* ---- Own vectors, copies, care --------------------------------------------------------------- */

/* Imports the rows of X.npy (f32 [N,D], C order) as records without photos; ids count from 1 in
 * file order in a new database. meta: JSONL, line i belongs to row i: {"path":…, "tags":…, any
 * other keys become `meta`}. D must fit the database. */
L2CDB_API l2cdb_status l2cdb_import_vectors(l2cdb *db, const char *npy_path, const char *meta_path,
                                            uint64_t *rows, l2cdb_progress_fn progress, void *ctx,
                                            l2cdb_error *err);
/* ids.npy (i64 [N]) beside vectors.npy when ids_path is given. */
L2CDB_API l2cdb_status l2cdb_export_vectors(l2cdb *db, l2cdb_target target, const char *npy_path,
                                            const char *ids_path, uint64_t *rows, l2cdb_error *err);
/* Reads a query file f32 [N,D] or [D]; *out is allocated, freed by l2cdb_vectors_free. */
L2CDB_API l2cdb_status l2cdb_vectors_read(const char *npy_path, float **out, size_t *rows,
                                          size_t *width, l2cdb_error *err);
L2CDB_API void l2cdb_vectors_free(float *v);

/* A consistent copy while others read and write (SQLite's backup), renamed when complete. */
L2CDB_API l2cdb_status l2cdb_backup(l2cdb *db, const char *path, l2cdb_progress_fn progress,
                                    void *ctx, l2cdb_error *err);
/* Gives the space of what was deleted back and overwrites it. */
L2CDB_API l2cdb_status l2cdb_vacuum(l2cdb *db, l2cdb_error *err);

/* Checks the database: SQLite's integrity, that every record has its features and vector, norms,
 * fingerprints, index against store. One call of `finding` a problem, with its remedy. E_CORRUPT if
 * there were any; `repair` recomputes what can be recomputed. */
L2CDB_API l2cdb_status l2cdb_check(l2cdb *db, bool repair,
                                   void (*finding)(void *ctx, const char *text, const char *remedy),
                                   void *ctx, l2cdb_error *err);

typedef struct l2cdb_stats {
    uint64_t images, images_failed, captions, vectors_images, vectors_captions, thumbnails;
    uint64_t database_bytes, index_bytes;
    int64_t generation, change;
    size_t width;
    char model[128], architecture[128], model_fingerprint[33], precision[8];
    bool exif_rotate;
} l2cdb_stats;
L2CDB_API l2cdb_status l2cdb_get_stats(l2cdb *db, l2cdb_stats *out, l2cdb_error *err);

/* ---- Models and version -----------------------------------------------------------------------
 */

typedef struct l2cdb_import_model_options {
    const char *vision, *llm, *lora, *out_dir, *precision;
    l2cdb_progress_fn progress;
    void *ctx;
} l2cdb_import_model_options;
L2CDB_API l2cdb_status l2cdb_import_model(const l2cdb_import_model_options *o, l2cdb_error *err);

L2CDB_API const char *l2cdb_version(void);
/* Lines "key: value" on CPU, kernels, libraries; freed with l2cdb_string_free. NULL without memory.
 */
L2CDB_API char *l2cdb_version_verbose(void);
L2CDB_API void l2cdb_string_free(char *s);

#ifdef __cplusplus
}
#endif
#endif
