/* The interactive shell: what its files share. shell.c reads and runs, shell_commands.c has the
 * commands that begin with a dot, shell_edit.c the line editor. */
#ifndef L2C_SHELL_H
#define L2C_SHELL_H

#include <stdbool.h>
#include <stdio.h>

#include "cli/sql_text.h"
#include "engine/l2cdb.h"

/* Tables of the file that are the store's own and not shown among the user's. */
#define L2C_SHELL_STORE_TABLES                                                                     \
    "'setting', 'change', 'image', 'image_path', 'original', 'thumbnail', 'caption', 'trunk',"     \
    " 'feature', 'generation', 'head', 'embedding', 'removal', 'sqlite_sequence', 'caption_fts',"  \
    " 'caption_fts_data', 'caption_fts_idx', 'caption_fts_docsize', 'caption_fts_config'"

typedef struct l2c_shell {
    l2cdb *db;
    l2c_sql_text_options sql;
    l2c_sql_params params;
    bool interactive; /* statements come from a terminal */
    bool expanded;    /* \x */
    bool echo, bail, quit;
    char *separator, *null; /* what render borrows */
    FILE *output;           /* .output; NULL: stdout */
    FILE *once;             /* .once: for the next statement only */
    bool once_pipe, output_pipe;
    l2c_render_mode mode; /* as chosen; expanded overrides it */
    unsigned read_depth;  /* nested .read */
} l2c_shell;

/* Runs lines until end of input or .quit. With a terminal on stdin and stdout it edits lines. */
int l2c_shell_run(l2c_shell *sh);
/* Lines of a file or of stdin that is no terminal. Returns an exit status. */
int l2c_shell_read(l2c_shell *sh, FILE *in);
/* Statements that stand in `text`, with the output where the shell sends it. */
int l2c_shell_sql(l2c_shell *sh, const char *text);

/* A line that begins with '.' or '\'. Returns an exit status. */
int l2c_shell_command(l2c_shell *sh, const char *line);
/* The names of all commands, for completion; ends with NULL. */
const char *const *l2c_shell_command_names(void);

/* Opens `path` (created if need be) and closes what was open; an exit status. */
int l2c_shell_open(l2c_shell *sh, const char *path);

/* ---- The line editor ---- */

typedef struct l2c_shell_edit l2c_shell_edit;

/* NULL without memory. History is kept in $L2CDB_HISTORY, else ~/.l2cdb_history. */
l2c_shell_edit *l2c_shell_edit_open(l2c_shell *sh);
void l2c_shell_edit_close(l2c_shell_edit *e);
/* One line without its end, valid until the next call; NULL at end of input. *interrupted is true
 * when Ctrl-C ended the line instead. */
const char *l2c_shell_edit_line(l2c_shell_edit *e, bool continues, bool *interrupted);
/* A complete statement or command goes into the history as one entry. */
void l2c_shell_edit_remember(l2c_shell_edit *e, const char *text);

#endif
