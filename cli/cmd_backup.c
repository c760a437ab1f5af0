/* `l2cdb backup` and `l2cdb vacuum`. */
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/session.h"

static int run_backup(const char *const *args, size_t args_count) {
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_READ);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_progress progress = { .unit = "pages" };
    l2cdb_error err;
    l2cdb_status status = l2cdb_backup(db, args[0], l2c_progress_show, &progress, &err);
    l2c_progress_clear();
    if (status == L2CDB_OK) {
        printf("copied to %s\n", args[0]);
    } else {
        rc = l2c_session_fail(&err);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_backup = {
    .name = "backup",
    .usage = "FILE",
    .summary = "copy the database while it is in use",
    .help = "FILE appears when the copy is complete, never half.\n",
    .flags = L2C_COMMAND_DB,
    .args_min = 1,
    .args_max = 1,
    .run = run_backup,
};

static int run_vacuum(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, 0);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2cdb_stats before, after;
    l2cdb_error err;
    if (l2cdb_get_stats(db, &before, &err) != L2CDB_OK || l2cdb_vacuum(db, &err) != L2CDB_OK ||
        l2cdb_get_stats(db, &after, &err) != L2CDB_OK) {
        rc = l2c_session_fail(&err);
    } else {
        char was[32], is[32];
        printf("%s → %s\n", l2c_progress_bytes(was, before.database_bytes + before.index_bytes),
               l2c_progress_bytes(is, after.database_bytes + after.index_bytes));
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_vacuum = {
    .name = "vacuum",
    .usage = "",
    .summary = "give the space of deleted records back and erase them",
    .flags = L2C_COMMAND_DB,
    .run = run_vacuum,
};
