/* torch's pickles without Python: a stack machine that knows dictionaries, lists, numbers, strings
 * and tensors, and nothing that runs. Private to torch_zip.c and its tests. */
#ifndef L2C_PICKLE_H
#define L2C_PICKLE_H

#include "encoders/tensors.h"

typedef enum l2c_pickle_kind {
    L2C_PICKLE_NONE,
    L2C_PICKLE_BOOL,
    L2C_PICKLE_INT,
    L2C_PICKLE_FLOAT,
    L2C_PICKLE_STRING,
    L2C_PICKLE_TUPLE,
    L2C_PICKLE_LIST,
    L2C_PICKLE_DICT, /* items are key, value, key, value … */
    L2C_PICKLE_GLOBAL,
    L2C_PICKLE_STORAGE,
    L2C_PICKLE_TENSOR,
} l2c_pickle_kind;

typedef struct l2c_pickle_storage {
    l2c_dtype dtype;
    const char *key; /* the entry "<root>/data/<key>" of the archive */
    size_t numel;
} l2c_pickle_storage;

typedef struct l2c_pickle_tensor {
    const l2c_pickle_storage *storage;
    int ndim;
    size_t offset; /* elements */
    size_t shape[L2C_TENSOR_DIMS_MAX], stride[L2C_TENSOR_DIMS_MAX];
    size_t count; /* product of shape, at most storage->numel */
} l2c_pickle_tensor;

typedef struct l2c_pickle {
    uint8_t kind;
    uint8_t mark; /* of the search for cycles */
    uint32_t count, capacity;
    union {
        int64_t integer;    /* BOOL, INT, GLOBAL */
        const char *string; /* count bytes and a NUL; valid UTF-8 without NUL */
        struct l2c_pickle **items;
        l2c_pickle_storage *storage;
        l2c_pickle_tensor *tensor;
    };
} l2c_pickle;

/* Runs the pickle in p[0..n); *out lives in the arena. The graph has no cycle, is at most 100 deep,
 * and every tensor lies inside its storage's numel. E_FORMAT, E_UNSUPPORTED with the byte offset in
 * the message; `what` names the file. */
l2cdb_status l2c_pickle_run(const l2c_pickle **out, l2c_arena *arena, const uint8_t *p, size_t n,
                            const char *what, l2cdb_error *err);
/* The value of a string key of a DICT, or NULL. */
const l2c_pickle *l2c_pickle_get(const l2c_pickle *dict, const char *key);

#endif
