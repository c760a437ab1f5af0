/* LoRA; see lora.h. */
#include "encoders/lora.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/json.h"
#include "engine/base/vec.h"

#define CONFIG_BYTES_MAX (1u << 20)
#define RANK_MAX 4096

typedef struct delta {
    const char *name; /* canonical, of the base tensor */
    size_t rows, cols, rank;
    float *a; /* [rank, cols] */
    float *b; /* [rows, rank], scaled */
} delta;

struct l2c_lora {
    l2c_arena arena;
    delta *deltas; /* sorted by name, as the adapter's tensors are */
    size_t count;
};

typedef struct settings {
    size_t rank;
    double alpha;
    bool rslora;
    const json_t *rank_pattern, *alpha_pattern;
} settings;

/* Keys that change the result and are not built: they must be absent, null, false or empty. */
static l2cdb_status check_unused(const json_t *root, const char *what, l2cdb_error *err) {
    static const char *const keys[] = {
        "use_dora",        "fan_in_fan_out",          "layer_replication", "modules_to_save",
        "megatron_config", "trainable_token_indices", "eva_config",        "corda_config",
        "use_qalora",      "target_parameters",       "exclude_modules",   "alora_invocation_tokens"
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const json_t *v = json_object_get(root, keys[i]);
        bool empty = v == NULL || json_is_null(v) || json_is_false(v) ||
                     (json_is_array(v) && json_array_size(v) == 0) ||
                     (json_is_object(v) && json_object_size(v) == 0);
        if (!empty) {
            return l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: \"%s\" is set, which is not supported",
                            what, keys[i]);
        }
    }
    return L2CDB_OK;
}

static l2cdb_status read_settings(settings *s, const json_t *root, const char *what,
                                  l2cdb_error *err) {
    const char *type = "", *bias = "none";
    l2cdb_status rc;
    *s = (settings){ 0 };
    if ((rc = l2c_json_get_string(root, "peft_type", &type, true, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_string(root, "bias", &bias, false, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_size(root, "r", &s->rank, 1, RANK_MAX, true, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_double(root, "lora_alpha", &s->alpha, true, what, err)) != L2CDB_OK ||
        (rc = l2c_json_get_bool(root, "use_rslora", &s->rslora, false, what, err)) != L2CDB_OK ||
        (rc = check_unused(root, what, err)) != L2CDB_OK) {
        return rc;
    }
    if (strcmp(type, "LORA") != 0 || strcmp(bias, "none") != 0) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: peft_type \"%.40s\" with bias \"%.40s\"; only LORA with none is "
                        "supported",
                        what, type, bias);
    }
    s->rank_pattern = json_object_get(root, "rank_pattern");
    s->alpha_pattern = json_object_get(root, "alpha_pattern");
    return L2CDB_OK;
}

static bool strip_start(const char **s, const char *start) {
    size_t n = strlen(start);
    if (strncmp(*s, start, n) != 0) {
        return false;
    }
    *s += n;
    return true;
}

/* "layers.0.self_attn.q_proj" out of
 * "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" into module[]; *which is 'A' or
 * 'B'. */
static bool parse_name(char module[160], char *which, const char *name) {
    static const char *const ends[] = { ".lora_A.weight", ".lora_B.weight",
                                        ".lora_A.default.weight", ".lora_B.default.weight" };
    strip_start(&name, "base_model.model.");
    strip_start(&name, "model.");
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        size_t m = strlen(ends[i]);
        if (n > m && n - m < 160 && strcmp(name + n - m, ends[i]) == 0) {
            memcpy(module, name, n - m);
            module[n - m] = '\0';
            *which = ends[i][6];
            return true;
        }
    }
    return false;
}

/* A pattern's value for a module: PEFT matches keys as regexes at the end of the name; plain
 * suffixes are what is written in practice, and anything else is refused. */
static l2cdb_status pattern_value(const json_t *pattern, const char *module, double *value,
                                  const char *what, l2cdb_error *err) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)pattern, key, v) {
        size_t n = strlen(module), m = strlen(key);
        if (strpbrk(key, "\\*+?()[]{}|^$") != NULL || !json_is_number(v)) {
            return l2c_fail(
                err, L2CDB_E_UNSUPPORTED,
                "%s: the pattern \"%.80s\" is a regex; only plain module names are read", what,
                key);
        }
        if (n >= m && strcmp(module + n - m, key) == 0 && (n == m || module[n - m - 1] == '.')) {
            *value = json_number_value(v);
        }
    }
    return L2CDB_OK;
}

static delta *find_delta(const l2c_lora *l, const char *name) {
    for (size_t i = 0; i < l->count; i++) {
        if (strcmp(l->deltas[i].name, name) == 0) {
            return &l->deltas[i];
        }
    }
    return NULL;
}

/* The delta of a base tensor, begun if it is new. NULL without memory. */
static delta *delta_for(l2c_lora *l, const l2c_tensor *base) {
    delta *d = find_delta(l, base->name);
    if (d == NULL) {
        d = &l->deltas[l->count++];
        *d = (delta){ .name = base->name, .rows = base->shape[0], .cols = base->shape[1] };
    }
    return d;
}

static l2cdb_status add_half(l2c_lora *l, const l2c_tensor *t, const l2c_tensors *base,
                             const char *what, l2cdb_error *err) {
    char module[160], which = 'A';
    if (!parse_name(module, &which, t->name)) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: tensor \"%.120s\" is neither lora_A nor lora_B", what, t->name);
    }
    const l2c_tensor *w = l2c_bundle_get(base, "%s.weight", module);
    if (w == NULL || w->ndim != 2 || strcmp(w->name, "embed_tokens.weight") == 0) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "%s adapts \"%.120s\", which is no Linear layer of the base model", what,
                        module);
    }
    delta *d = delta_for(l, w);
    size_t inner = which == 'A' ? 0 : 1;
    bool good = t->ndim == 2 && l2c_dtype_is_float(t->dtype) && t->shape[inner] > 0 &&
                t->shape[inner] <= RANK_MAX &&
                t->shape[1 - inner] == (which == 'A' ? d->cols : d->rows) &&
                (d->rank == 0 || d->rank == t->shape[inner]);
    if (!good) {
        return l2c_fail(err, L2CDB_E_MISMATCH,
                        "%s: tensor \"%.120s\" does not fit the base's \"%s\" [%zu,%zu]", what,
                        t->name, w->name, d->rows, d->cols);
    }
    size_t at;
    if (!l2c_tensor_finite(t, &at)) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: tensor \"%.120s\" holds NaN or infinity (element %zu)", what, t->name,
                        at);
    }
    float *values = l2c_arena_alloc(&l->arena, t->count, sizeof *values);
    if (values == NULL) {
        return l2c_fail_nomem(err, t->count * sizeof *values);
    }
    l2c_tensor_to_f32(t, values);
    d->rank = t->shape[inner];
    *(which == 'A' ? &d->a : &d->b) = values;
    return L2CDB_OK;
}

/* Both halves are there, and their rank is what the configuration says; scales B. */
static l2cdb_status complete(delta *d, const settings *s, const char *what, l2cdb_error *err) {
    char module[160];
    snprintf(module, sizeof module, "%.*s", (int)(strlen(d->name) - strlen(".weight")), d->name);
    double rank = (double)s->rank, alpha = s->alpha;
    l2cdb_status rc = pattern_value(s->rank_pattern, module, &rank, what, err);
    if (rc == L2CDB_OK) {
        rc = pattern_value(s->alpha_pattern, module, &alpha, what, err);
    }
    if (rc != L2CDB_OK) {
        return rc;
    }
    if (d->a == NULL || d->b == NULL) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: \"%s\" has only one of lora_A and lora_B", what,
                        module);
    }
    if ((double)d->rank != rank) {
        return l2c_fail(err, L2CDB_E_MISMATCH, "%s: \"%s\" has rank %zu, the configuration says %g",
                        what, module, d->rank, rank);
    }
    float scale = (float)(s->rslora ? alpha / sqrt(rank) : alpha / rank);
    if (!isfinite(scale)) {
        return l2c_fail(err, L2CDB_E_FORMAT, "%s: lora_alpha is out of range", what);
    }
    for (size_t i = 0; i < d->rows * d->rank; i++) {
        d->b[i] *= scale;
    }
    return L2CDB_OK;
}

static l2cdb_status load(l2c_lora *l, const char *dir, const json_t *config, const char *what,
                         const l2c_tensors *base, l2cdb_error *err) {
    settings s;
    l2cdb_status rc = read_settings(&s, config, what, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    char *path = l2c_path_join(dir, "adapter_model.safetensors");
    if (path == NULL) {
        return l2c_fail_nomem(err, strlen(dir));
    }
    l2c_tensors halves;
    rc = l2c_tensors_open(&halves, path, err);
    if (rc == L2CDB_OK && halves.count == 0) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s holds no tensors", path);
    }
    if (rc == L2CDB_OK) {
        l->deltas = l2c_calloc(halves.count, sizeof *l->deltas);
        rc = l->deltas != NULL ? L2CDB_OK : l2c_fail_nomem(err, halves.count * sizeof *l->deltas);
    }
    for (size_t i = 0; rc == L2CDB_OK && i < halves.count; i++) {
        rc = add_half(l, &halves.items[i], base, path, err);
    }
    for (size_t i = 0; rc == L2CDB_OK && i < l->count; i++) {
        rc = complete(&l->deltas[i], &s, what, err);
    }
    l2c_tensors_fini(&halves);
    l2c_free(path);
    return rc;
}

l2cdb_status l2c_lora_open(l2c_lora **out, const char *dir, const l2c_tensors *base,
                           l2cdb_error *err) {
    *out = NULL;
    l2c_lora *l = l2c_calloc(1, sizeof *l);
    char *path = l2c_path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    l2cdb_status rc;
    if (l == NULL || path == NULL) {
        rc = l2c_fail_nomem(err, sizeof *l);
    } else {
        l2c_arena_init(&l->arena, 0);
        rc = l2c_json_read(&config, path, CONFIG_BYTES_MAX, err);
        if (rc == L2CDB_OK) {
            rc = load(l, dir, config, path, base, err);
        }
    }
    json_decref(config);
    l2c_free(path);
    if (rc != L2CDB_OK) {
        l2c_lora_close(l);
        return rc;
    }
    *out = l;
    return L2CDB_OK;
}

void l2c_lora_close(l2c_lora *l) {
    if (l != NULL) {
        l2c_arena_fini(&l->arena);
        l2c_free(l->deltas);
        l2c_free(l);
    }
}

bool l2c_lora_changes(const l2c_lora *l, const char *name) {
    return find_delta(l, name) != NULL;
}

void l2c_lora_merge(const l2c_lora *l, const char *name, float *w, size_t first, size_t n) {
    const delta *d = find_delta(l, name);
    for (size_t row = 0; d != NULL && row < n; row++) {
        for (size_t k = 0; k < d->rank; k++) {
            l2c_vec_axpy(w + row * d->cols, d->a + k * d->cols, d->b[(first + row) * d->rank + k],
                         d->cols);
        }
    }
}

/* Replaces the memory of *t by the merged weight, in the type of the base. */
static l2cdb_status merge_in_place(const l2c_lora *l, l2c_tensor *t, l2c_arena *arena,
                                   l2cdb_error *err) {
    float *w = l2c_alloc_aligned(t->count, sizeof *w);
    void *merged = l2c_arena_alloc(arena, t->count, l2c_dtype_bytes(t->dtype));
    if (w == NULL || merged == NULL) {
        l2c_free(w);
        return l2c_fail_nomem(err, t->count * sizeof *w);
    }
    l2c_tensor_to_f32(t, w);
    l2c_lora_merge(l, t->name, w, 0, t->shape[0]);
    if (t->dtype == L2C_DTYPE_BF16) {
        l2c_vec_to_bf16(merged, w, t->count);
    } else if (t->dtype == L2C_DTYPE_F16) {
        l2c_vec_to_f16(merged, w, t->count);
    } else {
        memcpy(merged, w, t->bytes);
    }
    t->data = merged;
    l2c_free(w);
    return L2CDB_OK;
}

l2cdb_status l2c_lora_apply(l2c_bundle *b, const char *dir, l2cdb_error *err) {
    l2c_lora *l;
    l2cdb_status rc = l2c_lora_open(&l, dir, &b->llm_tensors, err);
    for (size_t i = 0; rc == L2CDB_OK && i < b->llm_tensors.count; i++) {
        l2c_tensor *t = &b->llm_tensors.items[i];
        if (l2c_lora_changes(l, t->name)) {
            rc = merge_in_place(l, t, &b->llm_tensors.arena, err);
        }
    }
    if (rc == L2CDB_OK) {
        l2c_lora_close(l);
    }
    return rc;
}
