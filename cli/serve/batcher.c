/* Text queries that come together go through the LLM together: one pass over its weights serves
 * them all, and on a small machine reading the weights is most of the cost of a short text.
 *
 * While a pass runs, what arrives waits and makes the next one. Waiting on purpose (batch_wait_ms)
 * happens only when the last pass had company, so a single client never pays for it.
 *
 * A vector belongs to the generation that was active when it was encoded, and the search that
 * follows may read another. Both say which; op_search.c compares them, and when they differ lets
 * the engine encode and search in one call. */
#include "cli/serve/server.h"

#include <stdlib.h>
#include <string.h>

#define TEXTS_MAX 64

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

/* Requests of one pass; always at least one, and no more than TEXTS_MAX texts unless it is one
 * request that has more. */
static request *take(batcher *b, size_t *texts) {
    request *first = b->waiting.head, *last = first;
    size_t n = first->texts_count;
    b->waiting.count--;
    while (last->queue_next != NULL && n + last->queue_next->texts_count <= TEXTS_MAX) {
        last = last->queue_next;
        n += last->texts_count;
        b->waiting.count--;
    }
    b->waiting.head = last->queue_next;
    if (b->waiting.head == NULL) {
        b->waiting.tail = NULL;
    }
    last->queue_next = NULL;
    *texts = n;
    return first;
}

static void back(request *r) {
    r->encode_ms = (double)(uv_hrtime() - r->encode_started) / 1e6;
    l2c_workers_submit(r, true);
}

/* The same text twice in a pass is encoded once. */
static size_t find_text(const char **texts, size_t n, const char *text) {
    size_t i = 0;
    while (i < n && strcmp(texts[i], text) != 0) {
        i++;
    }
    return i;
}

/* A pass for each request by itself, so that one bad text spoils only its own request. */
static void encode_alone(server *srv, request *r) {
    l2cdb_error err;
    l2cdb_error_clear(&err);
    if (l2cdb_encode_texts(srv->db, r->texts, r->texts_count, r->vectors, r->width, &r->generation,
                           &err) != L2CDB_OK) {
        r->error = err;
    }
}

static bool encode_together(server *srv, request *first, size_t texts) {
    size_t width = first->width, distinct = 0, at = 0;
    const char **list = malloc(texts * sizeof *list);
    size_t *place = malloc(texts * sizeof *place);
    float *vectors = malloc(texts * width * sizeof *vectors);
    bool good = list != NULL && place != NULL && vectors != NULL;
    for (request *r = first; good && r != NULL; r = r->queue_next) {
        good = r->width == width;
        for (size_t i = 0; i < r->texts_count; i++) {
            place[at] = find_text(list, distinct, r->texts[i]);
            if (place[at] == distinct) {
                list[distinct++] = r->texts[i];
            }
            at++;
        }
    }
    int64_t generation;
    good = good && l2cdb_encode_texts(srv->db, list, distinct, vectors, width, &generation, NULL) ==
                       L2CDB_OK;
    at = 0;
    for (request *r = first; good && r != NULL; r = r->queue_next) {
        r->generation = generation;
        for (size_t i = 0; i < r->texts_count; i++) {
            memcpy(r->vectors + i * width, vectors + place[at++] * width, width * sizeof *vectors);
        }
    }
    free(list);
    free(place);
    free(vectors);
    return good;
}

static void encode(server *srv, request *first, size_t texts) {
    bool together = first->queue_next != NULL && encode_together(srv, first, texts);
    for (request *r = first, *next; r != NULL; r = next) {
        next = r->queue_next;
        if (!together) {
            encode_alone(srv, r);
        }
        back(r);
    }
    atomic_fetch_add(&srv->batcher.passes, 1);
    atomic_fetch_add(&srv->batcher.texts, texts);
}

static void batch_thread(void *arg) {
    server *srv = arg;
    batcher *b = &srv->batcher;
    uv_mutex_lock(&b->lock);
    while (!b->stop) {
        if (b->waiting.head == NULL) {
            uv_cond_wait(&b->more, &b->lock);
            continue;
        }
        if (b->waiting.count == 1 && b->count_last > 1 && b->wait_ns > 0) {
            uv_cond_timedwait(&b->more, &b->lock, b->wait_ns);
        }
        size_t texts;
        request *first = take(b, &texts);
        b->count_last = texts;
        uv_mutex_unlock(&b->lock);
        encode(srv, first, texts);
        uv_mutex_lock(&b->lock);
    }
    uv_mutex_unlock(&b->lock);
}

void l2c_batcher_submit(request *r) {
    batcher *b = &r->srv->batcher;
    r->encode_started = uv_hrtime();
    r->queue_next = NULL;
    if (!b->started) {
        encode(r->srv, r, r->texts_count); // workers without threads (tests)
        return;
    }
    uv_mutex_lock(&b->lock);
    push(&b->waiting, r);
    uv_mutex_unlock(&b->lock);
    uv_cond_signal(&b->more);
}

bool l2c_batcher_init(server *srv) {
    batcher *b = &srv->batcher;
    b->wait_ns = (uint64_t)(srv->o.batch_wait_ms * 1e6);
    if (uv_mutex_init(&b->lock) != 0 || uv_cond_init(&b->more) != 0) {
        return false;
    }
    if (srv->workers.count > 0) {
        b->started = uv_thread_create(&b->thread, batch_thread, srv) == 0;
    }
    return b->started || srv->workers.count == 0;
}

void l2c_batcher_fini(server *srv) {
    batcher *b = &srv->batcher;
    uv_mutex_lock(&b->lock);
    b->stop = true;
    uv_cond_signal(&b->more);
    uv_mutex_unlock(&b->lock);
    if (b->started) {
        uv_thread_join(&b->thread);
    }
    for (request *r = b->waiting.head, *next; r != NULL; r = next) {
        next = r->queue_next;
        l2c_request_free(r);
    }
    uv_cond_destroy(&b->more);
    uv_mutex_destroy(&b->lock);
}
