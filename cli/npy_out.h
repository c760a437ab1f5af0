/* Writing .npy files (NumPy's array format, version 1.0). */
#ifndef L2C_NPY_OUT_H
#define L2C_NPY_OUT_H

#include <stdbool.h>
#include <stddef.h>

/* f32 [rows, columns] in C order to `path` ("-" is stdout). False when it could not be written
 * (errno tells). Source: numpy/lib/format.py. */
bool l2c_npy_out_write(const char *path, const float *v, size_t rows, size_t columns);

#endif
