/* The threads that call the engine, and their way back to the loop.
 *
 * Two queues: `read` is served by all threads, `write` by one of its own, because writing calls of
 * the engine queue behind each other and would otherwise fill the pool with waiters. Finished
 * requests go to `done` and one uv_async tells the loop; many may come back in one turn of it. */
#include "cli/serve/server.h"

#include <stdlib.h>

static void push(queue *q, request *r) {
    r->queue_next = NULL;
    if (q->tail != NULL) {
        q->tail->queue_next = r;
    } else {
        q->head = r;
    }
    q->tail = r;
    q->count++;
}

static request *pop(queue *q) {
    request *r = q->head;
    if (r != NULL) {
        q->head = r->queue_next;
        if (q->head == NULL) {
            q->tail = NULL;
        }
        q->count--;
    }
    return r;
}

static void finish(request *r) {
    workers *w = &r->srv->workers;
    uv_mutex_lock(&w->lock);
    bool first = w->done.head == NULL;
    push(&w->done, r);
    uv_mutex_unlock(&w->lock);
    if (first) {
        uv_async_send(&w->wake);
    }
}

/* One step of a request on a worker. */
static void run(request *r, bool writer) {
    if (atomic_load(&r->gone)) {
        r->verdict = VERDICT_DONE; // nobody waits for the answer
        finish(r);
        return;
    }
    if (r->queue_ms == 0) {
        r->queue_ms = (double)(uv_hrtime() - r->queued) / 1e6;
    }
    if (!r->json_seen) {
        r->json_seen = true;
        if (!l2c_request_parse(r)) {
            l2c_request_error_body(r);
            r->verdict = VERDICT_DONE;
            finish(r);
            return;
        }
    }
    if (r->op->lane == LANE_WRITE && !writer) {
        l2c_workers_submit(r, true); // a line whose operation could not be peeked at
        return;
    }
    r->verdict = l2c_request_run(r);
    if (r->verdict == VERDICT_ENCODE) {
        l2c_batcher_submit(r);
        return;
    }
    finish(r);
}

static void serve(workers *w, queue *q, uv_cond_t *more, bool writer) {
    uv_mutex_lock(&w->lock);
    for (;;) {
        request *r = pop(q);
        if (r != NULL) {
            uv_mutex_unlock(&w->lock);
            run(r, writer);
            uv_mutex_lock(&w->lock);
        } else if (w->stop) {
            break;
        } else {
            uv_cond_wait(more, &w->lock);
        }
    }
    uv_mutex_unlock(&w->lock);
}

static void read_thread(void *arg) {
    workers *w = arg;
    serve(w, &w->read, &w->read_more, false);
}

static void write_thread(void *arg) {
    workers *w = arg;
    serve(w, &w->write, &w->write_more, true);
}

bool l2c_workers_submit(request *r, bool again) {
    workers *w = &r->srv->workers;
    bool writes = r->op != NULL && r->op->lane == LANE_WRITE;
    uv_mutex_lock(&w->lock);
    if (!again && w->read.count + w->write.count >= w->queue_max) {
        uv_mutex_unlock(&w->lock);
        return false;
    }
    push(writes ? &w->write : &w->read, r);
    uv_mutex_unlock(&w->lock);
    if (w->count == 0) {
        uv_async_send(&w->wake);
    } else {
        uv_cond_signal(writes ? &w->write_more : &w->read_more);
    }
    return true;
}

size_t l2c_workers_waiting(server *srv) {
    workers *w = &srv->workers;
    uv_mutex_lock(&w->lock);
    size_t n = w->read.count + w->write.count;
    uv_mutex_unlock(&w->lock);
    return n;
}

static request *take(workers *w, queue *q) {
    uv_mutex_lock(&w->lock);
    request *r = pop(q);
    uv_mutex_unlock(&w->lock);
    return r;
}

static void on_wake(uv_async_t *wake) {
    server *srv = wake->data;
    workers *w = &srv->workers;
    if (w->count == 0) {
        request *r;
        while ((r = take(w, &w->read)) != NULL || (r = take(w, &w->write)) != NULL) {
            run(r, r->op != NULL && r->op->lane == LANE_WRITE);
        }
    }
    uv_mutex_lock(&w->lock);
    request *r = w->done.head;
    w->done = (queue){ 0 };
    uv_mutex_unlock(&w->lock);
    while (r != NULL) {
        request *next = r->queue_next;
        l2c_conn_finished(r->c, r);
        r = next;
    }
    l2c_conn_flush_dirty(srv);
}

bool l2c_workers_init(server *srv, size_t count) {
    workers *w = &srv->workers;
    w->queue_max = srv->o.queue_max;
    if (uv_mutex_init(&w->lock) != 0 || uv_cond_init(&w->read_more) != 0 ||
        uv_cond_init(&w->write_more) != 0 || uv_async_init(&srv->loop, &w->wake, on_wake) != 0) {
        return false;
    }
    w->wake.data = srv;
    if (count == 0) {
        return true;
    }
    w->threads = calloc(count, sizeof *w->threads);
    if (w->threads == NULL || uv_thread_create(&w->writer, write_thread, w) != 0) {
        return false;
    }
    for (; w->count < count; w->count++) {
        if (uv_thread_create(&w->threads[w->count], read_thread, w) != 0) {
            break;
        }
    }
    return w->count > 0;
}

void l2c_workers_join(server *srv) {
    workers *w = &srv->workers;
    uv_mutex_lock(&w->lock);
    w->stop = true;
    uv_cond_broadcast(&w->read_more);
    uv_cond_broadcast(&w->write_more);
    uv_mutex_unlock(&w->lock);
    for (size_t i = 0; i < w->count; i++) {
        uv_thread_join(&w->threads[i]);
    }
    if (w->count > 0) {
        uv_thread_join(&w->writer);
    }
}

void l2c_workers_fini(server *srv) {
    workers *w = &srv->workers;
    request *r;
    while ((r = pop(&w->done)) != NULL || (r = pop(&w->read)) != NULL ||
           (r = pop(&w->write)) != NULL) {
        l2c_request_free(r);
    }
    free(w->threads);
    uv_close((uv_handle_t *)&w->wake, NULL);
    uv_cond_destroy(&w->read_more);
    uv_cond_destroy(&w->write_more);
    uv_mutex_destroy(&w->lock);
}
