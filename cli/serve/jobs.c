/* Long work asked for over the wire: ingest, tune, reindex. One thread runs one job at a time, in
 * the order they came; clients look at a job, follow it as events, or cancel it.
 *
 * Everything of a job is under the lock; the job's thread takes it once per progress report. */
#include "cli/serve/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAITING_MAX 16
#define KEPT_MAX 100
#define PROBLEMS_MAX 100
#define KEEPALIVE_MS 15000

typedef enum job_state {
    STATE_WAITING,
    STATE_RUNNING,
    STATE_DONE,
    STATE_FAILED,
    STATE_CANCELLED
} job_state;

static const char *const kind_names[] = { "ingest", "tune", "reindex" };
static const char *const state_names[] = { "waiting", "running", "done", "failed", "cancelled" };

struct job {
    job *next;
    server *srv;
    int64_t id;
    job_request ask;
    job_state state;
    bool cancel;
    uint64_t seq; /* grows with each news */
    char phase[32], detail[512];
    uint64_t done, total;
    double rate, eta_s;
    uint64_t by_outcome[L2CDB_FILE_FAILED + 1];
    uint64_t started_ns, ended_ns;
    wbuf problems; /* JSON objects, comma between */
    size_t problems_count;
    wbuf report; /* JSON object when it ended well */
    l2cdb_error error;
};

void l2c_job_request_fini(job_request *q) {
    for (size_t i = 0; i < q->paths_count; i++) {
        free(q->paths[i]);
    }
    free(q->paths);
    free(q->captions_file);
    *q = (job_request){ 0 };
}

static void job_free(job *j) {
    l2c_job_request_fini(&j->ask);
    l2c_wbuf_fini(&j->problems);
    l2c_wbuf_fini(&j->report);
    free(j);
}

/* ---- Running ------------------------------------------------------------------------------- */

static bool on_progress(void *ctx, const l2cdb_progress *p) {
    job *j = ctx;
    uv_mutex_lock(&j->srv->jobs.lock);
    snprintf(j->phase, sizeof j->phase, "%s", p->phase != NULL ? p->phase : "");
    snprintf(j->detail, sizeof j->detail, "%s", p->detail != NULL ? p->detail : "");
    j->done = p->done;
    j->total = p->total;
    j->rate = p->rate;
    j->eta_s = p->eta_s;
    j->seq++;
    bool go_on = !j->cancel;
    uv_mutex_unlock(&j->srv->jobs.lock);
    return go_on;
}

static void on_file(void *ctx, const char *path, l2cdb_file_outcome outcome, const char *reason) {
    job *j = ctx;
    uv_mutex_lock(&j->srv->jobs.lock);
    if (outcome <= L2CDB_FILE_FAILED) {
        j->by_outcome[outcome]++;
    }
    if (outcome >= L2CDB_FILE_SKIPPED && j->problems_count < PROBLEMS_MAX) {
        l2c_wbuf_str(&j->problems, j->problems_count++ > 0 ? ",{\"path\":" : "{\"path\":");
        l2c_wbuf_json(&j->problems, path);
        l2c_wbuf_str(&j->problems, ",\"outcome\":");
        l2c_wbuf_json(&j->problems, l2cdb_file_outcome_name(outcome));
        l2c_wbuf_str(&j->problems, ",\"reason\":");
        l2c_wbuf_json(&j->problems, reason);
        l2c_wbuf_char(&j->problems, '}');
    }
    j->seq++;
    uv_mutex_unlock(&j->srv->jobs.lock);
}

static l2cdb_status run_ingest(job *j, wbuf *report, l2cdb_error *err) {
    l2cdb_ingest_options o;
    l2cdb_ingest_options_init(&o);
    o.captions_file = j->ask.captions_file;
    o.retry_failed = j->ask.retry_failed;
    o.prune = j->ask.prune;
    o.progress = on_progress;
    o.on_file = on_file;
    o.ctx = j;
    l2cdb_ingest_report p = { 0 };
    l2cdb_status rc = l2cdb_ingest(j->srv->db, (const char *const *)j->ask.paths,
                                   j->ask.paths_count, &o, &p, err);
    const struct {
        const char *name;
        uint64_t n;
    } rows[] = {
        { "found", p.found },
        { "added", p.added },
        { "updated", p.updated },
        { "unchanged", p.unchanged },
        { "duplicates", p.duplicates },
        { "skipped", p.skipped },
        { "failed", p.failed },
        { "pruned", p.pruned },
        { "captions_added", p.captions_added },
        { "captions_unmatched", p.captions_unmatched },
    };
    l2c_wbuf_char(report, '{');
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        l2c_wbuf_printf(report, "\"%s\":%llu,", rows[i].name, (unsigned long long)rows[i].n);
    }
    l2c_wbuf_str(report, "\"seconds\":");
    l2c_wbuf_fixed(report, p.seconds, 3);
    l2c_wbuf_char(report, '}');
    return rc;
}

static void put_recall(wbuf *out, const char *name, const l2cdb_recall_at *r) {
    l2c_wbuf_printf(out, "\"%s\":{\"queries\":%llu,\"r1\":", name, (unsigned long long)r->queries);
    l2c_wbuf_fixed(out, r->r1, 2);
    l2c_wbuf_str(out, ",\"r5\":");
    l2c_wbuf_fixed(out, r->r5, 2);
    l2c_wbuf_str(out, ",\"r10\":");
    l2c_wbuf_fixed(out, r->r10, 2);
    l2c_wbuf_char(out, '}');
}

static void put_eval(wbuf *out, const char *name, const l2cdb_eval_report *e) {
    l2c_wbuf_printf(out, ",\"%s\":{\"images\":%llu,\"captions\":%llu,", name,
                    (unsigned long long)e->images, (unsigned long long)e->captions);
    put_recall(out, "text_to_image", &e->t2i);
    l2c_wbuf_char(out, ',');
    put_recall(out, "image_to_text", &e->i2t);
    l2c_wbuf_char(out, '}');
}

static l2cdb_status run_tune(job *j, wbuf *report, l2cdb_error *err) {
    l2cdb_tune_options o;
    l2cdb_tune_options_init(&o);
    o.pairs_file = j->ask.captions_file;
    o.epochs = j->ask.epochs;
    o.batch = j->ask.batch;
    o.force = j->ask.force;
    o.no_promote = j->ask.no_promote;
    o.tune_image_head = j->ask.tune_image_head;
    if (j->ask.lr > 0) {
        o.lr = j->ask.lr;
    }
    if (j->ask.val_share > 0) {
        o.val_share = j->ask.val_share;
    }
    if (j->ask.seed > 0) {
        o.seed = j->ask.seed;
    }
    o.objective = (l2cdb_objective)j->ask.objective;
    o.progress = on_progress;
    o.ctx = j;
    l2cdb_tune_report t = { 0 };
    l2cdb_status rc = l2cdb_tune(j->srv->db, &o, &t, err);
    l2c_wbuf_printf(report,
                    "{\"generation\":%lld,\"promoted\":%s,\"photos\":%llu,\"pairs\":%llu,"
                    "\"photos_val\":%llu,\"pairs_val\":%llu,\"steps\":%llu,\"loss_first\":",
                    (long long)t.generation, t.promoted ? "true" : "false",
                    (unsigned long long)t.photos, (unsigned long long)t.pairs,
                    (unsigned long long)t.photos_val, (unsigned long long)t.pairs_val,
                    (unsigned long long)t.steps);
    l2c_wbuf_fixed(report, t.loss_first, 5);
    l2c_wbuf_str(report, ",\"loss_last\":");
    l2c_wbuf_fixed(report, t.loss_last, 5);
    l2c_wbuf_str(report, ",\"seconds\":");
    l2c_wbuf_fixed(report, t.seconds, 3);
    put_eval(report, "before", &t.before);
    put_eval(report, "after", &t.after);
    l2c_wbuf_char(report, '}');
    return rc;
}

static l2cdb_status run_reindex(job *j, wbuf *report, l2cdb_error *err) {
    l2cdb_status rc = l2cdb_reindex(j->srv->db, j->ask.generation, on_progress, j, err);
    l2cdb_stats stats = { 0 };
    if (rc == L2CDB_OK && l2cdb_get_stats(j->srv->db, &stats, NULL) == L2CDB_OK) {
        l2c_wbuf_printf(report, "{\"generation\":%lld}", (long long)stats.generation);
    }
    return rc;
}

static void run(job *j) {
    static l2cdb_status (*const runners[])(job *, wbuf *, l2cdb_error *) = { run_ingest, run_tune,
                                                                             run_reindex };
    l2cdb_error err;
    l2cdb_error_clear(&err);
    wbuf report = { 0 };
    l2cdb_status rc = runners[j->ask.kind](j, &report, &err);
    uv_mutex_lock(&j->srv->jobs.lock);
    j->state = rc == L2CDB_OK            ? STATE_DONE
               : rc == L2CDB_E_CANCELLED ? STATE_CANCELLED
                                         : STATE_FAILED;
    j->report = report;
    j->error = err;
    j->ended_ns = uv_hrtime();
    j->seq++;
    uv_mutex_unlock(&j->srv->jobs.lock);
}

static job *oldest_waiting(const jobs *all) {
    job *found = NULL;
    for (job *j = all->list; j != NULL; j = j->next) {
        found = j->state == STATE_WAITING ? j : found;
    }
    return found;
}

static void job_thread(void *arg) {
    server *srv = arg;
    jobs *all = &srv->jobs;
    uv_mutex_lock(&all->lock);
    while (!all->stop) {
        job *j = oldest_waiting(all);
        if (j == NULL) {
            uv_cond_wait(&all->more, &all->lock);
            continue;
        }
        all->waiting--;
        j->started_ns = uv_hrtime();
        j->state = STATE_RUNNING;
        j->seq++;
        uv_mutex_unlock(&all->lock);
        run(j);
        uv_mutex_lock(&all->lock);
    }
    uv_mutex_unlock(&all->lock);
}

/* ---- Asking -------------------------------------------------------------------------------- */

static bool ended(const job *j) {
    return j->state >= STATE_DONE;
}

/* Forgets the oldest ended job that nobody follows. */
static void forget_one(jobs *all) {
    job **oldest = NULL;
    for (job **at = &all->list; *at != NULL; at = &(*at)->next) {
        if (ended(*at)) {
            oldest = at;
        }
    }
    for (request *r = all->followers; oldest != NULL && r != NULL; r = r->queue_next) {
        if (r->job == *oldest) {
            return;
        }
    }
    if (oldest != NULL) {
        job *gone = *oldest;
        *oldest = gone->next;
        all->count--;
        job_free(gone);
    }
}

int64_t l2c_jobs_submit(server *srv, job_request *q) {
    jobs *all = &srv->jobs;
    job *j = calloc(1, sizeof *j);
    if (j == NULL) {
        return 0;
    }
    uv_mutex_lock(&all->lock);
    if (all->waiting >= WAITING_MAX || all->stop || !all->started) {
        uv_mutex_unlock(&all->lock);
        free(j);
        return 0;
    }
    j->srv = srv;
    j->ask = *q;
    *q = (job_request){ 0 };
    j->id = ++all->id_last;
    j->eta_s = -1;
    j->next = all->list;
    all->list = j;
    all->waiting++;
    all->count++;
    int64_t id = j->id;
    uv_cond_signal(&all->more);
    uv_mutex_unlock(&all->lock);
    return id;
}

static job *find(const jobs *all, int64_t id) {
    job *j = all->list;
    while (j != NULL && j->id != id) {
        j = j->next;
    }
    return j;
}

job *l2c_jobs_find(server *srv, int64_t id) {
    uv_mutex_lock(&srv->jobs.lock);
    job *j = find(&srv->jobs, id);
    uv_mutex_unlock(&srv->jobs.lock);
    return j;
}

static void write_job(const job *j, wbuf *out, bool whole) {
    l2c_wbuf_printf(out,
                    "{\"job\":%lld,\"kind\":\"%s\",\"state\":\"%s\",\"phase\":", (long long)j->id,
                    kind_names[j->ask.kind], state_names[j->state]);
    l2c_wbuf_json(out, j->phase);
    l2c_wbuf_printf(out, ",\"done\":%llu,\"total\":%llu,\"rate\":", (unsigned long long)j->done,
                    (unsigned long long)j->total);
    l2c_wbuf_fixed(out, j->rate, 2);
    l2c_wbuf_str(out, ",\"eta_s\":");
    l2c_wbuf_fixed(out, j->eta_s, 1);
    l2c_wbuf_str(out, ",\"detail\":");
    l2c_wbuf_json(out, j->detail);
    uint64_t end = ended(j) ? j->ended_ns : uv_hrtime();
    l2c_wbuf_str(out, ",\"seconds\":");
    l2c_wbuf_fixed(out, j->started_ns > 0 ? (double)(end - j->started_ns) / 1e9 : 0, 1);
    if (j->ask.kind == JOB_INGEST) {
        l2c_wbuf_str(out, ",\"files\":{");
        for (int i = 0; i <= L2CDB_FILE_FAILED; i++) {
            l2c_wbuf_printf(out, "%s\"%s\":%llu", i > 0 ? "," : "",
                            l2cdb_file_outcome_name((l2cdb_file_outcome)i),
                            (unsigned long long)j->by_outcome[i]);
        }
        l2c_wbuf_char(out, '}');
    }
    if (whole && j->problems.size > 0) {
        l2c_wbuf_str(out, ",\"problems\":[");
        l2c_wbuf_put(out, j->problems.data, j->problems.size);
        l2c_wbuf_char(out, ']');
    }
    if (j->report.size > 0) {
        l2c_wbuf_str(out, ",\"report\":");
        l2c_wbuf_put(out, j->report.data, j->report.size);
    }
    if (j->error.code != L2CDB_OK) {
        l2c_wbuf_str(out, ",\"error\":{\"code\":");
        l2c_wbuf_json(out, l2cdb_status_name(j->error.code));
        l2c_wbuf_str(out, ",\"message\":");
        l2c_wbuf_json(out, j->error.message);
        l2c_wbuf_str(out, ",\"hint\":");
        l2c_wbuf_json(out, j->error.hint);
        l2c_wbuf_char(out, '}');
    }
    l2c_wbuf_char(out, '}');
}

bool l2c_jobs_write(server *srv, int64_t id, wbuf *out) {
    uv_mutex_lock(&srv->jobs.lock);
    const job *j = find(&srv->jobs, id);
    if (j != NULL) {
        write_job(j, out, true);
    }
    uv_mutex_unlock(&srv->jobs.lock);
    return j != NULL;
}

void l2c_jobs_write_all(server *srv, wbuf *out) {
    l2c_wbuf_char(out, '[');
    uv_mutex_lock(&srv->jobs.lock);
    for (const job *j = srv->jobs.list; j != NULL; j = j->next) {
        write_job(j, out, false);
        if (j->next != NULL) {
            l2c_wbuf_char(out, ',');
        }
    }
    uv_mutex_unlock(&srv->jobs.lock);
    l2c_wbuf_char(out, ']');
}

static void cancel(jobs *all, job *j) {
    j->cancel = true;
    if (j->state == STATE_WAITING) {
        j->state = STATE_CANCELLED;
        j->started_ns = j->ended_ns = uv_hrtime();
        all->waiting--;
        j->seq++;
    }
}

bool l2c_jobs_cancel(server *srv, int64_t id) {
    uv_mutex_lock(&srv->jobs.lock);
    job *j = find(&srv->jobs, id);
    if (j != NULL) {
        cancel(&srv->jobs, j);
    }
    uv_mutex_unlock(&srv->jobs.lock);
    return j != NULL;
}

void l2c_jobs_cancel_all(server *srv) {
    uv_mutex_lock(&srv->jobs.lock);
    for (job *j = srv->jobs.list; j != NULL; j = j->next) {
        cancel(&srv->jobs, j);
    }
    uv_mutex_unlock(&srv->jobs.lock);
}

/* ---- Following ----------------------------------------------------------------------------- */

void l2c_jobs_unfollow(server *srv, request *r) {
    for (request **at = &srv->jobs.followers; *at != NULL; at = &(*at)->queue_next) {
        if (*at == r) {
            *at = r->queue_next;
            return;
        }
    }
}

/* The news for one follower into r->out; true when it is the last. */
static bool tell(request *r) {
    job *j = r->job;
    bool last = ended(j);
    if (r->job_seq != j->seq + 1) {
        r->job_seq = j->seq + 1;
        l2c_wbuf_printf(&r->out, "event: %s\ndata: ", last ? "end" : "progress");
        write_job(j, &r->out, last);
        l2c_wbuf_str(&r->out, "\n\n");
    }
    return last;
}

void l2c_jobs_tick(server *srv) {
    jobs *all = &srv->jobs;
    uint64_t now = uv_now(&srv->loop);
    for (request *r = all->followers, *next; r != NULL; r = next) {
        next = r->queue_next;
        if (r->ready || l2c_conn_pending(r->c) > SERVE_WRITE_LOW) {
            continue; // a slow follower gets the latest state when it is ready again
        }
        uv_mutex_lock(&all->lock);
        bool last = tell(r);
        uv_mutex_unlock(&all->lock);
        if (r->out.size == 0 && now - r->queued > KEEPALIVE_MS) {
            l2c_wbuf_str(&r->out, ": still here\n\n");
        }
        if (r->out.size == 0) {
            continue;
        }
        r->queued = now;
        if (last) {
            l2c_jobs_unfollow(srv, r);
            r->events = false;
        }
        l2c_conn_event(r->c, r, last);
    }
    uv_mutex_lock(&all->lock);
    while (all->count > KEPT_MAX) {
        size_t before = all->count;
        forget_one(all);
        if (all->count == before) {
            break;
        }
    }
    uv_mutex_unlock(&all->lock);
}

bool l2c_jobs_init(server *srv) {
    jobs *all = &srv->jobs;
    if (uv_mutex_init(&all->lock) != 0 || uv_cond_init(&all->more) != 0) {
        return false;
    }
    if (srv->workers.count > 0) {
        all->started = uv_thread_create(&all->thread, job_thread, srv) == 0;
    }
    return all->started || srv->workers.count == 0;
}

void l2c_jobs_fini(server *srv) {
    jobs *all = &srv->jobs;
    l2c_jobs_cancel_all(srv);
    uv_mutex_lock(&all->lock);
    all->stop = true;
    uv_cond_signal(&all->more);
    uv_mutex_unlock(&all->lock);
    if (all->started) {
        uv_thread_join(&all->thread);
    }
    for (job *j = all->list, *next; j != NULL; j = next) {
        next = j->next;
        job_free(j);
    }
    uv_cond_destroy(&all->more);
    uv_mutex_destroy(&all->lock);
}
