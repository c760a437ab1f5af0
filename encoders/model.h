/* The inside of an opened model; see encoders.h for the door. */
#ifndef L2C_MODEL_H
#define L2C_MODEL_H

#include "encoders/adapter.h"
#include "encoders/bundle.h"
#include "encoders/llama.h"
#include "encoders/tower.h"

struct l2c_heads {
    l2c_heads_config config;
    l2c_precision precision; /* of the adapter's blocks; the last layers are f32 */
    bool has_text;
    l2c_adapter adapter;
    l2c_linear *projection; /* NULL: the tower's features are the joint space (SigLIP2) */
    float logit_scale;      /* the logarithm */
    l2c_hash hash;
    const l2c_tensors *tensors; /* `owned`, or borrowed from the bundle */
    l2c_tensors owned;
    float *values; /* what `owned` points into */
    size_t threads;
    l2c_workspaces *workspaces; /* owned */
};

struct l2c_model {
    l2c_bundle *bundle;
    l2c_model_info info;
    size_t threads;
    l2c_tower tower; /* if info.has_image */
    l2c_llama llama; /* if info.has_text */
    l2c_heads *heads;
    l2c_workspaces workspaces;
};

/* What `auto` becomes on this machine; *why says it for people. */
l2c_precision l2c_precision_automatic(const char **why);

/* The heads of an opened bundle, whose tensors are borrowed; *out NULL if it has none. */
l2cdb_status l2c_heads_from_bundle(l2c_heads **out, const l2c_bundle *b, l2c_precision precision,
                                   size_t threads, l2cdb_error *err);

#endif
