/* Patterns of files to leave out, in the syntax of gitignore(5): comments, "!" for exceptions, a
 * slash at the end for directories only, a slash elsewhere to anchor, "*", "?", "[…]" and "**".
 * The last pattern that matches decides. */
#ifndef L2C_IGNORE_H
#define L2C_IGNORE_H

#include <stdbool.h>

#include "engine/base/mem.h"

typedef struct l2c_ignore_rule {
    char *base;    /* directory the rule belongs to, relative to the root, "" or "a/b/" */
    char *pattern; /* without "!" and the slashes at its ends */
    bool negated, dirs_only, anchored;
} l2c_ignore_rule;

typedef struct l2c_ignore {
    l2c_ignore_rule *rules;
    size_t count, capacity;
} l2c_ignore;

/* One line; blank lines and comments add nothing. */
l2cdb_status l2c_ignore_add(l2c_ignore *g, const char *base, const char *line, l2cdb_error *err);
/* The lines of a file; a file that is not there adds nothing. */
l2cdb_status l2c_ignore_read(l2c_ignore *g, const char *base, const char *path, l2cdb_error *err);
/* Takes back what was added beyond `count` rules. */
void l2c_ignore_truncate(l2c_ignore *g, size_t count);
/* path is relative to the root, without a slash at its ends. */
bool l2c_ignore_matches(const l2c_ignore *g, const char *path, bool is_dir);
void l2c_ignore_fini(l2c_ignore *g);

#endif
