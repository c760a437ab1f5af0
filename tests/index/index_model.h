/* A brute-force model of an index and of the store behind it, for the tests of this folder.
 *
 * The model is both the source (count, pull, replay) and the truth that answers are checked
 * against. Distances of the model are computed in double from its own vectors. */
#ifndef L2C_INDEX_MODEL_H
#define L2C_INDEX_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/index.h"

typedef struct model_change {
    int64_t id;
    bool added;
} model_change;

typedef struct model {
    size_t width;
    int64_t ids_max; /* ids are 1 … ids_max */
    float *vectors;  /* [ids_max + 1, width] */
    bool *live;      /* [ids_max + 1] */
    size_t count;
    model_change *log; /* change i + 1 */
    size_t log_count, log_capacity;
    int64_t log_first; /* changes up to this one are forgotten */
    int clusters;
    float *centres;
    uint64_t seed;
    size_t pulls;
    pthread_mutex_t lock;
} model;

void model_init(model *m, size_t width, int64_t ids_max, int clusters, uint64_t seed);
void model_fini(model *m);

uint64_t model_random(model *m);         /* 64 random bits */
size_t model_below(model *m, size_t n);  /* 0 … n − 1 */
void model_vector(model *m, float *out); /* a new unit vector near some centre */

/* The store's side of a change; the number of the change. */
int64_t model_put(model *m, int64_t id, const float *vector);
int64_t model_drop(model *m, int64_t id);

l2c_index_source model_source(model *m);

/* Checks that (ids, distances) are `found` distinct live rows that pass, in ascending order, with
 * right distances, and exactly min(k, matches) of them. Returns the overlap with the true answer,
 * 0 … 1; fails the test otherwise. filter NULL: everything passes. */
double model_check(model *m, const int64_t *ids, const float *distances, size_t found,
                   const float *query, size_t k, const l2c_index_filter *filter);

/* Starts the program again with one OpenMP thread, unless it runs so already: libgomp's threads do
 * not survive a fork, and ThreadSanitizer does not know its barriers. */
void model_one_thread(char **argv);

#endif
