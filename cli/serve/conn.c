/* A connection: bytes in, replies out in the order of the requests.
 *
 * Requests of one connection are at work side by side (SERVE_INFLIGHT_MAX of them); their replies
 * wait in the list first..last until those before them are out. Three rules keep a client from
 * costing more than its share: nothing is read while a received request has no place (the kernel's
 * window then stops the sender), a stream makes its next piece only when the last one is nearly
 * written, and every wait has a deadline in l2c_conn_sweep. A request that writes is a barrier:
 * what follows it on the connection starts when it is done, so a client reads its own writes.
 *
 * Callbacks of the parsers never close a connection and never write; they queue. Closing happens in
 * settle(), which the outermost function of each path calls last. */
#include "cli/serve/server.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READ_BYTES ((size_t)64 << 10)
/* A body or line has header_ms plus a millisecond for each this many bytes: 16 kB/s at the least.
 */
#define PARTIAL_BYTES_PER_MS 16
#define LINGER_MS 1000

static char read_buffer[READ_BYTES]; // one loop, and bytes are taken out before the next read

size_t l2c_conn_pending(const conn *c) {
    return c->out.size + (c->write_busy ? uv_stream_get_write_queue_size(&c->u.stream) : 0);
}

static void on_closed(uv_handle_t *handle) {
    conn *c = handle->data;
    l2c_wbuf_fini(&c->in);
    l2c_wbuf_fini(&c->out);
    l2c_wbuf_fini(&c->writing);
    free(c);
}

static void drop_request(conn *c, request *r) {
    if (r->events) {
        l2c_jobs_unfollow(c->srv, r);
    }
    if (r->dispatched) {
        r->c = NULL; // freed when the worker brings it back
        atomic_store(&r->gone, true);
    } else {
        l2c_request_free(r);
    }
}

void l2c_conn_close(conn *c) {
    server *srv = c->srv;
    if (c->state == CONN_CLOSED) {
        return;
    }
    c->state = CONN_CLOSED;
    if (c->prev != NULL) {
        c->prev->next = c->next;
    } else {
        srv->conns = c->next;
    }
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    atomic_fetch_sub(&srv->conns_count, 1);
    for (request *r = c->first, *next; r != NULL; r = next) {
        next = r->next;
        drop_request(c, r);
    }
    c->first = c->last = c->stalled = NULL; // stalled is in the list too
    if (c->current != NULL) {
        l2c_request_free(c->current);
        c->current = NULL;
    }
    for (conn **at = &srv->dirty; c->dirty && *at != NULL; at = &(*at)->dirty_next) {
        if (*at == c) {
            *at = c->dirty_next;
            break;
        }
    }
    uv_close(&c->u.handle, on_closed);
}

static void mark_dirty(conn *c) {
    if (!c->dirty && c->state != CONN_CLOSED) {
        c->dirty = true;
        c->dirty_next = c->srv->dirty;
        c->srv->dirty = c;
    }
}

/* ---- Replies ------------------------------------------------------------------------------- */

static void emit_http(conn *c, request *r) {
    bool body = !r->head_only && r->status != 304 && r->status != 204;
    if (!r->streaming && r->finished) {
        l2c_http_head(r, &c->out, r->out.size);
        if (body) {
            l2c_wbuf_put(&c->out, r->out.data, r->out.size);
        }
        return;
    }
    if (!r->streaming) {
        l2c_http_head(r, &c->out, SIZE_MAX);
        r->streaming = true;
    }
    if (body && r->out.size > 0 && !r->minor0) {
        l2c_wbuf_printf(&c->out, "%zx\r\n", r->out.size);
        l2c_wbuf_put(&c->out, r->out.data, r->out.size);
        l2c_wbuf_str(&c->out, "\r\n");
    } else if (body) {
        l2c_wbuf_put(&c->out, r->out.data, r->out.size);
    }
    if (r->finished && body && !r->minor0) {
        l2c_wbuf_str(&c->out, "0\r\n\r\n");
    }
}

static void emit_line(conn *c, request *r) {
    size_t skip = 0;
    if (!r->streaming) {
        l2c_jsonl_head(r, &c->out);
        skip = r->out.size > 0 ? 1 : 0; // the brace that l2c_jsonl_head has written
        r->streaming = true;
        if (r->id_text != NULL && r->out.size > 2) {
            l2c_wbuf_char(&c->out, ',');
        }
    }
    l2c_wbuf_put(&c->out, r->out.data + skip, r->out.size - skip);
    if (r->finished) {
        l2c_wbuf_char(&c->out, '\n');
    }
}

static void emit(conn *c, request *r) {
    if (r->out.failed || r->headers.failed) {
        if (r->streaming) {
            c->broken = true; // what was promised cannot be kept: the client sees a cut reply
            return;
        }
        l2c_wbuf_fini(&r->out);
        l2c_wbuf_fini(&r->headers);
        l2c_request_fail(r, 503, L2CDB_E_NOMEM, "", "out of memory for the reply");
        l2c_request_error_body(r);
        r->finished = true;
    }
    size_t before = c->out.size;
    if (r->http) {
        emit_http(c, r);
    } else {
        emit_line(c, r);
    }
    if (c->out.failed) {
        c->broken = true;
        return;
    }
    r->bytes_out += c->out.size - before;
    r->out.size = 0;
}

static void pop(conn *c) {
    request *r = c->first;
    server *srv = c->srv;
    c->first = r->next;
    if (c->first == NULL) {
        c->last = NULL;
    }
    c->inflight--;
    double total_ms = (double)(uv_hrtime() - r->started) / 1e6;
    l2c_metrics_count(srv, r, total_ms / 1e3);
    l2c_accesslog_write(&srv->log, r, c->peer, total_ms);
    c->idle_since = uv_now(&srv->loop);
    l2c_request_free(r);
}

static void resume_stream(request *r) {
    r->paused = false;
    r->dispatched = true;
    l2c_workers_submit(r, true);
}

/* Writes what is due. */
static void advance(conn *c) {
    request *r;
    while ((r = c->first) != NULL && r->ready && !c->broken) {
        emit(c, r);
        r->ready = false;
        if (c->broken) {
            return;
        }
        if (r->finished) {
            pop(c);
        } else if (!r->events) {
            r->paused = true;
            break;
        }
    }
    // A body that waits for "100 Continue" may come once the replies before it are out.
    if (c->first == NULL && c->current != NULL && c->current->expect_100) {
        c->current->expect_100 = false;
        l2c_wbuf_str(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    }
    mark_dirty(c);
}

/* ---- Writing ------------------------------------------------------------------------------- */

static void pump(conn *c);

static void on_written(uv_write_t *write, int status) {
    conn *c = write->handle->data;
    c->write_busy = false;
    if (c->state == CONN_CLOSED) {
        return;
    }
    c->writing.size = 0;
    c->write_moved = uv_now(&c->srv->loop);
    if (status < 0) {
        c->broken = true;
    }
    advance(c);
    pump(c);
}

static void flush(conn *c) {
    if (c->write_busy || c->out.size == 0 || c->broken) {
        return;
    }
    uv_buf_t buf = uv_buf_init(c->out.data, (unsigned)c->out.size);
    int n = uv_try_write(&c->u.stream, &buf, 1);
    if (n < 0 && n != UV_EAGAIN) {
        c->broken = true;
        return;
    }
    if (n > 0) {
        c->write_moved = uv_now(&c->srv->loop);
        c->srv->metrics.bytes_out += (uint64_t)n;
        if ((size_t)n == c->out.size) {
            c->out.size = 0;
            if (c->out.room > READ_BYTES) {
                l2c_wbuf_fini(&c->out);
            }
            return;
        }
        l2c_wbuf_drop(&c->out, (size_t)n);
    }
    wbuf spare = c->writing;
    c->writing = c->out;
    c->out = spare;
    c->out.size = 0;
    buf = uv_buf_init(c->writing.data, (unsigned)c->writing.size);
    c->write_left = c->writing.size;
    c->write_busy = true;
    c->srv->metrics.bytes_out += c->writing.size;
    if (uv_write(&c->write, &c->u.stream, &buf, 1, on_written) != 0) {
        c->write_busy = false;
        c->broken = true;
    }
}

static void on_shutdown(uv_shutdown_t *shutdown, int status) {
    (void)shutdown;
    (void)status;
}

/* Memory that an idle connection does not need. */
static void slim(conn *c) {
    if (c->first == NULL && c->current == NULL && !c->write_busy) {
        if (c->in.size == 0) {
            l2c_wbuf_fini(&c->in);
        }
        if (c->out.size == 0) {
            l2c_wbuf_fini(&c->out);
        }
        l2c_wbuf_fini(&c->writing);
    }
}

/* Flushes, and closes what is at its end. The last call on every path into this file. */
static void settle(conn *c) {
    if (c->state == CONN_CLOSED) {
        return;
    }
    flush(c);
    if (c->broken) {
        l2c_conn_close(c);
        return;
    }
    // Here and not when its piece was handed over: a flush that writes all at once has no callback.
    if (c->first != NULL && c->first->paused && l2c_conn_pending(c) < SERVE_WRITE_LOW) {
        resume_stream(c->first);
    }
    bool quiet = c->first == NULL && c->out.size == 0 && !c->write_busy;
    if (quiet && c->eof) {
        l2c_conn_close(c);
        return;
    }
    if (quiet && c->ending && c->state != CONN_LINGER) {
        // Closing with unread bytes would reset the connection and may take the reply with it.
        c->state = CONN_LINGER;
        c->idle_since = uv_now(&c->srv->loop);
        if (uv_shutdown(&c->shutdown, &c->u.stream, on_shutdown) != 0) {
            l2c_conn_close(c);
        }
    }
}

/* ---- Requests ------------------------------------------------------------------------------ */

static bool has_place(const conn *c, const request *r) {
    bool writes = r->op != NULL && r->op->lane == LANE_WRITE;
    return c->inflight < SERVE_INFLIGHT_MAX && l2c_conn_pending(c) < SERVE_WRITE_HIGH &&
           (writes ? c->reads == 0 : c->writes == 0);
}

static void done(conn *c, request *r, bool finished) {
    r->ready = true;
    r->finished = finished;
    if (finished) {
        c->reads -= r->reads;
        c->writes -= r->writes;
        r->reads = r->writes = false;
    }
    advance(c);
}

static void start(conn *c, request *r) {
    server *srv = c->srv;
    c->inflight++;
    if (r->error.code != L2CDB_OK) {
        l2c_request_error_body(r);
        done(c, r, true);
        return;
    }
    if (r->op != NULL && r->op->lane == LANE_LOOP) {
        r->verdict = l2c_request_run(r);
        r->events = r->verdict == VERDICT_EVENTS;
        done(c, r, !r->events);
        return;
    }
    r->writes = r->op != NULL && r->op->lane == LANE_WRITE;
    r->reads = !r->writes;
    c->reads += r->reads;
    c->writes += r->writes;
    r->queued = uv_hrtime();
    r->dispatched = true; // from here on r is the worker's, unless it is refused
    bool full = srv->reply_bytes > SERVE_HELD_BYTES_MAX;
    if (!full && l2c_workers_submit(r, false)) {
        return;
    }
    r->dispatched = false;
    r->retry_after_s = 1;
    srv->metrics.overload++;
    l2c_request_fail(r, 503, L2CDB_E_BUSY, "try again in a second",
                     full ? "too many replies wait for their clients"
                          : "too many requests wait for a worker");
    l2c_request_error_body(r);
    done(c, r, true);
}

void l2c_conn_request(conn *c, request *r) {
    c->srv->metrics.bytes_in += r->bytes_in;
    r->next = NULL;
    if (c->last != NULL) {
        c->last->next = r;
    } else {
        c->first = r;
    }
    c->last = r;
    c->partial_since = 0;
    c->partial_bytes = 0;
    if (r->close_after) {
        c->ending = true;
    }
    if (r->error.code != L2CDB_OK || has_place(c, r)) {
        start(c, r);
    } else {
        c->stalled = r;
    }
}

void l2c_conn_finished(conn *c, request *r) {
    r->dispatched = false;
    if (c == NULL) {
        l2c_request_free(r);
        return;
    }
    done(c, r, r->verdict == VERDICT_DONE);
}

void l2c_conn_event(conn *c, request *r, bool last) {
    done(c, r, last);
}

/* ---- Reading ------------------------------------------------------------------------------- */

static bool feed(conn *c, const char *data, size_t n, size_t *used) {
    if (c->ending) {
        *used = n;
        return true;
    }
    if (c->state == CONN_NEW) {
        c->state = data[0] == '{' ? CONN_LINES : CONN_HTTP;
        if (c->state == CONN_HTTP) {
            l2c_http_init(c);
        }
    }
    return c->state == CONN_LINES ? l2c_jsonl_feed(c, data, n, used)
                                  : l2c_http_feed(c, data, n, used);
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf) {
    (void)handle;
    (void)wanted;
    *buf = uv_buf_init(read_buffer, READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

static void set_reading(conn *c) {
    bool wanted = c->stalled == NULL && !c->eof;
    if (wanted && !c->reading) {
        c->reading = uv_read_start(&c->u.stream, on_alloc, on_read) == 0;
        c->broken = c->broken || !c->reading;
    } else if (!wanted && c->reading) {
        uv_read_stop(&c->u.stream);
        c->reading = false;
    }
}

static void pump(conn *c) {
    if (c->state == CONN_CLOSED) {
        return;
    }
    while (!c->broken) {
        if (c->stalled != NULL) {
            if (!has_place(c, c->stalled)) {
                break;
            }
            request *r = c->stalled;
            c->stalled = NULL;
            start(c, r);
        }
        size_t used = 0;
        if (c->in.size == 0 || !feed(c, c->in.data, c->in.size, &used)) {
            break;
        }
        l2c_wbuf_drop(&c->in, used);
        if (used == 0 && c->stalled == NULL) {
            break;
        }
    }
    if (c->eof && c->stalled == NULL && c->state == CONN_LINES && !c->ending) {
        l2c_jsonl_finish(c);
    }
    set_reading(c);
    slim(c);
    settle(c);
}

void l2c_conn_flush_dirty(server *srv) {
    while (srv->dirty != NULL) {
        conn *c = srv->dirty;
        srv->dirty = c->dirty_next;
        c->dirty = false;
        pump(c);
    }
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    conn *c = stream->data;
    if (c->state == CONN_LINGER) {
        if (n < 0) {
            l2c_conn_close(c);
        }
        return;
    }
    if (n == UV_EOF) {
        c->eof = true;
        if (c->first != NULL && c->first->events) {
            l2c_conn_close(c); // nobody listens to the events any more
            return;
        }
        pump(c);
        return;
    }
    if (n < 0) {
        l2c_conn_close(c);
        return;
    }
    size_t used = 0;
    if (n > 0 && c->in.size == 0 && c->stalled == NULL) {
        feed(c, buf->base, (size_t)n, &used);
    }
    if (n > 0 && !c->ending) {
        l2c_wbuf_put(&c->in, buf->base + used, (size_t)n - used);
        c->broken = c->broken || c->in.failed;
    }
    pump(c);
}

/* ---- Deadlines ----------------------------------------------------------------------------- */

static void refuse_slow(conn *c) {
    server *srv = c->srv;
    srv->metrics.timeouts++;
    request *r = c->current;
    c->current = NULL;
    if (r == NULL) {
        r = l2c_request_new(srv, c, c->state == CONN_HTTP);
    }
    if (r == NULL) {
        l2c_conn_close(c);
        return;
    }
    l2c_request_fail(r, 408, L2CDB_E_TIMEOUT, "", "the request did not arrive in time");
    r->close_after = true;
    l2c_conn_request(c, r);
    settle(c);
}

void l2c_conn_sweep(conn *c, uint64_t now) {
    const l2c_serve_options *o = &c->srv->o;
    if (c->state == CONN_LINGER) {
        if (now - c->idle_since > LINGER_MS) {
            l2c_conn_close(c);
        }
        return;
    }
    if (c->write_busy) {
        size_t left = uv_stream_get_write_queue_size(&c->u.stream);
        if (left != c->write_left) {
            c->write_left = left;
            c->write_moved = now;
        } else if (now - c->write_moved > o->stall_ms) {
            c->srv->metrics.timeouts++;
            l2c_conn_close(c);
            return;
        }
    }
    uint64_t allowed = o->header_ms + c->partial_bytes / PARTIAL_BYTES_PER_MS;
    if (c->partial_since != 0 && c->stalled == NULL && now - c->partial_since > allowed) {
        refuse_slow(c);
        return;
    }
    bool idle = c->first == NULL && c->partial_since == 0 && !c->write_busy;
    if (idle && (c->srv->draining || now - c->idle_since > o->idle_ms)) {
        l2c_conn_close(c);
    }
}

/* ---- Coming in ----------------------------------------------------------------------------- */

static void name_peer(conn *c) {
    struct sockaddr_storage address;
    int size = sizeof address;
    snprintf(c->peer, sizeof c->peer, "unix");
    c->local = true;
    if (c->u.handle.type == UV_TCP &&
        uv_tcp_getpeername(&c->u.tcp, (struct sockaddr *)&address, &size) == 0) {
        c->local = false;
        if (address.ss_family == AF_INET6) {
            uv_ip6_name((struct sockaddr_in6 *)&address, c->peer, sizeof c->peer);
        } else {
            uv_ip4_name((struct sockaddr_in *)&address, c->peer, sizeof c->peer);
        }
    }
}

static size_t count_peer(const conn *c) {
    size_t n = 0;
    for (const conn *other = c->srv->conns; other != NULL; other = other->next) {
        n += !other->local && strcmp(other->peer, c->peer) == 0;
    }
    return n;
}

static void refuse(conn *c, const char *reason) {
    char body[160], text[400];
    int size =
        snprintf(body, sizeof body,
                 "{\"error\":{\"code\":\"E_BUSY\",\"message\":\"%s\",\"hint\":\"\"}}", reason);
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
                     "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                     size, body);
    uv_buf_t buf = uv_buf_init(text, (unsigned)n);
    uv_try_write(&c->u.stream, &buf, 1);
    c->state = CONN_CLOSED;
    uv_close(&c->u.handle, on_closed);
}

static void begin(conn *c) {
    server *srv = c->srv;
    c->u.handle.data = c;
    c->idle_since = uv_now(&srv->loop);
    c->next = srv->conns;
    if (c->next != NULL) {
        c->next->prev = c;
    }
    srv->conns = c;
    atomic_fetch_add(&srv->conns_count, 1);
    srv->metrics.accepted++;
    set_reading(c);
    settle(c);
}

void l2c_conn_open(server *srv, uv_stream_t *listener) {
    conn *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return;
    }
    c->srv = srv;
    int rc = listener->type == UV_TCP ? uv_tcp_init(&srv->loop, &c->u.tcp)
                                      : uv_pipe_init(&srv->loop, &c->u.pipe, 0);
    if (rc != 0) {
        free(c);
        return;
    }
    c->u.handle.data = c;
    if (uv_accept(listener, &c->u.stream) != 0) {
        c->state = CONN_CLOSED;
        uv_close(&c->u.handle, on_closed);
        return;
    }
    name_peer(c);
    if (atomic_load(&srv->conns_count) >= srv->o.connections_max) {
        srv->metrics.refused_total++;
        refuse(c, "too many connections");
        return;
    }
    if (!c->local && count_peer(c) >= srv->o.per_address_max) {
        srv->metrics.refused_address++;
        refuse(c, "too many connections from this address");
        return;
    }
    if (!c->local) {
        uv_tcp_nodelay(&c->u.tcp, 1);
    }
    begin(c);
}

conn *l2c_conn_adopt(server *srv, int fd) {
    conn *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->srv = srv;
    if (uv_pipe_init(&srv->loop, &c->u.pipe, 0) != 0 || uv_pipe_open(&c->u.pipe, fd) != 0) {
        free(c);
        return NULL;
    }
    name_peer(c);
    begin(c);
    return c;
}
