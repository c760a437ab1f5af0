/* Vector questions through the public door, by SQL and by l2cdb_search; one JSON object a line.
 *
 *   sql_bench --db X.l2cdb --queries q.npy [--threads 2] [--breadth 16,32,64]
 *             [--where "meta->>'n' < 10"]
 *
 * Each thread binds its rows of q.npy in turn to
 *   SELECT id FROM images ORDER BY embedding <=> ? LIMIT 10
 * Times are wall time; recall is the overlap with the same statement under search.exact. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/l2cdb.h"

#define K 10
#define ROUNDS 3

typedef enum door { SQL, SEARCH } door;

typedef struct worker {
    pthread_t thread;
    door by;
    size_t from, to, rounds;
    int64_t *ids; /* [rows, K], 0 where fewer were found */
} worker;

static l2cdb *db;
static const char *where;
static float *queries;
static size_t rows, width;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void need(l2cdb_status rc, const l2cdb_error *err) {
    if (rc != L2CDB_OK) {
        fprintf(stderr, "sql_bench: %s\n", err->message);
        exit(1);
    }
}

static void ask_sql(l2cdb_stmt *s, size_t row, int64_t *ids) {
    l2cdb_error err = { 0 };
    bool more;
    need(l2cdb_bind_vector(s, 1, queries + row * width, width), &err);
    size_t n = 0;
    for (;;) {
        need(l2cdb_step(s, &more, &err), &err);
        if (!more) {
            break;
        }
        ids[n++] = l2cdb_column_int64(s, 0);
    }
    need(l2cdb_reset(s), &err);
}

static void ask_search(size_t row, int64_t *ids) {
    l2cdb_error err;
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_VECTOR,
                             .data = queries + row * width,
                             .size = width * sizeof(float),
                             .weight = 1 };
    q.terms_count = 1;
    q.where = where;
    l2cdb_results *r;
    need(l2cdb_search(db, &q, &r, &err), &err);
    for (size_t i = 0; i < l2cdb_results_count(r); i++) {
        ids[i] = l2cdb_results_row(r, i)->id;
    }
    l2cdb_results_free(r);
}

static void *work(void *ctx) {
    worker *w = ctx;
    l2cdb_stmt *s = NULL;
    l2cdb_error err;
    char sql[1024];
    snprintf(sql, sizeof sql, "SELECT id FROM images %s %s ORDER BY embedding <=> ? LIMIT %d",
             where != NULL ? "WHERE" : "", where != NULL ? where : "", K);
    need(l2cdb_prepare(db, sql, NULL, &s, &err), &err);
    for (size_t round = 0; round < w->rounds; round++) {
        for (size_t row = w->from; row < w->to; row++) {
            if (w->by == SQL) {
                ask_sql(s, row, w->ids + row * K);
            } else {
                ask_search(row, w->ids + row * K);
            }
        }
    }
    l2cdb_finalize(s);
    return NULL;
}

/* Seconds for all rows, `rounds` times, in `threads` threads. */
static double run(door by, size_t threads, size_t rounds, int64_t *ids) {
    worker workers[64];
    double start = now_s();
    for (size_t t = 0; t < threads; t++) {
        workers[t] = (worker){ .by = by,
                               .from = rows * t / threads,
                               .to = rows * (t + 1) / threads,
                               .rounds = rounds,
                               .ids = ids };
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0) {
            fputs("sql_bench: no thread\n", stderr);
            exit(1);
        }
    }
    for (size_t t = 0; t < threads; t++) {
        pthread_join(workers[t].thread, NULL);
    }
    return now_s() - start;
}

static double recall(const int64_t *ids, const int64_t *truth) {
    size_t right = 0, all = 0;
    for (size_t i = 0; i < rows * K; i++) {
        all += truth[i] != 0;
        for (size_t j = i / K * K; j < (i / K + 1) * K && truth[i] != 0; j++) {
            right += ids[j] == truth[i];
        }
    }
    return all > 0 ? (double)right / (double)all : 1;
}

int main(int argc, char **argv) {
    const char *path = NULL, *file = NULL, *breadths = "16,24,32,48,64,96,128";
    size_t threads = 2;
    l2cdb_error err;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--db") == 0) {
            path = argv[i + 1];
        } else if (strcmp(argv[i], "--queries") == 0) {
            file = argv[i + 1];
        } else if (strcmp(argv[i], "--threads") == 0) {
            threads = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--breadth") == 0) {
            breadths = argv[i + 1];
        } else if (strcmp(argv[i], "--where") == 0) {
            where = argv[i + 1];
        }
    }
    if (path == NULL || file == NULL || threads == 0 || threads > 64) {
        fputs("usage: sql_bench --db X.l2cdb --queries q.npy [--threads N] [--breadth A,B]"
              " [--where CONDITION]\n",
              stderr);
        return 2;
    }
    double start = now_s();
    need(l2cdb_open(&db, path, NULL, &err), &err);
    need(l2cdb_vectors_read(file, &queries, &rows, &width, &err), &err);
    int64_t *ids = calloc(rows * K, sizeof *ids), *truth = calloc(rows * K, sizeof *truth);
    ask_search(0, ids);
    printf("{\"what\":\"open\",\"first_answer_s\":%.3f}\n", now_s() - start);
    need(l2cdb_set(db, "search.exact", "on", &err), &err);
    run(SQL, 1, 1, truth);
    printf("{\"what\":\"exact\",\"ms\":%.3f}\n", run(SQL, 1, 1, truth) * 1e3 / (double)rows);
    need(l2cdb_set(db, "search.exact", "off", &err), &err);
    for (const char *at = breadths; at != NULL;) {
        char value[24];
        snprintf(value, sizeof value, "%lu", strtoul(at, NULL, 10));
        need(l2cdb_set(db, "hnsw.ef_search", value, &err), &err);
        for (door by = SQL; by <= SEARCH; by++) {
            memset(ids, 0, rows * K * sizeof *ids);
            run(by, 1, 1, ids);
            double one_s = run(by, 1, ROUNDS, ids), all_s = run(by, threads, ROUNDS, ids);
            printf("{\"what\":\"%s\",\"ef\":%s,\"recall\":%.4f,\"ms\":%.4f,\"qps_%zu_threads\":%."
                   "0f}\n",
                   by == SQL ? "sql" : "search", value, recall(ids, truth),
                   one_s * 1e3 / (double)(rows * ROUNDS), threads, (double)(rows * ROUNDS) / all_s);
            fflush(stdout);
        }
        at = strchr(at, ',');
        at = at != NULL ? at + 1 : NULL;
    }
    free(ids);
    free(truth);
    l2cdb_vectors_free(queries);
    l2cdb_close(db);
    return 0;
}
