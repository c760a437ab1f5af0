/* The shell's loop: lines are collected until a statement is complete, then run. A line that begins
 * with a dot or a backslash, outside a statement, is a command. */
#include "cli/shell.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/session.h"
#include "cli/term.h"

/* ---- Output ------------------------------------------------------------------------------------
 */

static bool is_installed(const char *program) {
    const char *path = getenv("PATH");
    for (const char *at = path; at != NULL && *at != '\0';) {
        size_t size = strcspn(at, ":");
        char name[4096];
        snprintf(name, sizeof name, "%.*s/%s", (int)size, at, program);
        if (access(name, X_OK) == 0) {
            return true;
        }
        at += at[size] == ':' ? size + 1 : size;
    }
    return false;
}

/* A pager for answers to a terminal: `less -FSRXK` leaves at once when all of it fits, and on
 * Ctrl-C. */
static FILE *open_pager(void) {
    const char *pager = getenv("PAGER");
    if (pager != NULL ? *pager == '\0' : !is_installed("less")) {
        return NULL;
    }
    setenv("LESS", "-FSRXK", 0);
    return popen(pager != NULL ? pager : "less", "w");
}

static void choose_output(l2c_shell *sh, FILE **pager) {
    *pager = NULL;
    l2c_render_options *r = &sh->sql.render;
    FILE *out = sh->once != NULL ? sh->once : sh->output != NULL ? sh->output : stdout;
    bool terminal = out == stdout && sh->interactive && isatty(STDOUT_FILENO) != 0;
    if (terminal && sh->sql.preview == L2C_PREVIEW_OFF) {
        *pager = open_pager();
    }
    r->out = *pager != NULL ? *pager : out;
    r->colour = terminal && l2c_term_colour(stdout);
    r->mode = sh->expanded ? L2C_RENDER_LINE : sh->mode;
    r->columns_max = terminal ? l2c_term_columns(stdout) : 0;
}

static void close_once(l2c_shell *sh) {
    if (sh->once != NULL && (sh->once_pipe ? pclose(sh->once) : fclose(sh->once)) != 0) {
        l2c_session_error(NULL, "the output of .once could not be written whole");
    }
    sh->once = NULL;
}

int l2c_shell_sql(l2c_shell *sh, const char *text) {
    FILE *pager;
    choose_output(sh, &pager);
    sh->sql.params = &sh->params;
    sh->sql.go_on = !sh->bail;
    // A reader of ours that stops early (a pager that was left) is no reason to die.
    struct sigaction ignore = { .sa_handler = SIG_IGN }, before;
    sigaction(SIGPIPE, &ignore, &before);
    l2c_interrupt_take();
    int rc = l2c_sql_text_run(sh->db, text, &sh->sql);
    if (pager != NULL) {
        pclose(pager);
    }
    close_once(sh);
    sigaction(SIGPIPE, &before, NULL);
    l2c_interrupt_take();
    return rc;
}

/* ---- Lines -------------------------------------------------------------------------------------
 */

/* What has been typed of a statement. */
typedef struct draft {
    char *text;
    size_t size, capacity;
} draft;

static bool draft_add(draft *d, const char *line) {
    size_t more = strlen(line) + 2;
    if (d->size + more > d->capacity) {
        size_t capacity = (d->size + more) * 2;
        char *text = realloc(d->text, capacity);
        if (text == NULL) {
            return false;
        }
        d->text = text;
        d->capacity = capacity;
    }
    d->size += (size_t)snprintf(d->text + d->size, more, "%s%s", d->size > 0 ? "\n" : "", line);
    return true;
}

static bool draft_blank(const draft *d) {
    return d->size == 0 || strspn(d->text, " \t\r\n;") == d->size;
}

static bool is_command(const char *line) {
    return line[0] == '.' || line[0] == '\\';
}

/* Adds a line; runs the statement if it is complete now. */
static int take_line(l2c_shell *sh, draft *d, const char *line, l2c_shell_edit *edit) {
    if (d->size == 0 && is_command(line)) {
        if (edit != NULL) {
            l2c_shell_edit_remember(edit, line);
        }
        return l2c_shell_command(sh, line);
    }
    if (!draft_add(d, line)) {
        return l2c_session_error(NULL, "out of memory");
    }
    if (draft_blank(d)) {
        d->size = 0;
        return L2C_EXIT_DONE;
    }
    if (!l2cdb_sql_complete(d->text)) {
        return L2C_EXIT_DONE;
    }
    if (edit != NULL) {
        l2c_shell_edit_remember(edit, d->text);
    }
    if (sh->echo) {
        printf("%s\n", d->text);
    }
    int rc = l2c_shell_sql(sh, d->text);
    d->size = 0;
    return rc;
}

/* What is left when the input ends is run as it is: a script may forget its last semicolon. */
static int finish(l2c_shell *sh, draft *d) {
    int rc = L2C_EXIT_DONE;
    if (!draft_blank(d) && !sh->quit) {
        rc = l2c_shell_sql(sh, d->text);
    }
    free(d->text);
    return rc;
}

int l2c_shell_read(l2c_shell *sh, FILE *in) {
    draft d = { 0 };
    char *line = NULL;
    size_t capacity = 0;
    int worst = L2C_EXIT_DONE;
    while (!sh->quit && getline(&line, &capacity, in) >= 0) {
        line[strcspn(line, "\r\n")] = '\0';
        int rc = take_line(sh, &d, line, NULL);
        worst = rc != L2C_EXIT_DONE ? rc : worst;
        if (worst != L2C_EXIT_DONE && sh->bail) {
            d.size = 0;
            break;
        }
        if (l2c_interrupt_take()) {
            worst = L2C_EXIT_FAILED;
            break;
        }
    }
    free(line);
    int rc = finish(sh, &d);
    return rc != L2C_EXIT_DONE ? rc : worst;
}

static int edit_lines(l2c_shell *sh) {
    l2c_shell_edit *edit = l2c_shell_edit_open(sh);
    if (edit == NULL) {
        return l2c_session_error(NULL, "the line editor could not be started");
    }
    draft d = { 0 };
    while (!sh->quit) {
        bool given_up = false;
        const char *line = l2c_shell_edit_line(edit, d.size > 0, &given_up);
        if (given_up) {
            d.size = 0;
            continue;
        }
        if (line == NULL) {
            break;
        }
        (void)take_line(sh, &d, line, edit); // has said what went wrong; the shell goes on
    }
    if (!sh->quit) {
        fputc('\n', stdout); // after Ctrl-D
    }
    free(d.text);
    l2c_shell_edit_close(edit);
    return L2C_EXIT_DONE;
}

int l2c_shell_run(l2c_shell *sh) {
    sh->interactive = isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
    sh->bail = !sh->interactive;
    sh->sql.changes = sh->interactive;
    l2c_interrupt_watch(sh->db, false);
    if (!sh->interactive) {
        return l2c_shell_read(sh, stdin);
    }
    printf("l2cdb %s on %s\nType .help for commands; statements end with a semicolon.\n",
           l2cdb_version(), l2cdb_path(sh->db));
    return edit_lines(sh);
}

int l2c_shell_open(l2c_shell *sh, const char *path) {
    l2cdb_open_options o;
    l2cdb_error err;
    l2cdb *db;
    l2c_session_options(&o);
    l2c_session_log();
    if (l2cdb_open(&db, path, &o, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    l2c_session_close(sh->db);
    sh->db = db;
    l2c_interrupt_watch(db, false);
    return L2C_EXIT_DONE;
}
