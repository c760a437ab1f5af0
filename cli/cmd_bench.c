/* `l2cdb bench`: how fast this machine does the three things that matter, in a database in memory.
 * The careful comparisons with other programs are in tests/bench. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/progress.h"
#include "cli/render.h"
#include "cli/session.h"

static bool json;

static const l2c_option options[] = {
    { 0, "json", L2C_OPTION_ON, &json, NULL, "print JSON", NULL },
    { 0 },
};

enum { TEXTS = 256, QUERIES = 50 };

typedef struct figures {
    double texts_per_s, text_ms;               // in batches; one alone
    double photos_per_s, decode_ms, encode_ms; // of a photo; 0 without photos
    double search_ms;                          // exact, without encoding
    uint64_t photos;
} figures;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Caption i of many that differ, so that no cache answers.
static void caption(char out[128], size_t i) {
    static const char *const who[] = { "a dog", "two children", "an old man", "a red bus" };
    static const char *const where[] = { "on a beach", "in the snow", "near a lake", "at night" };
    snprintf(out, 128, "%s and %zu people waiting %s", who[i % 4], i, where[i / 4 % 4]);
}

static int bench_texts(l2cdb *db, figures *f) {
    size_t width;
    l2cdb_error err;
    if (l2cdb_warm(db, &err) != L2CDB_OK || l2cdb_width(db, &width, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    static char texts[TEXTS + QUERIES][128];
    const char *pointers[TEXTS + QUERIES];
    for (size_t i = 0; i < TEXTS + QUERIES; i++) {
        caption(texts[i], i);
        pointers[i] = texts[i];
    }
    float *out = malloc(TEXTS * width * sizeof *out);
    if (out == NULL) {
        return l2c_session_error(NULL, "out of memory");
    }
    double start = now_s();
    l2cdb_status rc = l2cdb_encode_texts(db, pointers, TEXTS, out, width, NULL, &err);
    f->texts_per_s = TEXTS / (now_s() - start);
    start = now_s();
    for (size_t i = 0; i < QUERIES && rc == L2CDB_OK; i++) {
        rc = l2cdb_encode_texts(db, pointers + TEXTS + i, 1, out, width, NULL, &err);
    }
    f->text_ms = (now_s() - start) * 1000 / QUERIES;
    free(out);
    return rc == L2CDB_OK ? L2C_EXIT_DONE : l2c_session_fail(&err);
}

static int bench_photos(l2cdb *db, figures *f, const char *const *paths, size_t count) {
    l2c_progress progress = { .unit = "photos" };
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    in.sidecars = false;
    in.progress = l2c_progress_show;
    in.ctx = &progress;
    l2cdb_ingest_report report;
    l2cdb_error err;
    l2cdb_status rc = l2cdb_ingest(db, paths, count, &in, &report, &err);
    l2c_progress_clear();
    if (rc != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    f->photos = report.added;
    if (report.added == 0) {
        return l2c_session_error(NULL, "no photos there to measure with");
    }
    f->photos_per_s = (double)report.added / report.seconds;
    f->decode_ms = report.decode_s * 1000 / (double)report.added;
    f->encode_ms = report.encode_s * 1000 / (double)report.added;
    return L2C_EXIT_DONE;
}

static int bench_search(l2cdb *db, figures *f) {
    for (size_t i = 0; i < QUERIES; i++) {
        char text[128];
        caption(text, TEXTS + i);
        l2cdb_query q;
        l2cdb_query_init(&q);
        q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_TEXT, .text = text, .weight = 1 };
        q.terms_count = 1;
        l2cdb_results *results;
        l2cdb_error err;
        if (l2cdb_search(db, &q, &results, &err) != L2CDB_OK) {
            return l2c_session_fail(&err);
        }
        const l2cdb_timings *t = l2cdb_results_timings(results);
        f->search_ms += (t->search_ms + t->fetch_ms) / QUERIES;
        l2cdb_results_free(results);
    }
    return L2C_EXIT_DONE;
}

static void print_json(const figures *f) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    const struct {
        const char *key;
        double value;
    } values[] = { { "texts_per_s", f->texts_per_s }, { "text_ms", f->text_ms },
                   { "photos", (double)f->photos },   { "photos_per_s", f->photos_per_s },
                   { "decode_ms", f->decode_ms },     { "encode_ms", f->encode_ms },
                   { "search_ms", f->search_ms } };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        l2c_json_out_key(&j, values[i].key);
        l2c_json_out_double(&j, values[i].value, 3);
    }
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static void print_text(const figures *f) {
    printf("texts   %.0f/s in batches, %.1f ms for one\n", f->texts_per_s, f->text_ms);
    if (f->photos > 0) {
        char count[32];
        printf("photos  %.1f/s from file to database (%s photos; decoding %.1f ms on one thread, "
               "encoding %.1f ms)\n"
               "search  %.2f ms over them, without encoding\n",
               f->photos_per_s, l2c_progress_count(count, f->photos), f->decode_ms, f->encode_ms,
               f->search_ms);
    }
}

static int run(const char *const *args, size_t args_count) {
    l2c_options_common.db = ":memory:";
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_CREATE);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    figures f = { 0 };
    rc = bench_texts(db, &f);
    if (rc == L2C_EXIT_DONE && args_count > 0) {
        rc = bench_photos(db, &f, args, args_count);
        rc = rc == L2C_EXIT_DONE ? bench_search(db, &f) : rc;
    }
    l2c_session_close(db);
    if (rc == L2C_EXIT_DONE && json) {
        print_json(&f);
    } else if (rc == L2C_EXIT_DONE) {
        print_text(&f);
    }
    return rc;
}

const l2c_command l2c_cmd_bench = {
    .name = "bench",
    .usage = "[DIR…]",
    .summary = "measure this machine: texts, photos, search",
    .help = "Works in memory; nothing is kept. With photos of your own the figures are yours.\n\n"
            "  l2cdb bench ~/Pictures/2023\n",
    .options = options,
    .flags = L2C_COMMAND_MODEL,
    .args_max = SIZE_MAX,
    .run = run,
};
