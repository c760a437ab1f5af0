/* `l2cdb stats`. */
#include <inttypes.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/progress.h"
#include "cli/session.h"

static bool json;

static const l2c_option options[] = {
    { 0, "json", L2C_OPTION_ON, &json, NULL, "print JSON", NULL },
    { 0 },
};

static void print_json(const l2cdb_stats *s) {
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = { { "images", s->images },
                   { "images_failed", s->images_failed },
                   { "captions", s->captions },
                   { "vectors_images", s->vectors_images },
                   { "vectors_captions", s->vectors_captions },
                   { "thumbnails", s->thumbnails },
                   { "database_bytes", s->database_bytes },
                   { "index_bytes", s->index_bytes },
                   { "width", s->width },
                   { "generation", (uint64_t)s->generation },
                   { "change", (uint64_t)s->change } };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        l2c_json_out_key(&j, counts[i].key);
        l2c_json_out_uint(&j, counts[i].value);
    }
    const struct {
        const char *key, *value;
    } texts[] = { { "model", s->model },
                  { "architecture", s->architecture },
                  { "model_fingerprint", s->model_fingerprint },
                  { "precision", s->precision } };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        l2c_json_out_key(&j, texts[i].key);
        l2c_json_out_string(&j, texts[i].value);
    }
    l2c_json_out_key(&j, "exif_rotate");
    l2c_json_out_bool(&j, s->exif_rotate);
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static void print_text(const l2cdb_stats *s) {
    char images[32], failed[32], captions[32], vectors[32], more[32], database[32], index[32];
    printf("photos      %s", l2c_progress_count(images, s->images - s->images_failed));
    if (s->images_failed > 0) {
        printf(" (and %s unreadable)", l2c_progress_count(failed, s->images_failed));
    }
    printf("\ncaptions    %s\n", l2c_progress_count(captions, s->captions));
    printf("vectors     %s of photos, %s of captions, width %zu\n",
           l2c_progress_count(vectors, s->vectors_images),
           l2c_progress_count(more, s->vectors_captions), s->width);
    printf("generation  %" PRId64 "\n", s->generation);
    printf("model       %s%s%s\n", s->model, *s->precision != '\0' ? ", " : "", s->precision);
    if (*s->architecture != '\0') {
        printf("            %s\n", s->architecture);
    }
    printf("size        %s, and %s of indexes\n", l2c_progress_bytes(database, s->database_bytes),
           l2c_progress_bytes(index, s->index_bytes));
}

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_READ);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2cdb_stats stats;
    l2cdb_error err;
    if (l2cdb_get_stats(db, &stats, &err) != L2CDB_OK) {
        rc = l2c_session_fail(&err);
    } else if (json) {
        print_json(&stats);
    } else {
        printf("database    %s\n", l2cdb_path(db));
        print_text(&stats);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_stats = {
    .name = "stats",
    .usage = "",
    .summary = "what the database holds",
    .options = options,
    .flags = L2C_COMMAND_DB,
    .run = run,
};
