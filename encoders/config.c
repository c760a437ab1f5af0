/* The JSON files of a model; see config.h. Keys as in design notes 8.4. */
#include "encoders/config.h"

#include <math.h>
#include <string.h>

#include "engine/base/json.h"

#define WIDTH_MAX 65536
#define LAYERS_MAX 512

const char *l2c_act_name(l2c_act a) {
    static const char *const names[] = { "quick_gelu", "gelu", "gelu_pytorch_tanh" };
    return names[a];
}

static l2cdb_status parse_object(json_t **out, const char *json, size_t n, const char *what,
                                 l2cdb_error *err) {
    l2cdb_status rc = l2c_json_parse(out, json, n, what, err);
    if (rc == L2CDB_OK && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: expected a JSON object", what);
    }
    return rc;
}

/* A number in [least, most]. */
static l2cdb_status get_bounded(const json_t *o, const char *key, double *out, double least,
                                double most, bool required, const char *what, l2cdb_error *err) {
    l2cdb_status rc = l2c_json_get_double(o, key, out, required, what, err);
    if (rc == L2CDB_OK && !(*out >= least && *out <= most)) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: \"%s\" is %g, expected %g to %g", what, key, *out,
                      least, most);
    }
    return rc;
}

static l2cdb_status must_be_false(const json_t *o, const char *key, const char *what,
                                  l2cdb_error *err) {
    bool value = false;
    l2cdb_status rc = l2c_json_get_bool(o, key, &value, false, what, err);
    if (rc == L2CDB_OK && value) {
        rc = l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: \"%s\" is true, only false is supported", what,
                      key);
    }
    return rc;
}

/* ---- LLM ------------------------------------------------------------------------------------- */

static l2cdb_status read_rope(l2c_llm_config *c, const json_t *rope, const char *what,
                              l2cdb_error *err) {
    if (rope == NULL || json_is_null(rope)) {
        return L2CDB_OK;
    }
    if (!json_is_object(rope)) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: expected \"rope_scaling\" to be an object", what);
    }
    const char *type = NULL;
    l2cdb_status rc = l2c_json_get_string(rope, "rope_type", &type, false, what, err);
    if (rc == L2CDB_OK && type == NULL) {
        rc = l2c_json_get_string(rope, "type", &type, false, what, err);
    }
    if (rc == L2CDB_OK) {
        rc = get_bounded(rope, "rope_theta", &c->rope_theta, 1.0, 1e12, false, what, err);
    }
    if (rc != L2CDB_OK || type == NULL || strcmp(type, "default") == 0) {
        return rc;
    }
    if (strcmp(type, "llama3") != 0) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: rope scaling \"%.40s\"; supported are none and \"llama3\"", what,
                        type);
    }
    c->rope_llama3 = true;
    const struct {
        const char *key;
        double *value, least, most;
    } numbers[] = {
        { "factor", &c->rope_factor, 1.0, 1e6 },
        { "low_freq_factor", &c->rope_low, 1e-6, 1e6 },
        { "high_freq_factor", &c->rope_high, 1e-6, 1e6 },
        { "original_max_position_embeddings", &c->rope_original, 1.0, 1e9 },
    };
    for (size_t i = 0; rc == L2CDB_OK && i < sizeof numbers / sizeof numbers[0]; i++) {
        rc = get_bounded(rope, numbers[i].key, numbers[i].value, numbers[i].least, numbers[i].most,
                         true, what, err);
    }
    if (rc == L2CDB_OK && !(c->rope_high > c->rope_low)) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: high_freq_factor %g must exceed low_freq_factor %g",
                      what, c->rope_high, c->rope_low);
    }
    return rc;
}

static l2cdb_status read_llm(l2c_llm_config *c, const json_t *o, const char *what,
                             l2cdb_error *err) {
    const char *type = "llama", *act = "silu";
    l2cdb_status rc;
    *c = (l2c_llm_config){ .rms_eps = 1e-6, .rope_theta = 10000.0 };
    if ((rc = l2c_json_get_string(o, "model_type", &type, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_string(o, "hidden_act", &act, false, what, err)) != L2CDB_OK ||
        (rc = must_be_false(o, "attention_bias", what, err)) != L2CDB_OK ||
        (rc = must_be_false(o, "mlp_bias", what, err)) != L2CDB_OK) {
        return rc;
    }
    if (strcmp(type, "llama") != 0 || strcmp(act, "silu") != 0) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED,
                 "%s: model_type \"%.40s\" with hidden_act \"%.40s\"; only \"llama\" with \"silu\" "
                 "is supported",
                 what, type, act);
        return strncmp(type, "clip", 4) == 0
                   ? l2c_hint(err, "this is a vision model: give it as the vision part")
               : err != NULL ? err->code
                             : L2CDB_E_UNSUPPORTED;
    }
    json_t *quantized = json_object_get(o, "quantization_config");
    if (quantized != NULL && !json_is_null(quantized)) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: the weights are quantised; original ones are "
                        "needed",
                        what);
    }
    if ((rc = l2c_json_get_size(o, "hidden_size", &c->width, 1, WIDTH_MAX, true, what, err)) !=
            L2CDB_OK ||
        (rc = l2c_json_get_size(o, "intermediate_size", &c->hidden, 1, 8 * WIDTH_MAX, true, what,
                                err)) != L2CDB_OK ||
        (rc = l2c_json_get_size(o, "num_hidden_layers", &c->layers, 1, LAYERS_MAX, true, what,
                                err)) != L2CDB_OK ||
        (rc = l2c_json_get_size(o, "num_attention_heads", &c->heads, 1, 1024, true, what, err)) !=
            L2CDB_OK) {
        return rc;
    }
    c->kv_heads = c->heads;
    if ((rc = l2c_json_get_size(o, "num_key_value_heads", &c->kv_heads, 1, 1024, false, what,
                                err)) != L2CDB_OK ||
        (rc = l2c_json_get_size(o, "head_dim", &c->head_dim, 1, 1024, false, what, err)) !=
            L2CDB_OK ||
        (rc = l2c_json_get_size(o, "vocab_size", &c->vocab, 1, 1u << 24, true, what, err)) !=
            L2CDB_OK ||
        (rc = get_bounded(o, "rms_norm_eps", &c->rms_eps, 0.0, 0.1, false, what, err)) !=
            L2CDB_OK ||
        (rc = get_bounded(o, "rope_theta", &c->rope_theta, 1.0, 1e12, false, what, err)) !=
            L2CDB_OK ||
        (rc = read_rope(c, json_object_get(o, "rope_parameters"), what, err)) != L2CDB_OK ||
        (rc = read_rope(c, json_object_get(o, "rope_scaling"), what, err)) != L2CDB_OK) {
        return rc;
    }
    if (c->head_dim == 0) {
        if (c->width % c->heads != 0) {
            return l2c_fail(err, L2CDB_E_FORMAT, "%s: %zu heads do not divide hidden_size %zu",
                            what, c->heads, c->width);
        }
        c->head_dim = c->width / c->heads;
    }
    if (c->head_dim % 2 != 0) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: head_dim %zu is odd, which rules out its rotary "
                        "positions",
                        what, c->head_dim);
    }
    if (c->heads % c->kv_heads != 0) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: %zu key-value heads do not divide %zu heads",
                        what, c->kv_heads, c->heads);
    }
    return L2CDB_OK;
}

l2cdb_status l2c_config_read_llm(l2c_llm_config *out, const char *json, size_t n, const char *what,
                                 l2cdb_error *err) {
    json_t *root;
    l2cdb_status rc = parse_object(&root, json, n, what, err);
    if (rc == L2CDB_OK) {
        rc = read_llm(out, root, what, err);
        json_decref(root);
    }
    return rc;
}

/* ---- Vision ---------------------------------------------------------------------------------- */

l2cdb_status l2c_act_parse(l2c_act *out, const char *name, const char *what, l2cdb_error *err) {
    static const struct {
        const char *name;
        l2c_act act;
    } acts[] = {
        { "quick_gelu", L2C_ACT_QUICK_GELU },
        { "gelu", L2C_ACT_GELU },
        { "gelu_pytorch_tanh", L2C_ACT_GELU_TANH },
        { "gelu_new", L2C_ACT_GELU_TANH },
    };
    for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++) {
        if (strcmp(acts[i].name, name) == 0) {
            *out = acts[i].act;
            return L2CDB_OK;
        }
    }
    return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                    "%s: hidden_act \"%.40s\"; supported are quick_gelu, gelu, gelu_pytorch_tanh",
                    what, name);
}

static l2cdb_status read_clip(l2c_vision_config *c, size_t *projection_dim, const json_t *root,
                              const char *what, l2cdb_error *err) {
    // CLIPVisionConfig's defaults: what a key means that the file leaves out.
    *c = (l2c_vision_config){ .kind = L2C_VISION_OPENAI,
                              .width = 768,
                              .hidden = 3072,
                              .layers = 12,
                              .heads = 12,
                              .patch = 32,
                              .image_side = 224,
                              .ln_eps = 1e-5 };
    *projection_dim = 0;
    const char *act = "quick_gelu";
    size_t channels = 3;
    const json_t *o = json_object_get(root, "vision_config");
    json_t *empty = NULL;
    if (o == NULL || json_is_null(o)) {
        o = empty = json_object();
    }
    l2cdb_status rc;
    if (!json_is_object(o)) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: expected \"vision_config\" to be an object", what);
    } else if ((rc = l2c_json_get_size(root, "projection_dim", projection_dim, 1, WIDTH_MAX, false,
                                       what, err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "hidden_size", &c->width, 1, WIDTH_MAX, false, what,
                                       err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "intermediate_size", &c->hidden, 1, 8 * WIDTH_MAX, false,
                                       what, err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "num_hidden_layers", &c->layers, 1, LAYERS_MAX, false,
                                       what, err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "num_attention_heads", &c->heads, 1, 1024, false, what,
                                       err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "patch_size", &c->patch, 1, 256, false, what, err)) ==
                   L2CDB_OK &&
               (rc = l2c_json_get_size(o, "image_size", &c->image_side, 1, L2C_PIXELS_SIDE_MAX,
                                       false, what, err)) == L2CDB_OK &&
               (rc = l2c_json_get_size(o, "num_channels", &channels, 3, 3, false, what, err)) ==
                   L2CDB_OK &&
               (rc = get_bounded(o, "layer_norm_eps", &c->ln_eps, 0.0, 0.1, false, what, err)) ==
                   L2CDB_OK &&
               (rc = l2c_json_get_string(o, "hidden_act", &act, false, what, err)) == L2CDB_OK) {
        rc = l2c_act_parse(&c->act, act, what, err);
    }
    if (empty != NULL) {
        json_decref(empty);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (c->width % c->heads != 0) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: %zu heads do not divide hidden_size %zu", what,
                        c->heads, c->width);
    }
    if (c->image_side % c->patch != 0) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: patch_size %zu does not divide image_size %zu",
                        what, c->patch, c->image_side);
    }
    c->head_width = c->width / c->heads;
    c->grid = c->image_side / c->patch;
    return L2CDB_OK;
}

l2cdb_status l2c_config_read_clip(l2c_vision_config *out, size_t *projection_dim, const char *json,
                                  size_t n, const char *what, l2cdb_error *err) {
    json_t *root;
    l2cdb_status rc = parse_object(&root, json, n, what, err);
    if (rc == L2CDB_OK) {
        rc = read_clip(out, projection_dim, root, what, err);
        json_decref(root);
    }
    return rc;
}

/* ---- Preprocessing --------------------------------------------------------------------------- */

/* size and crop_size: a number, {"shortest_edge": S}, or {"height": S, "width": S}. */
static l2cdb_status read_side(const json_t *root, const char *key, size_t *side, bool *both,
                              const char *what, l2cdb_error *err) {
    const json_t *v = json_object_get(root, key);
    *both = false;
    if (v == NULL || json_is_null(v)) {
        return L2CDB_OK;
    }
    if (json_is_integer(v)) {
        return l2c_json_get_size(root, key, side, 1, L2C_PIXELS_SIDE_MAX, true, what, err);
    }
    if (!json_is_object(v)) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: expected \"%s\" to be a number or an object",
                        what, key);
    }
    if (json_object_get(v, "shortest_edge") != NULL) {
        return l2c_json_get_size(v, "shortest_edge", side, 1, L2C_PIXELS_SIDE_MAX, true, what, err);
    }
    size_t height = 0, width = 0;
    l2cdb_status rc =
        l2c_json_get_size(v, "height", &height, 1, L2C_PIXELS_SIDE_MAX, true, what, err);
    if (rc == L2CDB_OK) {
        rc = l2c_json_get_size(v, "width", &width, 1, L2C_PIXELS_SIDE_MAX, true, what, err);
    }
    if (rc == L2CDB_OK && height != width) {
        rc = l2c_fail(err, L2CDB_E_UNSUPPORTED,
                      "%s: \"%s\" is %zu x %zu, only squares are "
                      "supported",
                      what, key, width, height);
    }
    *side = height;
    *both = true;
    return rc;
}

static l2cdb_status read_triple(const json_t *root, const char *key, float out[3], const char *what,
                                l2cdb_error *err) {
    const json_t *v = json_object_get(root, key);
    if (v == NULL || json_is_null(v)) {
        return L2CDB_OK;
    }
    if (!json_is_array(v) || json_array_size(v) != 3) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: expected \"%s\" to be three numbers", what, key);
    }
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_number(x)) {
            return l2c_fail(err, L2CDB_E_FORMAT, "%s: expected \"%s\" to be three numbers", what,
                            key);
        }
        out[i] = (float)json_number_value(x);
    }
    return L2CDB_OK;
}

static l2cdb_status read_preprocess(l2c_pixels_config *c, size_t image_side, const json_t *o,
                                    const char *what, l2cdb_error *err) {
    bool resize = true, crop = true, rescale = true, normalize = true, both, crop_both;
    size_t side = c->resize_side, crop_side = image_side, resample = 3;
    double factor = (double)c->rescale;
    l2cdb_status rc;
    if ((rc = l2c_json_get_bool(o, "do_resize", &resize, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "do_center_crop", &crop, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "do_rescale", &rescale, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "do_normalize", &normalize, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_size(o, "resample", &resample, 0, 99, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_double(o, "rescale_factor", &factor, false, what, err)) != L2CDB_OK ||
        (rc = read_side(o, "size", &side, &both, what, err)) != L2CDB_OK ||
        (rc = read_side(o, "crop_size", &crop_side, &crop_both, what, err)) != L2CDB_OK ||
        (rc = read_triple(o, "image_mean", c->mean, what, err)) != L2CDB_OK ||
        (rc = read_triple(o, "image_std", c->std, what, err)) != L2CDB_OK) {
        return rc;
    }
    if (resample != 3) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: \"resample\" is %zu, only 3 (bicubic) is "
                        "supported",
                        what, resample);
    }
    if (!resize || (!crop && !both)) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: without resize and centre crop the picture would not be %zu x %zu",
                        what, image_side, image_side);
    }
    if (!crop) {
        crop_side = side;
    }
    if (crop_side != image_side) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "%s gives pictures of %zu x %zu, the tower reads %zu x %zu", what,
                        crop_side, crop_side, image_side, image_side);
    }
    c->resize_side = (uint32_t)side;
    c->crop_side = (uint32_t)crop_side;
    c->squash = both;
    c->rescale = rescale ? (float)factor : 1.0f;
    for (int i = 0; i < 3 && !normalize; i++) {
        c->mean[i] = 0.0f;
        c->std[i] = 1.0f;
    }
    rc = l2c_pixels_config_check(c, err);
    return rc == L2CDB_OK ? rc : l2c_context(err, "%s", what);
}

l2cdb_status l2c_config_read_preprocess(l2c_pixels_config *out, size_t image_side, const char *json,
                                        size_t n, const char *what, l2cdb_error *err) {
    json_t *root;
    l2cdb_status rc = parse_object(&root, json, n, what, err);
    if (rc == L2CDB_OK) {
        rc = read_preprocess(out, image_side, root, what, err);
        json_decref(root);
    }
    return rc;
}
