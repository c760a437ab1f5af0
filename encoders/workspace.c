/* The crew; see workspace.h.
 *
 * A deal is published by raising `generation`; threads claim tasks from `next` until none is left
 * and the last one to leave lowers `working` to 0. What a deal consists of is written before the
 * raise and read after it; what tasks wrote is visible to the caller after `working` reached 0. */
#include "encoders/workspace.h"

#include <omp.h>
#include <stdatomic.h>

#include "engine/base/cpu.h"

enum { SPINS = 400 }; /* of a pause instruction, about 50 ns each */

typedef struct l2c_crew {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t *threads;
    size_t count; /* without the caller */
    atomic_size_t generation, next, working;
    atomic_bool stop;
    // The deal.
    l2c_workspace *ws;
    l2c_task_fn fn;
    void *ctx;
    size_t tasks;
    l2cdb_status rc; // under the lock
    l2cdb_error err;
} l2c_crew;

typedef struct seat {
    l2c_crew *crew;
    size_t index; // of the arena
} seat;

static _Thread_local bool in_deal;
static _Thread_local l2c_workspace *current;

bool l2c_in_deal(void) {
    return in_deal;
}

l2c_workspace *l2c_workspace_current(void) {
    return in_deal ? NULL : current;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void run_tasks(l2c_crew *c, size_t index) {
    for (;;) {
        size_t task = atomic_fetch_add(&c->next, 1);
        if (task >= c->tasks) {
            return;
        }
        l2cdb_error err = { 0 };
        l2cdb_status rc = c->fn(c->ctx, task, &c->ws->local[index], &err);
        if (rc != L2CDB_OK) {
            pthread_mutex_lock(&c->lock);
            if (c->rc == L2CDB_OK) {
                c->rc = rc;
                c->err = err;
            }
            pthread_mutex_unlock(&c->lock);
        }
    }
}

/* Waits until the generation is no longer `seen` or the crew stops; returns it. */
static size_t wait_for_deal(l2c_crew *c, size_t seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&c->generation) != seen) {
            return atomic_load(&c->generation);
        }
        relax();
    }
    pthread_mutex_lock(&c->lock);
    while (atomic_load(&c->generation) == seen) {
        pthread_cond_wait(&c->wake, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return atomic_load(&c->generation);
}

static void *work(void *ctx) {
    seat s = *(seat *)ctx;
    l2c_free(ctx);
    omp_set_num_threads(1);
    in_deal = true;
    for (size_t seen = 0;;) {
        seen = wait_for_deal(s.crew, seen);
        if (atomic_load(&s.crew->stop)) {
            return NULL;
        }
        run_tasks(s.crew, s.index);
        if (atomic_fetch_sub(&s.crew->working, 1) == 1) {
            pthread_mutex_lock(&s.crew->lock);
            pthread_cond_signal(&s.crew->done);
            pthread_mutex_unlock(&s.crew->lock);
        }
    }
}

static void publish(l2c_crew *c) {
    pthread_mutex_lock(&c->lock);
    atomic_fetch_add(&c->generation, 1);
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->lock);
}

static void wait_for_crew(l2c_crew *c) {
    for (int i = 0; i < SPINS && atomic_load(&c->working) > 0; i++) {
        relax();
    }
    pthread_mutex_lock(&c->lock);
    while (atomic_load(&c->working) > 0) {
        pthread_cond_wait(&c->done, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

static void crew_free(l2c_crew *c) {
    if (c == NULL) {
        return;
    }
    atomic_store(&c->stop, true);
    publish(c);
    for (size_t i = 0; i < c->count; i++) {
        pthread_join(c->threads[i], NULL);
    }
    pthread_cond_destroy(&c->done);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->lock);
    l2c_free(c->threads);
    l2c_free(c);
}

static l2cdb_status crew_new(l2c_crew **out, l2c_workspace *ws, l2cdb_error *err) {
    l2c_crew *c = l2c_calloc(1, sizeof *c);
    if (c == NULL) {
        return l2c_fail_nomem(err, sizeof *c);
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    pthread_cond_init(&c->done, NULL);
    c->ws = ws;
    c->threads = l2c_calloc(ws->threads - 1, sizeof *c->threads);
    l2cdb_status rc = c->threads != NULL ? L2CDB_OK : l2c_fail_nomem(err, ws->threads);
    while (rc == L2CDB_OK && c->count < ws->threads - 1) {
        seat *s = l2c_alloc(1, sizeof *s);
        if (s == NULL) {
            rc = l2c_fail_nomem(err, sizeof *s);
            break;
        }
        *s = (seat){ .crew = c, .index = c->count + 1 };
        int failed = pthread_create(&c->threads[c->count], NULL, work, s);
        if (failed != 0) {
            l2c_free(s);
            rc = l2c_fail_errno(err, failed, "could not start a thread");
        } else {
            c->count++;
        }
    }
    if (rc != L2CDB_OK) {
        crew_free(c);
        return rc;
    }
    *out = c;
    return L2CDB_OK;
}

l2cdb_status l2c_workspace_new(l2c_workspace **out, size_t threads, l2cdb_error *err) {
    l2c_workspace *ws = l2c_calloc(1, sizeof *ws);
    if (ws == NULL) {
        return l2c_fail_nomem(err, sizeof *ws);
    }
    ws->threads = threads == 0 ? l2c_cpu_count() : threads;
    ws->local = l2c_calloc(ws->threads, sizeof *ws->local);
    if (ws->local == NULL) {
        l2c_free(ws);
        return l2c_fail_nomem(err, threads * sizeof *ws->local);
    }
    l2c_arena_init(&ws->shared, 0);
    for (size_t t = 0; t < ws->threads; t++) {
        l2c_arena_init(&ws->local[t], 0);
    }
    l2cdb_status rc = ws->threads > 1 ? crew_new(&ws->crew, ws, err) : L2CDB_OK;
    if (rc != L2CDB_OK) {
        l2c_workspace_free(ws);
        return rc;
    }
    *out = ws;
    return L2CDB_OK;
}

void l2c_workspace_free(l2c_workspace *ws) {
    if (ws == NULL) {
        return;
    }
    crew_free(ws->crew);
    for (size_t t = 0; t < ws->threads; t++) {
        l2c_arena_fini(&ws->local[t]);
    }
    l2c_arena_fini(&ws->shared);
    l2c_free(ws->local);
    l2c_free(ws);
}

void l2c_workspaces_init(l2c_workspaces *p, size_t threads) {
    *p = (l2c_workspaces){ .threads = threads };
    pthread_mutex_init(&p->lock, NULL);
}

void l2c_workspaces_fini(l2c_workspaces *p) {
    while (p->idle != NULL) {
        l2c_workspace *ws = p->idle;
        p->idle = ws->next;
        l2c_workspace_free(ws);
    }
    pthread_mutex_destroy(&p->lock);
}

l2cdb_status l2c_workspaces_take(l2c_workspaces *p, l2c_workspace **out, l2cdb_error *err) {
    pthread_mutex_lock(&p->lock);
    *out = p->idle;
    if (*out != NULL) {
        p->idle = (*out)->next;
    }
    pthread_mutex_unlock(&p->lock);
    return *out != NULL ? L2CDB_OK : l2c_workspace_new(out, p->threads, err);
}

void l2c_workspaces_give(l2c_workspaces *p, l2c_workspace *ws) {
    pthread_mutex_lock(&p->lock);
    ws->next = p->idle;
    p->idle = ws;
    pthread_mutex_unlock(&p->lock);
}

/* ---- Deals ---------------------------------------------------------------------------------- */

l2cdb_status l2c_deal_tasks(l2c_workspace *ws, size_t count, l2c_task_fn fn, void *ctx,
                            l2cdb_error *err) {
    l2c_crew *c = ws->crew;
    if (c == NULL || count <= 1) {
        l2cdb_status rc = L2CDB_OK;
        for (size_t t = 0; t < count && rc == L2CDB_OK; t++) {
            rc = fn(ctx, t, &ws->local[0], err);
        }
        return rc;
    }
    c->fn = fn;
    c->ctx = ctx;
    c->tasks = count;
    c->rc = L2CDB_OK;
    atomic_store(&c->next, 0);
    atomic_store(&c->working, c->count);
    publish(c);

    int omp_before = omp_get_max_threads();
    omp_set_num_threads(1);
    in_deal = true;
    run_tasks(c, 0);
    in_deal = false;
    omp_set_num_threads(omp_before);
    wait_for_crew(c);
    if (c->rc != L2CDB_OK && err != NULL) {
        *err = c->err;
    }
    return c->rc;
}

typedef struct rows_deal {
    l2c_rows_fn fn;
    void *ctx;
    size_t rows, blocks;
} rows_deal;

enum { TILE_ROWS = 16 };

static l2cdb_status run_block(void *ctx, size_t block, l2c_arena *arena, l2cdb_error *err) {
    const rows_deal *d = ctx;
    size_t tiles = (d->rows + TILE_ROWS - 1) / TILE_ROWS;
    size_t first = block * tiles / d->blocks * TILE_ROWS;
    size_t end = (block + 1) * tiles / d->blocks * TILE_ROWS;
    end = end < d->rows ? end : d->rows;
    return d->fn(d->ctx, first, end - first, arena, err);
}

l2cdb_status l2c_deal_rows(l2c_workspace *ws, size_t rows, size_t block, l2c_rows_fn fn, void *ctx,
                           l2cdb_error *err) {
    size_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    // Weights are then read once per thread: worth it only when there is work to do on them.
    if (ws->threads == 1 ? rows <= block : tiles < 3 * ws->threads) {
        l2c_workspace *outer = current;
        current = ws;
        l2cdb_status rc = fn(ctx, 0, rows, &ws->local[0], err);
        current = outer;
        return rc;
    }
    size_t rounds = (rows + block * ws->threads - 1) / (block * ws->threads);
    rows_deal d = { .fn = fn, .ctx = ctx, .rows = rows };
    d.blocks = rounds * ws->threads < tiles ? rounds * ws->threads : tiles;
    return l2c_deal_tasks(ws, d.blocks, run_block, &d, err);
}
