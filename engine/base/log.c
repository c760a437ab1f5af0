/* The log hook. */
#include "engine/base/log.h"

#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static l2cdb_log_fn hook;
static void *hook_ctx;
static l2cdb_log_level hook_most;

void l2cdb_log_set(l2cdb_log_fn fn, void *ctx, l2cdb_log_level most) {
    pthread_mutex_lock(&lock);
    hook = fn;
    hook_ctx = ctx;
    hook_most = most;
    pthread_mutex_unlock(&lock);
}

void l2c_log(l2cdb_log_level level, const char *fmt, ...) {
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    pthread_mutex_lock(&lock);
    if (hook != NULL && level <= hook_most) {
        hook(hook_ctx, level, line);
    }
    pthread_mutex_unlock(&lock);
}
