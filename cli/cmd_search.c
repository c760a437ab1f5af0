/* `l2cdb search`: a question in words, pictures or vectors; rows as a table, paths, JSON lines or
 * with their pictures. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/preview.h"
#include "cli/progress.h"
#include "cli/render.h"
#include "cli/session.h"
#include "cli/term.h"
#include "cli/terms.h"

static struct {
    size_t limit, offset, ef_search, nprobe;
    const char *where, *vector, *preview_mode;
    double min_p, min_score;
    int64_t like;
    bool files, nul, preview, json, captions, exact, with_vector;
} o = { .limit = 10, .min_score = -2 };

static const char *const preview_modes[] = { "auto", "kitty", "iterm", "sixel", "blocks", NULL };

static const l2c_option options[] = {
    { 'n', "limit", L2C_OPTION_SIZE, &o.limit, "N", "rows to print (default 10, at most 10,000)",
      NULL },
    { 0, "offset", L2C_OPTION_SIZE, &o.offset, "N", "leave out the first N rows", NULL },
    { 'f', "files", L2C_OPTION_ON, &o.files, NULL, "print paths only, one a line", NULL },
    { '0', "print0", L2C_OPTION_ON, &o.nul, NULL, "the same, each ended by NUL, for xargs -0",
      NULL },
    { 'p', "preview", L2C_OPTION_ON, &o.preview, NULL, "show the pictures in the terminal", NULL },
    { 0, "preview-mode", L2C_OPTION_CHOICE, &o.preview_mode, "MODE",
      "auto, kitty, iterm, sixel or blocks (default auto)", preview_modes },
    { 0, "json", L2C_OPTION_ON, &o.json, NULL, "one JSON object a row", NULL },
    { 0, "min-p", L2C_OPTION_REAL, &o.min_p, "SHARE",
      "only rows that score at least this share of the best:\n0.8 keeps what is within a fifth of "
      "it",
      NULL },
    { 0, "min-score", L2C_OPTION_REAL, &o.min_score, "S", "only rows that score at least S", NULL },
    { 'w', "where", L2C_OPTION_STRING, &o.where, "SQL",
      "only rows for which this holds, such as\n\"camera LIKE 'X100%' AND taken_at >= '2023'\"",
      NULL },
    { 'c', "captions", L2C_OPTION_ON, &o.captions, NULL, "search captions instead of photos",
      NULL },
    { 0, "like", L2C_OPTION_INT64, &o.like, "ID", "also: similar to photo ID of the database",
      NULL },
    { 0, "vector", L2C_OPTION_STRING, &o.vector, "FILE.npy",
      "the query is a vector, f32 [D], or each row of [N,D];\nevery row printed tells its "
      "\"query\","
      " from 0",
      NULL },
    { 0, "exact", L2C_OPTION_ON, &o.exact, NULL, "compare with every vector, use no index", NULL },
    { 0, "ef", L2C_OPTION_SIZE, &o.ef_search, "N", "search effort of an hnsw index", NULL },
    { 0, "nprobe", L2C_OPTION_SIZE, &o.nprobe, "N", "lists searched in an ivf index", NULL },
    { 0, "with-vector", L2C_OPTION_ON, &o.with_vector, NULL, "print each row's vector (--json)",
      NULL },
    { 0 },
};

/* ---- Faces of a result ----------------------------------------------------------------------- */

typedef enum face_kind { FACE_TABLE, FACE_JSON, FACE_FILES, FACE_PREVIEW } face_kind;

static face_kind chosen_face(void) {
    return o.json             ? FACE_JSON
           : o.files || o.nul ? FACE_FILES
           : o.preview        ? FACE_PREVIEW
                              : FACE_TABLE;
}

// `query` is the row of --vector, -1 without.
static bool print_rows(l2c_render *r, const l2cdb_results *results, int64_t query) {
    for (size_t i = 0; i < l2cdb_results_count(results); i++) {
        const l2cdb_row *row = l2cdb_results_row(results, i);
        l2c_cell cells[4];
        size_t n = 0;
        if (query >= 0) {
            cells[n++] = l2c_cell_int(query);
        }
        cells[n++] = l2c_cell_real((double)row->score, 3);
        if (o.captions) {
            cells[n++] = l2c_cell_text(row->text);
        }
        cells[n++] = row->path != NULL ? l2c_cell_text(row->path) : l2c_cell_int(row->id);
        if (!l2c_render_row(r, cells)) {
            return false;
        }
    }
    return true;
}

static bool print_json(l2c_render *r, const l2cdb_results *results, int64_t query, size_t width) {
    for (size_t i = 0; i < l2cdb_results_count(results); i++) {
        const l2cdb_row *row = l2cdb_results_row(results, i);
        l2c_cell cells[16];
        size_t n = 0;
        if (query >= 0) {
            cells[n++] = l2c_cell_int(query);
        }
        cells[n++] = l2c_cell_int((int64_t)(o.offset + i + 1));
        cells[n++] = l2c_cell_int(row->id);
        cells[n++] = l2c_cell_real((double)row->score, 6);
        cells[n++] = l2c_cell_real((double)row->distance, 6);
        cells[n++] = l2c_cell_text(row->path);
        if (o.captions) {
            cells[n++] = l2c_cell_int(row->image_id);
            cells[n++] = l2c_cell_text(row->text);
            cells[n++] = l2c_cell_text(row->language);
        }
        cells[n++] = l2c_cell_text(row->taken_at);
        cells[n++] = l2c_cell_text(row->camera);
        cells[n++] = l2c_cell_int(row->width);
        cells[n++] = l2c_cell_int(row->height);
        if (o.with_vector) {
            cells[n++] =
                row->vector != NULL ? l2c_cell_vector(row->vector, width) : l2c_cell_null();
        }
        if (!l2c_render_row(r, cells)) {
            return false;
        }
    }
    return true;
}

static bool print_files(const l2cdb_results *results) {
    for (size_t i = 0; i < l2cdb_results_count(results); i++) {
        const l2cdb_row *row = l2cdb_results_row(results, i);
        if (row->path != NULL) {
            fputs(row->path, stdout);
        } else {
            printf("%" PRId64, row->id);
        }
        fputc(o.nul ? '\0' : '\n', stdout);
    }
    return ferror(stdout) == 0;
}

static bool print_pictures(l2cdb *db, const l2cdb_results *results) {
    l2c_preview_mode mode = L2C_PREVIEW_AUTO;
    if (o.preview_mode != NULL) {
        l2c_preview_mode_parse(&mode, o.preview_mode);
    }
    size_t rows = l2c_term_rows(stdout) / 2;
    for (size_t i = 0; i < l2cdb_results_count(results); i++) {
        const l2cdb_row *row = l2cdb_results_row(results, i);
        l2cdb_pixels pixels = { 0 };
        l2cdb_error err;
        if (l2cdb_get_pixels(db, row->image_id, &pixels, &err) == L2CDB_OK) {
            l2c_preview_print(stdout, mode, pixels.rgb, pixels.width, pixels.height,
                              l2c_term_columns(stdout), rows < 6 ? 6 : rows);
        }
        l2cdb_pixels_free(&pixels);
        const char *name = row->path != NULL ? row->path : "";
        char *clean = l2c_term_clean(name, strlen(name));
        printf("%.3f  %s\n", (double)row->score, clean != NULL ? clean : "");
        free(clean);
        if (o.captions && row->text != NULL) {
            char *text = l2c_term_clean(row->text, strlen(row->text));
            printf("       %s\n", text != NULL ? text : "");
            free(text);
        }
    }
    return ferror(stdout) == 0;
}

static l2c_render *new_table(face_kind face, bool with_query) {
    static const char *const json_names[] = { "rank", "id", "score", "distance", "path" };
    static const char *const json_caption_names[] = { "image_id", "text", "language" };
    static const char *const json_photo_names[] = { "taken_at", "camera", "width", "height" };
    const char *names[16];
    size_t n = 0;
    if (with_query) {
        names[n++] = "query";
    }
    l2c_render_options ro;
    l2c_render_options_init(&ro, stdout);
    if (face == FACE_JSON) {
        ro.mode = L2C_RENDER_JSONL;
        memcpy(names + n, json_names, sizeof json_names);
        n += sizeof json_names / sizeof *json_names;
        if (o.captions) {
            memcpy(names + n, json_caption_names, sizeof json_caption_names);
            n += sizeof json_caption_names / sizeof *json_caption_names;
        }
        memcpy(names + n, json_photo_names, sizeof json_photo_names);
        n += sizeof json_photo_names / sizeof *json_photo_names;
        if (o.with_vector) {
            names[n++] = "vector";
        }
    } else {
        // Without lines and uncut: a path that wraps can still be copied.
        ro.mode = L2C_RENDER_COLUMN;
        ro.columns_max = 0;
        names[n++] = "score";
        if (o.captions) {
            names[n++] = "text";
        }
        names[n++] = "path";
    }
    return l2c_render_new(&ro, names, n);
}

/* ---- The question ---------------------------------------------------------------------------- */

// "10 photos · 12.3 ms (encode 10.1, search 0.4, fetch 0.2) · exact over 1,204 rows"
static void say_timings(const l2cdb_results *results) {
    const l2cdb_timings *t = l2cdb_results_timings(results);
    if (l2c_options_common.quiet || isatty(STDERR_FILENO) == 0) {
        return;
    }
    bool colour = l2c_term_colour(stderr);
    size_t count = l2cdb_results_count(results);
    fprintf(stderr, "%s%zu %s%s · %.1f ms (encode %.1f, search %.1f, fetch %.1f) · %s%s\n",
            colour ? "\033[2m" : "", count, o.captions ? "caption" : "photo", count == 1 ? "" : "s",
            t->encode_ms + t->search_ms + t->fetch_ms, t->encode_ms, t->search_ms, t->fetch_ms,
            t->plan, colour ? "\033[0m" : "");
}

// *table is made by the first question that was answered, so that an error is not below a header.
static int ask(l2cdb *db, const l2cdb_query *q, face_kind face, l2c_render **table, int64_t query,
               size_t width) {
    l2cdb_results *results;
    l2cdb_error err;
    if (l2cdb_search(db, q, &results, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    bool tabular = (face == FACE_TABLE || face == FACE_JSON) && l2cdb_results_count(results) > 0;
    if (tabular && *table == NULL && (*table = new_table(face, query >= 0)) == NULL) {
        l2cdb_results_free(results);
        return l2c_session_error(NULL, "out of memory");
    }
    bool ok = true;
    switch (face) {
    case FACE_TABLE:
        ok = print_rows(*table, results, query);
        break;
    case FACE_JSON:
        ok = print_json(*table, results, query, width);
        break;
    case FACE_FILES:
        ok = print_files(results);
        break;
    case FACE_PREVIEW:
        ok = print_pictures(db, results);
        break;
    }
    if (query < 0) {
        say_timings(results);
    }
    if (l2cdb_results_count(results) == 0 && query < 0 && !l2c_options_common.quiet) {
        fputs("nothing found\n", stderr);
    }
    l2cdb_results_free(results);
    return ok ? L2C_EXIT_DONE : L2C_EXIT_FAILED;
}

// Every row of the file with the terms of the command line added.
static int ask_vectors(l2cdb *db, l2cdb_query *q, l2cdb_term *terms, face_kind face,
                       l2c_render **table, size_t width) {
    float *vectors;
    size_t rows, columns;
    l2cdb_error err;
    if (l2cdb_vectors_read(o.vector, &vectors, &rows, &columns, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    int rc = L2C_EXIT_DONE;
    if (columns != width) {
        rc = l2c_session_error("encode the query with the model of the database",
                               "%s has vectors of %zu values, the database of %zu", o.vector,
                               columns, width);
    }
    l2cdb_term *vector = &terms[q->terms_count++];
    *vector =
        (l2cdb_term){ .kind = L2CDB_TERM_VECTOR, .size = columns * sizeof(float), .weight = 1 };
    for (size_t i = 0; i < rows && rc == L2C_EXIT_DONE && !l2c_interrupt_seen(); i++) {
        vector->data = vectors + i * columns;
        rc = ask(db, q, face, table, (int64_t)i, width);
    }
    l2cdb_vectors_free(vectors);
    return rc;
}

static int search(l2cdb *db, l2cdb_term *terms, size_t terms_count) {
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = terms;
    q.terms_count = terms_count;
    q.target = o.captions ? L2CDB_CAPTIONS : L2CDB_IMAGES;
    q.k = o.limit;
    q.offset = o.offset;
    q.where = o.where;
    q.score_min = o.min_score;
    q.share_min = o.min_p;
    q.exact = o.exact;
    q.ef_search = o.ef_search;
    q.nprobe = o.nprobe;
    q.include_vector = o.with_vector;
    size_t width = 0;
    l2cdb_error err;
    if ((o.with_vector || o.vector != NULL) && l2cdb_width(db, &width, &err) != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    face_kind face = chosen_face();
    l2c_render *table = NULL;
    int rc = o.vector != NULL ? ask_vectors(db, &q, terms, face, &table, width)
                              : ask(db, &q, face, &table, -1, width);
    if (table != NULL && !l2c_render_end(table) && rc == L2C_EXIT_DONE) {
        rc = L2C_EXIT_FAILED;
    }
    return rc;
}

static int run(const char *const *args, size_t args_count) {
    l2c_terms terms;
    int rc = l2c_terms_parse(&l2c_cmd_search, &terms, args, args_count);
    if (rc == L2C_EXIT_DONE && o.like != 0) {
        terms.list[terms.count++] =
            (l2cdb_term){ .kind = L2CDB_TERM_IMAGE_ID, .id = o.like, .weight = 1 };
    }
    if (rc == L2C_EXIT_DONE && terms.count == 0 && o.vector == NULL) {
        rc = l2c_options_wrong(&l2c_cmd_search, "what to search for is missing");
    }
    if (rc == L2C_EXIT_DONE && (o.limit == 0 || o.limit > 10000)) {
        rc = l2c_options_wrong(&l2c_cmd_search, "--limit takes 1 to 10000, not \"%zu\"", o.limit);
    }
    l2cdb *db;
    if (rc == L2C_EXIT_DONE) {
        rc = l2c_session_open(&db, NULL, L2C_SESSION_READ);
        if (rc == L2C_EXIT_DONE) {
            rc = search(db, terms.list, terms.count);
            l2c_session_close(db);
        }
    }
    l2c_terms_fini(&terms);
    return rc;
}

const l2c_command l2c_cmd_search = {
    .name = "search",
    .usage = "TERM [+ TERM] [- TERM] [WEIGHT:TERM]…",
    .summary = "find photos by words, by a picture, or by both",
    .help =
        "A term is a text, or a picture: a path that begins with / or ./ or is a photo that\n"
        "exists. \"+\" adds a term, \"-\" subtracts it, 2:term counts it twice. The score is the\n"
        "cosine between the question and the photo: 1 is the same, 0 has nothing to do with it.\n\n"
        "  l2cdb search \"the dog asleep on the red sofa\"\n"
        "  l2cdb search ./beach.jpg + \"at night\" - people\n"
        "  l2cdb search \"ein Hund am Strand\" -n 3 -p\n"
        "  l2cdb search sunset -f | xargs -d '\\n' cp -t best/\n"
        "  l2cdb search cat --where \"taken_at LIKE '2023%'\" --json\n",
    .options = options,
    .flags = L2C_COMMAND_DB | L2C_COMMAND_MODEL,
    .args_max = SIZE_MAX,
    .run = run,
};
