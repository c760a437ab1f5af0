#include "cli/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/term.h"

static bool line_is_shown;

const char *l2c_progress_count(char out[32], uint64_t n) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, n);
    char *o = out;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            *o++ = ',';
        }
        *o++ = digits[i];
    }
    *o = '\0';
    return out;
}

const char *l2c_progress_duration(char out[32], double seconds) {
    if (seconds < 60) {
        snprintf(out, 32, "%.1f s", seconds);
        return out;
    }
    uint64_t s = (uint64_t)(seconds + 0.5);
    if (s < 3600) {
        snprintf(out, 32, "%" PRIu64 " min %02" PRIu64 " s", s / 60, s % 60);
    } else {
        snprintf(out, 32, "%" PRIu64 " h %02" PRIu64 " min", s / 3600, s % 3600 / 60);
    }
    return out;
}

const char *l2c_progress_bytes(char out[32], uint64_t n) {
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    double v = (double)n;
    size_t unit = 0;
    while (v >= 999.5 && unit < 4) {
        v /= 1000;
        unit++;
    }
    snprintf(out, 32, unit == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, units[unit]);
    return out;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void l2c_progress_clear(void) {
    if (line_is_shown) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        line_is_shown = false;
    }
}

// "ingest  1,204 / 50,000 photos   41.3 photos/s   eta 19 min 41 s   IMG_1.jpg"
static size_t compose(char *line, size_t size, const l2c_progress *self, const l2cdb_progress *p) {
    char done[32], total[32], eta[32];
    int n = p->total > 0
                ? snprintf(line, size, "%s  %s / %s %s  %3.0f %%", p->phase,
                           l2c_progress_count(done, p->done), l2c_progress_count(total, p->total),
                           self->unit, 100.0 * (double)p->done / (double)p->total)
                : snprintf(line, size, "%s  %s %s", p->phase, l2c_progress_count(done, p->done),
                           self->unit);
    if (p->rate > 0) {
        n += snprintf(line + n, size - (size_t)n, "   %.1f %s/s", p->rate, self->unit);
    }
    if (p->eta_s >= 0) {
        n +=
            snprintf(line + n, size - (size_t)n, "   eta %s", l2c_progress_duration(eta, p->eta_s));
    }
    if (p->detail != NULL && *p->detail != '\0') {
        const char *name = *p->detail == '/' ? strrchr(p->detail, '/') + 1 : p->detail;
        char *clean = l2c_term_clean(name, strlen(name));
        if (clean != NULL) {
            n += snprintf(line + n, size - (size_t)n, "   %s", clean);
            free(clean);
        }
    }
    return (size_t)n < size ? (size_t)n : size - 1;
}

bool l2c_progress_show(void *ctx, const l2cdb_progress *p) {
    l2c_progress *self = ctx;
    if (l2c_interrupt_seen()) {
        l2c_progress_clear();
        return false;
    }
    if (l2c_options_common.quiet || isatty(STDERR_FILENO) == 0) {
        return true;
    }
    double now = now_s();
    if (now - self->shown_s < 0.1 && p->done != p->total) {
        return true;
    }
    self->shown_s = now;
    char line[1024];
    size_t n = compose(line, sizeof line, self, p);
    size_t fits = l2c_term_fit(line, n, l2c_term_columns(stderr) - 1, NULL);
    fprintf(stderr, "\r\033[K%.*s", (int)fits, line);
    fflush(stderr);
    line_is_shown = true;
    return true;
}
