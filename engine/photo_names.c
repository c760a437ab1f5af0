#include "engine/photo_names.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/file.h"

typedef struct named {
    const char *path, *base;
    int64_t id;
} named;

struct l2c_photo_names {
    l2c_arena arena;
    named *items; /* sorted by base, then path */
    size_t count, capacity;
    const char **dirs;
    size_t dirs_count;
    bool failed;
};

static const char *copy(l2c_photo_names *n, const char *text) {
    size_t bytes = strlen(text) + 1;
    char *out = l2c_arena_alloc(&n->arena, bytes, 1);
    if (out == NULL) {
        n->failed = true;
        return NULL;
    }
    return memcpy(out, text, bytes);
}

static bool add(void *ctx, int64_t id, const char *path) {
    l2c_photo_names *n = ctx;
    if (n->count == n->capacity) {
        size_t capacity = n->capacity != 0 ? n->capacity * 2 : 1024;
        named *more = l2c_realloc(n->items, capacity, sizeof *more);
        if (more == NULL) {
            n->failed = true;
            return false;
        }
        n->items = more;
        n->capacity = capacity;
    }
    const char *own = copy(n, path);
    if (own != NULL) {
        n->items[n->count++] = (named){ own, l2c_path_base(own), id };
    }
    return own != NULL;
}

static int by_base(const void *a, const void *b) {
    const named *x = a, *y = b;
    int order = strcmp(x->base, y->base);
    return order != 0 ? order : strcmp(x->path, y->path);
}

l2cdb_status l2c_photo_names_new(l2c_photo_names **out, l2cdb *db, const char *const *dirs,
                                 size_t dirs_count, l2cdb_error *err) {
    l2c_photo_names *n = l2c_calloc(1, sizeof *n);
    *out = n;
    if (n == NULL) {
        return l2c_fail_nomem(err, sizeof *n);
    }
    l2c_arena_init(&n->arena, 0);
    n->dirs = l2c_calloc(dirs_count + 1, sizeof *n->dirs);
    n->failed = n->dirs == NULL;
    for (size_t i = 0; i < dirs_count && !n->failed; i++) {
        n->dirs[n->dirs_count++] = copy(n, dirs[i]);
    }
    l2cdb_status rc = L2CDB_OK;
    if (!n->failed) {
        rc = l2c_images_each_path(db->store, add, n, err);
    }
    if (rc == L2CDB_OK && n->failed) {
        rc = l2c_fail_nomem(err, n->count * sizeof *n->items);
    }
    if (rc != L2CDB_OK) {
        l2c_photo_names_free(n);
        *out = NULL;
        return rc;
    }
    if (n->count > 1) {
        qsort(n->items, n->count, sizeof *n->items, by_base);
    }
    return L2CDB_OK;
}

void l2c_photo_names_free(l2c_photo_names *n) {
    if (n == NULL) {
        return;
    }
    l2c_free(n->items);
    l2c_free(n->dirs);
    l2c_arena_fini(&n->arena);
    l2c_free(n);
}

/* path is dir/name, or name itself when dir is "". */
static bool is_below(const char *path, const char *dir, const char *name) {
    size_t n = strlen(dir);
    if (n == 0) {
        return strcmp(path, name) == 0;
    }
    return strncmp(path, dir, n) == 0 && path[n] == '/' && strcmp(path + n + 1, name) == 0;
}

static bool ends_with(const char *path, const char *name) {
    size_t n = strlen(path), m = strlen(name);
    return n > m && path[n - m - 1] == '/' && strcmp(path + n - m, name) == 0;
}

int64_t l2c_photo_names_find(const l2c_photo_names *n, const char *name) {
    while (name[0] == '.' && name[1] == '/') {
        name += 2;
    }
    const char *base = l2c_path_base(name);
    size_t low = 0, high = n->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(n->items[middle].base, base) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    int64_t by_end = 0;
    bool several = false;
    for (size_t i = low; i < n->count && strcmp(n->items[i].base, base) == 0; i++) {
        const named *item = &n->items[i];
        if (strcmp(item->path, name) == 0) {
            return item->id;
        }
        for (size_t d = 0; d < n->dirs_count; d++) {
            if (is_below(item->path, n->dirs[d], name)) {
                return item->id;
            }
        }
        if (ends_with(item->path, name)) {
            several = several || (by_end != 0 && by_end != item->id);
            by_end = item->id;
        }
    }
    return several ? 0 : by_end;
}
