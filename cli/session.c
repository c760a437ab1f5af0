#include "cli/session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/progress.h"

/* ---- Errors and log -------------------------------------------------------------------------- */

int l2c_session_fail(const l2cdb_error *err) {
    l2c_progress_clear();
    fprintf(stderr, "l2cdb: %s\n", err->message);
    if (*err->hint != '\0') {
        fprintf(stderr, "  %s\n", err->hint);
    }
    return L2C_EXIT_FAILED;
}

int l2c_session_error(const char *hint, const char *fmt, ...) {
    l2c_progress_clear();
    va_list args;
    va_start(args, fmt);
    fputs("l2cdb: ", stderr);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    if (hint != NULL) {
        fprintf(stderr, "  %s\n", hint);
    }
    return L2C_EXIT_FAILED;
}

static void log_line(void *ctx, l2cdb_log_level level, const char *line) {
    static const char *const names[] = { "error", "warning", "info", "debug" };
    (void)ctx;
    l2c_progress_clear();
    fprintf(stderr, "l2cdb: %s: %s\n", names[level], line);
}

void l2c_session_log(void) {
    l2cdb_log_set(log_line, NULL, l2c_options_common.verbose ? L2CDB_LOG_DEBUG : L2CDB_LOG_WARN);
}

/* ---- The database ---------------------------------------------------------------------------- */

static const char *given_path(void) {
    if (l2c_options_common.db != NULL) {
        return l2c_options_common.db;
    }
    const char *env = getenv("L2CDB_DB");
    return env != NULL && *env != '\0' ? env : NULL;
}

bool l2c_session_path_given(void) {
    return given_path() != NULL;
}

const char *l2c_session_path(void) {
    static char path[4096];
    if (given_path() != NULL) {
        return given_path();
    }
    const char *here = "photos.l2cdb", *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (access(here, F_OK) == 0) {
        return here;
    }
    int n;
    if (data != NULL && *data == '/') {
        n = snprintf(path, sizeof path, "%s/l2cdb/photos.l2cdb", data);
    } else if (home != NULL && *home == '/') {
        n = snprintf(path, sizeof path, "%s/.local/share/l2cdb/photos.l2cdb", home);
    } else {
        return here;
    }
    return n > 0 && (size_t)n < sizeof path ? path : here;
}

// mkdir -p for the folder of our default path; a path the user named is his to prepare.
static int make_folder(const char *path) {
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *slash = strchr(folder + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
            return l2c_session_error("name another place with --db FILE",
                                     "could not make the folder %s: %s", folder, strerror(errno));
        }
        *slash = '/';
    }
    return L2C_EXIT_DONE;
}

void l2c_session_options(l2cdb_open_options *o) {
    l2cdb_open_options_init(o);
    o->model = l2c_options_common.model;
    if (l2c_options_common.precision != NULL) {
        o->precision = l2c_options_common.precision;
    }
    o->threads = l2c_options_common.threads;
}

int l2c_session_open(l2cdb **out, const l2cdb_open_options *options, unsigned flags) {
    l2cdb_open_options o;
    if (options == NULL) {
        l2c_session_options(&o);
    } else {
        o = *options;
    }
    const char *path = l2c_session_path();
    bool exists = strcmp(path, ":memory:") == 0 || access(path, F_OK) == 0;
    if ((flags & L2C_SESSION_SCRATCH) && !l2c_session_path_given() &&
        (!exists || o.model != NULL)) {
        path = ":memory:";
    } else if (!exists && !(flags & L2C_SESSION_CREATE)) {
        return l2c_session_error("make one with: l2cdb ingest DIR", "there is no database at %s",
                                 path);
    } else if (!exists && !l2c_session_path_given() && make_folder(path) != L2C_EXIT_DONE) {
        return L2C_EXIT_FAILED;
    } else {
        o.read_only = (flags & L2C_SESSION_READ) != 0;
    }
    l2c_session_log();
    l2cdb_error err;
    if (l2cdb_open(out, path, &o, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    l2c_interrupt_watch(*out, true);
    return L2C_EXIT_DONE;
}

void l2c_session_close(l2cdb *db) {
    l2cdb_close(db);
    l2c_interrupt_forget(db);
}
