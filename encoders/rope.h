/* Rotary positions: tables once per model, rotation in place on rows of heads. */
#ifndef L2C_ROPE_H
#define L2C_ROPE_H

#include <stdbool.h>
#include <stddef.h>

#include "encoders/config.h"

typedef struct l2c_rope {
    float *cosines, *sines; /* [positions, head_dim/2] */
    size_t positions, half; /* half = head_dim/2 */
    bool interleaved; /* pairs (2j, 2j+1), EVA02; else (j, j+half), Llama. Never mix the two. */
} l2c_rope;

/* Llama, with llama3 scaling where the configuration has it. Angles in f64. Source: spec 3.5. */
l2cdb_status l2c_rope_init_llama(l2c_rope *r, const l2c_llm_config *c, size_t positions,
                                 l2cdb_error *err);
/* EVA02's two axes over grid*grid tokens behind a class token, whose row 0 does not turn.
 * Source: spec 4.4. */
l2cdb_status l2c_rope_init_eva(l2c_rope *r, size_t grid, size_t rope_grid, size_t head_dim,
                               l2cdb_error *err);
void l2c_rope_fini(l2c_rope *r);
/* Turns `heads` consecutive heads at x by row `position` of the table. */
void l2c_rope_apply(const l2c_rope *r, float *x, size_t heads, size_t position);
/* The inverse frequencies of Llama, [head_dim/2], for the tests. */
void l2c_rope_frequencies(const l2c_llm_config *c, double *out);

#endif
