/* One run of a command against one database: which file, opening it, Ctrl-C, and errors in words.
 */
#ifndef L2C_SESSION_H
#define L2C_SESSION_H

#include <stdbool.h>

#include "engine/l2cdb.h"

/* Where the database is: --db, else $L2CDB_DB, else ./photos.l2cdb if it exists, else
 * $XDG_DATA_HOME/l2cdb/photos.l2cdb (~/.local/share when unset). A static buffer. */
const char *l2c_session_path(void);
/* True if --db or $L2CDB_DB named it. */
bool l2c_session_path_given(void);

enum {
    L2C_SESSION_CREATE = 1,  /* make it when it is not there, folders included */
    L2C_SESSION_READ = 2,    /* only reads */
    L2C_SESSION_SCRATCH = 4, /* when there is none, or --model is given without --db: in memory */
};

/* Options with --model, --precision and --threads filled in. */
void l2c_session_options(l2cdb_open_options *o);

/* Opens the database; options NULL: l2c_session_options. From then on the first Ctrl-C interrupts
 * it and the second kills the program. Returns an exit status; not DONE: the error is printed. */
int l2c_session_open(l2cdb **out, const l2cdb_open_options *options, unsigned flags);
/* Closes it; until that is done Ctrl-C still ends what close waits for. NULL accepted. */
void l2c_session_close(l2cdb *db);

/* Prints "l2cdb: message" and the hint on stderr; returns L2C_EXIT_FAILED. */
int l2c_session_fail(const l2cdb_error *err);
/* The same for what the cli itself finds; hint may be NULL. */
int l2c_session_error(const char *hint, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The library's warnings (all of its log with -v) on stderr from now on. */
void l2c_session_log(void);

#endif
