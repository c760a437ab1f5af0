/* Dot products of one query with many stored rows: what every search spends its time in.
 *
 * The forms for AVX-512, AVX2 and NEON are chosen once by l2c_cpu_get(). Within one form a row's
 * result depends on nothing but the query and that row: it is the same alone, in a batch, in a
 * scan or in a re-rank, so distances from different paths can be compared and merged. */
#ifndef L2C_KERNELS_H
#define L2C_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = Σ query[j]*rows[i][j]; f32, unaligned pointers. */
void l2c_kernel_dots(float *out, const float *query, const float *const *rows, size_t n,
                     size_t width);
/* The same over n adjacent rows [n, width]. */
void l2c_kernel_dots_block(float *out, const float *query, const float *rows, size_t n,
                           size_t width);

/* "avx512", "avx2", "neon" or "plain" */
const char *l2c_kernel_name(void);

#ifdef __cplusplus
}
#endif
#endif
