/* Opening a model; see bundle.h for what comes out.
 *
 * Three steps for every part: read the source files, find out which of the known layouts it is, and
 * `take` each tensor that its configuration demands, by canonical name, shape checked. What is left
 * over inside a tower or an LLM's layers is refused: a tensor that is ignored silently changes the
 * result. Source: design notes 1.3 (layouts A to D), 8.4 (JSON files). */
#include "encoders/bundle.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/bundle_file.h"
#include "encoders/layout.h"
#include "encoders/lora.h"

#define CONFIG_BYTES_MAX (4u << 20)
#define TOKENIZER_BYTES_MAX (64u << 20)

const l2c_tensor *l2c_bundle_get(const l2c_tensors *s, const char *fmt, ...) {
    char name[160];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return n > 0 && (size_t)n < sizeof name ? l2c_tensors_find(s, name) : NULL;
}

/* ---- Files of a part ------------------------------------------------------------------------- */

/* dir/name into `out` if it is there; *found says so. */
static l2cdb_status read_optional(l2c_buf *out, bool *found, const char *dir, const char *name,
                                  size_t size_max, l2cdb_error *err) {
    char *path = l2c_path_join(dir, name);
    if (path == NULL) {
        return l2c_fail_nomem(err, strlen(dir));
    }
    *found = l2c_path_exists(path);
    l2cdb_status rc = *found ? l2c_file_read(out, path, size_max, err) : L2CDB_OK;
    l2c_free(path);
    return rc;
}

static l2cdb_status read_required(l2c_buf *out, const char *dir, const char *name, size_t size_max,
                                  l2cdb_error *err) {
    bool found = false;
    l2cdb_status rc = read_optional(out, &found, dir, name, size_max, err);
    if (rc == L2CDB_OK && !found) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "%s has no %s", dir, name);
        l2c_hint(err, "copy %s of the model's repository into the directory", name);
    }
    return rc;
}

/* "dir/name" for messages. */
static const char *label(char out[512], const char *dir, const char *name) {
    snprintf(out, 512, "%s/%s", dir, name);
    return out;
}

static l2cdb_status open_llm_dir(l2c_bundle *b, const char *dir, l2cdb_error *err) {
    l2c_buf config, tokenizer;
    l2c_tensors source;
    char what[512];
    l2c_buf_init(&config);
    l2c_buf_init(&tokenizer);
    l2c_tensors_init(&source);
    l2cdb_status rc = read_required(&config, dir, "config.json", CONFIG_BYTES_MAX, err);
    if (rc == L2CDB_OK) {
        rc = read_required(&tokenizer, dir, "tokenizer.json", TOKENIZER_BYTES_MAX, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_config_read_llm(&b->llm, config.data, config.size, label(what, dir, "config.json"),
                                 err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tensors_open_dir(&source, dir, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_take_llm(b, &source, dir, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tokenizer_read(&b->tokenizer, tokenizer.data, tokenizer.size,
                                label(what, dir, "tokenizer.json"), err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_check_tokenizer(b, label(what, dir, "tokenizer.json"), err);
    }
    l2c_tensors_fini(&source);
    l2c_buf_fini(&tokenizer);
    l2c_buf_fini(&config);
    return rc;
}

/* The EVA02 repositories hold a vision-only conversion under foreign names beside the .pt that has
 * everything: where the usual file is of no known layout, the .pt counts. */
static l2cdb_status open_vision_weights(l2c_tensors *source, const char *dir, l2cdb_error *err) {
    l2cdb_status rc = l2c_tensors_open_dir(source, dir, err);
    if (rc != L2CDB_OK || l2c_layout_is_vision(source)) {
        return rc;
    }
    char *torch;
    rc = l2c_tensors_find_torch(&torch, dir, err);
    if (rc == L2CDB_OK && torch != NULL) {
        l2c_tensors_fini(source);
        rc = l2c_tensors_open(source, torch, err);
    }
    l2c_free(torch);
    return rc;
}

/* A directory, or a weight file alone: then there are no JSON files beside it. */
static l2cdb_status open_vision_path(l2c_bundle *b, const char *path, l2cdb_error *err) {
    l2c_buf config, pixels;
    l2c_tensors source;
    bool is_dir = l2c_path_is_dir(path), has_config = false, has_pixels = false;
    char config_what[512], pixels_what[512];
    l2c_buf_init(&config);
    l2c_buf_init(&pixels);
    l2c_tensors_init(&source);
    l2cdb_status rc = L2CDB_OK;
    if (is_dir) {
        rc = read_optional(&config, &has_config, path, "config.json", CONFIG_BYTES_MAX, err);
        if (rc == L2CDB_OK) {
            rc = read_optional(&pixels, &has_pixels, path, "preprocessor_config.json",
                               CONFIG_BYTES_MAX, err);
        }
    }
    if (rc == L2CDB_OK) {
        rc =
            is_dir ? open_vision_weights(&source, path, err) : l2c_tensors_open(&source, path, err);
    }
    if (rc == L2CDB_OK) {
        l2c_layout_json json = {
            .config = has_config ? config.data : NULL,
            .config_bytes = config.size,
            .config_what = label(config_what, path, "config.json"),
            .pixels = has_pixels ? pixels.data : NULL,
            .pixels_bytes = pixels.size,
            .pixels_what = label(pixels_what, path, "preprocessor_config.json"),
        };
        // An empty file is not an absent one.
        if (has_config && config.data == NULL) {
            json.config = "";
        }
        if (has_pixels && pixels.data == NULL) {
            json.pixels = "";
        }
        rc = l2c_layout_take_vision(b, &source, &json, path, err);
    }
    l2c_tensors_fini(&source);
    l2c_buf_fini(&pixels);
    l2c_buf_fini(&config);
    return rc;
}

/* ---- Built in -------------------------------------------------------------------------------- */

extern const char l2c_mini_llm_weights[], l2c_mini_llm_weights_end[];
extern const char l2c_mini_llm_config[], l2c_mini_llm_config_end[];
extern const char l2c_mini_tokenizer[], l2c_mini_tokenizer_end[];
extern const char l2c_mini_vision_weights[], l2c_mini_vision_weights_end[];
extern const char l2c_mini_vision_config[], l2c_mini_vision_config_end[];
extern const char l2c_mini_pixels[], l2c_mini_pixels_end[];
extern const char l2c_mini_fingerprints[]; // three lines of hex: text, image, heads

/* The fingerprints of the built-in weights are stored beside them, so that starting the program
 * does not read 47 MB; bundle_test computes them again. */
static l2cdb_status read_fingerprints(l2c_bundle *b, l2cdb_error *err) {
    l2c_hash *hashes[] = { &b->text_trunk, &b->image_trunk, &b->heads_hash };
    const char *p = l2c_mini_fingerprints;
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < L2C_HASH_BYTES; k++, p += 2) {
            unsigned byte;
            if (sscanf(p, "%2x", &byte) != 1) {
                return l2c_fail(err, L2CDB_E_INTERNAL, "built-in fingerprints: not hexadecimal");
            }
            hashes[i]->bytes[k] = (uint8_t)byte;
        }
        p++;
    }
    l2c_layout_count(b);
    return L2CDB_OK;
}

static l2cdb_status open_builtin(l2c_bundle *b, l2cdb_error *err) {
    l2c_tensors llm, vision;
    l2c_tensors_init(&llm);
    l2c_tensors_init(&vision);
    snprintf(b->name, sizeof b->name, "l2c-mini");
    l2cdb_status rc = l2c_config_read_llm(&b->llm, l2c_mini_llm_config,
                                          (size_t)(l2c_mini_llm_config_end - l2c_mini_llm_config),
                                          "built-in llm/config.json", err);
    if (rc == L2CDB_OK) {
        rc = l2c_safetensors_read(&llm, l2c_mini_llm_weights,
                                  (size_t)(l2c_mini_llm_weights_end - l2c_mini_llm_weights),
                                  "built-in llm/model.safetensors", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tensors_seal(&llm, "built-in llm/model.safetensors", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_take_llm(b, &llm, "built-in llm", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tokenizer_load(&b->tokenizer, l2c_mini_tokenizer,
                                (size_t)(l2c_mini_tokenizer_end - l2c_mini_tokenizer),
                                "built-in llm/tokenizer", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_check_tokenizer(b, "built-in llm/tokenizer.json", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_safetensors_read(&vision, l2c_mini_vision_weights,
                                  (size_t)(l2c_mini_vision_weights_end - l2c_mini_vision_weights),
                                  "built-in vision/model.safetensors", err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tensors_seal(&vision, "built-in vision/model.safetensors", err);
    }
    if (rc == L2CDB_OK) {
        l2c_layout_json json = {
            .config = l2c_mini_vision_config,
            .config_bytes = (size_t)(l2c_mini_vision_config_end - l2c_mini_vision_config),
            .config_what = "built-in vision/config.json",
            .pixels = l2c_mini_pixels,
            .pixels_bytes = (size_t)(l2c_mini_pixels_end - l2c_mini_pixels),
            .pixels_what = "built-in vision/preprocessor_config.json",
        };
        rc = l2c_layout_take_vision(b, &vision, &json, "built-in vision", err);
    }
    l2c_tensors_fini(&vision);
    l2c_tensors_fini(&llm);
    return rc;
}

/* ---- The door -------------------------------------------------------------------------------- */

void l2c_bundle_close(l2c_bundle *b) {
    if (b == NULL) {
        return;
    }
    l2c_tokenizer_close(b->tokenizer);
    l2c_tensors_fini(&b->vision_tensors);
    l2c_tensors_fini(&b->llm_tensors);
    l2c_tensors_fini(&b->head_tensors);
    l2c_free(b);
}

static l2c_bundle *new_bundle(void) {
    l2c_bundle *b = l2c_calloc(1, sizeof *b);
    if (b != NULL) {
        l2c_tensors_init(&b->vision_tensors);
        l2c_tensors_init(&b->llm_tensors);
        l2c_tensors_init(&b->head_tensors);
        b->logit_scale = logf(1.0f / 0.07f);
    }
    return b;
}

/* "l2c-mini" from "…/l2c-mini/": what people call the model. */
static void name_after(l2c_bundle *b, const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') {
        n--;
    }
    size_t start = n;
    while (start > 0 && path[start - 1] != '/') {
        start--;
    }
    snprintf(b->name, sizeof b->name, "%.*s", (int)(n - start < 100 ? n - start : 100),
             path + start);
}

static l2cdb_status open_parts(l2c_bundle *b, const char *vision, const char *llm, bool has_lora,
                               l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    if (llm != NULL) {
        rc = open_llm_dir(b, llm, err);
    }
    if (rc == L2CDB_OK && vision != NULL) {
        rc = open_vision_path(b, vision, err);
    }
    return rc == L2CDB_OK ? l2c_layout_check_pair(b, has_lora, err) : rc;
}

l2cdb_status l2c_bundle_load_parts(l2c_bundle **out, const char *vision, const char *llm,
                                   bool has_lora, l2cdb_error *err) {
    *out = NULL;
    if (vision == NULL && llm == NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "neither a vision part nor an LLM is named");
    }
    if (has_lora && llm == NULL) {
        return l2c_fail(err, L2CDB_E_INVALID, "a LoRA needs the LLM that it adapts");
    }
    const char *parts[] = { vision, llm };
    for (int i = 0; i < 2; i++) {
        if (parts[i] != NULL && !l2c_path_exists(parts[i])) {
            return l2c_fail(err, L2CDB_E_NOTFOUND, "there is no model at %s", parts[i]);
        }
    }
    l2c_bundle *b = new_bundle();
    if (b == NULL) {
        return l2c_fail_nomem(err, sizeof *b);
    }
    name_after(b, vision != NULL ? vision : llm);
    l2cdb_status rc = open_parts(b, vision, llm, has_lora, err);
    if (rc != L2CDB_OK) {
        l2c_bundle_close(b);
        return rc;
    }
    *out = b;
    return L2CDB_OK;
}

l2cdb_status l2c_bundle_open_parts(l2c_bundle **out, const char *vision, const char *llm,
                                   const char *lora, l2cdb_error *err) {
    l2cdb_status rc = l2c_bundle_load_parts(out, vision, llm, lora != NULL, err);
    if (rc == L2CDB_OK && lora != NULL) {
        rc = l2c_lora_apply(*out, lora, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_layout_finish(*out, err);
    }
    if (rc != L2CDB_OK) {
        l2c_bundle_close(*out);
        *out = NULL;
    }
    return rc;
}

/* What kind of directory: DIR/llm and DIR/vision, or DIR itself one part. */
static l2cdb_status open_directory(l2c_bundle *b, const char *path, l2cdb_error *err) {
    char *llm = l2c_path_join(path, "llm"), *vision = l2c_path_join(path, "vision");
    char *tokenizer = l2c_path_join(path, "tokenizer.json");
    l2cdb_status rc;
    if (llm == NULL || vision == NULL || tokenizer == NULL) {
        rc = l2c_fail_nomem(err, strlen(path));
    } else if (l2c_path_is_dir(llm) || l2c_path_is_dir(vision)) {
        rc = open_parts(b, l2c_path_is_dir(vision) ? vision : NULL,
                        l2c_path_is_dir(llm) ? llm : NULL, false, err);
    } else if (l2c_path_exists(tokenizer)) {
        rc = open_parts(b, NULL, path, false, err);
    } else {
        rc = open_parts(b, path, NULL, false, err);
    }
    l2c_free(tokenizer);
    l2c_free(vision);
    l2c_free(llm);
    return rc;
}

l2cdb_status l2c_bundle_open(l2c_bundle **out, const char *path, l2cdb_error *err) {
    *out = NULL;
    l2c_bundle *b = new_bundle();
    if (b == NULL) {
        return l2c_fail_nomem(err, sizeof *b);
    }
    l2cdb_status rc;
    if (path == NULL || path[0] == '\0') {
        rc = open_builtin(b, err);
        if (rc == L2CDB_OK) {
            rc = read_fingerprints(b, err);
        }
    } else if (!l2c_path_exists(path)) {
        rc = l2c_fail(err, L2CDB_E_NOTFOUND, "there is no model at %s", path);
    } else {
        name_after(b, path);
        if (l2c_bundle_file_is(path)) {
            rc = l2c_bundle_file_open(b, path, err);
        } else {
            rc = l2c_path_is_dir(path) ? open_directory(b, path, err)
                                       : open_parts(b, path, NULL, false, err);
            if (rc == L2CDB_OK) {
                rc = l2c_layout_finish(b, err);
            }
        }
    }
    if (rc != L2CDB_OK) {
        l2c_bundle_close(b);
        return rc;
    }
    *out = b;
    return L2CDB_OK;
}
