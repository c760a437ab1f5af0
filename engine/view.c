/* Views: the active generation with its indexes, kept in agreement with the store.
 *
 * The fast path of a question is one read of the change number and one count under db->lock. Only
 * when the number has moved does somebody look: is another generation active (then a new view is
 * made and swapped in), and which rows are newer than the indexes (then they are replayed)? That
 * is the same whether this process wrote or another one, so there is nothing to notify. */
#include "engine/engine.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/open.h"

#define REPLAY_ROWS L2C_CHANGE_ROWS

/* ---- The index's source ---------------------------------------------------------------------- */

static l2cdb_status source_count(void *ctx, size_t *out, l2cdb_error *err) {
    const l2c_view_side *side = ctx;
    return l2c_vectors_count(side->db->store, side->space, side->kind, out, err);
}

static l2cdb_status source_pull(void *ctx, int64_t *ids, float *vectors, size_t max, size_t *got,
                                int64_t after_id, l2cdb_error *err) {
    const l2c_view_side *side = ctx;
    return l2c_vectors_pull(side->db->store, side->space, side->kind, side->width, ids, vectors,
                            max, got, after_id, err);
}

static l2cdb_status source_replay(void *ctx, int64_t *ids, float *vectors, bool *added, size_t max,
                                  size_t *got, int64_t since, int64_t *change, l2cdb_error *err) {
    const l2c_view_side *side = ctx;
    return l2c_vectors_replay(side->db->store, side->space, side->kind, side->width, ids, vectors,
                              added, max, got, since, change, err);
}

/* ---- Making and freeing ---------------------------------------------------------------------- */

static void release_side(l2c_view_side *side) {
    if (side == NULL) {
        return;
    }
    pthread_mutex_lock(&side->db->lock);
    bool last = --side->references == 0;
    pthread_mutex_unlock(&side->db->lock);
    if (last) {
        l2c_index_close(atomic_load(&side->index));
        pthread_mutex_destroy(&side->write);
        l2c_free(side);
    }
}

/* The answering view's side if it is of the same space: its index is open and stays so. */
static l2c_view_side *shared_side(l2cdb *db, int64_t space, l2c_kind kind) {
    l2c_view_side *side = NULL;
    pthread_mutex_lock(&db->lock);
    if (db->view != NULL && db->view->side[kind]->space == space) {
        side = db->view->side[kind];
        side->references++;
    }
    pthread_mutex_unlock(&db->lock);
    return side;
}

static l2c_view_side *get_side(l2cdb *db, const l2c_generation *g, l2c_kind kind) {
    l2c_view_side *side = g->id != 0 ? shared_side(db, g->space[kind], kind) : NULL;
    if (side == NULL && (side = l2c_calloc(1, sizeof *side)) != NULL) {
        *side = (l2c_view_side){ .db = db,
                                 .kind = kind,
                                 .space = g->id != 0 ? g->space[kind] : 0,
                                 .width = g->width,
                                 .references = 1 };
        atomic_init(&side->index, NULL);
        pthread_mutex_init(&side->write, NULL);
    }
    return side;
}

static void free_view(l2c_view *v) {
    for (int kind = 0; kind < 2; kind++) {
        release_side(v->side[kind]);
    }
    l2c_heads_free(v->heads_own);
    pthread_mutex_destroy(&v->heads_lock);
    l2c_free(v);
}

static l2cdb_status make_view(l2cdb *db, const l2c_generation *g, int64_t change, l2c_view **out,
                              l2cdb_error *err) {
    l2c_view *v = l2c_calloc(1, sizeof *v);
    *out = NULL;
    if (v == NULL) {
        return l2c_fail_nomem(err, sizeof *v);
    }
    v->db = db;
    v->generation = *g;
    v->references = 1;
    atomic_init(&v->change, change);
    pthread_mutex_init(&v->heads_lock, NULL);
    for (int kind = 0; kind < 2; kind++) {
        v->side[kind] = get_side(db, g, (l2c_kind)kind);
    }
    if (v->side[0] == NULL || v->side[1] == NULL) {
        free_view(v);
        return l2c_fail_nomem(err, sizeof **v->side);
    }
    *out = v;
    return L2CDB_OK;
}

void l2c_view_release(l2cdb *db, l2c_view *v) {
    if (v == NULL) {
        return;
    }
    pthread_mutex_lock(&db->lock);
    bool last = --v->references == 0;
    pthread_mutex_unlock(&db->lock);
    if (last) {
        free_view(v);
    }
}

l2c_view *l2c_view_retain(l2c_view *v) {
    pthread_mutex_lock(&v->db->lock);
    v->references++;
    pthread_mutex_unlock(&v->db->lock);
    return v;
}

/* Puts `v` (whose reference is taken over) in the place of the current view. */
static void swap_view(l2cdb *db, l2c_view *v) {
    pthread_mutex_lock(&db->lock);
    l2c_view *old = db->view;
    db->view = v;
    pthread_mutex_unlock(&db->lock);
    l2c_view_release(db, old);
}

/* The current view with one more reference, NULL if there is none yet. */
static l2c_view *current_view(l2cdb *db) {
    pthread_mutex_lock(&db->lock);
    l2c_view *v = db->view;
    if (v != NULL) {
        v->references++;
    }
    pthread_mutex_unlock(&db->lock);
    return v;
}

/* ---- Catching up ----------------------------------------------------------------------------- */

/* Applies one batch of changes, in runs of additions and removals. */
static l2cdb_status apply_changes(l2c_index *ix, const int64_t *ids, const float *vectors,
                                  const bool *added, size_t n, size_t width, int64_t change,
                                  l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0, run; rc == L2CDB_OK && i < n; i += run) {
        for (run = 1; i + run < n && added[i + run] == added[i]; run++) {
        }
        rc = added[i] ? l2c_index_add(ix, ids + i, vectors + i * width, run, change, err)
                      : l2c_index_remove(ix, ids + i, run, change, err);
    }
    return rc;
}

static l2cdb_status replay_side(l2c_view_side *side, l2c_index *ix, int64_t target, uint64_t *rows,
                                l2cdb_error *err) {
    size_t width = side->width;
    int64_t *ids = l2c_alloc(REPLAY_ROWS, sizeof *ids);
    bool *added = l2c_alloc(REPLAY_ROWS, sizeof *added);
    float *vectors = l2c_alloc_aligned(REPLAY_ROWS * width, sizeof *vectors);
    l2cdb_status rc = ids != NULL && added != NULL && vectors != NULL
                          ? L2CDB_OK
                          : l2c_fail_nomem(err, REPLAY_ROWS * width * sizeof *vectors);
    while (rc == L2CDB_OK) {
        size_t got = 0;
        int64_t last = side->change;
        rc = source_replay(side, ids, vectors, added, REPLAY_ROWS, &got, side->change, &last, err);
        if (rc != L2CDB_OK || got == 0) {
            break;
        }
        rc = apply_changes(ix, ids, vectors, added, got, width, last, err);
        if (rc == L2CDB_OK) {
            side->change = last;
            *rows += got;
        }
    }
    if (rc == L2CDB_OK && side->change < target) { // what is between belongs to other generations
        rc = l2c_index_add(ix, ids, vectors, 0, target, err);
        side->change = target;
    }
    l2c_free(ids);
    l2c_free(added);
    l2c_free(vectors);
    return rc;
}

/* The log was cut (a vacuum of another process): the base is made anew from the rows. */
static l2cdb_status rebuild_side(l2c_view_side *side, l2c_index *ix, int64_t target,
                                 l2cdb_error *err) {
    l2c_log(L2CDB_LOG_INFO, "index rebuilt: the log does not reach back change=%lld",
            (long long)side->change);
    l2cdb_error_clear(err);
    l2cdb_status rc = l2c_index_build(ix, NULL, NULL, NULL, err);
    if (rc == L2CDB_OK) {
        side->change = target;
    }
    return rc;
}

static l2cdb_status catch_up_side(l2c_view_side *side, int64_t target, uint64_t *rows,
                                  l2cdb_error *err) {
    l2c_index *ix = atomic_load(&side->index);
    if (ix == NULL || side->change >= target) {
        return L2CDB_OK;
    }
    l2cdb_status rc = replay_side(side, ix, target, rows, err);
    return rc == L2CDB_E_NOTFOUND ? rebuild_side(side, ix, target, err) : rc;
}

/* Brings the opened indexes of v to `target`; *rows counts what came. */
static l2cdb_status catch_up(l2c_view *v, int64_t target, uint64_t *rows, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (int kind = 0; kind < 2 && rc == L2CDB_OK; kind++) {
        pthread_mutex_lock(&v->side[kind]->write);
        rc = catch_up_side(v->side[kind], target, rows, err);
        pthread_mutex_unlock(&v->side[kind]->write);
    }
    int_fast64_t reached = atomic_load(&v->change);
    while (rc == L2CDB_OK && reached < target &&
           !atomic_compare_exchange_weak(&v->change, &reached, target)) {
    }
    return rc;
}

static l2cdb_status active_generation(l2cdb *db, l2c_generation *g, l2cdb_error *err) {
    l2cdb_status rc = l2c_generations_active(db->store, g, err);
    if (rc == L2CDB_E_NOTFOUND) {
        l2cdb_error_clear(err);
        memset(g, 0, sizeof *g);
        rc = L2CDB_OK;
    }
    return rc;
}

/* The view for change number `change`: the held one, or a new one if another generation answers. */
static l2cdb_status refresh(l2cdb *db, l2c_view **held, int64_t change, l2cdb_error *err) {
    l2c_generation g;
    l2cdb_status rc = active_generation(db, &g, err);
    if (rc != L2CDB_OK || (*held != NULL && (*held)->generation.id == g.id)) {
        return rc;
    }
    l2c_view *fresh;
    rc = make_view(db, &g, change, &fresh, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_view_retain(fresh);
    swap_view(db, fresh);
    l2c_view_release(db, *held);
    *held = fresh;
    return L2CDB_OK;
}

l2cdb_status l2c_view_get(l2cdb *db, l2c_view **out, l2cdb_error *err) {
    *out = NULL;
    int64_t change;
    l2cdb_status rc = l2c_store_change(db->store, &change, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_view *v = current_view(db);
    if (v == NULL || atomic_load(&v->change) < change) {
        uint64_t rows = 0;
        rc = refresh(db, &v, change, err);
        if (rc == L2CDB_OK) {
            rc = catch_up(v, change, &rows, err);
        }
        if (rc == L2CDB_OK && rows > 0) {
            l2c_view_start_build(db, v, false);
        }
    }
    if (rc != L2CDB_OK) {
        l2c_view_release(db, v);
        return rc;
    }
    *out = v;
    return L2CDB_OK;
}

l2cdb_status l2c_view_get_of(l2cdb *db, int64_t generation, l2c_view **out, l2cdb_error *err) {
    *out = NULL;
    l2c_view *v;
    l2cdb_status rc = l2c_view_get(db, &v, err);
    if (rc != L2CDB_OK || (generation != 0 && v->generation.id == generation)) {
        *out = rc == L2CDB_OK ? v : NULL;
        return rc;
    }
    l2c_view_release(db, v);
    l2c_generation g;
    int64_t change;
    rc = l2c_generations_get(db->store, generation, &g, err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_change(db->store, &change, err);
    }
    return rc == L2CDB_OK ? make_view(db, &g, change, out, err) : rc;
}

l2cdb_status l2c_view_begin(l2cdb *db, l2c_view *v, bool *current, l2cdb_error *err) {
    *current = false;
    l2c_generation g;
    l2cdb_status rc = l2c_store_begin(db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = active_generation(db, &g, err);
    *current = rc == L2CDB_OK && g.id == v->generation.id;
    if (!*current) {
        l2c_store_rollback(db->store);
    }
    return rc;
}

void l2c_view_catch_up(l2cdb *db) {
    l2c_view *v = NULL;
    l2cdb_error err;
    l2cdb_status rc = l2c_view_get(db, &v, &err);
    if (rc != L2CDB_OK) {
        l2c_log(L2CDB_LOG_WARN, "index not caught up: %s", err.message);
        return;
    }
    l2c_view_start_build(db, v, true);
    l2c_view_release(db, v);
}

/* ---- Indexes --------------------------------------------------------------------------------- */

static const char *kind_plural(l2c_kind kind) {
    return kind == L2C_KIND_IMAGE ? "images" : "captions";
}

char *l2c_view_index_path(const l2cdb *db, int64_t space, l2c_kind kind) {
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_printf(&b, "%s-g%lld-%s.idx", l2c_store_path(db->store), (long long)space,
                   kind_plural(kind));
    return l2c_buf_take(&b);
}

l2cdb_status l2c_view_index_params(l2cdb *db, l2c_kind kind, l2c_index_params *out,
                                   l2cdb_error *err) {
    *out = (l2c_index_params){ .threads = db->options.threads };
    char *text;
    l2cdb_status rc = l2c_store_get(
        db->store, kind == L2C_KIND_IMAGE ? "index_images" : "index_captions", &text, err);
    if (rc == L2CDB_OK && text != NULL) {
        rc = l2c_index_params_read(out, text, err);
    }
    l2c_free(text);
    return rc;
}

static l2cdb_status open_index(l2cdb *db, l2c_view_side *side, l2cdb_error *err) {
    l2c_index_config config = { .width = side->width,
                                .generation = side->space,
                                .read_only = db->options.read_only,
                                .source = { .ctx = side,
                                            .count = source_count,
                                            .pull = source_pull,
                                            .replay = source_replay } };
    char *path = l2c_view_index_path(db, side->space, side->kind);
    if (path == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    config.path = path;
    l2c_index *ix = NULL;
    l2cdb_status rc = l2c_view_index_params(db, side->kind, &config.params, err);
    if (rc == L2CDB_OK) {
        rc = l2c_store_change(db->store, &config.change, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_index_open(&ix, &config, err);
    }
    if (rc == L2CDB_OK) {
        side->change = config.change;
        atomic_store(&side->index, ix);
    }
    l2c_free(path);
    return rc;
}

l2cdb_status l2c_view_index(l2cdb *db, l2c_view *v, l2c_kind kind, l2c_index **out,
                            l2cdb_error *err) {
    l2c_view_side *side = v->side[kind];
    *out = atomic_load(&side->index);
    if (*out != NULL || v->generation.id == 0) {
        return L2CDB_OK;
    }
    l2cdb_status rc = L2CDB_OK;
    pthread_mutex_lock(&side->write);
    if (atomic_load(&side->index) == NULL) {
        rc = open_index(db, side, err);
    }
    *out = atomic_load(&side->index);
    pthread_mutex_unlock(&side->write);
    return rc;
}

/* ---- Background builds ----------------------------------------------------------------------- */

static bool build_goes_on(void *ctx, const char *phase, size_t done, size_t total) {
    const l2cdb *db = ctx;
    (void)phase, (void)done, (void)total;
    return !l2c_flag_raised(&db->build_stop) &&
           !(l2c_flag_raised(&db->closing) && l2c_flag_raised(&db->interrupted));
}

static void build_side(l2cdb *db, l2c_view_side *side) {
    l2c_index *ix = atomic_load(&side->index);
    if (ix == NULL || l2c_flag_raised(&db->build_stop) || !l2c_index_wants_build(ix)) {
        return;
    }
    l2cdb_error err;
    l2cdb_status rc = l2c_index_build(ix, NULL, build_goes_on, db, &err);
    if (rc == L2CDB_OK) {
        l2c_index_status st;
        l2c_index_get_status(ix, &st);
        l2c_log(L2CDB_LOG_INFO, "index built of=%s space=%lld kind=%s rows=%zu s=%.1f",
                kind_plural(side->kind), (long long)side->space, l2c_index_kind_name(st.kind),
                st.rows, st.build_s);
    } else if (rc != L2CDB_E_CANCELLED) {
        l2c_log(L2CDB_LOG_WARN, "index not built of=%s: %s", kind_plural(side->kind), err.message);
    }
}

static void *build_thread(void *ctx) {
    l2c_view *v = ctx;
    l2cdb *db = v->db;
    for (int kind = 0; kind < 2; kind++) {
        build_side(db, v->side[kind]);
    }
    l2c_view_release(db, v);
    pthread_mutex_lock(&db->build_lock);
    db->building = false;
    db->build_wanted = false;
    pthread_cond_broadcast(&db->build_done);
    pthread_mutex_unlock(&db->build_lock);
    return NULL;
}

void l2c_view_start_build(l2cdb *db, l2c_view *v, bool wanted) {
    bool needed = false;
    for (int kind = 0; kind < 2 && !db->options.read_only; kind++) {
        l2c_index *ix = atomic_load(&v->side[kind]->index);
        needed = needed || (ix != NULL && l2c_index_wants_build(ix));
    }
    if (!needed) {
        return;
    }
    pthread_mutex_lock(&db->build_lock);
    bool start = !db->building && !l2c_flag_raised(&db->build_stop);
    db->build_wanted = db->build_wanted || wanted;
    db->building = db->building || start;
    pthread_mutex_unlock(&db->build_lock);
    if (!start) {
        return;
    }
    pthread_t thread;
    l2c_view_retain(v);
    if (pthread_create(&thread, NULL, build_thread, v) != 0) {
        l2c_log(L2CDB_LOG_WARN, "index not built: no thread");
        l2c_view_release(db, v);
        pthread_mutex_lock(&db->build_lock);
        db->building = false;
        pthread_mutex_unlock(&db->build_lock);
        return;
    }
    pthread_detach(thread);
}

void l2c_view_wait_build(l2cdb *db) {
    pthread_mutex_lock(&db->build_lock);
    while (db->building) {
        pthread_cond_wait(&db->build_done, &db->build_lock);
    }
    pthread_mutex_unlock(&db->build_lock);
}

void l2c_view_stop_builds(l2cdb *db) {
    pthread_mutex_lock(&db->build_lock);
    l2c_flag_set(&db->closing, true); // an interrupt that comes while we wait ends the build too
    if (!db->build_wanted || l2c_flag_raised(&db->interrupted)) {
        l2c_flag_set(&db->build_stop, true);
    }
    pthread_mutex_unlock(&db->build_lock);
    l2c_view_wait_build(db);
}

/* ---- Models, heads, generations -------------------------------------------------------------- */

static bool hash_is(const l2c_hash *stored, const l2c_hash *found) {
    static const l2c_hash zero;
    return memcmp(stored, &zero, sizeof zero) == 0 || memcmp(stored, found, sizeof zero) == 0;
}

static l2cdb_status model_fits(l2cdb *db, const l2c_view *v, const l2c_model_info *info,
                               l2cdb_error *err) {
    if (hash_is(&v->generation.image_trunk, &info->image_trunk) &&
        hash_is(&v->generation.text_trunk, &info->text_trunk)) {
        return L2CDB_OK;
    }
    char stored[L2C_HASH_HEX_BYTES], found[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(&v->generation.image_trunk, stored);
    l2c_hash_hex(&info->image_trunk, found);
    l2c_fail(err, L2CDB_E_MISMATCH,
             "%s: made with model %s (image tower %.8s), the model opened is %s (%.8s)", db->path,
             v->generation.label, stored, info->name, found);
    return l2c_hint(err, "name the model it was made with, or change over with `l2cdb reencode`");
}

l2cdb_status l2c_view_model(l2cdb *db, l2c_view *v, l2c_model **out, l2cdb_error *err) {
    *out = NULL;
    const char *named = db->options.model;
    if (v->generation.id == 0) {
        return l2c_db_model(db, named, out, err);
    }
    if (strcmp(v->generation.model, "external") == 0) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED,
                 "%s: holds imported vectors, no model is known that made them", db->path);
        return l2c_hint(err, "search with a vector, or keep photos in a database of their own");
    }
    l2cdb_status rc = l2c_db_model(db, named != NULL ? named : v->generation.model, out, err);
    if (rc == L2CDB_OK) {
        rc = model_fits(db, v, l2c_model_get_info(*out), err);
    }
    if (rc == L2CDB_E_NOTFOUND) {
        return l2c_hint(err, "say where the model is now with --model");
    }
    return rc;
}

/* Head tensors of a tuned generation, collected from the store. */
typedef struct head_list {
    l2c_head_tensor tensors[256];
    size_t count;
    l2c_arena arena;
} head_list;

static l2cdb_status collect_head(void *ctx, const char *name, const size_t shape[2],
                                 const float *data, size_t count, l2cdb_error *err) {
    head_list *list = ctx;
    if (list->count == sizeof list->tensors / sizeof *list->tensors) {
        return l2c_fail(err, L2CDB_E_LIMIT, "a generation has more than %zu head tensors",
                        list->count);
    }
    size_t name_bytes = strlen(name) + 1;
    char *own_name = l2c_arena_alloc(&list->arena, name_bytes, 1);
    float *own = l2c_arena_alloc(&list->arena, count, sizeof *own);
    if (own_name == NULL || own == NULL) {
        return l2c_fail_nomem(err, count * sizeof *own);
    }
    memcpy(own_name, name, name_bytes);
    memcpy(own, data, count * sizeof *own);
    list->tensors[list->count++] = (l2c_head_tensor){
        .name = own_name, .shape = { shape[0], shape[1] }, .data = own, .count = count
    };
    return L2CDB_OK;
}

static l2cdb_status load_heads(l2cdb *db, l2c_view *v, const l2c_heads *like, l2cdb_error *err) {
    head_list *list = l2c_calloc(1, sizeof *list);
    if (list == NULL) {
        return l2c_fail_nomem(err, sizeof *list);
    }
    l2c_arena_init(&list->arena, 0);
    l2cdb_status rc = l2c_heads_each(db->store, v->generation.id, collect_head, list, err);
    if (rc == L2CDB_OK) {
        rc = l2c_heads_new(&v->heads_own, like, list->tensors, list->count, err);
    }
    if (rc == L2CDB_OK) {
        l2c_hash found = l2c_heads_fingerprint(v->heads_own);
        if (!hash_is(&v->generation.heads, &found)) {
            l2c_heads_free(v->heads_own);
            v->heads_own = NULL;
            l2c_fail(err, L2CDB_E_CORRUPT,
                     "generation %lld: its stored heads are not those that"
                     " made its vectors",
                     (long long)v->generation.id);
            rc = l2c_hint(err, "roll back to another generation or restore a backup");
        }
    }
    l2c_arena_fini(&list->arena);
    l2c_free(list);
    return rc;
}

l2cdb_status l2c_view_heads(l2cdb *db, l2c_view *v, const l2c_heads **out, l2cdb_error *err) {
    *out = NULL;
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_heads *own = l2c_model_get_heads(model);
    if (own == NULL) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "model %s has no heads: it gives features, not vectors",
                 l2c_model_get_info(model)->name);
        return l2c_hint(err, "import a vision part and an LLM that belong together");
    }
    if (v->generation.id == 0 || hash_is(&v->generation.heads, &l2c_model_get_info(model)->heads)) {
        *out = own;
        return L2CDB_OK;
    }
    pthread_mutex_lock(&v->heads_lock);
    if (v->heads_own == NULL) {
        rc = load_heads(db, v, own, err);
    }
    *out = v->heads_own;
    pthread_mutex_unlock(&v->heads_lock);
    return rc;
}

l2cdb_status l2c_view_width(l2cdb *db, l2c_view *v, size_t *width, l2cdb_error *err) {
    *width = v->generation.width;
    if (v->generation.id != 0) {
        return L2CDB_OK;
    }
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(db, v, &model, err);
    if (rc == L2CDB_OK) {
        const l2c_model_info *info = l2c_model_get_info(model);
        *width = l2c_model_is_pooling(info) ? info->text_width : info->width;
    }
    return rc;
}

/* The first generation, unless another process has made it meanwhile. */
static l2cdb_status put_first(l2cdb *db, l2c_generation *g, l2cdb_error *err) {
    l2cdb_status rc = l2c_store_begin(db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_generation there;
    rc = active_generation(db, &there, err);
    if (rc == L2CDB_OK && there.id == 0) {
        g->state = L2C_GENERATION_ACTIVE;
        rc = l2c_generations_put(db->store, g, err);
    }
    if (rc == L2CDB_OK) {
        return l2c_store_commit(db->store, err);
    }
    l2c_store_rollback(db->store);
    return rc;
}

l2cdb_status l2c_view_ensure_generation(l2cdb *db, l2cdb_error *err) {
    l2c_generation g;
    l2cdb_status rc = active_generation(db, &g, err);
    if (rc != L2CDB_OK || g.id != 0) {
        return rc;
    }
    l2c_model *model;
    rc = l2c_db_model(db, db->options.model, &model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_model_info *info = l2c_model_get_info(model);
    if (info->width == 0) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "model %s has no heads: it makes no vectors",
                        info->name);
    }
    g.image_trunk = info->image_trunk;
    g.text_trunk = info->text_trunk;
    g.heads = info->heads;
    g.width = info->width;
    snprintf(g.model, sizeof g.model, "%s", db->options.model != NULL ? db->options.model : "");
    snprintf(g.label, sizeof g.label, "%s", info->name);
    return put_first(db, &g, err);
}

l2cdb_status l2c_view_ensure_external(l2cdb *db, size_t width, l2cdb_error *err) {
    l2c_generation g;
    l2cdb_status rc = active_generation(db, &g, err);
    if (rc == L2CDB_OK && g.id == 0) {
        g.width = width;
        snprintf(g.model, sizeof g.model, "external");
        snprintf(g.label, sizeof g.label, "imported vectors");
        rc = put_first(db, &g, err);
        if (rc == L2CDB_OK) {
            rc = active_generation(db, &g, err);
        }
    }
    if (rc == L2CDB_OK && g.width != width) {
        l2c_fail(err, L2CDB_E_MISMATCH, "%s: its vectors have %zu values, these have %zu", db->path,
                 g.width, width);
        rc = l2c_hint(err, "import them into a database of their own");
    }
    return rc;
}

l2cdb_status l2c_view_switch(l2cdb *db, int64_t generation, l2c_view *prepared, bool in_transaction,
                             l2cdb_error *err) {
    l2cdb_status rc = in_transaction ? L2CDB_OK : l2c_store_begin(db->store, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_generations_activate(db->store, generation, err);
    if (rc != L2CDB_OK) {
        l2c_store_rollback(db->store);
        return rc;
    }
    rc = l2c_store_commit(db->store, err); // from here on every process answers from `generation`
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (prepared != NULL && prepared->generation.id == generation) {
        prepared->generation.state = L2C_GENERATION_ACTIVE;
        swap_view(db, l2c_view_retain(prepared));
    }
    l2c_view_catch_up(db);
    return L2CDB_OK;
}
