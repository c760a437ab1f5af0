/* Jobs, generations, statistics, health. */
#define _XOPEN_SOURCE 700 // realpath

#include "cli/serve/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATHS_MAX 64

/* ---- Jobs ---------------------------------------------------------------------------------- */

static bool under(const char *path, const char *root) {
    size_t n = strlen(root);
    return strncmp(path, root, n) == 0 &&
           (path[n] == '/' || path[n] == '\0' || (n > 0 && root[n - 1] == '/'));
}

/* The path with links resolved if it lies under a --root; NULL and the error otherwise. What lies
 * outside is refused in the same words whether it exists or not. */
static char *allowed_path(request *r, const char *path) {
    char *real = path != NULL ? realpath(path, NULL) : NULL;
    for (size_t i = 0; real != NULL && i < r->srv->roots_count; i++) {
        if (under(real, r->srv->roots[i])) {
            return real;
        }
    }
    free(real);
    l2c_request_fail(r, 403, L2CDB_E_DENIED,
                     "start the server with --root DIR for each allowed folder",
                     "%s is not there or not under a folder that this server may read",
                     path != NULL ? path : "(no path)");
    return NULL;
}

static void put_job(request *r, job_request *ask) {
    int64_t id = l2c_jobs_submit(r->srv, ask);
    l2c_job_request_fini(ask);
    if (id == 0) {
        r->retry_after_s = 10;
        l2c_request_fail(r, 503, L2CDB_E_BUSY, "wait for one to end", "too many jobs wait");
        return;
    }
    r->status = 202;
    l2c_wbuf_printf(&r->headers, "Location: /v1/jobs/%lld\r\n", (long long)id);
    l2c_wbuf_printf(&r->out, "{\"job\":%lld}", (long long)id);
}

static bool read_paths(request *r, job_request *ask) {
    const json_t *paths = json_object_get(r->args, "paths");
    size_t n = json_array_size(paths);
    if (n == 0 || n > PATHS_MAX) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "", "\"paths\" must be 1 to %d strings",
                         PATHS_MAX);
        return false;
    }
    ask->paths = calloc(n, sizeof *ask->paths);
    for (size_t i = 0; ask->paths != NULL && i < n; i++) {
        ask->paths[i] = allowed_path(r, json_string_value(json_array_get(paths, i)));
        if (ask->paths[i] == NULL) {
            return false;
        }
        ask->paths_count++;
    }
    return ask->paths != NULL;
}

static bool read_file_argument(request *r, const char *key, char **out) {
    const char *path = NULL;
    if (!l2c_request_string(r, key, &path)) {
        return false;
    }
    *out = path != NULL ? allowed_path(r, path) : NULL;
    return path == NULL || *out != NULL;
}

static verdict run_ingest(request *r) {
    job_request ask = { .kind = JOB_INGEST };
    if (read_paths(r, &ask) && read_file_argument(r, "captions", &ask.captions_file) &&
        l2c_request_bool(r, "retry_failed", &ask.retry_failed) &&
        l2c_request_bool(r, "prune", &ask.prune)) {
        put_job(r, &ask);
    }
    l2c_job_request_fini(&ask);
    return VERDICT_DONE;
}

static bool read_objective(request *r, int *out) {
    static const char *const names[] = { "image", "caption", "both" };
    const char *text = NULL;
    if (!l2c_request_string(r, "objective", &text)) {
        return false;
    }
    for (int i = 0; text != NULL && i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = i;
            return true;
        }
    }
    if (text != NULL) {
        l2c_request_fail(r, 400, L2CDB_E_INVALID, "",
                         "\"objective\" must be \"image\", \"caption\" or \"both\"");
    }
    return text == NULL;
}

static verdict run_tune(request *r) {
    job_request ask = { .kind = JOB_TUNE, .objective = L2CDB_OBJECTIVE_IMAGE };
    int64_t epochs = 0, batch = 0, seed = 0;
    if (read_file_argument(r, "pairs", &ask.captions_file) &&
        l2c_request_int(r, "epochs", &epochs, 1, 10000) &&
        l2c_request_int(r, "batch", &batch, 1, 65536) &&
        l2c_request_int(r, "seed", &seed, 1, INT64_MAX) && l2c_request_double(r, "lr", &ask.lr) &&
        l2c_request_double(r, "val_share", &ask.val_share) &&
        l2c_request_bool(r, "force", &ask.force) &&
        l2c_request_bool(r, "no_promote", &ask.no_promote) &&
        l2c_request_bool(r, "tune_image_head", &ask.tune_image_head) &&
        read_objective(r, &ask.objective)) {
        ask.epochs = (size_t)epochs;
        ask.batch = (size_t)batch;
        ask.seed = (uint64_t)seed;
        put_job(r, &ask);
    }
    l2c_job_request_fini(&ask);
    return VERDICT_DONE;
}

static verdict run_reindex(request *r) {
    job_request ask = { .kind = JOB_REINDEX };
    if (l2c_request_int(r, "generation", &ask.generation, 0, INT64_MAX)) {
        put_job(r, &ask);
    }
    l2c_job_request_fini(&ask);
    return VERDICT_DONE;
}

static verdict run_rollback(request *r) {
    int64_t generation = 0;
    if (l2c_request_ok(r, l2cdb_rollback(r->srv->db, &generation, &r->error))) {
        l2c_wbuf_printf(&r->out, "{\"generation\":%lld}", (long long)generation);
    }
    return VERDICT_DONE;
}

static verdict run_jobs(request *r) {
    l2c_wbuf_str(&r->out, "{\"jobs\":");
    l2c_jobs_write_all(r->srv, &r->out);
    l2c_wbuf_char(&r->out, '}');
    return VERDICT_DONE;
}

static void no_such_job(request *r, int64_t id) {
    l2c_request_fail(r, 404, L2CDB_E_NOTFOUND, "the last hundred jobs since the start are kept",
                     "no job has id %lld", (long long)id);
}

static verdict run_job(request *r) {
    int64_t id;
    if (l2c_request_id(r, "job", &id) && !l2c_jobs_write(r->srv, id, &r->out)) {
        no_such_job(r, id);
    }
    return VERDICT_DONE;
}

static verdict run_cancel_job(request *r) {
    int64_t id;
    if (!l2c_request_id(r, "job", &id)) {
        return VERDICT_DONE;
    }
    if (!l2c_jobs_cancel(r->srv, id) || !l2c_jobs_write(r->srv, id, &r->out)) {
        no_such_job(r, id);
    }
    return VERDICT_DONE;
}

static verdict run_job_events(request *r) {
    r->job = l2c_jobs_find(r->srv, r->path_id);
    if (r->job == NULL) {
        no_such_job(r, r->path_id);
        return VERDICT_DONE;
    }
    r->content_type = "text/event-stream";
    if (r->head_only) {
        return VERDICT_DONE;
    }
    r->queued = uv_now(&r->srv->loop);
    r->queue_next = r->srv->jobs.followers;
    r->srv->jobs.followers = r;
    return VERDICT_EVENTS;
}

/* ---- Statistics ---------------------------------------------------------------------------- */

static void put_index(request *r, const char *name, l2cdb_target target) {
    l2cdb_index_info i;
    memset(&i, 0, sizeof i);
    wbuf *out = &r->out;
    if (l2cdb_index_status(r->srv->db, target, &i, NULL) != L2CDB_OK) {
        return;
    }
    l2c_wbuf_printf(out, ",\"%s\":{\"kind\":", name);
    l2c_wbuf_json(out, i.kind);
    l2c_wbuf_str(out, ",\"quant\":");
    l2c_wbuf_json(out, i.quant);
    l2c_wbuf_str(out, ",\"params\":");
    l2c_wbuf_json(out, i.params);
    l2c_wbuf_str(out, ",\"why\":");
    l2c_wbuf_json(out, i.why);
    l2c_wbuf_printf(out,
                    ",\"rows\":%llu,\"base_rows\":%llu,\"fresh_rows\":%llu,\"tombstones\":%llu,"
                    "\"memory_bytes\":%llu,\"building\":%s,\"recall\":",
                    (unsigned long long)i.rows, (unsigned long long)i.base_rows,
                    (unsigned long long)i.fresh_rows, (unsigned long long)i.tombstones,
                    (unsigned long long)i.memory_bytes, i.building ? "true" : "false");
    if (i.recall >= 0) {
        l2c_wbuf_fixed(out, i.recall, 4);
    } else {
        l2c_wbuf_str(out, "null");
    }
    l2c_wbuf_char(out, '}');
}

static void put_limits(request *r) {
    const l2c_serve_options *o = &r->srv->o;
    l2c_wbuf_printf(
        &r->out,
        ",\"limits\":{\"body_bytes\":%zu,\"json_bytes\":%zu,\"json_depth\":%d,\"k\":%d,"
        "\"terms\":%d,\"header_bytes\":%zu,\"header_ms\":%u,\"idle_ms\":%u,\"stall_ms\":%u,"
        "\"connections\":%zu,\"connections_per_address\":%zu,\"queue\":%zu,"
        "\"sql_ms\":%u,\"sql_rows\":%llu,\"pipelined\":%d}",
        SERVE_BODY_BYTES_MAX, SERVE_JSON_BYTES_MAX, SERVE_JSON_DEPTH_MAX, SERVE_K_MAX,
        SERVE_TERMS_MAX, SERVE_HEADER_BYTES_MAX, o->header_ms, o->idle_ms, o->stall_ms,
        o->connections_max, o->per_address_max, o->queue_max, o->sql_ms_max,
        (unsigned long long)o->sql_rows_max, SERVE_INFLIGHT_MAX);
}

static verdict run_stats(request *r) {
    l2cdb_stats s;
    memset(&s, 0, sizeof s);
    if (!l2c_request_ok(r, l2cdb_get_stats(r->srv->db, &s, &r->error))) {
        return VERDICT_DONE;
    }
    wbuf *out = &r->out;
    server *srv = r->srv;
    l2c_wbuf_str(out, "{\"version\":");
    l2c_wbuf_json(out, l2cdb_version());
    l2c_wbuf_printf(
        out,
        ",\"images\":%llu,\"images_failed\":%llu,\"captions\":%llu,\"vectors_images\":%llu,"
        "\"vectors_captions\":%llu,\"thumbnails\":%llu,\"database_bytes\":%llu,"
        "\"index_bytes\":%llu,\"generation\":%lld,\"change\":%lld,\"width\":%zu,"
        "\"model\":",
        (unsigned long long)s.images, (unsigned long long)s.images_failed,
        (unsigned long long)s.captions, (unsigned long long)s.vectors_images,
        (unsigned long long)s.vectors_captions, (unsigned long long)s.thumbnails,
        (unsigned long long)s.database_bytes, (unsigned long long)s.index_bytes,
        (long long)s.generation, (long long)s.change, s.width);
    l2c_wbuf_json(out, s.model);
    l2c_wbuf_str(out, ",\"architecture\":");
    l2c_wbuf_json(out, s.architecture);
    l2c_wbuf_str(out, ",\"precision\":");
    l2c_wbuf_json(out, s.precision);
    put_index(r, "index_images", L2CDB_IMAGES);
    put_index(r, "index_captions", L2CDB_CAPTIONS);
    put_limits(r);
    l2c_wbuf_printf(out,
                    ",\"server\":{\"uptime_s\":%llu,\"workers\":%zu,\"connections\":%zu,"
                    "\"waiting\":%zu,\"text_passes\":%llu,\"texts\":%llu,\"ready\":%s,\"roots\":[",
                    (unsigned long long)((uv_hrtime() / 1000000 - srv->started_ms) / 1000),
                    srv->workers.count, atomic_load(&srv->conns_count), l2c_workers_waiting(srv),
                    (unsigned long long)atomic_load(&srv->batcher.passes),
                    (unsigned long long)atomic_load(&srv->batcher.texts),
                    atomic_load(&srv->warm) ? "true" : "false");
    for (size_t i = 0; i < srv->roots_count; i++) {
        l2c_wbuf_str(out, i > 0 ? "," : "");
        l2c_wbuf_json(out, srv->roots[i]);
    }
    l2c_wbuf_str(out, "]}}");
    return VERDICT_DONE;
}

static verdict run_metrics(request *r) {
    l2cdb_stats s;
    memset(&s, 0, sizeof s);
    r->content_type = "text/plain; version=0.0.4";
    l2c_metrics_write(r->srv, &r->out);
    if (l2cdb_get_stats(r->srv->db, &s, NULL) == L2CDB_OK) {
        l2c_wbuf_printf(
            &r->out,
            "# HELP l2cdb_records Records in the database, by kind.\n"
            "# TYPE l2cdb_records gauge\n"
            "l2cdb_records{kind=\"images\"} %llu\nl2cdb_records{kind=\"captions\"} %llu\n"
            "# HELP l2cdb_generation The active generation.\n"
            "# TYPE l2cdb_generation gauge\nl2cdb_generation %lld\n"
            "# HELP l2cdb_disk_bytes Bytes on disk, by part.\n"
            "# TYPE l2cdb_disk_bytes gauge\n"
            "l2cdb_disk_bytes{part=\"database\"} %llu\n"
            "l2cdb_disk_bytes{part=\"index\"} %llu\n",
            (unsigned long long)s.images, (unsigned long long)s.captions, (long long)s.generation,
            (unsigned long long)s.database_bytes, (unsigned long long)s.index_bytes);
    }
    return VERDICT_DONE;
}

/* ---- Health -------------------------------------------------------------------------------- */

static verdict run_ok(request *r) {
    l2c_wbuf_str(&r->out, "{\"ok\":true}");
    return VERDICT_DONE;
}

static verdict run_ready(request *r) {
    if (r->srv->draining) {
        l2c_request_fail(r, 503, L2CDB_E_BUSY, "", "the server is going down");
    } else if (!atomic_load(&r->srv->warm)) {
        l2c_request_fail(r, 503, L2CDB_E_BUSY, "", "the model is being loaded");
    } else {
        run_ok(r);
    }
    return VERDICT_DONE;
}

static verdict run_options(request *r) {
    r->status = 204;
    if (r->srv->o.cors != NULL) {
        l2c_wbuf_str(&r->headers, "Access-Control-Allow-Methods: GET, POST, PUT, DELETE\r\n"
                                  "Access-Control-Allow-Headers: Authorization, Content-Type\r\n"
                                  "Access-Control-Max-Age: 600\r\n");
    }
    return VERDICT_DONE;
}

const op l2c_op_ingest = { "ingest", LANE_READ, 0, run_ingest, NULL };
const op l2c_op_tune = { "tune", LANE_READ, 0, run_tune, NULL };
const op l2c_op_reindex = { "reindex", LANE_READ, 0, run_reindex, NULL };
const op l2c_op_rollback = { "rollback", LANE_WRITE, OP_BARE, run_rollback, NULL };
const op l2c_op_jobs = { "jobs", LANE_READ, OP_BARE, run_jobs, NULL };
const op l2c_op_job = { "job", LANE_READ, OP_BARE, run_job, NULL };
const op l2c_op_cancel_job = { "cancel_job", LANE_READ, OP_BARE, run_cancel_job, NULL };
const op l2c_op_job_events = { "job_events", LANE_LOOP, OP_BARE | OP_HTTP, run_job_events, NULL };
const op l2c_op_stats = { "stats", LANE_READ, OP_BARE, run_stats, NULL };
const op l2c_op_metrics = { "metrics", LANE_READ, OP_BARE | OP_HTTP, run_metrics, NULL };
const op l2c_op_health = { "healthz", LANE_LOOP, OP_BARE | OP_HTTP | OP_OPEN, run_ok, NULL };
const op l2c_op_live = { "livez", LANE_LOOP, OP_BARE | OP_HTTP | OP_OPEN, run_ok, NULL };
const op l2c_op_ready = { "readyz", LANE_LOOP, OP_BARE | OP_HTTP | OP_OPEN, run_ready, NULL };
const op l2c_op_options = { "options", LANE_LOOP, OP_BARE | OP_HTTP | OP_OPEN, run_options, NULL };
