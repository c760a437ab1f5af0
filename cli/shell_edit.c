/* The line editor: libedit's own interface, because its readline imitation cannot tell Ctrl-C from
 * the end of the input. */
#include <ctype.h>
#include <histedit.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/shell.h"
#include "cli/term.h"

#define HISTORY_ENTRIES 2000
#define WORDS_MAX 4096

struct l2c_shell_edit {
    l2c_shell *shell;
    EditLine *el;
    History *history;
    char *history_path;
    char *line;
    bool continues;
    char **words; /* tables, columns, functions of the open database */
    size_t words_count;
    l2cdb *words_of;
};

static char *prompt(EditLine *el) {
    static char first[] = "l2cdb> ", more[] = "  ...> ";
    l2c_shell_edit *e;
    el_get(el, EL_CLIENTDATA, &e);
    return e->continues ? more : first;
}

/* ---- Completion --------------------------------------------------------------------------------
 */

static void forget_words(l2c_shell_edit *e) {
    for (size_t i = 0; i < e->words_count; i++) {
        free(e->words[i]);
    }
    free(e->words);
    e->words = NULL;
    e->words_count = 0;
}

static void add_word(l2c_shell_edit *e, const char *word) {
    for (size_t i = 0; i < e->words_count; i++) {
        if (strcasecmp(e->words[i], word) == 0) {
            return;
        }
    }
    char **words =
        e->words_count < WORDS_MAX ? realloc(e->words, (e->words_count + 1) * sizeof *words) : NULL;
    if (words == NULL) {
        return;
    }
    e->words = words;
    e->words[e->words_count] = strdup(word);
    e->words_count += e->words[e->words_count] != NULL ? 1 : 0;
}

static void add_answers(l2c_shell_edit *e, const char *sql) {
    l2cdb_stmt *s;
    l2cdb_error err;
    bool row = true;
    if (l2cdb_prepare(e->shell->db, sql, NULL, &s, &err) != L2CDB_OK) {
        return;
    }
    while (l2cdb_step(s, &row, &err) == L2CDB_OK && row) {
        if (l2cdb_column_text(s, 0) != NULL) {
            add_word(e, l2cdb_column_text(s, 0));
        }
    }
    l2cdb_finalize(s);
}

/* Collected anew at each Tab: a table that was just made can be completed. */
static void collect_words(l2c_shell_edit *e) {
    static const char *const keywords[] = {
        "SELECT",      "FROM",
        "WHERE",       "ORDER BY",
        "GROUP BY",    "LIMIT",
        "OFFSET",      "HAVING",
        "JOIN",        "LEFT",
        "USING",       "DISTINCT",
        "BETWEEN",     "LIKE",
        "GLOB",        "MATCH",
        "INSERT INTO", "VALUES",
        "UPDATE",      "DELETE FROM",
        "EXPLAIN",     "CREATE",
        "INDEX",       "TABLE",
        "VIEW",        "WITH",
        "UNION",       "EXCEPT",
        "INTERSECT",   "CASE",
        "WHEN",        "THEN",
        "SET",         "TUNE ADAPTER FROM",
        "REINDEX",     "ROLLBACK GENERATION",
        NULL,
    };
    forget_words(e);
    static const char *const tables[] = { "images", "captions",           "generations",
                                          "models", "index_status",       "similar",
                                          "hybrid", "nearest_duplicates", NULL };
    for (size_t i = 0; tables[i] != NULL; i++) {
        char sql[128];
        add_word(e, tables[i]);
        snprintf(sql, sizeof sql, "SELECT name FROM pragma_table_xinfo('%s')", tables[i]);
        add_answers(e, sql);
    }
    // The user's own tables and their columns; those of the store are not for reading.
    add_answers(e, "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
                   " AND name NOT IN (" L2C_SHELL_STORE_TABLES ")");
    add_answers(e, "SELECT p.name FROM sqlite_schema m, pragma_table_info(m.name) p"
                   " WHERE m.type IN ('table', 'view')"
                   " AND m.name NOT IN (" L2C_SHELL_STORE_TABLES ")");
    add_answers(e,
                "SELECT DISTINCT name || '(' FROM pragma_function_list WHERE name GLOB '[a-z]*'");
    for (size_t i = 0; keywords[i] != NULL; i++) {
        add_word(e, keywords[i]);
    }
}

/* The candidates that begin with word[0..size); how many of them, and how long their common
 * beginning is. */
static size_t candidates(char *const *words, size_t words_count, const char *word, size_t size,
                         const char **found, size_t found_max, size_t *common) {
    size_t count = 0;
    for (size_t i = 0; i < words_count; i++) {
        if (strncasecmp(words[i], word, size) != 0) {
            continue;
        }
        if (count == 0) {
            *common = strlen(words[i]);
        }
        if (count < found_max) {
            found[count] = words[i];
        }
        size_t same = 0;
        while (same < *common && found[0][same] != '\0' &&
               strncasecmp(found[0] + same, words[i] + same, 1) == 0) {
            same++;
        }
        *common = same;
        count++;
    }
    return count;
}

static void list_candidates(const char *const *found, size_t count) {
    size_t width = 0, columns = l2c_term_columns(stdout), at = 0;
    for (size_t i = 0; i < count; i++) {
        width = strlen(found[i]) + 2 > width ? strlen(found[i]) + 2 : width;
    }
    fputc('\n', stdout);
    for (size_t i = 0; i < count; i++) {
        if (at + width > columns && at > 0) {
            fputc('\n', stdout);
            at = 0;
        }
        printf("%-*s", (int)width, found[i]);
        at += width;
    }
    fputc('\n', stdout);
    fflush(stdout);
}

static unsigned char complete(EditLine *el, int character) {
    (void)character;
    enum { FOUND_MAX = 200 };
    l2c_shell_edit *e;
    el_get(el, EL_CLIENTDATA, &e);
    const LineInfo *info = el_line(el);
    const char *start = info->cursor;
    bool command = !e->continues && (info->buffer[0] == '.' || info->buffer[0] == '\\');
    while (start > info->buffer && (isalnum((unsigned char)start[-1]) || start[-1] == '_' ||
                                    (command && strchr(".\\", start[-1]) != NULL))) {
        start--;
    }
    size_t size = (size_t)(info->cursor - start);
    const char *found[FOUND_MAX];
    size_t common = 0, count;
    if (command && start == info->buffer) {
        const char *const *names = l2c_shell_command_names();
        size_t n = 0;
        while (names[n] != NULL) {
            n++;
        }
        count =
            candidates((char *const *)(uintptr_t)names, n, start, size, found, FOUND_MAX, &common);
    } else {
        collect_words(e);
        count = size > 0
                    ? candidates(e->words, e->words_count, start, size, found, FOUND_MAX, &common)
                    : 0;
    }
    if (count == 0) {
        return CC_REFRESH_BEEP;
    }
    if (common > size) {
        char insert[256];
        snprintf(insert, sizeof insert, "%.*s%s", (int)(common - size), found[0] + size,
                 count == 1 && found[0][common - 1] != '(' ? " " : "");
        el_insertstr(el, insert);
        return CC_REFRESH;
    }
    if (count == 1) {
        return CC_REFRESH;
    }
    list_candidates(found, count < FOUND_MAX ? count : FOUND_MAX);
    return CC_REDISPLAY;
}

/* ---- History -----------------------------------------------------------------------------------
 */

static char *history_path(void) {
    const char *named = getenv("L2CDB_HISTORY"), *home = getenv("HOME");
    if (named != NULL) {
        return *named != '\0' ? strdup(named) : NULL;
    }
    if (home == NULL || *home != '/') {
        return NULL;
    }
    size_t size = strlen(home) + sizeof "/.l2cdb_history";
    char *path = malloc(size);
    if (path != NULL) {
        snprintf(path, size, "%s/.l2cdb_history", home);
    }
    return path;
}

void l2c_shell_edit_remember(l2c_shell_edit *e, const char *text) {
    char *one = strdup(text);
    if (one == NULL) {
        return;
    }
    // One line, unless a line comment would then swallow the rest.
    for (char *c = one; strstr(one, "--") == NULL && *c != '\0'; c++) {
        *c = *c == '\n' ? ' ' : *c;
    }
    HistEvent event;
    history(e->history, &event, H_ENTER, one);
    if (e->history_path != NULL) {
        history(e->history, &event, H_SAVE, e->history_path);
    }
    free(one);
}

/* ---- Lines -------------------------------------------------------------------------------------
 */

l2c_shell_edit *l2c_shell_edit_open(l2c_shell *sh) {
    l2c_shell_edit *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return NULL;
    }
    e->shell = sh;
    e->el = el_init("l2cdb", stdin, stdout, stderr);
    e->history = history_init();
    if (e->el == NULL || e->history == NULL) {
        l2c_shell_edit_close(e);
        return NULL;
    }
    HistEvent event;
    history(e->history, &event, H_SETSIZE, HISTORY_ENTRIES);
    history(e->history, &event, H_SETUNIQUE, 1);
    e->history_path = history_path();
    if (e->history_path != NULL) {
        history(e->history, &event, H_LOAD, e->history_path);
    }
    el_set(e->el, EL_CLIENTDATA, e);
    el_set(e->el, EL_PROMPT, prompt);
    el_set(e->el, EL_EDITOR, "emacs");
    el_set(e->el, EL_HIST, history, e->history);
    el_set(e->el, EL_ADDFN, "l2c-complete", "complete tables, columns, functions", complete);
    el_set(e->el, EL_BIND, "^I", "l2c-complete", NULL);
    el_set(e->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(e->el, NULL); // ~/.editrc has the last word
    return e;
}

void l2c_shell_edit_close(l2c_shell_edit *e) {
    if (e == NULL) {
        return;
    }
    if (e->el != NULL) {
        el_end(e->el);
    }
    if (e->history != NULL) {
        history_end(e->history);
    }
    forget_words(e);
    free(e->history_path);
    free(e->line);
    free(e);
}

const char *l2c_shell_edit_line(l2c_shell_edit *e, bool continues, bool *given_up) {
    e->continues = continues;
    *given_up = false;
    int size = 0;
    l2c_interrupt_take();
    const char *line = el_gets(e->el, &size);
    if (l2c_interrupt_take()) {
        el_reset(e->el);
        fputs("^C\n", stdout);
        fflush(stdout);
        *given_up = true;
        return NULL;
    }
    if (line == NULL || size <= 0) {
        return NULL;
    }
    free(e->line);
    e->line = strdup(line);
    if (e->line != NULL) {
        e->line[strcspn(e->line, "\r\n")] = '\0';
    }
    return e->line;
}
