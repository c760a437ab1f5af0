/* Scratch of one call into the encoders, and a crew of threads that share its rows.
 *
 * A workspace is one arena for what the whole call sees (activations), one for each thread (tiles,
 * rows in another type), and the threads themselves: the caller is the first of them, the others
 * sleep between calls. A model keeps a few workspaces for reuse, so that after the first call
 * nothing is allocated and no thread is started.
 *
 * The crew is not OpenMP's, because libgomp's idle threads spin for milliseconds before they sleep:
 * decoding beside inference on two cores then gets what is left. Here they spin for about 20 µs,
 * the length of a short gap between two deals. Inside a deal the products of oneDNN run on one
 * thread. */
#ifndef L2C_WORKSPACE_H
#define L2C_WORKSPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/base/mem.h"

typedef struct l2c_workspace {
    l2c_arena shared;
    l2c_arena *local; /* [threads] */
    size_t threads;
    struct l2c_crew *crew; /* NULL with one thread */
    struct l2c_workspace *next;
} l2c_workspace;

/* threads 0: every core. E_NOMEM, E_INTERNAL if a thread cannot start. */
l2cdb_status l2c_workspace_new(l2c_workspace **out, size_t threads, l2cdb_error *err);
void l2c_workspace_free(l2c_workspace *ws);

/* Workspaces at rest, for calls from several threads. */
typedef struct l2c_workspaces {
    pthread_mutex_t lock;
    l2c_workspace *idle; /* under the lock */
    size_t threads;
} l2c_workspaces;

void l2c_workspaces_init(l2c_workspaces *p, size_t threads);
void l2c_workspaces_fini(l2c_workspaces *p);
l2cdb_status l2c_workspaces_take(l2c_workspaces *p, l2c_workspace **out, l2cdb_error *err);
void l2c_workspaces_give(l2c_workspaces *p, l2c_workspace *ws);

/* Rows [first, first+count) of a matrix, for one thread. */
typedef l2cdb_status (*l2c_rows_fn)(void *ctx, size_t first, size_t count, l2c_arena *arena,
                                    l2cdb_error *err);

/* Deals `rows` to the crew in blocks of about `block` (whole multiples of 16, the height of a
 * matrix tile), each block to fn with the arena of its thread. When there are too few rows for all
 * threads, one call of fn has all rows and products inside may share their columns among the crew
 * instead. The first error wins. */
l2cdb_status l2c_deal_rows(l2c_workspace *ws, size_t rows, size_t block, l2c_rows_fn fn, void *ctx,
                           l2cdb_error *err);

/* Tasks 0..count-1, dealt one by one. */
typedef l2cdb_status (*l2c_task_fn)(void *ctx, size_t task, l2c_arena *arena, l2cdb_error *err);
l2cdb_status l2c_deal_tasks(l2c_workspace *ws, size_t count, l2c_task_fn fn, void *ctx,
                            l2cdb_error *err);

/* True in a thread that works on a deal: a product then keeps to that thread. */
bool l2c_in_deal(void);
/* The crew that a product outside of a deal may use: the workspace of the innermost l2c_deal_rows
 * that made a single call; NULL without one. */
l2c_workspace *l2c_workspace_current(void);

#endif
