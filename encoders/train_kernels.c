/* The loops of train_loops.h for three levels of processor. */
#include "encoders/train_kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdint.h>

#include "engine/base/cpu.h"

#define FN(name) name##_plain
#define TARGET
#include "encoders/train_loops.h"
#undef FN
#undef TARGET

#if defined(__x86_64__)
#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#include "encoders/train_loops.h"
#undef FN
#undef TARGET

#define FN(name) name##_avx512
#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#include "encoders/train_loops.h"
#undef FN
#undef TARGET
#endif

#define KERNELS(level)                                                                             \
    {                                                                                              \
        log_sum_exp_##level, columns_sum_exp_##level, columns_merge_##level,                       \
            probabilities_##level, symmetric_row_##level, gelu_row_##level, multiply_row_##level,  \
            norm_row_##level, affine_row_##level, norm_back_row_##level, add_row_##level,          \
            adamw_##level, square_sum_##level                                                      \
    }

static l2c_train_kernels use = KERNELS(plain);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    if (cpu->avx512) {
        use = (l2c_train_kernels)KERNELS(avx512);
    } else if (cpu->avx2_fma) {
        use = (l2c_train_kernels)KERNELS(avx2);
    }
#endif
}

const l2c_train_kernels *l2c_train_kernels_get(void) {
    pthread_once(&once, choose);
    return &use;
}
