/* What the JSON files of a model say, checked: towers, LLM, heads, preprocessing.
 *
 * Shapes come from the tensors and behaviour from these files; a contradiction is an error. Every
 * number here has been bounded, so that products of them fit size_t. */
#ifndef L2C_CONFIG_H
#define L2C_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "encoders/pixels.h"
#include "engine/base/status.h"

typedef enum l2c_vision_kind {
    L2C_VISION_OPENAI,  /* spec 4.3: class token, pre-LN, projection without bias */
    L2C_VISION_EVA02,   /* spec 4.4: 2-D RoPE, sub-LN, SwiGLU, head with bias */
    L2C_VISION_SIGLIP2, /* spec 4.5: attention pooling, no projection */
} l2c_vision_kind;

typedef enum l2c_act {
    L2C_ACT_QUICK_GELU, /* z σ(1.702 z) */
    L2C_ACT_GELU,       /* z Φ(z), exact */
    L2C_ACT_GELU_TANH,
} l2c_act;

const char *l2c_act_name(l2c_act a); /* "quick_gelu", "gelu", "gelu_pytorch_tanh" */
l2cdb_status l2c_act_parse(l2c_act *out, const char *name, const char *what, l2cdb_error *err);

typedef struct l2c_vision_config {
    l2c_vision_kind kind;
    size_t width;             /* W */
    size_t layers;            /* L */
    size_t heads;             /* heads * head_width = W */
    size_t head_width;        /* 64; 72 in SigLIP2 */
    size_t hidden;            /* of the MLP */
    size_t pool_hidden;       /* SigLIP2's pooling MLP; 0 otherwise */
    size_t patch;             /* P, pixels */
    size_t image_side;        /* S = grid * patch, pixels */
    size_t grid;              /* G; tokens are G*G, plus the class token (none in SigLIP2) */
    size_t rope_grid;         /* EVA02: 16, the pretraining grid; 0 otherwise */
    l2c_act act;              /* of the MLP; EVA02's SwiGLU uses silu whatever this says */
    double ln_eps;            /* every LayerNorm of the tower */
    l2c_pixels_config pixels; /* crop_side = S */
} l2c_vision_config;

typedef struct l2c_llm_config {
    size_t width; /* d */
    size_t layers;
    size_t heads, kv_heads, head_dim;
    size_t hidden; /* of the MLP */
    size_t vocab;  /* rows of the embedding */
    double rms_eps;
    double rope_theta;
    bool rope_llama3; /* the llama3 scaling of spec 3.5, with the four numbers below */
    double rope_factor, rope_low, rope_high, rope_original;
} l2c_llm_config;

typedef struct l2c_heads_config {
    size_t width;             /* E */
    size_t text_width;        /* d of the adapter; 0 without an adapter */
    size_t blocks;            /* 4 */
    size_t text_hidden;       /* 2d */
    size_t image_width;       /* W */
    bool has_projection;      /* visual_projection.weight [E,W]; without it E = W (SigLIP2) */
    bool has_projection_bias; /* EVA02 */
    bool normalize_input;     /* false for SigLIP2 (spec 3.6) */
} l2c_heads_config;

/* The readers, over n bytes of JSON; `what` names the file in messages. E_FORMAT for JSON that is
 * broken or out of range, E_UNSUPPORTED for behaviour that is not built. */

/* LLM config.json (spec 8.4). */
l2cdb_status l2c_config_read_llm(l2c_llm_config *out, const char *json, size_t n, const char *what,
                                 l2cdb_error *err);
/* CLIP config.json: fills kind OPENAI, absent keys by CLIPVisionConfig; *projection_dim is 0 when
 * the file does not say. Preprocessing is left alone. */
l2cdb_status l2c_config_read_clip(l2c_vision_config *out, size_t *projection_dim, const char *json,
                                  size_t n, const char *what, l2cdb_error *err);
/* preprocessor_config.json; absent keys keep what *out holds. */
l2cdb_status l2c_config_read_preprocess(l2c_pixels_config *out, size_t image_side, const char *json,
                                        size_t n, const char *what, l2cdb_error *err);

#endif
