/* Any bytes on a connection, HTTP or JSON lines: the server answers in whole lines or responses, or
 * not at all, and lets go of the connection. The engine is the fake one; workers == 0 runs its
 * calls on the loop, so an input's fate does not depend on threads.
 *
 * The first byte of the input says into which pieces the rest is cut. */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/serve/server.h"

#define TURNS_MAX 100000
#define REPLY_BYTES_MAX ((size_t)64 << 20)

static server srv;

static void start_server(void) {
    static bool started;
    if (started) {
        return;
    }
    started = true;
    l2cdb *db;
    l2c_serve_options o;
    l2c_serve_options_init(&o);
    o.log_path = "";
    o.sql_ms_max = 1;
    o.sql_rows_max = 2000;
    FUZZ_CHECK(l2cdb_open(&db, "fuzz.l2cdb", NULL, NULL) == L2CDB_OK);
    FUZZ_CHECK(l2c_server_init(&srv, db, &o, NULL));
}

/* Takes what the server has written so far. */
static void drain(int fd, wbuf *replies) {
    char piece[1 << 16];
    ssize_t n;
    while ((n = read(fd, piece, sizeof piece)) > 0) {
        l2c_wbuf_put(replies, piece, (size_t)n);
    }
    FUZZ_CHECK(replies->size < REPLY_BYTES_MAX);
}

static void send_all(int fd, const uint8_t *data, size_t n, wbuf *replies) {
    for (int turn = 0; n > 0 && srv.conns != NULL && turn < TURNS_MAX; turn++) {
        ssize_t sent = write(fd, data, n);
        if (sent > 0) {
            data += sent;
            n -= (size_t)sent;
        } else if (sent < 0 && errno != EAGAIN) {
            return;
        }
        uv_run(&srv.loop, UV_RUN_NOWAIT);
        drain(fd, replies);
    }
}

static void check_lines(const char *text, size_t n) {
    while (n > 0) {
        const char *end = memchr(text, '\n', n);
        FUZZ_CHECK(end != NULL);
        size_t size = (size_t)(end - text);
        json_t *reply = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
        FUZZ_CHECK(json_is_object(reply));
        json_decref(reply);
        text += size + 1;
        n -= size + 1;
    }
}

static void check(const uint8_t *data, size_t n, const wbuf *replies) {
    if (replies->size == 0) {
        return;
    }
    if (n > 0 && data[0] == '{') {
        check_lines(replies->data, replies->size);
    } else {
        FUZZ_CHECK(replies->size > 12 && memcmp(replies->data, "HTTP/1.1 ", 9) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 1) {
        return 0;
    }
    start_server();
    int fd[2];
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd) == 0);
    FUZZ_CHECK(l2c_conn_adopt(&srv, fd[1]) != NULL);
    size_t piece = (size_t)data[0] * data[0] + 1;
    wbuf replies = { 0 };
    for (size_t at = 1; at < n; at += piece) {
        send_all(fd[0], data + at, n - at < piece ? n - at : piece, &replies);
    }
    shutdown(fd[0], SHUT_WR);
    for (int turn = 0; srv.conns != NULL; turn++) {
        uv_run(&srv.loop, UV_RUN_NOWAIT);
        drain(fd[0], &replies);
        FUZZ_CHECK(turn < TURNS_MAX);
    }
    drain(fd[0], &replies);
    check(data + 1, n - 1, &replies);
    l2c_wbuf_fini(&replies);
    close(fd[0]);
    uv_run(&srv.loop, UV_RUN_NOWAIT);
    FUZZ_CHECK(atomic_load(&srv.body_bytes) == 0);
    return 0;
}
