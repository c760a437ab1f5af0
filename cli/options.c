/* The table-driven option parser (the idea: git's parse-options). Own code rather than getopt_long
 * because help, did-you-mean and value checks come from the same table. */
#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

l2c_common l2c_options_common;

static const char *const precisions[] = { "auto", "f32", "bf16", "int8", NULL };

static const l2c_option db_options[] = {
    { 0, "db", L2C_OPTION_STRING, &l2c_options_common.db, "FILE",
      "the database (default: $L2CDB_DB, else ./photos.l2cdb if\nit exists, else "
      "~/.local/share/l2cdb/photos.l2cdb)",
      NULL },
    { 0 },
};
static const l2c_option model_options[] = {
    { 0, "model", L2C_OPTION_STRING, &l2c_options_common.model, "DIR",
      "the model (default: the database's, or the built-in one\nfor a new database)", NULL },
    { 0, "precision", L2C_OPTION_CHOICE, &l2c_options_common.precision, "P",
      "auto, f32, bf16 or int8 (default auto: the fastest that\nkeeps the tolerance)", precisions },
    { 0, "threads", L2C_OPTION_SIZE, &l2c_options_common.threads, "N",
      "threads for encoding and index builds (default: all cores)", NULL },
    { 0 },
};
static const l2c_option every_options[] = {
    { 'q', "quiet", L2C_OPTION_ON, &l2c_options_common.quiet, NULL, "no progress, no notes", NULL },
    { 'v', "verbose", L2C_OPTION_ON, &l2c_options_common.verbose, NULL,
      "the library's log on stderr", NULL },
    { 0 },
};

/* ---- Tables of a command --------------------------------------------------------------------- */

// The tables that apply to a command, in the order of its help; NULL-terminated.
static void tables_of(const l2c_command *command, const l2c_option *tables[5]) {
    size_t n = 0;
    if (command->options != NULL) {
        tables[n++] = command->options;
    }
    if (command->flags & L2C_COMMAND_DB) {
        tables[n++] = db_options;
    }
    if (command->flags & L2C_COMMAND_MODEL) {
        tables[n++] = model_options;
    }
    tables[n++] = every_options;
    tables[n] = NULL;
}

static const l2c_option *find_short(const l2c_option *const *tables, char name) {
    for (; *tables != NULL; tables++) {
        for (const l2c_option *o = *tables; o->kind != L2C_OPTION_END; o++) {
            if (o->short_name == name) {
                return o;
            }
        }
    }
    return NULL;
}

// By full name or unambiguous beginning; *matches tells 0, 1 or several.
static const l2c_option *find_long(const l2c_option *const *tables, const char *name, size_t n,
                                   size_t *matches) {
    const l2c_option *found = NULL;
    *matches = 0;
    for (; *tables != NULL; tables++) {
        for (const l2c_option *o = *tables; o->kind != L2C_OPTION_END; o++) {
            if (strncmp(o->name, name, n) != 0) {
                continue;
            }
            if (o->name[n] == '\0') {
                *matches = 1;
                return o;
            }
            found = o;
            ++*matches;
        }
    }
    return *matches == 1 ? found : NULL;
}

/* ---- Did you mean ---------------------------------------------------------------------------- */

// Edits (insert, delete, replace, swap neighbours) from a to b, at most 63 bytes each.
static size_t distance(const char *a, const char *b) {
    size_t rows[3][64];
    size_t m = strlen(a), n = strlen(b);
    if (m > 63 || n > 63) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= n; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= m; i++) {
        size_t *now = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = last[j] + 1 < best ? last[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best) {
                best = before[j - 2] + 1;
            }
            now[j] = best;
        }
    }
    return rows[m % 3][n];
}

const char *l2c_options_nearest(const char *typed, const char *const *names, size_t count) {
    const char *nearest = NULL;
    size_t least = strlen(typed) / 3 + 2; // a third of the word may be wrong
    for (size_t i = 0; i < count; i++) {
        size_t d = distance(typed, names[i]);
        if (d < least) {
            least = d;
            nearest = names[i];
        }
    }
    return nearest;
}

static const char *nearest_option(const l2c_option *const *tables, const char *typed) {
    const char *names[128];
    size_t n = 0;
    for (; *tables != NULL; tables++) {
        for (const l2c_option *o = *tables; o->kind != L2C_OPTION_END && n < 128; o++) {
            names[n++] = o->name;
        }
    }
    return l2c_options_nearest(typed, names, n);
}

/* ---- Errors and help ------------------------------------------------------------------------- */

int l2c_options_wrong(const l2c_command *command, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fputs("l2cdb: ", stderr);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nusage: l2cdb %s [options]%s%s\n`l2cdb help %s` tells more\n", command->name,
            *command->usage != '\0' ? " " : "", command->usage, command->name);
    return L2C_EXIT_USAGE;
}

static void help_option(const l2c_option *o, FILE *out) {
    char left[64];
    int n = o->short_name != 0 ? snprintf(left, sizeof left, "  -%c, --%s", o->short_name, o->name)
                               : snprintf(left, sizeof left, "      --%s", o->name);
    if (o->arg != NULL) {
        n += snprintf(left + n, sizeof left - (size_t)n, " %s", o->arg);
    }
    // A long left side gets a line of its own.
    fprintf(out, "%s%s%*s", left, n > 24 ? "\n" : "", n > 24 ? 26 : 26 - n, "");
    for (const char *line = o->help; line != NULL;) {
        const char *end = strchr(line, '\n');
        if (end == NULL) {
            fprintf(out, "%s\n", line);
            break;
        }
        fprintf(out, "%.*s\n%26s", (int)(end - line), line, "");
        line = end + 1;
    }
}

void l2c_options_help(const l2c_command *command, FILE *out) {
    fprintf(out, "l2cdb %s: %s\n\nusage: l2cdb %s [options]%s%s\n\noptions:\n", command->name,
            command->summary, command->name, *command->usage != '\0' ? " " : "", command->usage);
    const l2c_option *tables[5];
    tables_of(command, tables);
    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const l2c_option *o = tables[t]; o->kind != L2C_OPTION_END; o++) {
            help_option(o, out);
        }
    }
    if (command->help != NULL) {
        fprintf(out, "\n%s", command->help);
    }
}

/* ---- Values ---------------------------------------------------------------------------------- */

static bool parse_uint64(uint64_t *out, const char *s, bool suffix) {
    if (*s < '0' || *s > '9') {
        return false;
    }
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno != 0) {
        return false;
    }
    if (suffix && *end != '\0') {
        static const char units[] = "kMGT";
        const char *unit = strchr(units, *end == 'K' ? 'k' : *end);
        if (unit == NULL) {
            return false;
        }
        unsigned shift = 10 * ((unsigned)(unit - units) + 1);
        if (v > UINT64_MAX >> shift) {
            return false;
        }
        v <<= shift;
        end++;
    }
    *out = v;
    return *end == '\0';
}

static bool parse_int64(int64_t *out, const char *s) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    *out = v;
    return errno == 0 && end != s && *end == '\0';
}

static bool parse_real(double *out, const char *s) {
    char *end;
    *out = strtod(s, &end);
    return end != s && *end == '\0' && isfinite(*out);
}

static bool parse_choice(const char **out, const char *s, const char *const *choices) {
    for (; *choices != NULL; choices++) {
        if (strcmp(*choices, s) == 0) {
            *out = *choices;
            return true;
        }
    }
    return false;
}

static bool list_add(l2c_list *list, const char *value) {
    const char **more = realloc(list->values, (list->count + 1) * sizeof *more);
    if (more == NULL) {
        return false;
    }
    list->values = more;
    list->values[list->count++] = value;
    return true;
}

// Stores a value; NULL when it fits, else what was expected.
static const char *store(const l2c_option *o, const char *value) {
    uint64_t u;
    switch (o->kind) {
    case L2C_OPTION_END:
        break;
    case L2C_OPTION_ON:
    case L2C_OPTION_OFF:
        *(bool *)o->value = o->kind == L2C_OPTION_ON;
        return NULL;
    case L2C_OPTION_STRING:
        *(const char **)o->value = value;
        return NULL;
    case L2C_OPTION_SIZE:
        if (!parse_uint64(&u, value, false) || u > SIZE_MAX) {
            return "a whole number";
        }
        *(size_t *)o->value = (size_t)u;
        return NULL;
    case L2C_OPTION_UINT64:
        return parse_uint64(o->value, value, false) ? NULL : "a whole number";
    case L2C_OPTION_INT64:
        return parse_int64(o->value, value) ? NULL : "a whole number";
    case L2C_OPTION_REAL:
        return parse_real(o->value, value) ? NULL : "a number";
    case L2C_OPTION_BYTES:
        return parse_uint64(o->value, value, true) ? NULL : "a size such as 512M or 4G";
    case L2C_OPTION_LIST:
        return list_add(o->value, value) ? NULL : "memory";
    case L2C_OPTION_CHOICE:
        return parse_choice(o->value, value, o->choices) ? NULL : "";
    }
    return "an option";
}

static int wrong_value(const l2c_command *command, const l2c_option *o, const char *value,
                       const char *expected) {
    if (o->kind != L2C_OPTION_CHOICE) {
        return l2c_options_wrong(command, "--%s needs %s, not \"%s\"", o->name, expected, value);
    }
    char list[256] = "";
    for (size_t i = 0, n = 0; o->choices[i] != NULL && n < sizeof list; i++) {
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i > 0 ? ", " : "", o->choices[i]);
    }
    return l2c_options_wrong(command, "--%s takes %s, not \"%s\"", o->name, list, value);
}

/* ---- Parsing --------------------------------------------------------------------------------- */

typedef struct parser {
    const l2c_command *command;
    const l2c_option *tables[5];
    int argc, at;
    char **argv;
} parser;

// The value of option `o`: what follows in the word, or the next word.
static int take_value(parser *p, const l2c_option *o, const char *attached) {
    const char *value = attached;
    if (o->arg != NULL && value == NULL) {
        if (p->at >= p->argc) {
            return l2c_options_wrong(p->command, "--%s needs a value: %s", o->name, o->arg);
        }
        value = p->argv[p->at++];
    } else if (o->arg == NULL && value != NULL) {
        return l2c_options_wrong(p->command, "--%s takes no value", o->name);
    }
    const char *expected = store(o, value);
    return expected == NULL ? L2C_EXIT_DONE : wrong_value(p->command, o, value, expected);
}

static int parse_long(parser *p, const char *word) {
    const char *equals = strchr(word, '=');
    size_t n = equals != NULL ? (size_t)(equals - word) : strlen(word);
    size_t matches;
    const l2c_option *o = find_long(p->tables, word, n, &matches);
    if (o != NULL) {
        return take_value(p, o, equals != NULL ? equals + 1 : NULL);
    }
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)(n < 60 ? n : 60), word);
    if (matches > 1) {
        return l2c_options_wrong(p->command, "--%s could mean several options", name);
    }
    const char *near = nearest_option(p->tables, name);
    return near != NULL ? l2c_options_wrong(
                              p->command, "there is no option --%s; did you mean --%s?", name, near)
                        : l2c_options_wrong(p->command, "there is no option --%s", name);
}

static int parse_short(parser *p, const char *word) {
    while (*word != '\0') {
        const l2c_option *o = find_short(p->tables, *word);
        if (o == NULL) {
            return l2c_options_wrong(p->command, "there is no option -%c", *word);
        }
        word++;
        bool attached = o->arg != NULL && *word != '\0';
        int rc = take_value(p, o, attached ? word : NULL);
        if (rc != L2C_EXIT_DONE || attached) {
            return rc;
        }
    }
    return L2C_EXIT_DONE;
}

static int check_count(const l2c_command *command, size_t count) {
    if (count < command->args_min) {
        return l2c_options_wrong(command, "%s is missing",
                                 *command->usage != '\0' ? command->usage : "an argument");
    }
    if (count > command->args_max) {
        return l2c_options_wrong(command, "too many arguments: %zu, at most %zu", count,
                                 command->args_max);
    }
    return L2C_EXIT_DONE;
}

int l2c_options_run(const l2c_command *command, int argc, char **argv) {
    parser p = { .command = command, .argc = argc, .argv = argv };
    tables_of(command, p.tables);
    const char **args = calloc((size_t)argc + 1, sizeof *args);
    if (args == NULL) {
        fputs("l2cdb: out of memory\n", stderr);
        return L2C_EXIT_FAILED;
    }
    size_t count = 0;
    int rc = L2C_EXIT_DONE;
    bool options_over = false;
    while (p.at < argc && rc == L2C_EXIT_DONE) {
        const char *word = argv[p.at++];
        // "-", and "-0.5:text" of a query, are arguments; no option's name begins with a digit.
        if (options_over || word[0] != '-' || word[1] == '\0' || isdigit((unsigned char)word[1])) {
            args[count++] = word;
        } else if (strcmp(word, "--") == 0) {
            options_over = true;
        } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            l2c_options_help(command, stdout);
            free(args);
            return L2C_EXIT_DONE;
        } else {
            rc = word[1] == '-' ? parse_long(&p, word + 2) : parse_short(&p, word + 1);
        }
    }
    if (rc == L2C_EXIT_DONE) {
        rc = check_count(command, count);
    }
    if (rc == L2C_EXIT_DONE) {
        rc = command->run(args, count);
    }
    free(args);
    return rc;
}
