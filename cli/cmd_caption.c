/* `l2cdb caption`: one caption to one photo; whole files of them go through `ingest --captions`. */
#define _XOPEN_SOURCE 700 // realpath

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/json_out.h"
#include "cli/render.h"
#include "cli/session.h"

static struct {
    const char *language;
    bool json;
} o;

static const l2c_option options[] = {
    { 'l', "language", L2C_OPTION_STRING, &o.language, "CODE", "its language: en, de, …", NULL },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "print JSON", NULL },
    { 0 },
};

// The photo a user means: an id, or a path as stored or its last part.
static int find_photo(l2cdb *db, const char *photo, int64_t *id) {
    static const char sql[] = "SELECT id FROM images WHERE id = CAST(?1 AS INTEGER) AND ?1 = "
                              "CAST(CAST(?1 AS INTEGER) AS TEXT) OR path = ?1 OR path = ?2 LIMIT 2";
    char *absolute = realpath(photo, NULL);
    l2cdb_stmt *s = NULL;
    l2cdb_error err;
    bool row = false, second = false;
    l2cdb_status rc = l2cdb_prepare(db, sql, NULL, &s, &err);
    if (rc == L2CDB_OK) {
        const char *path = absolute != NULL ? absolute : photo;
        l2cdb_bind_text(s, 1, photo, strlen(photo));
        l2cdb_bind_text(s, 2, path, strlen(path));
        rc = l2cdb_step(s, &row, &err);
    }
    if (rc == L2CDB_OK && row) {
        *id = l2cdb_column_int64(s, 0);
        rc = l2cdb_step(s, &second, &err);
    }
    l2cdb_finalize(s);
    free(absolute);
    if (rc != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (!row) {
        return l2c_session_error("add it with: l2cdb ingest PHOTO",
                                 "the database knows no photo %s", photo);
    }
    return second ? l2c_session_error("name it by its id", "several photos are called %s", photo)
                  : L2C_EXIT_DONE;
}

static int add(l2cdb *db, int64_t image_id, const char *text) {
    int64_t id;
    l2cdb_error err;
    if (l2cdb_add_caption(db, image_id, text, o.language, "user", &id, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    if (o.json) {
        printf("{\"id\":%" PRId64 ",\"image_id\":%" PRId64 "}\n", id, image_id);
    } else {
        printf("caption %" PRId64 " of photo %" PRId64 "\n", id, image_id);
    }
    return L2C_EXIT_DONE;
}

static int list(l2cdb *db, int64_t image_id) {
    static const char sql[] = "SELECT id, language, text FROM captions WHERE image_id = ?1"
                              " ORDER BY id";
    l2c_render_options ro;
    l2c_render_options_init(&ro, stdout);
    ro.mode = o.json ? L2C_RENDER_JSONL : ro.mode;
    l2cdb_stmt *s = NULL;
    l2cdb_error err;
    l2cdb_status rc = l2cdb_prepare(db, sql, NULL, &s, &err);
    if (rc == L2CDB_OK) {
        l2cdb_bind_int64(s, 1, image_id);
        rc = l2c_render_statement(&ro, s, NULL, &err);
    }
    l2cdb_finalize(s);
    return rc == L2CDB_OK ? L2C_EXIT_DONE : l2c_session_fail(&err);
}

static int run(const char *const *args, size_t args_count) {
    bool adding = strcmp(args[0], "add") == 0;
    if (!adding && strcmp(args[0], "list") != 0) {
        return l2c_options_wrong(&l2c_cmd_caption, "\"%s\" is neither add nor list", args[0]);
    }
    if (args_count != (adding ? 3 : 2)) {
        return l2c_options_wrong(&l2c_cmd_caption, "caption %s takes %s", args[0],
                                 adding ? "a photo and a text" : "a photo");
    }
    l2cdb *db;
    int rc = l2c_session_open(&db, NULL, adding ? 0 : L2C_SESSION_READ);
    if (rc != L2C_EXIT_DONE) {
        return rc;
    }
    int64_t image_id = 0;
    rc = find_photo(db, args[1], &image_id);
    if (rc == L2C_EXIT_DONE) {
        rc = adding ? add(db, image_id, args[2]) : list(db, image_id);
    }
    l2c_session_close(db);
    return rc;
}

const l2c_command l2c_cmd_caption = {
    .name = "caption",
    .usage = "add PHOTO TEXT | list PHOTO",
    .summary = "add a caption to one photo, or list its captions",
    .help =
        "PHOTO is an id or a path. Files full of captions go through `l2cdb ingest --captions`.\n\n"
        "  l2cdb caption add ~/Pictures/IMG_1.jpg \"Grandma's 80th birthday\" --language en\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_min = 2,
    .args_max = 3,
    .run = run,
};
