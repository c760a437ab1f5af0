#ifndef L2CDB_BASE_CLOCK_H
#define L2CDB_BASE_CLOCK_H

#include <time.h>

/* Monotonic seconds from an arbitrary start; any thread. */
static inline double l2c_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#endif
