/* Commands and their options as tables: one table gives parsing, help and errors.
 *
 *   static struct { size_t limit; bool json; } o;
 *   static const l2c_option options[] = {
 *       { 'n', "limit", L2C_OPTION_SIZE, &o.limit, "N", "rows to print (default 10)" },
 *       { 0 },
 *   };
 *   const l2c_command l2c_cmd_search = { .name = "search", .options = options, .run = run, … };
 *
 * Options may stand before, between and after arguments; "--" ends them, and so "-" and "+" alone
 * are arguments. Long options may be shortened as long as they stay unambiguous; "--name=value" and
 * "--name value", "-n5" and "-n 5" mean the same. */
#ifndef L2C_OPTIONS_H
#define L2C_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What a program of ours exits with. */
enum {
    L2C_EXIT_DONE = 0,
    L2C_EXIT_FAILED = 1, /* could not do it */
    L2C_EXIT_USAGE = 2,  /* was asked wrongly */
};

typedef enum l2c_option_kind {
    L2C_OPTION_END, /* what { 0 } is */
    L2C_OPTION_ON,  /* bool, becomes true */
    L2C_OPTION_OFF, /* bool, becomes false */
    L2C_OPTION_STRING,
    L2C_OPTION_SIZE,   /* size_t */
    L2C_OPTION_UINT64, /* uint64_t */
    L2C_OPTION_INT64,  /* int64_t */
    L2C_OPTION_REAL,   /* double */
    L2C_OPTION_BYTES,  /* uint64_t; takes k, M, G, T in powers of 1,024 */
    L2C_OPTION_LIST,   /* l2c_list; may be repeated */
    L2C_OPTION_CHOICE, /* const char *, one of `choices` */
} l2c_option_kind;

/* Values of an option that may be repeated; the strings are borrowed from argv. */
typedef struct l2c_list {
    const char **values;
    size_t count;
} l2c_list;

typedef struct l2c_option {
    char short_name; /* 0: none */
    const char *name;
    l2c_option_kind kind;
    void *value;                /* of the kind's type; left alone when the option is not given */
    const char *arg;            /* name of the value in help; NULL for ON and OFF */
    const char *help;           /* one or more lines, wrapped by hand at 56 columns with \n */
    const char *const *choices; /* CHOICE: NULL-terminated */
} l2c_option;

enum {
    L2C_COMMAND_DB = 1,     /* takes --db */
    L2C_COMMAND_MODEL = 2,  /* takes --model, --precision, --threads */
    L2C_COMMAND_HIDDEN = 4, /* works, but help does not list it */
};

typedef struct l2c_command {
    const char *name;          /* "generations" */
    const char *usage;         /* what follows the options: "DIR…"; "" for nothing */
    const char *summary;       /* one line for the list of commands */
    const char *help;          /* paragraphs and examples after the options; may be NULL */
    const l2c_option *options; /* ends with { 0 }; may be NULL */
    unsigned flags;
    size_t args_min, args_max; /* args_max SIZE_MAX: any */
    /* args[0..args_count) are the arguments without options; returns the exit status. */
    int (*run)(const char *const *args, size_t args_count);
} l2c_command;

/* Options that every command has; common.c opens databases by them. */
typedef struct l2c_common {
    const char *db, *model, *precision;
    size_t threads;
    bool quiet;   /* no progress, no notes */
    bool verbose; /* the library's log on stderr */
} l2c_common;
extern l2c_common l2c_options_common;

/* Parses argv[0..argc), which follows the command's name, and runs it. */
int l2c_options_run(const l2c_command *command, int argc, char **argv);

/* The full help of a command. */
void l2c_options_help(const l2c_command *command, FILE *out);

/* The nearest of `count` names to a mistyped one, NULL if none is near. */
const char *l2c_options_nearest(const char *typed, const char *const *names, size_t count);

/* "l2cdb: message", then "usage: …" and where to read more; returns L2C_EXIT_USAGE. */
int l2c_options_wrong(const l2c_command *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
