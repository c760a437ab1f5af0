/* See workspace.h. The team is OpenMP's, the same threads that oneDNN uses, so the two never
 * compete for cores. */
#include "encoders/workspace.h"

#include <omp.h>

#include "engine/base/cpu.h"

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
    *out = ws;
    return L2CDB_OK;
}

void l2c_workspace_free(l2c_workspace *ws) {
    if (ws == NULL) {
        return;
    }
    for (size_t t = 0; t < ws->threads; t++) {
        l2c_arena_fini(&ws->local[t]);
    }
    l2c_arena_fini(&ws->shared);
    l2c_free(ws->local);
    l2c_free(ws);
}

/* What the threads of one deal share. */
typedef struct outcome {
    l2cdb_status rc;
    l2cdb_error err;
} outcome;

static void keep_first(outcome *o, l2cdb_status rc, const l2cdb_error *err) {
#pragma omp critical(l2c_deal)
    if (o->rc == L2CDB_OK) {
        o->rc = rc;
        o->err = *err;
    }
}

static l2cdb_status give(const outcome *o, l2cdb_error *err) {
    if (o->rc != L2CDB_OK && err != NULL) {
        *err = o->err;
    }
    return o->rc;
}

l2cdb_status l2c_deal_rows(l2c_workspace *ws, size_t rows, size_t block, l2c_rows_fn fn, void *ctx,
                           l2cdb_error *err) {
    const size_t tile = 16;
    size_t tiles = (rows + tile - 1) / tile;
    // Weights are then read once per thread: worth it only when there is work to do on them.
    if (ws->threads == 1 ? rows <= block : tiles < 3 * ws->threads) {
        return fn(ctx, 0, rows, &ws->local[0], err);
    }
    size_t rounds = (rows + block * ws->threads - 1) / (block * ws->threads);
    size_t blocks = rounds * ws->threads < tiles ? rounds * ws->threads : tiles;
    outcome o = { L2CDB_OK, { 0 } };
#pragma omp parallel for num_threads((int)ws->threads) schedule(static, 1)
    for (size_t b = 0; b < blocks; b++) {
        size_t first = b * tiles / blocks * tile, end = (b + 1) * tiles / blocks * tile;
        end = end < rows ? end : rows;
        l2cdb_error mine = { 0 };
        l2cdb_status rc =
            fn(ctx, first, end - first, &ws->local[(size_t)omp_get_thread_num()], &mine);
        if (rc != L2CDB_OK) {
            keep_first(&o, rc, &mine);
        }
    }
    return give(&o, err);
}

l2cdb_status l2c_deal_tasks(l2c_workspace *ws, size_t count, l2c_task_fn fn, void *ctx,
                            l2cdb_error *err) {
    outcome o = { L2CDB_OK, { 0 } };
#pragma omp parallel for num_threads((int)ws->threads) schedule(dynamic, 1)
    for (size_t t = 0; t < count; t++) {
        l2cdb_error mine = { 0 };
        l2cdb_status rc = fn(ctx, t, &ws->local[(size_t)omp_get_thread_num()], &mine);
        if (rc != L2CDB_OK) {
            keep_first(&o, rc, &mine);
        }
    }
    return give(&o, err);
}
