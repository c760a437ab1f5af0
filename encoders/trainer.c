/* One training step after another over cached features; see trainer.h.
 *
 * The order inside a step is the reference's (spec 6.2): forward, loss, backward, clip by the
 * global norm, AdamW, clamp of the logit scale. The image side is either trained (its projection is
 * part of the block) or fixed, and then goes through the heads that the trainer was made from. */
#include "encoders/trainer.h"

#include <math.h>
#include <string.h>

#include "encoders/adamw.h"
#include "encoders/adapter_grad.h"
#include "encoders/gemm.h"
#include "encoders/loss.h"
#include "encoders/model.h"
#include "encoders/train_kernels.h"
#include "engine/base/vec.h"

static const double CAPTION_SCALE = 50.0;  // spec 6.1
static const double SMALL_PRODUCT = 100e6; // multiplications of the largest product of a step

struct l2c_trainer {
    l2c_trainer_options options;
    l2c_param_table table;
    l2c_heads *start; /* a copy: the fixed image side, and the mould of get_heads */
    uint64_t step;    /* steps taken */
    /* One block each, laid out by `table`. */
    float *params, *grad, *moment1, *moment2;
    l2c_adapter_tape tape;
    /* Scratch of a step, for R = rows_max rows (two batches when captions have positives). */
    size_t rows_max;
    float *memory;
    float *text;              /* [R,d]: both captions of each row; unused without second ones */
    float *y, *dy;            /* [R,E]: adapter outputs, then unit vectors, and their gradient */
    float *dy2;               /* [B,E]: gradient of the second loss */
    float *v, *dv;            /* [B,E]: photos */
    float *y_norms, *v_norms; /* [R], [B] */
    float *logits;            /* scratch of the losses */
};

void l2c_trainer_options_init(l2c_trainer_options *o) {
    *o = (l2c_trainer_options){ .lr = 1e-3,
                                .weight_decay = 0.05,
                                .beta1 = 0.9,
                                .beta2 = 0.999,
                                .eps = 1e-8,
                                .clip = 5.0,
                                .batch_max = 256 };
}

static l2cdb_status check_options(const l2c_trainer_options *o, l2cdb_error *err) {
    if (!(o->lr > 0 && o->lr < 1)) {
        return l2c_fail(err, L2CDB_E_INVALID, "learning rate is %g, expected above 0 and below 1",
                        o->lr);
    }
    if (!(o->weight_decay >= 0 && o->weight_decay < 1)) {
        return l2c_fail(err, L2CDB_E_INVALID, "weight decay is %g, expected 0 to below 1",
                        o->weight_decay);
    }
    if (!(o->beta1 >= 0 && o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1 && o->eps > 0)) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "AdamW wants betas from 0 to below 1 and eps above 0, found %g, %g and %g",
                        o->beta1, o->beta2, o->eps);
    }
    if (o->batch_max < 2 || o->batch_max > 65536) {
        return l2c_fail(err, L2CDB_E_INVALID, "batch is %zu, expected 2 to 65536", o->batch_max);
    }
    if (o->steps_total == 0 || o->steps_warmup > o->steps_total) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "%llu warmup steps of %llu in all, expected at least one step and no more "
                        "warmup than steps",
                        (unsigned long long)o->steps_warmup, (unsigned long long)o->steps_total);
    }
    return L2CDB_OK;
}

/* ---- New and free ---- */

typedef struct fill_ctx {
    const l2c_param_table *table;
    float *block;
    size_t filled;
} fill_ctx;

static bool fill_param(void *ctx, const l2c_head_tensor *h) {
    fill_ctx *f = ctx;
    for (size_t i = 0; i < f->table->count; i++) {
        const l2c_param *p = &f->table->params[i];
        if (strcmp(p->name, h->name) == 0 && p->count == h->count) {
            memcpy(f->block + p->offset, h->data, h->count * sizeof(float));
            f->filled++;
        }
    }
    return true;
}

/* The trained tensors of `heads` into a block laid out by the table. */
static l2cdb_status fill_block(const l2c_param_table *table, float *block, const l2c_heads *heads,
                               l2cdb_error *err) {
    fill_ctx f = { .table = table, .block = block };
    l2cdb_status rc = l2c_heads_visit(heads, fill_param, &f, err);
    if (rc == L2CDB_OK && f.filled != table->count) {
        rc = l2c_fail(err, L2CDB_E_INTERNAL, "the heads hold %zu of the %zu trained tensors",
                      f.filled, table->count);
    }
    return rc;
}

static l2cdb_status allocate(l2c_trainer *t, l2cdb_error *err) {
    const size_t n = t->table.floats, B = t->options.batch_max, E = t->table.shape.width;
    const size_t d = t->table.shape.text_width, R = t->rows_max;
    float **blocks[] = { &t->params, &t->grad, &t->moment1, &t->moment2 };
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        *blocks[i] = l2c_alloc_aligned(n, sizeof(float));
        if (*blocks[i] == NULL) {
            return l2c_fail_nomem(err, n * sizeof(float));
        }
        memset(*blocks[i], 0, n * sizeof(float));
    }
    size_t floats = R * d + 2 * R * E + 3 * B * E + R + B + l2c_loss_scratch(B, 0);
    float *m = l2c_alloc_aligned(floats, sizeof *m);
    if (m == NULL) {
        return l2c_fail_nomem(err, floats * sizeof *m);
    }
    t->memory = m;
    t->text = m, m += R * d;
    t->y = m, m += R * E;
    t->dy = m, m += R * E;
    t->dy2 = m, m += B * E;
    t->v = m, m += B * E;
    t->dv = m, m += B * E;
    t->y_norms = m, m += R;
    t->v_norms = m, m += B;
    t->logits = m;
    return l2c_adapter_tape_init(&t->tape, &t->table.shape, R, err);
}

l2cdb_status l2c_trainer_new(l2c_trainer **out, const l2c_heads *start,
                             const l2c_trainer_options *options, l2cdb_error *err) {
    *out = NULL;
    l2cdb_status rc = check_options(options, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_heads_config *c = &start->config;
    if (c->text_width == 0) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no text adapter to train");
    }
    if (options->train_image && !c->has_projection) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no image projection to train");
    }
    l2c_trainer *t = l2c_calloc(1, sizeof *t);
    if (t == NULL) {
        return l2c_fail_nomem(err, sizeof *t);
    }
    t->options = *options;
    t->rows_max = options->captions ? 2 * options->batch_max : options->batch_max;
    const l2c_head_shape shape = { .width = c->width,
                                   .text_width = c->text_width,
                                   .text_hidden = c->text_hidden,
                                   .blocks = c->blocks,
                                   .image_width = options->train_image ? c->image_width : 0,
                                   .image_bias = options->train_image && c->has_projection_bias,
                                   .normalize_input = c->normalize_input };
    rc = l2c_param_table_init(&t->table, &shape, err);
    if (rc == L2CDB_OK) {
        rc = allocate(t, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_heads_new(&t->start, start, NULL, 0, err);
    }
    if (rc == L2CDB_OK) {
        rc = fill_block(&t->table, t->params, start, err);
    }
    if (rc != L2CDB_OK) {
        l2c_trainer_free(t);
        return rc;
    }
    *out = t;
    return L2CDB_OK;
}

void l2c_trainer_free(l2c_trainer *t) {
    if (t == NULL) {
        return;
    }
    l2c_heads_free(t->start);
    l2c_adapter_tape_fini(&t->tape);
    l2c_free(t->params);
    l2c_free(t->grad);
    l2c_free(t->moment1);
    l2c_free(t->moment2);
    l2c_free(t->memory);
    l2c_param_table_fini(&t->table);
    l2c_free(t);
    l2c_gemm_trim();
}

/* ---- A step ---- */

static l2cdb_status check_rows(const float *x, size_t rows, size_t width, const char *what,
                               l2cdb_error *err) {
    size_t bad = rows;
#pragma omp parallel for schedule(static) reduction(min : bad) if (x != NULL)
    for (size_t i = 0; i < rows; i++) {
        if (x != NULL && i < bad && !l2c_vec_finite(x + i * width, width)) {
            bad = i;
        }
    }
    return bad == rows ? L2CDB_OK
                       : l2c_fail(err, L2CDB_E_INVALID, "row %zu of the %s features is not finite",
                                  bad, what);
}

static l2cdb_status check_batch(const l2c_trainer *t, const l2c_train_batch *b, l2cdb_error *err) {
    if (b->rows < 2 || b->rows > t->options.batch_max) {
        return l2c_fail(err, L2CDB_E_INVALID, "a batch of %zu rows, expected 2 to %zu", b->rows,
                        t->options.batch_max);
    }
    if (b->text == NULL || (b->image == NULL && b->positive == NULL)) {
        return l2c_fail(err, L2CDB_E_INVALID,
                        "a batch needs captions, and photos or second captions for them");
    }
    if (b->positive != NULL && !t->options.captions) {
        return l2c_fail(err, L2CDB_E_INVALID, "the trainer was not made for second captions");
    }
    const l2c_heads_config *c = &t->start->config;
    l2cdb_status rc = check_rows(b->text, b->rows, c->text_width, "caption", err);
    if (rc == L2CDB_OK) {
        rc = check_rows(b->positive, b->rows, c->text_width, "second caption", err);
    }
    return rc == L2CDB_OK ? check_rows(b->image, b->rows, c->image_width, "photo", err) : rc;
}

/* Unit vectors of the batch's photos into t->v. */
static l2cdb_status image_forward(l2c_trainer *t, const l2c_train_batch *b, l2cdb_error *err) {
    if (!t->options.train_image) {
        return l2c_heads_image(t->start, t->v, b->image, b->rows, err);
    }
    l2cdb_status rc = l2c_projection_forward(&t->table, t->params, t->v, b->image, b->rows, err);
    l2c_unit_forward(t->v, t->v_norms, b->rows, t->table.shape.width);
    return rc;
}

/* Photo and caption: adds to the gradient of the logit scale and of the projection, and leaves the
 * gradient by the captions' unit vectors in dy[0..B). */
static l2cdb_status image_loss(l2c_trainer *t, const l2c_train_batch *b, double *loss,
                               l2cdb_error *err) {
    const size_t E = t->table.shape.width;
    const size_t scale_at = t->table.params[t->table.logit_scale].offset;
    double dscale;
    l2cdb_status rc = image_forward(t, b, err);
    if (rc == L2CDB_OK) {
        rc = l2c_loss_infonce(loss, t->dv, t->dy, &dscale, t->logits, t->v, t->y, b->group, b->rows,
                              E, (double)t->params[scale_at], err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    t->grad[scale_at] += (float)dscale;
    if (t->options.train_image) {
        l2c_unit_backward(t->dv, t->v, t->v_norms, b->rows, E);
        rc = l2c_projection_backward(&t->table, t->grad, t->dv, b->image, b->rows, err);
    }
    return rc;
}

/* Caption and second caption (rows B..2B of y): adds to dy[0..B) if photos have been there, and
 * leaves the second captions' gradient in dy[B..2B). */
static l2cdb_status caption_loss(l2c_trainer *t, const l2c_train_batch *b, double *loss,
                                 l2cdb_error *err) {
    const size_t B = b->rows, E = t->table.shape.width;
    float *dq = b->image != NULL ? t->dy2 : t->dy;
    l2cdb_status rc = l2c_loss_captions(loss, dq, t->dy + B * E, NULL, t->logits, t->y,
                                        t->y + B * E, NULL, b->group, B, 0, E, CAPTION_SCALE, err);
    if (rc == L2CDB_OK && dq != t->dy) {
        l2c_vec_axpy(t->dy, dq, 1.0f, B * E);
    }
    return rc;
}

/* In as many parts whatever the threads, so that it is the same sum. */
static double gradient_norm(const l2c_trainer *t) {
    enum { PARTS = 64 };
    const l2c_train_kernels *K = l2c_train_kernels_get();
    const size_t n = t->table.floats;
    double parts[PARTS], sum = 0;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < PARTS; i++) {
        parts[i] = K->square_sum(t->grad + n * i / PARTS, n * (i + 1) / PARTS - n * i / PARTS);
    }
    for (size_t i = 0; i < PARTS; i++) {
        sum += parts[i];
    }
    return sqrt(sum);
}

static void update(l2c_trainer *t, double lr, double norm) {
    double clip = t->options.clip;
    double scale = clip > 0 ? fmin(1.0, clip / (norm + 1e-6)) : 1.0;
    l2c_adamw a = { .lr = lr,
                    .beta1 = t->options.beta1,
                    .beta2 = t->options.beta2,
                    .eps = t->options.eps,
                    .step = t->step };
    for (size_t i = 0; i < t->table.count; i++) {
        const l2c_param *p = &t->table.params[i];
        a.weight_decay = p->decay ? t->options.weight_decay : 0;
        l2c_adamw_step(&a, t->params + p->offset, t->moment1 + p->offset, t->moment2 + p->offset,
                       t->grad + p->offset, (float)scale, p->count);
    }
}

static l2cdb_status take_step(l2c_trainer *t, const l2c_train_batch *b, l2c_train_step *out,
                              l2cdb_error *err) {
    l2cdb_status rc = check_batch(t, b, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const size_t B = b->rows, d = t->table.shape.text_width, E = t->table.shape.width;
    const size_t rows = b->positive != NULL ? 2 * B : B;
    const float *text = b->text;
    if (b->positive != NULL) {
        memcpy(t->text, b->text, B * d * sizeof(float));
        memcpy(t->text + B * d, b->positive, B * d * sizeof(float));
        text = t->text;
    }
    rc = l2c_adapter_forward(&t->table, t->params, &t->tape, t->y, text, rows, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_unit_forward(t->y, t->y_norms, rows, E);

    double loss_image = 0, loss_captions = 0;
    // What is learnt from photos only; the adapter's gradient is overwritten.
    const size_t rest = t->table.params[t->table.out + 2].offset;
    memset(t->grad + rest, 0, (t->table.floats - rest) * sizeof(float));
    if (b->image != NULL) {
        rc = image_loss(t, b, &loss_image, err);
    }
    if (rc == L2CDB_OK && b->positive != NULL) {
        rc = caption_loss(t, b, &loss_captions, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_unit_backward(t->dy, t->y, t->y_norms, rows, E);
    rc =
        l2c_adapter_backward(&t->table, t->params, t->grad, &t->tape, t->dy, NULL, NULL, rows, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    double loss = loss_image + loss_captions, norm = gradient_norm(t);
    if (!isfinite(loss) || !isfinite(norm)) {
        l2c_fail(err, L2CDB_E_INVALID, "the loss is %g and the gradient's norm %g at step %llu",
                 loss, norm, (unsigned long long)t->step + 1);
        l2c_hint(err, "lower the learning rate (it is %g)", t->options.lr);
        return L2CDB_E_INVALID;
    }
    double lr =
        l2c_lr_cosine(t->options.lr, t->step, t->options.steps_warmup, t->options.steps_total);
    t->step++;
    update(t, lr, norm);
    float *log_scale = t->params + t->table.params[t->table.logit_scale].offset;
    double unclamped = (double)*log_scale;
    const float most = 4.605170185988092f; // ln 100
    *log_scale = fminf(fmaxf(*log_scale, 0.0f), most);
    if (out != NULL) {
        *out = (l2c_train_step){ .step = t->step,
                                 .loss = loss,
                                 .grad_norm = norm,
                                 .lr = lr,
                                 .logit_scale_unclamped = unclamped,
                                 .logit_scale = (double)*log_scale };
    }
    return L2CDB_OK;
}

l2cdb_status l2c_trainer_step(l2c_trainer *t, const l2c_train_batch *b, l2c_train_step *out,
                              l2cdb_error *err) {
    // Waking a team for a product of microseconds costs more than the product.
    double work =
        (double)b->rows * (double)t->table.shape.text_width * (double)t->table.shape.text_hidden;
    l2c_team team = l2c_team_begin(work < SMALL_PRODUCT ? 1 : t->start->threads);
    l2cdb_status rc = take_step(t, b, out, err);
    l2c_team_end(team);
    return rc;
}

/* ---- Out and in ---- */

static void as_tensor(l2c_head_tensor *out, const l2c_param *p, const float *block) {
    *out = (l2c_head_tensor){ .name = p->name,
                              .shape = { p->rows, p->columns },
                              .data = block + p->offset,
                              .count = p->count };
}

l2cdb_status l2c_trainer_get_heads(const l2c_trainer *t, double share, l2c_heads **out,
                                   l2cdb_error *err) {
    *out = NULL;
    const size_t floats = t->table.floats;
    l2c_head_tensor *list = l2c_calloc(t->table.count, sizeof *list);
    float *block = share != 1 ? l2c_alloc_aligned(floats, sizeof *block) : NULL;
    l2cdb_status rc = L2CDB_OK;
    if (list == NULL || (share != 1 && block == NULL)) {
        rc = l2c_fail_nomem(err, floats * sizeof *block);
    } else if (share != 1) {
        memset(block, 0, floats * sizeof *block);
        rc = fill_block(&t->table, block, t->start, err);
        for (size_t i = 0; i < floats; i++) {
            block[i] += (float)share * (t->params[i] - block[i]);
        }
    }
    if (rc == L2CDB_OK) {
        for (size_t i = 0; i < t->table.count; i++) {
            as_tensor(&list[i], &t->table.params[i], share != 1 ? block : t->params);
        }
        rc = l2c_heads_new(out, t->start, list, t->table.count, err);
    }
    l2c_free(block);
    l2c_free(list);
    return rc;
}

l2cdb_status l2c_trainer_visit_gradient(const l2c_trainer *t, l2c_head_visit_fn visit, void *ctx,
                                        l2cdb_error *err) {
    for (size_t i = 0; i < t->table.count; i++) {
        l2c_head_tensor h;
        as_tensor(&h, &t->table.params[i], t->grad);
        if (!visit(ctx, &h)) {
            return l2c_fail(err, L2CDB_E_CANCELLED, "stopped at %s", h.name);
        }
    }
    return L2CDB_OK;
}

/* The saved state: this header, then parameters, first and second moments, then the hash of all
 * before it. Native byte order: a run is resumed on the machine that began it. */
typedef struct saved_header {
    char magic[8];
    uint64_t floats, step;
} saved_header;

static const char MAGIC[8] = { 'l', '2', 'c', 't', 'r', 'n', '0', '1' };

l2cdb_status l2c_trainer_save(const l2c_trainer *t, l2c_buf *out, l2cdb_error *err) {
    saved_header h = { .floats = t->table.floats, .step = t->step };
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    const size_t bytes = t->table.floats * sizeof(float), start = out->size;
    l2c_buf_reserve(out, sizeof h + 3 * bytes + L2C_HASH_BYTES);
    l2c_buf_append(out, &h, sizeof h);
    l2c_buf_append(out, t->params, bytes);
    l2c_buf_append(out, t->moment1, bytes);
    l2c_buf_append(out, t->moment2, bytes);
    if (!out->failed) {
        l2c_hash sum = l2c_hash_of(out->data + start, out->size - start);
        l2c_buf_append(out, sum.bytes, sizeof sum.bytes);
    }
    return out->failed ? l2c_fail_nomem(err, sizeof h + 3 * bytes) : L2CDB_OK;
}

l2cdb_status l2c_trainer_load(l2c_trainer *t, const void *bytes, size_t size, l2cdb_error *err) {
    const char *p = bytes;
    const size_t block = t->table.floats * sizeof(float);
    saved_header h;
    if (size < sizeof h + L2C_HASH_BYTES) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "the saved training state ends after %zu bytes",
                        size);
    }
    memcpy(&h, p, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof MAGIC) != 0) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "this is no saved training state");
    }
    l2c_hash sum = l2c_hash_of(p, size - L2C_HASH_BYTES);
    if (memcmp(sum.bytes, p + size - L2C_HASH_BYTES, L2C_HASH_BYTES) != 0) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "the saved training state is damaged");
    }
    if (h.floats != t->table.floats || size != sizeof h + 3 * block + L2C_HASH_BYTES) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "the saved training state has %llu parameters, these heads have %zu",
                        (unsigned long long)h.floats, t->table.floats);
    }
    p += sizeof h;
    memcpy(t->params, p, block);
    memcpy(t->moment1, p + block, block);
    memcpy(t->moment2, p + 2 * block, block);
    t->step = h.step;
    return L2CDB_OK;
}
