/* Processor features; see cpu.h. */
#define _GNU_SOURCE // sched_getaffinity, CPU_COUNT
#include "engine/base/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

static l2c_cpu found;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* Linux hands out the AMX tile data registers on request (Documentation/arch/x86/xstate.rst);
 * without the request the first tile instruction is SIGILL. */
static bool request_amx(void) {
    const long arch_req_xcomp_perm = 0x1023;
    const long xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
}

static void detect_x86(void) {
    __builtin_cpu_init();
    found.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_F16C) == 0) {
        found.avx2_fma = false;
    }
    found.avx512 = found.avx2_fma && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
    if (!found.avx512) {
        return;
    }
    found.avx512_vnni = __builtin_cpu_supports("avx512vnni");
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        found.avx512_bf16 = (a >> 5) & 1u;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        bool tile = ((d >> 24) & 1u) && request_amx();
        found.amx_bf16 = tile && ((d >> 22) & 1u);
        found.amx_int8 = tile && ((d >> 25) & 1u);
    }
}
#endif

static void detect(void) {
#if defined(__x86_64__)
    detect_x86();
    // What every processor of a level has: Haswell, Skylake-X, Cascade Lake.
    const struct {
        const char *name;
        l2c_cpu most;
    } levels[] = {
        { "plain", { 0 } },
        { "avx2", { .avx2_fma = found.avx2_fma } },
        { "avx512", { .avx2_fma = found.avx2_fma, .avx512 = found.avx512 } },
        { "vnni",
          { .avx2_fma = found.avx2_fma,
            .avx512 = found.avx512,
            .avx512_vnni = found.avx512_vnni } },
    };
    const char *wish = getenv("L2CDB_CPU");
    for (size_t i = 0; wish != NULL && i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(wish, levels[i].name) == 0) {
            found = levels[i].most;
            break;
        }
    }
#elif defined(__aarch64__)
    found.neon = true;
#endif
}

const l2c_cpu *l2c_cpu_get(void) {
    pthread_once(&once, detect);
    return &found;
}

void l2c_cpu_describe(char *out, size_t size) {
    const l2c_cpu *c = l2c_cpu_get();
    int n = snprintf(out, size, "%s%s%s%s%s%s%s", c->avx2_fma ? "avx2 " : "",
                     c->avx512 ? "avx512 " : "", c->avx512_vnni ? "vnni " : "",
                     c->avx512_bf16 ? "bf16 " : "", c->amx_bf16 ? "amx-bf16 " : "",
                     c->amx_int8 ? "amx-int8 " : "", c->neon ? "neon " : "");
    if (n == 0) {
        snprintf(out, size, "plain");
    } else if (n > 0 && (size_t)n < size) {
        out[n - 1] = '\0';
    }
}

size_t l2c_cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        return n > 0 ? (size_t)n : 1;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (size_t)n : 1;
}
