/* Questions over one socket, many at a time: a client of `l2cdb serve` on libuv.
 *
 *   cc client.c -luv -o client
 *   ./client 127.0.0.1 7700 < questions.txt        (TOKEN=… in the environment where one is asked)
 *
 * Each line of the input is a question in words; for each, the server's reply is printed as a line
 * of JSON, in the order of the questions. Up to WINDOW questions are on their way at a time: the
 * server works on them side by side and puts their texts through the model together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

#define WINDOW 16
#define QUESTION_BYTES_MAX 4096

static uv_loop_t *loop;
static uv_tcp_t tcp;
static int waiting; /* replies that are due */
static int auth_due, ended, failed;
static char read_buffer[1 << 16];

typedef struct message {
    uv_write_t write;
    char text[2 * 6 * QUESTION_BYTES_MAX]; /* every byte may become \u00xx */
} message;

static void stop(int status) {
    failed |= status;
    if (!uv_is_closing((uv_handle_t *)&tcp)) {
        uv_close((uv_handle_t *)&tcp, NULL);
    }
}

static void on_write(uv_write_t *write, int status) {
    free(write->data);
    if (status < 0 && status != UV_ECANCELED) {
        fprintf(stderr, "client: %s\n", uv_strerror(status));
        stop(1);
    }
}

static void send_message(message *m) {
    uv_buf_t buf = uv_buf_init(m->text, (unsigned)strlen(m->text));
    m->write.data = m;
    if (uv_write(&m->write, (uv_stream_t *)&tcp, &buf, 1, on_write) != 0) {
        free(m);
        stop(1);
    }
}

/* Writes `text` as a JSON string; returns what follows it. */
static char *put_string(char *out, const char *text) {
    *out++ = '"';
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\' || c < 0x20) {
            out += sprintf(out, "\\u%04x", c);
        } else {
            *out++ = (char)c;
        }
    }
    *out++ = '"';
    return out;
}

static void send_auth(const char *token) {
    message *m = malloc(sizeof *m);
    if (m == NULL || strlen(token) > QUESTION_BYTES_MAX) {
        free(m);
        stop(1);
        return;
    }
    strcpy(m->text, "{\"auth\":");
    strcpy(put_string(m->text + strlen(m->text), token), "}\n");
    auth_due = 1;
    send_message(m);
}

/* Fills the window from standard input; closes when all is asked and answered. */
static void ask(void) {
    static char line[QUESTION_BYTES_MAX];
    static unsigned id;
    while (!ended && waiting < WINDOW) {
        if (fgets(line, sizeof line, stdin) == NULL) {
            ended = 1;
            break;
        }
        line[strcspn(line, "\r\n")] = '\0';
        message *m = malloc(sizeof *m);
        if (m == NULL) {
            stop(1);
            return;
        }
        sprintf(m->text, "{\"id\":%u,\"op\":\"search\",\"k\":3,\"q\":", ++id);
        strcpy(put_string(m->text + strlen(m->text), line), "}\n");
        waiting++;
        send_message(m);
    }
    if (ended && waiting == 0) {
        stop(0);
    }
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf) {
    (void)handle;
    (void)wanted;
    *buf = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    (void)stream;
    if (n < 0) {
        fprintf(stderr, "client: %s\n", uv_strerror((int)n));
        stop(1);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (!auth_due) {
            putchar(buf->base[i]);
        }
        if (buf->base[i] == '\n') {
            waiting -= !auth_due;
            auth_due = 0;
        }
    }
    ask();
}

static void on_connect(uv_connect_t *connect, int status) {
    (void)connect;
    if (status < 0) {
        fprintf(stderr, "client: %s\n", uv_strerror(status));
        stop(1);
        return;
    }
    uv_tcp_nodelay(&tcp, 1);
    uv_read_start((uv_stream_t *)&tcp, on_alloc, on_read);
    if (getenv("TOKEN") != NULL) {
        send_auth(getenv("TOKEN"));
    }
    ask();
}

int main(int argc, char **argv) {
    struct sockaddr_in address;
    uv_connect_t connect;
    if (argc != 3 || uv_ip4_addr(argv[1], atoi(argv[2]), &address) != 0) {
        fputs("usage: client ADDRESS PORT < questions\n", stderr);
        return 2;
    }
    loop = uv_default_loop();
    uv_tcp_init(loop, &tcp);
    if (uv_tcp_connect(&connect, &tcp, (struct sockaddr *)&address, on_connect) != 0) {
        stop(1);
    }
    uv_run(loop, UV_RUN_DEFAULT);
    uv_loop_close(loop);
    return failed;
}
