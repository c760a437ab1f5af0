/* Products by OpenBLAS (f32 only), and the correction of its choice of kernels.
 *
 * The trap. OpenBLAS picks its kernels in a constructor when it is loaded, from a table of
 * processor families. Debian 12's 0.3.21 does not know the newest Xeons and falls back to PRESCOTT
 * (SSE3, 2004): 52 instead of 224 GFLOP/s were measured on such a machine. OPENBLAS_CORETYPE
 * overrides the table, but only if it is set before that constructor runs, and neither a library
 * nor a program can run earlier than its dependencies. The ways out that were weighed:
 *   - exec the program again with the variable set: helps no user of libl2cdb, and is visible;
 *   - dlopen OpenBLAS after setenv: FAISS is linked with the system's BLAS and has loaded it
 * already; a private copy by dlmopen would leave FAISS slow;
 *   - .preinit_array: runs before the constructors, but only in programs, and before libc has an
 *     environment to change.
 * OpenBLAS exports the pair it calls itself, gotoblas_dynamic_quit and gotoblas_dynamic_init; the
 * second reads OPENBLAS_CORETYPE again. So: after loading, while no product can be running yet (our
 * constructor comes after OpenBLAS's, before main), set the variable, choose again, and restore the
 * environment. That mends the process's only OpenBLAS for every caller, FAISS and numpy-like
 * neighbours included. The symbols are looked up by name, so another BLAS in its place (the
 * reference BLAS, MKL) is simply left alone. A user's own OPENBLAS_CORETYPE always wins. Measured
 * here, 577×1024×4096 on two cores: PRESCOTT 92, SKYLAKEX 406 GFLOP/s. */
#define _GNU_SOURCE // RTLD_DEFAULT
#include "encoders/gemm_backend.h"

#include <cblas.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/cpu.h"

static char core_before[32], core_after[32];
static bool corrected;

/* dlsym gives an object pointer; ISO C has no cast from it to a function, POSIX says memcpy works.
 */
typedef void (*plain_fn)(void);
typedef char *(*name_fn)(void);

static bool find(void *fn, const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    memcpy(fn, &found, sizeof found);
    return found != NULL;
}

const char *l2c_openblas_core(void) {
    name_fn corename;
    return find(&corename, "openblas_get_corename") ? corename() : "";
}

/* The oldest kernels that use what the processor has. */
static const char *wanted_core(void) {
    const l2c_cpu *cpu = l2c_cpu_get();
    return cpu->avx512 ? "SKYLAKEX" : cpu->avx2_fma ? "HASWELL" : NULL;
}

/* Kernel sets without AVX2, by OpenBLAS's names. */
static bool too_old(const char *core) {
    static const char *const old[] = { "Prescott",  "Core2",     "Penryn",      "Dunnington",
                                       "Nehalem",   "Athlon",    "Opteron",     "Opteron_SSE3",
                                       "Barcelona", "Bobcat",    "Bulldozer",   "Piledriver",
                                       "Atom",      "Nano",      "Sandybridge", "Steamroller",
                                       "Katmai",    "Coppermine" };
    for (size_t i = 0; i < sizeof old / sizeof *old; i++) {
        if (strcmp(core, old[i]) == 0) {
            return true;
        }
    }
    return false;
}

bool l2c_openblas_correct(void) {
    plain_fn quit, init;
    const char *core = l2c_openblas_core(), *wanted = wanted_core();
    if (wanted == NULL || !too_old(core) || getenv("OPENBLAS_CORETYPE") != NULL ||
        !find(&quit, "gotoblas_dynamic_quit") || !find(&init, "gotoblas_dynamic_init")) {
        return false;
    }
    snprintf(core_before, sizeof core_before, "%s", core);
    if (setenv("OPENBLAS_CORETYPE", wanted, 1) != 0) {
        return false;
    }
    quit();
    init();
    unsetenv("OPENBLAS_CORETYPE");
    snprintf(core_after, sizeof core_after, "%s", l2c_openblas_core());
    corrected = true;
    return true;
}

__attribute__((constructor)) static void correct_at_load(void) {
    l2c_openblas_correct();
}

int l2c_openblas_threads(int threads) {
    int (*get)(void);
    void (*set)(int);
    if (!find(&get, "openblas_get_num_threads") || !find(&set, "openblas_set_num_threads")) {
        return 0;
    }
    int before = get();
    if (threads > 0 && threads != before) {
        set(threads);
    }
    return before;
}

static l2cdb_status pack(l2c_linear *l, const l2c_source *source, l2cdb_error *err) {
    l->weights = l2c_source_dense(l, source);
    return l->weights != NULL ? L2CDB_OK : l2c_fail_nomem(err, l->out * l->in * sizeof(float));
}

static void unpack_free(l2c_linear *l) {
    l2c_free(l->weights);
}

static l2cdb_status gemm(const l2c_gemm_args *g, l2cdb_error *err) {
    const size_t most = 0x7fffffff;
    if (g->m > most || g->n > most || g->k > most || g->lda > most || g->ldb > most ||
        g->ldc > most) {
        return l2c_fail(err, L2CDB_E_LIMIT, "a product of %zux%zux%zu is too large for OpenBLAS",
                        g->m, g->k, g->n);
    }
    cblas_sgemm(CblasRowMajor, g->transpose_a ? CblasTrans : CblasNoTrans,
                g->transpose_b ? CblasTrans : CblasNoTrans, (int)g->m, (int)g->n, (int)g->k,
                g->alpha, g->a, (int)g->lda, g->b, (int)g->ldb, g->beta, g->c, (int)g->ldc);
    return L2CDB_OK;
}

static l2cdb_status product(const l2c_linear *l, const l2c_raw_product *p, l2c_arena *arena,
                            l2cdb_error *err) {
    (void)arena;
    return gemm(&(l2c_gemm_args){ .transpose_b = true,
                                  .m = p->rows,
                                  .n = l->out,
                                  .k = l->in,
                                  .alpha = 1,
                                  .a = p->x,
                                  .lda = p->x_stride,
                                  .b = l->weights,
                                  .ldb = l->in,
                                  .beta = p->accumulate ? 1 : 0,
                                  .c = p->y,
                                  .ldc = p->y_stride },
                err);
}

static void describe(l2c_buf *out) {
    const char *core = l2c_openblas_core();
    l2c_buf_printf(out, "openblas: kernels %s", *core != '\0' ? core : "of another BLAS");
    if (corrected) {
        l2c_buf_printf(out, " (chosen again: it had taken this processor for %s)", core_before);
    } else if (getenv("OPENBLAS_CORETYPE") != NULL) {
        l2c_buf_puts(out, " (OPENBLAS_CORETYPE is set)");
    }
    l2c_buf_puts(out, "\n");
}

const l2c_gemm_backend l2c_gemm_openblas = {
    .name = "openblas",
    .align_f32 = 1,
    .align_bf16 = 1,
    .align_int8 = 1,
    .pack = pack,
    .unpack_free = unpack_free,
    .product = product,
    .gemm = gemm,
    .describe = describe,
};
