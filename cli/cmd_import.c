/* `l2cdb import` and `l2cdb export`: vectors without photos and encoders, in and out as .npy. */
#include <inttypes.h>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/session.h"

static struct {
    const char *vectors, *meta, *ids;
    bool captions;
} o;

static const l2c_option import_options[] = {
    { 0, "vectors", L2C_OPTION_STRING, &o.vectors, "X.npy",
      "f32 [N,D]; rows become records, ids count from 1 in a new\ndatabase", NULL },
    { 0, "meta", L2C_OPTION_STRING, &o.meta, "X.jsonl",
      "line i belongs to row i: \"path\", \"tags\"; other keys\nbecome `meta`", NULL },
    { 0 },
};

static int run_import(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    if (o.vectors == NULL) {
        return l2c_options_wrong(&l2c_cmd_import, "--vectors is missing");
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_CREATE);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_progress progress = { .unit = "rows" };
    uint64_t rows = 0;
    l2cdb_error err;
    l2cdb_status status =
        l2cdb_import_vectors(db, o.vectors, o.meta, &rows, l2c_progress_show, &progress, &err);
    l2c_progress_clear();
    if (status == L2CDB_OK) {
        char count[32];
        printf("%s vectors added\ndatabase: %s\n", l2c_progress_count(count, rows),
               l2c_session_path());
    } else {
        rc = l2c_session_fail(&err);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_import = {
    .name = "import",
    .usage = "",
    .summary = "add your own vectors, without photos",
    .help = "  l2cdb import --db mine.l2cdb --vectors X.npy --meta X.jsonl\n"
            "  l2cdb search --db mine.l2cdb --vector q.npy -n 10 --json\n",
    .options = import_options,
    .flags = L2C_COMMAND_DB,
    .run = run_import,
};

static const l2c_option export_options[] = {
    { 0, "vectors", L2C_OPTION_STRING, &o.vectors, "X.npy",
      "write the active generation's vectors, f32 [N,D]", NULL },
    { 0, "ids", L2C_OPTION_STRING, &o.ids, "IDS.npy", "write the rows' ids, i64 [N]", NULL },
    { 'c', "captions", L2C_OPTION_ON, &o.captions, NULL, "the captions' vectors, not the photos'",
      NULL },
    { 0 },
};

static int run_export(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    if (o.vectors == NULL) {
        return l2c_options_wrong(&l2c_cmd_export, "--vectors is missing");
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_READ);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    uint64_t rows = 0;
    l2cdb_error err;
    if (l2cdb_export_vectors(db, o.captions ? L2CDB_CAPTIONS : L2CDB_IMAGES, o.vectors, o.ids,
                             &rows, &err) == L2CDB_OK) {
        char count[32];
        printf("%s vectors in %s\n", l2c_progress_count(count, rows), o.vectors);
    } else {
        rc = l2c_session_fail(&err);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_export = {
    .name = "export",
    .usage = "",
    .summary = "write the vectors to a .npy file",
    .help = "  l2cdb export --vectors photos.npy --ids ids.npy\n",
    .options = export_options,
    .flags = L2C_COMMAND_DB,
    .run = run_export,
};
