/* The k best rows seen so far: a heap with the worst on top. Order is by distance, then by id, so
 * that every path that sees the same rows answers with the same rows. */
#ifndef L2C_TOP_H
#define L2C_TOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `row` is the row's place in its snapshot: base rows first, then fresh rows. */
typedef struct l2c_hit {
    float distance;
    uint32_t row;
    int64_t id;
} l2c_hit;

typedef struct l2c_top {
    l2c_hit *hits; /* room for k; the owner's */
    size_t k, n;
} l2c_top;

static inline bool l2c_hit_before(const l2c_hit *a, const l2c_hit *b) {
    return a->distance < b->distance || (a->distance == b->distance && a->id < b->id);
}

/* Rows with a greater distance need not be offered. */
static inline float l2c_top_worst(const l2c_top *t) {
    return t->n < t->k ? __builtin_inff() : t->k > 0 ? t->hits[0].distance : -1.0f;
}

void l2c_top_offer(l2c_top *t, l2c_hit hit);
/* Ascending order; the heap is used up. */
void l2c_top_sort(l2c_top *t);
void l2c_hits_sort(l2c_hit *hits, size_t n);

#endif
