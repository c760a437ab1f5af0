/* Captions from files in the forms people have: JSON lines, CSV, and COCO's json.
 *
 * Told apart by content: a file whose first byte is "{" and which is one JSON object with
 * "annotations" is COCO; one whose first line is a JSON object is JSON lines; all else is CSV, with
 * commas, semicolons or tabs. */
#include <csv.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/utf8.h"
#include "engine/engine.h"

#define FILE_BYTES_MAX (UINT64_C(4) << 30)

typedef struct reader {
    const char *path;
    size_t line;
    l2c_caption_line_fn fn;
    void *ctx;
    l2c_buf text; /* the caption being handed over, trimmed */
} reader;

static l2cdb_status malformed(const reader *r, const char *found, const char *expected,
                              l2cdb_error *err) {
    return l2c_fail(err, L2CDB_E_FORMAT, "%s: line %zu: %s, expected %s", r->path, r->line, found,
                    expected);
}

/* Hands one caption over, trimmed; empty ones are left out. */
static l2cdb_status emit(reader *r, const char *image, int64_t id, const char *text, size_t n,
                         const char *language, l2cdb_error *err) {
    while (n > 0 && isspace((unsigned char)*text)) {
        text++;
        n--;
    }
    while (n > 0 && isspace((unsigned char)text[n - 1])) {
        n--;
    }
    if (n == 0) {
        return L2CDB_OK;
    }
    size_t bad;
    if (!l2c_utf8_valid(text, n, &bad) || memchr(text, '\0', n) != NULL) {
        return malformed(r, "the caption is not valid UTF-8", "UTF-8 text", err);
    }
    if (n > L2C_CAPTION_BYTES_MAX) {
        return malformed(r, "the caption is longer than 16384 bytes", "a sentence", err);
    }
    l2c_buf_clear(&r->text);
    l2c_buf_append(&r->text, text, n);
    if (r->text.failed) {
        return l2c_fail_nomem(err, n);
    }
    l2c_caption_line line = { .image = image,
                              .id = id,
                              .text = r->text.data,
                              .language = language != NULL && *language != '\0' ? language : NULL,
                              .line = r->line };
    return r->fn(r->ctx, &line, err);
}

/* ---- JSON lines ------------------------------------------------------------------------------ */

/* A string or an array of strings. */
static l2cdb_status emit_value(reader *r, const char *image, int64_t id, const json_t *value,
                               const char *language, l2cdb_error *err) {
    if (json_is_string(value)) {
        return emit(r, image, id, json_string_value(value), json_string_length(value), language,
                    err);
    }
    l2cdb_status rc = L2CDB_OK;
    for (size_t i = 0; i < json_array_size(value) && rc == L2CDB_OK; i++) {
        const json_t *one = json_array_get(value, i);
        rc = json_is_string(one) ? emit_value(r, image, id, one, language, err)
                                 : malformed(r, "a caption is no string", "a string", err);
    }
    return rc;
}

/* "en", "de", "de_tr", "pt-BR": two letters, then perhaps a tag. "id" is the number of a photo. */
static bool is_language(const char *key) {
    if (!islower((unsigned char)key[0]) || !islower((unsigned char)key[1]) ||
        strcmp(key, "id") == 0) {
        return false;
    }
    return key[2] == '\0' ||
           ((key[2] == '_' || key[2] == '-') && isalnum((unsigned char)key[3]) && strlen(key) < 16);
}

static const json_t *first_of(const json_t *o, const char *const *keys, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_object_get(o, keys[i]);
        if (value != NULL && !json_is_null(value)) {
            return value;
        }
    }
    return NULL;
}

static l2cdb_status read_object(reader *r, json_t *o, l2cdb_error *err) {
    static const char *const image_keys[] = { "path", "image", "file", "file_name", "filename" };
    static const char *const text_keys[] = { "caption", "text", "captions" };
    const json_t *image = first_of(o, image_keys, 5), *number = json_object_get(o, "id");
    const json_t *language = json_object_get(o, "language");
    const char *name = json_string_value(image);
    int64_t id = name == NULL && json_is_integer(number) ? json_integer_value(number) : 0;
    if (name == NULL && id == 0) {
        return malformed(r, "no photo is named", "\"path\", \"image\" or \"id\"", err);
    }
    const json_t *text = first_of(o, text_keys, 3);
    l2cdb_status rc = L2CDB_OK;
    bool any = text != NULL;
    if (text != NULL) {
        rc = emit_value(r, name, id, text, json_string_value(language), err);
    }
    const char *key;
    json_t *value;
    json_object_foreach(o, key, value) {
        if (rc == L2CDB_OK && is_language(key) && (json_is_string(value) || json_is_array(value))) {
            any = true;
            rc = emit_value(r, name, id, value, key, err);
        }
    }
    if (rc == L2CDB_OK && !any) {
        rc = malformed(r, "no caption", "\"caption\", \"captions\" or a language code as key", err);
    }
    return rc;
}

static l2cdb_status read_jsonl(reader *r, const char *text, size_t n, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    for (size_t at = 0; at < n && rc == L2CDB_OK;) {
        const char *line = text + at, *end = memchr(line, '\n', n - at);
        size_t length = end != NULL ? (size_t)(end - line) : n - at;
        at += length + 1;
        r->line++;
        if (strspn(line, " \t\r") >= length) {
            continue;
        }
        char what[4200];
        snprintf(what, sizeof what, "%s: line %zu", r->path, r->line);
        json_t *o;
        rc = l2c_json_parse(&o, line, length, what, err);
        if (rc == L2CDB_OK) {
            rc = json_is_object(o) ? read_object(r, o, err)
                                   : malformed(r, "no JSON object", "one object a line", err);
        }
        json_decref(o);
    }
    return rc;
}

/* ---- COCO ------------------------------------------------------------------------------------ */

typedef struct coco_image {
    json_int_t id;
    const char *file_name;
} coco_image;

static int by_id(const void *a, const void *b) {
    const coco_image *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static l2cdb_status coco_images(const reader *r, const json_t *images, coco_image **out,
                                l2cdb_error *err) {
    size_t n = json_array_size(images);
    *out = l2c_alloc(n, sizeof **out);
    if (*out == NULL) {
        return l2c_fail_nomem(err, n * sizeof **out);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(images, i);
        const json_t *id = json_object_get(o, "id");
        const char *name = json_string_value(json_object_get(o, "file_name"));
        if (!json_is_integer(id) || name == NULL) {
            return l2c_fail(err, L2CDB_E_FORMAT, "%s: image %zu has no id or file_name", r->path,
                            i + 1);
        }
        (*out)[i] = (coco_image){ json_integer_value(id), name };
    }
    if (n > 1) {
        qsort(*out, n, sizeof **out, by_id);
    }
    return L2CDB_OK;
}

static l2cdb_status read_coco(reader *r, const json_t *root, l2cdb_error *err) {
    const json_t *images = json_object_get(root, "images");
    const json_t *annotations = json_object_get(root, "annotations");
    coco_image *list = NULL;
    l2cdb_status rc = coco_images(r, images, &list, err);
    for (size_t i = 0; i < json_array_size(annotations) && rc == L2CDB_OK; i++) {
        const json_t *o = json_array_get(annotations, i);
        const json_t *id = json_object_get(o, "image_id"), *text = json_object_get(o, "caption");
        r->line = i + 1;
        if (!json_is_integer(id) || !json_is_string(text)) {
            rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: annotation %zu has no image_id or caption",
                          r->path, i + 1);
            break;
        }
        coco_image key = { json_integer_value(id), NULL };
        const coco_image *found = bsearch(&key, list, json_array_size(images), sizeof *list, by_id);
        if (found == NULL) {
            rc = l2c_fail(err, L2CDB_E_FORMAT,
                          "%s: annotation %zu names image %lld, which is not"
                          " in \"images\"",
                          r->path, i + 1, (long long)key.id);
            break;
        }
        rc = emit_value(r, found->file_name, 0, text, NULL, err);
    }
    l2c_free(list);
    return rc;
}

/* ---- CSV ------------------------------------------------------------------------------------- */

#define CSV_FIELDS_MAX 16

typedef struct csv_state {
    reader *reader;
    l2c_buf fields[CSV_FIELDS_MAX];
    size_t count;                 /* fields of the row so far */
    int image, caption, language; /* columns; language -1: none */
    size_t rows;
    l2cdb_status rc;
    l2cdb_error *err;
} csv_state;

static void csv_field(void *data, size_t n, void *ctx) {
    csv_state *s = ctx;
    if (s->count < CSV_FIELDS_MAX) {
        l2c_buf_clear(&s->fields[s->count]);
        l2c_buf_append(&s->fields[s->count], data != NULL ? data : "", n);
        if (s->fields[s->count].failed && s->rc == L2CDB_OK) {
            s->rc = l2c_fail_nomem(s->err, n);
        }
    }
    s->count++;
}

static bool is_one_of(const char *name, const char *const *names) {
    for (; *names != NULL; names++) {
        if (strcmp(name, *names) == 0) {
            return true;
        }
    }
    return false;
}

/* If the first row names its columns, takes their order from it. */
static bool csv_header(csv_state *s) {
    static const char *const image[] = { "path",     "image",      "file", "file_name",
                                         "filename", "image_name", "id",   NULL };
    static const char *const caption[] = { "caption", "text", "captions", "comment", NULL };
    static const char *const language[] = { "language", "lang", NULL };
    int found_image = -1, found_caption = -1, found_language = -1;
    for (size_t i = 0; i < s->count && i < CSV_FIELDS_MAX; i++) {
        char *name = s->fields[i].data;
        for (char *p = name; *p != '\0'; p++) {
            *p = (char)tolower((unsigned char)*p);
        }
        found_image = found_image < 0 && is_one_of(name, image) ? (int)i : found_image;
        found_caption = found_caption < 0 && is_one_of(name, caption) ? (int)i : found_caption;
        found_language = found_language < 0 && is_one_of(name, language) ? (int)i : found_language;
    }
    if (found_image < 0 || found_caption < 0) {
        return false;
    }
    s->image = found_image;
    s->caption = found_caption;
    s->language = found_language;
    return true;
}

/* A photo named by number only is an id: "12,a red boat". */
static int64_t number_of(const char *text) {
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && n > 0 ? (int64_t)n : 0;
}

static l2cdb_status csv_line(csv_state *s) {
    reader *r = s->reader;
    size_t least = (size_t)(s->image > s->caption ? s->image : s->caption) + 1;
    if (s->count < least) {
        char found[64];
        snprintf(found, sizeof found, "%zu field%s", s->count, s->count == 1 ? "" : "s");
        return malformed(r, found, "path,caption[,language]", s->err);
    }
    const char *image = s->fields[s->image].data;
    const char *language = NULL;
    if (s->language >= 0 && (size_t)s->language < s->count) {
        language = s->fields[s->language].data;
    }
    const l2c_buf *text = &s->fields[s->caption];
    int64_t id = number_of(image);
    return emit(r, id != 0 ? NULL : image, id, text->data, text->size, language, s->err);
}

static void csv_row(int c, void *ctx) {
    csv_state *s = ctx;
    (void)c;
    s->reader->line++;
    bool blank = s->count == 0 || (s->count == 1 && s->fields[0].size == 0);
    if (s->rc == L2CDB_OK && !blank) {
        bool header = s->rows == 0 && csv_header(s);
        s->rows++;
        if (!header) {
            s->rc = csv_line(s);
        }
    }
    s->count = 0;
}

/* What ends the first field: a comma, a tab, or the semicolon of spreadsheets in countries whose
 * numbers have commas. */
static char delimiter(const char *text, size_t n) {
    bool quoted = false;
    for (size_t i = 0; i < n && (quoted || text[i] != '\n'); i++) {
        quoted = quoted != (text[i] == '"');
        if (!quoted && (text[i] == ',' || text[i] == ';' || text[i] == '\t')) {
            return text[i];
        }
    }
    return ',';
}

static l2cdb_status read_csv(reader *r, const char *text, size_t n, l2cdb_error *err) {
    csv_state s = { .reader = r, .caption = 1, .language = 2, .err = err };
    struct csv_parser parser;
    if (csv_init(&parser, CSV_STRICT | CSV_STRICT_FINI) != 0) {
        return l2c_fail_nomem(err, 0);
    }
    csv_set_delim(&parser, (unsigned char)delimiter(text, n));
    size_t used = csv_parse(&parser, text, n, csv_field, csv_row, &s);
    if (s.rc == L2CDB_OK && used == n) {
        used = csv_fini(&parser, csv_field, csv_row, &s) == 0 ? n : n + 1;
    }
    if (s.rc == L2CDB_OK && used != n) {
        r->line++;
        s.rc = malformed(r, csv_strerror(csv_error(&parser)),
                         "CSV with quotes doubled inside quoted fields", err);
    }
    csv_free(&parser);
    for (size_t i = 0; i < CSV_FIELDS_MAX; i++) {
        l2c_buf_fini(&s.fields[i]);
    }
    return s.rc;
}

/* ---- The door -------------------------------------------------------------------------------- */

static l2cdb_status read_json(reader *r, const char *text, size_t n, l2cdb_error *err) {
    json_t *root;
    const char *end = memchr(text, '\n', n);
    size_t first = end != NULL ? (size_t)(end - text) : n;
    l2cdb_error ignored;
    bool lines = l2c_json_parse(&root, text, first, r->path, &ignored) == L2CDB_OK;
    bool coco = lines && json_object_get(root, "annotations") != NULL;
    json_decref(root);
    if (lines && !coco) {
        return read_jsonl(r, text, n, err);
    }
    l2cdb_status rc = l2c_json_parse(&root, text, n, r->path, &ignored);
    if (rc != L2CDB_OK) { // neither: the error of the first line tells more than that of the whole
        return read_jsonl(r, text, n, err);
    }
    rc = json_is_array(json_object_get(root, "annotations")) &&
                 json_is_array(json_object_get(root, "images"))
             ? read_coco(r, root, err)
             : l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: a JSON object without \"images\" and \"annotations\", expected JSON"
                        " lines or COCO json",
                        r->path);
    json_decref(root);
    return rc;
}

l2cdb_status l2c_captions_read(const char *path, l2c_caption_line_fn fn, void *ctx,
                               l2cdb_error *err) {
    l2c_buf file;
    l2c_buf_init(&file);
    l2cdb_status rc = l2c_file_read(&file, path, FILE_BYTES_MAX, err);
    if (rc == L2CDB_OK && file.size == 0) {
        rc = l2c_fail(err, L2CDB_E_FORMAT, "%s: is empty, expected JSON lines, CSV or COCO json",
                      path);
    }
    if (rc == L2CDB_OK) {
        reader r = { .path = path, .fn = fn, .ctx = ctx };
        l2c_buf_init(&r.text);
        const char *text = file.data;
        size_t n = file.size;
        if (n >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) { // a byte order mark, as Excel writes
            text += 3;
            n -= 3;
        }
        rc = text[strspn(text, " \t\r\n")] == '{' ? read_json(&r, text, n, err)
                                                  : read_csv(&r, text, n, err);
        l2c_buf_fini(&r.text);
    }
    l2c_buf_fini(&file);
    return rc;
}
