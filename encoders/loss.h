/* Contrastive losses on unit vectors and their gradients.
 *
 * Rows are unit vectors; the gradient is by the unit vector itself (the caller goes back through
 * its own normalisation). Rows of equal group are never each other's negatives: their logits are
 * left out of the sums, as if the column were not there. */
#ifndef L2C_LOSS_H
#define L2C_LOSS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/status.h"

/* Floats of scratch for B rows and N further negatives. */
size_t l2c_loss_scratch(size_t B, size_t N);

/* Symmetric InfoNCE, L = ½[CE(s V Tᵀ, i) + CE(s T Vᵀ, i)], s = exp(log_scale), each CE the mean
 * over B rows (spec 6.2; Radford et al. 2021, figure 3).
 *   v, t     f32 [B,E] unit rows
 *   dv, dt   f32 [B,E], overwritten
 *   dscale   dL / d log_scale, overwritten
 *   scratch  l2c_loss_scratch(B, 0) floats
 * Fails only if a product does; the outputs are then unspecified. The same inputs give the same
 * bits with any number of threads, as far as the products do. */
l2cdb_status l2c_loss_infonce(double *loss, float *dv, float *dt, double *dscale, float *scratch,
                              const float *v, const float *t, const int64_t *group, size_t B,
                              size_t E, double log_scale, l2cdb_error *err);

/* One direction, caption to caption with fixed scale s (50):
 * L = -1/B Σ_i log( exp(s q_i·p_i) / Σ_{c in p_1..p_B, n_1..n_N} exp(s q_i·c) ) (spec 6.1).
 *   q, p     f32 [B,E]; n f32 [N,E] further negatives or NULL with N 0
 *   dq, dp, dn  gradients, overwritten (dn NULL with N 0)
 *   scratch  l2c_loss_scratch(B, N) floats */
l2cdb_status l2c_loss_captions(double *loss, float *dq, float *dp, float *dn, float *scratch,
                               const float *q, const float *p, const float *n, const int64_t *group,
                               size_t B, size_t N, size_t E, double scale, l2cdb_error *err);

#endif
