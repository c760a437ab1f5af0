/* Tuning: the heads learn the user's captions from cached features, and become a new generation.
 *
 * The frozen trunks have left one feature vector a photo and a caption in the store; training reads
 * only those. An epoch visits every training photo once, in a random order, with one of its
 * captions chosen at random, so no batch holds two captions of one photo as each other's negatives.
 * After each epoch the held-out photos are ranked, under the trained heads and half-way between
 * them and the old ones; the last epoch is kept, or the best one if it was clearly better, and at
 * which point of that line is decided by the held-out photos too (l2c_trainer_get_heads says why).
 * The state is saved beside the database between epochs, so that an interrupted run can be resumed;
 * the random numbers depend on seed and epoch alone, so that a resumed run ends where an
 * uninterrupted one would.
 *
 * Source: LLM2CLIP stage 2 on cached features (spec 6.2, 6.3), with caption contrast (6.1). */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "encoders/trainer.h"
#include "engine/base/file.h"
#include "engine/engine.h"
#include "engine/reindex.h"
#include "engine/tune_pairs.h"
#include "engine/tune_report.h"

enum { PHOTOS_MIN = 4, PATIENCE = 10, EPOCHS = 20, EPOCHS_MAX = 10000 };

/* Saving takes at most this share of the time between two saves. */
static const double SAVE_SHARE = 0.05;

typedef struct tuning {
    l2cdb *db;
    const l2cdb_tune_options *options;
    l2cdb_tune_report *report;
    l2c_view *view;
    const l2c_heads *start;
    l2c_pair_set pairs;
    l2c_trainer *trainer;
    bool use_images, use_captions;
    size_t *train; /* photos to learn from, ascending */
    size_t *order; /* the same, shuffled anew each epoch */
    size_t train_count;
    size_t steps_per_epoch, epochs;
    float *text, *image, *positive; /* a batch */
    l2c_tune_epoch *curve;          /* [epochs] */
    size_t epoch;                   /* epochs done */
    double best_score;              /* below 0: none yet */
    size_t best_epoch;
    double best_blend;
    double last_score, last_blend; /* of the epoch that was judged last */
    l2c_buf best;                  /* trainer state of the best epoch */
    char *state_path;              /* NULL: nothing is saved */
    double saved_at, save_s;
    size_t saved_epoch;
    l2c_meter meter;
} tuning;

void l2cdb_tune_options_init(l2cdb_tune_options *o) {
    *o = (l2cdb_tune_options){ .seed = 1, .val_share = 0.1, .early_stop = true };
}

/* ---- Random numbers: splitmix64 (Steele, Lea & Flood 2014), the same on every machine ---- */

static uint64_t draw(uint64_t *state, uint64_t below) {
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (x ^ (x >> 31)) % below;
}

/* ---- The saved state: this header, the curve, the trainer, the best trainer, a hash of it all
 * ---- */

typedef struct state_header {
    char magic[8];
    l2c_hash plan; /* of what must be the same in a resumed run */
    uint64_t epoch, best_epoch;
    double best_score, best_blend, last_score, last_blend, loss_first;
    uint64_t trainer_bytes, best_bytes;
} state_header;

static const char MAGIC[8] = { 'l', '2', 'c', 't', 'u', 'n', '0', '1' };

static l2c_hash plan_of(const tuning *t) {
    char text[512];
    l2c_hash heads = l2c_heads_fingerprint(t->start);
    char hex[L2C_HASH_HEX_BYTES], pairs_hex[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(&heads, hex);
    l2c_hash_hex(&t->pairs.content, pairs_hex);
    const l2cdb_tune_options *o = t->options;
    int n = snprintf(text, sizeof text, "%s %s %zu %zu %zu %zu %g %g %g %" PRIu64 " %d %g %d", hex,
                     pairs_hex, t->pairs.photos, t->pairs.captions, t->epochs, t->steps_per_epoch,
                     o->lr, o->weight_decay, o->warmup, o->seed, o->tune_image_head, o->val_share,
                     (int)o->objective);
    return l2c_hash_of(text, (size_t)n);
}

static l2cdb_status write_state(tuning *t, l2cdb_error *err) {
    state_header h = { .plan = plan_of(t),
                       .epoch = t->epoch,
                       .best_epoch = t->best_epoch,
                       .best_score = t->best_score,
                       .best_blend = t->best_blend,
                       .last_score = t->last_score,
                       .last_blend = t->last_blend,
                       .loss_first = t->report->loss_first };
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_append(&b, &h, sizeof h);
    l2c_buf_append(&b, t->curve, t->epochs * sizeof *t->curve);
    size_t before = b.size;
    l2cdb_status rc = l2c_trainer_save(t->trainer, &b, err);
    h.trainer_bytes = b.size - before;
    h.best_bytes = t->best.size;
    l2c_buf_append(&b, t->best.data, t->best.size);
    if (rc == L2CDB_OK && !b.failed) {
        memcpy(b.data, &h, sizeof h);
        l2c_hash sum = l2c_hash_of(b.data, b.size);
        l2c_buf_append(&b, sum.bytes, sizeof sum.bytes);
    }
    if (rc == L2CDB_OK) {
        rc = b.failed ? l2c_fail_nomem(err, b.size)
                      : l2c_file_replace(t->state_path, b.data, b.size, err);
    }
    l2c_buf_fini(&b);
    return rc;
}

/* A full disk must not cost the run: without a saved state it only cannot be resumed. */
static void save_state(tuning *t) {
    double start = l2c_now();
    if (t->state_path == NULL || (start - t->saved_at) * SAVE_SHARE < t->save_s) {
        return;
    }
    l2cdb_error err;
    if (write_state(t, &err) == L2CDB_OK) {
        t->saved_epoch = t->epoch;
    } else {
        l2c_log(L2CDB_LOG_WARN, "tuning state not saved epoch=%zu: %s", t->epoch, err.message);
    }
    t->saved_at = l2c_now();
    t->save_s = t->saved_at - start;
}

static l2cdb_status read_state(tuning *t, const l2c_map *m, l2cdb_error *err) {
    state_header h;
    size_t curve_bytes = t->epochs * sizeof *t->curve;
    if (m->size < sizeof h + L2C_HASH_BYTES) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s ends after %zu bytes", t->state_path, m->size);
    }
    l2c_hash sum = l2c_hash_of(m->data, m->size - L2C_HASH_BYTES), plan = plan_of(t);
    memcpy(&h, m->data, sizeof h);
    if (memcmp(h.magic, MAGIC, sizeof MAGIC) != 0 ||
        memcmp(sum.bytes, m->data + m->size - L2C_HASH_BYTES, L2C_HASH_BYTES) != 0) {
        return l2c_fail(err, L2CDB_E_CORRUPT, "%s is damaged", t->state_path);
    }
    if (memcmp(&h.plan, &plan, sizeof plan) != 0) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "%s was left by a run with other options or other captions", t->state_path);
    }
    const uint8_t *p = m->data + sizeof h;
    memcpy(t->curve, p, curve_bytes);
    p += curve_bytes;
    l2cdb_status rc = l2c_trainer_load(t->trainer, p, (size_t)h.trainer_bytes, err);
    if (rc == L2CDB_OK) {
        l2c_buf_append(&t->best, p + h.trainer_bytes, (size_t)h.best_bytes);
        t->epoch = t->saved_epoch = (size_t)h.epoch;
        t->best_epoch = (size_t)h.best_epoch;
        t->best_score = h.best_score;
        t->best_blend = h.best_blend;
        t->last_score = h.last_score;
        t->last_blend = h.last_blend;
        t->report->loss_first = h.loss_first;
    }
    return rc;
}

static l2cdb_status resume(tuning *t, l2cdb_error *err) {
    l2c_map m;
    if (t->state_path == NULL || !l2c_path_exists(t->state_path)) {
        l2c_fail(err, L2CDB_E_NOTFOUND, "there is no interrupted tuning run to resume");
        return l2c_hint(err, "leave --resume out to begin one");
    }
    l2cdb_status rc = l2c_map_open(&m, t->state_path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = read_state(t, &m, err);
    l2c_map_close(&m);
    if (rc != L2CDB_OK) {
        l2c_hint(err, "leave --resume out to begin anew");
    }
    return rc;
}

/* ---- Preparing ---- */

/* Before captions are encoded for minutes. NaN is outside of every range. */
static l2cdb_status check_options(const l2cdb_tune_options *o, l2cdb_error *err) {
    if (!(o->lr >= 0 && o->lr < 1)) {
        return l2c_fail(err, L2CDB_E_INVALID, "learning rate is %g, expected above 0 and below 1",
                        o->lr);
    }
    if (!((o->weight_decay >= 0 && o->weight_decay < 1) || o->weight_decay == -1)) {
        return l2c_fail(err, L2CDB_E_INVALID, "weight decay is %g, expected 0 to below 1",
                        o->weight_decay);
    }
    if (!(o->warmup >= 0 && o->warmup <= 1)) {
        return l2c_fail(err, L2CDB_E_INVALID, "%g of the steps to warm up in, expected 0 to 1",
                        o->warmup);
    }
    if (!(o->val_share >= 0 && o->val_share <= 0.9)) {
        return l2c_fail(err, L2CDB_E_INVALID, "%g of the photos to hold out, expected 0 to 0.9",
                        o->val_share);
    }
    if (o->epochs > EPOCHS_MAX) {
        return l2c_fail(err, L2CDB_E_INVALID, "%zu epochs, expected 1 to %d", o->epochs,
                        EPOCHS_MAX);
    }
    return L2CDB_OK;
}

/* Captions of the pairs file become captions of the database, so that their features are computed
 * once and kept. */
static l2cdb_status take_pairs_file(tuning *t, l2cdb_error *err) {
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    in.captions_file = t->options->pairs_file;
    in.captions_only = true;
    in.progress = t->options->progress;
    in.ctx = t->options->ctx;
    l2cdb_ingest_report r;
    l2cdb_status rc = l2cdb_ingest(t->db, NULL, 0, &in, &r, err);
    if (rc == L2CDB_OK) {
        l2c_log(L2CDB_LOG_INFO, "pairs read added=%" PRIu64 " unmatched=%" PRIu64, r.captions_added,
                r.captions_unmatched);
        // Caption contrast alone groups by name and needs no photo (load_pairs).
        t->report->pairs_unmatched = t->use_images ? r.captions_unmatched : 0;
    }
    return rc;
}

static size_t batch_for(size_t photos, size_t wanted) {
    if (wanted == 0) {
        // Many negatives help, but a small set needs steps too: about four an epoch.
        wanted = 32;
        while (wanted < 1024 && wanted * 6 <= photos) {
            wanted *= 2;
        }
    }
    return wanted < photos ? wanted : photos;
}

static l2cdb_status check_photos(const tuning *t, l2cdb_error *err) {
    if (t->train_count >= PHOTOS_MIN) {
        return L2CDB_OK;
    }
    const uint64_t unmatched = t->report->pairs_unmatched;
    char lost[96] = "";
    if (unmatched > 0) {
        snprintf(lost, sizeof lost, "; %" PRIu64 " caption%s of the file named no known photo",
                 unmatched, unmatched == 1 ? "" : "s");
    }
    l2c_fail(err, L2CDB_E_INVALID, "%zu photo%s with %s to train on, expected at least %d%s",
             t->train_count, t->train_count == 1 ? "" : "s",
             t->use_images ? "captions" : "two captions or more", PHOTOS_MIN, lost);
    return l2c_hint(err, "add captions with `l2cdb ingest --captions FILE` or --pairs FILE, of "
                         "photos that are in the database");
}

static l2cdb_status load_pairs(tuning *t, l2cdb_error *err) {
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(t->db, t->view, &model, err);
    if (rc == L2CDB_OK) {
        rc = l2c_view_heads(t->db, t->view, &t->start, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(model);
    // By this name ingest has stored where the captions of the file come from.
    const char *source =
        t->options->pairs_file != NULL ? l2c_path_base(t->options->pairs_file) : NULL;
    rc = l2c_pair_set_load(&t->pairs, t->db, &t->view->generation, info->image_width,
                           info->text_width, source, t->options->val_share,
                           t->db->options.memory_max / 2, err);
    if (rc == L2CDB_OK && !t->use_images && t->options->pairs_file != NULL) {
        l2c_parallel parallel;
        rc = l2c_parallel_read(&parallel, t->db, t->view, t->options->pairs_file,
                               t->options->progress, t->options->ctx, err);
        if (rc == L2CDB_OK) {
            rc = l2c_pair_set_append(&t->pairs, &parallel, err);
            l2c_parallel_fini(&parallel);
        }
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    t->train = l2c_calloc(t->pairs.photos, sizeof *t->train);
    t->order = l2c_calloc(t->pairs.photos, sizeof *t->order);
    if (t->train == NULL || t->order == NULL) {
        return l2c_fail_nomem(err, t->pairs.photos * sizeof *t->train);
    }
    for (size_t i = 0; i < t->pairs.photos; i++) {
        // Caption contrast alone can learn only from photos with two captions.
        bool enough = t->use_images || t->pairs.first[i + 1] - t->pairs.first[i] >= 2;
        if (t->pairs.parts[i] == L2C_PART_TRAIN && enough) {
            t->train[t->train_count++] = i;
            t->report->pairs += t->pairs.first[i + 1] - t->pairs.first[i];
        }
    }
    size_t captions;
    t->report->photos = t->train_count;
    t->report->photos_val = l2c_pair_set_count(&t->pairs, L2C_PART_HELD_OUT, &captions);
    t->report->pairs_val = captions;
    return check_photos(t, err);
}

static l2cdb_status make_trainer(tuning *t, l2cdb_error *err) {
    const l2cdb_tune_options *o = t->options;
    size_t batch = batch_for(t->train_count, o->batch);
    if (batch < 2) {
        return l2c_fail(err, L2CDB_E_INVALID, "a batch of %zu pairs, expected at least 2", batch);
    }
    t->epochs = o->epochs > 0 ? o->epochs : EPOCHS;
    // Equal steps instead of a small last one; each has a negative at least.
    t->steps_per_epoch = (t->train_count + batch - 1) / batch;
    if (t->steps_per_epoch > t->train_count / 2) {
        t->steps_per_epoch = t->train_count / 2;
    }
    size_t rows = (t->train_count + t->steps_per_epoch - 1) / t->steps_per_epoch;
    l2c_trainer_options to;
    l2c_trainer_options_init(&to);
    to.lr = o->lr > 0 ? o->lr : 1e-4;
    to.weight_decay = o->weight_decay > 0 ? o->weight_decay : o->weight_decay < 0 ? 0 : 0.05;
    to.steps_total = (uint64_t)t->steps_per_epoch * t->epochs;
    to.steps_warmup = (uint64_t)(o->warmup * (double)to.steps_total);
    to.train_image = o->tune_image_head && t->use_images;
    to.captions = t->use_captions;
    to.batch_max = rows;
    l2cdb_status rc = l2c_trainer_new(&t->trainer, t->start, &to, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    t->curve = l2c_calloc(t->epochs, sizeof *t->curve);
    t->text = l2c_alloc_aligned(rows * t->pairs.text_width, sizeof *t->text);
    t->image = l2c_alloc_aligned(rows * t->pairs.image_width, sizeof *t->image);
    t->positive = l2c_alloc_aligned(rows * t->pairs.text_width, sizeof *t->positive);
    if (t->curve == NULL || t->text == NULL || t->image == NULL || t->positive == NULL) {
        return l2c_fail_nomem(err, rows * t->pairs.text_width * sizeof *t->text);
    }
    return L2CDB_OK;
}

/* ---- Training ---- */

/* From ascending order, so that the result depends on seed and epoch alone. */
static void shuffle(tuning *t, uint64_t *random) {
    memcpy(t->order, t->train, t->train_count * sizeof *t->order);
    for (size_t i = t->train_count; i > 1; i--) {
        size_t j = (size_t)draw(random, i), kept = t->order[i - 1];
        t->order[i - 1] = t->order[j];
        t->order[j] = kept;
    }
}

/* One caption of a photo at random, and another one if it has any and captions are compared. */
static l2cdb_status read_row(tuning *t, size_t row, size_t photo, uint64_t *random,
                             l2cdb_error *err) {
    size_t first = t->pairs.first[photo], n = t->pairs.first[photo + 1] - first;
    size_t one = (size_t)draw(random, n);
    l2cdb_status rc =
        l2c_pair_set_text(&t->pairs, first + one, t->text + row * t->pairs.text_width, err);
    if (rc == L2CDB_OK && t->use_captions) {
        // A photo with a single caption is its own second: it only spreads the negatives.
        size_t other = n > 1 ? (one + 1 + (size_t)draw(random, n - 1)) % n : one;
        rc = l2c_pair_set_text(&t->pairs, first + other, t->positive + row * t->pairs.text_width,
                               err);
    }
    if (rc == L2CDB_OK && t->use_images) {
        rc = l2c_pair_set_image(&t->pairs, photo, t->image + row * t->pairs.image_width, err);
    }
    return rc;
}

static l2cdb_status train_epoch(tuning *t, l2cdb_error *err) {
    uint64_t random = t->options->seed * 0x9E3779B97F4A7C15u + t->epoch;
    shuffle(t, &random);
    double loss = 0, lr = 0;
    size_t done = 0;
    for (size_t s = 0; s < t->steps_per_epoch; s++) {
        size_t end = t->train_count * (s + 1) / t->steps_per_epoch, rows = end - done;
        l2cdb_status rc = l2c_db_poll(t->db, err);
        for (size_t r = 0; r < rows && rc == L2CDB_OK; r++) {
            rc = read_row(t, r, t->order[done + r], &random, err);
        }
        l2c_train_step step;
        const l2c_train_batch batch = { .rows = rows,
                                        .text = t->text,
                                        .image = t->use_images ? t->image : NULL,
                                        .positive = t->use_captions ? t->positive : NULL };
        if (rc == L2CDB_OK) {
            rc = l2c_trainer_step(t->trainer, &batch, &step, err);
        }
        if (rc != L2CDB_OK) {
            return rc;
        }
        done = end;
        loss += step.loss / (double)t->steps_per_epoch;
        lr = step.lr;
        t->report->steps = step.step;
        if (step.step == 1) {
            t->report->loss_first = step.loss;
        }
        char detail[96];
        snprintf(detail, sizeof detail, "epoch %zu/%zu  loss %.4f  lr %.2g", t->epoch + 1,
                 t->epochs, step.loss, step.lr);
        if (!l2c_meter_tick(&t->meter, t->epoch * t->train_count + done, detail)) {
            return l2c_fail(err, L2CDB_E_CANCELLED, "tuning was stopped in epoch %zu of %zu",
                            t->epoch + 1, t->epochs);
        }
    }
    t->curve[t->epoch] = (l2c_tune_epoch){ .loss = loss, .lr = lr, .t2i_r10 = -1, .i2t_r10 = -1 };
    return L2CDB_OK;
}

static l2cdb_status rank(const tuning *t, l2c_part part, const l2c_heads *heads,
                         l2cdb_eval_report *out, l2cdb_error *err) {
    return l2c_pair_set_eval(&t->pairs, part, heads, t->view->generation.width, out,
                             t->db->options.threads, &t->db->interrupted, err);
}

/* The sum of all six recalls, 0 to 600: one alone jumps with every photo. */
static double score_of(const l2cdb_eval_report *e) {
    return e->t2i.r1 + e->t2i.r5 + e->t2i.r10 + e->i2t.r1 + e->i2t.r5 + e->i2t.r10;
}

/* By how much another point of the line must beat the half-way one, which on new photos is nearly
 * always the best for pairs like those that the model was made with: the noise of the score on so
 * few photos. Pairs of another kind get far past it. */
static double noise_of(const tuning *t) {
    return 60 / sqrt((double)t->report->photos_val + 1);
}

/* The held-out photos under the heads at `blend` of the present state. */
static l2cdb_status rank_blend(tuning *t, double blend, l2cdb_eval_report *out, l2cdb_error *err) {
    l2c_heads *heads;
    l2cdb_status rc = l2c_trainer_get_heads(t->trainer, blend, &heads, err);
    if (rc == L2CDB_OK) {
        rc = rank(t, L2C_PART_HELD_OUT, heads, out, err);
        l2c_heads_free(heads);
    }
    return rc;
}

static l2cdb_status judge_epoch(tuning *t, l2cdb_error *err) {
    l2c_tune_epoch *e = &t->curve[t->epoch];
    double score = (double)t->epoch,
           blend = 0.5; // with nothing held out the last epoch is the best
    if (t->report->photos_val > 0) {
        l2cdb_eval_report whole, half;
        l2cdb_status rc = rank_blend(t, 1, &whole, err);
        if (rc == L2CDB_OK) {
            rc = rank_blend(t, 0.5, &half, err);
        }
        if (rc != L2CDB_OK) {
            return rc;
        }
        blend = score_of(&whole) - noise_of(t) > score_of(&half) ? 1 : 0.5;
        const l2cdb_eval_report *better = blend < 1 ? &half : &whole;
        score = score_of(better) - (blend < 1 ? 0 : noise_of(t));
        e->t2i_r10 = better->t2i.r10;
        e->i2t_r10 = better->i2t.r10;
    }
    t->last_score = score;
    t->last_blend = blend;
    if (score > t->best_score) {
        t->best_score = score;
        t->best_epoch = t->epoch + 1;
        t->best_blend = blend;
        l2c_buf_clear(&t->best);
        return l2c_trainer_save(t->trainer, &t->best, err);
    }
    return L2CDB_OK;
}

/* The trainer at the end of the run, or at the best epoch if that was better by more than noise: a
 * rate that has come down to 0 is worth more than luck with few photos. */
static l2cdb_status choose_epoch(tuning *t, l2cdb_error *err) {
    if (t->last_score + noise_of(t) >= t->best_score) {
        t->best_score = t->last_score;
        t->best_blend = t->last_blend;
        return L2CDB_OK;
    }
    return l2c_trainer_load(t->trainer, t->best.data, t->best.size, err);
}

/* Looks at the points of the line that the epochs left out. */
static l2cdb_status choose_blend(tuning *t, l2cdb_error *err) {
    static const double others[] = { 0.25, 0.75 };
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < 2 && rc == L2CDB_OK && t->report->photos_val > 0; i++) {
        l2cdb_eval_report r;
        rc = rank_blend(t, others[i], &r, err);
        if (rc == L2CDB_OK && score_of(&r) - noise_of(t) > t->best_score) {
            t->best_score = score_of(&r) - noise_of(t);
            t->best_blend = others[i];
        }
    }
    t->report->blend = t->best_blend;
    return rc;
}

static l2cdb_status train(tuning *t, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    l2c_meter_start(&t->meter, t->options->progress, t->options->ctx, "train",
                    (uint64_t)t->train_count * t->epochs);
    double start = l2c_now();
    size_t epochs_before = t->epoch;
    while (rc == L2CDB_OK && t->epoch < t->epochs) {
        rc = train_epoch(t, err);
        if (rc == L2CDB_OK) {
            rc = judge_epoch(t, err);
        }
        if (rc == L2CDB_OK) {
            t->epoch++;
            save_state(t);
        }
        if (t->options->early_stop && t->report->photos_val > 0 &&
            t->epoch >= t->best_epoch + PATIENCE) {
            break;
        }
    }
    double seconds = l2c_now() - start;
    t->report->seconds = seconds;
    t->report->pairs_per_s =
        seconds > 0 ? (double)((t->epoch - epochs_before) * t->train_count) / seconds : 0;
    if (t->epoch > 0) {
        t->report->loss_last = t->curve[t->epoch - 1].loss;
    }
    if (rc == L2CDB_E_CANCELLED && t->saved_epoch > 0) {
        l2c_hint(err, "`l2cdb tune --resume` goes on after epoch %zu", t->saved_epoch);
    }
    return rc;
}

/* ---- The new generation ---- */

typedef struct put_ctx {
    l2c_store *store;
    int64_t generation;
    l2cdb_status rc;
    l2cdb_error *err;
} put_ctx;

static bool put_head(void *ctx, const l2c_head_tensor *h) {
    put_ctx *p = ctx;
    p->rc = l2c_heads_put(p->store, p->generation, h->name, h->shape, h->data, h->count, p->err);
    return p->rc == L2CDB_OK;
}

/* Generation and heads in one transaction: after a crash there are both or neither. */
static l2cdb_status store_generation(tuning *t, const l2c_heads *heads, l2cdb_error *err) {
    l2c_store *store = t->db->store;
    l2c_generation g = t->view->generation;
    g.parent = g.id;
    g.id = 0;
    g.state = L2C_GENERATION_FILLING;
    g.heads = l2c_heads_fingerprint(heads);
    // The frozen image head makes the vectors that are there already.
    bool image_changed = t->options->tune_image_head && t->use_images;
    g.space[L2C_KIND_IMAGE] = image_changed ? 0 : g.space[L2C_KIND_IMAGE];
    g.space[L2C_KIND_CAPTION] = 0;
    g.created_at = g.activated_at = 0;
    g.report[0] = '\0';
    l2cdb_status rc = l2c_store_begin(store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_generations_put(store, &g, err);
    put_ctx p = { .store = store, .generation = g.id, .err = err };
    if (rc == L2CDB_OK) {
        l2cdb_error visit_err;
        rc = l2c_heads_visit(heads, put_head, &p, &visit_err);
        if (p.rc != L2CDB_OK) { // the visit ended because storing failed, and err says why
            rc = p.rc;
        } else if (rc != L2CDB_OK && err != NULL) {
            *err = visit_err;
        }
    }
    if (rc == L2CDB_OK) {
        t->report->generation = g.id;
        l2c_buf json;
        l2c_buf_init(&json);
        l2c_tune_report_json(&json, t->report);
        snprintf(g.report, sizeof g.report, "%s", json.data != NULL ? json.data : "");
        l2c_buf_fini(&json);
        rc = l2c_generations_put(store, &g, err);
    }
    if (rc != L2CDB_OK) {
        l2c_store_rollback(store);
        return rc;
    }
    return l2c_store_commit(store, err);
}

/* Found no worse on the photos held out; and the loss did not rise by more than one batch differs
 * from another, as with a rate too high, which few photos do not show. */
static bool has_learnt(const l2cdb_tune_report *r) {
    double before = r->before.t2i.r10 + r->before.i2t.r10;
    double after = r->after.t2i.r10 + r->after.i2t.r10;
    return after >= before && r->loss_last <= 1.1 * r->loss_first + 0.1;
}

static l2cdb_status finish(tuning *t, l2cdb_error *err) {
    l2c_heads *heads = NULL;
    l2cdb_status rc = choose_epoch(t, err);
    if (rc == L2CDB_OK) {
        rc = choose_blend(t, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_trainer_get_heads(t->trainer, t->best_blend, &heads, err);
    }
    if (rc == L2CDB_OK) {
        rc = rank(t, L2C_PART_HELD_OUT, heads, &t->report->after, err);
    }
    if (rc == L2CDB_OK) {
        rc = rank(t, L2C_PART_GENERAL, heads, &t->report->general_after, err);
    }
    bool promote = !t->options->no_promote && (has_learnt(t->report) || t->options->force);
    t->report->promoted = promote;
    if (rc == L2CDB_OK) {
        rc = store_generation(t, heads, err);
    }
    l2c_heads_free(heads);
    if (rc == L2CDB_OK && t->state_path != NULL) {
        unlink(t->state_path);
    }
    if (rc == L2CDB_OK && t->options->report_dir != NULL) {
        rc = l2c_tune_report_write(t->options->report_dir, t->report, t->curve, t->epoch, err);
    }
    if (rc == L2CDB_OK && promote) {
        rc = l2c_reindex_to(t->db, t->report->generation, t->options->progress, t->options->ctx,
                            err);
    }
    return rc;
}

static l2cdb_status tune(tuning *t, l2cdb_error *err) {
    l2cdb_status rc = check_options(t->options, err);
    if (rc == L2CDB_OK && t->options->pairs_file != NULL) {
        rc = take_pairs_file(t, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_captions_encode(t->db, t->options->progress, t->options->ctx, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_view_get(t->db, &t->view, err);
    }
    if (rc == L2CDB_OK && t->view->generation.id == 0) {
        l2c_fail(err, L2CDB_E_INVALID, "%s holds no photos yet", t->db->path);
        rc = l2c_hint(err, "`l2cdb ingest DIR` puts some in");
    }
    if (rc == L2CDB_OK) {
        rc = load_pairs(t, err);
    }
    if (rc == L2CDB_OK) {
        rc = make_trainer(t, err);
    }
    if (rc == L2CDB_OK && strcmp(t->db->path, ":memory:") != 0) {
        size_t n = strlen(t->db->path) + 8;
        t->state_path = l2c_alloc(n, 1);
        rc = t->state_path == NULL ? l2c_fail_nomem(err, n) : L2CDB_OK;
        if (rc == L2CDB_OK) {
            snprintf(t->state_path, n, "%s-tune", l2c_store_path(t->db->store));
        }
    }
    if (rc == L2CDB_OK && t->options->resume) {
        rc = resume(t, err);
    }
    if (rc == L2CDB_OK) {
        rc = rank(t, L2C_PART_HELD_OUT, t->start, &t->report->before, err);
    }
    if (rc == L2CDB_OK) {
        rc = rank(t, L2C_PART_GENERAL, t->start, &t->report->general_before, err);
    }
    if (rc == L2CDB_OK) {
        rc = train(t, err);
    }
    return rc == L2CDB_OK ? finish(t, err) : rc;
}

l2cdb_status l2cdb_tune(l2cdb *db, const l2cdb_tune_options *options, l2cdb_tune_report *out,
                        l2cdb_error *err) {
    l2cdb_tune_report ignored;
    l2cdb_error_clear(err);
    tuning t = { .db = db,
                 .options = options,
                 .report = out != NULL ? out : &ignored,
                 .use_images = options->objective != L2CDB_OBJECTIVE_CAPTION,
                 .use_captions = options->objective != L2CDB_OBJECTIVE_IMAGE,
                 .best_score = -1 };
    *t.report = (l2cdb_tune_report){ 0 };
    l2cdb_status rc = l2c_db_writable(db, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_db_enter(db);
    rc = tune(&t, err);
    l2c_db_leave(db);
    l2c_trainer_free(t.trainer);
    l2c_pair_set_fini(&t.pairs);
    l2c_view_release(db, t.view);
    l2c_buf_fini(&t.best);
    l2c_free(t.train);
    l2c_free(t.order);
    l2c_free(t.text);
    l2c_free(t.image);
    l2c_free(t.positive);
    l2c_free(t.curve);
    l2c_free(t.state_path);
    return rc;
}
