/* The dispatch of products: picks the backend, brings weights and rows into the type that is
 * multiplied, and does by itself what a backend cannot fuse. */
#define _DEFAULT_SOURCE // madvise
#include "encoders/gemm_backend.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "encoders/layers.h"
#include "engine/base/cpu.h"
#include "engine/base/vec.h"

#ifdef L2CDB_HAS_ONEDNN
static const l2c_gemm_backend *const onednn = &l2c_gemm_onednn;
#else
static const l2c_gemm_backend *const onednn = NULL;
#endif

static const char *const precision_names[] = { "auto", "f32", "bf16", "int8" };

const char *l2c_precision_name(l2c_precision p) {
    return precision_names[p];
}

l2cdb_status l2c_precision_parse(l2c_precision *out, const char *name, l2cdb_error *err) {
    for (int p = L2C_PRECISION_AUTO; p <= L2C_PRECISION_INT8; p++) {
        if (strcmp(name, precision_names[p]) == 0) {
            *out = (l2c_precision)p;
            return L2CDB_OK;
        }
    }
    return l2c_fail(err, L2CDB_E_INVALID, "precision \"%s\", expected auto, f32, bf16 or int8",
                    name);
}

const char *l2c_backend_name(l2c_backend backend) {
    static const char *const names[] = { "auto", "naive", "openblas", "onednn", "amx" };
    return names[backend];
}

bool l2c_gemm_has(l2c_backend backend) {
    switch (backend) {
    case L2C_BACKEND_ONEDNN:
        return onednn != NULL;
    case L2C_BACKEND_AMX:
        return l2c_amx_usable();
    default:
        return true;
    }
}

l2c_backend l2c_gemm_default(void) {
    const char *wish = getenv("L2CDB_GEMM");
    for (int b = L2C_BACKEND_NAIVE; wish != NULL && b <= L2C_BACKEND_AMX; b++) {
        if (strcmp(wish, l2c_backend_name((l2c_backend)b)) == 0 && l2c_gemm_has((l2c_backend)b)) {
            return (l2c_backend)b;
        }
    }
    return l2c_amx_usable() ? L2C_BACKEND_AMX
           : onednn != NULL ? L2C_BACKEND_ONEDNN
                            : L2C_BACKEND_OPENBLAS;
}

/* NULL if this build or processor has none. */
static const l2c_gemm_backend *backend_get(l2c_backend backend) {
    switch (backend == L2C_BACKEND_AUTO ? l2c_gemm_default() : backend) {
    case L2C_BACKEND_NAIVE:
        return &l2c_gemm_naive;
    case L2C_BACKEND_OPENBLAS:
        return &l2c_gemm_openblas;
    case L2C_BACKEND_ONEDNN:
        return onednn;
    case L2C_BACKEND_AMX:
        return l2c_amx_usable() ? &l2c_gemm_amx : NULL;
    case L2C_BACKEND_AUTO:
        break;
    }
    return NULL;
}

/* The same for plain products, with the best of the others for a backend that has none. */
static const l2c_gemm_backend *plain_get(l2c_backend backend) {
    const l2c_gemm_backend *b = backend_get(backend);
    return b == NULL || b->gemm != NULL ? b : onednn != NULL ? onednn : &l2c_gemm_openblas;
}

/* ---- The team ------------------------------------------------------------------------------- */

l2c_team l2c_team_begin(size_t threads) {
    l2c_team before = { .omp_before = omp_get_max_threads() };
    // OpenBLAS has threads of its own: beside ours they would only fight for the cores.
    before.blas_before =
        l2c_openblas_threads(plain_get(L2C_BACKEND_AUTO) == &l2c_gemm_openblas ? 1 : 0);
    size_t cores = l2c_cpu_count();
    omp_set_num_threads((int)(threads == 0 ? cores : threads > 1024 ? 1024 : threads));
    return before;
}

void l2c_team_end(l2c_team before) {
    omp_set_num_threads(before.omp_before);
    l2c_openblas_threads(before.blas_before);
}

/* ---- Weights -------------------------------------------------------------------------------- */

/* Tile kernels read whole tiles of rows. */
enum { ROWS_MULTIPLE = 32 };

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

static float scale_of(const l2c_linear_part *part, size_t row) {
    float scale = 1;
    if (part->scale != NULL) {
        memcpy(&scale, part->scale + row, sizeof scale);
    }
    return scale;
}

/* Row `row` of a part as f32. */
static void row_f32(float *out, const l2c_linear_part *part, size_t row, size_t in) {
    size_t item = part->type == L2C_DTYPE_I8 ? 1 : part->type == L2C_DTYPE_F32 ? 4 : 2;
    const char *from = (const char *)part->weight + row * in * item;
    if (part->type == L2C_DTYPE_F32) {
        memcpy(out, from, in * sizeof *out);
    } else if (part->type == L2C_DTYPE_F16) {
        l2c_vec_from_f16(out, (const uint16_t *)(const void *)from, in);
    } else if (part->type == L2C_DTYPE_BF16) {
        l2c_vec_from_bf16(out, (const uint16_t *)(const void *)from, in);
    } else {
        float scale = scale_of(part, row);
        for (size_t i = 0; i < in; i++) {
            out[i] = scale * (float)((const int8_t *)from)[i];
        }
    }
}

void l2c_source_row(l2c_linear *l, const l2c_source *s, size_t at, void *to, float *wide) {
    const l2c_linear_part *part = s->parts;
    size_t row = at, item = l2c_linear_item_bytes(l);
    while (row >= part->out) {
        row -= part->out;
        part++;
    }
    memset((char *)to + l->in * item, 0, (l->in_padded - l->in) * item);
    if (l->precision == L2C_PRECISION_INT8 && part->type == L2C_DTYPE_I8) {
        memcpy(to, (const char *)part->weight + row * l->in, l->in);
        l->scale[at] = scale_of(part, row);
        return;
    }
    if (l->precision == L2C_PRECISION_BF16 && part->type == L2C_DTYPE_BF16) {
        memcpy(to, (const char *)part->weight + row * l->in * 2, l->in * 2);
        return;
    }
    row_f32(wide, part, row, l->in);
    if (l->precision == L2C_PRECISION_INT8) {
        l->scale[at] = l2c_quantise_row(to, wide, l->in);
    } else if (l->precision == L2C_PRECISION_BF16) {
        l2c_bf16_row(to, wide, l->in);
    } else {
        memcpy(to, wide, l->in * sizeof *wide);
    }
}

void *l2c_source_dense(l2c_linear *l, const l2c_source *s) {
    size_t row_bytes = l->in_padded * l2c_linear_item_bytes(l), bytes;
    char *dense = l2c_mul_size(&bytes, l->out, row_bytes) ? l2c_alloc_weights(bytes) : NULL;
    float *wide = l2c_alloc(l->in, sizeof *wide);
    if (dense == NULL || wide == NULL) {
        l2c_free(wide);
        l2c_free(dense);
        return NULL;
    }
    for (size_t at = 0; at < l->out; at++) {
        l2c_source_row(l, s, at, dense + at * row_bytes, wide);
    }
    l2c_free(wide);
    return dense;
}

void *l2c_alloc_weights(size_t bytes) {
    const size_t huge = (size_t)2 << 20;
    char *p = l2c_alloc_aligned(bytes, 1);
    if (p != NULL && bytes >= 2 * huge) {
        size_t skip = (huge - (uintptr_t)p % huge) % huge;
        madvise(p + skip, (bytes - skip) / huge * huge, MADV_HUGEPAGE); // a wish
    }
    return p;
}

static bool any_bias(const l2c_linear_part *parts, size_t parts_count) {
    for (size_t i = 0; i < parts_count; i++) {
        if (parts[i].bias != NULL) {
            return true;
        }
    }
    return false;
}

static l2c_precision precision_of(const l2c_gemm_backend *backend, l2c_precision wish) {
    bool has = (wish == L2C_PRECISION_BF16 && backend->has_bf16) ||
               (wish == L2C_PRECISION_INT8 && backend->has_int8);
    return has && (backend->takes == NULL || backend->takes(wish)) ? wish : L2C_PRECISION_F32;
}

l2cdb_status l2c_linear_new(l2c_linear **out, const l2c_linear_part *parts, size_t parts_count,
                            size_t in, l2c_precision precision, l2c_backend backend,
                            l2cdb_error *err) {
    *out = NULL;
    const l2c_gemm_backend *b = backend_get(backend);
    if (b == NULL) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s does not run here",
                        l2c_backend_name(backend));
    }
    l2c_linear *l = l2c_calloc(1, sizeof *l);
    if (l == NULL) {
        return l2c_fail_nomem(err, sizeof *l);
    }
    l->backend = b;
    l->precision = precision_of(b, precision);
    l->in = in;
    l->in_padded = round_up(in, l->precision == L2C_PRECISION_INT8   ? b->align_int8
                                : l->precision == L2C_PRECISION_BF16 ? b->align_bf16
                                                                     : b->align_f32);
    for (size_t i = 0; i < parts_count; i++) {
        l->out += parts[i].out;
    }
    l->pair = parts_count == 2 && parts[0].out == parts[1].out ? parts[0].out : 0;
    l2cdb_status rc = L2CDB_OK;
    if (in == 0 || l->out == 0) {
        rc = l2c_fail(err, L2CDB_E_INVALID, "a weight matrix of %zux%zu is empty", l->out, in);
        goto fail;
    }
    if (any_bias(parts, parts_count)) {
        l->bias = l2c_calloc(l->out, sizeof *l->bias);
    }
    if (l->precision == L2C_PRECISION_INT8) {
        l->scale = l2c_alloc(l->out, sizeof *l->scale);
    }
    if ((any_bias(parts, parts_count) && l->bias == NULL) ||
        (l->precision == L2C_PRECISION_INT8 && l->scale == NULL)) {
        rc = l2c_fail_nomem(err, l->out * sizeof(float));
        goto fail;
    }
    for (size_t i = 0, at = 0; i < parts_count; at += parts[i++].out) {
        if (parts[i].bias != NULL) {
            memcpy(l->bias + at, parts[i].bias, parts[i].out * sizeof *l->bias);
        }
    }
    rc = b->pack(l, &(l2c_source){ parts, parts_count }, err);
    if (rc != L2CDB_OK) {
        goto fail;
    }
    *out = l;
    return L2CDB_OK;

fail:
    l2c_linear_free(l);
    return rc;
}

void l2c_linear_free(l2c_linear *l) {
    if (l == NULL) {
        return;
    }
    l->backend->unpack_free(l);
    l2c_free(l->bias);
    l2c_free(l->scale);
    l2c_free(l);
}

size_t l2c_linear_in(const l2c_linear *l) {
    return l->in;
}

size_t l2c_linear_out(const l2c_linear *l) {
    return l->out;
}

l2c_precision l2c_linear_precision(const l2c_linear *l) {
    return l->precision;
}

/* ---- Rows ----------------------------------------------------------------------------------- */

l2c_row_type l2c_linear_row_type(const l2c_linear *l) {
    return l->precision == L2C_PRECISION_INT8   ? L2C_ROW_I8
           : l->precision == L2C_PRECISION_BF16 ? L2C_ROW_BF16
                                                : L2C_ROW_F32;
}

l2c_rows l2c_linear_rows(const l2c_linear *l, size_t count, l2c_arena *arena) {
    l2c_rows rows = { .stride = l->in_padded, .type = l2c_linear_row_type(l) };
    if (rows.type != L2C_ROW_F32) {
        rows.stride += 64 / l2c_linear_item_bytes(l); // rows a power of two apart share cache sets
    }
    size_t bytes;
    size_t allocated = rows.type == L2C_ROW_F32 ? count : round_up(count, ROWS_MULTIPLE);
    if (!l2c_mul_size(&bytes, allocated, rows.stride * l2c_linear_item_bytes(l))) {
        return rows;
    }
    char *data = l2c_arena_alloc(arena, bytes, 1);
    if (data == NULL) {
        return rows;
    }
    if (rows.type == L2C_ROW_I8) {
        rows.scale = l2c_arena_alloc(arena, count, sizeof *rows.scale);
        rows.rest = l2c_arena_alloc(arena, bytes, 1);
        rows.fine = l2c_arena_alloc(arena, count, sizeof *rows.fine);
        if (rows.scale == NULL || rows.rest == NULL || rows.fine == NULL) {
            return rows;
        }
    }
    size_t item = l2c_linear_item_bytes(l), pad = (l->in_padded - l->in) * item;
    for (size_t r = 0; pad > 0 && r < count; r++) {
        memset(data + (r * rows.stride + l->in) * item, 0, pad);
    }
    rows.data = data;
    return rows;
}

void l2c_rows_set(l2c_rows *rows, size_t r, const float *x, size_t n) {
    if (rows->type == L2C_ROW_I8) {
        rows->rest_count = r == 0 ? 0 : rows->rest_count;
        rows->scale[r] = l2c_quantise_row_fine((int8_t *)rows->data + r * rows->stride,
                                               rows->rest + rows->rest_count * rows->stride,
                                               &rows->fine[r], x, n);
        rows->rest_count += rows->fine[r] ? 1 : 0;
    } else if (rows->type == L2C_ROW_BF16) {
        l2c_bf16_row((uint16_t *)rows->data + r * rows->stride, x, n);
    } else {
        memcpy((float *)rows->data + r * rows->stride, x, n * sizeof *x);
    }
}

void l2c_rows_fill(const l2c_linear *l, l2c_rows *rows, const float *x, size_t x_stride,
                   size_t count) {
    for (size_t r = 0; r < count; r++) {
        l2c_rows_set(rows, r, x + r * x_stride, l->in);
    }
}

/* ---- Products ------------------------------------------------------------------------------- */

/* int8: sums in int32 for a block of rows, then scale, bias, activation and the next type. */
static l2cdb_status apply_int8(const l2c_linear *l, const l2c_product *p, const l2c_rows *x,
                               l2c_arena *arena, l2cdb_error *err) {
    int32_t *sums = l2c_arena_alloc(arena, p->rows * l->out, sizeof *sums);
    int32_t *rest = l2c_arena_alloc(arena, x->rest_count * l->out, sizeof *rest);
    float *wide = l2c_arena_alloc(arena, l->out, sizeof *wide);
    if (sums == NULL || rest == NULL || wide == NULL) {
        return l2c_fail_nomem(err, (p->rows + x->rest_count) * l->out * sizeof *sums);
    }
    l2c_raw_product raw = { .x = x->data,
                            .x_stride = x->stride,
                            .rows = p->rows,
                            .y = sums,
                            .y_stride = l->out,
                            .y_type = L2C_OUT_I32 };
    l2cdb_status rc = l->backend->product(l, &raw, arena, err);
    if (rc == L2CDB_OK && x->rest_count > 0) {
        raw.x = x->rest;
        raw.rows = x->rest_count;
        raw.y = rest;
        rc = l->backend->product(l, &raw, arena, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    size_t y_stride = p->y_stride != 0 ? p->y_stride : l->out;
    for (size_t r = 0; r < p->rows; r++) {
        int32_t *from = sums + r * l->out;
        if (x->fine[r]) {
            l2c_add_rest(from, rest, l->out);
            rest += l->out;
        }
        bool aside = p->y == NULL || (p->accumulate && p->post != L2C_POST_NONE);
        float *y = p->y != NULL ? p->y + r * y_stride : NULL;
        l2c_dequantise_row(aside ? wide : y, from, x->scale[r], l->scale, l->bias, l->out, p->post,
                           p->accumulate && !aside);
        if (y != NULL) {
            if (aside) {
                l2c_vec_axpy(y, wide, 1, l->out);
            }
            continue;
        }
        l2c_rows_set(p->y_rows, r, wide, l->out);
    }
    return L2CDB_OK;
}

/* OpenBLAS: what it does not fuse. Accumulation without activation it does fuse. */
static l2cdb_status apply_unfused(const l2c_linear *l, l2c_raw_product raw, l2c_arena *arena,
                                  l2cdb_error *err) {
    float *y = raw.y;
    size_t y_stride = raw.y_stride;
    bool aside = raw.accumulate && raw.post != L2C_POST_NONE;
    if (aside) {
        raw.y = l2c_arena_alloc(arena, raw.rows * l->out, sizeof(float));
        raw.y_stride = l->out;
        raw.accumulate = false;
        if (raw.y == NULL) {
            return l2c_fail_nomem(err, raw.rows * l->out * sizeof(float));
        }
    }
    l2cdb_status rc = l->backend->product(l, &raw, arena, err);
    for (size_t r = 0; rc == L2CDB_OK && r < raw.rows; r++) {
        float *row = (float *)raw.y + r * raw.y_stride;
        if (l->bias != NULL) {
            l2c_vec_axpy(row, l->bias, 1, l->out);
        }
        l2c_activate(row, l->out, raw.post);
        if (aside) {
            l2c_vec_axpy(y + r * y_stride, row, 1, l->out);
        }
    }
    return rc;
}

/* Products that leave their backend as f32 or bf16 rows. One whose next linear wants other rows
 * than that (a bundle of mixed precision) goes through f32. */
static l2cdb_status apply_direct(const l2c_linear *l, const l2c_product *p, const l2c_rows *x,
                                 l2c_arena *arena, l2cdb_error *err) {
    const size_t width = p->post == L2C_POST_SWIGLU ? l->pair : l->out;
    l2c_raw_product raw = {
        .x = x->data,
        .x_scale = x->scale,
        .x_rest = x->rest,
        .x_fine = x->fine,
        .x_stride = x->stride,
        .rows = p->rows,
        .y = p->y,
        .y_stride = p->y_stride != 0 ? p->y_stride : width,
        .y_type = L2C_OUT_F32,
        .bias = l->bias != NULL,
        .post = p->post,
        .accumulate = p->accumulate,
    };
    l2c_rows *to = p->y_rows;
    bool convert = false;
    if (p->y == NULL) {
        convert =
            to->type == L2C_ROW_I8 ||
            (to->type == L2C_ROW_BF16 && l->precision != L2C_PRECISION_BF16 && !l->backend->scales);
        raw.y = convert ? l2c_arena_alloc(arena, p->rows * width, sizeof(float)) : to->data;
        raw.y_stride = convert ? width : to->stride;
        raw.y_type = !convert && to->type == L2C_ROW_BF16 ? L2C_OUT_BF16 : L2C_OUT_F32;
        if (raw.y == NULL) {
            return l2c_fail_nomem(err, p->rows * width * sizeof(float));
        }
    }
    l2cdb_status rc = l->backend->fuses ? l->backend->product(l, &raw, arena, err)
                                        : apply_unfused(l, raw, arena, err);
    for (size_t r = 0; rc == L2CDB_OK && convert && r < p->rows; r++) {
        l2c_rows_set(to, r, (const float *)raw.y + r * width, width);
    }
    return rc;
}

/* SWIGLU on a backend that cannot fuse it. */
static l2cdb_status apply_gated(const l2c_linear *l, l2c_product p, l2c_arena *arena,
                                l2cdb_error *err) {
    float *both = l2c_arena_alloc(arena, p.rows * l->out, sizeof *both);
    if (both == NULL) {
        return l2c_fail_nomem(err, p.rows * l->out * sizeof *both);
    }
    l2c_rows plain = { .data = p.y, .stride = p.y_stride != 0 ? p.y_stride : l->pair };
    l2c_rows *to = p.y != NULL ? &plain : p.y_rows;
    p.y = both;
    p.y_stride = 0;
    p.post = L2C_POST_NONE;
    l2cdb_status rc = l2c_linear_apply(l, &p, arena, err);
    for (size_t r = 0; rc == L2CDB_OK && r < p.rows; r++) {
        float *gate = both + r * l->out;
        l2c_swiglu(gate, gate, gate + l->pair, l->pair);
        l2c_rows_set(to, r, gate, l->pair);
    }
    return rc;
}

l2cdb_status l2c_linear_apply(const l2c_linear *l, const l2c_product *p, l2c_arena *arena,
                              l2cdb_error *err) {
    if (p->rows == 0) {
        return L2CDB_OK;
    }
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    l2c_rows made;
    const l2c_rows *x = p->x_rows;
    size_t x_stride = p->x_stride != 0 ? p->x_stride : l->in;
    l2cdb_status rc;
    if (p->post == L2C_POST_SWIGLU && !l->backend->gates) {
        rc = apply_gated(l, *p, arena, err);
        goto done;
    }
    if (p->x != NULL && l->precision == L2C_PRECISION_F32) {
        made = (l2c_rows){ .data = (void *)(uintptr_t)p->x, .stride = x_stride };
        x = &made;
    } else if (p->x != NULL) {
        made = l2c_linear_rows(l, p->rows, arena);
        if (made.data == NULL) {
            rc = l2c_fail_nomem(err, p->rows * l->in_padded * l2c_linear_item_bytes(l));
            goto done;
        }
        l2c_rows_fill(l, &made, p->x, x_stride, p->rows);
        x = &made;
    }
    rc = l->precision == L2C_PRECISION_INT8 && !l->backend->scales
             ? apply_int8(l, p, x, arena, err)
             : apply_direct(l, p, x, arena, err);
done:
    l2c_arena_reset(arena, mark);
    return rc;
}

l2cdb_status l2c_gemm(const l2c_gemm_args *args, l2cdb_error *err) {
    if (l2c_gemm_default() == L2C_BACKEND_AMX && l2c_gemm_split_pays(args)) {
        return l2c_gemm_split(args, err);
    }
    return l2c_gemm_with(L2C_BACKEND_AUTO, args, err);
}

l2cdb_status l2c_gemm_with(l2c_backend backend, const l2c_gemm_args *args, l2cdb_error *err) {
    const l2c_gemm_backend *b = plain_get(backend);
    if (b == NULL) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s does not run here",
                        l2c_backend_name(backend));
    }
    return args->m == 0 || args->n == 0 ? L2CDB_OK : b->gemm(args, err);
}

void l2c_gemm_describe(l2c_buf *out) {
    l2c_backend chosen = l2c_gemm_default();
    const char *why = getenv("L2CDB_GEMM") != NULL   ? "L2CDB_GEMM is set"
                      : chosen == L2C_BACKEND_AMX    ? "the processor has matrix tiles"
                      : chosen == L2C_BACKEND_ONEDNN ? "the fastest that this build has"
                                                     : "this build has no oneDNN";
    l2c_buf_printf(out, "products: %s (%s)\n", l2c_backend_name(chosen), why);
    l2c_gemm_amx.describe(out);
    if (onednn != NULL) {
        onednn->describe(out);
    }
    l2c_gemm_openblas.describe(out);
}
