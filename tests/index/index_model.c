/* The brute-force model; see index_model.h. */
#include "index_model.h"

#include <math.h>
#include <unistd.h>

#include "tests/test.h"

uint64_t model_random(model *m) {
    uint64_t z = (m->seed += 0x9E3779B97F4A7C15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

size_t model_below(model *m, size_t n) {
    return (size_t)(model_random(m) % n);
}

static float normal(model *m) {
    double u = ((double)(model_random(m) >> 11) + 1) * 0x1p-53;
    double v = (double)(model_random(m) >> 11) * 0x1p-53;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static void normalize(float *x, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++) {
        s += (double)x[i] * (double)x[i];
    }
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)((double)x[i] / sqrt(s));
    }
}

void model_vector(model *m, float *out) {
    const float *c = m->centres + model_below(m, (size_t)m->clusters) * m->width;
    float noise = 0.8f / sqrtf((float)m->width);
    for (size_t i = 0; i < m->width; i++) {
        out[i] = c[i] + noise * normal(m);
    }
    normalize(out, m->width);
}

void model_init(model *m, size_t width, int64_t ids_max, int clusters, uint64_t seed) {
    *m = (model){ .width = width, .ids_max = ids_max, .clusters = clusters, .seed = seed };
    pthread_mutex_init(&m->lock, NULL);
    m->vectors = calloc((size_t)(ids_max + 1) * width, sizeof *m->vectors);
    m->live = calloc((size_t)ids_max + 1, sizeof *m->live);
    m->centres = calloc((size_t)clusters * width, sizeof *m->centres);
    for (size_t i = 0; i < (size_t)clusters; i++) {
        for (size_t j = 0; j < width; j++) {
            m->centres[i * width + j] = normal(m);
        }
        normalize(m->centres + i * width, width);
    }
}

void model_fini(model *m) {
    free(m->vectors);
    free(m->live);
    free(m->centres);
    free(m->log);
    pthread_mutex_destroy(&m->lock);
}

static int64_t record(model *m, int64_t id, bool added) {
    if (m->log_count == m->log_capacity) {
        m->log_capacity = m->log_capacity * 2 + 1024;
        m->log = realloc(m->log, m->log_capacity * sizeof *m->log);
    }
    m->log[m->log_count++] = (model_change){ .id = id, .added = added };
    return (int64_t)m->log_count;
}

int64_t model_put(model *m, int64_t id, const float *vector) {
    pthread_mutex_lock(&m->lock);
    memcpy(m->vectors + (size_t)id * m->width, vector, m->width * sizeof *vector);
    m->count += m->live[id] ? 0 : 1;
    m->live[id] = true;
    int64_t change = record(m, id, true);
    pthread_mutex_unlock(&m->lock);
    return change;
}

int64_t model_drop(model *m, int64_t id) {
    pthread_mutex_lock(&m->lock);
    m->count -= m->live[id] ? 1 : 0;
    m->live[id] = false;
    int64_t change = record(m, id, false);
    pthread_mutex_unlock(&m->lock);
    return change;
}

static l2cdb_status count(void *ctx, size_t *out, l2cdb_error *err) {
    (void)err;
    model *m = ctx;
    pthread_mutex_lock(&m->lock);
    *out = m->count;
    pthread_mutex_unlock(&m->lock);
    return L2CDB_OK;
}

static l2cdb_status pull(void *ctx, int64_t *ids, float *vectors, size_t max, size_t *got,
                         int64_t after_id, l2cdb_error *err) {
    (void)err;
    model *m = ctx;
    pthread_mutex_lock(&m->lock);
    m->pulls++;
    *got = 0;
    for (int64_t id = after_id < 0 ? 1 : after_id + 1; id <= m->ids_max && *got < max; id++) {
        if (m->live[id]) {
            ids[*got] = id;
            memcpy(vectors + *got * m->width, m->vectors + (size_t)id * m->width,
                   m->width * sizeof *vectors);
            ++*got;
        }
    }
    pthread_mutex_unlock(&m->lock);
    return L2CDB_OK;
}

/* As a store does it: an added row comes with its vector of now; if it is gone by now, as a
 * removal. */
static l2cdb_status replay(void *ctx, int64_t *ids, float *vectors, bool *added, size_t max,
                           size_t *got, int64_t since, int64_t *change, l2cdb_error *err) {
    model *m = ctx;
    if (since < m->log_first) {
        return l2c_fail(err, L2CDB_E_NOTFOUND, "changes before %lld are forgotten",
                        (long long)m->log_first);
    }
    pthread_mutex_lock(&m->lock);
    *got = 0;
    for (size_t i = (size_t)since; i < m->log_count && *got < max; i++) {
        int64_t id = m->log[i].id;
        ids[*got] = id;
        added[*got] = m->log[i].added && m->live[id];
        memcpy(vectors + *got * m->width, m->vectors + (size_t)id * m->width,
               m->width * sizeof *vectors);
        ++*got;
        *change = (int64_t)i + 1;
    }
    pthread_mutex_unlock(&m->lock);
    return L2CDB_OK;
}

l2c_index_source model_source(model *m) {
    return (l2c_index_source){ .ctx = m, .count = count, .pull = pull, .replay = replay };
}

static bool passes(const l2c_index_filter *f, int64_t id) {
    if (f == NULL) {
        return true;
    }
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (f->ids[mid] < id) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < f->count && f->ids[lo] == id;
}

static double distance(const model *m, const float *q, int64_t id) {
    const float *v = m->vectors + (size_t)id * m->width;
    double dot = 0;
    for (size_t i = 0; i < m->width; i++) {
        dot += (double)q[i] * (double)v[i];
    }
    return 1 - dot;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double model_check(model *m, const int64_t *ids, const float *distances, size_t found,
                   const float *query, size_t k, const l2c_index_filter *filter) {
    double *all = malloc(((size_t)m->ids_max + 1) * sizeof *all);
    size_t matches = 0;
    for (int64_t id = 1; id <= m->ids_max; id++) {
        if (m->live[id] && passes(filter, id)) {
            all[matches++] = distance(m, query, id);
        }
    }
    if (found != (k < matches ? k : matches)) {
        fail_msg("%zu rows found, expected min(%zu, %zu)", found, k, matches);
    }
    qsort(all, matches, sizeof *all, compare_doubles);
    bool *seen = calloc((size_t)m->ids_max + 1, 1);
    size_t right = 0;
    for (size_t i = 0; i < found; i++) {
        int64_t id = ids[i];
        if (id < 1 || id > m->ids_max || !m->live[id] || !passes(filter, id)) {
            fail_msg("row %lld is not live or does not pass", (long long)id);
        }
        if (seen[id]) {
            fail_msg("row %lld came twice", (long long)id);
        }
        seen[id] = true;
        double d = distance(m, query, id);
        if (fabs(d - (double)distances[i]) > 2e-6) {
            fail_msg("row %lld has distance %.8f, expected %.8f", (long long)id,
                     (double)distances[i], d);
        }
        if (i > 0 && distances[i] < distances[i - 1]) {
            fail_msg("place %zu: %.8f after %.8f", i, (double)distances[i],
                     (double)distances[i - 1]);
        }
        right += d <= all[found - 1] + 1e-6;
    }
    free(all);
    free(seen);
    return found > 0 ? (double)right / (double)found : 1;
}

void model_one_thread(char **argv) {
    const char *threads = getenv("OMP_NUM_THREADS");
    if (threads == NULL || strcmp(threads, "1") != 0) {
        setenv("OMP_NUM_THREADS", "1", 1);
        execv("/proc/self/exe", argv);
    }
}
