/* The encoders' second door: heads learn from cached features.
 *
 *   l2c_trainer_new(&t, heads, &options, &err);
 *   for each step: l2c_trainer_step(t, &batch, &step, &err);
 *   l2c_trainer_get_heads(t, &tuned, &err);            // a copy, ready for l2c_heads_text
 *
 * Trained are the text adapter, the logit scale and, on request, the image projection; the trunks
 * are frozen and absent. One step is: forward, loss, backward, clip by the global norm, AdamW,
 * clamp of the logit scale to [0, ln 100]. Source: LLM2CLIP stage 2 (spec 6.2) and, for captions,
 * stage 1 (spec 6.1) applied to the adapter.
 *
 * Parameters, gradients and both moments are one block each. Everything is f32; sums over rows of
 * the loss are f64. The result depends only on the inputs, the options and the thread count. A
 * trainer belongs to one thread at a time. */
#ifndef L2C_TRAINER_H
#define L2C_TRAINER_H

#include "encoders/encoders.h"

typedef struct l2c_trainer l2c_trainer;

typedef struct l2c_trainer_options {
    double lr;           /* at the peak; per-step cosine to 0 after the warmup */
    double weight_decay; /* matrices only: not vectors, biases or the logit scale */
    double beta1, beta2, eps;
    double clip; /* global L2 norm of the gradient; 0: none */
    uint64_t steps_total, steps_warmup;
    bool train_image; /* the image projection too; it must exist */
    bool captions;    /* batches may hold second captions (`positive`) */
    size_t batch_max; /* rows of the largest batch */
} l2c_trainer_options;

/* lr 1e-3 … of a step are the caller's; betas 0.9, 0.999, eps 1e-8, weight decay 0.05, clip 5. */
void l2c_trainer_options_init(l2c_trainer_options *o);

/* B rows that belong together. A missing part of the loss is left out: without `image` nothing is
 * learnt from photos, without `positive` nothing from captions; at least one must be there. */
typedef struct l2c_train_batch {
    size_t rows;           /* B ≥ 2 */
    const float *text;     /* f32 [B, text_width]: features of one caption a row */
    const float *image;    /* f32 [B, image_width]: features of its photo, or NULL */
    const float *positive; /* f32 [B, text_width]: another caption of the same photo, or NULL */
    const int64_t
        *group; /* [B]: rows of equal group are no negatives of each other; NULL: all are */
} l2c_train_batch;

typedef struct l2c_train_step {
    uint64_t step;    /* from 1 */
    double loss;      /* mean over rows, before the update */
    double grad_norm; /* before the clip */
    double lr;
    double logit_scale_unclamped, logit_scale; /* log of the multiplier, after the update */
} l2c_train_step;

/* E_UNSUPPORTED if the heads have no text adapter; E_INVALID names the option. */
l2cdb_status l2c_trainer_new(l2c_trainer **out, const l2c_heads *start,
                             const l2c_trainer_options *options, l2cdb_error *err);
void l2c_trainer_free(l2c_trainer *t);

/* One step; `out` may be NULL. E_INVALID for NaN features (names the row) or a loss that is not
 * finite: the parameters are then as before the step. */
l2cdb_status l2c_trainer_step(l2c_trainer *t, const l2c_train_batch *batch, l2c_train_step *out,
                              l2cdb_error *err);

/* Heads of their own on the straight line from the start (share 0) to the present parameters (share
 * 1); freed with l2c_heads_free. A point on the way keeps more of what the start could do and often
 * does better on new data than either end (Wortsman et al. 2022, arXiv 2109.01903). */
l2cdb_status l2c_trainer_get_heads(const l2c_trainer *t, double share, l2c_heads **out,
                                   l2cdb_error *err);

/* Parameters, moments and step number as bytes, for a run that is to be resumed: appended to `out`;
 * load wants a trainer of the same shapes (E_MISMATCH) and undamaged bytes (E_CORRUPT). */
l2cdb_status l2c_trainer_save(const l2c_trainer *t, l2c_buf *out, l2cdb_error *err);
l2cdb_status l2c_trainer_load(l2c_trainer *t, const void *bytes, size_t size, l2cdb_error *err);

/* Visits the gradient of the last step by the same names as l2c_heads_visit; for the tests. */
l2cdb_status l2c_trainer_visit_gradient(const l2c_trainer *t, l2c_head_visit_fn visit, void *ctx,
                                        l2cdb_error *err);

#endif
