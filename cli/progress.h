/* One line on stderr that tells how far long work is; nothing at all when stderr is no terminal. */
#ifndef L2C_PROGRESS_H
#define L2C_PROGRESS_H

#include <stdbool.h>

#include "engine/l2cdb.h"

typedef struct l2c_progress {
    const char *unit; /* what is counted: "photos", "pairs", "rows"; borrowed */
    double shown_s;   /* when the line was last drawn */
} l2c_progress;

/* An l2cdb_progress_fn whose ctx is an l2c_progress. False once the user pressed Ctrl-C. */
bool l2c_progress_show(void *ctx, const l2cdb_progress *p);

/* Takes the line off the screen, before anything else is printed and at the end. */
void l2c_progress_clear(void);

/* "1,234,567" into out[0..32); returns out. */
const char *l2c_progress_count(char out[32], uint64_t n);
/* "0.4 s", "12.3 s", "4 min 05 s", "2 h 04 min" into out[0..32); returns out. */
const char *l2c_progress_duration(char out[32], double seconds);
/* "512 B", "1.4 MB" (powers of 1,000) into out[0..32); returns out. */
const char *l2c_progress_bytes(char out[32], uint64_t n);

#endif
