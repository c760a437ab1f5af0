/* `l2cdb tokenize`: what the language model sees of a text. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/lines.h"
#include "cli/session.h"

static struct {
    const char *tokenizer, *file;
    bool trusted, json;
} o;

static const l2c_option options[] = {
    { 't', "tokenizer", L2C_OPTION_STRING, &o.tokenizer, "FILE",
      "a tokenizer.json, used alone: no template, no BOS\n(default: the model's, with its "
      "template)",
      NULL },
    { 0, "file", L2C_OPTION_STRING, &o.file, "FILE", "also every line of FILE (- is stdin)", NULL },
    { 0, "trusted", L2C_OPTION_ON, &o.trusted, NULL,
      "special tokens written in a text are special, as in the\nreference; otherwise they are "
      "plain text",
      NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL,
      "one JSON object a text: \"text\", \"ids\" and \"pooled\", the\nnumber of ids at the end "
      "that "
      "are averaged",
      NULL },
    { 0 },
};

static void print_ids(const char *text, size_t size, const int32_t *ids, size_t count,
                      size_t pooled) {
    l2c_json_out j;
    if (!o.json) {
        for (size_t i = 0; i < count; i++) {
            printf("%s%" PRId32, i > 0 ? " " : "", ids[i]);
        }
        fputc('\n', stdout);
        return;
    }
    l2c_json_out_init(&j, stdout);
    l2c_json_out_open(&j, '{');
    l2c_json_out_key(&j, "text");
    l2c_json_out_text(&j, text, size);
    l2c_json_out_key(&j, "ids");
    l2c_json_out_open(&j, '[');
    for (size_t i = 0; i < count; i++) {
        l2c_json_out_int(&j, ids[i]);
    }
    l2c_json_out_close(&j, ']');
    if (o.tokenizer == NULL) {
        l2c_json_out_key(&j, "pooled");
        l2c_json_out_uint(&j, pooled);
    }
    l2c_json_out_close(&j, '}');
    fputc('\n', stdout);
}

static int tokenize(l2cdb *db, const char *text, size_t size) {
    size_t room = size + 64, count = 0, pooled = 0;
    l2cdb_error err;
    for (;;) {
        int32_t *ids = calloc(room, sizeof *ids);
        if (ids == NULL) {
            return l2c_session_error(NULL, "out of memory");
        }
        l2cdb_status rc = l2cdb_tokenize(db, o.tokenizer, text, size, o.trusted, ids, room, &count,
                                         &pooled, &err);
        if (rc == L2CDB_OK && count <= room) {
            print_ids(text, size, ids, count, pooled);
        }
        free(ids);
        if (rc != L2CDB_OK) {
            return l2c_session_fail(&err);
        }
        if (count <= room) {
            return L2C_EXIT_DONE;
        }
        room = count; // a template can be longer than was allowed for
    }
}

static int run(const char *const *args, size_t args_count) {
    l2c_lines lines = { 0 };
    if (args_count == 0 && o.file == NULL) {
        return l2c_options_wrong(&l2c_cmd_tokenize, "a text or --file is missing");
    }
    int rc = o.file != NULL ? l2c_lines_read(&lines, o.file) : L2C_EXIT_DONE;
    l2cdb *db = NULL;
    if (rc == L2C_EXIT_DONE) {
        rc = l2c_session_open(&db, NULL, L2C_SESSION_READ | L2C_SESSION_SCRATCH);
    }
    for (size_t i = 0; i < args_count && rc == L2C_EXIT_DONE; i++) {
        rc = tokenize(db, args[i], strlen(args[i]));
    }
    for (size_t i = 0; i < lines.count && rc == L2C_EXIT_DONE; i++) {
        rc = tokenize(db, lines.lines[i], lines.sizes[i]);
    }
    l2c_session_close(db);
    l2c_lines_fini(&lines);
    return rc;
}

const l2c_command l2c_cmd_tokenize = {
    .name = "tokenize",
    .usage = "TEXT…",
    .summary = "show the token ids of a text",
    .help = "  l2cdb tokenize \"a red boat\"\n"
            "  l2cdb tokenize --tokenizer tokenizer.json --file lines.txt\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = SIZE_MAX,
    .run = run,
};
