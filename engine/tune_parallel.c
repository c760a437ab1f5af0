/* Reading, grouping and encoding of parallel captions; see tune_parallel.h. */
#include "engine/tune_parallel.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/file.h"
#include "engine/photo_names.h"

enum { BATCH = 64 };

typedef struct line {
    const char *name, *text;
    size_t order;
} line;

typedef struct lines {
    l2cdb *db;
    l2c_photo_names *names;
    l2c_arena arena;
    line *items;
    size_t count, capacity;
} lines;

static const char *keep(lines *l, const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = l2c_arena_alloc(&l->arena, bytes, 1);
    if (copy != NULL) {
        memcpy(copy, text, bytes);
    }
    return copy;
}

static l2cdb_status known(lines *l, const l2c_caption_line *c, bool *out, l2cdb_error *err) {
    if (c->id == 0) {
        *out = l2c_photo_names_find(l->names, c->image) != 0;
        return L2CDB_OK;
    }
    l2c_image_record r;
    l2c_arena_mark mark = l2c_arena_get_mark(&l->arena);
    l2cdb_status rc = l2c_images_get(l->db->store, c->id, &r, &l->arena, err);
    l2c_arena_reset(&l->arena, mark);
    *out = rc == L2CDB_OK;
    return rc == L2CDB_E_NOTFOUND ? L2CDB_OK : rc;
}

static l2cdb_status take_line(void *ctx, const l2c_caption_line *c, l2cdb_error *err) {
    lines *l = ctx;
    bool is_known;
    l2cdb_status rc = known(l, c, &is_known, err);
    if (rc != L2CDB_OK || is_known) {
        return rc;
    }
    if (l->count == l->capacity) {
        size_t capacity = l->capacity > 0 ? 2 * l->capacity : 4096;
        line *grown = l2c_realloc(l->items, capacity, sizeof *grown);
        if (grown == NULL) {
            return l2c_fail_nomem(err, capacity * sizeof *grown);
        }
        l->items = grown;
        l->capacity = capacity;
    }
    char number[32];
    snprintf(number, sizeof number, "%" PRId64, c->id);
    line new = { .name = keep(l, c->id != 0 ? number : c->image),
                 .text = keep(l, c->text),
                 .order = l->count };
    if (new.name == NULL || new.text == NULL) {
        return l2c_fail_nomem(err, strlen(c->text));
    }
    l->items[l->count++] = new;
    return l2c_db_poll(l->db, err);
}

static int by_name(const void *a, const void *b) {
    const line *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->order > y->order) - (x->order < y->order);
}

/* Groups of one are dropped; what stays moves up. */
static l2cdb_status group(l2c_parallel *p, lines *l, l2cdb_error *err) {
    if (l->count > 1) {
        qsort(l->items, l->count, sizeof *l->items, by_name);
    }
    p->first = l2c_calloc(l->count + 1, sizeof *p->first);
    if (p->first == NULL) {
        return l2c_fail_nomem(err, (l->count + 1) * sizeof *p->first);
    }
    for (size_t i = 0, end; i < l->count; i = end) {
        for (end = i + 1; end < l->count && strcmp(l->items[end].name, l->items[i].name) == 0;) {
            end++;
        }
        if (end - i >= 2) {
            memmove(l->items + p->captions, l->items + i, (end - i) * sizeof *l->items);
            p->captions += end - i;
            p->first[++p->groups] = p->captions;
        }
    }
    return L2CDB_OK;
}

static l2cdb_status encode(l2c_parallel *p, const lines *l, l2c_view *v, l2cdb_progress_fn progress,
                           void *ctx, l2cdb_error *err) {
    l2c_model *model;
    l2cdb_status rc = l2c_view_model(l->db, v, &model, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const size_t width = l2c_model_get_info(model)->text_width;
    p->texts = l2c_alloc_aligned(p->captions * width, sizeof *p->texts);
    if (p->texts == NULL) {
        return l2c_fail_nomem(err, p->captions * width * sizeof *p->texts);
    }
    l2c_meter meter;
    l2c_meter_start(&meter, progress, ctx, "captions", p->captions);
    const char *texts[BATCH];
    for (size_t done = 0; done < p->captions && rc == L2CDB_OK;) {
        size_t n = p->captions - done < BATCH ? p->captions - done : BATCH;
        for (size_t i = 0; i < n; i++) {
            texts[i] = l->items[done + i].text;
        }
        rc = l2c_encode_texts(l->db, v, texts, n, NULL, p->texts + done * width, err);
        done += n;
        if (rc == L2CDB_OK && !l2c_meter_tick(&meter, done, "")) {
            rc = l2c_fail(err, L2CDB_E_CANCELLED, "stopped after %zu captions", done);
        }
    }
    return rc;
}

static l2cdb_status names_for(lines *l, const char *path, l2cdb_error *err) {
    const char *base = l2c_path_base(path);
    char *dir = l2c_strndup(path, (size_t)(base - path));
    if (dir == NULL) {
        return l2c_fail_nomem(err, strlen(path));
    }
    const char *dirs[] = { *dir != '\0' ? dir : "." };
    l2cdb_status rc = l2c_photo_names_new(&l->names, l->db, dirs, 1, err);
    l2c_free(dir);
    return rc;
}

l2cdb_status l2c_parallel_read(l2c_parallel *p, l2cdb *db, l2c_view *v, const char *path,
                               l2cdb_progress_fn progress, void *ctx, l2cdb_error *err) {
    *p = (l2c_parallel){ 0 };
    lines l = { .db = db };
    l2c_arena_init(&l.arena, 0);
    l2cdb_status rc = names_for(&l, path, err);
    if (rc == L2CDB_OK) {
        rc = l2c_captions_read(path, take_line, &l, err);
    }
    if (rc == L2CDB_OK) {
        rc = group(p, &l, err);
    }
    if (rc == L2CDB_OK && p->groups > 0) {
        rc = encode(p, &l, v, progress, ctx, err);
    }
    l2c_photo_names_free(l.names);
    l2c_free(l.items);
    l2c_arena_fini(&l.arena);
    if (rc != L2CDB_OK) {
        l2c_parallel_fini(p);
    }
    return rc;
}

void l2c_parallel_fini(l2c_parallel *p) {
    l2c_free(p->first);
    l2c_free(p->texts);
    *p = (l2c_parallel){ 0 };
}
