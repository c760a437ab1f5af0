/* The safetensors format: 8 bytes of length, a JSON header, raw data. A reader that believes
 * nothing, and the header part of a writer.
 *
 * Everything is checked before a pointer is handed out: the header's length, the JSON, types,
 * products of dimensions, and that the tensors' regions follow one another from the first byte of
 * the data to the last, without a hole or an overlap. Stricter than the reference reader in two
 * places: duplicate names and a header that begins with a space are refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/tensors.h"
#include "engine/base/json.h"

/* The format allows 100 MB; real headers take some 100 bytes a tensor. The lower limit bounds what
 * parsing a hostile header can cost. */
#define HEADER_BYTES_MAX (16u << 20)

typedef struct region {
    size_t begin, end;
    const char *name; /* in the JSON tree */
} region;

static int by_begin(const void *a, const void *b) {
    const region *x = a, *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return x->end < y->end ? -1 : x->end > y->end;
}

static l2cdb_status read_shape(l2c_tensor *t, const json_t *entry, const char *name,
                               const char *what, l2cdb_error *err) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape) || json_array_size(shape) > L2C_TENSOR_DIMS_MAX) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\": expected \"shape\" to be at most %d dimensions",
                        what, name, L2C_TENSOR_DIMS_MAX);
    }
    t->ndim = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->ndim; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return l2c_fail(err, L2CDB_E_FORMAT,
                            "%s: tensor \"%.120s\": dimension %d is not a whole number", what, name,
                            i);
        }
        t->shape[i] = (size_t)json_integer_value(dim);
        if (!l2c_mul_size(&t->count, t->count, t->shape[i])) {
            return l2c_fail(err, L2CDB_E_FORMAT, "%s: tensor \"%.120s\" is too large", what, name);
        }
    }
    if (!l2c_mul_size(&t->bytes, t->count, l2c_dtype_bytes(t->dtype))) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: tensor \"%.120s\" is too large", what, name);
    }
    return L2CDB_OK;
}

static l2cdb_status read_entry(l2c_tensor *t, region *r, const json_t *entry, const char *name,
                               size_t data_bytes, const char *what, l2cdb_error *err) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!json_is_object(entry) || dtype == NULL ||
        json_string_length(json_object_get(entry, "dtype")) != strlen(dtype)) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\": expected an object with a \"dtype\"", what, name);
    }
    *t = (l2c_tensor){ 0 };
    if (!l2c_dtype_parse(&t->dtype, dtype)) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: tensor \"%.120s\" has the type \"%.20s\"",
                        what, name, dtype);
    }
    l2cdb_status rc = read_shape(t, entry, name, what, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e) ||
        json_integer_value(b) < 0 || json_integer_value(e) < json_integer_value(b)) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\": expected \"data_offsets\" to be [begin, end]", what,
                        name);
    }
    *r = (region){ (size_t)json_integer_value(b), (size_t)json_integer_value(e), name };
    if (r->end > data_bytes) {
        l2c_fail(err, L2CDB_E_FORMAT,
                 "%s: tensor \"%.120s\" ends at byte %zu of the data, the file has %zu", what, name,
                 r->end, data_bytes);
        return l2c_hint(err, "the file may have been cut; download it again");
    }
    if (r->end - r->begin != t->bytes) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\" has %zu bytes, its shape needs %zu", what, name,
                        r->end - r->begin, t->bytes);
    }
    return L2CDB_OK;
}

static l2cdb_status check_metadata(const json_t *v, const char *what, l2cdb_error *err) {
    const char *key;
    json_t *value;
    bool good = json_is_object(v);
    json_object_foreach((json_t *)(uintptr_t)v, key, value) {
        good = good && json_is_string(value);
    }
    return good ? L2CDB_OK
                : l2c_fail(err, L2CDB_E_FORMAT, "%s: \"__metadata__\" must map strings to strings",
                           what);
}

/* Regions in the order of their begin must tile the data. */
static l2cdb_status check_tiling(region *regions, size_t n, size_t data_bytes, const char *what,
                                 l2cdb_error *err) {
    if (n > 1) {
        qsort(regions, n, sizeof *regions, by_begin);
    }
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (regions[i].begin != at) {
            return l2c_fail(err, L2CDB_E_FORMAT,
                            "%s: tensor \"%.120s\" begins at byte %zu of the data, expected %zu",
                            what, regions[i].name, regions[i].begin, at);
        }
        at = regions[i].end;
    }
    return at == data_bytes
               ? L2CDB_OK
               : l2c_fail(err, L2CDB_E_FORMAT, "%s has %zu bytes of data, its header describes %zu",
                          what, data_bytes, at);
}

l2cdb_status l2c_safetensors_read(l2c_tensors *s, const void *bytes, size_t n, const char *what,
                                  l2cdb_error *err) {
    const uint8_t *p = bytes;
    uint64_t header_bytes = 0;
    if (n < 9) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s has %zu bytes, too few for safetensors", what, n);
    }
    for (int i = 7; i >= 0; i--) {
        header_bytes = header_bytes << 8 | p[i];
    }
    if (header_bytes > n - 8) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s is not safetensors, or was cut: its header would have %llu bytes, the "
                        "file has %zu",
                        what, (unsigned long long)header_bytes, n);
    }
    if (header_bytes > HEADER_BYTES_MAX) {
        return l2c_fail(err, L2CDB_E_LIMIT, "%s: the header has %llu bytes, at most %u are read",
                        what, (unsigned long long)header_bytes, HEADER_BYTES_MAX);
    }
    if (header_bytes == 0 || p[8] != '{') {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: the header does not begin with '{'", what);
    }
    // Not l2c_json_parse: metadata may hold NULs, and nobody reads them.
    json_error_t e;
    json_t *root = json_loadb((const char *)p + 8, (size_t)header_bytes,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (root == NULL) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: the header is not valid JSON: %s (byte %d)", what,
                        e.text, e.position);
    }
    l2cdb_status rc = L2CDB_OK;
    const uint8_t *data = p + 8 + header_bytes;
    size_t data_bytes = n - 8 - (size_t)header_bytes, count = 0;
    region *regions = l2c_alloc(json_object_size(root) + 1, sizeof *regions);
    if (regions == NULL) {
        rc = l2c_fail_nomem(err, json_object_size(root) * sizeof *regions);
    }
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) {
        if (rc != L2CDB_OK) {
            break;
        }
        if (strcmp(name, "__metadata__") == 0) {
            rc = check_metadata(entry, what, err);
            continue;
        }
        l2c_tensor t;
        rc = read_entry(&t, &regions[count], entry, name, data_bytes, what, err);
        if (rc == L2CDB_OK) {
            t.data = data + regions[count++].begin;
            if (l2c_tensors_add(s, &t, name, strlen(name)) == NULL) {
                rc = l2c_fail_nomem(err, sizeof t);
            }
        }
    }
    if (rc == L2CDB_OK) {
        rc = check_tiling(regions, count, data_bytes, what, err);
    }
    l2c_free(regions);
    json_decref(root);
    return rc;
}
