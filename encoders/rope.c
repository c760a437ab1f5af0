/* Rotary positions; see rope.h. */
#include "encoders/rope.h"

#include <math.h>

#include "engine/base/mem.h"

static const double two_pi = 6.283185307179586476925;

static l2cdb_status alloc_tables(l2c_rope *r, size_t positions, size_t half, bool interleaved,
                                 l2cdb_error *err) {
    *r = (l2c_rope){ .positions = positions, .half = half, .interleaved = interleaved };
    r->cosines = l2c_alloc(positions * half, sizeof *r->cosines);
    r->sines = l2c_alloc(positions * half, sizeof *r->sines);
    if (r->cosines == NULL || r->sines == NULL) {
        l2c_rope_fini(r);
        return l2c_fail_nomem(err, positions * half * 2 * sizeof(float));
    }
    return L2CDB_OK;
}

static void set(l2c_rope *r, size_t position, size_t j, double angle) {
    r->cosines[position * r->half + j] = (float)cos(angle);
    r->sines[position * r->half + j] = (float)sin(angle);
}

void l2c_rope_frequencies(const l2c_llm_config *c, double *out) {
    for (size_t i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
        double wavelength = two_pi / f;
        if (c->rope_llama3 && wavelength > c->rope_original / c->rope_low) {
            f /= c->rope_factor;
        } else if (c->rope_llama3 && wavelength >= c->rope_original / c->rope_high) {
            double s = (c->rope_original / wavelength - c->rope_low) / (c->rope_high - c->rope_low);
            f = (1 - s) * f / c->rope_factor + s * f;
        }
        out[i] = f;
    }
}

l2cdb_status l2c_rope_init_llama(l2c_rope *r, const l2c_llm_config *c, size_t positions,
                                 l2cdb_error *err) {
    size_t half = c->head_dim / 2;
    double *frequencies = l2c_alloc(half, sizeof *frequencies);
    if (frequencies == NULL) {
        return l2c_fail_nomem(err, half * sizeof *frequencies);
    }
    l2c_rope_frequencies(c, frequencies);
    l2cdb_status rc = alloc_tables(r, positions, half, false, err);
    for (size_t p = 0; rc == L2CDB_OK && p < positions; p++) {
        for (size_t j = 0; j < half; j++) {
            set(r, p, j, (double)p * frequencies[j]);
        }
    }
    l2c_free(frequencies);
    return rc;
}

l2cdb_status l2c_rope_init_eva(l2c_rope *r, size_t grid, size_t rope_grid, size_t head_dim,
                               l2cdb_error *err) {
    size_t half = head_dim / 2, axis = half / 2; // pairs of one axis
    l2cdb_status rc = alloc_tables(r, grid * grid + 1, half, true, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    for (size_t j = 0; j < half; j++) {
        set(r, 0, j, 0);
    }
    double step = (double)rope_grid / (double)grid;
    for (size_t y = 0; y < grid; y++) {
        for (size_t x = 0; x < grid; x++) {
            for (size_t j = 0; j < axis; j++) {
                double f = pow(10000.0, -2.0 * (double)j / (double)half);
                size_t position = 1 + y * grid + x;
                set(r, position, j, (double)y * step * f);
                set(r, position, axis + j, (double)x * step * f);
            }
        }
    }
    return L2CDB_OK;
}

void l2c_rope_fini(l2c_rope *r) {
    l2c_free(r->cosines);
    l2c_free(r->sines);
    *r = (l2c_rope){ 0 };
}

void l2c_rope_apply(const l2c_rope *r, float *x, size_t heads, size_t position) {
    const float *c = r->cosines + position * r->half, *s = r->sines + position * r->half;
    for (size_t h = 0; h < heads; h++) {
        float *v = x + h * 2 * r->half;
        if (r->interleaved) {
            for (size_t j = 0; j < r->half; j++) {
                float a = v[2 * j], b = v[2 * j + 1];
                v[2 * j] = a * c[j] - b * s[j];
                v[2 * j + 1] = b * c[j] + a * s[j];
            }
        } else {
            float *w = v + r->half;
            for (size_t j = 0; j < r->half; j++) {
                float a = v[j], b = w[j];
                v[j] = a * c[j] - b * s[j];
                w[j] = b * c[j] + a * s[j];
            }
        }
    }
}
