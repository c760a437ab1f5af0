/* Products of f32 arrays on bf16 tiles (AMX) in two terms (amx_split.h): a single product is off by
 * 3 · 2⁻¹⁶ at most, a sum of a thousand by a few 10⁻⁶ of its terms, at three tile products for one.
 * Used where training multiplies large arrays, which are new each time: packing is part of the
 * price.
 *
 * A is packed once a call. A thread then takes a run of columns, packs B for one stretch of K into
 * a buffer that stays in its second-level cache, and goes through all rows. Every sum is taken in
 * the same order whatever the number of threads. */
#include "encoders/gemm_backend.h"

#include <pthread.h>
#include <string.h>

#include "engine/base/cpu.h"

/* ---- Scratch: the last block is kept, since a fresh one is zeroed page by page each time ---- */

typedef struct scratch {
    char *at;
    size_t bytes;
} scratch;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static scratch kept;

static scratch take(size_t bytes) {
    pthread_mutex_lock(&kept_lock);
    scratch s = kept;
    kept = (scratch){ 0 };
    pthread_mutex_unlock(&kept_lock);
    if (s.bytes < bytes) {
        l2c_free(s.at);
        s = (scratch){ .at = l2c_alloc_aligned(bytes, 1), .bytes = bytes };
    }
    return s;
}

static void give(scratch s) {
    pthread_mutex_lock(&kept_lock);
    scratch other = kept;
    kept = s;
    pthread_mutex_unlock(&kept_lock);
    l2c_free(other.at);
}

void l2c_gemm_trim(void) {
    give((scratch){ 0 });
}

#if defined(__x86_64__)
#include <omp.h>

#include "encoders/amx_split.h"

/* STRETCH of K times COLUMNS of B are a thread's buffer (1 MiB); QUAD: a pack of two terms. */
enum { STEP = L2C_SPLIT_STEP, STRETCH = 512, COLUMNS = 512, BLOCK = 32, TERMS = 2 };
enum { QUAD = TERMS * 2 * L2C_TILE_BYTES };

/* A block at the edge goes through a buffer of its own. */
L2C_TILE static void multiply_edge(const l2c_gemm_args *g, size_t i, size_t j, const char *a,
                                   const char *b, size_t steps, bool fresh) {
    float block[BLOCK * BLOCK] __attribute__((aligned(64))) = { 0 };
    size_t rows = g->m - i < BLOCK ? g->m - i : BLOCK,
           columns = g->n - j < BLOCK ? g->n - j : BLOCK;
    for (size_t r = 0; r < rows && !fresh; r++) {
        memcpy(block + r * BLOCK, g->c + (i + r) * g->ldc + j, columns * sizeof *block);
    }
    l2c_split_multiply(block, BLOCK, a, b, steps, fresh, TERMS, false, NULL);
    for (size_t r = 0; r < rows; r++) {
        memcpy(g->c + (i + r) * g->ldc + j, block + r * BLOCK, columns * sizeof *block);
    }
}

typedef struct plan {
    const l2c_gemm_args *g;
    l2c_split_operand a, b;
    size_t steps, row_blocks, columns; /* columns a run, a multiple of 32 */
    const char *packed;                /* A: [row_blocks, steps] quads */
} plan;

L2C_TILE static void run_columns(const plan *p, size_t from, char *buffer) {
    const l2c_gemm_args *g = p->g;
    const size_t end = from + p->columns < g->n ? from + p->columns : g->n;
    l2c_tiles_begin();
    for (size_t s0 = 0; s0 < p->steps; s0 += STRETCH / STEP) {
        size_t steps = p->steps - s0 < STRETCH / STEP ? p->steps - s0 : STRETCH / STEP;
        char *to = buffer;
        for (size_t j = from; j < end; j += BLOCK) {
            for (size_t s = s0; s < s0 + steps; s++, to += QUAD) {
                l2c_split_pack(to, &p->b, j, s * STEP, true, TERMS);
            }
        }
        bool fresh = s0 == 0 && g->beta == 0;
        for (size_t r = 0; r < p->row_blocks; r++) {
            const char *a = p->packed + (r * p->steps + s0) * QUAD, *b = buffer;
            for (size_t j = from; j < end; j += BLOCK, b += steps * QUAD) {
                if ((r + 1) * BLOCK <= g->m && j + BLOCK <= g->n) {
                    l2c_split_multiply(g->c + r * BLOCK * g->ldc + j, g->ldc, a, b, steps, fresh,
                                       TERMS, false, NULL);
                } else {
                    multiply_edge(g, r * BLOCK, j, a, b, steps, fresh);
                }
            }
        }
    }
    l2c_tiles_end();
}

/* Runs of columns: enough for every thread, none wider than the buffer. */
static size_t columns_for(size_t n) {
    size_t threads = omp_in_parallel() ? 1 : (size_t)omp_get_max_threads();
    size_t runs = (n + COLUMNS - 1) / COLUMNS;
    runs = (runs + threads - 1) / threads * threads;
    return ((n + runs - 1) / runs + BLOCK - 1) / BLOCK * BLOCK;
}

l2cdb_status l2c_gemm_split(const l2c_gemm_args *g, l2cdb_error *err) {
    plan p = { .g = g,
               .a = { .x = g->a,
                      .along = g->transpose_a ? g->lda : 1,
                      .across = g->transpose_a ? 1 : g->lda,
                      .count = g->m,
                      .depth = g->k,
                      .alpha = g->alpha },
               .b = { .x = g->b,
                      .along = g->transpose_b ? 1 : g->ldb,
                      .across = g->transpose_b ? g->ldb : 1,
                      .count = g->n,
                      .depth = g->k,
                      .alpha = 1 },
               .steps = (g->k + STEP - 1) / STEP,
               .row_blocks = (g->m + BLOCK - 1) / BLOCK,
               .columns = columns_for(g->n) };
    size_t runs = (g->n + p.columns - 1) / p.columns;
    size_t a_bytes = p.row_blocks * p.steps * QUAD;
    size_t b_bytes = p.columns / BLOCK * (STRETCH / STEP) * QUAD;
    size_t threads = omp_in_parallel() ? 1 : (size_t)omp_get_max_threads();
    scratch memory = take(a_bytes + threads * b_bytes);
    if (memory.at == NULL) {
        return l2c_fail_nomem(err, a_bytes + threads * b_bytes);
    }
    p.packed = memory.at;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < p.row_blocks; r++) {
        for (size_t s = 0; s < p.steps; s++) {
            l2c_split_pack(memory.at + (r * p.steps + s) * QUAD, &p.a, r * BLOCK, s * STEP, false,
                           TERMS);
        }
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t run = 0; run < runs; run++) {
        run_columns(&p, run * p.columns,
                    memory.at + a_bytes + (size_t)omp_get_thread_num() * b_bytes);
    }
    give(memory);
    return L2CDB_OK;
}

/* Measured: below this packing costs more than the tiles save. */
bool l2c_gemm_split_pays(const l2c_gemm_args *g) {
    return l2c_amx_usable() && (g->beta == 0 || g->beta == 1) && g->m >= 64 && g->n >= 64 &&
           g->k >= 64 && (double)g->m * (double)g->n * (double)g->k >= 16e6;
}

#else

l2cdb_status l2c_gemm_split(const l2c_gemm_args *g, l2cdb_error *err) {
    (void)g;
    return l2c_fail(err, L2CDB_E_UNSUPPORTED, "this processor has no matrix tiles");
}

bool l2c_gemm_split_pays(const l2c_gemm_args *g) {
    (void)g;
    return false;
}

#endif
