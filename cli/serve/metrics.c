/* Counters of the server and their Prometheus text (exposition format 0.0.4). The loop counts; a
 * worker that answers /metrics reads under the lock. */
#include "cli/serve/server.h"

#include <inttypes.h>

/* Upper bounds in seconds; the last bucket is +Inf. */
static const double bounds[METRICS_BUCKETS - 1] = { 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                    0.1,    0.25,  0.5,    1,     2.5,  10 };

/* Place of the operation in the table; the last place is for everything without one. */
static size_t place(const op *o) {
    const op *const *ops;
    size_t n = l2c_routes_ops(&ops);
    for (size_t i = 0; i < n; i++) {
        if (ops[i] == o) {
            return i;
        }
    }
    return n;
}

void l2c_metrics_count(server *srv, const request *r, double seconds) {
    metrics *m = &srv->metrics;
    size_t at = place(r->op), bucket = 0;
    int status = r->status != 0 ? r->status : 200;
    while (bucket < METRICS_BUCKETS - 1 && seconds > bounds[bucket]) {
        bucket++;
    }
    uv_mutex_lock(&m->lock);
    m->ops[at].by_class[status / 100 % 6]++;
    m->ops[at].buckets[bucket]++;
    m->ops[at].seconds += seconds;
    m->queue_s += r->queue_ms / 1e3;
    m->encode_s += r->encode_ms / 1e3;
    m->search_s += r->search_ms / 1e3;
    m->fetch_s += r->fetch_ms / 1e3;
    uv_mutex_unlock(&m->lock);
}

static void head(wbuf *out, const char *name, const char *kind, const char *help) {
    l2c_wbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

static void single(wbuf *out, const char *name, const char *kind, const char *help, double v) {
    head(out, name, kind, help);
    l2c_wbuf_printf(out, "%s ", name);
    l2c_wbuf_double(out, v);
    l2c_wbuf_char(out, '\n');
}

static void write_requests(const metrics *m, const op *const *ops, size_t n, wbuf *out) {
    head(out, "l2cdb_requests_total", "counter",
         "Requests answered, by operation and status class.");
    for (size_t i = 0; i <= n; i++) {
        for (int c = 1; c < 6; c++) {
            if (m->ops[i].by_class[c] > 0) {
                l2c_wbuf_printf(out, "l2cdb_requests_total{op=\"%s\",class=\"%dxx\"} %" PRIu64 "\n",
                                i < n ? ops[i]->name : "none", c, m->ops[i].by_class[c]);
            }
        }
    }
    head(out, "l2cdb_request_seconds", "histogram", "From the request's first byte to its reply.");
    for (size_t i = 0; i <= n; i++) {
        const char *name = i < n ? ops[i]->name : "none";
        uint64_t sum = 0;
        for (size_t b = 0; b < METRICS_BUCKETS; b++) {
            sum += m->ops[i].buckets[b];
        }
        if (sum == 0) {
            continue;
        }
        sum = 0;
        for (size_t b = 0; b < METRICS_BUCKETS - 1; b++) {
            sum += m->ops[i].buckets[b];
            l2c_wbuf_printf(out, "l2cdb_request_seconds_bucket{op=\"%s\",le=\"%g\"} %" PRIu64 "\n",
                            name, bounds[b], sum);
        }
        sum += m->ops[i].buckets[METRICS_BUCKETS - 1];
        l2c_wbuf_printf(out,
                        "l2cdb_request_seconds_bucket{op=\"%s\",le=\"+Inf\"} %" PRIu64 "\n"
                        "l2cdb_request_seconds_sum{op=\"%s\"} %.6f\n"
                        "l2cdb_request_seconds_count{op=\"%s\"} %" PRIu64 "\n",
                        name, sum, name, m->ops[i].seconds, name, sum);
    }
}

static void write_refused(const metrics *m, wbuf *out) {
    head(out, "l2cdb_refused_total", "counter", "Connections and requests refused, by reason.");
    const struct {
        const char *reason;
        uint64_t n;
    } rows[] = {
        { "connections", m->refused_total }, { "address", m->refused_address },
        { "timeout", m->timeouts },          { "overload", m->overload },
        { "malformed", m->bad_requests },    { "token", m->unauthorised },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        l2c_wbuf_printf(out, "l2cdb_refused_total{reason=\"%s\"} %" PRIu64 "\n", rows[i].reason,
                        rows[i].n);
    }
}

static void write_phases(const metrics *m, wbuf *out) {
    head(out, "l2cdb_phase_seconds_total", "counter", "Time of requests, by phase.");
    l2c_wbuf_printf(out,
                    "l2cdb_phase_seconds_total{phase=\"queue\"} %.6f\n"
                    "l2cdb_phase_seconds_total{phase=\"encode\"} %.6f\n"
                    "l2cdb_phase_seconds_total{phase=\"search\"} %.6f\n"
                    "l2cdb_phase_seconds_total{phase=\"fetch\"} %.6f\n",
                    m->queue_s, m->encode_s, m->search_s, m->fetch_s);
}

void l2c_metrics_write(server *srv, wbuf *out) {
    metrics *m = &srv->metrics;
    const op *const *ops;
    size_t n = l2c_routes_ops(&ops);
    uv_mutex_lock(&m->lock);
    write_requests(m, ops, n, out);
    write_refused(m, out);
    write_phases(m, out);
    single(out, "l2cdb_received_bytes_total", "counter", "Bytes of bodies and lines received.",
           (double)m->bytes_in);
    single(out, "l2cdb_sent_bytes_total", "counter", "Bytes sent.", (double)m->bytes_out);
    single(out, "l2cdb_connections_accepted_total", "counter", "Connections accepted.",
           (double)m->accepted);
    uv_mutex_unlock(&m->lock);
    single(out, "l2cdb_connections", "gauge", "Connections open.",
           (double)atomic_load(&srv->conns_count));
    single(out, "l2cdb_queue_requests", "gauge", "Requests waiting for a worker.",
           (double)l2c_workers_waiting(srv));
    single(out, "l2cdb_text_passes_total", "counter", "Passes of the text tower for queries.",
           (double)atomic_load(&srv->batcher.passes));
    single(out, "l2cdb_text_queries_total", "counter", "Texts encoded in those passes.",
           (double)atomic_load(&srv->batcher.texts));
}
