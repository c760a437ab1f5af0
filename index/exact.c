/* Brute force; see exact.h. Rows are taken in groups of 64 pointers, so that a scan of everything,
 * of a filter's rows and of scattered chunks are one loop.
 *
 * A long scan is limited by the memory traffic of one core, so it is shared with other threads, as
 * many as the process has idle cores for: scans that run at the same time share one budget. */
#include "index/exact.h"

#include <pthread.h>
#include <stdatomic.h>

#include "engine/base/cpu.h"
#include "index/kernels.h"

#define GROUP 64
#define PART_VALUES ((size_t)8 << 20) /* a share worth a thread: about 3 ms */
#define PARTS_MOST 16

typedef struct group {
    const float *vectors[GROUP];
    uint32_t rows[GROUP];
    int64_t ids[GROUP];
    size_t n;
} group;

static void flush(l2c_top *top, group *g, const float *query, size_t width) {
    float dots[GROUP];
    l2c_kernel_dots(dots, query, g->vectors, g->n, width);
    float worst = l2c_top_worst(top);
    for (size_t i = 0; i < g->n; i++) {
        if (1.0f - dots[i] > worst) {
            continue;
        }
        float d = l2c_exact_distance(dots[i], query, g->vectors[i], width);
        l2c_top_offer(top, (l2c_hit){ .distance = d, .row = g->rows[i], .id = g->ids[i] });
        worst = l2c_top_worst(top);
    }
    g->n = 0;
}

static void push(l2c_top *top, group *g, const float *query, size_t width, const float *vector,
                 size_t row, int64_t id) {
    g->vectors[g->n] = vector;
    g->rows[g->n] = (uint32_t)row;
    g->ids[g->n] = id;
    if (++g->n == GROUP) {
        flush(top, g, query, width);
    }
}

/* One thread's share: places from … to of the rows, or of everything. */
typedef struct part {
    l2c_top *top;
    const l2c_snapshot *snap;
    const float *query;
    const uint32_t *rows;
    size_t from, to;
    const l2c_flag *cancel;
    l2cdb_status rc;
    l2cdb_error *err;
} part;

static void scan_part(part *p) {
    l2c_segment *base = p->snap->base;
    group g = { .n = 0 };
    for (size_t i = p->from; i < p->to; i++) {
        size_t row = p->rows != NULL ? p->rows[i] : i;
        if (p->rows == NULL && p->snap->base_dead > 0 &&
            !l2c_segment_alive(base, row, p->snap->seq)) {
            continue;
        }
        if (i % 4096 == 0 && l2c_flag_raised(p->cancel)) {
            p->rc = l2c_fail(p->err, L2CDB_E_CANCELLED, "the search was cancelled");
            return;
        }
        const float *vector = l2c_segment_row(base, row, p->err);
        if (vector == NULL) {
            p->rc = l2c_context(p->err, "row %lld", (long long)base->ids[row]);
            return;
        }
        push(p->top, &g, p->query, base->width, vector, row, base->ids[row]);
    }
    if (g.n > 0) {
        flush(p->top, &g, p->query, base->width);
    }
}

/* A share with what it needs of its own. */
typedef struct helper {
    part p;
    l2c_top top;
    l2cdb_error err;
    pthread_t thread;
} helper;

static void *help(void *ctx) {
    helper *h = ctx;
    scan_part(&h->p);
    return NULL;
}

static atomic_size_t helpers_running;

static size_t helpers_take(size_t wanted) {
    size_t most = l2c_cpu_count() - 1;
    size_t running = atomic_load(&helpers_running);
    for (;;) {
        size_t n = running >= most ? 0 : most - running < wanted ? most - running : wanted;
        if (n == 0 || atomic_compare_exchange_weak(&helpers_running, &running, running + n)) {
            return n;
        }
    }
}

/* Starts n helpers, each on the last share of what p still has; the number started. */
static size_t share_out(helper *helpers, size_t n, part *p) {
    size_t share = p->to / (n + 1), started = 0;
    while (started < n) {
        helper *h = &helpers[started];
        h->p = *p;
        h->p.from = p->to - share;
        h->p.top = &h->top;
        h->p.err = &h->err;
        h->top = (l2c_top){ .hits = l2c_alloc(p->top->k, sizeof *h->top.hits), .k = p->top->k };
        if (h->top.hits == NULL || pthread_create(&h->thread, NULL, help, h) != 0) {
            l2c_free(h->top.hits);
            break; // what is left is done here
        }
        p->to = h->p.from;
        started++;
    }
    return started;
}

l2cdb_status l2c_exact_base(l2c_top *top, const l2c_snapshot *snap, const float *query,
                            const uint32_t *rows, size_t n, const l2c_flag *cancel,
                            l2cdb_error *err) {
    part p = { .top = top,
               .snap = snap,
               .query = query,
               .rows = rows,
               .to = rows != NULL ? n : snap->base->count,
               .cancel = cancel,
               .err = err };
    helper helpers[PARTS_MOST];
    size_t wanted = p.to / (PART_VALUES / snap->base->width + 1);
    size_t taken = wanted > 0 ? helpers_take(wanted < PARTS_MOST ? wanted : PARTS_MOST) : 0;
    size_t started = share_out(helpers, taken, &p);
    scan_part(&p);
    for (size_t i = 0; i < started; i++) {
        helper *h = &helpers[i];
        pthread_join(h->thread, NULL);
        if (p.rc == L2CDB_OK && h->p.rc != L2CDB_OK) {
            p.rc = h->p.rc;
            if (err != NULL) {
                *err = h->err;
            }
        }
        for (size_t j = 0; j < h->top.n; j++) {
            l2c_top_offer(top, h->top.hits[j]);
        }
        l2c_free(h->top.hits);
    }
    atomic_fetch_sub(&helpers_running, taken);
    return p.rc;
}

void l2c_exact_fresh(l2c_top *top, const l2c_snapshot *snap, const float *query,
                     const uint32_t *rows, size_t n) {
    const l2c_fresh *fresh = snap->fresh;
    group g = { .n = 0 };
    size_t count = rows != NULL ? n : snap->fresh_rows;
    for (size_t i = 0; i < count; i++) {
        size_t row = rows != NULL ? rows[i] : i;
        if (rows == NULL && !l2c_fresh_alive(fresh, row, snap->seq)) {
            continue;
        }
        push(top, &g, query, fresh->width, l2c_fresh_vector(fresh, row), snap->base->count + row,
             l2c_fresh_id(fresh, row));
    }
    if (g.n > 0) {
        flush(top, &g, query, fresh->width);
    }
}
