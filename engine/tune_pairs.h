/* Photos with their captions as training sees them: who is trained on, who is held out, and where
 * their features are. */
#ifndef L2C_TUNE_PAIRS_H
#define L2C_TUNE_PAIRS_H

#include "engine/engine.h"
#include "engine/tune_parallel.h"

typedef enum l2c_part { L2C_PART_TRAIN, L2C_PART_HELD_OUT, L2C_PART_GENERAL } l2c_part;

/* Photos with at least one caption in ascending id, captions in the order of their photos. Groups
 * of parallel captions follow as photos of id 0; they have no image. */
typedef struct l2c_pair_set {
    size_t photos, captions;
    int64_t *photo_ids;   /* [photos] */
    l2c_part *parts;      /* [photos] */
    size_t *first;        /* [photos+1]: captions of photo i are first[i] up to first[i+1] */
    int64_t *caption_ids; /* [captions] */
    size_t image_width, text_width;
    /* Features in memory; NULL when they exceed the limit and are read row by row. */
    float *images;    /* [photos, image_width] */
    float *texts;     /* [stored, text_width] */
    size_t stored;    /* captions that the database holds; later ones are parallel */
    float *parallel;  /* [captions - stored, text_width] */
    l2c_hash content; /* of all captions, parallel ones included: texts, photos and ids */
    l2c_store *store;
    l2c_hash image_trunk, text_trunk;
} l2c_pair_set;

/* Every pair whose photo and caption have features of the generation's trunks. `source` (NULL:
 * none) is the origin of captions that are to be learnt; held-out photos without one are the
 * general set. At most bytes_max of features are kept in memory. */
l2cdb_status l2c_pair_set_load(l2c_pair_set *s, l2cdb *db, const l2c_generation *g,
                               size_t image_width, size_t text_width, const char *source,
                               double held_out_share, uint64_t bytes_max, l2cdb_error *err);
void l2c_pair_set_fini(l2c_pair_set *s);
/* Appends groups to train on and takes their features over (*p is empty then). */
l2cdb_status l2c_pair_set_append(l2c_pair_set *s, l2c_parallel *p, l2cdb_error *err);

/* Features of one row into out f32 [image_width] or [text_width]. */
l2cdb_status l2c_pair_set_image(const l2c_pair_set *s, size_t photo, float *out, l2cdb_error *err);
l2cdb_status l2c_pair_set_text(const l2c_pair_set *s, size_t caption, float *out, l2cdb_error *err);

/* Photos of a part, and captions of those. */
size_t l2c_pair_set_count(const l2c_pair_set *s, l2c_part part, size_t *captions);

/* Ranks the photos of a part against their captions under `heads` (joint width `width`). *out is
 * zeroed for an empty part. */
l2cdb_status l2c_pair_set_eval(const l2c_pair_set *s, l2c_part part, const l2c_heads *heads,
                               size_t width, l2cdb_eval_report *out, size_t threads,
                               const l2c_flag *cancel, l2cdb_error *err);

#endif
