/* The loop: sockets, signals, the clock, and the way down.
 *
 * SIGTERM and SIGINT: no more connections, idle ones are closed, running requests get drain_ms,
 * jobs are cancelled (what they committed stays), then the engine is interrupted; a second signal
 * interrupts at once. The status is OK either way: nothing acknowledged is lost. */
#define _XOPEN_SOURCE 700 // realpath

#include "cli/serve/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 512
#define TICK_MS 250

void l2c_serve_options_init(l2c_serve_options *o) {
    *o = (l2c_serve_options){
        .listen = "127.0.0.1:7700",
        .connections_max = 1024,
        .per_address_max = 64,
        .queue_max = 1024,
        .sql_ms_max = 10000,
        .sql_rows_max = 1000000,
        .drain_ms = 10000,
        .header_ms = 10000,
        .idle_ms = 60000,
        .stall_ms = 30000,
        .batch_wait_ms = 2,
    };
}

l2cdb_status l2c_serve_fail(l2cdb_error *err, l2cdb_status code, const char *hint, const char *fmt,
                            ...) {
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        snprintf(err->hint, sizeof err->hint, "%s", hint);
        err->code = code;
        err->offset = -1;
    }
    return code;
}

/* ---- The clock ----------------------------------------------------------------------------- */

static size_t reply_bytes(const conn *c) {
    size_t n = l2c_conn_pending(c);
    for (const request *r = c->first; r != NULL; r = r->next) {
        n += r->ready ? r->out.size : 0;
    }
    return n;
}

static void finish_drain(server *srv);

static void on_tick(uv_timer_t *tick) {
    server *srv = tick->data;
    uint64_t now = uv_now(&srv->loop);
    size_t held = 0;
    for (conn *c = srv->conns, *next; c != NULL; c = next) {
        next = c->next;
        held += reply_bytes(c);
        l2c_conn_sweep(c, now);
    }
    srv->reply_bytes = held;
    l2c_jobs_tick(srv);
    l2c_conn_flush_dirty(srv);
    l2c_accesslog_flush(&srv->log);
    if (srv->draining) {
        finish_drain(srv);
    }
}

/* ---- Down ---------------------------------------------------------------------------------- */

static void close_handle(uv_handle_t *handle) {
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

static void stop_listening(server *srv) {
    if (srv->tcp_open) {
        close_handle((uv_handle_t *)&srv->tcp);
        srv->tcp_open = false;
    }
    if (srv->pipe_open) {
        close_handle((uv_handle_t *)&srv->pipe);
        srv->pipe_open = false;
        unlink(srv->o.unix_path);
    }
}

static void finish_drain(server *srv) {
    bool late = uv_now(&srv->loop) >= srv->drain_until;
    if (late) {
        l2cdb_interrupt(srv->db);
    }
    if (srv->conns == NULL || late) {
        uv_stop(&srv->loop);
    }
}

static void on_stop(uv_signal_t *handle, int number) {
    server *srv = handle->data;
    (void)number;
    uint64_t now = uv_now(&srv->loop);
    srv->drain_until = srv->draining ? now : now + srv->o.drain_ms;
    srv->draining = true;
    stop_listening(srv);
    l2c_jobs_cancel_all(srv);
    on_tick(&srv->tick);
}

static void on_hangup(uv_signal_t *handle, int number) {
    server *srv = handle->data;
    (void)number;
    l2c_accesslog_reopen(&srv->log);
}

/* ---- Up ------------------------------------------------------------------------------------ */

static void on_connection(uv_stream_t *listener, int status) {
    server *srv = listener->data;
    if (status == 0) {
        l2c_conn_open(srv, listener);
    }
}

/* "HOST:PORT" with a numeric host; [::1]:7700 for IPv6. */
static bool read_address(const char *text, struct sockaddr_storage *out) {
    char host[64];
    const char *colon = strrchr(text, ':');
    if (colon == NULL || (size_t)(colon - text) >= sizeof host || colon[1] == '\0') {
        return false;
    }
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (*end != '\0' || port < 0 || port > 65535) {
        return false;
    }
    size_t n = (size_t)(colon - text);
    bool six = text[0] == '[' && n > 2 && text[n - 1] == ']';
    memcpy(host, text + six, n - (six ? 2 : 0));
    host[n - (six ? 2 : 0)] = '\0';
    if (strcmp(host, "localhost") == 0) {
        snprintf(host, sizeof host, "127.0.0.1");
    }
    return six ? uv_ip6_addr(host, (int)port, (struct sockaddr_in6 *)out) == 0
               : uv_ip4_addr(host, (int)port, (struct sockaddr_in *)out) == 0;
}

static bool is_loopback(const struct sockaddr_storage *a) {
    if (a->ss_family == AF_INET6) {
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    }
    return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
}

static l2cdb_status fail_listen(l2cdb_error *err, const char *address, int rc) {
    l2cdb_status code = rc == UV_EADDRINUSE ? L2CDB_E_BUSY
                        : rc == UV_EACCES   ? L2CDB_E_DENIED
                                            : L2CDB_E_IO;
    return l2c_serve_fail(err, code, rc == UV_EADDRINUSE ? "choose another with --listen" : "",
                          "could not listen on %s: %s", address, uv_strerror(rc));
}

static l2cdb_status listen_tcp(server *srv, l2cdb_error *err) {
    struct sockaddr_storage address = { 0 };
    if (!read_address(srv->o.listen, &address)) {
        return l2c_serve_fail(err, L2CDB_E_INVALID, "for example 127.0.0.1:7700 or [::1]:7700",
                              "\"%s\" is not an address with a port", srv->o.listen);
    }
    if (!is_loopback(&address) && srv->o.token == NULL) {
        return l2c_serve_fail(err, L2CDB_E_DENIED, "give --token-file, or listen on 127.0.0.1",
                              "%s can be reached from other machines and no token is set",
                              srv->o.listen);
    }
    int rc = uv_tcp_init(&srv->loop, &srv->tcp);
    if (rc == 0) {
        srv->tcp_open = true;
        srv->tcp.data = srv;
        rc = uv_tcp_bind(&srv->tcp, (struct sockaddr *)&address, 0);
    }
    if (rc == 0) {
        rc = uv_listen((uv_stream_t *)&srv->tcp, BACKLOG, on_connection);
    }
    return rc == 0 ? L2CDB_OK : fail_listen(err, srv->o.listen, rc);
}

/* A socket file that nobody answers is left over from a crash and replaced. */
static void remove_stale(server *srv, const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 || !S_ISSOCK(st.st_mode)) {
        return;
    }
    uv_os_fd_t fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0 &&
        errno == ECONNREFUSED) {
        unlink(path);
    }
    if (fd >= 0) {
        close(fd);
    }
    (void)srv;
}

static l2cdb_status listen_unix(server *srv, l2cdb_error *err) {
    const char *path = srv->o.unix_path;
    remove_stale(srv, path);
    int rc = uv_pipe_init(&srv->loop, &srv->pipe, 0);
    if (rc == 0) {
        srv->pipe.data = srv;
        mode_t before = umask(0177); // the file is ours alone from its first moment
        rc = uv_pipe_bind(&srv->pipe, path);
        umask(before);
        srv->pipe_open = rc == 0;
        if (rc != 0) {
            close_handle((uv_handle_t *)&srv->pipe);
        }
    }
    if (rc == 0) {
        rc = uv_listen((uv_stream_t *)&srv->pipe, BACKLOG, on_connection);
    }
    return rc == 0 ? L2CDB_OK : fail_listen(err, path, rc);
}

static void take_signals(server *srv) {
    signal(SIGPIPE, SIG_IGN);
    struct {
        uv_signal_t *handle;
        uv_signal_cb cb;
        int number;
    } all[] = { { &srv->sigterm, on_stop, SIGTERM },
                { &srv->sigint, on_stop, SIGINT },
                { &srv->sighup, on_hangup, SIGHUP } };
    for (size_t i = 0; i < 3; i++) {
        uv_signal_init(&srv->loop, all[i].handle);
        all[i].handle->data = srv;
        uv_signal_start(all[i].handle, all[i].cb, all[i].number);
    }
}

static void raise_file_limit(size_t connections) {
    struct rlimit limit;
    rlim_t wanted = connections + 256;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
        limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static bool resolve_roots(server *srv, l2cdb_error *err) {
    srv->roots = calloc(srv->o.roots_count + 1, sizeof *srv->roots);
    if (srv->roots == NULL) {
        l2c_serve_fail(err, L2CDB_E_NOMEM, "", "out of memory");
        return false;
    }
    for (size_t i = 0; i < srv->o.roots_count; i++) {
        srv->roots[i] = realpath(srv->o.roots[i], NULL);
        if (srv->roots[i] == NULL) {
            l2c_serve_fail(err, L2CDB_E_NOTFOUND, "", "--root %s: %s", srv->o.roots[i],
                           strerror(errno));
            return false;
        }
        srv->roots_count++;
    }
    return true;
}

static void free_roots(server *srv) {
    for (size_t i = 0; i < srv->roots_count; i++) {
        free(srv->roots[i]);
    }
    free(srv->roots);
    srv->roots = NULL;
    srv->roots_count = 0;
}

bool l2c_server_init(server *srv, l2cdb *db, const l2c_serve_options *o, l2cdb_error *err) {
    srv->db = db;
    srv->o = *o;
    atomic_init(&srv->warm, false);
    srv->started_ms = uv_hrtime() / 1000000;
    srv->log.fd = -1;
    if (!resolve_roots(srv, err) || !l2c_accesslog_open(&srv->log, o->log_path, err)) {
        free_roots(srv);
        return false;
    }
    if (!l2c_auth_init(&srv->auth, o->token) || uv_loop_init(&srv->loop) != 0 ||
        uv_mutex_init(&srv->metrics.lock) != 0 || uv_timer_init(&srv->loop, &srv->tick) != 0 ||
        !l2c_workers_init(srv, o->workers) || !l2c_batcher_init(srv) || !l2c_jobs_init(srv)) {
        l2c_serve_fail(err, L2CDB_E_NOMEM, "", "could not start the server's threads");
        return false;
    }
    srv->tick.data = srv;
    uv_timer_start(&srv->tick, on_tick, TICK_MS, TICK_MS);
    return true;
}

/* Order matters: connections first, so that requests are freed instead of answered; then the
 * workers, who feed the batcher; then the batcher, who feeds their queues; then the queues. */
static void fini(server *srv) {
    while (srv->conns != NULL) {
        l2c_conn_close(srv->conns);
    }
    l2c_jobs_fini(srv);
    l2c_workers_join(srv);
    l2c_batcher_fini(srv);
    l2c_workers_fini(srv);
    close_handle((uv_handle_t *)&srv->tick);
    uv_run(&srv->loop, UV_RUN_DEFAULT);
    uv_loop_close(&srv->loop);
    l2c_accesslog_close(&srv->log);
    uv_mutex_destroy(&srv->metrics.lock);
    free_roots(srv);
}

static void warm_thread(void *arg) {
    server *srv = arg;
    l2cdb_warm(srv->db, NULL); // without a model vectors can still be searched
    atomic_store(&srv->warm, true);
}

static unsigned bound_port(server *srv) {
    struct sockaddr_storage address = { 0 };
    int size = sizeof address;
    if (!srv->tcp_open || uv_tcp_getsockname(&srv->tcp, (struct sockaddr *)&address, &size) != 0) {
        return 0;
    }
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

l2cdb_status l2c_serve_run(l2cdb *db, const l2c_serve_options *options, l2cdb_error *err) {
    l2c_serve_options o = *options;
    o.workers = o.workers > 0 ? o.workers : uv_available_parallelism() + 1;
    if (o.listen == NULL && o.unix_path == NULL) {
        return l2c_serve_fail(err, L2CDB_E_INVALID, "give --listen or --unix", "nowhere to listen");
    }
    server *srv = calloc(1, sizeof *srv);
    if (srv == NULL) {
        return l2c_serve_fail(err, L2CDB_E_NOMEM, "", "out of memory");
    }
    raise_file_limit(o.connections_max);
    if (!l2c_server_init(srv, db, &o, err)) {
        free(srv);
        return err != NULL ? err->code : L2CDB_E_INTERNAL;
    }
    l2cdb_status rc = o.listen != NULL ? listen_tcp(srv, err) : L2CDB_OK;
    if (rc == L2CDB_OK && o.unix_path != NULL) {
        rc = listen_unix(srv, err);
    }
    uv_thread_t warm;
    bool warming = false;
    if (rc == L2CDB_OK) {
        take_signals(srv);
        atomic_store(&srv->warm, o.no_warm);
        warming = !o.no_warm && uv_thread_create(&warm, warm_thread, srv) == 0;
        if (o.on_ready != NULL) {
            o.on_ready(o.ctx, o.listen != NULL ? o.listen : o.unix_path, bound_port(srv));
        }
        uv_run(&srv->loop, UV_RUN_DEFAULT);
        close_handle((uv_handle_t *)&srv->sigterm);
        close_handle((uv_handle_t *)&srv->sigint);
        close_handle((uv_handle_t *)&srv->sighup);
    }
    stop_listening(srv);
    if (warming) {
        uv_thread_join(&warm);
    }
    fini(srv);
    free(srv);
    return rc;
}
