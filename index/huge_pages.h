/* Memory that is read at random wants pages of 2 MiB: with small ones each row misses the TLB,
 * which costs a search an eighth of its time. Advice only; without it everything works. Linux. */
#ifndef L2C_HUGE_PAGES_H
#define L2C_HUGE_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

/* The whole pages of 2 MiB in [p, p + bytes): memory not touched yet gets them at its first touch,
 * other memory in the background. (Moving it at once, MADV_COLLAPSE, costs half a second a GB.) */
static inline void l2c_huge_pages(const void *p, size_t bytes) {
    const uintptr_t mask = ((uintptr_t)2 << 20) - 1;
    uintptr_t from = ((uintptr_t)p + mask) & ~mask, to = ((uintptr_t)p + bytes) & ~mask;
    if (from < to) {
        madvise((void *)from, to - from, MADV_HUGEPAGE);
    }
}

#endif
