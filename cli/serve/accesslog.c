/* One line a request, facts as key=value:
 *   2026-11-24T10:20:11.123Z peer=127.0.0.1 op=search "POST /v1/search" 200 in=98 out=2310
 *   queue_ms=0.05 encode_ms=12.1 search_ms=0.8 fetch_ms=0.1 total_ms=13.2          (on one line)
 * Lines are gathered and written a few times a second. SIGHUP opens the file anew. */
#include "cli/serve/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HELD_BYTES_MAX ((size_t)64 << 10)

static int open_file(const char *path) {
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

bool l2c_accesslog_open(accesslog *log, const char *path, l2cdb_error *err) {
    log->path = path;
    log->fd = path == NULL ? STDERR_FILENO : path[0] == '\0' ? -1 : open_file(path);
    if (path != NULL && path[0] != '\0' && log->fd < 0) {
        l2c_serve_fail(err, L2CDB_E_IO, "", "could not open the log %s: %s", path, strerror(errno));
        return false;
    }
    return true;
}

static bool is_file(const accesslog *log) {
    return log->path != NULL && log->path[0] != '\0';
}

void l2c_accesslog_reopen(accesslog *log) {
    l2c_accesslog_flush(log);
    int fd = is_file(log) ? open_file(log->path) : -1;
    if (fd >= 0) {
        close(log->fd);
        log->fd = fd;
    }
}

void l2c_accesslog_flush(accesslog *log) {
    for (size_t at = 0; log->fd >= 0 && at < log->lines.size;) {
        ssize_t n = write(log->fd, log->lines.data + at, log->lines.size - at);
        if (n < 0 && errno != EINTR) {
            break; // a full disk costs log lines, not answers
        }
        at += n > 0 ? (size_t)n : 0;
    }
    log->lines.size = 0;
    log->lines.failed = false;
}

/* Nothing of a client's bytes may look like another line or another field. */
static void put_target(wbuf *out, const request *r) {
    for (size_t i = 0; i < r->path_size; i++) {
        unsigned char c = (unsigned char)r->target[i];
        if (c > 0x20 && c < 0x7f && c != '"' && c != '\\') {
            l2c_wbuf_char(out, (char)c);
        } else {
            l2c_wbuf_printf(out, "%%%02X", c);
        }
    }
}

void l2c_accesslog_write(accesslog *log, const request *r, const char *peer, double total_ms) {
    if (log->fd < 0) {
        return;
    }
    wbuf *out = &log->lines;
    struct timespec now;
    struct tm tm;
    char stamp[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    l2c_wbuf_printf(out, "%s.%03ldZ peer=%s op=%s \"", stamp, now.tv_nsec / 1000000, peer,
                    r->op != NULL ? r->op->name : "-");
    if (r->http && r->target != NULL) {
        l2c_wbuf_printf(out, "%s ", llhttp_method_name(r->method));
        put_target(out, r);
    } else {
        l2c_wbuf_str(out, r->http ? "-" : "line");
    }
    l2c_wbuf_printf(out,
                    "\" %d in=%zu out=%zu queue_ms=%.2f encode_ms=%.2f search_ms=%.2f fetch_ms=%.2f"
                    " total_ms=%.2f\n",
                    r->status != 0 ? r->status : 200, r->bytes_in, r->bytes_out, r->queue_ms,
                    r->encode_ms, r->search_ms, r->fetch_ms, total_ms);
    if (out->size > HELD_BYTES_MAX) {
        l2c_accesslog_flush(log);
    }
}

void l2c_accesslog_close(accesslog *log) {
    l2c_accesslog_flush(log);
    if (is_file(log) && log->fd >= 0) {
        close(log->fd);
    }
    l2c_wbuf_fini(&log->lines);
}
