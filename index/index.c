/* The door: opening, changing, building and saving an index; see index.h and handle.h.
 *
 * One crash story: the file is written only by a build (and when search parameters are kept), as a
 * whole, and renamed into place. Rows that came later are not in it; the next open replays them
 * from the store by change number. A build takes the change number before it pulls its first row,
 * so what the store committed meanwhile is either in the pull, or replayed, or both, and applying
 * a change twice is the same as applying it once. */
#define _GNU_SOURCE
#include "index/index.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/vec.h"
#include "index/handle.h"
#include "index/index_params.h"
#include "index/kernels.h"
#include "index/recall.h"

#define REPLAY_ROWS 256
#define TARGET_RECALL 0.95

void l2c_snapshot_take(l2c_snapshot *out, l2c_index *ix) {
    pthread_mutex_lock(&ix->lock);
    *out = ix->now;
    l2c_segment_ref(out->base);
    l2c_fresh_ref(out->fresh);
    pthread_mutex_unlock(&ix->lock);
}

void l2c_snapshot_drop(l2c_snapshot *s) {
    l2c_segment_unref(s->base);
    l2c_fresh_unref(s->fresh);
    s->base = NULL;
    s->fresh = NULL;
}

static l2cdb_status vectors_check(const l2c_index *ix, const int64_t *ids, const float *vectors,
                                  size_t n, l2cdb_error *err) {
    for (size_t i = 0; i < n; i++) {
        float norm = l2c_vec_norm(vectors + i * ix->config.width, ix->config.width);
        if (!(fabsf(norm - 1.0f) <= 2e-3f)) {
            return l2c_fail(err, L2CDB_E_INVALID, "the vector of row %lld has norm %g, expected 1",
                            (long long)ids[i], (double)norm);
        }
    }
    return L2CDB_OK;
}

/* Makes `id` dead as of `seq`; true if it was live. */
static bool kill_row(l2c_snapshot *s, int64_t id, uint64_t seq) {
    size_t row = l2c_fresh_find(s->fresh, id);
    if (row != SIZE_MAX) {
        l2c_fresh_kill(s->fresh, row, seq);
        return true;
    }
    row = l2c_segment_find(s->base, id);
    if (row != SIZE_MAX && l2c_segment_alive(s->base, row, seq)) {
        l2c_segment_kill(s->base, row, seq);
        s->base_dead++;
        return true;
    }
    return false;
}

/* Applies a batch to `s`, which readers do not see yet in this state. `vectors` NULL: removals. */
static l2cdb_status batch_apply(l2c_snapshot *s, const int64_t *ids, const float *vectors, size_t n,
                                l2c_buf *late, l2cdb_error *err) {
    if ((vectors != NULL && !l2c_fresh_reserve(s->fresh, n)) || !l2c_segment_can_kill(s->base) ||
        (late != NULL && !l2c_buf_reserve(late, n * sizeof(l2c_late)))) {
        return l2c_fail_nomem(err, n * s->fresh->width * sizeof(float));
    }
    s->seq++;
    for (size_t i = 0; i < n; i++) {
        kill_row(s, ids[i], s->seq);
        l2c_late entry = { .id = ids[i], .fresh_row = SIZE_MAX };
        if (vectors != NULL) {
            entry.fresh_row = l2c_fresh_append(s->fresh, ids[i], vectors + i * s->fresh->width);
        }
        if (late != NULL) {
            l2c_buf_append(late, &entry, sizeof entry);
        }
    }
    s->fresh_rows = s->fresh->rows;
    s->fresh_live = s->fresh->live;
    s->fresh_bytes = l2c_fresh_bytes(s->fresh);
    return L2CDB_OK;
}

static l2cdb_status apply(l2c_index *ix, const int64_t *ids, const float *vectors, size_t n,
                          int64_t change, l2cdb_error *err) {
    pthread_mutex_lock(&ix->writer);
    l2c_snapshot next = ix->now; // only writers change it, so it can be read without the lock
    l2cdb_status rc = batch_apply(&next, ids, vectors, n, ix->logging ? &ix->late : NULL, err);
    if (rc == L2CDB_OK) {
        pthread_mutex_lock(&ix->lock);
        ix->now = next;
        if (change > ix->change) {
            ix->change = change;
        }
        pthread_mutex_unlock(&ix->lock);
    }
    pthread_mutex_unlock(&ix->writer);
    return rc;
}

l2cdb_status l2c_index_add(l2c_index *ix, const int64_t *ids, const float *vectors, size_t n,
                           int64_t change, l2cdb_error *err) {
    l2cdb_status rc = vectors_check(ix, ids, vectors, n, err);
    return rc != L2CDB_OK ? rc : apply(ix, ids, vectors, n, change, err);
}

l2cdb_status l2c_index_remove(l2c_index *ix, const int64_t *ids, size_t n, int64_t change,
                              l2cdb_error *err) {
    return apply(ix, ids, NULL, n, change, err);
}

/* Everything the source has, as a flat base. A large one goes to the file, so that the next open
 * maps it; if that cannot be written, memory serves as well. */
static l2cdb_status base_from_source(l2c_segment **out, l2c_index *ix, l2cdb_error *err) {
    l2c_segment_draft d;
    size_t count;
    l2c_segment_meta meta = { .generation = ix->config.generation,
                              .change = ix->config.change,
                              .params = { .kind = L2C_INDEX_FLAT, .quant = L2C_QUANT_F32 },
                              .recall = 1 };
    l2cdb_status rc = ix->source.count(ix->source.ctx, &count, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const char *path = count >= L2C_FLAT_ROWS && !ix->config.read_only ? ix->path : NULL;
    rc = l2c_draft_pull(&d, path, ix->config.width, &ix->source, NULL, NULL, err);
    if (rc == L2CDB_OK) {
        rc = l2c_draft_commit(out, &d, &meta, err);
    }
    if (path != NULL && (rc == L2CDB_E_FULL || rc == L2CDB_E_IO || rc == L2CDB_E_DENIED)) {
        l2c_log(L2CDB_LOG_WARN, "index: kept in memory, its file could not be written path=%s",
                path);
        rc = l2c_draft_pull(&d, NULL, ix->config.width, &ix->source, NULL, NULL, err);
        if (rc == L2CDB_OK) {
            rc = l2c_draft_commit(out, &d, &meta, err);
        }
    }
    return rc;
}

static void set_aside(const char *path, const l2cdb_error *why) {
    char *aside = l2c_alloc(strlen(path) + 16, 1);
    l2c_log(L2CDB_LOG_WARN, "index: rebuilt from the store: %s", why->message);
    if (aside != NULL) {
        sprintf(aside, "%s.aside", path);
        if (rename(path, aside) != 0) {
            l2c_log(L2CDB_LOG_WARN, "index: could not be set aside path=%s", path);
        }
    }
    l2c_free(aside);
}

/* Removes what builds left behind that died: "<path>.tmp<pid>" of processes that are no more. */
static void sweep(const char *path) {
    const char *name = l2c_path_base(path);
    size_t n = strlen(name);
    char *folder = l2c_strndup(path, (size_t)(name - path));
    DIR *dir = folder != NULL ? opendir(*folder != '\0' ? folder : ".") : NULL;
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char *end;
        if (strncmp(entry->d_name, name, n) != 0 || strncmp(entry->d_name + n, ".tmp", 4) != 0) {
            continue;
        }
        long pid = strtol(entry->d_name + n + 4, &end, 10);
        if (*end == '\0' && pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH) {
            unlinkat(dirfd(dir), entry->d_name, 0);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    l2c_free(folder);
}

static l2cdb_status base_open(l2c_index *ix, bool *from_file, l2cdb_error *err) {
    *from_file = false;
    if (ix->path != NULL && !ix->config.read_only) {
        sweep(ix->path);
    }
    if (ix->path != NULL) {
        l2cdb_error why;
        l2cdb_error_clear(&why);
        l2cdb_status rc =
            l2c_segment_load(&ix->now.base, ix->path, ix->config.width, ix->config.generation,
                             ix->config.change, &ix->source, &why);
        if (rc == L2CDB_OK) {
            *from_file = true;
            ix->change = ix->now.base->meta.change;
            return L2CDB_OK;
        }
        if (rc == L2CDB_E_NOMEM) {
            return l2c_fail(err, rc, "%s", why.message);
        }
        if (rc != L2CDB_E_NOTFOUND && !ix->config.read_only) {
            set_aside(ix->path, &why);
        }
    }
    return base_from_source(&ix->now.base, ix, err);
}

/* Changes after the file was written. E_NOTFOUND: the store's log does not reach back that far. */
static l2cdb_status replay(l2c_index *ix, l2cdb_error *err) {
    size_t width = ix->config.width;
    int64_t *ids = l2c_alloc(REPLAY_ROWS, sizeof *ids);
    bool *added = l2c_alloc(REPLAY_ROWS, sizeof *added);
    float *vectors = l2c_alloc(REPLAY_ROWS * width, sizeof *vectors);
    l2cdb_status rc = L2CDB_OK;
    if (ids == NULL || added == NULL || vectors == NULL) {
        rc = l2c_fail_nomem(err, REPLAY_ROWS * width * sizeof *vectors);
    } else if (ix->source.replay == NULL) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "the source keeps no log of changes");
    }
    int64_t since = ix->now.base->meta.change;
    while (rc == L2CDB_OK) {
        size_t got = 0;
        int64_t last = since;
        rc = ix->source.replay(ix->source.ctx, ids, vectors, added, REPLAY_ROWS, &got, since, &last,
                               err);
        if (rc != L2CDB_OK || got == 0) {
            break;
        }
        for (size_t i = 0, run; rc == L2CDB_OK && i < got; i += run) {
            for (run = 1; i + run < got && added[i + run] == added[i]; run++) {
            }
            rc = added[i] ? l2c_index_add(ix, ids + i, vectors + i * width, run, last, err)
                          : l2c_index_remove(ix, ids + i, run, last, err);
        }
        since = last;
    }
    l2c_free(ids);
    l2c_free(added);
    l2c_free(vectors);
    return rc;
}

l2cdb_status l2c_index_open(l2c_index **out, const l2c_index_config *config, l2cdb_error *err) {
    *out = NULL;
    if (config->width == 0 || config->source.pull == NULL || config->source.count == NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "an index needs a width and a source");
    }
    l2cdb_status rc = l2c_index_params_check(&config->params, config->width, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_index *ix = l2c_calloc(1, sizeof *ix);
    if (ix == NULL) {
        return l2c_fail_nomem(err, sizeof *ix);
    }
    pthread_mutex_init(&ix->build, NULL);
    pthread_mutex_init(&ix->writer, NULL);
    pthread_mutex_init(&ix->lock, NULL);
    l2c_buf_init(&ix->late);
    ix->config = *config;
    ix->source = config->source;
    ix->path = config->path != NULL ? l2c_strdup(config->path) : NULL;
    ix->config.path = ix->path;
    ix->now.fresh = l2c_fresh_new(config->width);
    bool from_file = false;
    if (ix->now.fresh == NULL || (config->path != NULL && ix->path == NULL)) {
        rc = l2c_fail_nomem(err, sizeof *ix);
    }
    if (rc == L2CDB_OK) {
        rc = base_open(ix, &from_file, err);
    }
    if (rc == L2CDB_OK && from_file && ix->now.base->meta.change != config->change) {
        rc = replay(ix, err);
        if (rc == L2CDB_E_NOTFOUND) {
            l2c_log(L2CDB_LOG_INFO, "index: too far behind the store, rebuilt from it change=%lld",
                    (long long)ix->now.base->meta.change);
            l2cdb_error_clear(err);
            l2c_snapshot_drop(&ix->now);
            ix->now = (l2c_snapshot){ .fresh = l2c_fresh_new(config->width) };
            rc = ix->now.fresh == NULL ? l2c_fail_nomem(err, sizeof *ix)
                                       : base_from_source(&ix->now.base, ix, err);
        }
    }
    if (rc != L2CDB_OK) {
        l2c_index_close(ix);
        return rc;
    }
    if (config->change > ix->change) {
        ix->change = config->change;
    }
    l2c_index_params p = config->params;
    l2c_index_params_choose(&p, l2c_snapshot_rows(&ix->now), config->width, ix->why,
                            sizeof ix->why);
    ix->ef_search = config->params.ef_search;
    ix->nprobe = config->params.nprobe;
    *out = ix;
    return L2CDB_OK;
}

void l2c_index_close(l2c_index *ix) {
    if (ix == NULL) {
        return;
    }
    if (ix->now.base != NULL && l2c_index_save(ix, NULL) != L2CDB_OK) {
        l2c_log(L2CDB_LOG_WARN, "index: search parameters could not be kept path=%s", ix->path);
    }
    l2c_snapshot_drop(&ix->now);
    l2c_buf_fini(&ix->late);
    pthread_mutex_destroy(&ix->build);
    pthread_mutex_destroy(&ix->writer);
    pthread_mutex_destroy(&ix->lock);
    l2c_free(ix->path);
    l2c_free(ix);
}

/* Replaces the base by `base` and brings what came during its build into new fresh rows. */
static l2cdb_status swap_in(l2c_index *ix, l2c_segment *base, const char *why, l2cdb_error *err) {
    l2c_snapshot old = ix->now;
    l2c_snapshot next = { .base = base, .fresh = l2c_fresh_new(ix->config.width), .seq = old.seq };
    size_t n = ix->late.size / sizeof(l2c_late);
    l2cdb_status rc = next.fresh == NULL || ix->late.failed
                          ? l2c_fail_nomem(err, n * sizeof(l2c_late))
                          : L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < n; i++) {
        l2c_late entry;
        memcpy(&entry, ix->late.data + i * sizeof entry, sizeof entry);
        const float *vector =
            entry.fresh_row != SIZE_MAX ? l2c_fresh_vector(old.fresh, entry.fresh_row) : NULL;
        rc = batch_apply(&next, &entry.id, vector, 1, NULL, err);
    }
    if (rc != L2CDB_OK) {
        l2c_fresh_unref(next.fresh);
        return rc;
    }
    pthread_mutex_lock(&ix->lock);
    ix->now = next;
    ix->meta_changed = false;
    snprintf(ix->why, sizeof ix->why, "%s", why);
    pthread_mutex_unlock(&ix->lock);
    l2c_snapshot_drop(&old);
    return L2CDB_OK;
}

static void logging_set(l2c_index *ix, bool on, int64_t *change) {
    pthread_mutex_lock(&ix->writer);
    ix->logging = on;
    l2c_buf_clear(&ix->late);
    *change = ix->change;
    pthread_mutex_lock(&ix->lock);
    ix->building = on;
    pthread_mutex_unlock(&ix->lock);
    pthread_mutex_unlock(&ix->writer);
}

/* Finds the breadth of searches for the wanted recall on the new base, and what it comes to. */
static l2cdb_status tune(l2c_index *ix, l2c_segment *base, l2c_segment_meta *meta,
                         l2c_index_progress_fn progress, void *ctx, l2cdb_error *err) {
    size_t *breadth =
        meta->params.kind == L2C_INDEX_IVF ? &meta->params.nprobe : &meta->params.ef_search;
    base->meta = *meta;
    if (meta->params.kind == L2C_INDEX_FLAT) {
        meta->recall = 1;
        return L2CDB_OK;
    }
    l2c_snapshot snap = { .base = base, .fresh = l2c_fresh_new(ix->config.width) };
    if (snap.fresh == NULL) {
        return l2c_fail_nomem(err, sizeof *snap.fresh);
    }
    bool look = *breadth == 0;
    l2c_recall_result r;
    size_t samples = base->count > 200000 ? 100 : 200;
    l2cdb_status rc = l2c_recall_measure(&r, &snap, *breadth, 10, samples, look ? TARGET_RECALL : 0,
                                         1, progress, ctx, err);
    meta->recall = r.recall;
    if (rc == L2CDB_OK && look) {
        // Queries from elsewhere, such as texts asking for photos, are harder than the rows are.
        size_t least = meta->params.kind == L2C_INDEX_IVF ? 8 : 64;
        *breadth = r.wanted_param > least ? r.wanted_param : least;
        if (r.wanted_param == 0) {
            *breadth = meta->params.kind == L2C_INDEX_IVF ? meta->params.nlist : 512;
        }
        rc = l2c_recall_measure(&r, &snap, *breadth, 10, samples, 0, 2, progress, ctx, err);
        meta->recall = r.recall;
    }
    l2c_fresh_unref(snap.fresh);
    return rc;
}

static l2cdb_status build(l2c_index *ix, const l2c_index_params *wanted,
                          l2c_index_progress_fn progress, void *ctx, l2cdb_error *err) {
    double start_s = l2c_now();
    l2c_segment_meta meta = { .generation = ix->config.generation, .recall = -1 };
    l2c_segment_draft d;
    l2c_segment *base = NULL;
    char why[160];
    logging_set(ix, true, &meta.change);
    const char *path = ix->config.read_only ? NULL : ix->path;
    l2cdb_status rc = l2c_draft_pull(&d, path, ix->config.width, &ix->source, progress, ctx, err);
    if (rc == L2CDB_OK) {
        meta.params = *wanted;
        l2c_index_params_choose(&meta.params, d.segment->count, ix->config.width, why, sizeof why);
        if (meta.params.kind != L2C_INDEX_FLAT) {
            rc = l2c_ann_build(&d.segment->ann, d.segment->vectors, d.segment->count,
                               ix->config.width, &meta.params, progress, ctx, err);
        }
        meta.build_s = l2c_now() - start_s;
        if (rc == L2CDB_OK) {
            rc = tune(ix, d.segment, &meta, progress, ctx, err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_draft_commit(&base, &d, &meta, err);
        } else {
            l2c_draft_abort(&d);
        }
    }
    if (rc == L2CDB_OK) {
        pthread_mutex_lock(&ix->writer);
        rc = swap_in(ix, base, why, err);
        pthread_mutex_unlock(&ix->writer);
        if (rc != L2CDB_OK) {
            l2c_segment_unref(base);
        }
    }
    int64_t ignored;
    logging_set(ix, false, &ignored);
    return rc;
}

l2cdb_status l2c_index_build(l2c_index *ix, const l2c_index_params *params,
                             l2c_index_progress_fn progress, void *ctx, l2cdb_error *err) {
    pthread_mutex_lock(&ix->lock);
    l2c_index_params wanted = params != NULL ? *params : ix->config.params;
    pthread_mutex_unlock(&ix->lock);
    l2cdb_status rc = l2c_index_params_check(&wanted, ix->config.width, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    pthread_mutex_lock(&ix->build);
    rc = build(ix, &wanted, progress, ctx, err);
    if (rc == L2CDB_OK && params != NULL) { // what later merges keep to
        pthread_mutex_lock(&ix->lock);
        ix->config.params = wanted;
        pthread_mutex_unlock(&ix->lock);
    }
    pthread_mutex_unlock(&ix->build);
    return rc;
}

bool l2c_index_wants_build(const l2c_index *cix) {
    l2c_index *ix = (l2c_index *)(uintptr_t)cix;
    pthread_mutex_lock(&ix->lock);
    const l2c_snapshot *s = &ix->now;
    size_t rows = l2c_snapshot_rows(s);
    l2c_index_params p = ix->config.params;
    char why[160];
    l2c_index_params_choose(&p, rows, ix->config.width, why, sizeof why);
    l2c_index_kind kind = s->base->meta.params.kind;
    size_t dead = s->base_dead + s->fresh_rows - s->fresh_live;
    bool wants = kind != p.kind || atomic_load(&s->base->damaged) || dead > rows / 4 + 1000;
    if (p.kind != L2C_INDEX_FLAT) {
        wants = wants || s->fresh_rows > s->base->count / 10 + 1000;
    } else if (ix->path != NULL && !ix->config.read_only && rows >= L2C_FLAT_ROWS) {
        wants = wants || s->base->file_bytes == 0 || s->fresh_rows > s->base->count / 4;
    }
    wants = wants && !ix->building;
    pthread_mutex_unlock(&ix->lock);
    return wants;
}

l2cdb_status l2c_index_save(l2c_index *ix, l2cdb_error *err) {
    if (ix->path == NULL || ix->config.read_only) {
        return L2CDB_OK;
    }
    l2cdb_status rc = L2CDB_OK;
    pthread_mutex_lock(&ix->build);
    pthread_mutex_lock(&ix->lock);
    bool changed = ix->meta_changed && ix->now.base->file_bytes > 0;
    l2c_segment *base = ix->now.base;
    l2c_segment_meta meta = base->meta;
    meta.params.ef_search = ix->ef_search;
    meta.params.nprobe = ix->nprobe;
    l2c_segment_ref(base);
    pthread_mutex_unlock(&ix->lock);
    if (changed) {
        rc = l2c_segment_rewrite(base, ix->path, &meta, err);
    }
    if (changed && rc == L2CDB_OK) {
        pthread_mutex_lock(&ix->lock);
        ix->meta_changed = false;
        pthread_mutex_unlock(&ix->lock);
    }
    l2c_segment_unref(base);
    pthread_mutex_unlock(&ix->build);
    return rc;
}

void l2c_index_set_search_params(l2c_index *ix, size_t ef_search, size_t nprobe) {
    pthread_mutex_lock(&ix->lock);
    ix->ef_search = ef_search;
    ix->nprobe = nprobe;
    ix->meta_changed = true;
    pthread_mutex_unlock(&ix->lock);
}

void l2c_index_get_status(const l2c_index *cix, l2c_index_status *out) {
    l2c_index *ix = (l2c_index *)(uintptr_t)cix;
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&ix->lock);
    const l2c_snapshot *s = &ix->now;
    out->kind = s->base->meta.params.kind;
    out->quant = s->base->meta.params.quant;
    out->params = s->base->meta.params;
    if (ix->ef_search > 0) {
        out->params.ef_search = ix->ef_search;
    }
    if (ix->nprobe > 0) {
        out->params.nprobe = ix->nprobe;
    }
    out->rows = l2c_snapshot_rows(s);
    out->base_rows = s->base->count;
    out->fresh_rows = s->fresh_live;
    out->tombstones = s->base_dead + s->fresh_rows - s->fresh_live;
    out->file_bytes = s->base->file_bytes;
    out->memory_bytes = l2c_segment_memory_bytes(s->base) + s->fresh_bytes;
    out->change = ix->change;
    out->building = ix->building;
    out->build_s = s->base->meta.build_s;
    out->recall = s->base->meta.recall;
    memcpy(out->why, ix->why, sizeof out->why);
    pthread_mutex_unlock(&ix->lock);
}

void l2c_index_describe(l2c_buf *out) {
    l2c_buf_printf(out, "%s, kernels %s", l2c_ann_library(), l2c_kernel_name());
}
