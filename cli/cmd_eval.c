/* `l2cdb eval`: how well texts find their photos, and photos their texts. */
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/recall_out.h"
#include "cli/session.h"

static struct {
    const char *captions, *images, *language;
    int64_t generation;
    bool exif_rotate, json;
} o = { .exif_rotate = true };

static const l2c_option options[] = {
    { 'c', "captions", L2C_OPTION_STRING, &o.captions, "FILE",
      "captions as for ingest (default: those in the database)", NULL },
    { 'i', "images", L2C_OPTION_STRING, &o.images, "DIR",
      "the photos (default: those in the database); without\n--db no database is used at all",
      NULL },
    { 'l', "language", L2C_OPTION_STRING, &o.language, "CODE", "only captions of this language",
      NULL },
    { 'g', "generation", L2C_OPTION_INT64, &o.generation, "G",
      "the generation to measure (default: the active one)", NULL },
    { 0, "no-exif-rotate", L2C_OPTION_OFF, &o.exif_rotate, NULL,
      "do not turn photos upright (with --images, without --db)", NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "print JSON", NULL },
    { 0 },
};

static int evaluate(l2cdb *db) {
    l2c_progress progress = { .unit = "rows" };
    l2cdb_eval_options e;
    l2cdb_eval_options_init(&e);
    e.captions_file = o.captions;
    e.images_dir = o.images;
    e.language = o.language;
    e.generation = o.generation;
    e.progress = l2c_progress_show;
    e.ctx = &progress;
    l2cdb_eval_report report;
    l2cdb_error err;
    l2cdb_status rc = l2cdb_eval(db, &e, &report, &err);
    l2c_progress_clear();
    if (rc != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (o.json) {
        l2c_json_out j;
        l2c_json_out_init(&j, stdout);
        l2c_recall_out_json(&j, &report);
        fputc('\n', stdout);
        return L2C_EXIT_DONE;
    }
    char images[32], captions[32], duration[32];
    printf("%s photos, %s captions, %s\n", l2c_progress_count(images, report.images),
           l2c_progress_count(captions, report.captions),
           l2c_progress_duration(duration, report.seconds));
    l2c_render *r = l2c_recall_out_table(stdout);
    if (r == NULL) {
        return l2c_session_error(NULL, "out of memory");
    }
    l2c_recall_out_rows(r, o.language != NULL ? o.language : "all", &report);
    return l2c_render_end(r) ? L2C_EXIT_DONE : L2C_EXIT_FAILED;
}

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    bool apart = o.images != NULL && !l2c_session_path_given();
    if (apart && o.captions == NULL) {
        return l2c_options_wrong(&l2c_cmd_eval, "--images needs --captions");
    }
    if (apart) {
        l2c_options_common.db = ":memory:";
    }
    l2cdb_open_options open;
    l2c_session_options(&open);
    open.exif_rotate = o.exif_rotate;
    l2cdb *db;
    int rc = l2c_session_open(&db, &open, apart ? L2C_SESSION_CREATE : 0);
    if (rc == L2C_EXIT_DONE) {
        rc = evaluate(db);
        l2c_session_close(db);
    }
    return rc;
}

const l2c_command l2c_cmd_eval = {
    .name = "eval",
    .usage = "",
    .summary = "measure recall: do captions find their photos?",
    .help = "R@k is the share of queries, in per cent, whose answer is among the first k. From a\n"
            "photo, any of its captions counts. The gallery is the photos that have a caption.\n\n"
            "  l2cdb eval\n"
            "  l2cdb eval --captions captions.jsonl --images photos/ --language de --json\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .run = run,
};
