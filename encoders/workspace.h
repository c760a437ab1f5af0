/* Scratch of one call into the encoders, and the split of rows among a team of threads.
 *
 * A workspace is one arena for what the whole call sees (activations) and one for each thread of
 * the team (tiles, rows in another type). A model keeps a few for reuse, so that after the first
 * call nothing is allocated. */
#ifndef L2C_WORKSPACE_H
#define L2C_WORKSPACE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/mem.h"

typedef struct l2c_workspace {
    l2c_arena shared;
    l2c_arena *local; /* [threads] */
    size_t threads;
    struct l2c_workspace *next; /* for the owner's list */
} l2c_workspace;

/* threads 0: every core. E_NOMEM. */
l2cdb_status l2c_workspace_new(l2c_workspace **out, size_t threads, l2cdb_error *err);
void l2c_workspace_free(l2c_workspace *ws);

/* Rows [first, first+count) of a matrix, for one thread. */
typedef l2cdb_status (*l2c_rows_fn)(void *ctx, size_t first, size_t count, l2c_arena *arena,
                                    l2cdb_error *err);

/* Deals `rows` to the team in blocks of about `block` (whole multiples of 16, the height of a
 * matrix tile), each block to fn with the arena of its thread; when there are too few rows for all
 * threads, one call of fn has all rows outside a parallel region, so that products inside use the
 * whole team. The first error wins. */
l2cdb_status l2c_deal_rows(l2c_workspace *ws, size_t rows, size_t block, l2c_rows_fn fn, void *ctx,
                           l2cdb_error *err);

/* Tasks 0..count-1, dealt one by one. */
typedef l2cdb_status (*l2c_task_fn)(void *ctx, size_t task, l2c_arena *arena, l2cdb_error *err);
l2cdb_status l2c_deal_tasks(l2c_workspace *ws, size_t count, l2c_task_fn fn, void *ctx,
                            l2cdb_error *err);

#endif
