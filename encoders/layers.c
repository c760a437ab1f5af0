/* Norms, activations and row conversions: the loops of layers_kernels.h compiled for three levels
 * of processor and chosen at first use. The reductions are reassociated (several partial sums), so
 * two levels differ by rounding. */
#include "encoders/layers.h"

#include <pthread.h>

#include "engine/base/cpu.h"

#define VECTOR_TYPES(lanes)                                                                        \
    typedef float l2c_v##lanes __attribute__((vector_size((lanes) * sizeof(float))));              \
    typedef float l2c_u##lanes                                                                     \
        __attribute__((vector_size((lanes) * sizeof(float)), aligned(4), may_alias))

VECTOR_TYPES(4);

#define FN(name) name##_plain
#define TARGET
#define VECTOR l2c_v4
#define UNALIGNED l2c_u4
#include "encoders/layers_kernels.h"
#undef FN
#undef TARGET
#undef VECTOR
#undef UNALIGNED

#if defined(__x86_64__)
VECTOR_TYPES(8);
VECTOR_TYPES(16);

#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VECTOR l2c_v8
#define UNALIGNED l2c_u8
#include "encoders/layers_kernels.h"
#undef FN
#undef TARGET
#undef VECTOR
#undef UNALIGNED

#define FN(name) name##_avx512
#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define VECTOR l2c_v16
#define UNALIGNED l2c_u16
#include "encoders/layers_kernels.h"
#undef FN
#undef TARGET
#undef VECTOR
#undef UNALIGNED
#endif

typedef struct kernels {
    void (*layer_norm)(float *, const float *, const float *, const float *, size_t, float);
    void (*rms_norm)(float *, const float *, const float *, size_t, float);
    void (*activate)(float *, size_t, l2c_post);
    void (*swiglu)(float *, const float *, const float *, size_t);
    float (*softmax_exp)(float *, size_t);
    float (*quantise_row)(int8_t *, float *, const float *, size_t);
    void (*quantise_rest)(int8_t *, const int8_t *, const float *, float, size_t);
    void (*add_rest)(int32_t *, const int32_t *, size_t);
    void (*dequantise_row)(float *, const int32_t *, float, const float *, const float *, size_t);
    void (*dequantise_add)(float *, const int32_t *, float, const float *, const float *, size_t);
    void (*bf16_row)(uint16_t *, const float *, size_t);
    void (*tile_product)(float *, size_t, const float *, size_t, const float *, size_t, size_t,
                         size_t, size_t);
} kernels;

#define KERNELS(level)                                                                             \
    {                                                                                              \
        layer_norm_##level, rms_norm_##level, activate_##level, swiglu_##level,                    \
            softmax_exp_##level, quantise_row_##level, quantise_rest_##level, add_rest_##level,    \
            dequantise_row_##level, dequantise_add_##level, bf16_row_##level, tile_product_##level \
    }

static kernels use = KERNELS(plain);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void) {
#if defined(__x86_64__)
    const l2c_cpu *cpu = l2c_cpu_get();
    if (cpu->avx512) {
        use = (kernels)KERNELS(avx512);
    } else if (cpu->avx2_fma) {
        use = (kernels)KERNELS(avx2);
    }
#endif
}

static inline const kernels *get(void) {
    pthread_once(&once, choose);
    return &use;
}

void l2c_layer_norm(float *out, const float *x, const float *weight, const float *bias, size_t n,
                    float eps) {
    get()->layer_norm(out, x, weight, bias, n, eps);
}

void l2c_rms_norm(float *out, const float *x, const float *weight, size_t n, float eps) {
    get()->rms_norm(out, x, weight, n, eps);
}

void l2c_activate(float *x, size_t n, l2c_post post) {
    get()->activate(x, n, post);
}

void l2c_swiglu(float *out, const float *gate, const float *up, size_t n) {
    get()->swiglu(out, gate, up, n);
}

float l2c_softmax_exp(float *x, size_t n) {
    return get()->softmax_exp(x, n);
}

float l2c_quantise_row(int8_t *out, const float *x, size_t n) {
    float squares;
    return get()->quantise_row(out, &squares, x, n);
}

/* The largest element of a row over its root mean square, from which on one int8 an element is not
 * enough. docs/model.md has what it was chosen by. */
#define CREST_MOST 9.0F

float l2c_quantise_row_fine(int8_t *out, int8_t *rest, bool *fine, const float *x, size_t n) {
    float squares;
    float scale = get()->quantise_row(out, &squares, x, n), most = 127.0F * scale;
    *fine = most * most * (float)n > CREST_MOST * CREST_MOST * squares;
    if (*fine) {
        get()->quantise_rest(rest, out, x, scale, n);
    }
    return scale;
}

void l2c_add_rest(int32_t *sums, const int32_t *rest, size_t n) {
    get()->add_rest(sums, rest, n);
}

void l2c_dequantise_row(float *y, const int32_t *sums, float x_scale, const float *scale,
                        const float *bias, size_t n, l2c_post post, bool accumulate) {
    if (accumulate) {
        get()->dequantise_add(y, sums, x_scale, scale, bias, n);
        return;
    }
    get()->dequantise_row(y, sums, x_scale, scale, bias, n);
    get()->activate(y, n, post);
}

void l2c_bf16_row(uint16_t *out, const float *x, size_t n) {
    get()->bf16_row(out, x, n);
}

void l2c_tile_product(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                      size_t m, size_t n, size_t k) {
    get()->tile_product(c, ldc, a, lda, b, ldb, m, n, k);
}
