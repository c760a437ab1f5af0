/* The text adapter (and the image projection) as a trainer sees them: one block of parameters, a
 * forward pass that keeps what backward needs, and the backward pass beside it.
 *
 * The forward is that of adapter.c, on plain f32 matrices that change every step instead of packed
 * ones: x = normalize(v); x += W2 gelu(W1 LN(x) + c1) + c2 for each block; y = W LN(x) + b (spec
 * 5). The backward follows the list at the end of spec 5. */
#ifndef L2C_ADAPTER_GRAD_H
#define L2C_ADAPTER_GRAD_H

#include <stdbool.h>
#include <stddef.h>

#include "encoders/encoders.h"

typedef struct l2c_head_shape {
    size_t width;       /* E */
    size_t text_width;  /* d */
    size_t text_hidden; /* 2d */
    size_t blocks;
    size_t image_width; /* W; 0 without a trained projection */
    bool image_bias;
    bool normalize_input;
} l2c_head_shape;

/* A named piece of the block: [rows, columns] of a matrix, [rows] of a vector (columns 0). */
typedef struct l2c_param {
    char name[64]; /* as l2c_heads_visit has it */
    size_t rows, columns, offset, count;
    bool decay; /* matrices only */
} l2c_param;

enum { L2C_PARAMS_PER_BLOCK = 6, L2C_BLOCKS_MAX = 64 };

/* The layout of a block for a shape. Pieces start at multiples of 16 floats; the gaps are zero and
 * stay zero, since their gradient is. */
typedef struct l2c_param_table {
    l2c_head_shape shape;
    l2c_param *params;
    size_t count;
    size_t floats; /* of the whole block, gaps included */
    /* Indices into params. Block b's six are at 6b: ln.weight, ln.bias, fn.0.weight, fn.0.bias,
     * fn.3.weight, fn.3.bias. */
    size_t last_norm; /* weight, then bias */
    size_t out;       /* weight, then bias */
    size_t image;     /* weight, then bias if there is one; 0 without */
    size_t logit_scale;
} l2c_param_table;

l2cdb_status l2c_param_table_init(l2c_param_table *t, const l2c_head_shape *shape,
                                  l2cdb_error *err);
void l2c_param_table_fini(l2c_param_table *t);

/* What a forward pass over at most `rows` rows leaves for the backward pass. */
typedef struct l2c_adapter_tape {
    size_t rows_max;
    float *memory;
    float *xhat;       /* [blocks+1, rows, d] */
    float *inverse;    /* [blocks+1, rows] */
    float *g;          /* [blocks, rows, 2d]: gelu(u) */
    float *slope;      /* [blocks, rows, 2d]: gelu'(u) */
    float *x, *z;      /* [rows, d] */
    float *dg;         /* [rows, 2d] */
    float *input_norm; /* [rows] */
    float *sums;       /* sums over a slice of rows each, see adapter_grad.c */
} l2c_adapter_tape;

l2cdb_status l2c_adapter_tape_init(l2c_adapter_tape *tape, const l2c_head_shape *shape,
                                   size_t rows_max, l2cdb_error *err);
void l2c_adapter_tape_fini(l2c_adapter_tape *tape);

/* y[rows,E] = adapter(v[rows,d]) with parameters `p` (the block); fills the tape. */
l2cdb_status l2c_adapter_forward(const l2c_param_table *t, const float *p, l2c_adapter_tape *tape,
                                 float *y, const float *v, size_t rows, l2cdb_error *err);
/* From dy[rows,E] (kept) and the tape of the last forward, whose rows it must be: the gradient of
 * every adapter parameter into the block `g`, overwriting what was there. dv (NULL or [rows,d])
 * gets the gradient by v, through the first normalisation; `v` is then the forward's input. */
l2cdb_status l2c_adapter_backward(const l2c_param_table *t, const float *p, float *g,
                                  l2c_adapter_tape *tape, const float *dy, float *dv,
                                  const float *v, size_t rows, l2cdb_error *err);

/* y[rows,E] = W x (+ b) of the image projection, and its gradient into `g`. */
l2cdb_status l2c_projection_forward(const l2c_param_table *t, const float *p, float *y,
                                    const float *x, size_t rows, l2cdb_error *err);
l2cdb_status l2c_projection_backward(const l2c_param_table *t, float *g, const float *dy,
                                     const float *x, size_t rows, l2cdb_error *err);

/* e = y / |y| in place, the norms into `norms` [rows]; and back: dy = (de - e (e·de)) / |y|, in
 * place of de. */
void l2c_unit_forward(float *y, float *norms, size_t rows, size_t width);
void l2c_unit_backward(float *de, const float *e, const float *norms, size_t rows, size_t width);

#endif
