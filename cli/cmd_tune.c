/* `l2cdb tune`: teach the text adapter this database's words. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/recall_out.h"
#include "cli/session.h"

static struct {
    const char *pairs, *heads, *objective, *report_dir;
    size_t epochs, batch;
    double lr, warmup, weight_decay, val;
    uint64_t seed, memory;
    bool early_stop, resume, force, promote, json;
} o = {
    // What no value given on the line can be.
    .epochs = SIZE_MAX, .batch = SIZE_MAX, .lr = NAN,          .warmup = NAN,   .weight_decay = NAN,
    .val = NAN,         .seed = 1,         .early_stop = true, .promote = true,
};

static const char *const heads[] = { "text", "text+image", NULL };
static const char *const objectives[] = { "image", "caption", "both", NULL };

static const l2c_option options[] = {
    { 'p', "pairs", L2C_OPTION_STRING, &o.pairs, "FILE",
      "captions beside those in the database: CSV or JSONL\npath,caption or id,caption, or COCO "
      "json",
      NULL },
    { 0, "epochs", L2C_OPTION_SIZE, &o.epochs, "N", "passes over the photos (default 20)", NULL },
    { 0, "batch", L2C_OPTION_SIZE, &o.batch, "N", "pairs a step (default: by their number)", NULL },
    { 0, "lr", L2C_OPTION_REAL, &o.lr, "RATE", "peak learning rate (default: chosen)", NULL },
    { 0, "warmup", L2C_OPTION_REAL, &o.warmup, "SHARE",
      "share of the steps in which the rate rises", NULL },
    { 0, "wd", L2C_OPTION_REAL, &o.weight_decay, "W", "weight decay on matrices", NULL },
    { 0, "seed", L2C_OPTION_UINT64, &o.seed, "N", "same seed and threads, same result (default 1)",
      NULL },
    { 0, "heads", L2C_OPTION_CHOICE, &o.heads, "WHICH",
      "text (default), or text+image: the image projection too", heads },
    { 0, "objective", L2C_OPTION_CHOICE, &o.objective, "WHAT",
      "image (default): photo and caption attract; caption: two\ncaptions of a photo do, no photo "
      "needed; both",
      objectives },
    { 0, "val", L2C_OPTION_REAL, &o.val, "SHARE", "photos held out for measuring (default 0.1)",
      NULL },
    { 0, "early-stop", L2C_OPTION_ON, &o.early_stop, NULL,
      "stop when held-out recall no longer rises (default)", NULL },
    { 0, "no-early-stop", L2C_OPTION_OFF, &o.early_stop, NULL, "train all epochs", NULL },
    { 0, "resume", L2C_OPTION_ON, &o.resume, NULL, "continue an interrupted run", NULL },
    { 0, "force", L2C_OPTION_ON, &o.force, NULL,
      "switch to the result although held-out R@10 fell or the loss\nrose", NULL },
    { 0, "no-promote", L2C_OPTION_OFF, &o.promote, NULL,
      "leave the result inactive; `reindex` switches to it", NULL },
    { 0, "memory", L2C_OPTION_BYTES, &o.memory, "SIZE",
      "memory to use, such as 4G (default: half of the machine)", NULL },
    { 0, "report", L2C_OPTION_STRING, &o.report_dir, "DIR",
      "write figures (JSON) and curves (SVG) there", NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "print JSON", NULL },
    { 0 },
};

static void fill_options(l2cdb_tune_options *t, l2c_progress *progress) {
    l2cdb_tune_options_init(t);
    t->pairs_file = o.pairs;
    t->epochs = o.epochs != SIZE_MAX ? o.epochs : t->epochs;
    t->batch = o.batch != SIZE_MAX ? o.batch : t->batch;
    t->seed = o.seed;
    t->lr = isnan(o.lr) ? t->lr : o.lr;
    t->warmup = isnan(o.warmup) ? t->warmup : o.warmup;
    t->val_share = isnan(o.val) ? t->val_share : o.val;
    if (!isnan(o.weight_decay)) {
        t->weight_decay = o.weight_decay != 0 ? o.weight_decay : -1; // the door's "none"
    }
    t->tune_image_head = o.heads != NULL && strcmp(o.heads, "text+image") == 0;
    t->early_stop = o.early_stop;
    t->resume = o.resume;
    t->force = o.force;
    t->no_promote = !o.promote;
    t->report_dir = o.report_dir;
    if (o.objective != NULL) {
        t->objective = strcmp(o.objective, "caption") == 0 ? L2CDB_OBJECTIVE_CAPTION
                       : strcmp(o.objective, "both") == 0  ? L2CDB_OBJECTIVE_BOTH
                                                           : L2CDB_OBJECTIVE_IMAGE;
    }
    t->progress = l2c_progress_show;
    t->ctx = progress;
}

static void json_pair(l2c_json_out *j, const char *key, const l2cdb_eval_report *before,
                      const l2cdb_eval_report *after) {
    l2c_json_out_key(j, key);
    l2c_json_out_open(j, '{');
    l2c_json_out_key(j, "before");
    l2c_recall_out_json(j, before);
    l2c_json_out_key(j, "after");
    l2c_recall_out_json(j, after);
    l2c_json_out_close(j, '}');
}

static void print_json(const l2cdb_tune_report *t) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    l2c_json_out_key(&j, "generation");
    l2c_json_out_int(&j, t->generation);
    l2c_json_out_key(&j, "promoted");
    l2c_json_out_bool(&j, t->promoted);
    l2c_json_out_key(&j, "photos");
    l2c_json_out_uint(&j, t->photos);
    l2c_json_out_key(&j, "pairs");
    l2c_json_out_uint(&j, t->pairs);
    l2c_json_out_key(&j, "photos_val");
    l2c_json_out_uint(&j, t->photos_val);
    l2c_json_out_key(&j, "pairs_val");
    l2c_json_out_uint(&j, t->pairs_val);
    l2c_json_out_key(&j, "pairs_unmatched");
    l2c_json_out_uint(&j, t->pairs_unmatched);
    l2c_json_out_key(&j, "steps");
    l2c_json_out_uint(&j, t->steps);
    l2c_json_out_key(&j, "loss_first");
    l2c_json_out_double(&j, t->loss_first, 6);
    l2c_json_out_key(&j, "loss_last");
    l2c_json_out_double(&j, t->loss_last, 6);
    l2c_json_out_key(&j, "seconds");
    l2c_json_out_double(&j, t->seconds, 3);
    l2c_json_out_key(&j, "pairs_per_s");
    l2c_json_out_double(&j, t->pairs_per_s, 1);
    l2c_json_out_key(&j, "blend");
    l2c_json_out_double(&j, t->blend, 2);
    json_pair(&j, "held_out", &t->before, &t->after);
    if (t->general_before.images > 0) {
        json_pair(&j, "general", &t->general_before, &t->general_after);
    }
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static void print_recall(const l2cdb_tune_report *t) {
    char held[32], others[32];
    bool measured = t->before.images > 0, general = t->general_before.images > 0;
    if (!measured && !general) {
        printf("%s, so nothing was measured\n",
               o.val == 0 ? "nothing was held out" : "too few photos to hold some out");
        return;
    }
    printf("measured, in per cent, on ");
    if (measured) {
        printf("%s photos held out", l2c_progress_count(held, t->before.images));
    }
    if (general) {
        printf("%s%s other photos", measured ? " and " : "",
               l2c_progress_count(others, t->general_before.images));
    }
    printf(":\n");
    l2c_render *r = l2c_recall_out_table(stdout);
    if (r != NULL && measured) {
        l2c_recall_out_rows(r, "before", &t->before);
        l2c_recall_out_rows(r, "after", &t->after);
    }
    if (r != NULL && general) {
        l2c_recall_out_rows(r, "others before", &t->general_before);
        l2c_recall_out_rows(r, "others after", &t->general_after);
    }
    l2c_render_end(r);
}

static void print_summary(const l2cdb_tune_report *t) {
    char photos[32], pairs[32], steps[32], duration[32];
    printf("trained on %s captions of %s photos, %s steps in %s (%.0f pairs/s), loss %.3f → %.3f\n",
           l2c_progress_count(pairs, t->pairs), l2c_progress_count(photos, t->photos),
           l2c_progress_count(steps, t->steps), l2c_progress_duration(duration, t->seconds),
           t->pairs_per_s, t->loss_first, t->loss_last);
    if (t->pairs_unmatched > 0) {
        printf("%s captions named no known photo\n", l2c_progress_count(pairs, t->pairs_unmatched));
    }
    print_recall(t);
    if (t->promoted) {
        bool images = o.heads != NULL && strcmp(o.heads, "text+image") == 0;
        printf("generation %" PRId64 " is active%s; `l2cdb rollback` goes back\n", t->generation,
               images ? "" : ", image vectors and their index are kept");
    } else if (!o.promote) {
        printf("generation %" PRId64 " is ready; `l2cdb reindex -g %" PRId64 "` switches to it\n",
               t->generation, t->generation);
    } else {
        double before = t->before.t2i.r10 + t->before.i2t.r10;
        bool fell = t->after.t2i.r10 + t->after.i2t.r10 < before;
        printf("%s, so generation %" PRId64 " stays inactive; `l2cdb reindex -g %" PRId64
               "` switches to it all the same\n",
               fell ? "held-out R@10 fell" : "the loss rose (try a lower --lr)", t->generation,
               t->generation);
    }
}

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    // 0 means "choose" at the door, which is not what somebody means who writes it.
    if (o.epochs == 0 || o.batch == 0 || o.lr == 0) {
        return l2c_options_wrong(&l2c_cmd_tune, "--epochs, --batch and --lr are above 0");
    }
    l2cdb_open_options open;
    l2c_session_options(&open);
    open.memory_max = o.memory;
    l2cdb *db;
    int rc = l2c_session_open(&db, &open, 0);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_progress progress = { .unit = "pairs" };
    l2cdb_tune_options t;
    fill_options(&t, &progress);
    l2cdb_tune_report report = { 0 };
    l2cdb_error err;
    l2cdb_status status = l2cdb_tune(db, &t, &report, &err);
    l2c_progress_clear();
    if (status != L2CDB_OK) {
        rc = l2c_session_fail(&err);
    } else if (o.json) {
        print_json(&report);
    } else {
        print_summary(&report);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_tune = {
    .name = "tune",
    .usage = "",
    .summary = "teach the database your words, from captions",
    .help =
        "Trains the heads on features that are stored already, so no photo is encoded again.\n"
        "The result becomes a new generation. It is switched to if it finds held-out photos no\n"
        "worse than before, and `l2cdb rollback` takes that back.\n\n"
        "  l2cdb tune --pairs captions.csv\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .run = run,
};
