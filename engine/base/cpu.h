/* What the processor can do, found once at first use (cpuid through the compiler's builtins, which
 * also check that the operating system saves the registers). */
#ifndef L2C_CPU_H
#define L2C_CPU_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct l2c_cpu {
    bool avx2_fma;    /* AVX2, FMA and F16C */
    bool avx512;      /* F, BW, DQ, VL */
    bool avx512_vnni; /* int8 dot products in 512-bit registers */
    bool avx512_bf16;
    bool amx_bf16, amx_int8; /* and the kernel has granted the tile registers to this process */
    bool neon;
} l2c_cpu;

/* Never NULL; constant after the first call; any thread. The environment variable
 * L2CDB_CPU=plain|avx2|avx512|vnni lowers what is reported, so that tests reach every path. */
const l2c_cpu *l2c_cpu_get(void);

/* "avx2 avx512 vnni bf16 amx-bf16 amx-int8" into out; for `version --verbose` and the logs. */
void l2c_cpu_describe(char *out, size_t size);

/* Cores this process may run on (affinity mask), at least 1. */
size_t l2c_cpu_count(void);

#ifdef __cplusplus
}
#endif
#endif
