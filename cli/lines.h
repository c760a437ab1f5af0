/* A text file as lines. */
#ifndef L2C_LINES_H
#define L2C_LINES_H

#include <stddef.h>

typedef struct l2c_lines {
    char **lines; /* without their \n (and \r\n) */
    size_t *sizes;
    size_t count;
} l2c_lines;

/* All lines of `path` ("-" is stdin); empty ones count. Returns an exit status; errors are printed.
 * *out starts zeroed and is released by l2c_lines_fini. */
int l2c_lines_read(l2c_lines *out, const char *path);
void l2c_lines_fini(l2c_lines *l);

#endif
