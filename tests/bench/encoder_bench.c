/* What the trunks cost in their true shapes, with random weights: milliseconds, photos or texts a
 * second, and the share of the rate that the same products reach alone.
 *
 *   encoder_bench [--shape vit-l|llama-1b|mini|all] [--precision f32|bf16|int8|all]
 *                 [--batch N] [--threads N] [--seconds S]
 *
 * One JSON object a line: shape, precision, batch, ms (median of a pass), per_second, gops (work of
 * the products and of attention over time), share (of `product_gops`, the rate of the shape's MLP
 * products dealt to the same threads, measured just before), cpu_ms (processor time of the least
 * pass, all threads). Tensors are overlapping stretches of the same random numbers, but each keeps
 * its own packed copy, so memory traffic is that of the real model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "encoders/llama.h"
#include "encoders/tower.h"
#include "engine/base/cpu.h"
#include "engine/base/vec.h"

typedef struct settings {
    const char *shape;
    int precision; /* -1: all */
    size_t batch;  /* 0: the shape's own list */
    size_t threads;
    double seconds;
} settings;

static l2cdb_error err;

static void check(l2cdb_status rc) {
    if (rc != L2CDB_OK) {
        fprintf(stderr, "encoder_bench: %s\n", err.message);
        exit(1);
    }
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef void (*pass_fn)(void *ctx);

/* Processor seconds of the least pass: with OMP_WAIT_POLICY=passive a figure that neighbours on the
 * machine disturb little. */
static double cpu_least;

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Median seconds of a pass: one to warm up, then at least two. */
static double time_pass(pass_fn fn, void *ctx, double seconds) {
    double runs[1000], begin;
    size_t n = 0;
    fn(ctx);
    begin = now_s();
    cpu_least = 1e9;
    while (n < 1000 && (n < 2 || now_s() - begin < seconds)) {
        double t = now_s(), cpu = cpu_s();
        fn(ctx);
        cpu = cpu_s() - cpu;
        cpu_least = cpu < cpu_least ? cpu : cpu_least;
        runs[n++] = now_s() - t;
    }
    qsort(runs, n, sizeof *runs, by_value);
    return runs[n / 2];
}

/* ---- Random tensors ------------------------------------------------------------------------- */

static uint16_t *noise; /* bf16 */
static size_t noise_count;

static void make_noise(size_t count) {
    noise_count = count;
    noise = malloc(count * sizeof *noise);
    uint64_t seed = 1;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        noise[i] = l2c_f32_to_bf16(((float)(seed >> 40) / (float)(1 << 24) - 0.5F) * 0.08F);
    }
}

static void add(l2c_tensors *set, size_t rows, size_t columns, const char *name) {
    l2c_tensor t = { .dtype = L2C_DTYPE_BF16,
                     .ndim = columns > 0 ? 2 : 1,
                     .shape = { rows, columns },
                     .count = rows * (columns > 0 ? columns : 1) };
    t.bytes = t.count * 2;
    if (t.count >= noise_count) {
        fprintf(stderr, "encoder_bench: %s is larger than the noise\n", name);
        exit(1);
    }
    // Each from a place of its own: rows that meet themselves would make outliers.
    t.data = noise + (set->count + 1) * 100003 % (noise_count - t.count);
    l2c_tensors_add(set, &t, name, strlen(name));
}

static void add_pair(l2c_tensors *set, size_t rows, size_t columns, const char *prefix) {
    char name[160];
    snprintf(name, sizeof name, "%s.weight", prefix);
    add(set, rows, columns, name);
    snprintf(name, sizeof name, "%s.bias", prefix);
    add(set, rows, 0, name);
}

static void make_vit(l2c_tensors *set, const l2c_vision_config *c) {
    size_t W = c->width;
    char prefix[128];
    add(set, W, 0, "vision_model.embeddings.class_embedding");
    add(set, W, 3 * c->patch * c->patch, "vision_model.embeddings.patch_embedding.weight");
    add(set, c->grid * c->grid + 1, W, "vision_model.embeddings.position_embedding.weight");
    add_pair(set, W, 0, "vision_model.pre_layrnorm");
    add_pair(set, W, 0, "vision_model.post_layernorm");
    for (size_t i = 0; i < c->layers; i++) {
        const struct {
            const char *name;
            size_t rows, columns;
        } parts[] = {
            { "layer_norm1", W, 0 },      { "layer_norm2", W, 0 },
            { "self_attn.q_proj", W, W }, { "self_attn.k_proj", W, W },
            { "self_attn.v_proj", W, W }, { "self_attn.out_proj", W, W },
            { "mlp.fc1", c->hidden, W },  { "mlp.fc2", W, c->hidden },
        };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            snprintf(prefix, sizeof prefix, "vision_model.encoder.layers.%zu.%s", i, parts[p].name);
            add_pair(set, parts[p].rows, parts[p].columns, prefix);
        }
    }
    check(l2c_tensors_seal(set, "noise", &err));
}

static void make_llama(l2c_tensors *set, const l2c_llm_config *c) {
    size_t d = c->width, kv = c->kv_heads * c->head_dim;
    char name[128];
    add(set, c->vocab, d, "embed_tokens.weight");
    add(set, d, 0, "norm.weight");
    for (size_t i = 0; i < c->layers; i++) {
        const struct {
            const char *name;
            size_t rows, columns;
        } parts[] = {
            { "input_layernorm", d, 0 },
            { "post_attention_layernorm", d, 0 },
            { "self_attn.q_proj", c->heads * c->head_dim, d },
            { "self_attn.k_proj", kv, d },
            { "self_attn.v_proj", kv, d },
            { "self_attn.o_proj", d, c->heads * c->head_dim },
            { "mlp.gate_proj", c->hidden, d },
            { "mlp.up_proj", c->hidden, d },
            { "mlp.down_proj", d, c->hidden },
        };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            snprintf(name, sizeof name, "layers.%zu.%s.weight", i, parts[p].name);
            add(set, parts[p].rows, parts[p].columns, name);
        }
    }
    check(l2c_tensors_seal(set, "noise", &err));
}

/* ---- The products alone --------------------------------------------------------------------- */

typedef struct products {
    l2c_workspace *ws;
    l2c_linear *up, *down;
    size_t rows;
    l2c_rows in;
    float *out;
} products;

static l2cdb_status some_rows(void *ctx, size_t first, size_t count, l2c_arena *arena,
                              l2cdb_error *e) {
    products *p = ctx;
    size_t item = p->in.type == L2C_ROW_F32 ? 4 : p->in.type == L2C_ROW_BF16 ? 2 : 1;
    l2c_arena_mark mark = l2c_arena_get_mark(arena);
    l2c_rows in = p->in, hidden = l2c_linear_rows(p->down, count, arena);
    in.data = (char *)in.data + first * in.stride * item;
    in.scale = in.scale != NULL ? in.scale + first : NULL;
    in.fine = in.fine != NULL ? in.fine + first : NULL; // none is: see product_rate
    l2cdb_status rc = l2c_linear_apply(
        p->up, &(l2c_product){ .x_rows = &in, .rows = count, .y_rows = &hidden }, arena, e);
    if (rc == L2CDB_OK) {
        rc = l2c_linear_apply(p->down,
                              &(l2c_product){ .x_rows = &hidden,
                                              .rows = count,
                                              .y = p->out + first * l2c_linear_out(p->down) },
                              arena, e);
    }
    l2c_arena_reset(arena, mark);
    return rc;
}

static void run_products(void *ctx) {
    products *p = ctx;
    check(l2c_deal_rows(p->ws, p->rows, 128, some_rows, p, &err));
}

/* GOP/s of W → hidden → W on `rows` rows. */
static double product_rate(size_t W, size_t hidden, size_t rows, l2c_precision precision,
                           l2c_workspace *ws, double seconds) {
    products p = { .ws = ws, .rows = rows };
    l2c_linear_part up = { .weight = noise, .type = L2C_DTYPE_BF16, .out = hidden };
    l2c_linear_part down = { .weight = noise, .type = L2C_DTYPE_BF16, .out = W };
    check(l2c_linear_new(&p.up, &up, 1, W, precision, L2C_BACKEND_AUTO, &err));
    check(l2c_linear_new(&p.down, &down, 1, hidden, precision, L2C_BACKEND_AUTO, &err));
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    p.in = l2c_linear_rows(p.up, rows, &ws->shared);
    p.out = l2c_arena_alloc(&ws->shared, rows * W, sizeof *p.out);
    float *x = l2c_arena_alloc(&ws->shared, rows * W, sizeof *x);
    // Not the weights' own numbers: a row times itself would be an outlier.
    l2c_vec_from_bf16(x, noise + W / 2 + 1, rows * W);
    l2c_rows_fill(p.up, &p.in, x, W, rows);
    double s = time_pass(run_products, &p, seconds);
    l2c_arena_reset(&ws->shared, mark);
    l2c_linear_free(p.up);
    l2c_linear_free(p.down);
    return 4e-9 * (double)(rows * W * hidden) / s;
}

/* ---- Shapes --------------------------------------------------------------------------------- */

static void report(const char *shape, l2c_precision precision, size_t batch, double s, double ops,
                   double rate) {
    char cpu[128];
    l2c_cpu_describe(cpu, sizeof cpu);
    printf("{\"shape\": \"%s\", \"precision\": \"%s\", \"batch\": %zu, \"ms\": %.3f, "
           "\"per_second\": %.3f, \"gops\": %.0f, \"product_gops\": %.0f, \"share\": %.3f, "
           "\"cpu_ms\": %.2f, \"cpu\": \"%s\"}\n",
           shape, l2c_precision_name(precision), batch, s * 1e3, (double)batch / s, ops * 1e-9 / s,
           rate, ops * 1e-9 / s / rate, cpu_least * 1e3, cpu);
    fflush(stdout);
}

typedef struct vision_pass {
    l2c_tower t;
    l2c_workspace *ws;
    float *pixels, *out;
    size_t batch;
} vision_pass;

static void run_vision(void *ctx) {
    vision_pass *p = ctx;
    check(l2c_tower_features(&p->t, p->out, p->pixels, p->batch, p->ws, &err));
}

static void bench_vision(const char *name, const l2c_vision_config *c, l2c_precision precision,
                         const size_t *batches, const settings *o) {
    l2c_tensors set;
    l2c_tensors_init(&set);
    make_vit(&set, c);
    vision_pass p = { 0 };
    check(l2c_workspace_new(&p.ws, o->threads, &err));
    check(l2c_tower_init(&p.t, c, &set, precision, &err));
    size_t T = p.t.tokens, W = c->width, S = c->image_side;
    double rate = product_rate(W, c->hidden, T, precision, p.ws, o->seconds / 3);
    for (; *batches > 0; batches++) {
        p.batch = *batches;
        p.pixels = malloc(p.batch * 3 * S * S * sizeof(float));
        p.out = malloc(p.batch * W * sizeof(float));
        l2c_vec_from_bf16(p.pixels, noise, 3 * S * S);
        for (size_t i = 1; i < p.batch; i++) {
            memcpy(p.pixels + i * 3 * S * S, p.pixels, 3 * S * S * sizeof(float));
        }
        double s = time_pass(run_vision, &p, o->seconds);
        double macs = (double)T * (double)(3 * c->patch * c->patch * W) +
                      (double)c->layers * ((double)T * (double)(4 * W * W + 2 * W * c->hidden) +
                                           2.0 * (double)T * (double)T * (double)W);
        report(name, precision, p.batch, s, 2 * macs * (double)p.batch, rate);
        free(p.pixels);
        free(p.out);
    }
    l2c_tower_fini(&p.t);
    l2c_workspace_free(p.ws);
    l2c_tensors_fini(&set);
}

typedef struct text_pass {
    l2c_llama m;
    l2c_workspace *ws;
    int32_t *ids;
    size_t *offset, *pooled, batch;
    float *out;
} text_pass;

static void run_text(void *ctx) {
    text_pass *p = ctx;
    check(l2c_llama_features(&p->m, p->out, p->ids, p->offset, p->pooled, p->batch, p->ws, &err));
}

enum { CAPTION_TOKENS = 26 }; /* 20 of a caption, 6 of the frame */

static void bench_text(const char *name, const l2c_llm_config *c, l2c_precision precision,
                       const size_t *batches, const settings *o) {
    l2c_tensors set;
    l2c_tensors_init(&set);
    make_llama(&set, c);
    text_pass p = { 0 };
    check(l2c_workspace_new(&p.ws, o->threads, &err));
    double t0 = now_s();
    check(l2c_llama_init(&p.m, c, &set, 512, precision, &err));
    fprintf(stderr, "%s %s: packed in %.2f s\n", name, l2c_precision_name(precision), now_s() - t0);
    double rate = product_rate(c->width, c->hidden, 832, precision, p.ws, o->seconds / 3);
    for (; *batches > 0; batches++) {
        p.batch = *batches;
        p.ids = malloc(p.batch * CAPTION_TOKENS * sizeof *p.ids);
        p.offset = malloc((p.batch + 1) * sizeof *p.offset);
        p.pooled = malloc(p.batch * sizeof *p.pooled);
        p.out = malloc(p.batch * c->width * sizeof *p.out);
        for (size_t i = 0; i <= p.batch; i++) {
            p.offset[i] = i * CAPTION_TOKENS;
        }
        for (size_t i = 0; i < p.batch; i++) {
            p.pooled[i] = CAPTION_TOKENS - 5;
        }
        for (size_t i = 0; i < p.batch * CAPTION_TOKENS; i++) {
            p.ids[i] = (int32_t)(i * 7919 % c->vocab);
        }
        double s = time_pass(run_text, &p, o->seconds);
        double T = CAPTION_TOKENS,
               width = (double)(c->heads + 2 * c->kv_heads) * (double)c->head_dim;
        double macs = (double)c->layers *
                      (T * (double)c->width *
                           (width + (double)(c->heads * c->head_dim) + 3 * (double)c->hidden) +
                       2 * T * T * (double)(c->heads * c->head_dim));
        report(name, precision, p.batch, s, 2 * macs * (double)p.batch, rate);
        free(p.ids);
        free(p.offset);
        free(p.pooled);
        free(p.out);
    }
    l2c_llama_fini(&p.m);
    l2c_workspace_free(p.ws);
    l2c_tensors_fini(&set);
}

static const l2c_vision_config vit_l = { .kind = L2C_VISION_OPENAI,
                                         .width = 1024,
                                         .layers = 24,
                                         .heads = 16,
                                         .head_width = 64,
                                         .hidden = 4096,
                                         .patch = 14,
                                         .image_side = 336,
                                         .grid = 24,
                                         .act = L2C_ACT_QUICK_GELU,
                                         .ln_eps = 1e-5 };
static const l2c_vision_config vit_mini = { .kind = L2C_VISION_OPENAI,
                                            .width = 192,
                                            .layers = 12,
                                            .heads = 3,
                                            .head_width = 64,
                                            .hidden = 768,
                                            .patch = 16,
                                            .image_side = 224,
                                            .grid = 14,
                                            .act = L2C_ACT_GELU,
                                            .ln_eps = 1e-6 };
static const l2c_llm_config llama_1b = { .width = 2048,
                                         .layers = 16,
                                         .heads = 32,
                                         .kv_heads = 8,
                                         .head_dim = 64,
                                         .hidden = 8192,
                                         .vocab = 8000,
                                         .rms_eps = 1e-5,
                                         .rope_theta = 500000 };
static const l2c_llm_config llama_mini = { .width = 384,
                                           .layers = 6,
                                           .heads = 6,
                                           .kv_heads = 2,
                                           .head_dim = 64,
                                           .hidden = 1024,
                                           .vocab = 15997,
                                           .rms_eps = 1e-5,
                                           .rope_theta = 10000 };

static bool wants(const settings *o, const char *shape) {
    return strcmp(o->shape, "all") == 0 || strcmp(o->shape, shape) == 0;
}

static settings parse(int argc, char **argv) {
    settings o = { .shape = "all", .precision = -1, .threads = l2c_cpu_count(), .seconds = 3 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--shape") == 0) {
            o.shape = argv[i + 1];
        } else if (strcmp(argv[i], "--precision") == 0) {
            l2c_precision p = L2C_PRECISION_AUTO;
            if (strcmp(argv[i + 1], "all") != 0) {
                check(l2c_precision_parse(&p, argv[i + 1], &err));
                o.precision = (int)p;
            }
        } else if (strcmp(argv[i], "--batch") == 0) {
            o.batch = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--threads") == 0) {
            o.threads = strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--seconds") == 0) {
            o.seconds = strtod(argv[i + 1], NULL);
        } else {
            fprintf(stderr, "encoder_bench: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
    return o;
}

int main(int argc, char **argv) {
    settings o = parse(argc, argv);
    make_noise((size_t)8192 * 2048 + (1 << 20));
    l2c_team_begin(o.threads);
    size_t one[] = { o.batch, 0 };
    for (int p = L2C_PRECISION_F32; p <= L2C_PRECISION_INT8; p++) {
        l2c_precision precision = (l2c_precision)p;
        if (o.precision >= 0 && o.precision != p) {
            continue;
        }
        if (wants(&o, "vit-l")) {
            bench_vision("vit-l", &vit_l, precision, o.batch > 0 ? one : (size_t[]){ 1, 8, 0 }, &o);
        }
        if (wants(&o, "mini")) {
            bench_vision("mini-vision", &vit_mini, precision,
                         o.batch > 0 ? one : (size_t[]){ 1, 16, 0 }, &o);
            bench_text("mini-text", &llama_mini, precision,
                       o.batch > 0 ? one : (size_t[]){ 1, 64, 0 }, &o);
        }
        if (wants(&o, "llama-1b")) {
            bench_text("llama-1b", &llama_1b, precision, o.batch > 0 ? one : (size_t[]){ 1, 64, 0 },
                       &o);
        }
    }
    free(noise);
    return 0;
}
