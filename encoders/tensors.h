/* Named tensors over mapped or owned memory: what every weight file becomes.
 *
 *   l2c_tensors set;
 *   l2c_tensors_open(&set, "model.safetensors", &err);
 *   const l2c_tensor *t = l2c_tensors_find(&set, "norm.weight");
 *   l2c_tensor_to_f32(t, out);                      // out f32 [t->count]
 *   l2c_tensors_fini(&set);
 *
 * Tensors are dense and row-major; data may be unaligned (safetensors promises nothing), so read it
 * with memcpy, l2c_vec_from_f16/bf16 or unaligned loads. A set is immutable once opened; any number
 * of threads may read it. Nothing is ever written to a file's memory. */
#ifndef L2C_TENSORS_H
#define L2C_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/file.h"
#include "engine/base/mem.h"

typedef enum l2c_dtype {
    L2C_DTYPE_F32,
    L2C_DTYPE_F16,
    L2C_DTYPE_BF16,
    L2C_DTYPE_F64,
    L2C_DTYPE_I8,
    L2C_DTYPE_U8,
    L2C_DTYPE_I16,
    L2C_DTYPE_U16,
    L2C_DTYPE_I32,
    L2C_DTYPE_U32,
    L2C_DTYPE_I64,
    L2C_DTYPE_U64,
    L2C_DTYPE_BOOL,
} l2c_dtype;

/* "F32", as in a safetensors header; bytes of one element; F32, F16, BF16 or F64. */
const char *l2c_dtype_name(l2c_dtype d);
size_t l2c_dtype_bytes(l2c_dtype d);
bool l2c_dtype_is_float(l2c_dtype d);
/* The other way; false for a name that is not one of these. */
bool l2c_dtype_parse(l2c_dtype *out, const char *name);

#define L2C_TENSOR_DIMS_MAX 8

typedef struct l2c_tensor {
    const char *name; /* lives as long as the set */
    l2c_dtype dtype;
    int ndim; /* 0 for a scalar */
    size_t shape[L2C_TENSOR_DIMS_MAX];
    const void *data; /* count elements, row-major, possibly unaligned */
    size_t count, bytes;
} l2c_tensor;

typedef struct l2c_tensors {
    l2c_tensor *items; /* sorted by name */
    size_t count, capacity;
    l2c_map *maps; /* files kept mapped */
    size_t maps_count;
    l2c_arena arena; /* names, and tensors that had to be copied */
} l2c_tensors;

void l2c_tensors_init(l2c_tensors *s);
/* Unmaps and frees; accepts a set that was only initialised. */
void l2c_tensors_fini(l2c_tensors *s);
/* NULL if there is none of that name. */
const l2c_tensor *l2c_tensors_find(const l2c_tensors *s, const char *name);

/* A weight file by its content: safetensors, or torch's zip. E_NOTFOUND, E_FORMAT, E_UNSUPPORTED;
 * the message names the file. On error the set is empty. */
l2cdb_status l2c_tensors_open(l2c_tensors *s, const char *path, l2cdb_error *err);
/* A model directory: model.safetensors, or model.safetensors.index.json and its shards, or a single
 * .safetensors or .pt file. */
l2cdb_status l2c_tensors_open_dir(l2c_tensors *s, const char *dir, l2cdb_error *err);

/* The single .pt file of a directory, freed with l2c_free; NULL if there is none. */
l2cdb_status l2c_tensors_find_torch(char **out, const char *dir, l2cdb_error *err);

/* The readers themselves, over memory that the caller keeps valid for the life of the set. They
 * add to `s`; a name that is there already is E_FORMAT. `what` names the input in messages. */
l2cdb_status l2c_safetensors_read(l2c_tensors *s, const void *bytes, size_t n, const char *what,
                                  l2cdb_error *err);
l2cdb_status l2c_torch_read(l2c_tensors *s, const void *bytes, size_t n, const char *what,
                            l2cdb_error *err);

/* For readers and for renaming: appends a copy of *t under `name` (copied; n bytes); NULL without
 * memory. The set must be sealed (sorted, duplicates refused) before find is used. */
l2c_tensor *l2c_tensors_add(l2c_tensors *s, const l2c_tensor *t, const char *name, size_t n);
l2cdb_status l2c_tensors_seal(l2c_tensors *s, const char *what, l2cdb_error *err);

/* All elements as f32 (F32, F16, BF16, F64 and I8); out f32 [count]. */
void l2c_tensor_to_f32(const l2c_tensor *t, float *out);
/* Elements [first, first+n) of it. */
void l2c_tensor_slice_f32(const l2c_tensor *t, size_t first, size_t n, float *out);
/* False if any element is NaN or infinite; *at (may be NULL) is the first such element. */
bool l2c_tensor_finite(const l2c_tensor *t, size_t *at);

#endif
