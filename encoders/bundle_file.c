/* Imported bundles; see bundle_file.h. The manifest is written and read side by side here. */
#include "encoders/bundle_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/layout.h"
#include "engine/base/json.h"

#define MANIFEST_BYTES_MAX (1u << 20)

static const char *const kinds[] = { "openai", "eva02", "siglip2" };

bool l2c_bundle_file_is(const char *path) {
    char *manifest = l2c_path_join(path, "bundle.json");
    bool is = manifest != NULL && l2c_path_exists(manifest);
    l2c_free(manifest);
    return is;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static void put_hash(l2c_buf *out, const l2c_hash *h) {
    char hex[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(h, hex);
    l2c_buf_printf(out, "\"fingerprint\": \"%s\"", hex);
}

static void put_triple(l2c_buf *out, const char *key, const float v[3]) {
    l2c_buf_printf(out, "\"%s\": [%.9g, %.9g, %.9g]", key, (double)v[0], (double)v[1],
                   (double)v[2]);
}

void l2c_bundle_file_manifest(l2c_buf *out, const l2c_bundle *b) {
    l2c_buf_printf(out, "{\n \"format\": \"l2cdb-bundle\",\n \"version\": %d,\n \"name\": ",
                   L2C_BUNDLE_VERSION);
    l2c_buf_json_string(out, b->name, strlen(b->name));
    l2c_buf_printf(out, ",\n \"precision\": \"%s\"", l2c_precision_name(b->precision));
    if (b->has_llm) {
        const l2c_llm_config *c = &b->llm;
        l2c_buf_printf(out,
                       ",\n \"llm\": {\n  \"hidden_size\": %zu, \"num_hidden_layers\": %zu,\n"
                       "  \"num_attention_heads\": %zu, \"num_key_value_heads\": %zu, "
                       "\"head_dim\": %zu,\n"
                       "  \"intermediate_size\": %zu, \"vocab_size\": %zu,\n"
                       "  \"rms_norm_eps\": %.17g, \"rope_theta\": %.17g,\n",
                       c->width, c->layers, c->heads, c->kv_heads, c->head_dim, c->hidden, c->vocab,
                       c->rms_eps, c->rope_theta);
        if (c->rope_llama3) {
            l2c_buf_printf(out,
                           "  \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": %.17g, "
                           "\"low_freq_factor\": %.17g, \"high_freq_factor\": %.17g, "
                           "\"original_max_position_embeddings\": %.17g},\n",
                           c->rope_factor, c->rope_low, c->rope_high, c->rope_original);
        }
        l2c_buf_puts(out, "  ");
        put_hash(out, &b->text_trunk);
        l2c_buf_puts(out, "\n }");
    }
    if (b->has_vision) {
        const l2c_vision_config *c = &b->vision;
        const l2c_pixels_config *p = &c->pixels;
        l2c_buf_printf(out,
                       ",\n \"vision\": {\n  \"kind\": \"%s\", \"width\": %zu, \"layers\": %zu, "
                       "\"heads\": %zu,\n"
                       "  \"hidden\": %zu, \"pool_hidden\": %zu, \"patch\": %zu, \"grid\": %zu, "
                       "\"rope_grid\": %zu,\n"
                       "  \"act\": \"%s\", \"ln_eps\": %.17g,\n"
                       "  \"pixels\": {\"resize\": %u, \"crop\": %u, \"squash\": %s, \"rescale\": "
                       "%.9g,\n   ",
                       kinds[c->kind], c->width, c->layers, c->heads, c->hidden, c->pool_hidden,
                       c->patch, c->grid, c->rope_grid, l2c_act_name(c->act), c->ln_eps,
                       p->resize_side, p->crop_side, p->squash ? "true" : "false",
                       (double)p->rescale);
        put_triple(out, "mean", p->mean);
        l2c_buf_puts(out, ", ");
        put_triple(out, "std", p->std);
        l2c_buf_puts(out, "},\n  ");
        put_hash(out, &b->image_trunk);
        l2c_buf_puts(out, "\n }");
    }
    if (b->has_adapter) {
        const l2c_heads_config *c = &b->heads;
        l2c_buf_printf(out,
                       ",\n \"heads\": {\n  \"projection\": %s, \"projection_bias\": %s, "
                       "\"normalize_input\": %s,\n  ",
                       c->has_projection ? "true" : "false",
                       c->has_projection_bias ? "true" : "false",
                       c->normalize_input ? "true" : "false");
        put_hash(out, &b->heads_hash);
        l2c_buf_puts(out, "\n }");
    }
    l2c_buf_puts(out, "\n}\n");
}

/* ---- Reading --------------------------------------------------------------------------------- */

typedef struct reader {
    l2c_bundle *b;
    const char *dir;
    const char *what; /* the manifest's path */
    l2cdb_error *err;
} reader;

static l2cdb_status get_size(reader *r, const json_t *o, const char *key, size_t *out, size_t least,
                             size_t most) {
    return l2c_json_get_size(o, key, out, least, most, true, r->what, r->err);
}

static l2cdb_status get_hash(reader *r, const json_t *o, l2c_hash *out) {
    const char *hex = "";
    l2cdb_status rc = l2c_json_get_string(o, "fingerprint", &hex, true, r->what, r->err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    unsigned byte;
    bool good =
        strlen(hex) == 2 * L2C_HASH_BYTES && strspn(hex, "0123456789abcdef") == 2 * L2C_HASH_BYTES;
    for (size_t i = 0; good && i < L2C_HASH_BYTES; i++) {
        good = sscanf(hex + 2 * i, "%2x", &byte) == 1;
        out->bytes[i] = (uint8_t)byte;
    }
    return good ? L2CDB_OK
                : l2c_fail(r->err, L2CDB_E_FORMAT, "%s: \"fingerprint\" is not 32 hex digits",
                           r->what);
}

static l2cdb_status get_triple(reader *r, const json_t *o, const char *key, float out[3]) {
    const json_t *v = json_object_get(o, key);
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_number(x) || json_array_size(v) != 3) {
            return l2c_fail(r->err, L2CDB_E_FORMAT, "%s: \"%s\" must be three numbers", r->what,
                            key);
        }
        out[i] = (float)json_number_value(x);
    }
    return L2CDB_OK;
}

static l2cdb_status read_pixels(reader *r, const json_t *o) {
    l2c_pixels_config *p = &r->b->vision.pixels;
    size_t resize = 0, crop = 0;
    double rescale = 0.0;
    l2cdb_status rc;
    if ((rc = get_size(r, o, "resize", &resize, 1, L2C_PIXELS_SIDE_MAX)) != L2CDB_OK ||
        (rc = get_size(r, o, "crop", &crop, 1, L2C_PIXELS_SIDE_MAX)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "squash", &p->squash, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_double(o, "rescale", &rescale, true, r->what, r->err)) != L2CDB_OK ||
        (rc = get_triple(r, o, "mean", p->mean)) != L2CDB_OK ||
        (rc = get_triple(r, o, "std", p->std)) != L2CDB_OK) {
        return rc;
    }
    p->resize_side = (uint32_t)resize;
    p->crop_side = (uint32_t)crop;
    p->rescale = (float)rescale;
    rc = l2c_pixels_config_check(p, r->err);
    return rc == L2CDB_OK ? rc : l2c_context(r->err, "%s", r->what);
}

static l2cdb_status read_vision(reader *r, const json_t *o) {
    l2c_vision_config *c = &r->b->vision;
    const char *kind = "", *act = "";
    l2cdb_status rc;
    if ((rc = l2c_json_get_string(o, "kind", &kind, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_string(o, "act", &act, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_act_parse(&c->act, act, r->what, r->err)) != L2CDB_OK ||
        (rc = get_size(r, o, "width", &c->width, 1, 65536)) != L2CDB_OK ||
        (rc = get_size(r, o, "layers", &c->layers, 1, 512)) != L2CDB_OK ||
        (rc = get_size(r, o, "heads", &c->heads, 1, 1024)) != L2CDB_OK ||
        (rc = get_size(r, o, "hidden", &c->hidden, 1, 1u << 20)) != L2CDB_OK ||
        (rc = get_size(r, o, "pool_hidden", &c->pool_hidden, 0, 1u << 20)) != L2CDB_OK ||
        (rc = get_size(r, o, "patch", &c->patch, 1, 256)) != L2CDB_OK ||
        (rc = get_size(r, o, "grid", &c->grid, 1, L2C_PIXELS_SIDE_MAX / c->patch)) != L2CDB_OK ||
        (rc = get_size(r, o, "rope_grid", &c->rope_grid, 0, 4096)) != L2CDB_OK ||
        (rc = l2c_json_get_double(o, "ln_eps", &c->ln_eps, true, r->what, r->err)) != L2CDB_OK ||
        (rc = read_pixels(r, json_object_get(o, "pixels"))) != L2CDB_OK ||
        (rc = get_hash(r, o, &r->b->image_trunk)) != L2CDB_OK) {
        return rc;
    }
    size_t k = 0;
    while (k < 3 && strcmp(kinds[k], kind) != 0) {
        k++;
    }
    c->kind = (l2c_vision_kind)k;
    c->image_side = c->grid * c->patch;
    c->head_width = c->width / c->heads;
    bool rope_fits = c->kind != L2C_VISION_EVA02 || (c->rope_grid > 0 && c->head_width % 4 == 0);
    if (k == 3 || c->width % c->heads != 0 || c->image_side != c->pixels.crop_side || !rope_fits ||
        !(c->ln_eps >= 0.0 && c->ln_eps <= 0.1)) {
        return l2c_fail(r->err, L2CDB_E_FORMAT,
                        "%s: the numbers of \"vision\" contradict each "
                        "other",
                        r->what);
    }
    return L2CDB_OK;
}

static l2cdb_status read_heads(reader *r, const json_t *o) {
    l2c_heads_config *c = &r->b->heads;
    l2cdb_status rc;
    if ((rc = l2c_json_get_bool(o, "projection", &c->has_projection, true, r->what, r->err)) !=
            L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "projection_bias", &c->has_projection_bias, true, r->what,
                                r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(o, "normalize_input", &c->normalize_input, true, r->what,
                                r->err)) != L2CDB_OK ||
        (rc = get_hash(r, o, &r->b->heads_hash)) != L2CDB_OK) {
        return rc;
    }
    c->image_width = r->b->vision.width;
    return L2CDB_OK;
}

/* The "llm" object has the keys of a Hugging Face config.json and is read by the same function. */
static l2cdb_status read_llm(reader *r, const json_t *o) {
    char *text = json_dumps(o, JSON_REAL_PRECISION(17));
    if (text == NULL) {
        return l2c_fail(r->err, L2CDB_E_FORMAT, "%s: \"llm\" is not an object", r->what);
    }
    l2cdb_status rc = l2c_config_read_llm(&r->b->llm, text, strlen(text), r->what, r->err);
    free(text);
    return rc == L2CDB_OK ? get_hash(r, o, &r->b->text_trunk) : rc;
}

static l2cdb_status open_tensors(reader *r, l2c_tensors *s, const char *name) {
    char *path = l2c_path_join(r->dir, name);
    if (path == NULL) {
        return l2c_fail_nomem(r->err, strlen(r->dir));
    }
    l2cdb_status rc = l2c_tensors_open(s, path, r->err);
    l2c_free(path);
    return rc;
}

/* The compiled form where it is there and of this version, else the JSON. */
static l2cdb_status open_tokenizer(reader *r) {
    char *compiled = l2c_path_join(r->dir, "tokenizer.bin");
    char *json = l2c_path_join(r->dir, "tokenizer.json");
    l2cdb_status rc =
        compiled != NULL && json != NULL ? L2CDB_OK : l2c_fail_nomem(r->err, strlen(r->dir));
    if (rc == L2CDB_OK) {
        rc = l2c_path_exists(compiled) ? l2c_tokenizer_load_file(&r->b->tokenizer, compiled, r->err)
                                       : L2CDB_E_VERSION;
        if (rc == L2CDB_E_VERSION) {
            rc = l2c_tokenizer_open(&r->b->tokenizer, json, r->err);
        }
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_check_tokenizer(r->b, json, r->err);
    }
    l2c_free(json);
    l2c_free(compiled);
    return rc;
}

static l2cdb_status read_manifest(reader *r, const json_t *root) {
    const char *format = "", *name = "", *precision = "";
    size_t version = 0;
    l2cdb_status rc;
    if ((rc = l2c_json_get_string(root, "format", &format, true, r->what, r->err)) != L2CDB_OK ||
        (rc = get_size(r, root, "version", &version, 1, 1u << 30)) != L2CDB_OK ||
        (rc = l2c_json_get_string(root, "name", &name, true, r->what, r->err)) != L2CDB_OK ||
        (rc = l2c_json_get_string(root, "precision", &precision, true, r->what, r->err)) !=
            L2CDB_OK ||
        (rc = l2c_precision_parse(&r->b->precision, precision, r->err)) != L2CDB_OK) {
        return rc;
    }
    if (strcmp(format, "l2cdb-bundle") != 0) {
        return l2c_fail(r->err, L2CDB_E_FORMAT,
                        "%s: the format is \"%.40s\", expected "
                        "\"l2cdb-bundle\"",
                        r->what, format);
    }
    if (version != L2C_BUNDLE_VERSION) {
        l2c_fail(r->err, L2CDB_E_VERSION, "%s has version %zu, this program reads %d", r->what,
                 version, L2C_BUNDLE_VERSION);
        return l2c_hint(r->err, "import the model again, or use a newer l2cdb");
    }
    snprintf(r->b->name, sizeof r->b->name, "%.100s", name);
    const json_t *llm = json_object_get(root, "llm"), *vision = json_object_get(root, "vision");
    const json_t *heads = json_object_get(root, "heads");
    if ((llm == NULL && vision == NULL) || (vision == NULL) != (heads == NULL)) {
        return l2c_fail(r->err, L2CDB_E_FORMAT, "%s: parts are missing", r->what);
    }
    l2c_tensors sets[3];
    for (int i = 0; i < 3; i++) {
        l2c_tensors_init(&sets[i]);
    }
    if (llm != NULL && (rc = read_llm(r, llm)) == L2CDB_OK) {
        rc = open_tensors(r, &sets[0], "llm.safetensors");
    }
    if (rc == L2CDB_OK && vision != NULL && (rc = read_vision(r, vision)) == L2CDB_OK &&
        (rc = read_heads(r, heads)) == L2CDB_OK &&
        (rc = open_tensors(r, &sets[1], "vision.safetensors")) == L2CDB_OK) {
        rc = open_tensors(r, &sets[2], "heads.safetensors");
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_take_stored(r->b, llm != NULL ? &sets[0] : NULL,
                                    vision != NULL ? &sets[1] : NULL,
                                    vision != NULL ? &sets[2] : NULL, r->dir, r->err);
    }
    if (rc == L2CDB_OK && llm != NULL) {
        rc = open_tokenizer(r);
    }
    for (int i = 0; i < 3; i++) {
        l2c_tensors_fini(&sets[i]);
    }
    return rc == L2CDB_OK ? l2c_layout_check_pair(r->b, false, r->err) : rc;
}

l2cdb_status l2c_bundle_file_open(l2c_bundle *b, const char *path, l2cdb_error *err) {
    char *manifest = l2c_path_join(path, "bundle.json");
    if (manifest == NULL) {
        return l2c_fail_nomem(err, strlen(path));
    }
    json_t *root;
    l2cdb_status rc = l2c_json_read(&root, manifest, MANIFEST_BYTES_MAX, err);
    if (rc == L2CDB_OK) {
        reader r = { b, path, manifest, err };
        rc = read_manifest(&r, root);
        json_decref(root);
    }
    l2c_free(manifest);
    if (rc == L2CDB_OK) {
        l2c_layout_count(b);
    }
    return rc;
}
