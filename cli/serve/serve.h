/* The server: one port for HTTP/1.1 + JSON, JSON lines, and the photo page.
 *
 *   l2c_serve_options o;
 *   l2c_serve_options_init(&o);
 *   o.listen = "127.0.0.1:7700";
 *   serve_report report;
 *   l2cdb_status rc = l2c_serve_run(db, &o, &err);   // returns after SIGTERM or SIGINT
 *
 * The loop moves bytes; engine calls run in worker threads and come back as messages. Replies keep
 * their order on a connection, and a slow client holds nobody else. */
#ifndef L2C_SERVE_H
#define L2C_SERVE_H

#include "engine/l2cdb.h"

typedef struct l2c_serve_options {
    const char *listen;    /* "127.0.0.1:7700", "[::1]:7700", "0.0.0.0:0"; NULL: no TCP */
    const char *unix_path; /* also or instead a Unix socket, mode 0600; NULL: none */
    const char *token;     /* asked from every client; NULL: none, and then only loopback binds */
    const char *log_path;  /* access log; NULL: stderr; "": none. SIGHUP opens it anew */
    const char *cors;      /* an origin whose pages may call, "*" for all; NULL: none */
    const char *const *roots; /* directories that clients may ask to ingest */
    size_t roots_count;
    const char *const *hosts; /* names a browser may use for us beside IP addresses and localhost */
    size_t hosts_count;
    size_t workers;         /* threads for reading calls; 0: one more than cores */
    size_t connections_max; /* default 1024 */
    size_t per_address_max; /* default 64; Unix sockets do not count */
    size_t queue_max;       /* requests waiting for a worker; default 1024 */
    uint32_t sql_ms_max;    /* of a statement; default 10,000 */
    uint64_t sql_rows_max;  /* of a statement; default 1,000,000 */
    uint32_t drain_ms;      /* what running requests get at SIGTERM; default 10,000 */
    uint32_t header_ms, idle_ms, stall_ms; /* default 10,000, 60,000, 30,000 */
    double batch_wait_ms;                  /* for company of a text query; default 2 */
    bool no_warm;                          /* the model is loaded at first need, not at start */
    /* Called once on the loop when the sockets listen; port is 0 without TCP. NULL accepted. */
    void (*on_ready)(void *ctx, const char *address, unsigned port);
    void *ctx;
} l2c_serve_options;

void l2c_serve_options_init(l2c_serve_options *o);

/* Serves until SIGTERM or SIGINT, then drains and returns L2CDB_OK. E_INVALID for an address that
 * cannot be read or a bind beyond loopback without a token; E_BUSY for an address in use; E_DENIED,
 * E_IO. Takes SIGTERM, SIGINT, SIGHUP and SIGPIPE while it runs. One at a time in a process. */
l2cdb_status l2c_serve_run(l2cdb *db, const l2c_serve_options *options, l2cdb_error *err);

#endif
