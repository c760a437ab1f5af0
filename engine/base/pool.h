/* A fixed set of threads with a bounded queue of jobs.
 *
 * The matrix libraries bring their own threads; this pool is for the work beside them: decoding
 * photos during inference, engine calls behind the server's loop, background merges. */
#ifndef L2C_POOL_H
#define L2C_POOL_H

#include <stddef.h>

#include "engine/base/status.h"

typedef struct l2c_pool l2c_pool;
typedef void (*l2c_job_fn)(void *ctx);

/* `threads` ≥ 1 workers, at most `queue_max` jobs waiting. */
l2cdb_status l2c_pool_new(l2c_pool **out, size_t threads, size_t queue_max, l2cdb_error *err);
/* Runs what is queued, then joins. NULL accepted. Not from a job. */
void l2c_pool_free(l2c_pool *p);

/* Queues fn(ctx); waits while the queue is full. Any thread but a worker of this pool. */
void l2c_pool_submit(l2c_pool *p, l2c_job_fn fn, void *ctx);
/* Waits until no job is queued or running. */
void l2c_pool_drain(l2c_pool *p);

#endif
