/* Named tensors; see tensors.h. What is common to all weight files: the set itself, conversions,
 * and finding out which reader a file needs. */
#include "encoders/tensors.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/vec.h"

#define INDEX_BYTES_MAX (16u << 20)

static const struct {
    const char *name;
    uint8_t bytes;
    bool is_float;
} dtypes[] = {
    [L2C_DTYPE_F32] = { "F32", 4, true },    [L2C_DTYPE_F16] = { "F16", 2, true },
    [L2C_DTYPE_BF16] = { "BF16", 2, true },  [L2C_DTYPE_F64] = { "F64", 8, true },
    [L2C_DTYPE_I8] = { "I8", 1, false },     [L2C_DTYPE_U8] = { "U8", 1, false },
    [L2C_DTYPE_I16] = { "I16", 2, false },   [L2C_DTYPE_U16] = { "U16", 2, false },
    [L2C_DTYPE_I32] = { "I32", 4, false },   [L2C_DTYPE_U32] = { "U32", 4, false },
    [L2C_DTYPE_I64] = { "I64", 8, false },   [L2C_DTYPE_U64] = { "U64", 8, false },
    [L2C_DTYPE_BOOL] = { "BOOL", 1, false },
};

const char *l2c_dtype_name(l2c_dtype d) {
    return dtypes[d].name;
}

size_t l2c_dtype_bytes(l2c_dtype d) {
    return dtypes[d].bytes;
}

bool l2c_dtype_is_float(l2c_dtype d) {
    return dtypes[d].is_float;
}

bool l2c_dtype_parse(l2c_dtype *out, const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *out = (l2c_dtype)i;
            return true;
        }
    }
    return false;
}

void l2c_tensors_init(l2c_tensors *s) {
    *s = (l2c_tensors){ 0 };
    l2c_arena_init(&s->arena, 1 << 16);
}

void l2c_tensors_fini(l2c_tensors *s) {
    for (size_t i = 0; i < s->maps_count; i++) {
        l2c_map_close(&s->maps[i]);
    }
    l2c_free(s->maps);
    l2c_free(s->items);
    l2c_arena_fini(&s->arena);
    l2c_tensors_init(s);
}

l2c_tensor *l2c_tensors_add(l2c_tensors *s, const l2c_tensor *t, const char *name, size_t n) {
    if (s->count == s->capacity) {
        size_t capacity = s->capacity > 0 ? s->capacity * 2 : 64;
        l2c_tensor *items = l2c_realloc(s->items, capacity, sizeof *items);
        if (items == NULL) {
            return NULL;
        }
        s->items = items;
        s->capacity = capacity;
    }
    char *copy = l2c_arena_alloc(&s->arena, n + 1, 1);
    if (copy == NULL) {
        return NULL;
    }
    memcpy(copy, name, n);
    copy[n] = '\0';
    l2c_tensor *slot = &s->items[s->count++];
    *slot = *t;
    slot->name = copy;
    return slot;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const l2c_tensor *)a)->name, ((const l2c_tensor *)b)->name);
}

l2cdb_status l2c_tensors_seal(l2c_tensors *s, const char *what, l2cdb_error *err) {
    if (s->count > 1) {
        qsort(s->items, s->count, sizeof *s->items, by_name);
    }
    for (size_t i = 1; i < s->count; i++) {
        if (strcmp(s->items[i - 1].name, s->items[i].name) == 0) {
            return l2c_fail(err, L2CDB_E_FORMAT, "%s: tensor \"%.120s\" appears twice", what,
                            s->items[i].name);
        }
    }
    return L2CDB_OK;
}

const l2c_tensor *l2c_tensors_find(const l2c_tensors *s, const char *name) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(s->items[middle].name, name);
        if (order == 0) {
            return &s->items[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

/* ---- Conversion ------------------------------------------------------------------------------ */

void l2c_tensor_slice_f32(const l2c_tensor *t, size_t first, size_t n, float *out) {
    const char *p = (const char *)t->data;
    if (n == 0) {
        return;
    }
    switch (t->dtype) {
    case L2C_DTYPE_F32:
        memcpy(out, p + first * 4, n * 4);
        return;
    case L2C_DTYPE_F16:
    case L2C_DTYPE_BF16: {
        // Through a small aligned block: the data may lie at an odd address.
        uint16_t block[1024];
        for (size_t i = 0; i < n; i += 1024) {
            size_t m = n - i < 1024 ? n - i : 1024;
            memcpy(block, p + (first + i) * 2, m * 2);
            if (t->dtype == L2C_DTYPE_F16) {
                l2c_vec_from_f16(out + i, block, m);
            } else {
                l2c_vec_from_bf16(out + i, block, m);
            }
        }
        return;
    }
    case L2C_DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + (first + i) * 8, 8);
            out[i] = (float)v;
        }
        return;
    case L2C_DTYPE_I8:
        for (size_t i = 0; i < n; i++) {
            out[i] = (float)((const int8_t *)t->data)[first + i];
        }
        return;
    default:
        memset(out, 0, n * sizeof *out);
        return;
    }
}

void l2c_tensor_to_f32(const l2c_tensor *t, float *out) {
    l2c_tensor_slice_f32(t, 0, t->count, out);
}

bool l2c_tensor_finite(const l2c_tensor *t, size_t *at) {
    if (!l2c_dtype_is_float(t->dtype)) {
        return true;
    }
    float block[2048];
    for (size_t i = 0; i < t->count; i += 2048) {
        size_t m = t->count - i < 2048 ? t->count - i : 2048;
        l2c_tensor_slice_f32(t, i, m, block);
        if (l2c_vec_finite(block, m)) {
            continue;
        }
        for (size_t k = 0; k < m; k++) {
            if (!isfinite(block[k])) {
                if (at != NULL) {
                    *at = i + k;
                }
                return false;
            }
        }
    }
    return true;
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* Maps a file and gives it to the set, which unmaps it. */
static l2cdb_status keep_map(l2c_tensors *s, const char *path, l2c_map *out, l2cdb_error *err) {
    l2c_map *maps = l2c_realloc(s->maps, s->maps_count + 1, sizeof *maps);
    if (maps == NULL) {
        return l2c_fail_nomem(err, (s->maps_count + 1) * sizeof *maps);
    }
    s->maps = maps;
    l2cdb_status rc = l2c_map_open(&maps[s->maps_count], path, err);
    if (rc == L2CDB_OK) {
        *out = maps[s->maps_count++];
    }
    return rc;
}

/* A guess at what a file is that is no weight file, for the message. */
static const char *disguise(const uint8_t *p, size_t n) {
    static const struct {
        const char *start, *name;
        size_t size, at;
    } kinds[] = {
        { "version https://git-lfs", "a Git LFS pointer, not the file itself", 23, 0 },
        { "\x1f\x8b", "a gzip file", 2, 0 },
        { "<!DOCTYPE", "a web page", 9, 0 },
        { "<!doctype", "a web page", 9, 0 },
        { "<html", "a web page", 5, 0 },
        { "ustar", "a tar file", 5, 257 },
        { "GGUF", "a GGUF file", 4, 0 },
        { "\x80\x02", "a pickle from before torch 1.6", 2, 0 },
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (n >= kinds[i].at + kinds[i].size &&
            memcmp(p + kinds[i].at, kinds[i].start, kinds[i].size) == 0) {
            return kinds[i].name;
        }
    }
    return NULL;
}

static l2cdb_status read_any(l2c_tensors *s, const l2c_map *map, const char *path,
                             l2cdb_error *err) {
    if (map->size >= 4 && memcmp(map->data, "PK\3\4", 4) == 0) {
        return l2c_torch_read(s, map->data, map->size, path, err);
    }
    const char *kind = map->size > 0 ? disguise(map->data, map->size) : NULL;
    if (kind != NULL) {
        l2c_fail(err, L2CDB_E_FORMAT, "%s is %s; expected safetensors or a torch .pt", path, kind);
        return l2c_hint(err, "download the file again, with its contents");
    }
    size_t n = strlen(path);
    if (n > 3 && (strcmp(path + n - 3, ".pt") == 0 || strcmp(path + n - 4, ".bin") == 0)) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s is not a torch file (no zip archive)", path);
    }
    return l2c_safetensors_read(s, map->data, map->size, path, err);
}

l2cdb_status l2c_tensors_open(l2c_tensors *s, const char *path, l2cdb_error *err) {
    l2c_tensors_init(s);
    l2c_map map = { 0 };
    l2cdb_status rc = keep_map(s, path, &map, err);
    if (rc == L2CDB_OK) {
        rc = read_any(s, &map, path, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tensors_seal(s, path, err);
    }
    if (rc != L2CDB_OK) {
        l2c_tensors_fini(s);
    }
    return rc;
}

/* One file of a sharded model: the tensors that the index assigns to it, and no others. */
static l2cdb_status open_shard(l2c_tensors *s, const char *dir, const char *file,
                               const json_t *weight_map, const char *index, l2cdb_error *err) {
    char *path = l2c_path_join(dir, file);
    if (path == NULL) {
        return l2c_fail_nomem(err, strlen(dir) + strlen(file));
    }
    l2c_tensors shard;
    l2c_tensors_init(&shard);
    l2c_map map = { 0 };
    l2cdb_status rc = keep_map(s, path, &map, err);
    if (rc == L2CDB_OK) {
        rc = l2c_safetensors_read(&shard, map.data, map.size, path, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tensors_seal(&shard, path, err);
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, name, value) {
        if (rc != L2CDB_OK || strcmp(json_string_value(value), file) != 0) {
            continue;
        }
        const l2c_tensor *t = l2c_tensors_find(&shard, name);
        if (t == NULL) {
            rc = l2c_fail(err, L2CDB_E_FORMAT, "%s puts \"%.120s\" into %s, which lacks it", index,
                          name, file);
        } else if (l2c_tensors_add(s, t, name, strlen(name)) == NULL) {
            rc = l2c_fail_nomem(err, sizeof *t);
        }
    }
    l2c_tensors_fini(&shard);
    l2c_free(path);
    return rc;
}

static l2cdb_status open_index(l2c_tensors *s, const char *dir, const char *index,
                               l2cdb_error *err) {
    json_t *root;
    l2cdb_status rc = l2c_json_read(&root, index, INDEX_BYTES_MAX, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0) {
        rc = l2c_fail(err, L2CDB_E_FORMAT,
                      "%s: expected \"weight_map\" to be an object of tensor names to file names",
                      index);
    }
    // First pass: names only, before any file is touched.
    const char *name;
    json_t *value;
    const char *files[1024];
    size_t files_count = 0;
    json_object_foreach((json_t *)(uintptr_t)weight_map, name, value) {
        const char *file = json_string_value(value);
        if (rc != L2CDB_OK) {
            break;
        }
        if (file == NULL || file[0] == '\0' || strpbrk(file, "/\\") != NULL ||
            strcmp(file, ".") == 0 || strcmp(file, "..") == 0) {
            rc = l2c_fail(err, L2CDB_E_FORMAT,
                          "%s: the file of \"%.120s\" is not a plain file name", index, name);
            break;
        }
        size_t i = 0;
        while (i < files_count && strcmp(files[i], file) != 0) {
            i++;
        }
        if (i == files_count) {
            if (files_count == sizeof files / sizeof files[0]) {
                rc = l2c_fail(err, L2CDB_E_LIMIT, "%s names more than %zu files", index, i);
                break;
            }
            files[files_count++] = file;
        }
    }
    for (size_t i = 0; rc == L2CDB_OK && i < files_count; i++) {
        rc = open_shard(s, dir, files[i], weight_map, index, err);
    }
    json_decref(root);
    return rc == L2CDB_OK ? l2c_tensors_seal(s, index, err) : rc;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* The only file of a directory whose name ends so (`other` may be NULL); *out NULL if there is
 * none, E_INVALID if there are several. */
static l2cdb_status find_single(char **out, const char *dir, const char *end, const char *other,
                                l2cdb_error *err) {
    *out = NULL;
    DIR *d = opendir(dir);
    if (d == NULL) {
        return l2c_fail(err, L2CDB_E_NOTFOUND, "could not read the directory %s", dir);
    }
    l2cdb_status rc = L2CDB_OK;
    for (struct dirent *e; rc == L2CDB_OK && (e = readdir(d)) != NULL;) {
        if (!ends_with(e->d_name, end) && (other == NULL || !ends_with(e->d_name, other))) {
            continue;
        }
        if (*out != NULL) {
            rc = l2c_fail(err, L2CDB_E_INVALID, "%s holds several weight files (%s, %s)", dir,
                          l2c_path_base(*out), e->d_name);
            l2c_hint(err, "name one of the files instead of the directory");
        } else if ((*out = l2c_path_join(dir, e->d_name)) == NULL) {
            rc = l2c_fail_nomem(err, 256);
        }
    }
    closedir(d);
    if (rc != L2CDB_OK) {
        l2c_free(*out);
        *out = NULL;
    }
    return rc;
}

l2cdb_status l2c_tensors_find_torch(char **out, const char *dir, l2cdb_error *err) {
    return find_single(out, dir, ".pt", NULL, err);
}

l2cdb_status l2c_tensors_open_dir(l2c_tensors *s, const char *dir, l2cdb_error *err) {
    l2c_tensors_init(s);
    char *single = l2c_path_join(dir, "model.safetensors");
    char *index = l2c_path_join(dir, "model.safetensors.index.json");
    l2cdb_status rc;
    if (single == NULL || index == NULL) {
        rc = l2c_fail_nomem(err, strlen(dir));
    } else if (l2c_path_exists(single)) {
        rc = l2c_tensors_open(s, single, err);
    } else if (l2c_path_exists(index)) {
        rc = open_index(s, dir, index, err);
    } else {
        l2c_free(single);
        rc = find_single(&single, dir, ".safetensors", ".pt", err);
        if (rc == L2CDB_OK && single == NULL) {
            rc = l2c_fail(err, L2CDB_E_NOTFOUND,
                          "%s holds no weights (model.safetensors, model.safetensors.index.json, a "
                          ".safetensors or a .pt file)",
                          dir);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_tensors_open(s, single, err);
        }
    }
    l2c_free(single);
    l2c_free(index);
    if (rc != L2CDB_OK) {
        l2c_tensors_fini(s);
    }
    return rc;
}
