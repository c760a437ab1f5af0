/* A bounded heap of hits; see top.h. */
#include "index/top.h"

#include <stdlib.h>

static void sift_down(l2c_hit *h, size_t n, l2c_hit hit) {
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && l2c_hit_before(&h[child], &h[child + 1])) {
            child++;
        }
        if (!l2c_hit_before(&hit, &h[child])) {
            break;
        }
        h[i] = h[child];
        i = child;
    }
    h[i] = hit;
}

void l2c_top_offer(l2c_top *t, l2c_hit hit) {
    if (t->n < t->k) {
        size_t i = t->n++;
        while (i > 0 && l2c_hit_before(&t->hits[(i - 1) / 2], &hit)) {
            t->hits[i] = t->hits[(i - 1) / 2];
            i = (i - 1) / 2;
        }
        t->hits[i] = hit;
    } else if (t->k > 0 && l2c_hit_before(&hit, &t->hits[0])) {
        sift_down(t->hits, t->n, hit);
    }
}

static int compare(const void *a, const void *b) {
    const l2c_hit *x = a, *y = b;
    return l2c_hit_before(x, y) ? -1 : l2c_hit_before(y, x) ? 1 : 0;
}

void l2c_hits_sort(l2c_hit *hits, size_t n) {
    if (n > 1) {
        qsort(hits, n, sizeof *hits, compare);
    }
}

void l2c_top_sort(l2c_top *t) {
    l2c_hits_sort(t->hits, t->n);
}
