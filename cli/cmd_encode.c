/* `l2cdb encode`: texts and photos to vectors, as JSON lines or one .npy file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/lines.h"
#include "cli/npy_out.h"
#include "cli/session.h"
#include "cli/terms.h"

static struct {
    const char *out, *file;
    bool text, image, exif_rotate;
} o = { .exif_rotate = true };

static const l2c_option options[] = {
    { 'o', "output", L2C_OPTION_STRING, &o.out, "FILE.npy",
      "write f32 [N,D] there instead of JSON to stdout;\n- is stdout", NULL },
    { 0, "file", L2C_OPTION_STRING, &o.file, "FILE",
      "also every line of FILE (- is stdin): a text, or with\n--image a path", NULL },
    { 0, "text", L2C_OPTION_ON, &o.text, NULL, "arguments are texts, whatever they look like",
      NULL },
    { 0, "image", L2C_OPTION_ON, &o.image, NULL, "arguments are paths of photos", NULL },
    { 0, "no-exif-rotate", L2C_OPTION_OFF, &o.exif_rotate, NULL,
      "do not turn photos upright (without a database)", NULL },
    { 0 },
};

static bool is_image(const char *word) {
    return o.image || (!o.text && l2c_terms_is_image(word));
}

/* Input i goes to vectors[i, width]; neighbours of one kind go together. */
static int encode_all(l2cdb *db, float *vectors, size_t width, const char *const *inputs,
                      size_t count) {
    l2cdb_error err;
    size_t n;
    for (size_t i = 0; i < count; i += n) {
        bool image = is_image(inputs[i]);
        n = 1;
        while (i + n < count && n < 256 && is_image(inputs[i + n]) == image) {
            n++;
        }
        float *out = vectors + i * width;
        l2cdb_status rc = image ? l2cdb_encode_images(db, inputs + i, n, out, width, &err)
                                : l2cdb_encode_texts(db, inputs + i, n, out, width, NULL, &err);
        if (rc != L2CDB_OK) {
            return l2c_session_fail(&err);
        }
    }
    return L2C_EXIT_DONE;
}

static void print_json(const float *vectors, size_t width, const char *const *inputs,
                       size_t count) {
    l2c_json_out j;
    for (size_t i = 0; i < count; i++) {
        l2c_json_out_init(&j, stdout);
        l2c_json_out_open(&j, '{');
        l2c_json_out_key(&j, is_image(inputs[i]) ? "image" : "text");
        l2c_json_out_string(&j, inputs[i]);
        l2c_json_out_key(&j, "vector");
        l2c_json_out_floats(&j, vectors + i * width, width);
        l2c_json_out_close(&j, '}');
        fputc('\n', stdout);
    }
}

static int encode(l2cdb *db, const char *const *inputs, size_t count) {
    size_t width;
    l2cdb_error err;
    if (l2cdb_width(db, &width, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    float *vectors = calloc(count * width + 1, sizeof *vectors);
    if (vectors == NULL) {
        return l2c_session_error(NULL, "out of memory for %zu vectors", count);
    }
    int rc = encode_all(db, vectors, width, inputs, count);
    if (rc == L2C_EXIT_DONE && o.out == NULL) {
        print_json(vectors, width, inputs, count);
    } else if (rc == L2C_EXIT_DONE && !l2c_npy_out_write(o.out, vectors, count, width)) {
        rc = l2c_session_error(NULL, "could not write %s: %s", o.out, strerror(errno));
    }
    free(vectors);
    return rc;
}

static int run(const char *const *args, size_t args_count) {
    if (o.text && o.image) {
        return l2c_options_wrong(&l2c_cmd_encode, "--text and --image exclude each other");
    }
    l2c_lines lines = { 0 };
    int rc = o.file != NULL ? l2c_lines_read(&lines, o.file) : L2C_EXIT_DONE;
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    size_t count = args_count + lines.count;
    if (count == 0) {
        rc = l2c_options_wrong(&l2c_cmd_encode, "what to encode is missing");
    }
    const char **inputs = calloc(count + 1, sizeof *inputs);
    l2cdb *db = NULL;
    if (rc == L2C_EXIT_DONE && inputs != NULL) {
        memcpy(inputs, args, args_count * sizeof *inputs);
        if (lines.count > 0) {
            memcpy(inputs + args_count, lines.lines, lines.count * sizeof *inputs);
        }
        l2cdb_open_options open;
        l2c_session_options(&open);
        open.exif_rotate = o.exif_rotate;
        rc = l2c_session_open(&db, &open, L2C_SESSION_READ | L2C_SESSION_SCRATCH);
    }
    if (rc == L2C_EXIT_DONE && db != NULL) {
        rc = encode(db, inputs, count);
    }
    l2c_session_close(db);
    free(inputs);
    l2c_lines_fini(&lines);
    return rc;
}

const l2c_command l2c_cmd_encode = {
    .name = "encode",
    .usage = "TEXT|PHOTO…",
    .summary = "make vectors of texts and photos",
    .help =
        "Uses the model of the database; without a database, or with --model and no --db, that\n"
        "model or the built-in one.\n\n"
        "  l2cdb encode \"a red boat\" ./boat.jpg\n"
        "  l2cdb encode --file queries.txt -o queries.npy\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = SIZE_MAX,
    .run = run,
};
