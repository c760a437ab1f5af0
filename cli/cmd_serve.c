/* `l2cdb serve`: the server of cli/serve/ with its options. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/serve/serve.h"
#include "cli/session.h"

#define TOKEN_BYTES_MAX 512

static l2c_serve_options o; // zeroes until run() fills the defaults in
static const char *token_file;
static size_t sql_seconds, drain_seconds, header_seconds, idle_seconds;
static l2c_list roots, hosts;
static bool no_tcp;
static uint64_t sql_rows;

static const l2c_option options[] = {
    { 'l', "listen", L2C_OPTION_STRING, &o.listen, "ADDR",
      "address and port (default 127.0.0.1:7700; port 0:\nany free one)", NULL },
    { 'u', "unix", L2C_OPTION_STRING, &o.unix_path, "PATH", "a Unix socket too, for this user only",
      NULL },
    { 0, "no-tcp", L2C_OPTION_ON, &no_tcp, NULL, "the Unix socket alone", NULL },
    { 't', "token-file", L2C_OPTION_STRING, &token_file, "FILE",
      "ask every client for the token in its first line;\nneeded to listen beyond loopback", NULL },
    { 'r', "root", L2C_OPTION_LIST, &roots, "DIR",
      "let clients ingest photos below DIR; may be repeated", NULL },
    { 'w', "workers", L2C_OPTION_SIZE, &o.workers, "N",
      "threads for questions (default: one more than cores)", NULL },
    { 0, "log", L2C_OPTION_STRING, &o.log_path, "FILE",
      "one line a request there (default: stderr; \"\": none);\nSIGHUP opens it anew", NULL },
    { 0, "host", L2C_OPTION_LIST, &hosts, "NAME",
      "a name browsers may use for this machine when there\nis no token; may be repeated", NULL },
    { 0, "cors", L2C_OPTION_STRING, &o.cors, "ORIGIN",
      "pages of this origin may call (\"*\": of any)", NULL },
    { 0, "connections", L2C_OPTION_SIZE, &o.connections_max, "N", "at a time (default 1024)",
      NULL },
    { 0, "per-address", L2C_OPTION_SIZE, &o.per_address_max, "N",
      "connections of one address (default 64)", NULL },
    { 0, "queue", L2C_OPTION_SIZE, &o.queue_max, "N",
      "requests that may wait for a thread (default 1024)", NULL },
    { 0, "sql-seconds", L2C_OPTION_SIZE, &sql_seconds, "S",
      "limit of one SQL statement (default 10)", NULL },
    { 0, "sql-rows", L2C_OPTION_UINT64, &sql_rows, "N", "rows of one statement (default 1,000,000)",
      NULL },
    { 0, "header-seconds", L2C_OPTION_SIZE, &header_seconds, "S",
      "for a request's header to arrive (default 10)", NULL },
    { 0, "idle-seconds", L2C_OPTION_SIZE, &idle_seconds, "S",
      "before a silent connection is closed (default 60)", NULL },
    { 0, "drain-seconds", L2C_OPTION_SIZE, &drain_seconds, "S",
      "for running requests at SIGTERM (default 10)", NULL },
    { 0, "batch-ms", L2C_OPTION_REAL, &o.batch_wait_ms, "MS",
      "a text query waits for company (default 2)", NULL },
    { 0, "no-warm", L2C_OPTION_ON, &o.no_warm, NULL, "load the model at first need, not at start",
      NULL },
    { 0 },
};

/* The first line of the token file; NULL after a printed error. */
static const char *read_token(void) {
    static char token[TOKEN_BYTES_MAX];
    FILE *f = fopen(token_file, "r");
    if (f == NULL) {
        l2c_session_error(NULL, "could not open %s: %s", token_file, strerror(errno));
        return NULL;
    }
    bool read = fgets(token, sizeof token, f) != NULL;
    fclose(f);
    token[strcspn(token, "\r\n")] = '\0';
    if (!read || token[0] == '\0') {
        l2c_session_error("for example: head -c 24 /dev/urandom | base64 > FILE",
                          "%s holds no token in its first line", token_file);
        return NULL;
    }
    return token;
}

static void say_ready(void *ctx, const char *address, unsigned port) {
    (void)ctx;
    int host = (int)(strrchr(address, ':') != NULL ? strrchr(address, ':') - address : 0);
    if (port > 0) {
        printf("listening on http://%.*s:%u\n", host, address, port);
    }
    if (o.unix_path != NULL) {
        printf("listening on %s\n", o.unix_path);
    }
    fflush(stdout);
}

static int serve(l2cdb *db) {
    l2cdb_error err;
    return l2c_serve_run(db, &o, &err) == L2CDB_OK ? L2C_EXIT_DONE : l2c_session_fail(&err);
}

static void take_seconds(uint32_t *ms, size_t seconds) {
    if (seconds > 0) {
        *ms = seconds < UINT32_MAX / 1000 ? (uint32_t)seconds * 1000 : UINT32_MAX;
    }
}

static int run(const char *const *args, size_t args_count) {
    l2c_serve_options given = o;
    l2c_serve_options_init(&o);
    // A zero is "not given"; the defaults stand.
    o.listen = no_tcp ? NULL : given.listen != NULL ? given.listen : o.listen;
    o.unix_path = given.unix_path;
    o.log_path = given.log_path;
    o.cors = given.cors;
    o.workers = given.workers;
    o.connections_max = given.connections_max > 0 ? given.connections_max : o.connections_max;
    o.per_address_max = given.per_address_max > 0 ? given.per_address_max : o.per_address_max;
    o.queue_max = given.queue_max > 0 ? given.queue_max : o.queue_max;
    o.batch_wait_ms = given.batch_wait_ms > 0 ? given.batch_wait_ms : o.batch_wait_ms;
    o.sql_rows_max = sql_rows > 0 ? sql_rows : o.sql_rows_max;
    o.no_warm = given.no_warm;
    o.roots = roots.values;
    o.roots_count = roots.count;
    o.hosts = hosts.values;
    o.hosts_count = hosts.count;
    o.on_ready = say_ready;
    take_seconds(&o.sql_ms_max, sql_seconds);
    take_seconds(&o.drain_ms, drain_seconds);
    take_seconds(&o.header_ms, header_seconds);
    take_seconds(&o.idle_ms, idle_seconds);
    if (args_count > 0) {
        l2c_options_common.db = args[0];
    }
    if (token_file != NULL && (o.token = read_token()) == NULL) {
        return L2C_EXIT_FAILED;
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, L2C_SESSION_CREATE);
    if (rc == L2C_EXIT_DONE) {
        rc = serve(db);
        l2c_session_close(db);
    }
    return rc;
}

const l2c_command l2c_cmd_serve = {
    .name = "serve",
    .usage = "[DB]",
    .summary = "HTTP, JSON lines and a page to look at, on one port",
    .help =
        "The page is at the printed address; docs/server.md has the calls. SIGTERM answers what\n"
        "is running and exits 0.\n\n"
        "  l2cdb serve photos.l2cdb\n"
        "  l2cdb serve photos.l2cdb --root ~/Pictures\n"
        "  l2cdb serve photos.l2cdb --listen 0.0.0.0:7700 --token-file token\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = 1,
    .run = run,
};
