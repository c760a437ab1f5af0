#include "cli/sql_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/options.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/term.h"

#define FILE_BYTES_MAX (64L << 20)

/* ---- Parameters --------------------------------------------------------------------------------
 */

static l2c_sql_param *find_param(l2c_sql_params *p, const char *name, size_t size) {
    for (size_t i = 0; i < p->count; i++) {
        if (strlen(p->list[i].name) == size && strncmp(p->list[i].name, name, size) == 0) {
            return &p->list[i];
        }
    }
    return NULL;
}

static int read_file(l2c_sql_param *x, const char *path) {
    FILE *f = fopen(path, "rb");
    char *data = f != NULL ? malloc(FILE_BYTES_MAX) : NULL;
    if (data == NULL) {
        if (f != NULL) {
            fclose(f);
        }
        return l2c_session_error(NULL, "could not read %s: %s", path, strerror(errno));
    }
    size_t size = fread(data, 1, FILE_BYTES_MAX, f);
    bool whole = feof(f) != 0 && ferror(f) == 0;
    fclose(f);
    if (!whole) {
        free(data);
        return l2c_session_error(NULL, "could not read %s, or it has more than 64 MB", path);
    }
    x->type = L2C_PARAM_BLOB;
    x->data = data;
    x->size = size;
    return L2C_EXIT_DONE;
}

/* Numbers only as they would be printed: 007 and +49 are texts. */
static bool read_number(l2c_sql_param *x, const char *s) {
    char *end, again[64];
    errno = 0;
    long long whole = strtoll(s, &end, 10);
    snprintf(again, sizeof again, "%lld", whole);
    if (errno == 0 && end != s && *end == '\0' && strcmp(again, s) == 0) {
        x->type = L2C_PARAM_INT;
        x->integer = whole;
        return true;
    }
    const char *digits = *s == '-' ? s + 1 : s;
    bool leading = digits[0] == '0' && digits[1] != '.' && digits[1] != '\0';
    if (leading || strspn(s, "-0123456789.eE") != strlen(s) || strpbrk(s, ".eE") == NULL) {
        return false;
    }
    x->real = strtod(s, &end);
    x->type = L2C_PARAM_REAL;
    return end != s && *end == '\0';
}

static int set_value(l2c_sql_param *x, const char *value) {
    if (strcmp(value, "null") == 0 || strcmp(value, "NULL") == 0) {
        x->type = L2C_PARAM_NULL;
        return L2C_EXIT_DONE;
    }
    if (value[0] == '@' && value[1] != '@') {
        return read_file(x, value + 1);
    }
    if (!read_number(x, value)) {
        x->type = L2C_PARAM_TEXT;
        x->data = strdup(value[0] == '@' ? value + 1 : value);
        x->size = x->data != NULL ? strlen(x->data) : 0;
    }
    return x->type != L2C_PARAM_TEXT || x->data != NULL ? L2C_EXIT_DONE
                                                        : l2c_session_error(NULL, "out of memory");
}

int l2c_sql_params_set(l2c_sql_params *p, const char *assignment) {
    const char *equals = strchr(assignment, '=');
    const char *name = assignment + strspn(assignment, ":@$?");
    if (equals == NULL || equals <= name) {
        l2c_session_error("for example q=dog", "\"%s\" is no parameter, expected name=value",
                          assignment);
        return L2C_EXIT_USAGE;
    }
    l2c_sql_param *x = find_param(p, name, (size_t)(equals - name));
    if (x == NULL) {
        l2c_sql_param *list = realloc(p->list, (p->count + 1) * sizeof *list);
        char *copy = list != NULL ? strndup(name, (size_t)(equals - name)) : NULL;
        p->list = list != NULL ? list : p->list;
        if (copy == NULL) {
            return l2c_session_error(NULL, "out of memory");
        }
        x = &p->list[p->count++];
        *x = (l2c_sql_param){ .name = copy };
    } else {
        free(x->data);
        *x = (l2c_sql_param){ .name = x->name };
    }
    return set_value(x, equals + 1);
}

void l2c_sql_params_clear(l2c_sql_params *p) {
    for (size_t i = 0; i < p->count; i++) {
        free(p->list[i].name);
        free(p->list[i].data);
    }
    free(p->list);
    *p = (l2c_sql_params){ 0 };
}

const char *l2c_sql_params_unused(const l2c_sql_params *p) {
    for (size_t i = 0; i < p->count; i++) {
        if (!p->list[i].used) {
            return p->list[i].name;
        }
    }
    return NULL;
}

static l2cdb_status bind_one(l2cdb_stmt *s, int i, l2c_sql_param *x) {
    x->used = true;
    switch (x->type) {
    case L2C_PARAM_INT:
        return l2cdb_bind_int64(s, i, x->integer);
    case L2C_PARAM_REAL:
        return l2cdb_bind_double(s, i, x->real);
    case L2C_PARAM_TEXT:
        return l2cdb_bind_text(s, i, x->data, x->size);
    case L2C_PARAM_BLOB:
        return l2cdb_bind_blob(s, i, x->data, x->size);
    case L2C_PARAM_NULL:
        break;
    }
    return l2cdb_bind_null(s, i);
}

/* Every parameter of the statement gets its value; one without is an error, not a NULL. */
static bool bind_params(l2cdb_stmt *s, l2c_sql_params *p) {
    for (int i = 1; i <= l2cdb_bind_count(s); i++) {
        const char *name = l2cdb_bind_name(s, i);
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        const char *bare = name != NULL && strchr(":@$", name[0]) != NULL ? name + 1 : number;
        l2c_sql_param *x = p != NULL ? find_param(p, bare, strlen(bare)) : NULL;
        x = x == NULL && p != NULL ? find_param(p, number, strlen(number)) : x;
        if (x == NULL) {
            l2c_session_error("query --param NAME=VALUE, or .param set NAME VALUE in the shell",
                              "parameter %s has no value", name != NULL ? name : number);
            return false;
        }
        if (bind_one(s, i, x) != L2CDB_OK) {
            l2c_session_error(NULL, "parameter %s could not be set", bare);
            return false;
        }
    }
    return true;
}

/* ---- Errors ------------------------------------------------------------------------------------
 */

/* Prints s[0..n) with tabs as blanks, so that the caret below stands right. */
static void put_line(FILE *out, const char *s, size_t n) {
    char *clean = l2c_term_clean(s, n);
    for (char *c = clean; c != NULL && *c != '\0'; c++) {
        fputc(*c, out);
    }
    free(clean);
}

void l2c_sql_text_error(FILE *out, const char *sql, const l2cdb_error *err) {
    l2c_progress_clear();
    bool colour = l2c_term_colour(out);
    if (err->code == L2CDB_E_CANCELLED && isatty(fileno(out)) != 0) {
        fputc('\n', out); // the terminal has just shown ^C
    }
    fprintf(out, "l2cdb: %s\n", err->message);
    size_t size = strlen(sql);
    if (err->offset >= 0 && (size_t)err->offset <= size) {
        size_t at = (size_t)err->offset, from = at, to = at;
        while (from > 0 && sql[from - 1] != '\n') {
            from--;
        }
        while (to < size && sql[to] != '\n') {
            to++;
        }
        // A long line is shown around the place.
        size_t columns = l2c_term_columns(out) - 4;
        if (at - from > columns - 10) {
            from = at - (columns - 10);
            while (from < at && ((unsigned char)sql[from] & 0xc0) == 0x80) {
                from++;
            }
        }
        size_t shown = l2c_term_fit(sql + from, to - from, columns, NULL);
        char *before = l2c_term_clean(sql + from, at - from);
        fputs("  ", out);
        put_line(out, sql + from, shown);
        fprintf(out, "\n  %*s%s^%s\n",
                (int)(before != NULL ? l2c_term_width(before, strlen(before)) : 0), "",
                colour ? "\033[1;31m" : "", colour ? "\033[0m" : "");
        free(before);
    }
    if (err->hint[0] != '\0') {
        fprintf(out, "  %s\n", err->hint);
    }
}

/* ---- Rows with pictures ------------------------------------------------------------------------
 */

enum { PREVIEW_COLUMNS = 20, PREVIEW_ROWS = 8 };

/* The column that names a photo: image_id, else id. -1 if there is none. */
static int photo_column(l2cdb_stmt *s) {
    int found = -1;
    for (int i = 0; i < l2cdb_column_count(s); i++) {
        const char *name = l2cdb_column_name(s, i);
        if (name != NULL && strcmp(name, "image_id") == 0) {
            return i;
        }
        if (name != NULL && strcmp(name, "id") == 0 && found < 0) {
            found = i;
        }
    }
    return found;
}

/* One field as "name  value", cut to the room beside the picture. */
static void put_field(FILE *out, l2cdb_stmt *s, int i, size_t room) {
    char number[64];
    const char *value = NULL;
    switch (l2cdb_column_type(s, i)) {
    case L2CDB_VECTOR:
        snprintf(number, sizeof number, "vector of %zu values",
                 l2cdb_column_bytes(s, i) / sizeof(float));
        value = number;
        break;
    case L2CDB_BLOB:
        snprintf(number, sizeof number, "%zu bytes", l2cdb_column_bytes(s, i));
        value = number;
        break;
    case L2CDB_FLOAT:
        snprintf(number, sizeof number, "%.6g", l2cdb_column_double(s, i));
        value = number;
        break;
    default:
        value = l2cdb_column_text(s, i);
    }
    const char *name = l2cdb_column_name(s, i);
    char *clean = l2c_term_clean(value != NULL ? value : "", value != NULL ? strlen(value) : 0);
    size_t lead = name != NULL ? strlen(name) + 2 : 2;
    size_t fits =
        clean != NULL ? l2c_term_fit(clean, strlen(clean), room > lead ? room - lead : 1, NULL) : 0;
    fprintf(out, "%s  %.*s", name != NULL ? name : "", (int)fits, clean != NULL ? clean : "");
    free(clean);
}

/* Makes room, draws the picture, comes back and writes the fields beside it. */
static bool put_row_with_picture(l2cdb *db, l2cdb_stmt *s, int photo,
                                 const l2c_sql_text_options *o) {
    FILE *out = o->render.out;
    l2cdb_pixels pixels = { 0 };
    l2cdb_error err;
    bool picture = l2cdb_column_type(s, photo) == L2CDB_INTEGER &&
                   l2cdb_get_pixels(db, l2cdb_column_int64(s, photo), &pixels, &err) == L2CDB_OK;
    for (int i = 0; i < PREVIEW_ROWS; i++) {
        fputc('\n', out);
    }
    fprintf(out, "\033[%dA\0337", PREVIEW_ROWS);
    if (picture) {
        l2c_preview_print(out, o->preview, pixels.rgb, pixels.width, pixels.height, PREVIEW_COLUMNS,
                          PREVIEW_ROWS - 1);
    }
    l2cdb_pixels_free(&pixels);
    fputs("\0338", out);
    int lines = 0;
    for (int i = 0; i < l2cdb_column_count(s); i++, lines++) {
        fprintf(out, "\033[%dC", PREVIEW_COLUMNS + 2);
        put_field(out, s, i, l2c_term_columns(out) - PREVIEW_COLUMNS - 3);
        fputc('\n', out);
    }
    if (lines < PREVIEW_ROWS) {
        fprintf(out, "\033[%dB", PREVIEW_ROWS - lines);
    }
    return ferror(out) == 0;
}

static l2cdb_status put_pictures(l2cdb *db, l2cdb_stmt *s, int photo, const l2c_sql_text_options *o,
                                 uint64_t *rows, l2cdb_error *err) {
    bool row = true;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && row) {
        rc = l2cdb_step(s, &row, err);
        if (rc == L2CDB_OK && row) {
            ++*rows;
            if (!put_row_with_picture(db, s, photo, o)) {
                break;
            }
        }
    }
    return rc;
}

/* ---- Running -----------------------------------------------------------------------------------
 */

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void say(const char *text) {
    bool colour = l2c_term_colour(stderr);
    fprintf(stderr, "%s%s%s\n", colour ? "\033[2m" : "", text, colour ? "\033[0m" : "");
}

static l2cdb_status put_answer(l2cdb *db, l2cdb_stmt *s, const l2c_sql_text_options *o,
                               uint64_t *rows, l2cdb_error *err) {
    bool shows = o->preview != L2C_PREVIEW_OFF &&
                 (o->preview != L2C_PREVIEW_AUTO || isatty(fileno(o->render.out)) != 0);
    int photo = shows ? photo_column(s) : -1;
    if (photo >= 0) {
        return put_pictures(db, s, photo, o, rows, err);
    }
    if (l2cdb_column_count(s) > 0) {
        return l2c_render_statement(&o->render, s, rows, err);
    }
    bool row = true;
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && row) {
        rc = l2cdb_step(s, &row, err);
    }
    return rc;
}

static int run_statement(l2cdb *db, l2cdb_stmt *s, const char *sql, const l2c_sql_text_options *o) {
    if (!bind_params(s, o->params)) {
        return L2C_EXIT_USAGE;
    }
    l2cdb_error err;
    uint64_t rows = 0;
    double start = now_ms();
    l2cdb_status rc = put_answer(db, s, o, &rows, &err);
    fflush(o->render.out);
    if (rc != L2CDB_OK) {
        l2c_sql_text_error(stderr, sql, &err);
        return L2C_EXIT_FAILED;
    }
    char text[96];
    if (o->changes && l2cdb_column_count(s) == 0 && l2cdb_changes(s) > 0) {
        snprintf(text, sizeof text, "%" PRId64 " row%s written", l2cdb_changes(s),
                 l2cdb_changes(s) == 1 ? "" : "s");
        say(text);
    }
    if (o->timer) {
        snprintf(text, sizeof text, "%" PRIu64 " row%s, %.1f ms", rows, rows == 1 ? "" : "s",
                 now_ms() - start);
        say(text);
    }
    return L2C_EXIT_DONE;
}

int l2c_sql_text_run(l2cdb *db, const char *sql, const l2c_sql_text_options *o) {
    int worst = L2C_EXIT_DONE;
    const char *at = sql;
    while (*at != '\0' && (worst == L2C_EXIT_DONE || o->go_on)) {
        l2cdb_stmt *s;
        const char *tail;
        l2cdb_error err;
        l2cdb_status rc = l2cdb_prepare_next(db, at, o->limits, &s, &tail, &err);
        int exit_status;
        if (rc != L2CDB_OK) {
            l2c_sql_text_error(stderr, at, &err);
            exit_status = rc == L2CDB_E_SQL ? L2C_EXIT_USAGE : L2C_EXIT_FAILED;
            if (tail == at) {
                return exit_status; // nobody knows where the next statement begins
            }
        } else if (s == NULL) {
            break;
        } else {
            exit_status = run_statement(db, s, at, o);
            l2cdb_finalize(s);
        }
        worst = exit_status != L2C_EXIT_DONE ? exit_status : worst;
        at = tail;
    }
    return worst;
}
