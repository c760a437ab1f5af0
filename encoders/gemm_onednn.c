/* Products by oneDNN (C interface, version 2): matmul primitives over weights in the layout that
 * the library asks for (format_tag_any), with bias, activation and residual as post-operations.
 *
 * - The layout is asked for once per matrix, at PACK_ROWS rows; primitives for other row counts are
 *   then made for that very layout. Debian's 2.6.3 blocks weights by output and input only, so its
 *   fast kernels accept it for every row count (tests/encoders/gemm_test.c watches that).
 * - Making a primitive costs 0.2–2 ms (code is generated), running one with small shapes 2 µs: they
 * are kept in a table by shape for the life of the process. Primitives are immutable and all of
 * them take their scratch from the caller, so one may run in several threads at once.
 * - A primitive is made for a number of threads. Inside a deal (workspace.h) that is one.
 * - int8: VNNI multiplies u8 by s8. Given s8 twice, the library keeps corrections inside of the
 *   weights and finds fast kernels for the row count of the packing alone; for every other it runs
 *   a reference of its own, 400 times slower (2.6.3, no AMX). So rows are shifted by 128 here and
 *   the bias, which may be int32, takes the shift out again: the sums stay exact. */
#include "encoders/gemm_backend.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/workspace.h"
#include "engine/base/cpu.h"

enum { PACK_ROWS = 128, TABLE_SLOTS = 4096, TABLE_MOST = 3000 };

static dnnl_engine_t engine;
static l2cdb_status engine_status = L2CDB_E_INTERNAL;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;

static void engine_open(void) {
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) == dnnl_success) {
        engine_status = L2CDB_OK;
    }
}

static l2cdb_status failed(dnnl_status_t rc, const char *what, l2cdb_error *err) {
    if (rc == dnnl_out_of_memory) {
        return l2c_fail(err, L2CDB_E_NOMEM, "oneDNN: out of memory (%s)", what);
    }
    return l2c_fail(err, L2CDB_E_INTERNAL, "oneDNN: %s failed with status %d", what, (int)rc);
}

static l2cdb_status engine_ready(l2cdb_error *err) {
    pthread_once(&engine_once, engine_open);
    return engine_status == L2CDB_OK ? L2CDB_OK
                                     : failed(dnnl_runtime_error, "opening the processor", err);
}

static dnnl_data_type_t weight_type(l2c_precision precision) {
    return precision == L2C_PRECISION_INT8   ? dnnl_s8
           : precision == L2C_PRECISION_BF16 ? dnnl_bf16
                                             : dnnl_f32;
}

/* ---- Primitives ----------------------------------------------------------------------------- */

/* Everything that a primitive depends on; compared as bytes, so padding must be zero. */
typedef struct shape_key {
    size_t rows, in, out, x_stride, y_stride;
    int precision, y_type, post, bias, accumulate, threads, reserved;
} shape_key;

typedef struct primitive {
    shape_key key;
    dnnl_primitive_t handle;
    dnnl_memory_desc_t x, w, bias, y, scratch;
    size_t scratch_bytes;
} primitive;

static primitive *table[TABLE_SLOTS];
static size_t table_count;
static pthread_rwlock_t table_lock = PTHREAD_RWLOCK_INITIALIZER;

static size_t key_slot(const shape_key *key) {
    uint64_t h = 0x9e3779b97f4a7c15u;
    const uint64_t words[] = {
        key->rows,
        key->in,
        key->out,
        key->x_stride,
        key->y_stride,
        (uint64_t)key->precision | (uint64_t)key->y_type << 4 | (uint64_t)key->post << 8 |
            (uint64_t)key->bias << 12 | (uint64_t)key->accumulate << 13 |
            (uint64_t)key->threads << 16,
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        h = (h ^ words[i]) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return (size_t)(h % TABLE_SLOTS);
}

/* Under the lock. Open addressing; the table never fills up. */
static primitive **table_find(const shape_key *key) {
    size_t slot = key_slot(key);
    while (table[slot] != NULL && memcmp(&table[slot]->key, key, sizeof *key) != 0) {
        slot = (slot + 1) % TABLE_SLOTS;
    }
    return &table[slot];
}

static void primitive_free(primitive *p) {
    if (p != NULL) {
        dnnl_primitive_destroy(p->handle);
        l2c_free(p);
    }
}

static dnnl_status_t append_post_ops(dnnl_post_ops_t ops, const shape_key *key) {
    dnnl_status_t rc = dnnl_success;
    switch ((l2c_post)key->post) {
    case L2C_POST_GELU:
        rc = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_gelu_erf, 0, 0);
        break;
    case L2C_POST_GELU_TANH:
        rc = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_gelu_tanh, 0, 0);
        break;
    case L2C_POST_QUICK_GELU:
        rc = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_swish, 1.702F, 0);
        break;
    case L2C_POST_SILU:
        rc = dnnl_post_ops_append_eltwise(ops, 1, dnnl_eltwise_swish, 1, 0);
        break;
    case L2C_POST_SWIGLU: // gemm.c
    case L2C_POST_NONE:
        break;
    }
    if (rc == dnnl_success && key->accumulate) {
        rc = dnnl_post_ops_append_sum(ops, 1);
    }
    return rc;
}

static dnnl_status_t make_attr(dnnl_primitive_attr_t *out, const shape_key *key) {
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t rc = dnnl_primitive_attr_create(out);
    if (rc == dnnl_success) {
        rc = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    }
    if (rc == dnnl_success) {
        rc = dnnl_post_ops_create(&ops);
    }
    if (rc == dnnl_success) {
        rc = append_post_ops(ops, key);
    }
    if (rc == dnnl_success) {
        rc = dnnl_primitive_attr_set_post_ops(*out, ops);
    }
    dnnl_post_ops_destroy(ops);
    return rc;
}

/* The description of the product for weights `w`; its memory formats stay in *p. */
static dnnl_status_t describe_product(dnnl_primitive_desc_t *out, primitive *p,
                                      const dnnl_memory_desc_t *w) {
    const shape_key *key = &p->key;
    bool int8 = key->precision == (int)L2C_PRECISION_INT8;
    dnnl_data_type_t type = int8 ? dnnl_u8 : weight_type((l2c_precision)key->precision);
    dnnl_data_type_t y_type = key->y_type == L2C_OUT_BF16  ? dnnl_bf16
                              : key->y_type == L2C_OUT_I32 ? dnnl_s32
                                                           : dnnl_f32;
    dnnl_dims_t x_dims = { (dnnl_dim_t)key->rows, (dnnl_dim_t)key->in };
    dnnl_dims_t x_strides = { (dnnl_dim_t)key->x_stride, 1 };
    dnnl_dims_t y_dims = { (dnnl_dim_t)key->rows, (dnnl_dim_t)key->out };
    dnnl_dims_t y_strides = { (dnnl_dim_t)key->y_stride, 1 };
    dnnl_dims_t bias_dims = { 1, (dnnl_dim_t)key->out };
    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t rc = dnnl_memory_desc_init_by_strides(&p->x, 2, x_dims, type, x_strides);
    if (rc == dnnl_success) {
        rc = dnnl_memory_desc_init_by_strides(&p->y, 2, y_dims, y_type, y_strides);
    }
    if (rc == dnnl_success) {
        rc = dnnl_memory_desc_init_by_tag(&p->bias, 2, bias_dims, int8 ? dnnl_s32 : dnnl_f32,
                                          dnnl_ab);
    }
    if (rc == dnnl_success) {
        rc = dnnl_matmul_desc_init(&desc, &p->x, w, key->bias ? &p->bias : NULL, &p->y);
    }
    if (rc == dnnl_success) {
        rc = make_attr(&attr, key);
    }
    if (rc == dnnl_success) {
        rc = dnnl_primitive_desc_create(out, &desc, attr, engine, NULL);
    }
    dnnl_primitive_attr_destroy(attr);
    return rc;
}

static dnnl_status_t primitive_build(primitive *p) {
    dnnl_primitive_desc_t desc = NULL;
    int before = omp_get_max_threads();
    omp_set_num_threads(p->key.threads);
    dnnl_status_t rc = describe_product(&desc, p, &p->w);
    if (rc == dnnl_success) {
        p->scratch = *dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
        p->scratch_bytes = dnnl_memory_desc_get_size(&p->scratch);
        rc = dnnl_primitive_create(&p->handle, desc);
    }
    omp_set_num_threads(before);
    dnnl_primitive_desc_destroy(desc);
    return rc;
}

/* *owned: the table is full and the caller frees it after use. */
static l2cdb_status primitive_get(primitive **out, bool *owned, const shape_key *key,
                                  const dnnl_memory_desc_t *w, l2cdb_error *err) {
    *owned = false;
    pthread_rwlock_rdlock(&table_lock);
    *out = *table_find(key);
    pthread_rwlock_unlock(&table_lock);
    if (*out != NULL) {
        return L2CDB_OK;
    }
    primitive *p = l2c_calloc(1, sizeof *p);
    if (p == NULL) {
        return l2c_fail_nomem(err, sizeof *p);
    }
    p->key = *key;
    p->w = *w;
    dnnl_status_t rc = primitive_build(p);
    if (rc != dnnl_success) {
        l2c_free(p);
        return failed(rc, "making a product", err);
    }
    pthread_rwlock_wrlock(&table_lock);
    primitive **slot = table_find(key);
    if (*slot != NULL) {
        *out = *slot; // another thread was faster
        pthread_rwlock_unlock(&table_lock);
        primitive_free(p);
        return L2CDB_OK;
    }
    *owned = table_count >= TABLE_MOST;
    if (!*owned) {
        *slot = p;
        table_count++;
    }
    pthread_rwlock_unlock(&table_lock);
    *out = p;
    return L2CDB_OK;
}

/* ---- The backend ---------------------------------------------------------------------------- */

enum { SHIFT = 128 }; /* of int8 rows */

typedef struct layout {
    dnnl_memory_desc_t w;
    int32_t *unshift; /* [out], int8 only: -SHIFT times the sum of the weights */
} layout;

static dnnl_status_t ask_layout(l2c_linear *l, dnnl_memory_desc_t *w) {
    primitive p = { .key = { .rows = PACK_ROWS,
                             .in = l->in_padded,
                             .out = l->out,
                             .x_stride = l->in_padded,
                             .y_stride = l->out,
                             .precision = (int)l->precision,
                             .bias = l->precision == L2C_PRECISION_INT8,
                             .y_type =
                                 l->precision == L2C_PRECISION_INT8 ? L2C_OUT_I32 : L2C_OUT_F32 } };
    dnnl_dims_t dims = { (dnnl_dim_t)l->in_padded, (dnnl_dim_t)l->out };
    dnnl_memory_desc_t any;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t rc =
        dnnl_memory_desc_init_by_tag(&any, 2, dims, weight_type(l->precision), dnnl_format_tag_any);
    if (rc == dnnl_success) {
        rc = describe_product(&desc, &p, &any);
    }
    if (rc == dnnl_success) {
        *w = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    }
    dnnl_primitive_desc_destroy(desc);
    return rc;
}

static dnnl_status_t reorder(const l2c_linear *l, const void *dense, const dnnl_memory_desc_t *w) {
    dnnl_dims_t dims = { (dnnl_dim_t)l->in_padded, (dnnl_dim_t)l->out };
    dnnl_memory_desc_t plain;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t copy = NULL;
    dnnl_stream_t stream = NULL;
    union {
        const void *in;
        void *out;
    } source = { .in = dense }; // the interface has no const; the reorder only reads
    dnnl_status_t rc =
        dnnl_memory_desc_init_by_tag(&plain, 2, dims, weight_type(l->precision), dnnl_ba);
    if (rc == dnnl_success) {
        rc = dnnl_memory_create(&from, &plain, engine, source.out);
    }
    if (rc == dnnl_success) {
        rc = dnnl_memory_create(&to, w, engine, l->weights);
    }
    if (rc == dnnl_success) {
        rc = dnnl_reorder_primitive_desc_create(&desc, &plain, engine, w, engine, NULL);
    }
    if (rc == dnnl_success) {
        rc = dnnl_primitive_create(&copy, desc);
    }
    if (rc == dnnl_success) {
        rc = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    }
    if (rc == dnnl_success) {
        dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, from }, { DNNL_ARG_TO, to } };
        rc = dnnl_primitive_execute(copy, stream, 2, args);
    }
    if (rc == dnnl_success) {
        rc = dnnl_stream_wait(stream);
    }
    dnnl_stream_destroy(stream);
    dnnl_primitive_destroy(copy);
    dnnl_primitive_desc_destroy(desc);
    dnnl_memory_destroy(to);
    dnnl_memory_destroy(from);
    return rc;
}

static int32_t sum_of(const int8_t *w, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += w[i];
    }
    return sum;
}

static l2cdb_status pack(l2c_linear *l, const l2c_source *source, l2cdb_error *err) {
    l2cdb_status status = engine_ready(err);
    if (status != L2CDB_OK) {
        return status;
    }
    layout *at = l2c_calloc(1, sizeof *at);
    if (at == NULL) {
        return l2c_fail_nomem(err, sizeof *at);
    }
    l->layout = at;
    dnnl_status_t rc = ask_layout(l, &at->w);
    if (rc != dnnl_success) {
        return failed(rc, "choosing a layout for weights", err);
    }
    size_t bytes = dnnl_memory_desc_get_size(&at->w);
    void *dense = l2c_source_dense(l, source);
    l->weights = l2c_alloc_weights(bytes);
    bool int8 = l->precision == L2C_PRECISION_INT8;
    at->unshift = int8 ? l2c_alloc(l->out, sizeof *at->unshift) : NULL;
    if (dense == NULL || l->weights == NULL || (int8 && at->unshift == NULL)) {
        l2c_free(dense);
        return l2c_fail_nomem(err, bytes);
    }
    for (size_t o = 0; int8 && o < l->out; o++) {
        at->unshift[o] = -SHIFT * sum_of((const int8_t *)dense + o * l->in_padded, l->in);
    }
    rc = reorder(l, dense, &at->w);
    l2c_free(dense);
    return rc == dnnl_success ? L2CDB_OK : failed(rc, "packing weights", err);
}

static void unpack_free(l2c_linear *l) {
    layout *at = l->layout;
    l2c_free(l->weights);
    l2c_free(at != NULL ? at->unshift : NULL);
    l2c_free(at);
}

/* u8 [rows, in_padded] for int8 rows; NULL without memory. */
static const void *shift_rows(const l2c_linear *l, const l2c_raw_product *r, l2c_arena *arena) {
    uint8_t *out = l2c_arena_alloc(arena, r->rows * l->in_padded, 1);
    for (size_t row = 0; out != NULL && row < r->rows; row++) {
        const uint8_t *from = (const uint8_t *)r->x + row * r->x_stride;
        uint8_t *to = out + row * l->in_padded;
        for (size_t i = 0; i < l->in_padded; i++) {
            to[i] = from[i] ^ SHIFT; // + 128, as a byte
        }
    }
    return out;
}

static dnnl_status_t run(const primitive *p, const l2c_linear *l, const l2c_raw_product *r,
                         const void *rows, void *scratch) {
    dnnl_stream_t stream = NULL;
    dnnl_memory_t m[5] = { NULL };
    union {
        const void *in;
        void *out;
    } x = { .in = rows };
    const layout *at = l->layout;
    dnnl_status_t rc = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    const struct {
        int arg;
        const dnnl_memory_desc_t *desc;
        void *data;
    } use[] = {
        { DNNL_ARG_SRC, &p->x, x.out },
        { DNNL_ARG_WEIGHTS, &p->w, l->weights },
        { DNNL_ARG_DST, &p->y, r->y },
        { DNNL_ARG_SCRATCHPAD, &p->scratch, scratch },
        { DNNL_ARG_BIAS, &p->bias, at->unshift != NULL ? (void *)at->unshift : l->bias },
    };
    int count = p->key.bias ? 5 : 4;
    dnnl_exec_arg_t args[5];
    for (int i = 0; rc == dnnl_success && i < count; i++) {
        rc = dnnl_memory_create(&m[i], use[i].desc, engine, use[i].data);
        args[i] = (dnnl_exec_arg_t){ use[i].arg, m[i] };
    }
    if (rc == dnnl_success) {
        rc = dnnl_primitive_execute(p->handle, stream, count, args);
    }
    for (int i = 0; i < count; i++) {
        dnnl_memory_destroy(m[i]);
    }
    dnnl_stream_destroy(stream);
    return rc;
}

static l2cdb_status product(const l2c_linear *l, const l2c_raw_product *r, l2c_arena *arena,
                            l2cdb_error *err) {
    const layout *at = l->layout;
    bool int8 = l->precision == L2C_PRECISION_INT8;
    shape_key key;
    memset(&key, 0, sizeof key);
    key.rows = r->rows;
    key.in = l->in_padded;
    key.out = l->out;
    key.x_stride = int8 ? l->in_padded : r->x_stride;
    key.y_stride = r->y_stride;
    key.precision = (int)l->precision;
    key.y_type = (int)r->y_type;
    key.post = (int)r->post;
    key.bias = r->bias || int8;
    key.accumulate = r->accumulate;
    key.threads = l2c_in_deal() ? 1 : omp_get_max_threads();

    primitive *p;
    bool owned;
    l2cdb_status status = primitive_get(&p, &owned, &key, &at->w, err);
    if (status != L2CDB_OK) {
        return status;
    }
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    const void *rows = int8 ? shift_rows(l, r, arena) : r->x;
    void *scratch = l2c_arena_alloc(arena, p->scratch_bytes, 1);
    if (rows == NULL || scratch == NULL) {
        status = l2c_fail_nomem(err, p->scratch_bytes + r->rows * l->in_padded);
    } else {
        dnnl_status_t rc = run(p, l, r, rows, scratch);
        status = rc == dnnl_success ? L2CDB_OK : failed(rc, "a product", err);
    }
    l2c_arena_reset(arena, mark);
    if (owned) {
        primitive_free(p);
    }
    return status;
}

static l2cdb_status gemm(const l2c_gemm_args *g, l2cdb_error *err) {
    dnnl_status_t rc =
        dnnl_sgemm(g->transpose_a ? 'T' : 'N', g->transpose_b ? 'T' : 'N', (dnnl_dim_t)g->m,
                   (dnnl_dim_t)g->n, (dnnl_dim_t)g->k, g->alpha, g->a, (dnnl_dim_t)g->lda, g->b,
                   (dnnl_dim_t)g->ldb, g->beta, g->c, (dnnl_dim_t)g->ldc);
    return rc == dnnl_success ? L2CDB_OK : failed(rc, "a plain product", err);
}

/* The name of the kernels for `rows` rows of a usual shape, weights laid out as *w, which becomes
 * what the library likes if it is `any`; NULL if it has none. */
static const char *kernel_name(dnnl_memory_desc_t *w, size_t rows, l2c_precision precision) {
    primitive p = { .key = { .rows = rows,
                             .in = 1024,
                             .out = 1024,
                             .x_stride = 1024,
                             .y_stride = 1024,
                             .precision = (int)precision,
                             .bias = precision == L2C_PRECISION_INT8,
                             .y_type =
                                 precision == L2C_PRECISION_INT8 ? L2C_OUT_I32 : L2C_OUT_F32 } };
    dnnl_primitive_desc_t desc = NULL;
    const char *name = NULL;
    if (describe_product(&desc, &p, w) == dnnl_success) {
        dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name);
        *w = *dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0);
    }
    dnnl_primitive_desc_destroy(desc);
    return name;
}

/* The kernels that weights packed at PACK_ROWS meet at another row count: NULL if there are none,
 * or if it is the library's plain loop ("ref…", hundreds of times slower). */
static const char *kernel_for(l2c_precision precision) {
    dnnl_dims_t dims = { 1024, 1024 };
    dnnl_memory_desc_t w;
    if (engine_ready(NULL) != L2CDB_OK ||
        dnnl_memory_desc_init_by_tag(&w, 2, dims, weight_type(precision), dnnl_format_tag_any) !=
            dnnl_success ||
        kernel_name(&w, PACK_ROWS, precision) == NULL) {
        return NULL;
    }
    const char *name = kernel_name(&w, PACK_ROWS - 32, precision);
    return name != NULL && strncmp(name, "ref", 3) != 0 ? name : NULL;
}

static bool bf16_taken, int8_taken;

static void try_short(void) {
    bf16_taken = l2c_cpu_get()->amx_bf16 && kernel_for(L2C_PRECISION_BF16) != NULL;
    int8_taken = l2c_cpu_get()->avx512_vnni && kernel_for(L2C_PRECISION_INT8) != NULL;
}

/* bf16 without AMX meets the plain loop at shapes that no query tells beforehand (2.6.3, 96×192 by
 * 192×768: 400 ms). int8 without VNNI adds pairs of products in 16 bits, where they saturate
 * (cosines of 0.96 were measured). What is not taken is multiplied as f32. */
static bool takes(l2c_precision precision) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, try_short);
    return precision == L2C_PRECISION_BF16 ? bf16_taken : int8_taken;
}

static void describe_kernel(l2c_buf *out, l2c_precision precision) {
    const char *name = kernel_for(precision);
    bool taken = name != NULL && (precision == L2C_PRECISION_F32 || takes(precision));
    l2c_buf_printf(out, "onednn %s: %s\n", l2c_precision_name(precision),
                   taken ? name : "not on this processor, f32 instead");
}

static void describe(l2c_buf *out) {
    const dnnl_version_t *v = dnnl_version();
    l2c_buf_printf(out, "onednn: %d.%d.%d\n", v->major, v->minor, v->patch);
    if (engine_ready(NULL) == L2CDB_OK) {
        describe_kernel(out, L2C_PRECISION_F32);
        describe_kernel(out, L2C_PRECISION_BF16);
        describe_kernel(out, L2C_PRECISION_INT8);
    }
}

const l2c_gemm_backend l2c_gemm_onednn = {
    .name = "onednn",
    .has_bf16 = true,
    .has_int8 = true,
    .takes = takes,
    .fuses = true,
    .align_f32 = 1,
    .align_bf16 = 32,
    .align_int8 = 64,
    .pack = pack,
    .unpack_free = unpack_free,
    .product = product,
    .gemm = gemm,
    .describe = describe,
};
