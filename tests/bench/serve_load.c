/* Load on a server over JSON lines, from one thread on libuv:
 *
 *   serve_load ADDRESS PORT REQUESTS CONNECTIONS WINDOW SECONDS [RATE]
 *
 * REQUESTS is a file of lines, sent in turn; each connection keeps WINDOW of them on their way.
 * With RATE (requests a second, all connections together) requests leave on a clock instead,
 * whether or not earlier ones are answered, and the time of each counts from when it was due: a
 * server that stalls pays for everyone who would have asked meanwhile. The first tenth of the time
 * is not counted. Prints: requests, requests a second, milliseconds at the 50th, 95th, 99th and
 * 100th percentile, replies with "error". */
#define _GNU_SOURCE // memmem

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

#define TIMES_MAX 4000000
#define WINDOW_MAX 1024

typedef struct line {
    char *text;
    size_t size;
} line;

typedef struct client {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uint64_t sent[WINDOW_MAX]; /* when each request on its way was due */
    size_t head, waiting;
    char start[16]; /* of the reply being received */
    size_t start_size;
    int ready;
} client;

static line *lines;
static size_t lines_count, next_line;
static client *clients;
static size_t clients_count, window, turn;
static float times[TIMES_MAX];
static size_t times_count, errors, late;
static uint64_t measure_from, measure_until;
static double rate;
static uint64_t clock_start, clock_sent;
static uv_loop_t loop;
static char read_buffer[1 << 18];

static void die(const char *what, int rc) {
    fprintf(stderr, "serve_load: %s: %s\n", what, rc < 0 ? uv_strerror(rc) : "failed");
    exit(1);
}

static void read_lines(const char *path) {
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        die(path, 0);
    }
    char *text = NULL;
    size_t room = 0;
    ssize_t n;
    while ((n = getline(&text, &room, f)) > 0) {
        lines = realloc(lines, (lines_count + 1) * sizeof *lines);
        if (lines == NULL) {
            die("memory", 0);
        }
        lines[lines_count++] = (line){ text, (size_t)n };
        text = NULL;
        room = 0;
    }
    fclose(f);
    if (lines_count == 0) {
        die("no requests", 0);
    }
}

static void on_write(uv_write_t *write, int status) {
    free(write);
    if (status < 0 && status != UV_ECANCELED) {
        die("write", status);
    }
}

static void ask(client *c, uint64_t due) {
    const line *l = &lines[next_line++ % lines_count];
    uv_buf_t buf = uv_buf_init(l->text, (unsigned)l->size);
    c->sent[(c->head + c->waiting++) % WINDOW_MAX] = due;
    int n = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
    size_t done = n > 0 ? (size_t)n : 0;
    if (n < 0 && n != UV_EAGAIN) {
        die("write", n);
    }
    if (done < l->size) {
        uv_write_t *write = malloc(sizeof *write);
        buf = uv_buf_init(l->text + done, (unsigned)(l->size - done));
        if (write == NULL || uv_write(write, (uv_stream_t *)&c->tcp, &buf, 1, on_write) != 0) {
            die("write", 0);
        }
    }
}

static void count(client *c, uint64_t now) {
    uint64_t due = c->sent[c->head];
    c->head = (c->head + 1) % WINDOW_MAX;
    c->waiting--;
    if (now >= measure_from && now < measure_until && times_count < TIMES_MAX) {
        times[times_count++] = (float)((double)(now - due) / 1e6);
        errors += memmem(c->start, c->start_size, "error", 5) != NULL;
    }
    c->start_size = 0;
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf) {
    (void)handle;
    (void)wanted;
    *buf = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    client *c = stream->data;
    if (n < 0) {
        die("read", (int)n);
    }
    uint64_t now = uv_hrtime();
    for (const char *at = buf->base, *end = at + n; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t part = (size_t)((stop != NULL ? stop : end) - at);
        size_t room = sizeof c->start - c->start_size;
        memcpy(c->start + c->start_size, at, part < room ? part : room);
        c->start_size += part < room ? part : room;
        if (stop == NULL) {
            break;
        }
        count(c, now);
        if (rate == 0) {
            ask(c, now);
        }
        at = stop + 1;
    }
    if (now > measure_until) {
        uv_stop(&loop);
    }
}

static void on_connect(uv_connect_t *connect, int status) {
    client *c = connect->data;
    if (status < 0) {
        die("connect", status);
    }
    c->ready = 1;
    uv_tcp_nodelay(&c->tcp, 1);
    uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    for (size_t i = 0; rate == 0 && i < window; i++) {
        ask(c, uv_hrtime());
    }
}

/* Sends what is due by now. */
static void on_clock(uv_timer_t *timer) {
    (void)timer;
    uint64_t now = uv_hrtime();
    while (clock_start + (uint64_t)((double)clock_sent * 1e9 / rate) <= now) {
        client *c = &clients[turn++ % clients_count];
        if (!c->ready) {
            break;
        }
        uint64_t due = clock_start + (uint64_t)((double)clock_sent++ * 1e9 / rate);
        if (c->waiting < WINDOW_MAX - 1) {
            ask(c, due);
        } else {
            late++;
        }
    }
    if (now > measure_until) {
        uv_stop(&loop);
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(double p) {
    size_t at = (size_t)((double)times_count * p / 100);
    return times_count > 0 ? (double)times[at < times_count ? at : times_count - 1] : 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in address;
    if (argc < 7 || uv_ip4_addr(argv[1], atoi(argv[2]), &address) != 0) {
        fputs("usage: serve_load ADDRESS PORT REQUESTS CONNECTIONS WINDOW SECONDS [RATE]\n",
              stderr);
        return 2;
    }
    read_lines(argv[3]);
    clients_count = strtoul(argv[4], NULL, 10);
    window = strtoul(argv[5], NULL, 10);
    double seconds = strtod(argv[6], NULL);
    rate = argc > 7 ? strtod(argv[7], NULL) : 0;
    if (clients_count == 0 || window == 0 || window >= WINDOW_MAX) {
        die("CONNECTIONS or WINDOW", 0);
    }
    clients = calloc(clients_count, sizeof *clients);
    if (clients == NULL) {
        die("memory", 0);
    }
    uv_loop_init(&loop);
    uint64_t start = uv_hrtime();
    measure_from = start + (uint64_t)(seconds * 1e8);
    measure_until = start + (uint64_t)(seconds * 1e9);
    for (size_t i = 0; i < clients_count; i++) {
        uv_tcp_init(&loop, &clients[i].tcp);
        clients[i].tcp.data = clients[i].connect.data = &clients[i];
        int rc = uv_tcp_connect(&clients[i].connect, &clients[i].tcp, (struct sockaddr *)&address,
                                on_connect);
        if (rc != 0) {
            die("connect", rc);
        }
    }
    uv_timer_t timer;
    if (rate > 0) {
        clock_start = start;
        uv_timer_init(&loop, &timer);
        uv_timer_start(&timer, on_clock, 1, 1);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    qsort(times, times_count, sizeof *times, by_value);
    printf("requests %zu  rate %.0f/s  p50 %.3f  p95 %.3f  p99 %.3f  max %.3f ms  errors %zu",
           times_count, (double)times_count / (seconds * 0.9), percentile(50), percentile(95),
           percentile(99), percentile(100), errors);
    printf(late > 0 ? "  not sent %zu\n" : "\n", late);
    return errors > 0;
}
