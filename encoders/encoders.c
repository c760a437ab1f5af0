/* The door of the encoders: opening a model, texts and photos in batches, workspaces. What the
 * parts compute is in llama.c, tower.c and heads.c. */
#include "encoders/encoders.h"

#include <stdio.h>
#include <string.h>

#include "encoders/gemm.h"
#include "encoders/model.h"
#include "encoders/pixels.h"
#include "encoders/tokenizer.h"
#include "engine/base/cpu.h"

/* Rows of one pass through a trunk: enough that weights are read rarely, little enough that the
 * activations of a wide model stay in tens of megabytes. */
enum { ROWS_PER_PASS = 4096 };

/* ---- Opening -------------------------------------------------------------------------------- */

l2c_precision l2c_precision_automatic(const char **why) {
    const l2c_cpu *cpu = l2c_cpu_get();
    l2c_backend backend = l2c_gemm_default();
    if (backend == L2C_BACKEND_OPENBLAS) {
        *why = "OpenBLAS multiplies f32 only";
        return L2C_PRECISION_F32;
    }
    if (cpu->amx_bf16) {
        *why = "the processor multiplies bf16 tiles (AMX)";
        return L2C_PRECISION_BF16;
    }
    if (cpu->avx512_vnni) {
        *why = "the processor has int8 dot products (VNNI) and no AMX";
        return L2C_PRECISION_INT8;
    }
    *why = "the processor has no short products";
    return L2C_PRECISION_F32;
}

static l2c_precision choose_precision(l2c_precision wish, const l2c_bundle *b) {
    const char *why;
    if (wish != L2C_PRECISION_AUTO) {
        return wish;
    }
    return b->precision != L2C_PRECISION_AUTO ? b->precision : l2c_precision_automatic(&why);
}

static const char *kind_name(l2c_vision_kind kind) {
    static const char *const names[] = { "openai-vit", "eva02", "siglip2" };
    return names[kind];
}

static void describe_architecture(char *out, size_t size, const l2c_bundle *b) {
    size_t at = 0;
    out[0] = '\0';
    if (b->has_vision) {
        at += (size_t)snprintf(out + at, size - at, "%s %zux%zu /%zu %zu",
                               kind_name(b->vision.kind), b->vision.layers, b->vision.width,
                               b->vision.patch, b->vision.image_side);
    }
    if (b->has_llm && at < size) {
        at += (size_t)snprintf(out + at, size - at, "%sllama %zux%zu", at > 0 ? " + " : "",
                               b->llm.layers, b->llm.width);
    }
    if (b->has_adapter && at < size) {
        snprintf(out + at, size - at, "%sadapter %zux%zu", at > 0 ? " + " : "", b->heads.blocks,
                 b->heads.text_width);
    }
}

static void fill_info(l2c_model *m, const l2c_bundle *b, l2c_precision precision) {
    l2c_model_info *i = &m->info;
    snprintf(i->name, sizeof i->name, "%s", b->name);
    describe_architecture(i->architecture, sizeof i->architecture, b);
    i->has_text = b->has_llm;
    i->has_image = b->has_vision;
    i->has_heads_text = b->has_llm && b->has_adapter;
    i->width = b->has_vision || b->has_adapter ? b->heads.width : 0;
    i->text_width = b->has_llm ? b->llm.width : b->heads.text_width;
    i->image_width = b->has_vision ? b->vision.width : 0;
    i->image_side = b->has_vision ? b->vision.image_side : 0;
    i->tokens_max = b->has_llm ? L2C_TOKENS_MAX : 0;
    i->vocabulary = b->has_llm ? b->llm.vocab : 0;
    i->precision = precision;
    i->text_trunk = b->text_trunk;
    i->image_trunk = b->image_trunk;
    i->heads = b->heads_hash;
    i->parameters = b->parameters;
    i->weights_bytes = b->weights_bytes;
}

static l2cdb_status open_parts(l2c_model *m, l2c_precision precision, l2cdb_error *err) {
    const l2c_bundle *b = m->bundle;
    l2cdb_status rc = L2CDB_OK;
    if (b->has_vision) {
        rc = l2c_tower_init(&m->tower, &b->vision, &b->vision_tensors, precision, err);
    }
    if (rc == L2CDB_OK && b->has_llm) {
        rc = l2c_llama_init(&m->llama, &b->llm, &b->llm_tensors, L2C_TOKENS_MAX, precision, err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_heads_from_bundle(&m->heads, b, precision, m->threads, err);
    }
    return rc;
}

l2cdb_status l2c_model_open(l2c_model **out, const l2c_model_options *options, l2cdb_error *err) {
    *out = NULL;
    l2c_model *m = l2c_calloc(1, sizeof *m);
    if (m == NULL) {
        return l2c_fail_nomem(err, sizeof *m);
    }
    m->threads = options->threads == 0 ? l2c_cpu_count() : options->threads;
    l2c_workspaces_init(&m->workspaces, m->threads);
    l2cdb_status rc = l2c_bundle_open(&m->bundle, options->path, err);
    if (rc == L2CDB_OK) {
        l2c_precision precision = choose_precision(options->precision, m->bundle);
        fill_info(m, m->bundle, precision);
        l2c_team team = l2c_team_begin(m->threads);
        rc = open_parts(m, precision, err);
        l2c_team_end(team);
    }
    if (rc != L2CDB_OK) {
        l2c_model_close(m);
        return rc;
    }
    *out = m;
    return L2CDB_OK;
}

void l2c_model_close(l2c_model *m) {
    if (m == NULL) {
        return;
    }
    l2c_workspaces_fini(&m->workspaces);
    l2c_heads_free(m->heads);
    l2c_llama_fini(&m->llama);
    l2c_tower_fini(&m->tower);
    l2c_bundle_close(m->bundle);
    l2c_free(m);
}

const l2c_model_info *l2c_model_get_info(const l2c_model *m) {
    return &m->info;
}

const l2c_heads *l2c_model_get_heads(const l2c_model *m) {
    return m->heads;
}

/* ---- Text ----------------------------------------------------------------------------------- */

/* Texts of one pass, tokenised. */
typedef struct batch {
    int32_t *ids;   /* [ROWS_PER_PASS + L2C_TOKENS_MAX] */
    size_t *offset; /* [ROWS_PER_PASS + 1] */
    size_t *pooled; /* [ROWS_PER_PASS] */
    size_t count;
} batch;

/* As many texts from `first` on as one pass takes, at least one. */
static l2cdb_status tokenize_batch(const l2c_model *m, batch *b, const char *const *texts,
                                   size_t first, size_t n, unsigned flags, l2cdb_error *err) {
    b->count = 0;
    b->offset[0] = 0;
    while (first + b->count < n && b->offset[b->count] < ROWS_PER_PASS - L2C_TOKENS_MAX) {
        const char *text = texts[first + b->count];
        size_t count, at = b->offset[b->count];
        l2cdb_status rc = l2c_prompt_encode(m->bundle->tokenizer, b->ids + at, &count,
                                            &b->pooled[b->count], text, strlen(text), flags, err);
        if (rc != L2CDB_OK) {
            return n == 1 ? rc : l2c_context(err, "text %zu", first + b->count);
        }
        b->count++;
        b->offset[b->count] = at + count;
    }
    return L2CDB_OK;
}

static l2cdb_status encode_texts(l2c_model *m, float *out, const char *const *texts, size_t n,
                                 unsigned flags, const l2c_flag *cancel, l2c_workspace *ws,
                                 l2cdb_error *err) {
    l2c_arena *arena = &ws->shared;
    batch b = { .ids = l2c_arena_alloc(arena, ROWS_PER_PASS + L2C_TOKENS_MAX, sizeof *b.ids),
                .offset = l2c_arena_alloc(arena, ROWS_PER_PASS + 1, sizeof *b.offset),
                .pooled = l2c_arena_alloc(arena, ROWS_PER_PASS, sizeof *b.pooled) };
    if (b.ids == NULL || b.offset == NULL || b.pooled == NULL) {
        return l2c_fail_nomem(err, ROWS_PER_PASS * sizeof *b.offset);
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t first = 0; rc == L2CDB_OK && first < n; first += b.count) {
        if (l2c_flag_raised(cancel)) {
            return l2c_fail(err, L2CDB_E_CANCELLED, "cancelled after %zu of %zu texts", first, n);
        }
        rc = tokenize_batch(m, &b, texts, first, n, flags, err);
        if (rc == L2CDB_OK) {
            rc = l2c_llama_features(&m->llama, out + first * m->info.text_width, b.ids, b.offset,
                                    b.pooled, b.count, ws, err);
        }
    }
    return rc;
}

static l2cdb_status no_llm(l2cdb_error *err) {
    l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no LLM, so it cannot read texts");
    l2c_hint(err, "import it again with --llm");
    return L2CDB_E_UNSUPPORTED;
}

l2cdb_status l2c_model_text_features(l2c_model *m, float *out, const char *const *texts, size_t n,
                                     unsigned flags, const l2c_flag *cancel, l2cdb_error *err) {
    if (!m->info.has_text) {
        return no_llm(err);
    }
    l2c_workspace *ws;
    l2cdb_status rc = l2c_workspaces_take(&m->workspaces, &ws, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_team team = l2c_team_begin(m->threads);
    l2c_arena_mark mark = l2c_arena_get_mark(&ws->shared);
    rc = encode_texts(m, out, texts, n, flags, cancel, ws, err);
    l2c_arena_reset(&ws->shared, mark);
    l2c_team_end(team);
    l2c_workspaces_give(&m->workspaces, ws);
    return rc;
}

l2cdb_status l2c_model_tokenize(const l2c_model *m, int32_t *ids, size_t ids_max, size_t *count,
                                size_t *pooled, const char *text, unsigned flags, bool raw,
                                l2cdb_error *err) {
    if (!m->info.has_text) {
        return no_llm(err);
    }
    if (raw) {
        *pooled = 0;
        return l2c_tokenizer_encode(m->bundle->tokenizer, ids, ids_max, count, text, strlen(text),
                                    flags, err);
    }
    int32_t all[L2C_TOKENS_MAX];
    l2cdb_status rc =
        l2c_prompt_encode(m->bundle->tokenizer, all, count, pooled, text, strlen(text), flags, err);
    if (rc == L2CDB_OK && ids_max > 0) {
        memcpy(ids, all, (*count < ids_max ? *count : ids_max) * sizeof *ids);
    }
    return rc;
}

/* ---- Photos --------------------------------------------------------------------------------- */

size_t l2c_model_pixels_count(const l2c_model *m) {
    return 3 * m->info.image_side * m->info.image_side;
}

static l2cdb_status no_tower(l2cdb_error *err) {
    l2c_fail(err, L2CDB_E_UNSUPPORTED, "this model has no vision tower, so it cannot see photos");
    l2c_hint(err, "import it again with --vision");
    return L2CDB_E_UNSUPPORTED;
}

l2cdb_status l2c_model_preprocess(const l2c_model *m, float *out, const l2c_image *image,
                                  l2cdb_error *err) {
    if (!m->info.has_image) {
        return no_tower(err);
    }
    return l2c_pixels_preprocess(&m->bundle->vision.pixels, out, image->rgb, image->width,
                                 image->height, err);
}

l2cdb_status l2c_model_image_features(l2c_model *m, float *out, const float *pixels, size_t n,
                                      l2cdb_error *err) {
    if (!m->info.has_image) {
        return no_tower(err);
    }
    l2c_workspace *ws;
    l2cdb_status rc = l2c_workspaces_take(&m->workspaces, &ws, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    l2c_team team = l2c_team_begin(m->threads);
    size_t most = m->tower.tokens < ROWS_PER_PASS ? ROWS_PER_PASS / m->tower.tokens : 1;
    for (size_t first = 0; rc == L2CDB_OK && first < n; first += most) {
        size_t count = n - first < most ? n - first : most;
        rc = l2c_tower_features(&m->tower, out + first * m->info.image_width,
                                pixels + first * l2c_model_pixels_count(m), count, ws, err);
    }
    l2c_team_end(team);
    l2c_workspaces_give(&m->workspaces, ws);
    return rc;
}

/* ---- About ---------------------------------------------------------------------------------- */

void l2c_encoders_describe(l2c_buf *out) {
    char cpu[128];
    l2c_cpu_describe(cpu, sizeof cpu);
    l2c_buf_printf(out, "processor: %s\n", *cpu != '\0' ? cpu : "no vector extensions in use");
    l2c_buf_printf(out, "cores: %zu\n", l2c_cpu_count());
    const char *why;
    l2c_precision p = l2c_precision_automatic(&why);
    l2c_buf_printf(out, "precision auto: %s (%s)\n", l2c_precision_name(p), why);
    l2c_gemm_describe(out);
}
