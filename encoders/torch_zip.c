/* torch's .pt files: a zip of stored entries around one pickle. Reads what `torch.save` writes for
 * state dicts and training checkpoints. Source: design notes 8.3; PKWARE APPNOTE 6.3 for zip.
 *
 * Sizes come from the central directory; each entry's bytes must lie between its own local header
 * and the directory. Compressed entries are refused, so nothing can inflate. Dense tensors point
 * into the file; views with strides are copied out, and the copies together may not exceed a few
 * times the file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/pickle.h"

typedef struct entry {
    const char *name; /* name_bytes, not terminated */
    size_t name_bytes;
    const uint8_t *data;
    size_t bytes;
} entry;

typedef struct archive {
    const uint8_t *p;
    size_t n;
    entry *entries; /* sorted by name */
    size_t count;
    const char *what;
    l2cdb_error *err;
} archive;

static l2cdb_status broken(const archive *a, const char *why) {
    return l2c_fail(a->err, L2CDB_E_FORMAT, "%s: zip archive: %s", a->what, why);
}

static uint64_t number(const uint8_t *p, size_t k) {
    uint64_t v = 0;
    for (size_t i = k; i > 0; i--) {
        v = v << 8 | p[i - 1];
    }
    return v;
}

typedef struct directory {
    uint64_t count, bytes, offset;
    size_t end; /* nothing of the directory lies at or behind this */
} directory;

/* With a zip64 locator before it, the end record is only an excerpt. */
static l2cdb_status read_zip64(const archive *a, size_t end_record, directory *d) {
    const uint8_t *locator = a->p + end_record - 20;
    uint64_t at = number(locator + 8, 8);
    if (at > end_record - 20 || end_record - 20 - at < 56 || memcmp(a->p + at, "PK\6\6", 4) != 0) {
        return broken(a, "the zip64 record is not where its locator points");
    }
    const uint8_t *record = a->p + at;
    *d = (directory){ number(record + 32, 8), number(record + 40, 8), number(record + 48, 8),
                      (size_t)at };
    return L2CDB_OK;
}

static l2cdb_status find_directory(const archive *a, directory *d) {
    // The end record is the last one whose comment reaches exactly to the end of the file; a
    // comment may itself hold such a record, so later candidates must also make sense.
    for (size_t back = 22; back <= a->n && back <= 22 + 65535; back++) {
        const uint8_t *p = a->p + a->n - back;
        if (memcmp(p, "PK\5\6", 4) != 0 || number(p + 20, 2) != back - 22) {
            continue;
        }
        size_t at = a->n - back;
        *d = (directory){ number(p + 10, 2), number(p + 12, 4), number(p + 16, 4), at };
        if (number(p + 4, 2) != 0 || number(p + 6, 2) != 0 || number(p + 8, 2) != d->count) {
            continue;
        }
        if (at >= 20 && memcmp(p - 20, "PK\6\7", 4) == 0) {
            l2cdb_status rc = read_zip64(a, at, d);
            if (rc != L2CDB_OK) {
                return rc;
            }
        }
        if (d->offset > d->end || d->bytes > d->end - d->offset || d->count > d->bytes / 46) {
            continue;
        }
        return L2CDB_OK;
    }
    return broken(a, "no directory at the end; the file may have been cut");
}

/* Zip64 sizes live in extra field 1, in this order, those only whose 32-bit form is all ones. */
static bool read_extra64(const uint8_t *extra, size_t n, uint64_t *size, uint64_t *packed,
                         uint64_t *offset) {
    bool want_size = *size == UINT32_MAX, want_packed = *packed == UINT32_MAX;
    bool want_offset = *offset == UINT32_MAX;
    while (n >= 4) {
        uint64_t id = number(extra, 2), bytes = number(extra + 2, 2);
        if (bytes > n - 4) {
            return false;
        }
        if (id == 1) {
            const uint8_t *p = extra + 4;
            uint64_t *wanted[] = { want_size ? size : NULL, want_packed ? packed : NULL,
                                   want_offset ? offset : NULL };
            for (int i = 0; i < 3; i++) {
                if (wanted[i] == NULL) {
                    continue;
                }
                if (bytes < 8) {
                    return false;
                }
                *wanted[i] = number(p, 8);
                p += 8;
                bytes -= 8;
            }
            return true;
        }
        extra += 4 + bytes;
        n -= 4 + (size_t)bytes;
    }
    return !want_size && !want_packed && !want_offset;
}

/* "root/data/0": no climbing, no absolute path. */
static bool name_is_safe(const char *name, size_t n) {
    if (n == 0 || name[0] == '/' || memchr(name, '\\', n) != NULL || memchr(name, 0, n) != NULL) {
        return false;
    }
    size_t start = 0;
    for (size_t i = 0; i <= n; i++) {
        if (i == n || name[i] == '/') {
            if (i - start == 2 && name[start] == '.' && name[start + 1] == '.') {
                return false;
            }
            start = i + 1;
        }
    }
    return true;
}

static l2cdb_status read_entry(const archive *a, const directory *d, const uint8_t *p, size_t room,
                               entry *e, size_t *used) {
    if (room < 46 || memcmp(p, "PK\1\2", 4) != 0) {
        return broken(a, "the directory is shorter than announced");
    }
    size_t name_bytes = (size_t)number(p + 28, 2), extra_bytes = (size_t)number(p + 30, 2);
    *used = 46 + name_bytes + extra_bytes + (size_t)number(p + 32, 2);
    if (*used > room) {
        return broken(a, "a name is longer than the directory");
    }
    e->name = (const char *)p + 46;
    e->name_bytes = name_bytes;
    if (!name_is_safe(e->name, name_bytes)) {
        return broken(a, "the name of an entry leaves the archive");
    }
    uint64_t flags = number(p + 8, 2), method = number(p + 10, 2);
    if ((flags & 1) != 0 || method != 0) {
        return l2c_fail(a->err, L2CDB_E_UNSUPPORTED,
                        "%s: entry \"%.*s\" is %s; torch stores plain entries", a->what,
                        (int)(name_bytes < 100 ? name_bytes : 100), e->name,
                        (flags & 1) != 0 ? "encrypted" : "compressed");
    }
    uint64_t packed = number(p + 20, 4), size = number(p + 24, 4), at = number(p + 42, 4);
    if (!read_extra64(p + 46 + name_bytes, extra_bytes, &size, &packed, &at) || packed != size) {
        return broken(a, "the sizes of an entry contradict each other");
    }
    if (at > d->offset || d->offset - at < 30 || memcmp(a->p + at, "PK\3\4", 4) != 0) {
        return broken(a, "an entry is not where the directory says");
    }
    const uint8_t *local = a->p + at;
    size_t head = 30 + (size_t)number(local + 26, 2) + (size_t)number(local + 28, 2);
    uint64_t room_behind = d->offset - at;
    if (head > room_behind || size > room_behind - head) {
        return broken(a, "an entry is larger than the file");
    }
    if (number(local + 26, 2) != name_bytes || memcmp(local + 30, e->name, name_bytes) != 0 ||
        number(local + 8, 2) != 0) {
        return broken(a, "an entry's own header contradicts the directory");
    }
    e->data = local + head;
    e->bytes = (size_t)size;
    return L2CDB_OK;
}

static int compare_names(const char *a, size_t an, const char *b, size_t bn) {
    int order = memcmp(a, b, an < bn ? an : bn);
    return order != 0 ? order : (an > bn) - (an < bn);
}

static int by_name(const void *a, const void *b) {
    const entry *x = a, *y = b;
    return compare_names(x->name, x->name_bytes, y->name, y->name_bytes);
}

static const entry *find_entry(const archive *a, const char *name, size_t n) {
    entry key = { .name = name, .name_bytes = n };
    return a->count > 0 ? bsearch(&key, a->entries, a->count, sizeof key, by_name) : NULL;
}

static l2cdb_status read_directory(archive *a) {
    directory d = { 0 };
    l2cdb_status rc = find_directory(a, &d);
    if (rc != L2CDB_OK) {
        return rc;
    }
    a->entries = l2c_alloc((size_t)d.count, sizeof *a->entries);
    if (a->entries == NULL) {
        return l2c_fail_nomem(a->err, d.count * sizeof *a->entries);
    }
    size_t at = (size_t)d.offset, end = at + (size_t)d.bytes;
    for (uint64_t i = 0; i < d.count; i++) {
        size_t used = 0;
        rc = read_entry(a, &d, a->p + at, end - at, &a->entries[a->count], &used);
        if (rc != L2CDB_OK) {
            return rc;
        }
        a->count++;
        at += used;
    }
    if (a->count > 1) {
        qsort(a->entries, a->count, sizeof *a->entries, by_name);
    }
    for (size_t i = 1; i < a->count; i++) {
        if (by_name(&a->entries[i - 1], &a->entries[i]) == 0) {
            return broken(a, "two entries have the same name");
        }
    }
    return L2CDB_OK;
}

/* The one "<root>/data.pkl". */
static l2cdb_status find_pickle(const archive *a, const entry **pickle, size_t *root_bytes) {
    static const char tail[] = "/data.pkl", script[] = "/constants.pkl";
    *pickle = NULL;
    for (size_t i = 0; i < a->count; i++) {
        const entry *e = &a->entries[i];
        size_t n = e->name_bytes;
        if (n > strlen(script) &&
            memcmp(e->name + n - strlen(script), script, strlen(script)) == 0) {
            l2c_fail(a->err, L2CDB_E_UNSUPPORTED, "%s is a TorchScript program, not weights",
                     a->what);
            return l2c_hint(a->err, "save the model's state_dict instead");
        }
        const char *slash = memchr(e->name, '/', n);
        if (slash == NULL || n - (size_t)(slash - e->name) != strlen(tail) ||
            memcmp(slash, tail, strlen(tail)) != 0) {
            continue;
        }
        if (*pickle != NULL) {
            return broken(a, "it holds two data.pkl");
        }
        *pickle = e;
        *root_bytes = (size_t)(slash - e->name);
    }
    return *pickle != NULL ? L2CDB_OK : broken(a, "it holds no data.pkl; not a file of torch.save");
}

/* "<root>/<middle><name>" */
static const entry *find_below(const archive *a, const char *root, size_t root_bytes,
                               const char *middle, const char *name) {
    char path[512];
    int n = snprintf(path, sizeof path, "%.*s/%s%s", (int)root_bytes, root, middle, name);
    return n > 0 && (size_t)n < sizeof path ? find_entry(a, path, (size_t)n) : NULL;
}

/* ---- From the pickle to tensors -------------------------------------------------------------- */

static bool has_tensors(const l2c_pickle *dict) {
    if (dict == NULL || dict->kind != L2C_PICKLE_DICT) {
        return false;
    }
    for (uint32_t i = 1; i < dict->count; i += 2) {
        if (dict->items[i]->kind == L2C_PICKLE_TENSOR) {
            return true;
        }
    }
    return false;
}

/* The dictionary of weights: the top itself, or nested one level under one of these. */
static const l2c_pickle *find_weights(const l2c_pickle *top) {
    static const char *const keys[] = { "model", "module", "state_dict" };
    for (int i = 0; i < 3; i++) {
        const l2c_pickle *inner = l2c_pickle_get(top, keys[i]);
        if (has_tensors(inner)) {
            return inner;
        }
    }
    return has_tensors(top) ? top : NULL;
}

static bool is_dense(const l2c_pickle_tensor *t) {
    size_t step = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != step) {
            return false;
        }
        step *= t->shape[i];
    }
    return true;
}

/* Row-major copy of a strided view. */
static void copy_view(uint8_t *out, const uint8_t *data, const l2c_pickle_tensor *t, size_t item) {
    size_t index[L2C_TENSOR_DIMS_MAX] = { 0 };
    size_t at = t->offset;
    for (size_t i = 0; i < t->count; i++) {
        memcpy(out + i * item, data + at * item, item);
        for (int k = t->ndim - 1; k >= 0; k--) {
            at += t->stride[k];
            if (++index[k] < t->shape[k]) {
                break;
            }
            at -= t->stride[k] * t->shape[k];
            index[k] = 0;
        }
    }
}

typedef struct unpacking {
    const archive *a;
    l2c_tensors *set;
    const char *root;
    size_t root_bytes;
    size_t copies_left; /* bytes */
} unpacking;

static l2cdb_status add_tensor(unpacking *u, const char *name, const l2c_pickle_tensor *t) {
    const archive *a = u->a;
    const entry *e = find_below(a, u->root, u->root_bytes, "data/", t->storage->key);
    size_t item = l2c_dtype_bytes(t->storage->dtype);
    if (e == NULL || e->bytes < t->storage->numel * item) {
        return l2c_fail(a->err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\": its storage %s has %zu bytes, expected %zu",
                        a->what, name, t->storage->key, e != NULL ? e->bytes : 0,
                        t->storage->numel * item);
    }
    l2c_tensor out = { .dtype = t->storage->dtype, .ndim = t->ndim, .count = t->count };
    memcpy(out.shape, t->shape, sizeof out.shape);
    out.bytes = t->count * item;
    out.data = e->data + t->offset * item;
    if (!is_dense(t) && t->count > 0) {
        if (out.bytes > u->copies_left) {
            return l2c_fail(a->err, L2CDB_E_LIMIT,
                            "%s: its views repeat one another many times over", a->what);
        }
        u->copies_left -= out.bytes;
        uint8_t *copy = l2c_arena_alloc(&u->set->arena, out.bytes, 1);
        if (copy == NULL) {
            return l2c_fail_nomem(a->err, out.bytes);
        }
        copy_view(copy, e->data, t, item);
        out.data = copy;
    }
    return l2c_tensors_add(u->set, &out, name, strlen(name)) != NULL
               ? L2CDB_OK
               : l2c_fail_nomem(a->err, sizeof out);
}

static l2cdb_status unpack(unpacking *u, const l2c_pickle *weights) {
    for (uint32_t i = 0; i + 1 < weights->count; i += 2) {
        const l2c_pickle *key = weights->items[i], *value = weights->items[i + 1];
        if (value->kind != L2C_PICKLE_TENSOR) {
            continue;
        }
        if (key->kind != L2C_PICKLE_STRING) {
            return l2c_fail(u->a->err, L2CDB_E_FORMAT, "%s: the name of a tensor is not a string",
                            u->a->what);
        }
        l2cdb_status rc = add_tensor(u, key->string, value->tensor);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    return L2CDB_OK;
}

static l2cdb_status read_archive(archive *a, l2c_tensors *s, l2c_arena *arena) {
    const entry *pickle;
    size_t root_bytes = 0;
    l2cdb_status rc = read_directory(a);
    if (rc == L2CDB_OK) {
        rc = find_pickle(a, &pickle, &root_bytes);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    const char *root = pickle->name;
    const entry *order = find_below(a, root, root_bytes, "", "byteorder");
    if (order != NULL && (order->bytes != 6 || memcmp(order->data, "little", 6) != 0)) {
        return l2c_fail(a->err, L2CDB_E_UNSUPPORTED, "%s: its numbers are not little-endian",
                        a->what);
    }
    const l2c_pickle *top;
    rc = l2c_pickle_run(&top, arena, pickle->data, pickle->bytes, a->what, a->err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const l2c_pickle *weights = find_weights(top);
    if (weights == NULL) {
        return l2c_fail(a->err, L2CDB_E_FORMAT,
                        "%s: expected a dictionary of tensors, perhaps under \"model\", \"module\" "
                        "or \"state_dict\"; found none",
                        a->what);
    }
    unpacking u = { a, s, root, root_bytes, a->n * 4 };
    return unpack(&u, weights);
}

l2cdb_status l2c_torch_read(l2c_tensors *s, const void *bytes, size_t n, const char *what,
                            l2cdb_error *err) {
    archive a = { .p = bytes, .n = n, .what = what, .err = err };
    if (n < 22) {
        return broken(&a, "too short");
    }
    l2c_arena arena;
    l2c_arena_init(&arena, 1 << 16);
    l2cdb_status rc = read_archive(&a, s, &arena);
    l2c_arena_fini(&arena);
    l2c_free(a.entries);
    return rc;
}
