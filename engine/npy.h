/* NumPy's .npy files, read and written in rows. Format: github.com/numpy/numpy, numpy/lib/format.py
 * (versions 1.0 to 3.0). */
#ifndef L2C_NPY_H
#define L2C_NPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/file.h"

/* An array of one or two dimensions in C order being read. */
typedef struct l2c_npy {
    FILE *file;
    size_t rows, width; /* one dimension: rows 1 */
} l2c_npy;

/* Only little-endian f32 ("<f4"); f64, f16, other orders and other ranks are E_UNSUPPORTED with
 * the way to convert. The size of the file is checked against the header: E_FORMAT. */
l2cdb_status l2c_npy_open(l2c_npy *in, const char *path, l2cdb_error *err);
/* Exactly n further rows into out f32 [n, width]. */
l2cdb_status l2c_npy_read(l2c_npy *in, float *out, size_t n, l2cdb_error *err);
void l2c_npy_close(l2c_npy *in); /* zeroed accepted */

/* The header of an array in C order, always L2C_NPY_HEADER_BYTES long, so that it can be patched
 * when the number of rows is known. width 0: one dimension. descr "<f4" or "<i8". */
#define L2C_NPY_HEADER_BYTES 128
void l2c_npy_header(char out[L2C_NPY_HEADER_BYTES], const char *descr, size_t rows, size_t width);

#endif
