/* The shell's commands: sqlite3's with a dot, psql's with a backslash, as one table. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/shell.h"

#define WORDS_MAX 16

typedef struct shell_command {
    const char *name, *alias; /* alias NULL: none */
    const char *usage, *help;
    size_t args_min, args_max;
    int (*run)(l2c_shell *sh, const char *const *args, size_t args_count);
} shell_command;

static int run_help(l2c_shell *sh, const char *const *args, size_t args_count); // reads the table

/* ---- Helpers -----------------------------------------------------------------------------------
 */

static bool parse_switch(const char *word, bool now, bool *out) {
    if (word == NULL) {
        *out = !now;
        return true;
    }
    *out = strcmp(word, "on") == 0 || strcmp(word, "yes") == 0 || strcmp(word, "1") == 0;
    return *out || strcmp(word, "off") == 0 || strcmp(word, "no") == 0 || strcmp(word, "0") == 0;
}

static int wrong(const char *fmt, const char *word) {
    fputs("l2cdb: ", stderr);
    fprintf(stderr, fmt, word);
    fputc('\n', stderr);
    return L2C_EXIT_USAGE;
}

/* Sets *flag by "on" or "off", or turns it over without a word, and says what it is now. */
static int turn(bool *flag, const char *name, const char *const *args, size_t args_count) {
    if (!parse_switch(args_count > 0 ? args[0] : NULL, *flag, flag)) {
        return wrong("on or off is expected, not \"%s\"", args[0]);
    }
    if (args_count == 0) {
        printf("%s is %s\n", name, *flag ? "on" : "off");
    }
    return L2C_EXIT_DONE;
}

static int replace_text(char **text, const char *value) {
    char *copy = strdup(value);
    if (copy == NULL) {
        return l2c_session_error(NULL, "out of memory");
    }
    free(*text);
    *text = copy;
    return L2C_EXIT_DONE;
}

/* A statement of the shell's own with one text parameter (NULL: none). */
static int ask(l2c_shell *sh, const char *sql, const char *parameter) {
    l2c_sql_params own = { 0 }, theirs = sh->params;
    int rc = L2C_EXIT_DONE;
    if (parameter != NULL) {
        size_t size = strlen(parameter) + 8;
        char *assignment = malloc(size);
        if (assignment == NULL) {
            return l2c_session_error(NULL, "out of memory");
        }
        snprintf(assignment, size, "x=%s", parameter);
        rc = l2c_sql_params_set(&own, assignment);
        free(assignment);
    }
    if (rc == L2C_EXIT_DONE) {
        l2c_preview_mode preview = sh->sql.preview;
        sh->sql.preview = L2C_PREVIEW_OFF;
        sh->params = own;
        rc = l2c_shell_sql(sh, sql);
        own = sh->params;
        sh->params = theirs;
        sh->sql.preview = preview;
    }
    l2c_sql_params_clear(&own);
    return rc;
}

/* ---- The commands ------------------------------------------------------------------------------
 */

static int run_open(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    return l2c_shell_open(sh, args[0]);
}

static int run_tables(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    return ask(sh,
               "SELECT 'images' AS name, 'photos: records, vectors, distances' AS what"
               " UNION ALL VALUES ('captions', 'sentences of photos'),"
               " ('generations', 'vector spaces, one of them active'),"
               " ('models', 'what the generations were made with'),"
               " ('index_status', 'the two indexes'),"
               " ('similar(id, k)', 'photos like one of them'),"
               " ('hybrid(text, k, rrf_k, w_text)', 'words and vectors together'),"
               " ('nearest_duplicates(threshold, k)', 'pairs that are nearly the same')"
               " UNION ALL SELECT name, type FROM sqlite_schema"
               " WHERE type IN ('table', 'view') AND name NOT IN (" L2C_SHELL_STORE_TABLES ")",
               NULL);
}

/* `.schema` alone shows how the file is built, with a name one table. */
static int run_schema(l2c_shell *sh, const char *const *args, size_t args_count) {
    l2c_render_mode mode = sh->mode;
    bool expanded = sh->expanded, headers = sh->sql.render.headers;
    if (args_count == 0) {
        sh->mode = L2C_RENDER_COLUMN;
        sh->expanded = sh->sql.render.headers = false;
    }
    int rc = args_count == 0 ? ask(sh,
                                   "SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL"
                                   " ORDER BY tbl_name, type DESC, name",
                                   NULL)
                             : ask(sh,
                                   "SELECT name, type, iif(hidden = 1, 'argument', '') AS note"
                                   " FROM pragma_table_xinfo(:x)",
                                   args[0]);
    sh->mode = mode;
    sh->expanded = expanded;
    sh->sql.render.headers = headers;
    return rc;
}

/* psql's \d: the tables, or one of them. */
static int run_describe(l2c_shell *sh, const char *const *args, size_t args_count) {
    return args_count == 0 ? run_tables(sh, args, 0) : run_schema(sh, args, args_count);
}

static int run_mode(l2c_shell *sh, const char *const *args, size_t args_count) {
    if (args_count == 0) {
        printf("%s\n", l2c_render_mode_name(sh->mode));
        return L2C_EXIT_DONE;
    }
    sh->expanded = false;
    return l2c_render_mode_parse(&sh->mode, args[0])
               ? L2C_EXIT_DONE
               : wrong("\"%s\" is no mode; there are " L2C_RENDER_MODES, args[0]);
}

static int run_expanded(l2c_shell *sh, const char *const *args, size_t args_count) {
    return turn(&sh->expanded, "expanded display", args, args_count);
}

static int run_headers(l2c_shell *sh, const char *const *args, size_t args_count) {
    return turn(&sh->sql.render.headers, "headers", args, args_count);
}

static int run_nullvalue(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    int rc = replace_text(&sh->null, args[0]);
    sh->sql.render.null = sh->null;
    return rc;
}

static int run_separator(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    int rc = replace_text(&sh->separator, args[0]);
    sh->sql.render.separator = sh->separator;
    return rc;
}

static int run_timer(l2c_shell *sh, const char *const *args, size_t args_count) {
    return turn(&sh->sql.timer, "timer", args, args_count);
}

static int run_bail(l2c_shell *sh, const char *const *args, size_t args_count) {
    return turn(&sh->bail, "bail", args, args_count);
}

static int run_echo(l2c_shell *sh, const char *const *args, size_t args_count) {
    return turn(&sh->echo, "echo", args, args_count);
}

static FILE *open_target(const char *name, bool *pipe) {
    *pipe = name[0] == '|';
    fflush(stdout);
    FILE *f = *pipe ? popen(name + 1, "w") : fopen(name, "w");
    if (f == NULL) {
        l2c_session_error(NULL, "could not write to %s", name);
    }
    return f;
}

static int close_target(FILE *f, bool pipe) {
    if (f != NULL && (pipe ? pclose(f) : fclose(f)) != 0) {
        return l2c_session_error(NULL, "the output could not be written whole");
    }
    return L2C_EXIT_DONE;
}

static int run_output(l2c_shell *sh, const char *const *args, size_t args_count) {
    int rc = close_target(sh->output, sh->output_pipe);
    sh->output = NULL;
    if (args_count > 0 && strcmp(args[0], "stdout") != 0) {
        sh->output = open_target(args[0], &sh->output_pipe);
        rc = sh->output != NULL ? rc : L2C_EXIT_FAILED;
    }
    return rc;
}

static int run_once(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    close_target(sh->once, sh->once_pipe);
    sh->once = open_target(args[0], &sh->once_pipe);
    return sh->once != NULL ? L2C_EXIT_DONE : L2C_EXIT_FAILED;
}

static int run_read(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    if (sh->read_depth >= 10) {
        return l2c_session_error(NULL, "%s: .read is nested too deeply", args[0]);
    }
    FILE *f = fopen(args[0], "r");
    if (f == NULL) {
        return l2c_session_error(NULL, "could not read %s", args[0]);
    }
    sh->read_depth++;
    int rc = l2c_shell_read(sh, f);
    sh->read_depth--;
    fclose(f);
    return rc;
}

static int run_backup(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args_count;
    l2cdb_error err;
    return l2cdb_backup(sh->db, args[0], NULL, NULL, &err) == L2CDB_OK ? L2C_EXIT_DONE
                                                                       : l2c_session_fail(&err);
}

static int run_generations(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    return ask(sh, "SELECT id, state, model, label, images, captions, created_at FROM generations",
               NULL);
}

static int run_index(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    return ask(sh,
               "SELECT target, kind, quant, rows, fresh_rows, round(recall, 3) AS recall,"
               " building, why FROM index_status",
               NULL);
}

static int run_recall(l2c_shell *sh, const char *const *args, size_t args_count) {
    size_t k = args_count > 0 ? strtoul(args[0], NULL, 10) : 10;
    if (k == 0 || k > 1000) {
        return wrong("\"%s\" is no number of neighbours from 1 to 1000", args[0]);
    }
    l2cdb_index_recall r;
    l2cdb_error err;
    if (l2cdb_measure_recall(sh->db, L2CDB_IMAGES, k, 200, 0, false, &r, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    printf("recall@%" PRIu64 " %.4f over %" PRIu64 " photos; %.3f ms a query, exactly %.3f ms\n",
           r.k, r.recall, r.samples, r.query_ms, r.exact_ms);
    return L2C_EXIT_DONE;
}

static int run_preview(l2c_shell *sh, const char *const *args, size_t args_count) {
    l2c_preview_mode mode = L2C_PREVIEW_AUTO;
    if (args_count > 0 && !l2c_preview_mode_parse(&mode, args[0])) {
        return wrong("\"%s\" is no way to show pictures; there are " L2C_PREVIEW_MODES, args[0]);
    }
    sh->sql.preview = mode;
    return L2C_EXIT_DONE;
}

static int run_param(l2c_shell *sh, const char *const *args, size_t args_count) {
    if (args_count == 0 || strcmp(args[0], "list") == 0) {
        for (size_t i = 0; i < sh->params.count; i++) {
            const l2c_sql_param *x = &sh->params.list[i];
            switch (x->type) {
            case L2C_PARAM_INT:
                printf("%s = %" PRId64 "\n", x->name, x->integer);
                break;
            case L2C_PARAM_REAL:
                printf("%s = %.15g\n", x->name, x->real);
                break;
            case L2C_PARAM_TEXT:
                printf("%s = '%s'\n", x->name, x->data);
                break;
            case L2C_PARAM_BLOB:
                printf("%s = %zu bytes\n", x->name, x->size);
                break;
            case L2C_PARAM_NULL:
                printf("%s = NULL\n", x->name);
                break;
            }
        }
        return L2C_EXIT_DONE;
    }
    if (strcmp(args[0], "clear") == 0) {
        l2c_sql_params_clear(&sh->params);
        return L2C_EXIT_DONE;
    }
    if (strcmp(args[0], "set") != 0 || args_count != 3) {
        return wrong("%s: expected .param set NAME VALUE, .param list or .param clear", args[0]);
    }
    size_t size = strlen(args[1]) + strlen(args[2]) + 2;
    char *assignment = malloc(size);
    if (assignment == NULL) {
        return l2c_session_error(NULL, "out of memory");
    }
    snprintf(assignment, size, "%s=%s", args[1], args[2]);
    int rc = l2c_sql_params_set(&sh->params, assignment);
    free(assignment);
    return rc;
}

static int run_show(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    printf("database   %s\nmode       %s\nexpanded   %s\nheaders    %s\ntimer      %s\nbail       "
           "%s\n",
           l2cdb_path(sh->db), l2c_render_mode_name(sh->mode), sh->expanded ? "on" : "off",
           sh->sql.render.headers ? "on" : "off", sh->sql.timer ? "on" : "off",
           sh->bail ? "on" : "off");
    return L2C_EXIT_DONE;
}

static int run_quit(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    sh->quit = true;
    return L2C_EXIT_DONE;
}

static const shell_command commands[] = {
    { ".help", "\\?", "", "this list", 0, 0, run_help },
    { ".open", "\\c", "FILE", "close this database and open or make another", 1, 1, run_open },
    { ".tables", "\\dt", "", "tables and table-like questions", 0, 0, run_tables },
    { ".schema", NULL, "[TABLE]", "columns of a table, or how the file is built", 0, 1,
      run_schema },
    { "\\d", NULL, "[TABLE]", "the tables, or the columns of one", 0, 1, run_describe },
    { ".mode", NULL, "[MODE]", L2C_RENDER_MODES, 0, 1, run_mode },
    { "\\x", NULL, "[on|off]", "expanded display: one field a line", 0, 1, run_expanded },
    { ".headers", NULL, "[on|off]", "names of columns above the rows", 0, 1, run_headers },
    { ".nullvalue", NULL, "TEXT", "what stands for NULL", 1, 1, run_nullvalue },
    { ".separator", NULL, "TEXT", "between the fields of csv", 1, 1, run_separator },
    { ".timer", "\\timing", "[on|off]", "rows and time of each statement", 0, 1, run_timer },
    { ".output", "\\o", "[FILE or |COMMAND]", "send answers there, or back to the terminal", 0, 1,
      run_output },
    { ".once", NULL, "FILE or |COMMAND", "the same for the next answer only", 1, 1, run_once },
    { ".read", "\\i", "FILE", "run the statements and commands of a file", 1, 1, run_read },
    { ".backup", NULL, "FILE", "write a consistent copy of the database", 1, 1, run_backup },
    { ".param", NULL, "set NAME VALUE", "a value for :NAME; also list, clear", 0, 3, run_param },
    { ".generations", NULL, "", "vector spaces and their state", 0, 0, run_generations },
    { ".index", NULL, "", "the indexes", 0, 0, run_index },
    { ".recall", NULL, "[K]", "how many of the K nearest the index finds", 0, 1, run_recall },
    { ".preview", NULL, "[MODE]", "pictures beside rows: " L2C_PREVIEW_MODES, 0, 1, run_preview },
    { ".echo", NULL, "[on|off]", "print statements before they run", 0, 1, run_echo },
    { ".bail", NULL, "[on|off]", "stop at the first error of a script", 0, 1, run_bail },
    { ".show", NULL, "", "the shell's settings", 0, 0, run_show },
    { ".quit", "\\q", "", "leave", 0, 0, run_quit },
    { ".exit", NULL, "", "leave", 0, 0, run_quit },
    { NULL, NULL, NULL, NULL, 0, 0, NULL },
};

static int run_help(l2c_shell *sh, const char *const *args, size_t args_count) {
    (void)sh;
    (void)args;
    (void)args_count;
    for (const shell_command *c = commands; c->name != NULL; c++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", c->name, c->usage);
        printf("%-30s %s%s%s%s\n", left, c->help, c->alias != NULL ? " (" : "",
               c->alias != NULL ? c->alias : "", c->alias != NULL ? ")" : "");
    }
    return L2C_EXIT_DONE;
}

/* ---- Lines -------------------------------------------------------------------------------------
 */

const char *const *l2c_shell_command_names(void) {
    static const char *names[2 * sizeof commands / sizeof commands[0]];
    size_t n = 0;
    for (const shell_command *c = commands; c->name != NULL; c++) {
        names[n++] = c->name;
        if (c->alias != NULL) {
            names[n++] = c->alias;
        }
    }
    names[n] = NULL;
    return names;
}

/* Words of a line, in place; quotes hold blanks together. False if a quote never closes. */
static bool split(char *line, const char *words[WORDS_MAX], size_t *count) {
    *count = 0;
    char *c = line;
    for (;;) {
        c += strspn(c, " \t");
        if (*c == '\0' || *count == WORDS_MAX) {
            return true;
        }
        if (*c == '\'' || *c == '"') {
            char quote = *c++;
            words[(*count)++] = c;
            c = strchr(c, quote);
            if (c == NULL) {
                return false;
            }
            *c++ = '\0';
        } else {
            words[(*count)++] = c;
            c += strcspn(c, " \t");
            if (*c != '\0') {
                *c++ = '\0';
            }
        }
    }
}

/* By its whole name, or by a beginning that only one has, as in sqlite3. */
static const shell_command *find(const char *word) {
    const shell_command *found = NULL;
    size_t matches = 0;
    for (const shell_command *c = commands; c->name != NULL; c++) {
        if (strcmp(c->name, word) == 0 || (c->alias != NULL && strcmp(c->alias, word) == 0)) {
            return c;
        }
        if (word[0] == '.' && word[1] != '\0' && strncmp(c->name, word, strlen(word)) == 0) {
            found = c;
            matches++;
        }
    }
    return matches == 1 ? found : NULL;
}

int l2c_shell_command(l2c_shell *sh, const char *line) {
    char *copy = strdup(line);
    const char *words[WORDS_MAX];
    size_t count;
    if (copy == NULL) {
        return l2c_session_error(NULL, "out of memory");
    }
    int rc;
    const shell_command *c = NULL;
    size_t name_size = strcspn(copy, " \t");
    const char *rest = line + name_size + strspn(line + name_size, " \t");
    if (*rest == '|') { // a command for the system's shell, which has quotes of its own
        copy[name_size] = '\0';
        words[0] = copy;
        words[1] = rest;
        count = 2;
        c = find(words[0]);
        rc = c != NULL && (c->run == run_once || c->run == run_output)
                 ? c->run(sh, words + 1, 1)
                 : wrong("%s takes no |COMMAND", words[0]);
    } else if (!split(copy, words, &count)) {
        rc = wrong("%s: a quote is not closed", line);
    } else if ((c = find(words[0])) == NULL) {
        rc = wrong("there is no command %s; .help lists them", words[0]);
    } else if (count - 1 < c->args_min || count - 1 > c->args_max) {
        fprintf(stderr, "l2cdb: usage: %s %s\n", c->name, c->usage);
        rc = L2C_EXIT_USAGE;
    } else {
        rc = c->run(sh, words + 1, count - 1);
    }
    free(copy);
    return rc;
}
