/* `l2cdb ingest`: photos and captions in, with a line of progress and a report of every file. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/term.h"

static struct {
    const char *captions, *report;
    l2c_list excludes;
    bool sidecars, captions_only, exif_rotate, retry, prune, json;
    double settle_s;
    size_t batch;
} o = { .sidecars = true, .exif_rotate = true };

static const l2c_option options[] = {
    { 'c', "captions", L2C_OPTION_STRING, &o.captions, "FILE",
      "captions as JSONL, CSV (path,caption[,language]) or COCO\njson; paths relative to FILE, to "
      "DIR, or bare names",
      NULL },
    { 0, "captions-only", L2C_OPTION_ON, &o.captions_only, NULL,
      "only add captions to photos that are known", NULL },
    { 0, "no-sidecars", L2C_OPTION_OFF, &o.sidecars, NULL,
      "do not read captions from NAME.txt beside NAME.jpg", NULL },
    { 'x', "exclude", L2C_OPTION_LIST, &o.excludes, "PATTERN",
      "leave out, in .gitignore's syntax; may be repeated;\na file .l2cdbignore in a folder does "
      "the same",
      NULL },
    { 0, "no-exif-rotate", L2C_OPTION_OFF, &o.exif_rotate, NULL,
      "do not turn photos upright (the reference's behaviour;\nonly for a new database, which "
      "remembers it)",
      NULL },
    { 0, "settle", L2C_OPTION_REAL, &o.settle_s, "SECONDS",
      "leave files for later that changed less than this ago", NULL },
    { 0, "retry-failed", L2C_OPTION_ON, &o.retry, NULL,
      "try unreadable files again although they did not change", NULL },
    { 0, "prune", L2C_OPTION_ON, &o.prune, NULL,
      "forget photos whose file is gone from a folder that is\nthere", NULL },
    { 0, "batch", L2C_OPTION_SIZE, &o.batch, "N", "photos a transaction (default 32)", NULL },
    { 'r', "report", L2C_OPTION_STRING, &o.report, "FILE",
      "what became of each file, as JSON lines\n{\"path\", \"outcome\", \"reason\"}; - is stdout",
      NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "the totals as JSON", NULL },
    { 0 },
};

enum { FAILURES_SHOWN = 10 };

// Both callbacks of one run.
typedef struct run_state {
    l2c_progress progress;
    FILE *report;
    uint64_t failures; /* seen */
} run_state;

static bool on_progress(void *ctx, const l2cdb_progress *p) {
    run_state *state = ctx;
    return l2c_progress_show(&state->progress, p);
}

static void report_file(FILE *f, const char *path, l2cdb_file_outcome outcome, const char *reason) {
    l2c_json_out j;
    l2c_json_out_init(&j, f);
    l2c_json_out_open(&j, '{');
    l2c_json_out_key(&j, "path");
    l2c_json_out_string(&j, path);
    l2c_json_out_key(&j, "outcome");
    l2c_json_out_string(&j, l2cdb_file_outcome_name(outcome));
    l2c_json_out_key(&j, "reason");
    l2c_json_out_string(&j, *reason != '\0' ? reason : NULL);
    l2c_json_out_close(&j, '}');
    fputc('\n', f);
}

// The first failures are worth a line each; a thousand would bury the summary.
static void show_failure(run_state *state, const char *path, const char *reason) {
    state->failures++;
    if (state->failures > FAILURES_SHOWN || l2c_options_common.quiet) {
        return;
    }
    l2c_progress_clear();
    char *clean = l2c_term_clean(path, strlen(path));
    fprintf(stderr, "unreadable: %s: %s\n", clean != NULL ? clean : path, reason);
    free(clean);
}

static void on_file(void *ctx, const char *path, l2cdb_file_outcome outcome, const char *reason) {
    run_state *state = ctx;
    reason = reason != NULL ? reason : "";
    if (state->report != NULL) {
        report_file(state->report, path, outcome, reason);
    }
    if (outcome == L2CDB_FILE_FAILED) {
        show_failure(state, path, reason);
    }
}

static void print_json(const l2cdb_ingest_report *r) {
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        { "found", r->found },
        { "added", r->added },
        { "updated", r->updated },
        { "unchanged", r->unchanged },
        { "duplicates", r->duplicates },
        { "skipped", r->skipped },
        { "failed", r->failed },
        { "pruned", r->pruned },
        { "captions_added", r->captions_added },
        { "captions_unmatched", r->captions_unmatched },
    };
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        l2c_json_out_key(&j, counts[i].key);
        l2c_json_out_uint(&j, counts[i].value);
    }
    l2c_json_out_key(&j, "seconds");
    l2c_json_out_double(&j, r->seconds, 3);
    l2c_json_out_key(&j, "decode_s");
    l2c_json_out_double(&j, r->decode_s, 3);
    l2c_json_out_key(&j, "encode_s");
    l2c_json_out_double(&j, r->encode_s, 3);
    l2c_json_out_key(&j, "commit_s");
    l2c_json_out_double(&j, r->commit_s, 3);
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

// ", 3 captions"; nothing for none.
static void say_part(uint64_t n, const char *one, const char *many) {
    char count[32];
    if (n > 0) {
        printf(", %s %s", l2c_progress_count(count, n), n == 1 ? one : many);
    }
}

static void print_summary(const l2cdb_ingest_report *r, uint64_t failures) {
    char count[32], duration[32];
    printf("%s %s added", l2c_progress_count(count, r->added), r->added == 1 ? "photo" : "photos");
    say_part(r->updated, "updated", "updated");
    say_part(r->unchanged, "unchanged", "unchanged");
    say_part(r->duplicates, "duplicate", "duplicates");
    say_part(r->skipped, "skipped", "skipped");
    say_part(r->failed, "unreadable", "unreadable");
    say_part(r->pruned, "forgotten", "forgotten");
    say_part(r->captions_added, "caption", "captions");
    printf(" in %s", l2c_progress_duration(duration, r->seconds));
    uint64_t encoded = r->added + r->updated;
    if (encoded > 0 && r->seconds > 0) {
        printf(" (%.1f photos/s)", (double)encoded / r->seconds);
    }
    printf("\ndatabase: %s\n", l2c_session_path());
    if (r->captions_unmatched > 0) {
        printf("%s captions named no known photo\n",
               l2c_progress_count(count, r->captions_unmatched));
    }
    if (failures > FAILURES_SHOWN && o.report == NULL) {
        printf("%s unreadable files are not shown; --report FILE lists them all\n",
               l2c_progress_count(count, failures - FAILURES_SHOWN));
    }
}

static int ingest(l2cdb *db, const char *const *paths, size_t paths_count, run_state *state) {
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    in.captions_file = o.captions;
    in.sidecars = o.sidecars;
    in.captions_only = o.captions_only;
    in.excludes = o.excludes.values;
    in.excludes_count = o.excludes.count;
    in.settle_s = o.settle_s;
    in.retry_failed = o.retry;
    in.batch = o.batch;
    in.prune = o.prune;
    in.progress = on_progress;
    in.on_file = on_file;
    in.ctx = state;
    l2cdb_ingest_report report = { 0 };
    l2cdb_error err;
    l2cdb_status rc = l2cdb_ingest(db, paths, paths_count, &in, &report, &err);
    l2c_progress_clear();
    if (rc == L2CDB_E_CANCELLED) {
        return l2c_session_error("run the same command again to go on",
                                 "stopped; what was added so far stays");
    }
    if (rc != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (o.json) {
        print_json(&report);
    } else {
        print_summary(&report, state->failures);
    }
    return L2C_EXIT_DONE;
}

static int open_report(FILE **out) {
    if (o.report == NULL) {
        return L2C_EXIT_DONE;
    }
    *out = strcmp(o.report, "-") == 0 ? stdout : fopen(o.report, "w");
    if (*out == NULL) {
        return l2c_session_error(NULL, "could not write the report %s: %s", o.report,
                                 strerror(errno));
    }
    setvbuf(*out, NULL, _IOLBF, 0); // whoever watches it sees what is done
    return L2C_EXIT_DONE;
}

static int close_report(FILE *f, int rc) {
    if (f == NULL || f == stdout) {
        return rc;
    }
    bool failed = ferror(f) != 0;
    failed = fclose(f) != 0 || failed;
    return failed ? l2c_session_error(NULL, "could not write the report %s: %s", o.report,
                                      strerror(errno))
                  : rc;
}

static int run(const char *const *args, size_t args_count) {
    if (args_count == 0 && o.captions == NULL) {
        return l2c_options_wrong(&l2c_cmd_ingest, "DIR… is missing");
    }
    run_state state = { .progress = { .unit = "photos" } };
    int rc = open_report(&state.report);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2cdb_open_options open;
    l2c_session_options(&open);
    open.exif_rotate = o.exif_rotate;
    l2cdb *db;
    rc = l2c_session_open(&db, &open, L2C_SESSION_CREATE);
    if (rc == L2C_EXIT_DONE) {
        o.captions_only = o.captions_only || args_count == 0;
        rc = ingest(db, args, args_count, &state);
        l2c_session_close(db);
    }
    return close_report(state.report, rc);
}

const l2c_command l2c_cmd_ingest = {
    .name = "ingest",
    .usage = "DIR…",
    .summary = "add photos (and their captions) to the database",
    .help =
        "Folders are read through to the bottom. JPEG, PNG and WebP are told by their content,\n"
        "not their names. What is known already is skipped, so the same command continues an\n"
        "interrupted run and picks up new photos. A broken file is reported with its reason\n"
        "and never stops the run.\n\n"
        "  l2cdb ingest ~/Pictures\n"
        "  l2cdb ingest --exclude 'thumbs/' --report skipped.jsonl ~/Pictures /mnt/camera\n"
        "  l2cdb ingest --captions captions.csv photos/\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = SIZE_MAX,
    .run = run,
};
