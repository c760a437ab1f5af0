/* `l2cdb check`: is everything there, and does it agree? */
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/session.h"

static struct { bool repair, json; } o;

static const l2c_option options[] = {
    { 0, "repair", L2C_OPTION_ON, &o.repair, NULL, "recompute what can be recomputed", NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "one JSON object a problem", NULL },
    { 0 },
};

static void on_finding(void *ctx, const char *text, const char *remedy) {
    size_t *findings = ctx;
    ++*findings;
    if (!o.json) {
        printf("%s\n", text);
        if (remedy != NULL && *remedy != '\0') {
            printf("  %s\n", remedy);
        }
        return;
    }
    l2c_json_out j;
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    l2c_json_out_key(&j, "problem");
    l2c_json_out_string(&j, text);
    l2c_json_out_key(&j, "remedy");
    l2c_json_out_string(&j, remedy);
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static int check(l2cdb *db) {
    size_t findings = 0;
    l2cdb_error err;
    l2cdb_status rc = l2cdb_check(db, o.repair, on_finding, &findings, &err);
    if (rc == L2CDB_E_CORRUPT && o.repair) {
        // What counts is what is left.
        size_t left = 0;
        rc = l2cdb_check(db, false, on_finding, &left, &err);
        if (rc == L2CDB_OK && !o.json) {
            printf("repaired\n");
        }
        return rc == L2CDB_OK ? L2C_EXIT_DONE : l2c_session_fail(&err);
    }
    if (rc != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (!o.json) {
        printf("%s is in order\n", l2cdb_path(db));
    }
    return L2C_EXIT_DONE;
}

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, o.repair ? 0 : L2C_SESSION_READ);
    if (rc == L2C_EXIT_DONE) {
        rc = check(db);
        l2c_session_close(db);
    }
    return rc;
}

const l2c_command l2c_cmd_check = {
    .name = "check",
    .usage = "",
    .summary = "check the database, and repair it with --repair",
    .help = "Exit status 1 if something is wrong (with --repair: still wrong afterwards).\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .run = run,
};
