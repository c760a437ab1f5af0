/* The layouts of checkpoints; see layout.h. Source: design notes 1.3.
 *
 *   A  vision_model.…, visual_projection, text_adapter.adaptor.…    Hugging Face, OpenAI towers
 *   B  visual.blocks.…, visual.head, text.text_adaptor.…             EVA02 .pt
 *   C  visual.transformer.resblocks.…, visual.proj, text.…           OpenAI towers trained there
 *   D  visual.trunk.…, text.text_proj.text_adaptor.…                 SigLIP2 (timm)
 *
 * B, C and D may carry "module." before every name. A `taker` moves tensors from a source set to a
 * canonical one and keeps a sticky status, so that a layout reads as the list of its tensors. */
#include "encoders/layout.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/vec.h"

typedef struct taker {
    const l2c_tensors *source;
    bool *used; /* one for each source tensor */
    l2c_tensors *to;
    const char *prefix; /* before every source name: "", "module.", "model." */
    const char *what;
    l2cdb_error *err;
    l2cdb_status rc; /* sticky */
    bool int8;       /* I8 with a weight_scale is accepted */
} taker;

#define NAME_BYTES 192

/* a followed by b; "" (which names no tensor) if that is too long. */
static void concat(char out[NAME_BYTES], const char *a, const char *b) {
    int n = snprintf(out, NAME_BYTES, "%s%s", a, b);
    if (n < 0 || n >= NAME_BYTES) {
        out[0] = '\0';
    }
}

static void fail(taker *k, l2cdb_status code, const char *fmt, ...) L2CDB_PRINTF(3, 4);
static void fail(taker *k, l2cdb_status code, const char *fmt, ...) {
    if (k->rc == L2CDB_OK) {
        char text[512];
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        k->rc = l2c_fail(k->err, code, "%s: %s", k->what, text);
    }
}

/* The source tensor of that name (after the prefix), or NULL. */
static const l2c_tensor *peek(const taker *k, const char *name) {
    char full[NAME_BYTES];
    concat(full, k->prefix, name);
    return l2c_tensors_find(k->source, full);
}

static const l2c_tensor *peekf(const taker *k, const char *fmt, size_t i) L2CDB_PRINTF(2, 0);
static const l2c_tensor *peekf(const taker *k, const char *fmt, size_t i) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, fmt, i);
    return peek(k, name);
}

static void mark_used(taker *k, const l2c_tensor *t) {
    k->used[t - k->source->items] = true;
}

static const char *shape_text(char out[128], int ndim, const size_t *shape) {
    size_t at = 0;
    out[at++] = '[';
    for (int i = 0; i < ndim && at < 100; i++) {
        at += (size_t)snprintf(out + at, 128 - at, "%s%zu", i > 0 ? "," : "", shape[i]);
    }
    snprintf(out + at, 128 - at, "]");
    return out;
}

/* Adds *t to the canonical set. Doubles become f32 there: no product reads them. */
static void put(taker *k, const l2c_tensor *t, const char *canonical) {
    if (k->rc != L2CDB_OK) {
        return;
    }
    l2c_tensor copy = *t;
    if (t->dtype == L2C_DTYPE_F64) {
        float *p = l2c_arena_alloc(&k->to->arena, t->count, sizeof *p);
        if (p == NULL) {
            k->rc = l2c_fail_nomem(k->err, t->count * sizeof *p);
            return;
        }
        l2c_tensor_to_f32(t, p);
        copy.dtype = L2C_DTYPE_F32;
        copy.data = p;
        copy.bytes = t->count * sizeof *p;
    }
    if (l2c_tensors_add(k->to, &copy, canonical, strlen(canonical)) == NULL) {
        k->rc = l2c_fail_nomem(k->err, sizeof copy);
    }
}

/* Checks type and shape of a source tensor; false (status set) if it will not do. */
static bool fits(taker *k, const l2c_tensor *t, const char *name, int ndim, const size_t *shape,
                 bool loose) {
    if (k->rc != L2CDB_OK) {
        return false;
    }
    if (t == NULL) {
        fail(k, L2CDB_E_FORMAT, "tensor \"%s%s\" is missing", k->prefix, name);
        return false;
    }
    if (!l2c_dtype_is_float(t->dtype) && !(k->int8 && t->dtype == L2C_DTYPE_I8 && ndim == 2)) {
        fail(k, L2CDB_E_UNSUPPORTED, "tensor \"%s\" holds %s, expected floats", t->name,
             l2c_dtype_name(t->dtype));
        return false;
    }
    int skip = 0;
    while (loose && t->ndim - skip > ndim && t->shape[skip] == 1) {
        skip++;
    }
    bool same = t->ndim - skip == ndim;
    for (int i = 0; same && i < ndim; i++) {
        same = t->shape[skip + i] == shape[i];
    }
    if (!same) {
        char found[128], wanted[128];
        fail(k, L2CDB_E_MISMATCH, "tensor \"%s\" has shape %s, expected %s", t->name,
             shape_text(found, t->ndim, t->shape), shape_text(wanted, ndim, shape));
        return false;
    }
    return true;
}

/* Takes `source` under the name `canonical` with exactly this shape (dimensions that are 0 end it).
 * With `loose`, leading dimensions of 1 are dropped. */
static void take_as(taker *k, const char *canonical, const char *source, bool loose, size_t d0,
                    size_t d1, size_t d2, size_t d3) {
    const size_t shape[4] = { d0, d1, d2, d3 };
    int ndim = d3 > 0 ? 4 : d2 > 0 ? 3 : d1 > 0 ? 2 : 1;
    const l2c_tensor *t = k->rc == L2CDB_OK ? peek(k, source) : NULL;
    if (!fits(k, t, source, ndim, shape, loose)) {
        return;
    }
    mark_used(k, t);
    l2c_tensor copy = *t;
    copy.ndim = ndim;
    memcpy(copy.shape, shape, sizeof shape);
    put(k, &copy, canonical);
    if (t->dtype == L2C_DTYPE_I8) {
        char scale[NAME_BYTES];
        concat(scale, source, "_scale");
        const l2c_tensor *s = peek(k, scale);
        if (s != NULL && s->dtype != L2C_DTYPE_F32) {
            fail(k, L2CDB_E_FORMAT, "tensor \"%s\" holds %s, expected F32", s->name,
                 l2c_dtype_name(s->dtype));
        } else if (fits(k, s, scale, 1, shape, false)) {
            mark_used(k, s);
            put(k, s, scale);
        }
    }
}

/* The same for a name with a layer number and equal names on both sides. */
static void take(taker *k, const char *fmt, size_t i, size_t d0, size_t d1) L2CDB_PRINTF(2, 0);
static void take(taker *k, const char *fmt, size_t i, size_t d0, size_t d1) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, fmt, i);
    take_as(k, name, name, false, d0, d1, 0, 0);
}

/* NAME.weight [d0,d1] (a vector if d1 is 0) and NAME.bias [d0]. */
static void take_pair_as(taker *k, const char *canonical, const char *source, size_t d0,
                         size_t d1) {
    static const char *const ends[] = { ".weight", ".bias" };
    for (int i = 0; i < 2; i++) {
        char to[NAME_BYTES], from[NAME_BYTES];
        concat(to, canonical, ends[i]);
        concat(from, source, ends[i]);
        take_as(k, to, from, false, d0, i == 0 ? d1 : 0, 0, 0);
    }
}

static void take_pair(taker *k, const char *fmt, size_t i, size_t d0, size_t d1) L2CDB_PRINTF(2, 0);
static void take_pair(taker *k, const char *fmt, size_t i, size_t d0, size_t d1) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, fmt, i);
    take_pair_as(k, name, name, d0, d1);
}

static bool starts_with(const char *s, const char *start) {
    return strncmp(s, start, strlen(start)) == 0;
}

static bool is_known_ballast(const char *name) {
    size_t n = strlen(name);
    return (n >= 12 && strcmp(name + n - 12, "position_ids") == 0) ||
           strstr(name, "rope.freqs_") != NULL || strstr(name, "rotary_emb.inv_freq") != NULL;
}

/* Refuses what is left over under `start`. */
static void refuse_rest(taker *k, const char *start) {
    char full[NAME_BYTES];
    concat(full, k->prefix, start);
    for (size_t i = 0; k->rc == L2CDB_OK && i < k->source->count; i++) {
        const char *name = k->source->items[i].name;
        if (!k->used[i] && starts_with(name, full) && !is_known_ballast(name)) {
            fail(k, L2CDB_E_MISMATCH,
                 "tensor \"%.120s\" has no place in this architecture and configuration", name);
        }
    }
}

/* The canonical set takes over the source's memory: pointers into it stay valid. */
static bool begin(taker *k, l2c_tensors *source, l2c_tensors *to, const char *what,
                  l2cdb_error *err) {
    *k = (taker){ .source = source, .to = to, .prefix = "", .what = what, .err = err };
    k->used = l2c_calloc(source->count, sizeof *k->used);
    if (k->used == NULL) {
        k->rc = l2c_fail_nomem(err, source->count);
        return false;
    }
    l2c_arena_fini(&to->arena);
    to->arena = source->arena;
    to->maps = source->maps;
    to->maps_count = source->maps_count;
    source->maps = NULL;
    source->maps_count = 0;
    // The names of the source stay readable: they live in the arena that moved.
    l2c_arena_init(&source->arena, 1 << 16);
    return true;
}

static l2cdb_status end(taker *k) {
    l2c_free(k->used);
    return k->rc == L2CDB_OK ? l2c_tensors_seal(k->to, k->what, k->err) : k->rc;
}

/* ---- LLM ------------------------------------------------------------------------------------- */

static void take_llm(taker *k, const l2c_llm_config *c) {
    size_t d = c->width, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    take_as(k, "embed_tokens.weight", "embed_tokens.weight", false, c->vocab, d, 0, 0);
    for (size_t i = 0; k->rc == L2CDB_OK && i < c->layers; i++) {
        take(k, "layers.%zu.input_layernorm.weight", i, d, 0);
        take(k, "layers.%zu.self_attn.q_proj.weight", i, q, d);
        take(k, "layers.%zu.self_attn.k_proj.weight", i, kv, d);
        take(k, "layers.%zu.self_attn.v_proj.weight", i, kv, d);
        take(k, "layers.%zu.self_attn.o_proj.weight", i, d, q);
        take(k, "layers.%zu.post_attention_layernorm.weight", i, d, 0);
        take(k, "layers.%zu.mlp.gate_proj.weight", i, c->hidden, d);
        take(k, "layers.%zu.mlp.up_proj.weight", i, c->hidden, d);
        take(k, "layers.%zu.mlp.down_proj.weight", i, d, c->hidden);
    }
    take_as(k, "norm.weight", "norm.weight", false, d, 0, 0, 0);
    refuse_rest(k, "layers.");
}

l2cdb_status l2c_layout_take_llm(l2c_bundle *b, l2c_tensors *source, const char *what,
                                 l2cdb_error *err) {
    taker k;
    if (begin(&k, source, &b->llm_tensors, what, err)) {
        bool bare = peek(&k, "embed_tokens.weight") != NULL;
        k.prefix =
            bare || l2c_tensors_find(source, "model.embed_tokens.weight") == NULL ? "" : "model.";
        take_llm(&k, &b->llm);
    }
    b->has_llm = k.rc == L2CDB_OK;
    return end(&k);
}

/* ---- Adapter --------------------------------------------------------------------------------- */

static const char *const adapter_roots[] = { "text_adapter.adaptor.", "text.text_adaptor.",
                                             "text.text_proj.text_adaptor.", "text_adaptor." };

/* The number behind the root of an adapter tensor; false if there is none below 100. */
static bool block_number(const char *name, const char *root, size_t *out) {
    size_t n = strlen(root);
    if (strncmp(name, root, n) != 0 || name[n] < '0' || name[n] > '9') {
        return false;
    }
    char *tail;
    unsigned long i = strtoul(name + n, &tail, 10);
    *out = i;
    return *tail == '.' && i < 100;
}

/* The tensors of one number, sorted into what they can be by rank and shape. */
typedef struct group {
    const l2c_tensor *vector;    /* the weight of a LayerNorm */
    const l2c_tensor *matrix[2]; /* in the order of names */
    size_t matrices, tensors;
} group;

static group find_group(const taker *k, const char *root, size_t number) {
    group g = { 0 };
    for (size_t i = 0; i < k->source->count; i++) {
        const l2c_tensor *t = &k->source->items[i];
        size_t found, n = strlen(t->name);
        if (!block_number(t->name, root, &found) || found != number) {
            continue;
        }
        g.tensors++;
        if (n < 7 || strcmp(t->name + n - 7, ".weight") != 0) {
            continue;
        }
        if (t->ndim == 1) {
            g.vector = t;
        } else if (t->ndim == 2 && g.matrices < 2) {
            g.matrix[g.matrices++] = t;
        }
    }
    return g;
}

/* A weight and the bias beside it, given by the weight's own (full) name. */
static void take_beside(taker *k, const l2c_tensor *weight, const char *canonical, size_t d0,
                        size_t d1) {
    char source[NAME_BYTES];
    size_t n = strlen(weight->name) - 7, skip = strlen(k->prefix);
    if (n - skip >= sizeof source) {
        fail(k, L2CDB_E_FORMAT, "tensor \"%.120s\": the name is too long", weight->name);
        return;
    }
    memcpy(source, weight->name + skip, n - skip);
    source[n - skip] = '\0';
    take_pair_as(k, canonical, source, d0, d1);
}

static void take_block(taker *k, const char *root, size_t number, const l2c_heads_config *c) {
    group g = find_group(k, root, number);
    size_t d = c->text_width, h = c->text_hidden;
    if (g.vector == NULL || g.matrices != 2 || g.tensors != 6) {
        fail(
            k, L2CDB_E_FORMAT,
            "adapter block %zu (\"%s%zu.…\") has %zu tensors, expected a LayerNorm and two Linears "
            "with biases",
            number, root, number, g.tensors);
        return;
    }
    // By shape; square ones by the order of their names (fn.0, fn.3; fc_in, fc_out; fc1, fc2).
    bool swapped = h != d && g.matrix[0]->shape[0] == d && g.matrix[0]->shape[1] == h;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "text_adapter.adaptor.%zu.ln", number);
    take_beside(k, g.vector, name, d, 0);
    snprintf(name, sizeof name, "text_adapter.adaptor.%zu.fn.0", number);
    take_beside(k, g.matrix[swapped ? 1 : 0], name, h, d);
    snprintf(name, sizeof name, "text_adapter.adaptor.%zu.fn.3", number);
    take_beside(k, g.matrix[swapped ? 0 : 1], name, d, h);
}

/* `k->to` is the set of heads. */
static void take_adapter(taker *k, l2c_heads_config *c) {
    const char *root = NULL;
    char full[NAME_BYTES];
    size_t last = 0;
    for (size_t r = 0; r < sizeof adapter_roots / sizeof adapter_roots[0]; r++) {
        concat(full, k->prefix, adapter_roots[r]);
        for (size_t i = 0; i < k->source->count; i++) {
            size_t number;
            if (block_number(k->source->items[i].name, full, &number)) {
                root = adapter_roots[r];
                last = number > last ? number : last;
            }
        }
        if (root != NULL) {
            break;
        }
    }
    if (root == NULL) {
        fail(k, L2CDB_E_FORMAT, "no text adapter: this is not an LLM2CLIP vision file");
        return;
    }
    if (last < 2 || last > 17) {
        fail(k, L2CDB_E_FORMAT,
             "the text adapter has %zu parts, expected blocks, a LayerNorm and a "
             "Linear",
             last + 1);
        return;
    }
    group norm = find_group(k, full, last - 1), linear = find_group(k, full, last);
    if (norm.vector == NULL || norm.tensors != 2 || linear.matrices != 1 || linear.tensors != 2) {
        fail(k, L2CDB_E_FORMAT,
             "the text adapter must end with a LayerNorm (%zu) and a Linear (%zu)", last - 1, last);
        return;
    }
    c->blocks = last - 1;
    c->text_width = norm.vector->shape[0];
    c->width = linear.matrix[0]->shape[0];
    group first = find_group(k, full, 0);
    for (size_t m = 0; m < first.matrices; m++) {
        const size_t *shape = first.matrix[m]->shape;
        if (shape[1] == c->text_width && (shape[0] != c->text_width || c->text_hidden == 0)) {
            c->text_hidden = shape[0];
        }
    }
    if (c->width == 0 || c->text_width == 0 || c->text_hidden == 0 || c->text_width > 65536 ||
        c->text_hidden > 1u << 20 || c->width > 65536) {
        fail(k, L2CDB_E_FORMAT, "the text adapter's shapes make no sense (%zu → %zu → %zu)",
             c->text_width, c->text_hidden, c->width);
        return;
    }
    for (size_t b = 0; k->rc == L2CDB_OK && b < c->blocks; b++) {
        take_block(k, full, b, c);
    }
    char name[NAME_BYTES];
    if (k->rc == L2CDB_OK) {
        snprintf(name, sizeof name, "text_adapter.adaptor.%zu", last - 1);
        take_beside(k, norm.vector, name, c->text_width, 0);
        snprintf(name, sizeof name, "text_adapter.adaptor.%zu", last);
        take_beside(k, linear.matrix[0], name, c->width, c->text_width);
    }
    refuse_rest(k, root);
}

static void take_logit_scale(taker *k, float *out) {
    const l2c_tensor *t = peek(k, "logit_scale");
    if (t == NULL || k->rc != L2CDB_OK) {
        return;
    }
    if (t->count != 1 || t->ndim > 1 || !l2c_dtype_is_float(t->dtype)) {
        fail(k, L2CDB_E_MISMATCH, "\"logit_scale\" must be one float");
        return;
    }
    mark_used(k, t);
    l2c_tensor_to_f32(t, out);
    if (!isfinite(*out)) {
        fail(k, L2CDB_E_FORMAT, "\"logit_scale\" is not finite");
    }
}

/* ---- Towers ---------------------------------------------------------------------------------- */

/* Largest g with g*g <= n. */
static size_t root_of(size_t n) {
    size_t g = (size_t)sqrt((double)n);
    while (g > 0 && g * g > n) {
        g--;
    }
    while ((g + 1) * (g + 1) <= n) {
        g++;
    }
    return g;
}

static size_t count_layers(const taker *k, const char *fmt) L2CDB_PRINTF(2, 0);
static size_t count_layers(const taker *k, const char *fmt) {
    size_t n = 0;
    while (n < 512 && peekf(k, fmt, n) != NULL) {
        n++;
    }
    return n;
}

typedef struct landmarks {
    const char *patch, *positions; /* names */
    const char *layer;             /* format of a tensor that every layer has */
    const char *hidden;            /* format of the weight whose rows are the MLP's width */
    size_t head_width;
    bool class_token;
} landmarks;

/* The configuration as far as the tensors tell it. */
static void infer(taker *k, l2c_vision_config *c, const landmarks *m) {
    const l2c_tensor *patch = peek(k, m->patch), *positions = peek(k, m->positions);
    const l2c_tensor *hidden = peekf(k, m->hidden, 0);
    if (patch == NULL || patch->ndim != 4 || patch->shape[0] == 0 || patch->shape[2] == 0) {
        fail(k, L2CDB_E_FORMAT, "\"%s\" is missing or not [W,3,P,P]", m->patch);
        return;
    }
    c->width = patch->shape[0];
    c->patch = patch->shape[2];
    c->layers = count_layers(k, m->layer);
    c->hidden = hidden != NULL && hidden->ndim == 2 ? hidden->shape[0] : 0;
    size_t rows =
        positions != NULL && positions->ndim >= 2 ? positions->shape[positions->ndim - 2] : 0;
    size_t patches = rows - (m->class_token && rows > 0 ? 1 : 0);
    c->grid = root_of(patches);
    if (c->layers == 0 || c->hidden == 0 || c->grid == 0 || c->grid * c->grid != patches) {
        fail(
            k, L2CDB_E_FORMAT,
            "the tower has %zu layers, an MLP of %zu and %zu positions: expected some layers and a "
            "square of patches",
            c->layers, c->hidden, rows);
        return;
    }
    if (c->width > 65536 || c->patch > 256 || c->grid > L2C_PIXELS_SIDE_MAX / c->patch ||
        c->hidden > 1u << 20) {
        fail(k, L2CDB_E_LIMIT,
             "the tower is wider than anything known (W %zu, patch %zu, grid %zu)", c->width,
             c->patch, c->grid);
        return;
    }
    if (c->width % m->head_width != 0) {
        fail(k, L2CDB_E_UNSUPPORTED, "width %zu is not a multiple of the head width %zu", c->width,
             m->head_width);
        return;
    }
    c->head_width = m->head_width;
    c->heads = c->width / m->head_width;
    c->image_side = c->grid * c->patch;
}

static void take_openai_hf(taker *k, const l2c_vision_config *c) {
    size_t W = c->width, N = c->grid * c->grid;
    take_as(k, "vision_model.embeddings.class_embedding", "vision_model.embeddings.class_embedding",
            false, W, 0, 0, 0);
    take_as(k, "vision_model.embeddings.patch_embedding.weight",
            "vision_model.embeddings.patch_embedding.weight", false, W, 3, c->patch, c->patch);
    take_as(k, "vision_model.embeddings.position_embedding.weight",
            "vision_model.embeddings.position_embedding.weight", false, N + 1, W, 0, 0);
    take_pair_as(k, "vision_model.pre_layrnorm", "vision_model.pre_layrnorm", W, 0);
    for (size_t i = 0; k->rc == L2CDB_OK && i < c->layers; i++) {
        take_pair(k, "vision_model.encoder.layers.%zu.layer_norm1", i, W, 0);
        take_pair(k, "vision_model.encoder.layers.%zu.self_attn.q_proj", i, W, W);
        take_pair(k, "vision_model.encoder.layers.%zu.self_attn.k_proj", i, W, W);
        take_pair(k, "vision_model.encoder.layers.%zu.self_attn.v_proj", i, W, W);
        take_pair(k, "vision_model.encoder.layers.%zu.self_attn.out_proj", i, W, W);
        take_pair(k, "vision_model.encoder.layers.%zu.layer_norm2", i, W, 0);
        take_pair(k, "vision_model.encoder.layers.%zu.mlp.fc1", i, c->hidden, W);
        take_pair(k, "vision_model.encoder.layers.%zu.mlp.fc2", i, W, c->hidden);
    }
    take_pair_as(k, "vision_model.post_layernorm", "vision_model.post_layernorm", W, 0);
    refuse_rest(k, "vision_model.");
}

/* Layout C stacks q, k, v: three slices of rows, which need no copy. */
static void take_stacked(taker *k, size_t layer, const char *end, const char *target, size_t W,
                         bool matrix) {
    static const char *const names[] = { "q_proj", "k_proj", "v_proj" };
    char source[NAME_BYTES];
    snprintf(source, sizeof source, "visual.transformer.resblocks.%zu.attn.in_proj_%s", layer, end);
    const size_t shape[2] = { 3 * W, W };
    const l2c_tensor *t = peek(k, source);
    if (!fits(k, t, source, matrix ? 2 : 1, shape, false)) {
        return;
    }
    mark_used(k, t);
    for (size_t i = 0; i < 3; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "vision_model.encoder.layers.%zu.self_attn.%s.%s", layer,
                 names[i], target);
        l2c_tensor slice = *t;
        slice.shape[0] = W;
        slice.count = t->count / 3;
        slice.bytes = t->bytes / 3;
        slice.data = (const char *)t->data + i * slice.bytes;
        put(k, &slice, name);
    }
}

static void take_openai_train(taker *k, const l2c_vision_config *c) {
    size_t W = c->width, N = c->grid * c->grid;
    take_as(k, "vision_model.embeddings.class_embedding", "visual.class_embedding", false, W, 0, 0,
            0);
    take_as(k, "vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight", false, W, 3,
            c->patch, c->patch);
    take_as(k, "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding",
            false, N + 1, W, 0, 0);
    take_pair_as(k, "vision_model.pre_layrnorm", "visual.ln_pre", W, 0);
    const struct {
        const char *to, *from;
        size_t d0, d1;
    } pairs[] = {
        { "layer_norm1", "ln_1", W, 0 },           { "self_attn.out_proj", "attn.out_proj", W, W },
        { "layer_norm2", "ln_2", W, 0 },           { "mlp.fc1", "mlp.c_fc", c->hidden, W },
        { "mlp.fc2", "mlp.c_proj", W, c->hidden },
    };
    for (size_t i = 0; k->rc == L2CDB_OK && i < c->layers; i++) {
        take_stacked(k, i, "weight", "weight", W, true);
        take_stacked(k, i, "bias", "bias", W, false);
        for (size_t p = 0; p < sizeof pairs / sizeof pairs[0]; p++) {
            char to[NAME_BYTES], from[NAME_BYTES];
            snprintf(to, sizeof to, "vision_model.encoder.layers.%zu.%s", i, pairs[p].to);
            snprintf(from, sizeof from, "visual.transformer.resblocks.%zu.%s", i, pairs[p].from);
            take_pair_as(k, to, from, pairs[p].d0, pairs[p].d1);
        }
    }
    take_pair_as(k, "vision_model.post_layernorm", "visual.ln_post", W, 0);
}

static void take_eva(taker *k, const l2c_vision_config *c) {
    size_t W = c->width, N = c->grid * c->grid;
    take_as(k, "visual.cls_token", "visual.cls_token", true, W, 0, 0, 0);
    take_as(k, "visual.pos_embed", "visual.pos_embed", true, N + 1, W, 0, 0);
    take_as(k, "visual.patch_embed.proj.weight", "visual.patch_embed.proj.weight", false, W, 3,
            c->patch, c->patch);
    take_as(k, "visual.patch_embed.proj.bias", "visual.patch_embed.proj.bias", false, W, 0, 0, 0);
    for (size_t i = 0; k->rc == L2CDB_OK && i < c->layers; i++) {
        take_pair(k, "visual.blocks.%zu.norm1", i, W, 0);
        take(k, "visual.blocks.%zu.attn.q_proj.weight", i, W, W);
        take(k, "visual.blocks.%zu.attn.k_proj.weight", i, W, W);
        take(k, "visual.blocks.%zu.attn.v_proj.weight", i, W, W);
        for (const char *p = "qv"; *p != '\0'; p++) {
            // EVA-CLIP's own name for the bias is attn.q_bias.
            char name[NAME_BYTES], old[NAME_BYTES];
            snprintf(name, sizeof name, "visual.blocks.%zu.attn.%c_proj.bias", i, *p);
            snprintf(old, sizeof old, "visual.blocks.%zu.attn.%c_bias", i, *p);
            take_as(k, name, peek(k, old) != NULL ? old : name, false, W, 0, 0, 0);
        }
        take_pair(k, "visual.blocks.%zu.attn.inner_attn_ln", i, W, 0);
        take_pair(k, "visual.blocks.%zu.attn.proj", i, W, W);
        take_pair(k, "visual.blocks.%zu.norm2", i, W, 0);
        take_pair(k, "visual.blocks.%zu.mlp.w1", i, c->hidden, W);
        take_pair(k, "visual.blocks.%zu.mlp.w2", i, c->hidden, W);
        take_pair(k, "visual.blocks.%zu.mlp.ffn_ln", i, c->hidden, 0);
        take_pair(k, "visual.blocks.%zu.mlp.w3", i, W, c->hidden);
    }
    take_pair_as(k, "visual.norm", "visual.norm", W, 0);
}

static void take_siglip(taker *k, l2c_vision_config *c) {
    size_t W = c->width, N = c->grid * c->grid;
    take_as(k, "visual.trunk.pos_embed", "visual.trunk.pos_embed", true, N, W, 0, 0);
    take_as(k, "visual.trunk.patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight",
            false, W, 3, c->patch, c->patch);
    take_as(k, "visual.trunk.patch_embed.proj.bias", "visual.trunk.patch_embed.proj.bias", false, W,
            0, 0, 0);
    for (size_t i = 0; k->rc == L2CDB_OK && i < c->layers; i++) {
        take_pair(k, "visual.trunk.blocks.%zu.norm1", i, W, 0);
        take_pair(k, "visual.trunk.blocks.%zu.attn.qkv", i, 3 * W, W);
        take_pair(k, "visual.trunk.blocks.%zu.attn.proj", i, W, W);
        take_pair(k, "visual.trunk.blocks.%zu.norm2", i, W, 0);
        take_pair(k, "visual.trunk.blocks.%zu.mlp.fc1", i, c->hidden, W);
        take_pair(k, "visual.trunk.blocks.%zu.mlp.fc2", i, W, c->hidden);
    }
    take_pair_as(k, "visual.trunk.norm", "visual.trunk.norm", W, 0);
    const l2c_tensor *fc1 = peek(k, "visual.trunk.attn_pool.mlp.fc1.weight");
    c->pool_hidden = fc1 != NULL && fc1->ndim == 2 ? fc1->shape[0] : 0;
    if (c->pool_hidden == 0 || c->pool_hidden > 1u << 20) {
        fail(k, L2CDB_E_FORMAT, "the attention pooling has no MLP");
        return;
    }
    take_as(k, "visual.trunk.attn_pool.latent", "visual.trunk.attn_pool.latent", true, W, 0, 0, 0);
    take_pair_as(k, "visual.trunk.attn_pool.q", "visual.trunk.attn_pool.q", W, W);
    take_pair_as(k, "visual.trunk.attn_pool.kv", "visual.trunk.attn_pool.kv", 2 * W, W);
    take_pair_as(k, "visual.trunk.attn_pool.proj", "visual.trunk.attn_pool.proj", W, W);
    take_pair_as(k, "visual.trunk.attn_pool.norm", "visual.trunk.attn_pool.norm", W, 0);
    take_pair_as(k, "visual.trunk.attn_pool.mlp.fc1", "visual.trunk.attn_pool.mlp.fc1",
                 c->pool_hidden, W);
    take_pair_as(k, "visual.trunk.attn_pool.mlp.fc2", "visual.trunk.attn_pool.mlp.fc2", W,
                 c->pool_hidden);
    refuse_rest(k, "visual.");
}

/* Layout C keeps the projection as [W,E]: the one tensor that must be turned. */
static void take_transposed(taker *k, const char *source, const char *canonical, size_t rows,
                            size_t cols) {
    const size_t shape[2] = { cols, rows };
    const l2c_tensor *t = peek(k, source);
    if (!fits(k, t, source, 2, shape, false)) {
        return;
    }
    mark_used(k, t);
    size_t item = l2c_dtype_bytes(t->dtype);
    char *copy = l2c_arena_alloc(&k->to->arena, t->bytes, 1);
    if (copy == NULL) {
        k->rc = l2c_fail_nomem(k->err, t->bytes);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) {
            memcpy(copy + (r * cols + c) * item, (const char *)t->data + (c * rows + r) * item,
                   item);
        }
    }
    l2c_tensor out = *t;
    out.shape[0] = rows;
    out.shape[1] = cols;
    out.data = copy;
    put(k, &out, canonical);
}

typedef enum layout {
    LAYOUT_A,
    LAYOUT_B,
    LAYOUT_C,
    LAYOUT_D,
    LAYOUT_NONE,
} layout;

/* Also sets the prefix. */
static layout find_layout(taker *k) {
    static const struct {
        const char *name;
        layout layout;
    } signs[] = {
        { "vision_model.embeddings.class_embedding", LAYOUT_A },
        { "visual.cls_token", LAYOUT_B },
        { "visual.class_embedding", LAYOUT_C },
        { "visual.trunk.pos_embed", LAYOUT_D },
    };
    static const char *const prefixes[] = { "", "module." };
    for (size_t p = 0; p < 2; p++) {
        k->prefix = prefixes[p];
        for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
            if (peek(k, signs[i].name) != NULL) {
                return signs[i].layout;
            }
        }
    }
    k->prefix = "";
    return LAYOUT_NONE;
}

bool l2c_layout_is_vision(const l2c_tensors *source) {
    taker k = { .source = source };
    return find_layout(&k) != LAYOUT_NONE;
}

static void refuse_layout(taker *k) {
    bool llm =
        peek(k, "embed_tokens.weight") != NULL || peek(k, "model.embed_tokens.weight") != NULL;
    fail(k, L2CDB_E_FORMAT,
         "no vision tower of a known layout (OpenAI in Hugging Face or training layout, EVA02 .pt, "
         "SigLIP2)%s",
         llm ? "; this is an LLM" : "");
}

/* Tower configuration: from config.json for OpenAI towers, from the tensors otherwise. */
static void configure(taker *k, layout kind, l2c_vision_config *c, const l2c_layout_json *json,
                      size_t *projection_dim) {
    static const landmarks marks[] = {
        [LAYOUT_A] = { "vision_model.embeddings.patch_embedding.weight",
                       "vision_model.embeddings.position_embedding.weight",
                       "vision_model.encoder.layers.%zu.layer_norm1.weight",
                       "vision_model.encoder.layers.%zu.mlp.fc1.weight", 64, true },
        [LAYOUT_B] = { "visual.patch_embed.proj.weight", "visual.pos_embed",
                       "visual.blocks.%zu.norm1.weight", "visual.blocks.%zu.mlp.w1.weight", 64,
                       true },
        [LAYOUT_C] = { "visual.conv1.weight", "visual.positional_embedding",
                       "visual.transformer.resblocks.%zu.ln_1.weight",
                       "visual.transformer.resblocks.%zu.mlp.c_fc.weight", 64, true },
        [LAYOUT_D] = { "visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed",
                       "visual.trunk.blocks.%zu.norm1.weight",
                       "visual.trunk.blocks.%zu.mlp.fc1.weight", 72, false },
    };
    *projection_dim = 0;
    if ((kind == LAYOUT_A || kind == LAYOUT_C) && json != NULL && json->config != NULL) {
        k->rc = l2c_config_read_clip(c, projection_dim, json->config, json->config_bytes,
                                     json->config_what, k->err);
        return;
    }
    *c = (l2c_vision_config){ .kind = kind == LAYOUT_B   ? L2C_VISION_EVA02
                                      : kind == LAYOUT_D ? L2C_VISION_SIGLIP2
                                                         : L2C_VISION_OPENAI };
    infer(k, c, &marks[kind]);
    bool openai = c->kind == L2C_VISION_OPENAI;
    c->act = openai ? L2C_ACT_QUICK_GELU : L2C_ACT_GELU;
    c->ln_eps = openai ? 1e-5 : 1e-6;
    c->rope_grid = kind == LAYOUT_B ? 16 : 0;
}

static void take_tower(taker *k, layout kind, l2c_vision_config *c) {
    switch (kind) {
    case LAYOUT_A:
        take_openai_hf(k, c);
        break;
    case LAYOUT_B:
        take_eva(k, c);
        break;
    case LAYOUT_C:
        take_openai_train(k, c);
        break;
    case LAYOUT_D:
        take_siglip(k, c);
        break;
    case LAYOUT_NONE:
        break;
    }
}

/* `k->to` is the set of heads; the tower is taken already. */
static void take_projection(taker *k, layout kind, l2c_heads_config *h) {
    size_t E = h->width, W = h->image_width;
    h->has_projection = kind != LAYOUT_D;
    if (kind == LAYOUT_A) {
        take_as(k, "visual_projection.weight", "visual_projection.weight", false, E, W, 0, 0);
        h->has_projection_bias = peek(k, "visual_projection.bias") != NULL;
        if (h->has_projection_bias) {
            take_as(k, "visual_projection.bias", "visual_projection.bias", false, E, 0, 0, 0);
        }
    } else if (kind == LAYOUT_B) {
        h->has_projection_bias = true;
        take_pair_as(k, "visual_projection", "visual.head", E, W);
    } else if (kind == LAYOUT_C) {
        take_transposed(k, "visual.proj", "visual_projection.weight", E, W);
    } else if (E != W) {
        fail(k, L2CDB_E_MISMATCH, "the adapter gives %zu values, the tower %zu", E, W);
    }
    if (kind == LAYOUT_B || kind == LAYOUT_C) {
        refuse_rest(k, "visual.");
    }
}

static void take_pixels(taker *k, l2c_vision_config *c, const l2c_layout_json *json) {
    if (k->rc != L2CDB_OK) {
        return;
    }
    l2c_pixels_config_init(&c->pixels, (uint32_t)c->image_side);
    if (json != NULL && json->pixels != NULL) {
        k->rc = l2c_config_read_preprocess(&c->pixels, c->image_side, json->pixels,
                                           json->pixels_bytes, json->pixels_what, k->err);
    }
}

l2cdb_status l2c_layout_take_vision(l2c_bundle *b, l2c_tensors *source, const l2c_layout_json *json,
                                    const char *what, l2cdb_error *err) {
    taker k;
    if (!begin(&k, source, &b->vision_tensors, what, err)) {
        return end(&k);
    }
    size_t projection_dim = 0;
    layout kind = find_layout(&k);
    if (kind == LAYOUT_NONE) {
        refuse_layout(&k);
    } else {
        configure(&k, kind, &b->vision, json, &projection_dim);
        if (k.rc == L2CDB_OK) {
            take_tower(&k, kind, &b->vision);
        }
    }
    take_pixels(&k, &b->vision, json);
    k.to = &b->head_tensors;
    if (k.rc == L2CDB_OK) {
        take_adapter(&k, &b->heads);
    }
    b->heads.image_width = b->vision.width;
    b->heads.normalize_input = kind != LAYOUT_D;
    if (k.rc == L2CDB_OK) {
        take_projection(&k, kind, &b->heads);
        take_logit_scale(&k, &b->logit_scale);
    }
    if (k.rc == L2CDB_OK && projection_dim != 0 && projection_dim != b->heads.width) {
        fail(&k, L2CDB_E_MISMATCH, "config.json says projection_dim %zu, the tensors give %zu",
             projection_dim, b->heads.width);
    }
    b->has_vision = b->has_adapter = k.rc == L2CDB_OK;
    l2cdb_status rc = end(&k);
    return rc == L2CDB_OK ? l2c_tensors_seal(&b->vision_tensors, what, err) : rc;
}

/* ---- Stored bundles -------------------------------------------------------------------------- */

l2cdb_status l2c_layout_take_stored(l2c_bundle *b, l2c_tensors *llm, l2c_tensors *vision,
                                    l2c_tensors *heads, const char *what, l2cdb_error *err) {
    taker k;
    l2cdb_status rc = L2CDB_OK;
    if (llm != NULL) {
        if (begin(&k, llm, &b->llm_tensors, what, err)) {
            k.int8 = true;
            take_llm(&k, &b->llm);
            refuse_rest(&k, "");
        }
        b->has_llm = k.rc == L2CDB_OK;
        rc = end(&k);
    }
    if (rc == L2CDB_OK && vision != NULL) {
        if (begin(&k, vision, &b->vision_tensors, what, err)) {
            k.int8 = true;
            size_t pool_hidden = b->vision.pool_hidden;
            take_tower(&k,
                       b->vision.kind == L2C_VISION_OPENAI  ? LAYOUT_A
                       : b->vision.kind == L2C_VISION_EVA02 ? LAYOUT_B
                                                            : LAYOUT_D,
                       &b->vision);
            if (k.rc == L2CDB_OK && b->vision.pool_hidden != pool_hidden) {
                fail(&k, L2CDB_E_MISMATCH, "the pooling MLP has %zu rows, expected %zu",
                     b->vision.pool_hidden, pool_hidden);
            }
            refuse_rest(&k, "");
        }
        b->has_vision = k.rc == L2CDB_OK;
        rc = end(&k);
    }
    if (rc == L2CDB_OK && heads != NULL) {
        if (begin(&k, heads, &b->head_tensors, what, err)) {
            l2c_heads_config stored = b->heads;
            take_adapter(&k, &b->heads);
            if (k.rc == L2CDB_OK && stored.has_projection) {
                take_as(&k, "visual_projection.weight", "visual_projection.weight", false,
                        b->heads.width, stored.image_width, 0, 0);
            }
            if (k.rc == L2CDB_OK && stored.has_projection_bias) {
                take_as(&k, "visual_projection.bias", "visual_projection.bias", false,
                        b->heads.width, 0, 0, 0);
            }
            take_logit_scale(&k, &b->logit_scale);
            if (k.rc == L2CDB_OK && !stored.has_projection &&
                b->heads.width != stored.image_width) {
                fail(&k, L2CDB_E_MISMATCH, "the adapter gives %zu values, the tower %zu",
                     b->heads.width, stored.image_width);
            }
            refuse_rest(&k, "");
        }
        b->has_adapter = k.rc == L2CDB_OK;
        rc = end(&k);
    }
    return rc;
}

/* ---- What must agree between parts ----------------------------------------------------------- */

l2cdb_status l2c_layout_check_tokenizer(const l2c_bundle *b, const char *what, l2cdb_error *err) {
    size_t ids = l2c_tokenizer_vocab(b->tokenizer);
    if (ids > b->llm.vocab) {
        return l2c_fail(
            err, L2CDB_E_MISMATCH,
            "%s has ids up to %zu, the embedding has %zu rows; the tokenizer belongs to "
            "another model",
            what, ids - 1, b->llm.vocab);
    }
    if (!l2c_tokenizer_has_template(b->tokenizer)) {
        return l2c_fail(
            err, L2CDB_E_UNSUPPORTED,
            "%s lacks <|start_header_id|>, <|end_header_id|> or <|eot_id|>, which frame "
            "every text",
            what);
    }
    return L2CDB_OK;
}

static const char *llm_of_width(size_t d) {
    switch (d) {
    case 4096:
        return "LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned (for the SigLIP2 release: "
               "Llama-3.1-8B-Instruct with its LoRA)";
    case 2048:
        return "LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned";
    default:
        return "the LLM it was trained with";
    }
}

l2cdb_status l2c_layout_check_pair(const l2c_bundle *b, bool has_lora, l2cdb_error *err) {
    if (!b->has_llm || !b->has_adapter) {
        return L2CDB_OK;
    }
    if (b->heads.text_width != b->llm.width) {
        l2c_fail(
            err, L2CDB_E_MISMATCH,
            "the text adapter reads vectors of %zu, the LLM gives %zu: these parts do not pair",
            b->heads.text_width, b->llm.width);
        l2c_hint(err, "an adapter of %zu pairs with %s", b->heads.text_width,
                 llm_of_width(b->heads.text_width));
        return L2CDB_E_MISMATCH;
    }
    // Both 8B models have the same shapes; only the rotary scaling tells 3.1 from 3.0.
    bool is_8b = b->llm.width == 4096 && b->llm.layers == 32;
    bool siglip = b->vision.kind == L2C_VISION_SIGLIP2;
    if (is_8b && (siglip != b->llm.rope_llama3 || (!siglip && has_lora))) {
        l2c_fail(err, L2CDB_E_MISMATCH,
                 siglip
                     ? "the SigLIP2 adapter was trained with Llama-3.1-8B, this LLM is Llama-3-8B"
                     : "this adapter was trained with Llama-3-8B-CC, this LLM is Llama-3.1-8B");
        l2c_hint(err, siglip ? "give Llama-3.1-8B-Instruct and the release's LoRA"
                             : "give LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned, without a LoRA");
        return L2CDB_E_MISMATCH;
    }
    return L2CDB_OK;
}

/* ---- Fingerprints ---------------------------------------------------------------------------- */

static void hash_text(l2c_hasher *h, const char *fmt, ...) L2CDB_PRINTF(2, 3);
static void hash_text(l2c_hasher *h, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    l2c_hasher_add(h, text, n > 0 ? (size_t)n : 0);
}

void l2c_layout_hash_tensor(l2c_hasher *h, const l2c_tensor *t) {
    char shape[128];
    hash_text(h, "%s %s %s\n", t->name, l2c_dtype_name(t->dtype),
              shape_text(shape, t->ndim, t->shape));
    l2c_hasher_add(h, t->data, t->bytes);
}

void l2c_layout_hash_llm(l2c_hasher *h, const l2c_bundle *b) {
    const l2c_llm_config *c = &b->llm;
    l2c_hash tokenizer = l2c_tokenizer_fingerprint(b->tokenizer);
    char hex[L2C_HASH_HEX_BYTES];
    l2c_hash_hex(&tokenizer, hex);
    hash_text(h, "llama %zu %zu %zu/%zu/%zu %zu %zu %.17g %.17g %d %.17g %.17g %.17g %.17g %s\n",
              c->width, c->layers, c->heads, c->kv_heads, c->head_dim, c->hidden, c->vocab,
              c->rms_eps, c->rope_theta, c->rope_llama3, c->rope_factor, c->rope_low, c->rope_high,
              c->rope_original, hex);
}

void l2c_layout_hash_vision(l2c_hasher *h, const l2c_bundle *b) {
    const l2c_vision_config *c = &b->vision;
    const l2c_pixels_config *p = &c->pixels;
    hash_text(h, "vision %d %zu %zu %zu %zu %zu %zu %zu %zu %d %.17g %u %u %d %.9g", (int)c->kind,
              c->width, c->layers, c->heads, c->hidden, c->pool_hidden, c->patch, c->grid,
              c->rope_grid, (int)c->act, c->ln_eps, p->resize_side, p->crop_side, p->squash,
              (double)p->rescale);
    for (int i = 0; i < 3; i++) {
        hash_text(h, " %.9g %.9g", (double)p->mean[i], (double)p->std[i]);
    }
    hash_text(h, "\n");
}

void l2c_layout_hash_heads(l2c_hasher *h, const l2c_bundle *b) {
    const l2c_heads_config *c = &b->heads;
    hash_text(h, "heads %zu %zu %zu %zu %zu %d %d %.9g\n", c->width, c->text_width, c->blocks,
              c->text_hidden, c->image_width, c->has_projection, c->normalize_input,
              (double)b->logit_scale);
}

static l2cdb_status finish_set(l2c_hash *out, const l2c_bundle *b, const l2c_tensors *set,
                               void (*head)(l2c_hasher *h, const l2c_bundle *b), l2cdb_error *err) {
    l2c_hasher *h = l2c_hasher_new();
    if (h == NULL) {
        return l2c_fail_nomem(err, 1024);
    }
    head(h, b);
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; rc == L2CDB_OK && i < set->count; i++) {
        const l2c_tensor *t = &set->items[i];
        size_t at = 0;
        if (!l2c_tensor_finite(t, &at)) {
            rc = l2c_fail(err, L2CDB_E_FORMAT,
                          "%s: tensor \"%s\" holds NaN or infinity (element %zu)", b->name, t->name,
                          at);
            l2c_hint(err, "the file is damaged or the training failed; get another copy");
        }
        l2c_layout_hash_tensor(h, t);
    }
    *out = l2c_hasher_get(h);
    l2c_hasher_free(h);
    return rc;
}

void l2c_layout_count(l2c_bundle *b) {
    const l2c_tensors *sets[] = { &b->llm_tensors, &b->vision_tensors, &b->head_tensors };
    b->parameters = b->has_adapter ? 1 : 0; // logit_scale
    b->weights_bytes = 0;
    for (size_t s = 0; s < 3; s++) {
        for (size_t i = 0; i < sets[s]->count; i++) {
            const l2c_tensor *t = &sets[s]->items[i];
            size_t n = strlen(t->name);
            bool scale = n > 13 && strcmp(t->name + n - 13, ".weight_scale") == 0;
            b->parameters += scale ? 0 : t->count;
            b->weights_bytes += t->bytes;
        }
    }
}

l2cdb_status l2c_layout_finish(l2c_bundle *b, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    if (b->has_llm) {
        rc = finish_set(&b->text_trunk, b, &b->llm_tensors, l2c_layout_hash_llm, err);
    }
    if (rc == L2CDB_OK && b->has_vision) {
        rc = finish_set(&b->image_trunk, b, &b->vision_tensors, l2c_layout_hash_vision, err);
    }
    if (rc == L2CDB_OK && b->has_adapter) {
        rc = finish_set(&b->heads_hash, b, &b->head_tensors, l2c_layout_hash_heads, err);
    }
    l2c_layout_count(b);
    return rc;
}
