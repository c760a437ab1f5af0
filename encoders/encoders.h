/* The encoders' door: photos and texts in, vectors out. Knows no ids and no database.
 *
 *   l2c_model *m;
 *   l2c_model_open(&m, &(l2c_model_options){ .path = NULL }, &err);      // the built-in l2c-mini
 *   float *features = …[n * info->text_width], *vectors = …[n * info->width];
 *   l2c_model_text_features(m, features, texts, n, 0, &err);
 *   l2c_heads_text(l2c_model_get_heads(m), vectors, features, n, &err);  // unit vectors
 *
 * Every encoder is two halves. The *trunk* (frozen LLM, frozen vision tower) makes features; the
 * *heads* (text adapter, image projection, logit scale) make unit vectors from features. Features
 * are worth storing: when the heads are tuned they do not change.
 *
 * Threads: an l2c_model may be used from several threads at once; each call takes its scratch from
 * an internal set of workspaces. l2c_heads are immutable once built. Decoding needs no model. */
#ifndef L2C_ENCODERS_H
#define L2C_ENCODERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/flag.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"

/* ---- Model -------------------------------------------------------------------------------- */

typedef enum l2c_precision {
    L2C_PRECISION_AUTO, /* the fastest that keeps the tolerance on this processor */
    L2C_PRECISION_F32,  /* the referee */
    L2C_PRECISION_BF16,
    L2C_PRECISION_INT8,
} l2c_precision;

const char *l2c_precision_name(l2c_precision p); /* "auto", "f32", "bf16", "int8" */
l2cdb_status l2c_precision_parse(l2c_precision *out, const char *name, l2cdb_error *err);

typedef struct l2c_model_options {
    /* NULL or "": the built-in l2c-mini. Else a bundle made by l2c_import, or a directory in
     * Hugging Face layout: DIR/llm and DIR/vision, or DIR itself holding one of the two parts. */
    const char *path;
    l2c_precision precision;
    size_t threads; /* for the matrix products; 0: every core of the process */
} l2c_model_options;

typedef struct l2c_model_info {
    char name[128];           /* for people: "l2c-mini", or the directory's name */
    char architecture[128];   /* "openai-vit 12x192 /16 224 + llama 6x384 + adapter 4x384" */
    bool has_text, has_image; /* a part may be missing; text needs LLM and adapter for vectors */
    bool has_heads_text;      /* false: texts give pooled features only */
    size_t width;             /* E, joint width; 0 if no head is there */
    size_t text_width;        /* d, LLM features */
    size_t image_width;       /* W, tower features before the projection */
    size_t image_side;        /* S, pixels */
    size_t tokens_max;        /* 512 */
    size_t vocabulary;
    l2c_precision precision; /* what `auto` became */
    l2c_hash text_trunk, image_trunk,
        heads; /* fingerprints: equal weights and settings, equal hash */
    uint64_t parameters, weights_bytes;
} l2c_model_info;

/* An LLM alone: its pooled features are all there is. */
static inline bool l2c_model_is_pooling(const l2c_model_info *info) {
    return info->width == 0 && info->has_text;
}

typedef struct l2c_model l2c_model;
typedef struct l2c_heads l2c_heads;

/* E_NOTFOUND, E_FORMAT, E_MISMATCH (parts that do not pair: says which do), E_UNSUPPORTED, E_NOMEM.
 * The model keeps its files mapped until close; options->path is copied. */
l2cdb_status l2c_model_open(l2c_model **out, const l2c_model_options *options, l2cdb_error *err);
void l2c_model_close(l2c_model *m);
const l2c_model_info *l2c_model_get_info(const l2c_model *m);
/* The heads that came with the model; borrowed, NULL if there are none. */
const l2c_heads *l2c_model_get_heads(const l2c_model *m);

/* ---- Text --------------------------------------------------------------------------------- */

/* A literal special token or separator in a text is plain bytes unless L2C_TEXT_TRUSTED is set,
 * which is the reference's behaviour (spec 3.2, corner cases). */
enum { L2C_TEXT_TRUSTED = 1 };

/* texts: n NUL-terminated UTF-8 strings. out: f32 [n, text_width], the mean-pooled LLM vector
 * before any normalisation. `cancel` (may be NULL) is polled between batches: E_CANCELLED.
 * E_INVALID for bad UTF-8 (names the row) or a text that pools no position; E_UNSUPPORTED without
 * an LLM. On error `out` is unspecified. Source: spec 3. */
l2cdb_status l2c_model_text_features(l2c_model *m, float *out, const char *const *texts, size_t n,
                                     unsigned flags, const l2c_flag *cancel, l2cdb_error *err);

/* Token ids of `text` as the LLM sees them, template and BOS included (ids[0..*count), at most
 * `ids_max` are written, *count is the full number); *pooled is how many positions at the end are
 * averaged. With `raw` the text alone is encoded: no template, no BOS. */
l2cdb_status l2c_model_tokenize(const l2c_model *m, int32_t *ids, size_t ids_max, size_t *count,
                                size_t *pooled, const char *text, unsigned flags, bool raw,
                                l2cdb_error *err);

/* A tokenizer of its own, from a tokenizer.json (for `l2cdb tokenize --tokenizer` and the tests).
 */
typedef struct l2c_tokenizer l2c_tokenizer;
l2cdb_status l2c_tokenizer_open(l2c_tokenizer **out, const char *path, l2cdb_error *err);
void l2c_tokenizer_close(l2c_tokenizer *t);
/* Plain encoding of n bytes without template or BOS; special tokens are recognised only with
 * L2C_TEXT_TRUSTED. ids may be NULL if ids_max is 0. Safe from several threads. */
l2cdb_status l2c_tokenizer_encode(const l2c_tokenizer *t, int32_t *ids, size_t ids_max,
                                  size_t *count, const char *text, size_t n, unsigned flags,
                                  l2cdb_error *err);

/* ---- Photos -------------------------------------------------------------------------------- */

/* Limits on what is decoded; all are checked before memory is allocated. 0 fields mean default. */
typedef struct l2c_image_limits {
    uint64_t pixels_max;    /* 100,000,000 */
    uint32_t scans_max;     /* 500, progressive JPEG */
    uint32_t decode_ms_max; /* 5,000, processor time of the calling thread */
    uint64_t bytes_max;     /* 512 MiB of input */
} l2c_image_limits;

typedef enum l2c_image_format {
    L2C_IMAGE_UNKNOWN,
    L2C_IMAGE_JPEG,
    L2C_IMAGE_PNG,
    L2C_IMAGE_WEBP,
} l2c_image_format;

typedef struct l2c_image_meta {
    l2c_image_format format;
    uint32_t width, height; /* as stored in the file, before any rotation */
    int orientation;        /* EXIF 1–8; 1 if absent */
    char taken_at[32]; /* "2023-05-01T12:34:56" (EXIF DateTimeOriginal, offset if given), or "" */
    char camera[96];   /* "FUJIFILM X100V" (make and model without repetition), or "" */
    bool has_gps;
    double latitude, longitude; /* degrees, WGS 84, north and east positive */
} l2c_image_meta;

/* RGB8, rows top to bottom without padding. */
typedef struct l2c_image {
    uint8_t *rgb; /* [height, width, 3]; owned, l2c_image_fini */
    uint32_t width, height;
    l2c_image_meta meta;
} l2c_image;

enum {
    L2C_DECODE_UPRIGHT = 1,     /* apply the EXIF orientation */
    L2C_DECODE_ALPHA_WHITE = 2, /* blend alpha onto white; otherwise alpha is dropped (reference) */
    L2C_DECODE_16_SCALED = 4,   /* scale 16-bit grey to 8; otherwise it is clipped as Pillow does */
    L2C_DECODE_USER = L2C_DECODE_UPRIGHT | L2C_DECODE_ALPHA_WHITE | L2C_DECODE_16_SCALED,
};

/* The format by its first bytes, never by a name. */
l2c_image_format l2c_image_sniff(const uint8_t *bytes, size_t n);

/* Decodes JPEG, PNG or WebP (first frame) to RGB8. E_FORMAT (broken, truncated: names what and
 * where), E_UNSUPPORTED (another kind of file: names it where it is known), E_LIMIT, E_NOMEM.
 * On error *out is zeroed. Any thread. */
l2cdb_status l2c_image_decode(l2c_image *out, const uint8_t *bytes, size_t n, unsigned flags,
                              const l2c_image_limits *limits, l2cdb_error *err);
void l2c_image_fini(l2c_image *image);

/* A JPEG (quality 85, 4:2:0) whose short side is `side` pixels at most, its long side 16 times
 * that; appended to `out`. Never larger than the picture. E_INVALID for an empty one, E_NOMEM. */
l2cdb_status l2c_image_thumbnail(l2c_buf *out, const l2c_image *image, uint32_t side,
                                 l2cdb_error *err);

/* Floats of one preprocessed photo: 3*S*S. */
size_t l2c_model_pixels_count(const l2c_model *m);
/* Resize, crop, normalise (spec 4.1, 4.2): out f32 [3,S,S]. Any thread; no model weights touched.
 */
l2cdb_status l2c_model_preprocess(const l2c_model *m, float *out, const l2c_image *image,
                                  l2cdb_error *err);

/* pixels f32 [n,3,S,S] → out f32 [n, image_width], the tower's pooled vector before the projection.
 * E_UNSUPPORTED without a tower. */
l2cdb_status l2c_model_image_features(l2c_model *m, float *out, const float *pixels, size_t n,
                                      l2cdb_error *err);

/* ---- Heads --------------------------------------------------------------------------------- */

/* features f32 [n, text_width] or [n, image_width] → out f32 [n, width], rows of L2 norm 1 within
 * 1e-5. Any thread. */
l2cdb_status l2c_heads_text(const l2c_heads *h, float *out, const float *features, size_t n,
                            l2cdb_error *err);
l2cdb_status l2c_heads_image(const l2c_heads *h, float *out, const float *features, size_t n,
                             l2cdb_error *err);

/* The heads as named f32 tensors, for a database that keeps its own generations. Names are those of
 * layout A ("text_adapter.adaptor.0.ln.weight", "visual_projection.weight", "logit_scale").
 * visit returns false to stop (E_CANCELLED). `data` is valid during the call only. */
typedef struct l2c_head_tensor {
    const char *name;
    size_t shape[2]; /* vectors have shape[1] 0; a scalar has shape {1, 0} */
    const float *data;
    size_t count;
} l2c_head_tensor;
typedef bool (*l2c_head_visit_fn)(void *ctx, const l2c_head_tensor *t);
l2cdb_status l2c_heads_visit(const l2c_heads *h, l2c_head_visit_fn visit, void *ctx,
                             l2cdb_error *err);
/* The other way: heads of the same shapes as `like`, values from `tensors` (copied). A name that is
 * missing keeps like's values; an unknown name or other shape is E_MISMATCH, NaN is E_FORMAT. */
l2cdb_status l2c_heads_new(l2c_heads **out, const l2c_heads *like, const l2c_head_tensor *tensors,
                           size_t tensors_count, l2cdb_error *err);
void l2c_heads_free(l2c_heads *h);
l2c_hash l2c_heads_fingerprint(const l2c_heads *h);
float l2c_heads_logit_scale(const l2c_heads *h); /* exp(logit_scale) */

/* ---- Import -------------------------------------------------------------------------------- */

typedef struct l2c_import_options {
    const char *vision;      /* directory, .safetensors or .pt; NULL: text only */
    const char *llm;         /* directory; NULL: images only */
    const char *lora;        /* PEFT directory merged into the LLM; NULL: none */
    const char *out_dir;     /* the bundle; written beside and renamed; must not exist */
    l2c_precision precision; /* AUTO keeps what `auto` would run */
    /* phase, bytes done and total; false cancels. May be NULL. */
    bool (*progress)(void *ctx, const char *phase, uint64_t done, uint64_t total);
    void *progress_ctx;
} l2c_import_options;

/* Checks everything, then writes. E_MISMATCH says which parts pair with which. */
l2cdb_status l2c_import(const l2c_import_options *options, l2cdb_error *err);

/* ---- About --------------------------------------------------------------------------------- */

/* Lines "key: value" for `version --verbose`: CPU features, which product library and kernels run
 * at which precision and why, OpenBLAS core before and after the correction. */
void l2c_encoders_describe(l2c_buf *out);

#endif
