/* `l2cdb shell`: the interactive face of SQL. */
#include <stdlib.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/shell.h"

static struct {
    const char *mode;
    bool timer;
} o;

static const char *const modes[] = { "box",  "table", "column", "csv",  "tsv",
                                     "json", "jsonl", "line",   "html", NULL };

static const l2c_option options[] = {
    { 'm', "mode", L2C_OPTION_CHOICE, &o.mode, "MODE",
      "box, table, column, csv, tsv, json, jsonl, line or html\n(default: box on a terminal, else "
      "column)",
      modes },
    { 0, "timer", L2C_OPTION_ON, &o.timer, NULL, "rows and time of each statement", NULL },
    { 0 },
};

static int run(const char *const *args, size_t args_count) {
    if (args_count == 1) {
        l2c_options_common.db = args[0];
    }
    // A name that was given is made when it is not there; without one there is a scratch database.
    unsigned flags = l2c_session_path_given() ? L2C_SESSION_CREATE : L2C_SESSION_SCRATCH;
    l2c_shell sh = { .sql = { .timer = o.timer } };
    int rc = l2c_session_open(&sh.db, NULL, flags);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    l2c_render_options_init(&sh.sql.render, stdout);
    sh.mode = sh.sql.render.mode;
    if (o.mode != NULL) {
        l2c_render_mode_parse(&sh.mode, o.mode);
    }
    rc = l2c_shell_run(&sh);
    l2c_shell_command(&sh, ".output");
    if (sh.once != NULL) {
        fclose(sh.once);
    }
    l2c_sql_params_clear(&sh.params);
    free(sh.separator);
    free(sh.null);
    l2c_session_close(sh.db);
    return rc;
}

const l2c_command l2c_cmd_shell = {
    .name = "shell",
    .usage = "[DB]",
    .summary = "SQL at a prompt, with history, completion and pictures",
    .help =
        "Statements end with a semicolon; commands begin with a dot (or psql's backslash); .help\n"
        "lists them. Ctrl-C cancels what runs, Ctrl-D leaves. stdin may be a script.\n\n"
        "  l2cdb shell photos.l2cdb\n"
        "  l2cdb shell < report.sql\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = 1,
    .run = run,
};
