/* A flag that one thread (or a signal handler) raises and others poll: the `cancel` of everything
 * that takes long. Plain atomic accesses, relaxed: nothing else is published through it. Compiler
 * builtins and not stdatomic.h, because index.h is read by C++ too. */
#ifndef L2CDB_BASE_FLAG_H
#define L2CDB_BASE_FLAG_H

#include <stdbool.h>
#include <stddef.h>

typedef struct l2c_flag {
    bool raised;
} l2c_flag;

static inline void l2c_flag_set(l2c_flag *f, bool raised) {
    __atomic_store_n(&f->raised, raised, __ATOMIC_RELAXED);
}

/* False for NULL. */
static inline bool l2c_flag_raised(const l2c_flag *f) {
    return f != NULL && __atomic_load_n(&f->raised, __ATOMIC_RELAXED);
}

#endif
