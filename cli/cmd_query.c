/* `l2cdb query`: SQL from the command line or from stdin, for scripts. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/sql_text.h"

static struct {
    const char *mode, *null;
    l2c_list params;
    bool json, no_header, read_only, timer;
    uint64_t timeout_ms, rows_max;
} o;

static const char *const modes[] = { "box",  "table", "column", "csv",  "tsv",
                                     "json", "jsonl", "line",   "html", NULL };

static const l2c_option options[] = {
    { 'm', "mode", L2C_OPTION_CHOICE, &o.mode, "MODE",
      "box, table, column, csv, tsv, json, jsonl, line or html\n(default: box on a terminal, else "
      "column)",
      modes },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "the same as --mode jsonl: one object a row", NULL },
    { 'p', "param", L2C_OPTION_LIST, &o.params, "NAME=VALUE",
      "value of :NAME, @NAME or $NAME, or of ?N by its number;\nmay be repeated; @FILE is the "
      "file's bytes",
      NULL },
    { 0, "no-header", L2C_OPTION_ON, &o.no_header, NULL, "leave out the names of columns", NULL },
    { 0, "null", L2C_OPTION_STRING, &o.null, "TEXT", "what to print for NULL", NULL },
    { 0, "timer", L2C_OPTION_ON, &o.timer, NULL, "rows and time of each statement on stderr",
      NULL },
    { 0, "read-only", L2C_OPTION_ON, &o.read_only, NULL, "refuse whatever writes or reads files",
      NULL },
    { 0, "timeout", L2C_OPTION_UINT64, &o.timeout_ms, "MS", "give up a statement after MS ms",
      NULL },
    { 0, "max-rows", L2C_OPTION_UINT64, &o.rows_max, "N", "fail when an answer has more rows",
      NULL },
    { 0 },
};

/* All of stdin as a string; NULL with the error printed. */
static char *read_stdin(void) {
    size_t size = 0, capacity = 65536;
    char *text = malloc(capacity);
    while (text != NULL) {
        size += fread(text + size, 1, capacity - size - 1, stdin);
        if (feof(stdin) || ferror(stdin)) {
            break;
        }
        char *grown = realloc(text, capacity *= 2);
        if (grown == NULL) {
            free(text);
        }
        text = grown;
    }
    if (text == NULL || ferror(stdin)) {
        l2c_session_error(NULL, "could not read the statements from stdin");
        free(text);
        return NULL;
    }
    text[size] = '\0';
    return text;
}

static int run_sql(l2cdb *db, const char *sql) {
    l2c_sql_params params = { 0 };
    l2cdb_sql_limits limits = { .read_only = o.read_only,
                                .timeout_ms =
                                    o.timeout_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)o.timeout_ms,
                                .rows_max = o.rows_max };
    l2c_sql_text_options t = { .params = &params, .limits = &limits, .timer = o.timer };
    l2c_render_options_init(&t.render, stdout);
    if (o.mode != NULL) {
        l2c_render_mode_parse(&t.render.mode, o.mode);
    }
    t.render.mode = o.json ? L2C_RENDER_JSONL : t.render.mode;
    t.render.headers = !o.no_header;
    if (o.null != NULL) {
        t.render.null = o.null;
    }
    int rc = L2C_EXIT_DONE;
    for (size_t i = 0; i < o.params.count && rc == L2C_EXIT_DONE; i++) {
        rc = l2c_sql_params_set(&params, o.params.values[i]);
    }
    if (rc == L2C_EXIT_DONE) {
        rc = l2c_sql_text_run(db, sql, &t);
    }
    const char *unused = l2c_sql_params_unused(&params);
    if (rc == L2C_EXIT_DONE && unused != NULL) {
        l2c_session_error(NULL, "no statement has a parameter %s", unused);
        rc = L2C_EXIT_USAGE;
    }
    l2c_sql_params_clear(&params);
    return rc;
}

static int run(const char *const *args, size_t args_count) {
    bool from_stdin = args_count == 0 || strcmp(args[0], "-") == 0;
    char *text = from_stdin ? read_stdin() : NULL;
    if (from_stdin && text == NULL) {
        return L2C_EXIT_FAILED;
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, o.read_only ? L2C_SESSION_READ : 0);
    if (rc == L2C_EXIT_DONE) {
        rc = run_sql(db, from_stdin ? text : args[0]);
        l2c_session_close(db);
    }
    free(text);
    return rc;
}

const l2c_command l2c_cmd_query = {
    .name = "query",
    .usage = "[SQL]",
    .summary = "ask in SQL; prints rows in the form you choose",
    .help =
        "Without SQL, or with \"-\", the statements are read from stdin. docs/sql.md teaches what\n"
        "is understood beside SQLite's own SQL.\n\n"
        "  l2cdb query \"SELECT path, score FROM images\n"
        "               WHERE camera LIKE 'X100%'\n"
        "               ORDER BY embedding <=> embed(:q) LIMIT 10\" --param q=\"a red boat\"\n"
        "  l2cdb query --json \"SELECT * FROM similar(12345, k => 20)\"\n"
        "  l2cdb query < report.sql\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = 1,
    .run = run,
};
