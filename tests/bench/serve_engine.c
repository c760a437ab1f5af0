/* The engine without the server, for comparison: the rows of a query file in turn, k = 10, from
 * THREADS threads through the public interface.
 *
 *   serve_engine DB QUERIES.npy THREADS SECONDS
 *
 * Prints: queries, queries a second, milliseconds at the 50th and 99th percentile, and processor
 * milliseconds a query. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/l2cdb.h"

#define TIMES_MAX 1000000

typedef struct worker {
    pthread_t thread;
    size_t first, count;
    float *times;
} worker;

static l2cdb *db;
static float *queries;
static size_t rows, width;
static double seconds;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void search(size_t row) {
    l2cdb_error err;
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_VECTOR,
                             .data = queries + row % rows * width,
                             .size = width * sizeof(float),
                             .weight = 1 };
    q.terms_count = 1;
    l2cdb_results *r;
    if (l2cdb_search(db, &q, &r, &err) != L2CDB_OK) {
        fprintf(stderr, "serve_engine: %s\n", err.message);
        exit(1);
    }
    l2cdb_results_free(r);
}

static void *run(void *arg) {
    worker *w = arg;
    double start = now(CLOCK_MONOTONIC), t = start;
    for (size_t row = w->first; t - start < seconds && w->count < TIMES_MAX; row++) {
        search(row);
        double end = now(CLOCK_MONOTONIC);
        w->times[w->count++] = (float)((end - t) * 1e3);
        t = end;
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    l2cdb_error err;
    if (argc != 5) {
        fputs("usage: serve_engine DB QUERIES.npy THREADS SECONDS\n", stderr);
        return 2;
    }
    size_t threads = strtoul(argv[3], NULL, 10);
    seconds = strtod(argv[4], NULL);
    if (l2cdb_open(&db, argv[1], NULL, &err) != L2CDB_OK ||
        l2cdb_vectors_read(argv[2], &queries, &rows, &width, &err) != L2CDB_OK) {
        fprintf(stderr, "serve_engine: %s\n", err.message);
        return 1;
    }
    worker *workers = calloc(threads, sizeof *workers);
    for (size_t i = 0; i < 200; i++) {
        search(i * 7);
    }
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID), start = now(CLOCK_MONOTONIC);
    for (size_t i = 0; i < threads; i++) {
        workers[i].first = i * 997;
        workers[i].times = malloc(TIMES_MAX * sizeof(float));
        pthread_create(&workers[i].thread, NULL, run, &workers[i]);
    }
    size_t total = 0;
    for (size_t i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        total += workers[i].count;
    }
    double elapsed = now(CLOCK_MONOTONIC) - start;
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    float *all = malloc(total * sizeof *all);
    for (size_t i = 0, at = 0; i < threads; i++) {
        for (size_t j = 0; j < workers[i].count; j++) {
            all[at++] = workers[i].times[j];
        }
        free(workers[i].times);
    }
    qsort(all, total, sizeof *all, by_value);
    printf("requests %zu  rate %.0f/s  p50 %.3f  p99 %.3f ms  cpu %.4f ms a query\n", total,
           (double)total / elapsed, (double)all[total / 2], (double)all[total * 99 / 100],
           cpu * 1e3 / (double)total);
    free(all);
    free(workers);
    l2cdb_vectors_free(queries);
    l2cdb_close(db);
    return 0;
}
