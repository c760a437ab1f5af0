/* Speed and recall of the index on vectors from .npy files; one JSON object a line.
 *
 *   index_bench --vectors base.npy --queries q.npy [--path FILE] [--set NAME=VALUE]…
 *               [--breadth 16,32,64] [--k 10] [--threads N] [--filters 0.001,0.01,0.5]
 *
 * base.npy and q.npy are f32 [N,D] and [Q,D] of unit vectors. Times are wall time, so the machine
 * must have nothing else to do; recall is the overlap with the index's own exact search. A file
 * that is at --path already is opened and not built again. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "index/index.h"

typedef struct matrix {
    const float *data;
    size_t rows, width;
} matrix;

static void die(const char *what) {
    fprintf(stderr, "index_bench: %s\n", what);
    exit(1);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static matrix matrix_map(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size < 16) {
        die(path);
    }
    const unsigned char *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    size_t header = p[8] | (size_t)p[9] << 8;
    char *text = strndup((const char *)p + 10, header);
    const char *shape = strstr(text, "'shape': (");
    matrix m = { 0 };
    if (shape == NULL || strstr(text, "'<f4'") == NULL ||
        sscanf(shape + 10, "%zu, %zu", &m.rows, &m.width) != 2) {
        die("expected a two-dimensional f32 .npy file");
    }
    m.data = (const float *)(const void *)(p + 10 + header);
    free(text);
    close(fd);
    return m;
}

static l2cdb_status count_rows(void *ctx, size_t *out, l2cdb_error *err) {
    (void)err;
    *out = ((const matrix *)ctx)->rows;
    return L2CDB_OK;
}

static l2cdb_status pull_rows(void *ctx, int64_t *ids, float *vectors, size_t max, size_t *got,
                              int64_t after_id, l2cdb_error *err) {
    (void)err;
    const matrix *m = ctx;
    size_t first = after_id < 0 ? 0 : (size_t)after_id;
    *got = m->rows - first < max ? m->rows - first : max;
    memcpy(vectors, m->data + first * m->width, *got * m->width * sizeof *vectors);
    for (size_t i = 0; i < *got; i++) {
        ids[i] = (int64_t)(first + i) + 1;
    }
    return L2CDB_OK;
}

static size_t resident_bytes(const char *field) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    size_t kb = 0;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, field, strlen(field)) == 0) {
            kb = strtoul(line + strlen(field) + 1, NULL, 10);
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return kb * 1024;
}

typedef struct run {
    l2c_index *ix;
    const matrix *queries;
    const int64_t *truth;
    size_t k, from, to, rounds;
    l2c_search_params params;
    const l2c_index_filter *filter;
    size_t right, scanned;
    l2c_search_plan plan;
    double seconds;
} run;

static void *run_queries(void *ctx) {
    run *r = ctx;
    int64_t ids[1024];
    float distances[1024];
    l2cdb_error err;
    double start = now_s();
    for (size_t round = 0; round < r->rounds; round++) {
        r->right = r->scanned = 0;
        for (size_t q = r->from; q < r->to; q++) {
            size_t found;
            if (l2c_index_search(r->ix, ids, distances, &found,
                                 r->queries->data + q * r->queries->width, r->k, r->filter,
                                 &r->params, &r->plan, &err) != L2CDB_OK) {
                die(err.message);
            }
            r->scanned += r->plan.rows_scanned;
            for (size_t i = 0; i < found; i++) {
                for (size_t j = 0; j < r->k; j++) {
                    r->right += r->truth[q * r->k + j] == ids[i];
                }
            }
        }
    }
    r->seconds = now_s() - start;
    return NULL;
}

/* Milliseconds a query; the first pass over a file that was just opened also reads and hashes it.
 */
static double exact_truth(l2c_index *ix, const matrix *queries, size_t k, int64_t *truth,
                          const l2c_index_filter *filter) {
    float distances[1024];
    l2cdb_error err;
    double start = now_s();
    for (size_t q = 0; q < queries->rows; q++) {
        size_t found;
        if (l2c_index_search(ix, truth + q * k, distances, &found,
                             queries->data + q * queries->width, k, filter,
                             &(l2c_search_params){ .exact = true }, NULL, &err) != L2CDB_OK) {
            die(err.message);
        }
    }
    return (now_s() - start) * 1e3 / (double)queries->rows;
}

int main(int argc, char **argv) {
    const char *vectors = NULL, *queries_path = NULL, *breadths = "16,24,32,48,64,96,128,192,256";
    const char *filters = NULL, *path = NULL;
    l2c_index_params params = { .kind = L2C_INDEX_HNSW };
    size_t k = 10, threads = 2;
    l2cdb_error err;
    for (int i = 1; i + 1 < argc; i += 2) {
        char *value = argv[i + 1];
        if (strcmp(argv[i], "--vectors") == 0) {
            vectors = value;
        } else if (strcmp(argv[i], "--queries") == 0) {
            queries_path = value;
        } else if (strcmp(argv[i], "--path") == 0) {
            path = value;
        } else if (strcmp(argv[i], "--breadth") == 0) {
            breadths = value;
        } else if (strcmp(argv[i], "--filters") == 0) {
            filters = value;
        } else if (strcmp(argv[i], "--k") == 0) {
            k = strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "--threads") == 0) {
            threads = strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "--set") == 0 && strchr(value, '=') != NULL) {
            char *eq = strchr(value, '=');
            *eq = '\0';
            if (l2c_index_params_set(&params, value, eq + 1, &err) != L2CDB_OK) {
                die(err.message);
            }
        } else {
            die("unknown option");
        }
    }
    if (vectors == NULL || queries_path == NULL || k == 0 || k > 1024) {
        die("--vectors and --queries are needed, --k at most 1024");
    }
    params.threads = threads;
    matrix base = matrix_map(vectors), queries = matrix_map(queries_path);
    l2c_index_config config = { .path = path,
                                .width = base.width,
                                .generation = 1,
                                .change = 1,
                                .params = params,
                                .source = {
                                    .ctx = &base, .count = count_rows, .pull = pull_rows } };
    l2c_index *ix;
    double start = now_s();
    if (l2c_index_open(&ix, &config, &err) != L2CDB_OK) {
        die(err.message);
    }
    double open_s = now_s() - start;
    float distance;
    int64_t id;
    size_t found;
    l2c_index_search(ix, &id, &distance, &found, queries.data, 1, NULL, NULL, NULL, &err);
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    printf("{\"what\":\"open\",\"rows\":%zu,\"kind\":\"%s\",\"open_s\":%.3f,"
           "\"first_answer_s\":%.3f}\n",
           st.rows, l2c_index_kind_name(st.kind), open_s, now_s() - start);
    int64_t *truth = calloc(queries.rows * k, sizeof *truth);
    printf("{\"what\":\"exact\",\"ms\":%.3f}\n", exact_truth(ix, &queries, k, truth, NULL));
    fflush(stdout);
    if (l2c_index_wants_build(ix)) {
        start = now_s();
        if (l2c_index_build(ix, NULL, NULL, NULL, &err) != L2CDB_OK) {
            die(err.message);
        }
        l2c_index_get_status(ix, &st);
        printf("{\"what\":\"build\",\"kind\":\"%s\",\"quant\":\"%s\",\"m\":%zu,\"ef_construction\":"
               "%zu,"
               "\"threads\":%zu,\"s\":%.2f,\"with_tuning_and_file_s\":%.2f,\"bytes_"
               "a_row\":%.0f,"
               "\"ef_search\":%zu,\"nprobe\":%zu,\"recall\":%.4f,\"why\":\"%s\"}\n",
               l2c_index_kind_name(st.kind), l2c_quant_name(st.quant), st.params.m,
               st.params.ef_construction, threads, st.build_s, now_s() - start,
               (double)st.memory_bytes / (double)st.rows, st.params.ef_search, st.params.nprobe,
               st.recall, st.why);
        fflush(stdout);
    }
    bool lists = st.kind == L2C_INDEX_IVF;
    for (const char *at = breadths; at != NULL && st.kind != L2C_INDEX_FLAT;) {
        size_t breadth = strtoul(at, NULL, 10);
        run r = {
            .ix = ix, .queries = &queries, .truth = truth, .k = k, .to = queries.rows, .rounds = 1
        };
        r.params.ef_search = lists ? 0 : breadth;
        r.params.nprobe = lists ? breadth : 0;
        run_queries(&r); // warm
        r.rounds = 3;
        run_queries(&r);
        run parts[64];
        pthread_t ids[64];
        size_t parallel = threads < 64 ? threads : 64;
        start = now_s();
        for (size_t t = 0; t < parallel; t++) {
            parts[t] = r;
            parts[t].from = queries.rows * t / parallel;
            parts[t].to = queries.rows * (t + 1) / parallel;
            pthread_create(&ids[t], NULL, run_queries, &parts[t]);
        }
        for (size_t t = 0; t < parallel; t++) {
            pthread_join(ids[t], NULL);
        }
        double all_s = now_s() - start;
        printf("{\"what\":\"search\",\"breadth\":%zu,\"recall\":%.4f,\"ms\":%.4f,\"qps_%zu_"
               "threads\":%.0f,"
               "\"compared\":%.0f,\"plan\":\"%s\"}\n",
               breadth, (double)r.right / (double)(queries.rows * k),
               r.seconds * 1e3 / (double)(queries.rows * 3), parallel,
               (double)(queries.rows * 3) / all_s, (double)r.scanned / (double)queries.rows,
               l2c_index_kind_name(r.plan.kind));
        fflush(stdout);
        at = strchr(at, ',');
        at = at != NULL ? at + 1 : NULL;
    }
    for (const char *at = filters; at != NULL;) {
        double share = strtod(at, NULL);
        int64_t *ids = malloc(base.rows * sizeof *ids);
        l2c_index_filter f = { .ids = ids };
        uint64_t x = 88172645463325252u; // xorshift
        for (size_t i = 0; i < base.rows; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            if ((double)(x >> 11) * 0x1p-53 < share) {
                ids[f.count++] = (int64_t)i + 1;
            }
        }
        double exact_ms = exact_truth(ix, &queries, k, truth, &f);
        run r = { .ix = ix,
                  .queries = &queries,
                  .truth = truth,
                  .k = k,
                  .to = queries.rows,
                  .rounds = 1,
                  .filter = &f };
        run_queries(&r);
        r.rounds = 3;
        run_queries(&r);
        printf("{\"what\":\"filter\",\"share\":%g,\"rows\":%zu,\"recall\":%.4f,\"ms\":%.4f,\"exact_"
               "ms\":%.4f,"
               "\"plan\":\"%s%s\",\"ef\":%zu,\"compared\":%.0f}\n",
               share, f.count, (double)r.right / (double)(queries.rows * k),
               r.seconds * 1e3 / (double)(queries.rows * 3), exact_ms,
               l2c_index_kind_name(r.plan.kind), r.plan.filter_first ? ", filter first" : "",
               r.plan.ef_search, (double)r.scanned / (double)queries.rows);
        fflush(stdout);
        free(ids);
        at = strchr(at, ',');
        at = at != NULL ? at + 1 : NULL;
    }
    free(truth);
    l2c_index_get_status(ix, &st);
    printf("{\"what\":\"memory\",\"index_bytes_a_row\":%.0f,\"anonymous_bytes_a_row\":%.0f}\n",
           (double)st.memory_bytes / (double)st.rows,
           (double)resident_bytes("RssAnon:") / (double)st.rows);
    l2c_index_close(ix);
    return 0;
}
