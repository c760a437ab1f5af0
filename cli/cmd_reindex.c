/* `l2cdb reindex` and `l2cdb reencode`: the two ways to fill a new generation and switch to it. */
#include <inttypes.h>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/session.h"

static int64_t generation;

static const l2c_option reindex_options[] = {
    { 'g', "generation", L2C_OPTION_INT64, &generation, "G",
      "the generation (default: the newest that is not active)", NULL },
    { 0 },
};

/* Whether the active generation has the image vectors of generation `before`. */
static bool keeps_images(l2cdb *db, int64_t before) {
    l2cdb_stmt *s = NULL;
    bool row = false;
    if (l2cdb_prepare(db,
                      "SELECT 1 FROM generations g, generations b WHERE g.active AND b.id = ?1"
                      " AND g.id <> b.id AND g.image_space = b.image_space",
                      NULL, &s, NULL) == L2CDB_OK &&
        l2cdb_bind_int64(s, 1, before) == L2CDB_OK) {
        l2cdb_step(s, &row, NULL);
    }
    l2cdb_finalize(s);
    return row;
}

static int64_t active(l2cdb *db) {
    l2cdb_stats stats;
    return l2cdb_get_stats(db, &stats, NULL) == L2CDB_OK ? stats.generation : 0;
}

static int finish(l2cdb *db, int64_t before, l2cdb_status status, const l2cdb_error *err) {
    l2c_progress_clear();
    int rc = status == L2CDB_E_CANCELLED
                 ? l2c_session_error("run the same command again to go on", "stopped")
             : status != L2CDB_OK ? l2c_session_fail(err)
                                  : L2C_EXIT_DONE;
    if (rc == L2C_EXIT_DONE) {
        printf("generation %" PRId64 " is active%s\n", active(db),
               keeps_images(db, before) ? "; image vectors and their index are kept" : "");
    }
    l2c_session_close(db);
    return rc;
}

static int reindex(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, 0);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_progress progress = { .unit = "rows" };
    int64_t before = active(db);
    l2cdb_error err;
    l2cdb_status status = l2cdb_reindex(db, generation, l2c_progress_show, &progress, &err);
    return finish(db, before, status, &err);
}

const l2c_command l2c_cmd_reindex = {
    .name = "reindex",
    .usage = "",
    .summary = "fill a generation from stored features and switch to it",
    .help =
        "The active generation answers until the new one is complete; one transaction switches.\n"
        "An interrupted run continues where it was.\n",
    .options = reindex_options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .run = reindex,
};

static int reencode(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb_open_options open;
    l2c_session_options(&open);
    open.model = NULL; // the database opens with its own; --model names the next one
    l2cdb *db;
    int rc = l2c_session_open(&db, &open, 0);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_progress progress = { .unit = "photos" };
    int64_t before = active(db);
    l2cdb_error err;
    l2cdb_status status =
        l2cdb_reencode(db, l2c_options_common.model, l2c_progress_show, &progress, &err);
    return finish(db, before, status, &err);
}

const l2c_command l2c_cmd_reencode = {
    .name = "reencode",
    .usage = "",
    .summary = "encode everything again with another model",
    .help = "Without --model, with the built-in one. The old generation answers meanwhile; an\n"
            "interrupted run continues where it was.\n\n"
            "  l2cdb reencode --model ~/models/llm2clip-l14\n",
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .run = reencode,
};
