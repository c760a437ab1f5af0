/* Import: a model as it was downloaded becomes a bundle that is mapped at start.
 *
 * Everything that shapes and JSON can tell is checked before the first byte is written. Then each
 * tensor streams through once, a block of rows at a time: widened, LoRA merged, checked for NaN,
 * converted, hashed, written. No matrix is ever held whole, so an 8B model needs some megabytes and
 * the page cache. The directory is written beside its name and renamed when all is on the disk. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "encoders/blocks.h"
#include "encoders/bundle_file.h"
#include "encoders/layers.h"
#include "encoders/layout.h"
#include "encoders/lora.h"
#include "encoders/model.h"
#include "engine/base/vec.h"

#define BLOCK_ELEMENTS (1u << 20)
#define TOKENIZER_BYTES_MAX (64u << 20)

typedef struct importer {
    const l2c_import_options *options;
    l2c_bundle *b;
    l2c_lora *lora;
    l2c_precision precision;
    const char *temp;      /* the directory being written */
    float *wide;           /* f32 scratch for one block */
    void *narrow;          /* the same block as it is written */
    size_t block_elements; /* of both: at least one row of the widest matrix */
    uint64_t done, total;  /* bytes of source tensors */
    l2cdb_error *err;
} importer;

/* ---- What becomes of a tensor ---------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static bool is_table(const char *name) {
    return strcmp(name, "embed_tokens.weight") == 0 || ends_with(name, "position_embedding.weight");
}

/* The weight of a Linear of a trunk: the only ones that are multiplied in int8. */
static bool is_linear(const l2c_tensor *t) {
    return t->ndim == 2 && ends_with(t->name, ".weight") && !is_table(t->name);
}

/* A Linear that is not multiplied in int8 even in an int8 model. */
static bool is_spared(const l2c_tensor *t) {
    char prefix[192];
    snprintf(prefix, sizeof prefix, "%.*s", (int)(strlen(t->name) - strlen(".weight")), t->name);
    return l2c_linear_policy(L2C_PRECISION_INT8, prefix) != L2C_PRECISION_INT8;
}

/* Type in the bundle. f32 means "as it was": nothing is lost and nothing padded. Heads are small,
 * are what training starts from, and keep their type in every precision. */
static l2c_dtype stored_type(const importer *im, const l2c_tensor *t, bool trunk) {
    if (!trunk || im->precision == L2C_PRECISION_F32) {
        return t->dtype;
    }
    if (is_linear(t) && im->precision == L2C_PRECISION_BF16) {
        return L2C_DTYPE_BF16;
    }
    if (is_linear(t) && !is_spared(t)) {
        return L2C_DTYPE_I8;
    }
    bool halve = is_table(t->name) || is_linear(t);
    return halve && t->dtype == L2C_DTYPE_F32 ? L2C_DTYPE_BF16 : t->dtype;
}

/* ---- One file of tensors --------------------------------------------------------------------- */

typedef struct part {
    const char *file; /* "llm.safetensors" */
    const char *phase;
    const l2c_tensors *set;
    bool trunk;
    void (*hash_head)(l2c_hasher *h, const l2c_bundle *b);
    l2c_hash *hash;
} part;

static void describe(l2c_buf *out, const l2c_tensor *t, size_t *at) {
    l2c_buf_puts(out, out->size > 9 ? "," : "");
    l2c_buf_json_string(out, t->name, strlen(t->name));
    l2c_buf_printf(out, ":{\"dtype\":\"%s\",\"shape\":[", l2c_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++) {
        l2c_buf_printf(out, "%s%zu", i > 0 ? "," : "", t->shape[i]);
    }
    l2c_buf_printf(out, "],\"data_offsets\":[%zu,%zu]}", *at, *at + t->bytes);
    *at += t->bytes;
}

/* *t as it will stand in the bundle, and the scales that follow it if it becomes int8. */
static l2c_tensor as_stored(const importer *im, const l2c_tensor *t, bool trunk) {
    l2c_tensor out = *t;
    out.dtype = stored_type(im, t, trunk);
    out.bytes = t->count * l2c_dtype_bytes(out.dtype);
    return out;
}

static l2c_tensor scales_of(const l2c_tensor *stored, char name[192]) {
    snprintf(name, 192, "%s_scale", stored->name);
    return (l2c_tensor){ .name = name,
                         .dtype = L2C_DTYPE_F32,
                         .ndim = 1,
                         .shape = { stored->shape[0] },
                         .count = stored->shape[0],
                         .bytes = stored->shape[0] * 4 };
}

/* 8 bytes of length and the JSON, padded so that the data begin at a multiple of 64. */
static void write_header(l2c_buf *out, const importer *im, const part *p,
                         const float *logit_scale) {
    size_t at = 0;
    char name[192];
    l2c_buf_append(out, "\0\0\0\0\0\0\0\0{", 9);
    for (size_t i = 0; i < p->set->count; i++) {
        l2c_tensor t = as_stored(im, &p->set->items[i], p->trunk);
        describe(out, &t, &at);
        if (t.dtype == L2C_DTYPE_I8) {
            l2c_tensor scales = scales_of(&t, name);
            describe(out, &scales, &at);
        }
    }
    if (logit_scale != NULL) {
        l2c_tensor t = { .name = "logit_scale", .count = 1, .bytes = 4 };
        describe(out, &t, &at);
    }
    l2c_buf_putc(out, '}');
    while (out->size % 64 != 0 && !out->failed) {
        l2c_buf_putc(out, ' ');
    }
    for (size_t i = 0; i < 8 && !out->failed; i++) {
        out->data[i] = (char)((out->size - 8) >> (8 * i) & 0xff);
    }
}

/* Rounds the merged weight to the type of its base, as the reference merges. */
static void round_to(float *x, size_t n, l2c_dtype type, void *scratch) {
    if (type == L2C_DTYPE_BF16) {
        l2c_vec_to_bf16(scratch, x, n);
        l2c_vec_from_bf16(x, scratch, n);
    } else if (type == L2C_DTYPE_F16) {
        l2c_vec_to_f16(scratch, x, n);
        l2c_vec_from_f16(x, scratch, n);
    }
}

/* Rows [first, first+rows) of t, widened, merged and checked, into im->wide. */
static l2cdb_status load_rows(importer *im, const l2c_tensor *t, size_t first, size_t rows,
                              size_t cols) {
    l2c_tensor_slice_f32(t, first * cols, rows * cols, im->wide);
    bool merged = im->lora != NULL && l2c_lora_changes(im->lora, t->name);
    if (merged) {
        l2c_lora_merge(im->lora, t->name, im->wide, first, rows);
        round_to(im->wide, rows * cols, t->dtype, im->narrow);
    }
    if (!l2c_vec_finite(im->wide, rows * cols)) {
        size_t at = 0;
        bool before = l2c_tensor_finite(t, &at);
        l2c_fail(im->err, L2CDB_E_FORMAT, "tensor \"%s\" holds NaN or infinity%s", t->name,
                 before ? " once the LoRA is merged" : "");
        return l2c_hint(im->err, "the file is damaged or the training failed; get another copy");
    }
    return L2CDB_OK;
}

/* The same rows in the stored type, into im->narrow. */
static void store_rows(importer *im, const l2c_tensor *stored, size_t rows, size_t cols,
                       float *scales) {
    size_t n = rows * cols;
    switch (stored->dtype) {
    case L2C_DTYPE_I8:
        for (size_t r = 0; r < rows; r++) {
            scales[r] =
                l2c_quantise_row((int8_t *)im->narrow + r * cols, im->wide + r * cols, cols);
        }
        break;
    case L2C_DTYPE_BF16:
        l2c_vec_to_bf16(im->narrow, im->wide, n);
        break;
    case L2C_DTYPE_F16:
        l2c_vec_to_f16(im->narrow, im->wide, n);
        break;
    default:
        memcpy(im->narrow, im->wide, n * sizeof *im->wide);
        break;
    }
}

static l2cdb_status tick(importer *im, const char *phase, size_t bytes) {
    im->done += bytes;
    const l2c_import_options *o = im->options;
    return o->progress == NULL || o->progress(o->progress_ctx, phase, im->done, im->total)
               ? L2CDB_OK
               : l2c_fail(im->err, L2CDB_E_CANCELLED, "import cancelled");
}

static l2cdb_status write_tensor(importer *im, const part *p, l2c_writer *w, l2c_hasher *h,
                                 const l2c_tensor *t) {
    l2c_tensor stored = as_stored(im, t, p->trunk);
    size_t cols = t->ndim > 0 && t->shape[0] > 0 ? t->count / t->shape[0] : t->count;
    size_t rows = cols > 0 ? t->count / cols : 0;
    size_t step = cols > 0 ? im->block_elements / cols : 1;
    float *scales = NULL;
    if (stored.dtype == L2C_DTYPE_I8) {
        scales = l2c_alloc(rows, sizeof *scales);
        if (scales == NULL) {
            return l2c_fail_nomem(im->err, rows * sizeof *scales);
        }
    }
    l2c_tensor head = stored;
    head.bytes = 0; // name, type and shape now, the data block by block
    l2c_layout_hash_tensor(h, &head);
    l2cdb_status rc = L2CDB_OK;
    for (size_t first = 0; rc == L2CDB_OK && first < rows; first += step) {
        size_t n = rows - first < step ? rows - first : step;
        rc = load_rows(im, t, first, n, cols);
        if (rc == L2CDB_OK) {
            store_rows(im, &stored, n, cols, scales != NULL ? scales + first : NULL);
            size_t bytes = n * cols * l2c_dtype_bytes(stored.dtype);
            l2c_hasher_add(h, im->narrow, bytes);
            rc = l2c_writer_write(w, im->narrow, bytes, im->err);
        }
        if (rc == L2CDB_OK) {
            rc = tick(im, p->phase, n * cols * l2c_dtype_bytes(t->dtype));
        }
    }
    if (rc == L2CDB_OK && scales != NULL) {
        char name[192];
        l2c_tensor s = scales_of(&stored, name);
        s.data = scales;
        l2c_layout_hash_tensor(h, &s);
        rc = l2c_writer_write(w, scales, s.bytes, im->err);
    }
    l2c_free(scales);
    return rc;
}

static l2cdb_status write_part(importer *im, const part *p) {
    const float *logit_scale = p->trunk ? NULL : &im->b->logit_scale;
    char *path = l2c_path_join(im->temp, p->file);
    l2c_hasher *h = l2c_hasher_new();
    l2c_buf header;
    l2c_buf_init(&header);
    write_header(&header, im, p, logit_scale);
    if (path == NULL || h == NULL || header.failed) {
        l2c_buf_fini(&header);
        l2c_hasher_free(h);
        l2c_free(path);
        return l2c_fail_nomem(im->err, 1 << 16);
    }
    l2c_writer w;
    p->hash_head(h, im->b);
    l2cdb_status rc = l2c_writer_open(&w, path, im->err);
    if (rc == L2CDB_OK) {
        rc = l2c_writer_write(&w, header.data, header.size, im->err);
        for (size_t i = 0; rc == L2CDB_OK && i < p->set->count; i++) {
            rc = write_tensor(im, p, &w, h, &p->set->items[i]);
        }
        if (rc == L2CDB_OK && logit_scale != NULL) {
            rc = l2c_writer_write(&w, logit_scale, 4, im->err);
        }
        if (rc == L2CDB_OK) {
            rc = l2c_writer_commit(&w, im->err);
        } else {
            l2c_writer_abort(&w);
        }
    }
    *p->hash = l2c_hasher_get(h);
    l2c_buf_fini(&header);
    l2c_hasher_free(h);
    l2c_free(path);
    return rc;
}

/* ---- The directory --------------------------------------------------------------------------- */

/* temp/name with these bytes. */
static l2cdb_status write_file(importer *im, const char *name, const l2c_buf *text) {
    char *path = l2c_path_join(im->temp, name);
    l2cdb_status rc = path != NULL && !text->failed
                          ? l2c_file_replace(path, text->data, text->size, im->err)
                          : l2c_fail_nomem(im->err, text->size);
    l2c_free(path);
    return rc;
}

/* The JSON as it was, for people and for later versions, and the tables for a quick start. */
static l2cdb_status write_tokenizer(importer *im) {
    char *from = l2c_path_join(im->options->llm, "tokenizer.json");
    l2c_buf text, compiled;
    l2c_buf_init(&text);
    l2c_buf_init(&compiled);
    l2cdb_status rc = from != NULL ? l2c_file_read(&text, from, TOKENIZER_BYTES_MAX, im->err)
                                   : l2c_fail_nomem(im->err, 4096);
    if (rc == L2CDB_OK) {
        rc = write_file(im, "tokenizer.json", &text);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_tokenizer_save(im->b->tokenizer, &compiled, im->err);
    }
    if (rc == L2CDB_OK) {
        rc = write_file(im, "tokenizer.bin", &compiled);
    }
    l2c_buf_fini(&compiled);
    l2c_buf_fini(&text);
    l2c_free(from);
    return rc;
}

static l2cdb_status write_manifest(importer *im) {
    l2c_buf text;
    l2c_buf_init(&text);
    im->b->precision = im->precision;
    l2c_bundle_file_manifest(&text, im->b);
    l2cdb_status rc = write_file(im, "bundle.json", &text);
    l2c_buf_fini(&text);
    return rc;
}

/* Rows are never cut: a block holds at least one of the widest. */
static l2cdb_status prepare(importer *im, const part *parts, size_t parts_count) {
    im->block_elements = BLOCK_ELEMENTS;
    for (size_t i = 0; i < parts_count; i++) {
        for (size_t k = 0; k < parts[i].set->count; k++) {
            const l2c_tensor *t = &parts[i].set->items[k];
            size_t cols = t->ndim > 0 && t->shape[0] > 0 ? t->count / t->shape[0] : t->count;
            im->block_elements = cols > im->block_elements ? cols : im->block_elements;
            im->total += t->bytes;
        }
    }
    im->wide = l2c_alloc_aligned(im->block_elements, sizeof *im->wide);
    im->narrow = l2c_alloc_aligned(im->block_elements, sizeof *im->wide);
    return im->wide != NULL && im->narrow != NULL
               ? L2CDB_OK
               : l2c_fail_nomem(im->err, im->block_elements * 2 * sizeof *im->wide);
}

static l2cdb_status write_all(importer *im) {
    l2c_bundle *b = im->b;
    part parts[3];
    size_t n = 0;
    if (b->has_llm) {
        parts[n++] = (part){ "llm.safetensors",   "LLM",         &b->llm_tensors, true,
                             l2c_layout_hash_llm, &b->text_trunk };
    }
    if (b->has_vision) {
        parts[n++] = (part){ "vision.safetensors",   "vision tower", &b->vision_tensors, true,
                             l2c_layout_hash_vision, &b->image_trunk };
        parts[n++] = (part){ "heads.safetensors",   "heads",       &b->head_tensors, false,
                             l2c_layout_hash_heads, &b->heads_hash };
    }
    l2cdb_status rc = prepare(im, parts, n);
    for (size_t i = 0; rc == L2CDB_OK && i < n; i++) {
        rc = write_part(im, &parts[i]);
    }
    if (rc == L2CDB_OK && b->has_llm) {
        rc = write_tokenizer(im);
    }
    // Last: a directory without a manifest is no bundle.
    return rc == L2CDB_OK ? write_manifest(im) : rc;
}

static void remove_temp(const char *temp) {
    static const char *const files[] = { "llm.safetensors",   "vision.safetensors",
                                         "heads.safetensors", "tokenizer.json",
                                         "tokenizer.bin",     "bundle.json" };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char *path = l2c_path_join(temp, files[i]);
        if (path != NULL) {
            unlink(path);
        }
        l2c_free(path);
    }
    rmdir(temp);
}

static l2cdb_status sync_parent(const char *path, l2cdb_error *err) {
    const char *base = l2c_path_base(path);
    char *parent = base == path ? l2c_strdup(".") : l2c_strndup(path, (size_t)(base - path));
    if (parent == NULL) {
        return l2c_fail_nomem(err, strlen(path));
    }
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    l2cdb_status rc = L2CDB_OK;
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL)) {
        rc = l2c_fail_errno(err, errno, "could not sync directory %s", parent);
    }
    if (fd >= 0) {
        close(fd);
    }
    l2c_free(parent);
    return rc;
}

/* `out` without trailing slashes, so that the name beside it is beside it. */
static l2cdb_status import_to(importer *im, const char *out) {
    size_t n = strlen(out) + 32;
    char *temp = l2c_alloc(n, 1);
    if (temp == NULL) {
        return l2c_fail_nomem(im->err, n);
    }
    snprintf(temp, n, "%s.tmp%ld", out, (long)getpid());
    im->temp = temp;
    l2cdb_status rc = L2CDB_OK;
    if (mkdir(temp, 0755) != 0) {
        rc = l2c_fail_errno(im->err, errno, "could not create %s", temp);
    } else {
        rc = write_all(im);
        // The commit point: before it there is no bundle under the name, after it a whole one.
        if (rc == L2CDB_OK && rename(temp, out) != 0) {
            rc = l2c_fail_errno(im->err, errno, "could not rename %s to %s", temp, out);
        }
        if (rc == L2CDB_OK) {
            rc = sync_parent(out, im->err);
        } else {
            remove_temp(temp);
        }
    }
    l2c_free(temp);
    return rc;
}

l2cdb_status l2c_import(const l2c_import_options *options, l2cdb_error *err) {
    const char *why;
    importer im = { .options = options, .err = err };
    if (options->out_dir == NULL || options->out_dir[0] == '\0') {
        return l2c_fail(err, L2CDB_E_INVALID, "no directory is named for the bundle");
    }
    if (l2c_path_exists(options->out_dir)) {
        l2c_fail(err, L2CDB_E_EXISTS, "%s exists already", options->out_dir);
        return l2c_hint(err, "name another directory, or remove it first");
    }
    im.precision = options->precision != L2C_PRECISION_AUTO ? options->precision
                                                            : l2c_precision_automatic(&why);
    char *out = l2c_strdup(options->out_dir);
    if (out == NULL) {
        return l2c_fail_nomem(err, strlen(options->out_dir));
    }
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) {
        out[n - 1] = '\0';
    }
    l2cdb_status rc =
        l2c_bundle_load_parts(&im.b, options->vision, options->llm, options->lora != NULL, err);
    if (rc == L2CDB_OK && options->lora != NULL) {
        rc = l2c_lora_open(&im.lora, options->lora, &im.b->llm_tensors, err);
    }
    if (rc == L2CDB_OK) {
        snprintf(im.b->name, sizeof im.b->name, "%.100s", l2c_path_base(out));
        rc = import_to(&im, out);
    }
    l2c_free(im.narrow);
    l2c_free(im.wide);
    l2c_lora_close(im.lora);
    l2c_bundle_close(im.b);
    l2c_free(out);
    return rc;
}
