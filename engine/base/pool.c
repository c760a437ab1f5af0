/* Thread pool: one mutex, three conditions, a ring of jobs. */
#include "engine/base/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "engine/base/mem.h"

typedef struct job {
    l2c_job_fn fn;
    void *ctx;
} job;

struct l2c_pool {
    pthread_mutex_t lock;
    pthread_cond_t has_job, has_room, idle;
    job *ring;
    size_t ring_size, first, queued, running;
    pthread_t *threads;
    size_t threads_count;
    bool stopping;
};

static void *work(void *arg) {
    l2c_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->queued == 0 && !p->stopping) {
            pthread_cond_wait(&p->has_job, &p->lock);
        }
        if (p->queued == 0) {
            break;
        }
        job j = p->ring[p->first];
        p->first = (p->first + 1) % p->ring_size;
        p->queued--;
        p->running++;
        pthread_cond_signal(&p->has_room);
        pthread_mutex_unlock(&p->lock);
        j.fn(j.ctx);
        pthread_mutex_lock(&p->lock);
        p->running--;
        if (p->running == 0 && p->queued == 0) {
            pthread_cond_broadcast(&p->idle);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

l2cdb_status l2c_pool_new(l2c_pool **out, size_t threads, size_t queue_max, l2cdb_error *err) {
    *out = NULL;
    if (threads == 0 || queue_max == 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "a pool needs at least one thread and one place");
    }
    l2c_pool *p = l2c_calloc(1, sizeof *p);
    if (p == NULL) {
        return l2c_fail_nomem(err, sizeof *p);
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->has_job, NULL);
    pthread_cond_init(&p->has_room, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->ring = l2c_calloc(queue_max, sizeof *p->ring);
    p->ring_size = queue_max;
    p->threads = l2c_calloc(threads, sizeof *p->threads);
    if (p->ring == NULL || p->threads == NULL) {
        l2c_pool_free(p);
        return l2c_fail_nomem(err, queue_max * sizeof *p->ring);
    }
    // Signals belong to the program's own threads, never to a worker.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; p->threads_count < threads; p->threads_count++) {
        int e = pthread_create(&p->threads[p->threads_count], NULL, work, p);
        if (e != 0) {
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            l2c_pool_free(p);
            return l2c_fail_errno(err, e, "could not start a thread");
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *out = p;
    return L2CDB_OK;
}

void l2c_pool_free(l2c_pool *p) {
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->has_job);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 0; i < p->threads_count; i++) {
        pthread_join(p->threads[i], NULL);
    }
    pthread_cond_destroy(&p->has_job);
    pthread_cond_destroy(&p->has_room);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    l2c_free(p->ring);
    l2c_free(p->threads);
    l2c_free(p);
}

void l2c_pool_submit(l2c_pool *p, l2c_job_fn fn, void *ctx) {
    pthread_mutex_lock(&p->lock);
    while (p->queued == p->ring_size) {
        pthread_cond_wait(&p->has_room, &p->lock);
    }
    p->ring[(p->first + p->queued) % p->ring_size] = (job){ .fn = fn, .ctx = ctx };
    p->queued++;
    pthread_cond_signal(&p->has_job);
    pthread_mutex_unlock(&p->lock);
}

void l2c_pool_drain(l2c_pool *p) {
    pthread_mutex_lock(&p->lock);
    while (p->queued > 0 || p->running > 0) {
        pthread_cond_wait(&p->idle, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}
