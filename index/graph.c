/* Building and searching HNSW graphs; see graph.h.
 *
 * A search keeps one sorted array of the ef best rows, marks those it has expanded, and ends when
 * all are marked. Neighbours of an expanded row are first filtered through a bitmap, then their
 * codes are compared four at a time while the next four and the next row's list are on their way
 * from memory.
 *
 * Building compares 8- or 4-bit codes whatever the index will store: they are limited by memory,
 * and four bits build a graph of nearly the same recall (0.9983 for 0.9987 at ef 64) in 0.8 of the
 * time. Nodes are inserted from the highest level down, so the entry point never changes. A list is
 * only written under its node's lock and read without; a reader that meets a half-written list sees
 * old and new neighbours mixed, all of which are nodes. */
#include "index/graph.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/cpu.h"
#include "engine/base/mem.h"

#define EXPANDED 0x80000000u
#define PROGRESS_ROWS 256

bool l2c_graph_work_grow(l2c_graph_work *w, size_t ef_most) {
    if (ef_most <= w->ef_most) {
        return true;
    }
    l2c_near *pool = l2c_realloc(w->pool, ef_most + 1, sizeof *pool);
    if (pool == NULL) {
        return false;
    }
    w->pool = pool;
    w->ef_most = ef_most;
    return true;
}

bool l2c_graph_work_init(l2c_graph_work *w, const l2c_graph *g, const l2c_codes *codes,
                         size_t ef_most) {
    *w = (l2c_graph_work){ .count = g->count };
    w->row_most = ef_most + g->degree0 + 8;
    w->visited = l2c_calloc(g->count / 64 + 1, sizeof *w->visited);
    w->touched = l2c_alloc(g->count + 1, sizeof *w->touched);
    w->rows = l2c_alloc(w->row_most, sizeof *w->rows);
    w->dots = l2c_alloc(w->row_most, sizeof *w->dots);
    w->query_memory = l2c_alloc_aligned(codes->query_bytes, 1);
    if (w->visited == NULL || w->touched == NULL || w->rows == NULL || w->dots == NULL ||
        w->query_memory == NULL || !l2c_graph_work_grow(w, ef_most)) {
        l2c_graph_work_fini(w);
        return false;
    }
    return true;
}

void l2c_graph_work_fini(l2c_graph_work *w) {
    l2c_free(w->visited);
    l2c_free(w->touched);
    l2c_free(w->pool);
    l2c_free(w->rows);
    l2c_free(w->dots);
    l2c_free(w->query_memory);
    memset(w, 0, sizeof *w);
}

static int32_t load(const int32_t *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void store(int32_t *p, int32_t v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}

static size_t degree_of(const l2c_graph *g, int level) {
    return level == 0 ? g->degree0 : g->degree;
}

static int32_t *list_of(const l2c_graph *g, size_t node, int level) {
    size_t skip = level == 0 ? 0 : g->degree0 + (size_t)(level - 1) * g->degree;
    return g->neighbors + g->offsets[node] + skip;
}

static void forget(l2c_graph_work *w) {
    if (w->touched_count > w->count / 64) {
        memset(w->visited, 0, (w->count / 64 + 1) * sizeof *w->visited);
    } else {
        for (size_t i = 0; i < w->touched_count; i++) {
            w->visited[(uint32_t)w->touched[i] / 64] = 0;
        }
    }
    w->touched_count = 0;
}

/* True the first time. */
static bool visit(l2c_graph_work *w, int32_t row) {
    uint64_t *word = &w->visited[(uint32_t)row / 64], bit = (uint64_t)1 << ((uint32_t)row % 64);
    if (*word & bit) {
        return false;
    }
    *word |= bit;
    w->touched[w->touched_count++] = row;
    return true;
}

/* Keeps the best `ef`; returns the place of the new entry, or ef if it did not make it. */
static size_t pool_put(l2c_graph_work *w, size_t ef, float distance, uint32_t row) {
    l2c_near *pool = w->pool;
    size_t n = w->pool_count;
    if (n == ef && distance >= pool[n - 1].distance) {
        return ef;
    }
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (pool[mid].distance <= distance) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    size_t move = (n == ef ? n - 1 : n) - lo;
    memmove(pool + lo + 1, pool + lo, move * sizeof *pool);
    pool[lo] = (l2c_near){ .distance = distance, .row = row };
    w->pool_count = n == ef ? n : n + 1;
    return lo;
}

/* The neighbours of a node that were not seen before, into w->rows. */
static size_t unseen(const l2c_graph *g, l2c_graph_work *w, size_t node, int level) {
    const int32_t *list = list_of(g, node, level);
    size_t n = 0, most = degree_of(g, level);
    for (size_t i = 0; i < most; i++) {
        int32_t row = load(&list[i]);
        if (row < 0) {
            break;
        }
        if (visit(w, row)) {
            w->rows[n++] = row;
        }
    }
    return n;
}

static void prefetch_list(const l2c_graph *g, size_t node, int level) {
    const int32_t *list = list_of(g, node, level);
    for (size_t i = 0; i < degree_of(g, level); i += 16) {
        __builtin_prefetch(list + i);
    }
}

/* Expands w->pool, which holds the starting point, on one level. A row that enters the pool where
 * it will be expanded next has its list fetched while the rest of its siblings are compared. */
static void search_level(const l2c_graph *g, const l2c_codes_query *q, l2c_graph_work *w, size_t ef,
                         int level) {
    size_t next = 0;
    while (next < w->pool_count) {
        uint32_t node = w->pool[next].row;
        if (node & EXPANDED) {
            next++;
            continue;
        }
        w->pool[next].row = node | EXPANDED;
        size_t n = unseen(g, w, node, level);
        next++;
        w->distances += n;
        l2c_codes_fetch(q, w->rows, n < 4 ? n : 4);
        for (size_t i = 0; i < n; i += 4) {
            size_t m = n - i < 4 ? n - i : 4, left = n - i - m;
            l2c_codes_fetch(q, w->rows + i + m, left < 4 ? left : 4);
            l2c_codes_dots4(w->dots, q, w->rows + i, m);
            for (size_t j = 0; j < m; j++) {
                size_t place = pool_put(w, ef, -w->dots[j], (uint32_t)w->rows[i + j]);
                if (place <= next) {
                    next = place;
                    prefetch_list(g, (size_t)w->rows[i + j], level);
                }
            }
        }
    }
}

/* Moves to the nearest node of a level, one neighbour at a time. */
static void descend(const l2c_graph *g, const l2c_codes_query *q, l2c_graph_work *w, int32_t *node,
                    float *distance, int level) {
    for (;;) {
        const int32_t *list = list_of(g, (size_t)*node, level);
        size_t n = 0;
        for (size_t i = 0; i < g->degree; i++) {
            int32_t row = load(&list[i]);
            if (row < 0) {
                break;
            }
            w->rows[n++] = row;
        }
        l2c_codes_dots(w->dots, q, w->rows, n);
        w->distances += n;
        int32_t best = *node;
        for (size_t i = 0; i < n; i++) {
            if (-w->dots[i] < *distance) {
                *distance = -w->dots[i];
                best = w->rows[i];
            }
        }
        if (best == *node) {
            return;
        }
        *node = best;
    }
}

static void start_at_entry(const l2c_graph *g, const l2c_codes_query *q, l2c_graph_work *w,
                           int32_t *node, float *distance, int down_to) {
    *node = g->entry;
    float dot;
    l2c_codes_dots(&dot, q, node, 1);
    *distance = -dot;
    for (int level = g->max_level; level > down_to; level--) {
        descend(g, q, w, node, distance, level);
    }
}

static void start_level(l2c_graph_work *w, int32_t node, float distance) {
    forget(w);
    visit(w, node);
    w->pool[0] = (l2c_near){ .distance = distance, .row = (uint32_t)node };
    w->pool_count = 1;
}

void l2c_graph_search(const l2c_graph *g, const l2c_codes_query *q, l2c_graph_work *w, size_t ef) {
    w->pool_count = 0;
    if (g->entry < 0) {
        return;
    }
    int32_t node;
    float distance;
    start_at_entry(g, q, w, &node, &distance, 0);
    start_level(w, node, distance);
    search_level(g, q, w, ef, 0);
    for (size_t i = 0; i < w->pool_count; i++) {
        w->pool[i].row &= L2C_NEAR_ROW;
    }
}

/* Building. */

typedef struct builder {
    l2c_graph *g;
    const l2c_codes *codes;
    size_t ef;
    int32_t *order; /* nodes, highest level first */
    atomic_size_t next, done;
    atomic_bool cancelled, out_of_memory;
    atomic_flag *locks;
    l2c_index_progress_fn progress;
    void *ctx;
} builder;

typedef struct worker {
    builder *b;
    l2c_graph_work work;
    l2c_near *candidates;
    int32_t *chosen, *places;
    size_t chosen_count;
    void *pair_memory; /* a second prepared query */
    bool reports;      /* the caller's own thread */
    size_t inserted;
} worker;

static void lock_node(builder *b, size_t node) {
    while (atomic_flag_test_and_set_explicit(&b->locks[node], memory_order_acquire)) {
    }
}

static void unlock_node(builder *b, size_t node) {
    atomic_flag_clear_explicit(&b->locks[node], memory_order_release);
}

/* Malkov and Yashunin, algorithm 4, without refilling: a candidate is kept if no kept one is nearer
 * to it than the node itself. Candidates ascend by distance to the node; row −1 is a dropped one.
 * Each kept candidate is compared with all that are left at once, which needs as many comparisons
 * as asking each candidate about all kept ones and far fewer prepared queries. */
static void choose(worker *k, l2c_near *candidates, size_t n, size_t most) {
    l2c_graph_work *w = &k->work;
    k->chosen_count = 0;
    for (size_t i = 0; i < n && k->chosen_count < most; i++) {
        if (candidates[i].row == UINT32_MAX) {
            continue;
        }
        k->chosen[k->chosen_count++] = (int32_t)candidates[i].row;
        size_t left = 0;
        for (size_t j = i + 1; j < n; j++) {
            if (candidates[j].row != UINT32_MAX) {
                k->places[left] = (int32_t)j;
                w->rows[left++] = (int32_t)candidates[j].row;
            }
        }
        if (left == 0 || k->chosen_count == most) {
            break;
        }
        l2c_codes_query q;
        l2c_codes_prepare_row(&q, k->b->codes, candidates[i].row, k->pair_memory);
        l2c_codes_dots(w->dots, &q, w->rows, left);
        w->distances += left;
        for (size_t j = 0; j < left; j++) {
            if (-w->dots[j] < candidates[k->places[j]].distance) {
                candidates[k->places[j]].row = UINT32_MAX;
            }
        }
    }
}

static int compare_near(const void *a, const void *b) {
    const l2c_near *x = a, *y = b;
    return x->distance < y->distance ? -1 : x->distance > y->distance;
}

/* Adds `row` to a list that is full: the best of all by `choose` stay. */
static void relink(worker *k, size_t node, int32_t row, int level) {
    builder *b = k->b;
    l2c_graph_work *w = &k->work;
    size_t degree = degree_of(b->g, level);
    int32_t *list = list_of(b->g, node, level);
    for (size_t i = 0; i < degree; i++) {
        w->rows[i] = list[i];
    }
    w->rows[degree] = row;
    l2c_codes_query q;
    l2c_codes_prepare_row(&q, b->codes, node, k->pair_memory);
    l2c_codes_dots(w->dots, &q, w->rows, degree + 1);
    w->distances += degree + 1;
    for (size_t i = 0; i <= degree; i++) {
        k->candidates[i] = (l2c_near){ .distance = -w->dots[i], .row = (uint32_t)w->rows[i] };
    }
    qsort(k->candidates, degree + 1, sizeof *k->candidates, compare_near);
    choose(k, k->candidates, degree + 1, degree);
    for (size_t i = 0; i < degree; i++) {
        store(&list[i], i < k->chosen_count ? k->chosen[i] : -1);
    }
}

static void link_to(worker *k, size_t node, int32_t row, int level) {
    builder *b = k->b;
    size_t degree = degree_of(b->g, level);
    int32_t *list = list_of(b->g, node, level);
    lock_node(b, node);
    size_t n = 0;
    while (n < degree && list[n] >= 0 && list[n] != row) {
        n++;
    }
    if (n == degree) {
        relink(k, node, row, level);
    } else if (list[n] < 0) {
        store(&list[n], row);
    }
    unlock_node(b, node);
}

static void link_level(worker *k, int32_t node, int level, int32_t *links, size_t most) {
    l2c_graph_work *w = &k->work;
    size_t n = 0;
    for (size_t i = 0; i < w->pool_count; i++) {
        uint32_t row = w->pool[i].row & L2C_NEAR_ROW;
        if (row != (uint32_t)node) {
            k->candidates[n++] = (l2c_near){ .distance = w->pool[i].distance, .row = row };
        }
    }
    choose(k, k->candidates, n, most);
    size_t count = k->chosen_count;
    memcpy(links, k->chosen, count * sizeof *links);
    for (size_t i = 0; i < count; i++) {
        link_to(k, (size_t)node, links[i], level);
    }
    for (size_t i = 0; i < count; i++) {
        link_to(k, (size_t)links[i], node, level);
    }
}

static void insert(worker *k, int32_t node, int32_t *links) {
    builder *b = k->b;
    const l2c_graph *g = b->g;
    l2c_graph_work *w = &k->work;
    int top = g->levels[node] - 1;
    l2c_codes_query q;
    l2c_codes_prepare_row(&q, b->codes, (size_t)node, w->query_memory);
    int32_t at;
    float distance;
    start_at_entry(g, &q, w, &at, &distance, top);
    for (int level = top < g->max_level ? top : g->max_level; level >= 0; level--) {
        start_level(w, at, distance);
        search_level(g, &q, w, b->ef, level);
        at = (int32_t)(w->pool[0].row & L2C_NEAR_ROW);
        distance = w->pool[0].distance;
        link_level(k, node, level, links, g->degree);
    }
}

static void *work(void *ctx) {
    worker *k = ctx;
    builder *b = k->b;
    size_t n = b->g->count;
    int32_t *links = l2c_alloc(b->g->degree0 + 1, sizeof *links);
    if (links == NULL) {
        atomic_store(&b->out_of_memory, true);
        return NULL;
    }
    while (!atomic_load_explicit(&b->cancelled, memory_order_relaxed)) {
        size_t i = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (i >= n) {
            break;
        }
        insert(k, b->order[i], links);
        size_t done = atomic_fetch_add_explicit(&b->done, 1, memory_order_relaxed) + 1;
        if (k->reports && b->progress != NULL && k->inserted++ % PROGRESS_ROWS == 0 &&
            !b->progress(b->ctx, "build", done, n)) {
            atomic_store(&b->cancelled, true);
        }
    }
    l2c_free(links);
    return NULL;
}

static bool worker_init(worker *k, builder *b) {
    const l2c_graph *g = b->g;
    size_t most = (b->ef > g->degree0 ? b->ef : g->degree0) + 8;
    *k = (worker){ .b = b };
    k->candidates = l2c_alloc(most, sizeof *k->candidates);
    k->chosen = l2c_alloc(most, sizeof *k->chosen);
    k->places = l2c_alloc(most, sizeof *k->places);
    k->pair_memory = l2c_alloc_aligned(b->codes->query_bytes, 1);
    return l2c_graph_work_init(&k->work, g, b->codes, b->ef) && k->candidates != NULL &&
           k->chosen != NULL && k->places != NULL && k->pair_memory != NULL;
}

static void worker_fini(worker *k) {
    l2c_graph_work_fini(&k->work);
    l2c_free(k->candidates);
    l2c_free(k->chosen);
    l2c_free(k->places);
    l2c_free(k->pair_memory);
}

/* Highest level first; rows of one level in their own order. */
static void order_by_level(int32_t *order, const l2c_graph *g, int level_most) {
    size_t at = 0;
    for (int level = level_most; level >= 1; level--) {
        for (size_t i = 0; i < g->count; i++) {
            if (g->levels[i] == level) {
                order[at++] = (int32_t)i;
            }
        }
    }
}

l2cdb_status l2c_graph_build(l2c_graph *g, const l2c_codes *codes, size_t ef_construction,
                             size_t threads, l2c_index_progress_fn progress, void *ctx,
                             l2cdb_error *err) {
    size_t n = g->count;
    g->entry = -1;
    g->max_level = -1;
    if (n == 0) {
        return L2CDB_OK;
    }
    threads = threads > 0 ? threads : l2c_cpu_count();
    threads = threads > n / 256 + 1 ? n / 256 + 1 : threads;
    builder b = { .g = g, .codes = codes, .ef = ef_construction, .progress = progress, .ctx = ctx };
    b.order = l2c_alloc(n, sizeof *b.order);
    b.locks = l2c_calloc(n, sizeof *b.locks);
    worker *workers = l2c_calloc(threads, sizeof *workers);
    pthread_t *ids = l2c_alloc(threads, sizeof *ids);
    bool ready = b.order != NULL && b.locks != NULL && workers != NULL && ids != NULL;
    for (size_t t = 0; ready && t < threads; t++) {
        ready = worker_init(&workers[t], &b);
        workers[t].reports = t == 0;
    }
    if (ready) {
        int level_most = 1;
        for (size_t i = 0; i < n; i++) {
            level_most = g->levels[i] > level_most ? g->levels[i] : level_most;
        }
        order_by_level(b.order, g, level_most);
        g->entry = b.order[0];
        g->max_level = level_most - 1;
        atomic_init(&b.next, 1);
        atomic_init(&b.done, 1);
        size_t started = 1;
        while (started < threads &&
               pthread_create(&ids[started], NULL, work, &workers[started]) == 0) {
            started++;
        }
        work(&workers[0]);
        for (size_t t = 1; t < started; t++) {
            pthread_join(ids[t], NULL);
        }
    }
    for (size_t t = 0; workers != NULL && t < threads; t++) {
        worker_fini(&workers[t]);
    }
    l2c_free(b.order);
    l2c_free((void *)b.locks);
    l2c_free(workers);
    l2c_free(ids);
    if (!ready || atomic_load(&b.out_of_memory)) {
        return l2c_fail_nomem(err, n * (sizeof(int32_t) * 3 + threads / 8));
    }
    return atomic_load(&b.cancelled)
               ? l2c_fail(err, L2CDB_E_CANCELLED, "building the index was cancelled")
               : L2CDB_OK;
}
