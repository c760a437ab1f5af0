/* `l2cdb generations` and `l2cdb rollback`. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/render.h"
#include "cli/session.h"

static bool json;

static const l2c_option options[] = {
    { 0, "json", L2C_OPTION_ON, &json, NULL, "one JSON object a row", NULL },
    { 0 },
};

// For people without the whole report of a tuning; --json has everything.
static const char people_sql[] =
    "SELECT id, parent, state, label AS model, width, images, captions, created_at,"
    " json_extract(report, '$.before.t2i.r10') AS \"R@10 before\","
    " json_extract(report, '$.after.t2i.r10') AS \"after\" FROM generations";

static int list(l2cdb *db) {
    l2c_render_options ro;
    l2c_render_options_init(&ro, stdout);
    ro.mode = json ? L2C_RENDER_JSONL : ro.mode;
    l2cdb_stmt *s = NULL;
    l2cdb_error err;
    const char *sql = json ? "SELECT * FROM generations" : people_sql;
    l2cdb_status rc = l2cdb_prepare(db, sql, NULL, &s, &err);
    if (rc == L2CDB_OK) {
        rc = l2c_render_statement(&ro, s, NULL, &err);
    }
    l2cdb_finalize(s);
    return rc == L2CDB_OK ? L2C_EXIT_DONE : l2c_session_fail(&err);
}

static int drop(l2cdb *db, int64_t generation) {
    l2cdb_error err;
    if (l2cdb_drop_generation(db, generation, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    printf("generation %" PRId64 " is gone\n", generation);
    return L2C_EXIT_DONE;
}

static int run(const char *const *args, size_t args_count) {
    bool dropping = args_count > 0 && strcmp(args[0], "drop") == 0;
    if (args_count > 0 && !dropping && strcmp(args[0], "list") != 0) {
        return l2c_options_wrong(&l2c_cmd_generations, "\"%s\" is neither list nor drop", args[0]);
    }
    if (args_count != (dropping ? 2 : args_count > 0)) {
        return l2c_options_wrong(&l2c_cmd_generations, "generations %s takes %s",
                                 dropping ? "drop" : "list", dropping ? "a number" : "nothing");
    }
    char *end = NULL;
    long long generation = dropping ? strtoll(args[1], &end, 10) : 0;
    if (dropping && (end == args[1] || *end != '\0')) {
        return l2c_options_wrong(&l2c_cmd_generations, "a generation is a number, not \"%s\"",
                                 args[1]);
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, dropping ? 0 : L2C_SESSION_READ);
    if (rc == L2C_EXIT_DONE) {
        rc = dropping ? drop(db, generation) : list(db);
        l2c_session_close(db);
    }
    return rc;
}

const l2c_command l2c_cmd_generations = {
    .name = "generations",
    .usage = "[list | drop G]",
    .summary = "list the generations of vectors, or drop one",
    .help =
        "A generation is one set of vectors: made by one model with one adapter. The active one\n"
        "answers; the others wait for `reindex`, `rollback` or `generations drop`.\n",
    .options = options,
    .flags = L2C_COMMAND_DB,
    .args_max = 2,
    .run = run,
};

static int rollback(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, 0);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    int64_t active = 0;
    l2cdb_error err;
    if (l2cdb_rollback(db, &active, &err) != L2CDB_OK) {
        rc = l2c_session_fail(&err);
    } else {
        printf("generation %" PRId64 " is active\n", active);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_rollback = {
    .name = "rollback",
    .usage = "",
    .summary = "go back to the generation before",
    .help = "Twice is there and back again.\n",
    .flags = L2C_COMMAND_DB,
    .run = rollback,
};
