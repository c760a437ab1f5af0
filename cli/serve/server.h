/* The inside of the server: what its files share.
 *
 * Threads. Everything of `server` and `conn` belongs to the loop's thread unless a comment says
 * otherwise. A `request` is handed over whole: to a worker by l2c_workers_submit, to the batcher by
 * l2c_batcher_submit, and back by l2c_workers_finish. Whoever holds it may touch it; the others may
 * read only `gone`. Jobs have a lock of their own.
 *
 *   bytes → conn.c → http.c or jsonl.c → a request → routes.c names its operation
 *         → workers.c (→ batcher.c) → op_*.c calls the engine → conn.c writes the reply in order */
#ifndef L2C_SERVER_H
#define L2C_SERVER_H

#include <stdatomic.h>
#include <time.h>

#include <jansson.h>
#include <llhttp/llhttp.h>
#include <uv.h>

#include "cli/serve/serve.h"
#include "cli/serve/wbuf.h"

#define SERVE_BODY_BYTES_MAX ((size_t)32 << 20)
#define SERVE_JSON_BYTES_MAX ((size_t)1 << 20)
#define SERVE_JSON_DEPTH_MAX 64
#define SERVE_HEADER_BYTES_MAX ((size_t)16 << 10)
#define SERVE_K_MAX 10000
#define SERVE_TERMS_MAX 64
/* Numbers of include_vector in one reply: k × width. */
#define SERVE_VECTOR_FLOATS_MAX ((size_t)4 << 20)
/* Requests of one connection at work at a time; further ones wait unread in the socket. */
#define SERVE_INFLIGHT_MAX 16
/* A stream makes its next piece when less than this waits to be written … */
#define SERVE_WRITE_LOW ((size_t)64 << 10)
/* … and with more than this waiting, nothing more is read from the connection. */
#define SERVE_WRITE_HIGH ((size_t)1 << 20)
#define SERVE_CHUNK_BYTES ((size_t)48 << 10)
/* Bodies and replies held at a time, all connections together; then 503. */
#define SERVE_HELD_BYTES_MAX ((size_t)512 << 20)

typedef struct server server;
typedef struct conn conn;
typedef struct request request;
typedef struct job job;

/* ---- Operations ---------------------------------------------------------------------------- */

typedef enum lane {
    LANE_LOOP,  /* quick and without engine calls: runs on the loop */
    LANE_READ,  /* any worker */
    LANE_WRITE, /* one thread of its own, so that a writer waiting for its turn blocks no reader */
} lane;

typedef enum verdict {
    VERDICT_DONE,   /* the reply, or its last piece, stands in r->out */
    VERDICT_MORE,   /* a piece stands in r->out; run again when it is written */
    VERDICT_ENCODE, /* r->texts wait for the batcher; run again with r->vectors */
    VERDICT_EVENTS, /* the connection now follows r->job (LANE_LOOP only) */
} verdict;

enum {
    OP_OPEN = 1,  /* needs no token */
    OP_RAW = 2,   /* takes bytes that are not JSON, up to SERVE_BODY_BYTES_MAX */
    OP_BARE = 4,  /* takes no body */
    OP_HTTP = 8,  /* not on JSON lines */
    OP_PAGE = 16, /* may be navigated to from another site */
};

typedef struct op {
    const char *name; /* of JSON lines and the metrics */
    lane lane;
    unsigned flags;
    verdict (*run)(request *r);
    void (*release)(void *state); /* of r->state, NULL if it has none */
} op;

typedef struct route {
    llhttp_method_t method;
    const char *pattern; /* ":id" stands for a whole number */
    const op *op;
} route;

/* ---- Requests ------------------------------------------------------------------------------ */

/* A vector that vector_cut.c took out of a request; owned by it. */
typedef struct vector_cut {
    float *data;
    size_t count;
} vector_cut;

struct request {
    server *srv;
    conn *c;       /* NULL when the client went away while a worker had the request */
    request *next; /* in the connection's order */
    request *queue_next;
    const op *op; /* NULL until known */

    bool http; /* else a JSON line */
    bool minor0, keep_alive, head_only, expect_100, raw_image, ndjson, json_seen;
    llhttp_method_t method;
    char *target; /* as sent; for the log and the query string */
    size_t path_size;
    char *id_text; /* JSON text of a line's "id" */
    int64_t path_id;
    wbuf body; /* as received */
    json_t *args;
    vector_cut *cuts;
    size_t cuts_count;
    char etag_in[64], content_type_in[64];
    struct header_values *header; /* http.c, while the header is being received */

    atomic_bool gone; /* the client went away: long work may stop */
    verdict verdict;
    bool dispatched; /* a worker or the batcher has it */
    bool ready;      /* out is to be written */
    bool finished;   /* and is the end */
    bool paused;     /* a stream that waits for its client */
    bool streaming, events;
    bool reads, writes; /* counted in the connection's */
    int status;         /* HTTP; 0 means 200 */
    wbuf out;           /* the body, or its next piece */
    wbuf headers;       /* further header lines */
    const char *content_type;
    const char *cache_control;
    char content_type_text[64], etag[48];
    bool close_after;
    l2cdb_error error; /* code other than OK: the reply is this error */
    int error_status;  /* 0: from error.code */
    unsigned retry_after_s;

    void *state; /* the operation's */
    job *job;
    uint64_t job_seq;

    /* For the batcher. Borrowed from state. */
    const char **texts;
    size_t texts_count;
    float *vectors;
    size_t width;
    int64_t generation; /* of the vectors, once they are made */
    uint64_t encode_started;

    uint64_t started, queued; /* uv_hrtime */
    double queue_ms, encode_ms, search_ms, fetch_ms;
    size_t bytes_in, bytes_out;
};

request *l2c_request_new(server *srv, conn *c, bool http);
void l2c_request_free(request *r);
/* Makes the reply an error. status 0 takes it from the code. */
void l2c_request_fail(request *r, int status, l2cdb_status code, const char *hint, const char *fmt,
                      ...) __attribute__((format(printf, 5, 6)));
/* Whether an engine call that was given r->error went well; what such a call left there is removed.
 */
bool l2c_request_ok(request *r, l2cdb_status rc);
/* Writes {"error":…} of r->error into r->out. */
void l2c_request_error_body(request *r);
/* Parses the body or line (worker's side); false leaves the error set. */
bool l2c_request_parse(request *r);
/* vector_cut.c: with `vectors`, values of members named "vector" go to r->cuts, and `rest` is the
 * body with {"cut":index} in their places; left empty when there are none. False: nested too deep.
 */
bool l2c_vector_cut(request *r, bool vectors, wbuf *rest);
/* Runs the operation and turns its error into a reply. */
verdict l2c_request_run(request *r);
/* "encode_ms":…,"search_ms":… without braces, for the end of a reply. */
void l2c_request_timings(request *r, wbuf *out);

/* Arguments: members of the JSON object, or of the query string (where numbers are text). Missing
 * or null leaves *out as it is. A wrong type fails the request and returns false. */
bool l2c_request_int(request *r, const char *key, int64_t *out, int64_t least, int64_t most);
bool l2c_request_double(request *r, const char *key, double *out);
bool l2c_request_bool(request *r, const char *key, bool *out);
bool l2c_request_string(request *r, const char *key, const char **out);
/* The id of the path, or the member `key` of a line. */
bool l2c_request_id(request *r, const char *key, int64_t *out);

/* ---- Connections --------------------------------------------------------------------------- */

typedef enum conn_state {
    CONN_NEW, /* no byte yet */
    CONN_HTTP,
    CONN_LINES,
    CONN_LINGER, /* the last reply is out; what still comes is thrown away */
    CONN_CLOSED,
} conn_state;

struct conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } u;
    server *srv;
    conn *prev, *next;
    conn *dirty_next;
    char peer[48];
    bool local; /* a Unix socket */
    conn_state state;
    bool reading, eof, broken, dirty, authed;
    bool ending; /* no further request is taken; closed when the replies are out */

    llhttp_t parser;
    request *current; /* being received */
    request *stalled; /* received, waits for its turn */
    wbuf in;          /* received, not parsed */
    size_t scanned;   /* bytes of `in` known to hold no line end */

    request *first, *last; /* whose replies are due, in order */
    size_t inflight;       /* not popped yet */
    size_t reads, writes;  /* of those, at work */
    wbuf out, writing;
    uv_write_t write;
    uv_shutdown_t shutdown;
    bool write_busy;
    size_t write_left; /* at the last look, for the stall timer */
    /* Times in ms of the loop. partial_since 0: nothing is half received. */
    uint64_t write_moved, idle_since, partial_since;
    size_t partial_bytes;
};

void l2c_conn_open(server *srv, uv_stream_t *listener);
void l2c_conn_close(conn *c);
/* A request is complete (or failed early): it gets its place in the order and goes to work. */
void l2c_conn_request(conn *c, request *r);
/* A worker is done with r; l2c_conn_flush_dirty must follow. c NULL: the client is gone. */
void l2c_conn_finished(conn *c, request *r);
/* A piece of an event stream stands in r->out; l2c_conn_flush_dirty must follow. */
void l2c_conn_event(conn *c, request *r, bool last);
void l2c_conn_flush_dirty(server *srv);
/* Every quarter of a second: deadlines. */
void l2c_conn_sweep(conn *c, uint64_t now);
size_t l2c_conn_pending(const conn *c);
/* For the fuzzer and tests: a connection over an open descriptor. */
conn *l2c_conn_adopt(server *srv, int fd);

/* http.c: feeds n bytes; *used tells how many were taken (fewer when a request stalls). False: the
 * connection cannot go on and its error reply is queued. */
void l2c_http_init(conn *c);
/* Frees what was kept of the header. */
void l2c_http_drop_header(request *r);
bool l2c_http_feed(conn *c, const char *data, size_t n, size_t *used);
/* The status line and header of a reply; `length` SIZE_MAX: chunked. */
void l2c_http_head(request *r, wbuf *out, size_t length);

/* jsonl.c */
bool l2c_jsonl_feed(conn *c, const char *data, size_t n, size_t *used);
/* The last line may lack its end. */
void l2c_jsonl_finish(conn *c);
/* Puts {"id":…, before the members of an object. */
void l2c_jsonl_head(request *r, wbuf *out);

/* ---- Routes and operations ----------------------------------------------------------------- */

/* Finds the route of r->target; sets r->op and r->path_id, or fails r with 404 or 405. */
bool l2c_routes_find(request *r);
const op *l2c_routes_op(const char *name, size_t n);
size_t l2c_routes_ops(const op *const **list);

extern const op l2c_op_search, l2c_op_encode, l2c_op_query, l2c_op_put_image, l2c_op_image,
    l2c_op_delete_image, l2c_op_thumb, l2c_op_original, l2c_op_captions, l2c_op_add_caption,
    l2c_op_update_caption, l2c_op_delete_caption, l2c_op_ingest, l2c_op_tune, l2c_op_reindex,
    l2c_op_rollback, l2c_op_jobs, l2c_op_job, l2c_op_job_events, l2c_op_cancel_job, l2c_op_stats,
    l2c_op_metrics, l2c_op_health, l2c_op_live, l2c_op_ready, l2c_op_page, l2c_op_page_css,
    l2c_op_page_js, l2c_op_page_icon, l2c_op_openapi, l2c_op_session, l2c_op_end_session,
    l2c_op_options;

/* ---- auth.c -------------------------------------------------------------------------------- */

typedef struct auth {
    const char *token; /* NULL: none asked */
    char session[65];  /* what the page's cookie holds, new at each start */
} auth;

bool l2c_auth_init(auth *a, const char *token);
bool l2c_auth_token(const auth *a, const char *given, size_t n);
/* `header` "Bearer …", `cookie` the Cookie header; either may be NULL. */
bool l2c_auth_header(const auth *a, const char *header);
bool l2c_auth_cookie(const auth *a, const char *cookie);
/* Whether a request with these headers may come from a page of another site. NULL: not sent. */
bool l2c_auth_same_site(server *srv, const char *host, const char *origin, const char *fetch_site,
                        bool navigable);

/* ---- workers.c ----------------------------------------------------------------------------- */

typedef struct queue {
    request *head, *tail;
    size_t count;
} queue;

typedef struct workers {
    uv_mutex_t lock;
    uv_cond_t read_more, write_more;
    queue read, write, done;
    bool stop;
    size_t count; /* reading threads; 0: everything runs inside workers_drain (tests) */
    uv_thread_t *threads, writer;
    uv_async_t wake;
    size_t queue_max;
} workers;

bool l2c_workers_init(server *srv, size_t count);
/* Ends the threads; what they had is back in the queues. */
void l2c_workers_join(server *srv);
void l2c_workers_fini(server *srv);
/* False: the queue is full. `again` is for a request that has been through: never refused. */
bool l2c_workers_submit(request *r, bool again);
size_t l2c_workers_waiting(server *srv);

/* ---- batcher.c ----------------------------------------------------------------------------- */

/* Text queries that come together go through the LLM together. */
typedef struct batcher {
    uv_mutex_t lock;
    uv_cond_t more;
    queue waiting;
    bool stop, started;
    uv_thread_t thread;
    uint64_t wait_ns;
    size_t count_last;
    atomic_ullong passes, texts;
} batcher;

bool l2c_batcher_init(server *srv);
void l2c_batcher_fini(server *srv);
void l2c_batcher_submit(request *r);

/* ---- jobs.c -------------------------------------------------------------------------------- */

typedef enum job_kind { JOB_INGEST, JOB_TUNE, JOB_REINDEX } job_kind;

typedef struct job_request {
    job_kind kind;
    char **paths; /* owned, absolute */
    size_t paths_count;
    char *captions_file; /* owned; also the pairs file */
    bool retry_failed, prune, force, no_promote, tune_image_head;
    double lr, val_share;
    size_t epochs, batch;
    uint64_t seed;
    int objective;
    int64_t generation;
} job_request;

typedef struct jobs {
    uv_mutex_t lock;
    uv_cond_t more;
    job *list; /* newest first */
    int64_t id_last;
    size_t waiting, count;
    bool stop, started;
    uv_thread_t thread;
    request *followers; /* SSE; loop only, linked by queue_next */
} jobs;

bool l2c_jobs_init(server *srv);
void l2c_jobs_fini(server *srv);
/* Takes what the request owns. 0: too many wait. */
int64_t l2c_jobs_submit(server *srv, job_request *q);
void l2c_job_request_fini(job_request *q);
/* JSON of one job or of all; false: no such job. */
bool l2c_jobs_write(server *srv, int64_t id, wbuf *out);
void l2c_jobs_write_all(server *srv, wbuf *out);
bool l2c_jobs_cancel(server *srv, int64_t id);
void l2c_jobs_cancel_all(server *srv);
job *l2c_jobs_find(server *srv, int64_t id);
/* Loop: sends news to followers. */
void l2c_jobs_tick(server *srv);
void l2c_jobs_unfollow(server *srv, request *r);

/* ---- metrics.c ----------------------------------------------------------------------------- */

#define METRICS_OPS_MAX 48
#define METRICS_BUCKETS 14

typedef struct metrics {
    uv_mutex_t lock; /* the loop counts, workers read */
    struct {
        uint64_t by_class[6]; /* status / 100 */
        uint64_t buckets[METRICS_BUCKETS];
        double seconds;
    } ops[METRICS_OPS_MAX];
    atomic_ullong bytes_in, bytes_out, accepted, refused_total, refused_address, timeouts, overload,
        bad_requests, unauthorised;
    double queue_s, encode_s, search_s, fetch_s;
} metrics;

void l2c_metrics_count(server *srv, const request *r, double seconds);
void l2c_metrics_write(server *srv, wbuf *out);

/* ---- accesslog.c --------------------------------------------------------------------------- */

typedef struct accesslog {
    const char *path; /* NULL: stderr, "": none */
    int fd;
    wbuf lines;
} accesslog;

bool l2c_accesslog_open(accesslog *log, const char *path, l2cdb_error *err);
void l2c_accesslog_reopen(accesslog *log);
void l2c_accesslog_write(accesslog *log, const request *r, const char *peer, double total_ms);
void l2c_accesslog_flush(accesslog *log);
void l2c_accesslog_close(accesslog *log);

/* ---- The server ---------------------------------------------------------------------------- */

struct server {
    l2cdb *db;
    l2c_serve_options o;
    uv_loop_t loop;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
    uv_timer_t tick;
    uv_signal_t sigterm, sigint, sighup;
    bool tcp_open, pipe_open;
    bool draining; /* no new connections, no keep-alive */
    uint64_t drain_until;
    atomic_bool warm;
    conn *conns;
    conn *dirty;
    atomic_size_t conns_count;
    atomic_size_t body_bytes; /* of requests being received or at work */
    size_t reply_bytes;       /* waiting for clients, as of the last tick */
    auth auth;
    workers workers;
    batcher batcher;
    jobs jobs;
    metrics metrics;
    accesslog log;
    char **roots; /* resolved */
    size_t roots_count;
    char date[40];
    time_t date_of;
    uint64_t started_ms;
};

/* Everything but the sockets and signals; for the fuzzer. */
bool l2c_server_init(server *srv, l2cdb *db, const l2c_serve_options *o, l2cdb_error *err);
l2cdb_status l2c_serve_fail(l2cdb_error *err, l2cdb_status code, const char *hint, const char *fmt,
                            ...) __attribute__((format(printf, 4, 5)));

#endif
