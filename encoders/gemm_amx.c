/* Products of tiles (AMX) with everything that follows in one pass: bf16, int8, and f32 in three
 * bf16 terms (amx_split.h).
 *
 * Why beside oneDNN: Debian's 2.6.3 multiplies tiles well, but cannot scale by row, so an int8
 * product leaves int32 sums that have to be read again for scale, bias and activation, and its bf16
 * sums pass through a buffer of their own. Here a block of 32×32 sums goes from the tiles through
 * the first-level cache into the next product's input. Measured figures are in docs/model.md.
 *
 * Weights are cut into panels of 32 outputs (amx_tiles.h). Inputs are plain rows, allocated up to a
 * multiple of 32 (l2c_linear_rows) unless f32, so that a tile may read past the last one.
 *
 * f32 weights stay f32 in memory: two thirds of the bytes that their terms take, and a product of
 * few rows is as fast as those can be read. A panel is split into terms while the tiles multiply
 * the panel before it, which leaves the vector units idle. */
#include "encoders/gemm_backend.h"

#include <omp.h>

#include "encoders/layers.h"
#include "encoders/workspace.h"
#include "engine/base/cpu.h"

#if defined(__x86_64__)
#include "encoders/amx_split.h"

#define FN(name) name##_tile
#define TARGET L2C_TILE
#include "encoders/math_kernels.h"

/* ROWS_MOST: rows that share a panel while it is in the cache. STRETCH_BYTES: of input at a time,
 * so that it stays in the second-level cache beside the panels and the sums. */
enum { ROWS_MOST = 384, ROWS_MOST_F32 = 192, STRETCH_BYTES = 5 << 18, SLICE = 8 };
enum { TERMS = L2C_SPLIT_MOST, PAIR_BYTES = 2 * L2C_TILE_BYTES };

static size_t panel_bytes(const l2c_linear *l) {
    return l->in_padded * l2c_linear_item_bytes(l) * L2C_PANEL;
}

/* The outputs of a panel: 16 and 16 that follow each other; or, of two equal parts, the same 16 of
 * each, so that a gate lies beside what it gates. */
typedef struct columns {
    size_t first[2], count[2];
} columns;

static size_t panels_count(const l2c_linear *l) {
    return l->pair > 0 ? (l->pair + 15) / 16 : (l->out + L2C_PANEL - 1) / L2C_PANEL;
}

static columns columns_of(const l2c_linear *l, size_t panel) {
    columns c = { .first = { panel * L2C_PANEL, panel * L2C_PANEL + 16 } };
    size_t end[] = { l->out, l->out };
    if (l->pair > 0) {
        c.first[0] = panel * 16;
        c.first[1] = l->pair + panel * 16;
        end[0] = l->pair;
    }
    for (size_t half = 0; half < 2; half++) {
        size_t left = c.first[half] < end[half] ? end[half] - c.first[half] : 0;
        c.count[half] = left < 16 ? left : 16;
    }
    return c;
}

/* The 32 rows of panel `p` by way of `rows`, [32, in_padded]. */
static void pack_panel(l2c_linear *l, const l2c_source *source, size_t p, char *rows, float *wide) {
    const size_t row_bytes = l->in_padded * l2c_linear_item_bytes(l);
    const columns c = columns_of(l, p);
    for (size_t half = 0; half < 2; half++) {
        for (size_t r = 0; r < c.count[half]; r++) {
            l2c_source_row(l, source, c.first[half] + r, rows + (16 * half + r) * row_bytes, wide);
        }
    }
    char *to = (char *)l->weights + p * panel_bytes(l);
    for (size_t k = 0; k < row_bytes; k += L2C_STEP_BYTES) {
        for (size_t half = 0; half < 2; half++, to += L2C_TILE_BYTES) {
            l2c_tiles_pack(to, rows + 16 * half * row_bytes + k, row_bytes, c.count[half]);
        }
    }
}

static l2cdb_status pack(l2c_linear *l, const l2c_source *source, l2cdb_error *err) {
    size_t panels = panels_count(l);
    size_t bytes = panels * panel_bytes(l);
    l->weights = l2c_alloc_weights(bytes);
    size_t threads = (size_t)omp_get_max_threads();
    char *rows = l2c_alloc_aligned(threads, panel_bytes(l));
    float *wide = l2c_alloc(threads * l->in, sizeof *wide);
    if (l->weights == NULL || rows == NULL || wide == NULL) {
        l2c_free(wide);
        l2c_free(rows);
        return l2c_fail_nomem(err, bytes);
    }
#pragma omp parallel for num_threads((int)threads)
    for (size_t p = 0; p < panels; p++) {
        size_t t = (size_t)omp_get_thread_num();
        pack_panel(l, source, p, rows + t * panel_bytes(l), wide + t * l->in);
    }
    l2c_free(wide);
    l2c_free(rows);
    return L2CDB_OK;
}

static void unpack_free(l2c_linear *l) {
    l2c_free(l->weights);
}

/* The left 16 sums of each row = silu(left) * right. */
L2C_TILE static void swiglu(float *sums, size_t rows) {
    for (size_t r = 0; r < rows; r++) {
        float *gate = sums + r * L2C_PANEL;
#pragma omp simd
        for (size_t i = 0; i < 16; i++) {
            gate[i] = gate[i] / (1.0F + exp_tile(-gate[i])) * gate[16 + i];
        }
    }
}

/* Scale, bias, activation, and the way out for a block of rows and a panel; sums in place. rest:
 * the sums of the second int8 from the block's first fine row on, int8 only. begins: these sums are
 * the first along K; later ones come without bias and are added. Returns what follows in rest. */
L2C_TILE static const int32_t *finish(const l2c_linear *l, const l2c_raw_product *p, float *sums,
                                      const int32_t *rest, size_t row, size_t rows, size_t panel,
                                      bool begins) {
    const columns c = columns_of(l, panel);
    const size_t first = c.first[0], second = c.first[1];
    const __mmask16 low = (__mmask16)((1u << c.count[0]) - 1);
    const __mmask16 high = (__mmask16)((1u << c.count[1]) - 1);
    __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0, scale0 = bias0, scale1 = bias0;
    if (p->bias && begins) {
        bias0 = _mm512_maskz_loadu_ps(low, l->bias + first);
        bias1 = _mm512_maskz_loadu_ps(high, l->bias + second);
    }
    if (l->precision == L2C_PRECISION_INT8) {
        scale0 = _mm512_maskz_loadu_ps(low, l->scale + first);
        scale1 = _mm512_maskz_loadu_ps(high, l->scale + second);
    }
    for (size_t r = 0; r < rows; r++) {
        float *s = sums + r * L2C_PANEL;
        __m512 a, b;
        if (l->precision == L2C_PRECISION_INT8) {
            __m512 x = _mm512_set1_ps(p->x_scale[row + r]);
            a = _mm512_cvtepi32_ps(_mm512_load_si512(s));
            b = _mm512_cvtepi32_ps(_mm512_load_si512(s + 16));
            if (p->x_fine[row + r]) {
                const __m512 step = _mm512_set1_ps(1.0F / L2C_REST_STEPS);
                a = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(rest)), step, a);
                b = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(rest + 16)), step, b);
                rest += L2C_PANEL;
            }
            a = _mm512_fmadd_ps(a, _mm512_mul_ps(x, scale0), bias0);
            b = _mm512_fmadd_ps(b, _mm512_mul_ps(x, scale1), bias1);
        } else {
            a = _mm512_add_ps(_mm512_load_ps(s), bias0);
            b = _mm512_add_ps(_mm512_load_ps(s + 16), bias1);
        }
        _mm512_store_ps(s, a);
        _mm512_store_ps(s + 16, b);
    }
    if (p->post == L2C_POST_SWIGLU) {
        swiglu(sums, rows);
    } else {
        l2c_activate(sums, rows * L2C_PANEL, p->post);
    }
    const __mmask16 also = p->post == L2C_POST_SWIGLU ? 0 : high;
    for (size_t r = 0; r < rows; r++) {
        __m512 a = _mm512_load_ps(sums + r * L2C_PANEL),
               b = _mm512_load_ps(sums + r * L2C_PANEL + 16);
        size_t at = (row + r) * p->y_stride;
        if (p->y_type == L2C_OUT_BF16) {
            uint16_t *y = (uint16_t *)p->y + at;
            _mm256_mask_storeu_epi16(y + first, low, (__m256i)_mm512_cvtneps_pbh(a));
            _mm256_mask_storeu_epi16(y + second, also, (__m256i)_mm512_cvtneps_pbh(b));
            continue;
        }
        float *y = (float *)p->y + at;
        if (p->accumulate || !begins) {
            a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(low, y + first));
            b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(also, y + second));
        }
        _mm512_mask_storeu_ps(y + first, low, a);
        _mm512_mask_storeu_ps(y + second, also, b);
    }
    return rest;
}

static size_t count_true(const bool *a, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += a[i] ? 1 : 0;
    }
    return count;
}

/* What one pass over the panels multiplies: some rows and a stretch of K that together leave room
 * in the second-level cache. */
typedef struct stretch {
    size_t row, rows, step, steps;
    size_t rest, rests; /* int8: of these rows among those with a second int8 */
} stretch;

/* One panel times a stretch. Its K is cut again, into SLICE steps of the panel (16 KiB), which stay
 * in the first-level cache for all rows; the sums wait in the second-level cache meanwhile.
 * Measured with bf16 weights from memory, 288 rows, K 1024: 1,590 → 2,030 GOP/s a core. One block
 * of rows alone has nothing to reuse. */
L2C_TILE static void run_panel(const l2c_linear *l, const l2c_raw_product *p, const stretch *s,
                               size_t n, bool last_panel) {
    float sums[ROWS_MOST * L2C_PANEL] __attribute__((aligned(64)));
    int32_t rest[ROWS_MOST * L2C_PANEL] __attribute__((aligned(64)));
    const bool int8 = l->precision == L2C_PRECISION_INT8;
    const size_t x_bytes = p->x_stride * l2c_linear_item_bytes(l),
                 c_bytes = L2C_PANEL * sizeof *sums;
    const size_t blocks = (s->rows + L2C_PANEL - 1) / L2C_PANEL;
    const char *panel = (const char *)l->weights + n * panel_bytes(l) + s->step * PAIR_BYTES;
    const char *next = last_panel ? panel : panel + panel_bytes(l);
    const size_t slice = blocks == 1 ? s->steps : SLICE;
    // Each block of rows calls its share of the next panel. One block alone waits for memory
    // anyway, and the hardware follows its one stream.
    const size_t ahead_bytes = blocks == 1 ? 0 : (PAIR_BYTES / blocks + 63) / 64 * 64;
    for (size_t k = 0; k < s->steps; k += slice) {
        const size_t steps = s->steps - k < slice ? s->steps - k : slice;
        const char *b = panel + k * PAIR_BYTES;
        for (size_t row = 0; row < s->rests; row += L2C_PANEL) {
            const int8_t *x =
                p->x_rest + (s->rest + row) * x_bytes + (s->step + k) * L2C_STEP_BYTES;
            int32_t *c = rest + row * L2C_PANEL;
            if (s->rests - row <= 16) {
                l2c_tiles_int8_few(c, c_bytes, x, x_bytes, b, steps, k == 0, b, 0);
            } else {
                l2c_tiles_int8(c, c_bytes, x, x_bytes, b, steps, k == 0, b, 0);
            }
        }
        const int32_t *fine = rest;
        for (size_t block = 0; block < blocks; block++) {
            const size_t row = block * L2C_PANEL;
            const size_t rows = s->rows - row < L2C_PANEL ? s->rows - row : L2C_PANEL;
            const char *x =
                (const char *)p->x + (s->row + row) * x_bytes + (s->step + k) * L2C_STEP_BYTES;
            float *c = sums + row * L2C_PANEL;
            size_t called = block * steps * ahead_bytes;
            const char *ahead = next + k * PAIR_BYTES + called;
            size_t call = called < steps * PAIR_BYTES ? ahead_bytes : 0;
            if (int8 && rows <= 16) {
                l2c_tiles_int8_few(c, c_bytes, x, x_bytes, b, steps, k == 0, ahead, call);
            } else if (int8) {
                l2c_tiles_int8(c, c_bytes, x, x_bytes, b, steps, k == 0, ahead, call);
            } else if (rows <= 16) {
                l2c_tiles_bf16_few(c, c_bytes, x, x_bytes, b, steps, k == 0, ahead, call);
            } else {
                l2c_tiles_bf16(c, c_bytes, x, x_bytes, b, steps, k == 0, ahead, call);
            }
            if (k + steps == s->steps) {
                fine = finish(l, p, c, fine, s->row + row, rows, n, s->step == 0);
            }
        }
    }
}

/* The first of the stretches of a product. Where the result is added to what is there, long rows
 * are cut along K; else fewer of them are taken at a time. */
static stretch first_stretch(const l2c_raw_product *p, size_t all_steps, size_t step_bytes,
                             size_t rows_most) {
    const size_t parts = (p->rows + rows_most - 1) / rows_most;
    const size_t even = (p->rows + parts - 1) / parts;
    stretch s = { .rows = (even + L2C_PANEL - 1) / L2C_PANEL * L2C_PANEL, .steps = all_steps };
    if (p->y_type == L2C_OUT_F32 && p->post == L2C_POST_NONE) {
        size_t most = STRETCH_BYTES / (s.rows * step_bytes), cuts = (all_steps + most - 1) / most;
        s.steps = (all_steps + cuts - 1) / cuts;
    } else if (s.rows * step_bytes * all_steps > STRETCH_BYTES) {
        size_t fit = STRETCH_BYTES / (step_bytes * all_steps) / L2C_PANEL * L2C_PANEL;
        s.rows = fit > L2C_PANEL ? fit : L2C_PANEL;
    }
    return s;
}

/* Panels [begin, end) for all rows: a run of panels for each stretch. */
L2C_TILE static void run_panels(const l2c_linear *l, const l2c_raw_product *p, size_t begin,
                                size_t end) {
    const size_t all = l->in_padded * l2c_linear_item_bytes(l) / L2C_STEP_BYTES;
    const stretch most = first_stretch(p, all, L2C_STEP_BYTES, ROWS_MOST);
    l2c_tiles_begin();
    for (stretch s = most; s.row < p->rows; s.row += most.rows) {
        s.rows = p->rows - s.row < most.rows ? p->rows - s.row : most.rows;
        if (l->precision == L2C_PRECISION_INT8) {
            s.rest += s.rests;
            s.rests = count_true(p->x_fine + s.row, s.rows);
        }
        for (s.step = 0; s.step < all; s.step += most.steps) {
            s.steps = all - s.step < most.steps ? all - s.step : most.steps;
            for (size_t n = begin; n < end; n++) {
                run_panel(l, p, &s, n, n + 1 == end);
            }
        }
    }
    l2c_tiles_end();
}

/* Panels [begin, end) times a stretch of f32. packs: room for those of its rows and of two panels.
 */
L2C_TILE static void run_stretch_f32(const l2c_linear *l, const l2c_raw_product *p,
                                     const stretch *s, size_t begin, size_t end, char *packs) {
    float sums[L2C_PANEL * L2C_PANEL] __attribute__((aligned(64)));
    const size_t blocks = (s->rows + L2C_PANEL - 1) / L2C_PANEL;
    const size_t pack = l2c_split_pack_bytes(TERMS), run = s->steps * pack;
    const l2c_split_operand x = { .x = (const float *)p->x + s->row * p->x_stride,
                                  .along = 1,
                                  .across = p->x_stride,
                                  .count = s->rows,
                                  .depth = l->in,
                                  .alpha = 1 };
    for (size_t block = 0; block < blocks; block++) {
        for (size_t k = 0; k < s->steps; k++) {
            l2c_split_pack(packs + block * run + k * pack, &x, block * L2C_PANEL,
                           (s->step + k) * L2C_SPLIT_STEP, false, TERMS);
        }
    }
    char *const panels[] = { packs + blocks * run, packs + (blocks + 1) * run };
    const size_t products = blocks * L2C_SPLIT_PRODUCTS; // with every step of a panel
    l2c_split_panel next = { .end = s->steps * L2C_PANEL,
                             .each = (L2C_PANEL + products / 2) / products };
    for (size_t n = begin; n <= end; n++) {
        // The first panel is split before anything can be multiplied.
        const char *b = panels[(n + 1) % 2];
        next.from = (const char *)l->weights + n * panel_bytes(l) +
                    s->step * L2C_SPLIT_STEP * L2C_PANEL * sizeof(float);
        next.to = panels[n % 2];
        next.at = n < end ? 0 : next.end;
        for (size_t block = 0; n > begin && block < blocks; block++) {
            const size_t row = block * L2C_PANEL;
            const size_t rows = s->rows - row < L2C_PANEL ? s->rows - row : L2C_PANEL;
            const char *a = packs + block * run;
            if (rows <= 16) {
                l2c_split_multiply(sums, L2C_PANEL, a, b, s->steps, true, TERMS, true, &next);
            } else {
                l2c_split_multiply(sums, L2C_PANEL, a, b, s->steps, true, TERMS, false, &next);
            }
            finish(l, p, sums, NULL, s->row + row, rows, n - 1, s->step == 0);
        }
        while (next.at < next.end) {
            l2c_split_panel_row(&next, next.at++);
        }
    }
}

L2C_TILE static l2cdb_status run_panels_f32(const l2c_linear *l, const l2c_raw_product *p,
                                            size_t begin, size_t end, l2c_arena *arena,
                                            l2cdb_error *err) {
    const size_t all = l->in_padded / L2C_SPLIT_STEP, pack = l2c_split_pack_bytes(TERMS);
    const stretch most = first_stretch(p, all, pack / L2C_PANEL, ROWS_MOST_F32);
    const size_t bytes = (most.rows / L2C_PANEL + 2) * most.steps * pack;
    char *packs = l2c_arena_alloc(arena, bytes, 1);
    if (packs == NULL) {
        return l2c_fail_nomem(err, bytes);
    }
    l2c_tiles_begin();
    for (stretch s = most; s.row < p->rows; s.row += most.rows) {
        s.rows = p->rows - s.row < most.rows ? p->rows - s.row : most.rows;
        for (s.step = 0; s.step < all; s.step += most.steps) {
            s.steps = all - s.step < most.steps ? all - s.step : most.steps;
            run_stretch_f32(l, p, &s, begin, end, packs);
        }
    }
    l2c_tiles_end();
    return L2CDB_OK;
}

typedef struct share {
    const l2c_linear *l;
    const l2c_raw_product *p;
    size_t panels, shares;
} share;

static l2cdb_status run_share(void *ctx, size_t task, l2c_arena *arena, l2cdb_error *err) {
    const share *s = ctx;
    size_t begin = task * s->panels / s->shares, end = (task + 1) * s->panels / s->shares;
    if (s->l->precision != L2C_PRECISION_F32) {
        run_panels(s->l, s->p, begin, end);
        return L2CDB_OK;
    }
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    l2cdb_status rc = run_panels_f32(s->l, s->p, begin, end, arena, err);
    l2c_arena_reset(arena, mark);
    return rc;
}

/* Few rows cost what it costs to read the weights: every thread of the crew reads its own panels.
 */
static l2cdb_status product(const l2c_linear *l, const l2c_raw_product *p, l2c_arena *arena,
                            l2cdb_error *err) {
    share s = { .l = l, .p = p, .panels = panels_count(l) };
    l2c_workspace *ws = l2c_workspace_current();
    s.shares = ws == NULL ? 1 : ws->threads < s.panels ? ws->threads : s.panels;
    return s.shares == 1 ? run_share(&s, 0, arena, err)
                         : l2c_deal_tasks(ws, s.shares, run_share, &s, err);
}

bool l2c_amx_usable(void) {
    const l2c_cpu *cpu = l2c_cpu_get();
    return cpu->amx_bf16 && cpu->amx_int8 && cpu->avx512_bf16;
}

#else

static l2cdb_status pack(l2c_linear *l, const l2c_source *source, l2cdb_error *err) {
    (void)l;
    (void)source;
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this processor has no matrix tiles");
}

static void unpack_free(l2c_linear *l) {
    l2c_free(l->weights);
}

static l2cdb_status product(const l2c_linear *l, const l2c_raw_product *p, l2c_arena *arena,
                            l2cdb_error *err) {
    (void)l;
    (void)p;
    (void)arena;
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this processor has no matrix tiles");
}

bool l2c_amx_usable(void) {
    return false;
}

#endif

static void describe(l2c_buf *out) {
    l2c_buf_printf(
        out, "amx: %s\n",
        l2c_amx_usable()
            ? "own kernels for bf16 and int8 tiles; f32 in three bf16 terms, six products"
            : "not on this processor");
}

const l2c_gemm_backend l2c_gemm_amx = {
    .name = "amx",
    .has_bf16 = true,
    .has_int8 = true,
    .fuses = true,
    .scales = true,
    .gates = true,
    .align_f32 = 32,
    .align_bf16 = 32,
    .align_int8 = 64,
    .pack = pack,
    .unpack_free = unpack_free,
    .product = product,
    .describe = describe,
};
