/* A directory tree in the order of names, without what is excluded. */
#ifndef L2C_WALK_H
#define L2C_WALK_H

#include <sys/stat.h>

#include "engine/base/mem.h"

typedef struct l2c_walk_options {
    const char *const *excludes; /* gitignore patterns from the root */
    size_t excludes_count;
    /* A regular file (or a link to one). An error stops the walk and is returned. */
    l2cdb_status (*on_file)(void *ctx, const char *path, const struct stat *st, l2cdb_error *err);
    /* A directory or file that could not be read; the walk goes on. */
    void (*on_problem)(void *ctx, const char *path, const char *reason);
    /* A file or directory that a pattern or rule leaves out. */
    void (*on_excluded)(void *ctx, const char *path, const char *reason);
    void *ctx;
} l2c_walk_options;

/* root: an absolute path of a directory. Hidden entries and links to directories are left out;
 * .l2cdbignore is read in every directory. */
l2cdb_status l2c_walk(const char *root, const l2c_walk_options *o, l2cdb_error *err);

#endif
