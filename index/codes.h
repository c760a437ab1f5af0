/* Rows stored as codes (f32, fp16, 8 or 4 bits a value) and their dot products with a query.
 *
 * An 8- or 4-bit value c of dimension i stands for min[i] + step[i]*c. For those the query becomes
 * 16-bit integers, weights w[i] = round(scale*query[i]*step[i]), and
 *
 *     dot = offset + (Σ w[i]*c[i]) / scale,   offset = Σ query[i]*min[i]
 *
 * in which the sum is computed in exact integer arithmetic: every processor gives the same result.
 * `scale` is as large as 16-bit weights and a 32-bit sum allow for unit vectors. */
#ifndef L2C_CODES_H
#define L2C_CODES_H

#include <stddef.h>
#include <stdint.h>

#include "index/index.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct l2c_codes_query l2c_codes_query;

typedef struct l2c_codes {
    l2c_quant quant; /* F32, FP16, SQ8, SQ4 */
    size_t width, row_bytes, query_bytes;
    const uint8_t *rows;     /* [count, row_bytes] */
    const float *min, *step; /* [width], SQ8 and SQ4 */
    float unit_scale;        /* of the weights of a unit vector */
    void (*dots4)(float out[4], const l2c_codes_query *q, const uint8_t *const rows[4]);
} l2c_codes;

/* Bytes of a row: 4, 2, 1 or a half for each value. */
size_t l2c_codes_row_bytes(l2c_quant quant, size_t width);
/* Pointers are borrowed for the life of `codes`. */
void l2c_codes_init(l2c_codes *codes, l2c_quant quant, size_t width, const uint8_t *rows,
                    const float *min, const float *step);

/* A query made ready. `memory` (64-byte aligned, codes->query_bytes) is the caller's. */
struct l2c_codes_query {
    const l2c_codes *codes;
    float offset, factor; /* dot = offset + factor*sum */
    const void *memory;
};

/* query f32 [width], of unit norm; for F32 and FP16 it is borrowed until the last use. */
void l2c_codes_prepare(l2c_codes_query *q, const l2c_codes *codes, const float *query,
                       void *memory);
/* The query is what row `row` of SQ8 or SQ4 codes decodes to. */
void l2c_codes_prepare_row(l2c_codes_query *q, const l2c_codes *codes, size_t row, void *memory);

/* out[i] = dot of the query with rows[i]; prefetches as it goes. */
void l2c_codes_dots(float *out, const l2c_codes_query *q, const int32_t *rows, size_t n);
/* Its parts, for loops that do other work in between: asks for the rows' codes to be brought into
 * the cache, and compares at most four (n ≥ 1) that were. */
void l2c_codes_fetch(const l2c_codes_query *q, const int32_t *rows, size_t n);
void l2c_codes_dots4(float out[4], const l2c_codes_query *q, const int32_t *rows, size_t n);
/* The same for n adjacent codes at `first`. */
void l2c_codes_dots_block(float *out, const l2c_codes_query *q, const uint8_t *first, size_t n);

#ifdef __cplusplus
}
#endif
#endif
