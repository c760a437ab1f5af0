/* Progress: the rate over the last few seconds and the time left, told often enough for a person
 * and seldom enough to cost nothing. */
#include "engine/engine.h"

#define PAST_MAX (sizeof(((l2c_meter *)NULL)->past) / sizeof(((l2c_meter *)NULL)->past[0]))
#define PAST_STEP_S 0.5
#define SHOWN_STEP_S 0.05

void l2c_meter_start(l2c_meter *m, l2cdb_progress_fn fn, void *ctx, const char *phase,
                     uint64_t total) {
    *m = (l2c_meter){ .fn = fn, .ctx = ctx, .phase = phase, .total = total };
    m->past[0].at = l2c_now();
    m->past_count = 1;
}

/* past[0] is the oldest sample; a full ring forgets it. */
static void remember(l2c_meter *m, double now, uint64_t done) {
    if (now - m->past[m->past_count - 1].at < PAST_STEP_S) {
        return;
    }
    if (m->past_count == PAST_MAX) {
        for (size_t i = 1; i < PAST_MAX; i++) {
            m->past[i - 1] = m->past[i];
        }
        m->past_count--;
    }
    m->past[m->past_count].at = now;
    m->past[m->past_count].done = done;
    m->past_count++;
}

bool l2c_meter_tick(l2c_meter *m, uint64_t done, const char *detail) {
    if (m->fn == NULL) {
        return true;
    }
    double now = l2c_now();
    bool last = m->total != 0 && done == m->total;
    if (!last && now - m->shown_at < SHOWN_STEP_S) {
        return true;
    }
    m->shown_at = now;
    double span = now - m->past[0].at;
    double rate = span > 0 && done > m->past[0].done ? (double)(done - m->past[0].done) / span : 0;
    remember(m, now, done);
    l2cdb_progress p = { .phase = m->phase,
                         .done = done,
                         .total = m->total,
                         .rate = rate,
                         .eta_s = -1,
                         .detail = detail != NULL ? detail : "" };
    if (rate > 0 && m->total >= done) {
        p.eta_s = (double)(m->total - done) / rate;
    }
    return m->fn(m->ctx, &p);
}
