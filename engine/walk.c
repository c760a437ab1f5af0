/* Links to directories are not followed: they make circles, and what they lead to is reached by
 * its own name or was left out on purpose. */
#include "engine/walk.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/file.h"
#include "engine/ignore.h"

#define DEPTH_MAX 200

typedef struct walk {
    const l2c_walk_options *options;
    size_t root_n; /* bytes of the root with its slash */
    l2c_ignore ignore;
    unsigned depth;
} walk;

typedef struct name_list {
    char **names;
    size_t count, capacity;
} name_list;

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(name_list *l) {
    for (size_t i = 0; i < l->count; i++) {
        l2c_free(l->names[i]);
    }
    l2c_free(l->names);
}

static bool add_name(name_list *l, const char *name) {
    if (l->count == l->capacity) {
        size_t capacity = l->capacity != 0 ? l->capacity * 2 : 64;
        char **more = l2c_realloc(l->names, capacity, sizeof *more);
        if (more == NULL) {
            return false;
        }
        l->names = more;
        l->capacity = capacity;
    }
    l->names[l->count] = l2c_strdup(name);
    return l->names[l->count] != NULL && ++l->count > 0;
}

static l2cdb_status list_names(name_list *l, const char *dir, walk *w, l2cdb_error *err) {
    DIR *d = opendir(dir);
    if (d == NULL) {
        l2cdb_error why;
        l2c_fail_errno(&why, errno, "the directory cannot be read");
        w->options->on_problem(w->options->ctx, dir, why.message);
        return L2CDB_OK;
    }
    l2cdb_status rc = L2CDB_OK;
    for (struct dirent *e; rc == L2CDB_OK && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] != '.' && !add_name(l, e->d_name)) {
            rc = l2c_fail_nomem(err, strlen(e->d_name));
        }
    }
    closedir(d);
    if (l->count > 1) {
        qsort(l->names, l->count, sizeof *l->names, by_name);
    }
    return rc;
}

static l2cdb_status walk_dir(walk *w, const char *dir, l2cdb_error *err);

static l2cdb_status visit(walk *w, const char *path, l2cdb_error *err) {
    const l2c_walk_options *o = w->options;
    struct stat st, link;
    if (lstat(path, &link) != 0 || stat(path, &st) != 0) {
        l2cdb_error why;
        l2c_fail_errno(&why, errno, "cannot be looked at");
        o->on_problem(o->ctx, path, why.message);
        return L2CDB_OK;
    }
    bool is_dir = S_ISDIR(st.st_mode);
    if (l2c_ignore_matches(&w->ignore, path + w->root_n, is_dir)) {
        o->on_excluded(o->ctx, path, "excluded by a pattern");
        return L2CDB_OK;
    }
    if (is_dir && S_ISLNK(link.st_mode)) {
        o->on_excluded(o->ctx, path, "links to directories are not followed");
        return L2CDB_OK;
    }
    if (is_dir) {
        return walk_dir(w, path, err);
    }
    return S_ISREG(st.st_mode) ? o->on_file(o->ctx, path, &st, err) : L2CDB_OK;
}

static l2cdb_status read_ignores(walk *w, const char *dir, l2cdb_error *err) {
    char *file = l2c_path_join(dir, ".l2cdbignore");
    const char *relative = strlen(dir) > w->root_n ? dir + w->root_n : "";
    l2c_buf base;
    l2c_buf_init(&base);
    l2c_buf_printf(&base, "%s%s", relative, *relative != '\0' ? "/" : "");
    l2cdb_status rc = file != NULL && !base.failed
                          ? l2c_ignore_read(&w->ignore, base.data, file, err)
                          : l2c_fail_nomem(err, 0);
    l2c_buf_fini(&base);
    l2c_free(file);
    return rc;
}

static l2cdb_status walk_dir(walk *w, const char *dir, l2cdb_error *err) {
    if (w->depth == DEPTH_MAX) {
        w->options->on_problem(w->options->ctx, dir, "directories are nested too deeply");
        return L2CDB_OK;
    }
    size_t rules = w->ignore.count;
    name_list list = { 0 };
    w->depth++;
    l2cdb_status rc = read_ignores(w, dir, err);
    if (rc == L2CDB_OK) {
        rc = list_names(&list, dir, w, err);
    }
    for (size_t i = 0; i < list.count && rc == L2CDB_OK; i++) {
        char *path = l2c_path_join(dir, list.names[i]);
        rc = path != NULL ? visit(w, path, err) : l2c_fail_nomem(err, 0);
        l2c_free(path);
    }
    w->depth--;
    l2c_ignore_truncate(&w->ignore, rules);
    free_names(&list);
    return rc;
}

l2cdb_status l2c_walk(const char *root, const l2c_walk_options *o, l2cdb_error *err) {
    walk w = { .options = o, .root_n = strlen(root) + (strcmp(root, "/") == 0 ? 0 : 1) };
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < o->excludes_count && rc == L2CDB_OK; i++) {
        rc = l2c_ignore_add(&w.ignore, "", o->excludes[i], err);
    }
    if (rc == L2CDB_OK) {
        rc = walk_dir(&w, root, err);
    }
    l2c_ignore_fini(&w.ignore);
    return rc;
}
