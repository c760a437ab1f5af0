/* Rows to text. Every cell is first made into a clean string (print_cell for programs, show_cell
 * for people); forms only differ in what they put round it. */
#include "cli/render.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/json_out.h"
#include "cli/term.h"

static const struct {
    const char *name;
    l2c_render_mode mode;
} modes[] = {
    { "box", L2C_RENDER_BOX },     { "table", L2C_RENDER_TABLE }, { "column", L2C_RENDER_COLUMN },
    { "csv", L2C_RENDER_CSV },     { "tsv", L2C_RENDER_TSV },     { "json", L2C_RENDER_JSON },
    { "jsonl", L2C_RENDER_JSONL }, { "line", L2C_RENDER_LINE },   { "html", L2C_RENDER_HTML },
};

bool l2c_render_mode_parse(l2c_render_mode *out, const char *name) {
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(modes[i].name, name) == 0) {
            *out = modes[i].mode;
            return true;
        }
    }
    return false;
}

const char *l2c_render_mode_name(l2c_render_mode mode) {
    return modes[mode].name;
}

/* ---- Cells ---------------------------------------------------------------------------------- */

l2c_cell l2c_cell_null(void) {
    return (l2c_cell){ .type = L2C_CELL_NULL };
}

l2c_cell l2c_cell_bool(bool v) {
    return (l2c_cell){ .type = L2C_CELL_BOOL, .integer = v };
}

l2c_cell l2c_cell_int(int64_t v) {
    return (l2c_cell){ .type = L2C_CELL_INT, .integer = v };
}

l2c_cell l2c_cell_real(double v, int decimals) {
    return (l2c_cell){ .type = L2C_CELL_REAL, .real = v, .decimals = decimals };
}

l2c_cell l2c_cell_text(const char *s) {
    return s == NULL ? l2c_cell_null()
                     : (l2c_cell){ .type = L2C_CELL_TEXT, .data = s, .size = strlen(s) };
}

l2c_cell l2c_cell_blob(const void *data, size_t size) {
    return (l2c_cell){ .type = L2C_CELL_BLOB, .data = data, .size = size };
}

l2c_cell l2c_cell_vector(const float *v, size_t n) {
    return (l2c_cell){ .type = L2C_CELL_VECTOR, .data = v, .size = n };
}

l2c_cell l2c_cell_column(l2cdb_stmt *s, int i) {
    switch (l2cdb_column_type(s, i)) {
    case L2CDB_NULL:
        return l2c_cell_null();
    case L2CDB_INTEGER:
        return l2c_cell_int(l2cdb_column_int64(s, i));
    case L2CDB_FLOAT:
        return l2c_cell_real(l2cdb_column_double(s, i), -1);
    case L2CDB_TEXT: {
        const char *text = l2cdb_column_text(s, i);
        return (l2c_cell){ .type = L2C_CELL_TEXT, .data = text, .size = l2cdb_column_bytes(s, i) };
    }
    case L2CDB_BLOB:
        return l2c_cell_blob(l2cdb_column_blob(s, i), l2cdb_column_bytes(s, i));
    case L2CDB_VECTOR:
        return l2c_cell_vector(l2cdb_column_blob(s, i), l2cdb_column_bytes(s, i) / sizeof(float));
    }
    return l2c_cell_null();
}

/* ---- One cell as text ------------------------------------------------------------------------ */

// A cell's text: borrowed from the cell, in `small`, or owned.
typedef struct text {
    const char *s;
    size_t n;
    char *owned;
    char small[40];
} text;

static bool text_own(text *t, char *owned) {
    t->owned = owned;
    t->s = owned;
    t->n = owned == NULL ? 0 : strlen(owned);
    return owned != NULL;
}

static void text_fini(text *t) {
    free(t->owned);
}

// Blobs as x'…', vectors as [a, b, …]: whole, as JSON-compatible text, for programs.
static char *print_long(const l2c_cell *c) {
    char *out = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&out, &size);
    if (f == NULL) {
        return NULL;
    }
    l2c_json_out j;
    l2c_json_out_init(&j, f);
    if (c->type == L2C_CELL_VECTOR) {
        l2c_json_out_floats(&j, c->data, c->size);
    } else {
        fputs("x'", f);
        for (size_t i = 0; i < c->size; i++) {
            fprintf(f, "%02x", ((const unsigned char *)c->data)[i]);
        }
        fputc('\'', f);
    }
    if (fclose(f) != 0) {
        free(out);
        return NULL;
    }
    return out;
}

// The same for people: the beginning, and how much there is.
static char *show_long(const l2c_cell *c) {
    char line[128];
    if (c->type == L2C_CELL_VECTOR) {
        float v[3] = { 0, 0, 0 };
        memcpy(v, c->data, (c->size < 3 ? c->size : 3) * sizeof v[0]);
        snprintf(line, sizeof line, c->size > 3 ? "[%.3f %.3f %.3f … %zu]" : "[%.3f %.3f %.3f]",
                 (double)v[0], (double)v[1], (double)v[2], c->size);
    } else {
        const unsigned char *b = c->data;
        size_t shown = c->size < 8 ? c->size : 8, n = 0;
        for (size_t i = 0; i < shown; i++) {
            n += (size_t)snprintf(line + n, sizeof line - n, "%02x", b[i]);
        }
        snprintf(line + n, sizeof line - n, c->size > shown ? "… (%zu bytes)" : "", c->size);
    }
    return strdup(line);
}

// `people`: for a table, so fixed decimals, nothing that steers the terminal, long values cut.
static bool text_init(text *t, const l2c_cell *c, bool people, const char *null) {
    t->owned = NULL;
    t->s = t->small;
    switch (c->type) {
    case L2C_CELL_NULL:
        t->s = null;
        break;
    case L2C_CELL_BOOL:
        t->s = c->integer != 0 ? "true" : "false";
        break;
    case L2C_CELL_INT:
        snprintf(t->small, sizeof t->small, "%" PRId64, c->integer);
        break;
    case L2C_CELL_REAL:
        if (people && c->decimals >= 0 && fabs(c->real) < 1e15) {
            snprintf(t->small, sizeof t->small, "%.*f", c->decimals, c->real);
        } else {
            l2c_json_out_number(t->small, c->real, c->decimals);
        }
        break;
    case L2C_CELL_TEXT:
        if (people) {
            return text_own(t, l2c_term_clean(c->data, c->size));
        }
        t->s = c->data;
        t->n = c->size;
        return true;
    case L2C_CELL_BLOB:
    case L2C_CELL_VECTOR:
        return text_own(t, people ? show_long(c) : print_long(c));
    }
    t->n = strlen(t->s);
    return true;
}

static bool is_number(l2c_cell_type type) {
    return type == L2C_CELL_INT || type == L2C_CELL_REAL;
}

static void print_json(l2c_json_out *j, const l2c_cell *c) {
    switch (c->type) {
    case L2C_CELL_NULL:
        l2c_json_out_null(j);
        break;
    case L2C_CELL_BOOL:
        l2c_json_out_bool(j, c->integer != 0);
        break;
    case L2C_CELL_INT:
        l2c_json_out_int(j, c->integer);
        break;
    case L2C_CELL_REAL:
        l2c_json_out_double(j, c->real, c->decimals);
        break;
    case L2C_CELL_TEXT:
        l2c_json_out_text(j, c->data, c->size);
        break;
    case L2C_CELL_BLOB:
        l2c_json_out_hex(j, c->data, c->size);
        break;
    case L2C_CELL_VECTOR:
        l2c_json_out_floats(j, c->data, c->size);
        break;
    }
}

/* ---- The renderer ---------------------------------------------------------------------------- */

// A cell that waits for the widths of a table.
typedef struct held {
    char *text;
    size_t columns; // on the terminal
    bool right;
} held;

struct l2c_render {
    l2c_render_options o;
    size_t columns;
    char **names;
    size_t *widths;
    size_t names_width; // the widest, for LINE
    held *sample;       // [sample_rows, columns], until widths are settled
    size_t sample_rows, sample_room;
    bool settled;
    uint64_t rows;
    l2c_json_out json;
};

void l2c_render_options_init(l2c_render_options *o, FILE *out) {
    bool tty = isatty(fileno(out)) != 0;
    *o = (l2c_render_options){
        .out = out,
        .mode = tty ? L2C_RENDER_BOX : L2C_RENDER_COLUMN,
        .headers = true,
        .colour = l2c_term_colour(out),
        .null = "",
        .separator = ",",
        .columns_max = tty ? l2c_term_columns(out) : 0,
        .sample = 1000,
    };
}

static bool is_tabular(const l2c_render *r) {
    return r->o.mode == L2C_RENDER_BOX || r->o.mode == L2C_RENDER_TABLE ||
           r->o.mode == L2C_RENDER_COLUMN;
}

static void render_free(l2c_render *r) {
    for (size_t i = 0; r->names != NULL && i < r->columns; i++) {
        free(r->names[i]);
    }
    for (size_t i = 0; i < r->sample_rows * r->columns; i++) {
        free(r->sample[i].text);
    }
    free(r->names);
    free(r->widths);
    free(r->sample);
    free(r);
}

static const char *bold(const l2c_render *r) {
    return r->o.colour ? "\033[1m" : "";
}

static const char *dim(const l2c_render *r) {
    return r->o.colour ? "\033[2m" : "";
}

static const char *plain(const l2c_render *r) {
    return r->o.colour ? "\033[0m" : "";
}

/* ---- Tables ---------------------------------------------------------------------------------- */

static void pad(FILE *f, size_t n, const char *with) {
    for (size_t i = 0; i < n; i++) {
        fputs(with, f);
    }
}

// ┌──┬──┐, ├──┼──┤ or └──┴──┘; +--+--+ in ASCII.
static void draw_rule(const l2c_render *r, const char *left, const char *cross, const char *right) {
    bool box = r->o.mode == L2C_RENDER_BOX;
    fputs(dim(r), r->o.out);
    for (size_t i = 0; i < r->columns; i++) {
        fputs(box ? (i == 0 ? left : cross) : "+", r->o.out);
        pad(r->o.out, r->widths[i] + 2, box ? "─" : "-");
    }
    fprintf(r->o.out, "%s%s\n", box ? right : "+", plain(r));
}

static void draw_row(const l2c_render *r, const held *cells, const char *style) {
    bool lines = r->o.mode != L2C_RENDER_COLUMN;
    const char *bar = r->o.mode == L2C_RENDER_BOX ? "│" : "|";
    FILE *f = r->o.out;
    for (size_t i = 0; i < r->columns; i++) {
        const held *c = &cells[i];
        size_t bytes = strlen(c->text), columns = c->columns;
        bool cut = r->o.columns_max > 0 && r->widths[i] > 1 && columns > r->widths[i];
        if (cut) {
            bytes = l2c_term_fit(c->text, bytes, r->widths[i] - 1, &columns);
            columns++;
        }
        size_t room = columns < r->widths[i] ? r->widths[i] - columns : 0;
        if (lines) {
            fprintf(f, "%s%s%s ", dim(r), bar, plain(r));
        } else if (i > 0) {
            fputs("  ", f);
        }
        if (c->right) {
            pad(f, room, " ");
        }
        fprintf(f, "%s%.*s%s%s", style, (int)bytes, c->text, cut ? "…" : "",
                *style != '\0' ? plain(r) : "");
        // Without lines nothing follows the last column, so it needs no padding.
        if (!c->right && (lines || i + 1 < r->columns)) {
            pad(f, room, " ");
        }
        if (lines) {
            fputc(' ', f);
        }
    }
    if (lines) {
        fprintf(f, "%s%s%s", dim(r), bar, plain(r));
    }
    fputc('\n', f);
}

static bool draw_header(l2c_render *r) {
    held *cells = calloc(r->columns, sizeof *cells);
    if (cells == NULL) {
        return false;
    }
    for (size_t i = 0; i < r->columns; i++) {
        // A name stands over its values: right where the first row has a number.
        bool right = r->sample_rows > 0 && r->sample[i].right;
        cells[i] = (held){ r->names[i], l2c_term_width(r->names[i], strlen(r->names[i])), right };
    }
    draw_row(r, cells, bold(r));
    free(cells);
    return true;
}

// Takes columns from the widest until a row fits; what is 8 wide or less stays readable.
static void fit_widths(l2c_render *r) {
    size_t between = r->o.mode == L2C_RENDER_COLUMN ? 2 : 3;
    size_t total = 1;
    for (size_t i = 0; i < r->columns; i++) {
        total += r->widths[i] + between;
    }
    while (total > r->o.columns_max) {
        size_t widest = 0;
        for (size_t i = 1; i < r->columns; i++) {
            widest = r->widths[i] > r->widths[widest] ? i : widest;
        }
        if (r->widths[widest] <= 8) {
            return;
        }
        r->widths[widest]--;
        total--;
    }
}

// Widths from the rows held so far, then these rows.
static bool settle(l2c_render *r) {
    r->settled = true;
    bool lines = r->o.mode != L2C_RENDER_COLUMN;
    for (size_t i = 0; i < r->columns; i++) {
        size_t most = r->o.headers ? l2c_term_width(r->names[i], strlen(r->names[i])) : 0;
        for (size_t row = 0; row < r->sample_rows; row++) {
            size_t columns = r->sample[row * r->columns + i].columns;
            most = columns > most ? columns : most;
        }
        r->widths[i] = most;
    }
    if (r->o.columns_max > 0) {
        fit_widths(r);
    }
    if (lines) {
        draw_rule(r, "┌", "┬", "┐");
    }
    if (r->o.headers) {
        if (!draw_header(r)) {
            return false;
        }
        if (lines) {
            draw_rule(r, "├", "┼", "┤");
        }
    }
    for (size_t row = 0; row < r->sample_rows; row++) {
        draw_row(r, r->sample + row * r->columns, "");
    }
    return true;
}

// A cell for a table, cut to width_max.
static bool hold(const l2c_render *r, held *out, const l2c_cell *cell) {
    text t;
    if (!text_init(&t, cell, true, r->o.null)) {
        return false;
    }
    size_t columns = l2c_term_width(t.s, t.n);
    size_t bytes = t.n;
    bool cut = r->o.width_max > 1 && columns > r->o.width_max;
    if (cut) {
        bytes = l2c_term_fit(t.s, t.n, r->o.width_max - 1, &columns);
        columns++;
    }
    out->text = malloc(bytes + sizeof "…");
    if (out->text != NULL) {
        memcpy(out->text, t.s, bytes);
        strcpy(out->text + bytes, cut ? "…" : "");
    }
    out->columns = columns;
    out->right = is_number(cell->type);
    text_fini(&t);
    return out->text != NULL;
}

static bool sample_room(l2c_render *r) {
    if (r->sample_rows < r->sample_room) {
        return true;
    }
    size_t room = r->sample_room == 0 ? 16 : r->sample_room * 2;
    held *more = realloc(r->sample, room * r->columns * sizeof *more);
    if (more == NULL) {
        return false;
    }
    r->sample = more;
    r->sample_room = room;
    return true;
}

static bool tabular_row(l2c_render *r, const l2c_cell *cells) {
    if (!sample_room(r)) {
        return false;
    }
    // After settling, the place behind the sample serves for one row at a time.
    held *row = r->sample + r->sample_rows * r->columns;
    for (size_t i = 0; i < r->columns; i++) {
        if (!hold(r, &row[i], &cells[i])) {
            while (i > 0) {
                free(row[--i].text);
            }
            return false;
        }
    }
    if (!r->settled) {
        r->sample_rows++;
        return r->sample_rows < r->o.sample || settle(r);
    }
    draw_row(r, row, "");
    for (size_t i = 0; i < r->columns; i++) {
        free(row[i].text);
    }
    return true;
}

/* ---- Forms for programs ---------------------------------------------------------------------- */

static void csv_text(FILE *f, const char *s, size_t n, const char *separator) {
    bool quote = n > 0 && (s[0] == ' ' || s[n - 1] == ' ');
    for (size_t i = 0; i < n && !quote; i++) {
        quote = s[i] == '"' || s[i] == '\n' || s[i] == '\r' || strchr(separator, s[i]) != NULL;
    }
    if (!quote) {
        fwrite(s, 1, n, f);
        return;
    }
    fputc('"', f);
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '"') {
            fputc('"', f);
        }
        fputc(s[i], f);
    }
    fputc('"', f);
}

static void tsv_text(FILE *f, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\t' || s[i] == '\n' || s[i] == '\r' || s[i] == '\\') {
            fputc('\\', f);
            fputc(s[i] == '\t' ? 't' : s[i] == '\n' ? 'n' : s[i] == '\r' ? 'r' : '\\', f);
        } else {
            fputc(s[i], f);
        }
    }
}

static void html_text(FILE *f, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        switch (s[i]) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        default:
            fputc(s[i], f);
        }
    }
}

static void delimited_text(const l2c_render *r, const char *s, size_t n) {
    if (r->o.mode == L2C_RENDER_CSV) {
        csv_text(r->o.out, s, n, r->o.separator);
    } else {
        tsv_text(r->o.out, s, n);
    }
}

static void delimited_header(const l2c_render *r) {
    for (size_t i = 0; i < r->columns; i++) {
        fputs(i == 0 ? "" : r->o.mode == L2C_RENDER_CSV ? r->o.separator : "\t", r->o.out);
        delimited_text(r, r->names[i], strlen(r->names[i]));
    }
    fputc('\n', r->o.out);
}

static bool delimited_row(const l2c_render *r, const l2c_cell *cells) {
    for (size_t i = 0; i < r->columns; i++) {
        text t;
        if (!text_init(&t, &cells[i], false, "")) {
            return false;
        }
        fputs(i == 0 ? "" : r->o.mode == L2C_RENDER_CSV ? r->o.separator : "\t", r->o.out);
        delimited_text(r, t.s, t.n);
        text_fini(&t);
    }
    fputc('\n', r->o.out);
    return true;
}

static void json_row(l2c_render *r, const l2c_cell *cells) {
    if (r->o.mode == L2C_RENDER_JSON && r->rows > 0) {
        fputs(",\n ", r->o.out);
    }
    r->json.comma = false;
    l2c_json_out_open(&r->json, '{');
    for (size_t i = 0; i < r->columns; i++) {
        l2c_json_out_key(&r->json, r->names[i]);
        print_json(&r->json, &cells[i]);
    }
    l2c_json_out_close(&r->json, '}');
    if (r->o.mode == L2C_RENDER_JSONL) {
        fputc('\n', r->o.out);
    }
}

static bool line_row(const l2c_render *r, const l2c_cell *cells) {
    if (r->rows > 0) {
        fputc('\n', r->o.out);
    }
    for (size_t i = 0; i < r->columns; i++) {
        text t;
        if (!text_init(&t, &cells[i], true, r->o.null)) {
            return false;
        }
        pad(r->o.out, r->names_width - l2c_term_width(r->names[i], strlen(r->names[i])), " ");
        fprintf(r->o.out, "%s%s%s = %s\n", bold(r), r->names[i], plain(r), t.s);
        text_fini(&t);
    }
    return true;
}

static void html_header(const l2c_render *r) {
    fputs("<table>\n", r->o.out);
    if (!r->o.headers) {
        return;
    }
    fputs("<tr>", r->o.out);
    for (size_t i = 0; i < r->columns; i++) {
        fputs("<th>", r->o.out);
        html_text(r->o.out, r->names[i], strlen(r->names[i]));
        fputs("</th>", r->o.out);
    }
    fputs("</tr>\n", r->o.out);
}

static bool html_row(const l2c_render *r, const l2c_cell *cells) {
    fputs("<tr>", r->o.out);
    for (size_t i = 0; i < r->columns; i++) {
        text t;
        if (!text_init(&t, &cells[i], false, "")) {
            return false;
        }
        fputs("<td>", r->o.out);
        html_text(r->o.out, t.s, t.n);
        fputs("</td>", r->o.out);
        text_fini(&t);
    }
    fputs("</tr>\n", r->o.out);
    return true;
}

/* ---- The door -------------------------------------------------------------------------------- */

// What stands before the first row of a form that does not wait.
static void begin(l2c_render *r) {
    switch (r->o.mode) {
    case L2C_RENDER_CSV:
    case L2C_RENDER_TSV:
        if (r->o.headers) {
            delimited_header(r);
        }
        break;
    case L2C_RENDER_JSON:
        fputc('[', r->o.out);
        break;
    case L2C_RENDER_HTML:
        html_header(r);
        break;
    default:
        break;
    }
}

l2c_render *l2c_render_new(const l2c_render_options *o, const char *const *names, size_t columns) {
    l2c_render *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return NULL;
    }
    r->o = *o;
    r->columns = columns;
    r->names = calloc(columns + 1, sizeof *r->names);
    r->widths = calloc(columns + 1, sizeof *r->widths);
    if (r->names == NULL || r->widths == NULL) {
        render_free(r);
        return NULL;
    }
    for (size_t i = 0; i < columns; i++) {
        r->names[i] = l2c_term_clean(names[i], strlen(names[i]));
        if (r->names[i] == NULL) {
            render_free(r);
            return NULL;
        }
        size_t width = l2c_term_width(r->names[i], strlen(r->names[i]));
        r->names_width = width > r->names_width ? width : r->names_width;
    }
    l2c_json_out_init(&r->json, o->out);
    begin(r);
    return r;
}

bool l2c_render_row(l2c_render *r, const l2c_cell *cells) {
    bool ok = true;
    switch (r->o.mode) {
    case L2C_RENDER_BOX:
    case L2C_RENDER_TABLE:
    case L2C_RENDER_COLUMN:
        ok = tabular_row(r, cells);
        break;
    case L2C_RENDER_CSV:
    case L2C_RENDER_TSV:
        ok = delimited_row(r, cells);
        break;
    case L2C_RENDER_JSON:
    case L2C_RENDER_JSONL:
        json_row(r, cells);
        break;
    case L2C_RENDER_LINE:
        ok = line_row(r, cells);
        break;
    case L2C_RENDER_HTML:
        ok = html_row(r, cells);
        break;
    }
    r->rows++;
    return ok && ferror(r->o.out) == 0;
}

bool l2c_render_end(l2c_render *r) {
    if (r == NULL) {
        return false;
    }
    bool ok = true;
    if (is_tabular(r)) {
        ok = r->settled || settle(r);
        if (ok && r->o.mode != L2C_RENDER_COLUMN) {
            draw_rule(r, "└", "┴", "┘");
        }
    } else if (r->o.mode == L2C_RENDER_JSON) {
        fputs("]\n", r->o.out);
    } else if (r->o.mode == L2C_RENDER_HTML) {
        fputs("</table>\n", r->o.out);
    }
    ok = fflush(r->o.out) == 0 && ferror(r->o.out) == 0 && ok;
    render_free(r);
    return ok;
}

uint64_t l2c_render_rows(const l2c_render *r) {
    return r->rows;
}

static l2cdb_status fail(l2cdb_error *err, l2cdb_status code, const char *message) {
    l2cdb_error_clear(err);
    err->code = code;
    snprintf(err->message, sizeof err->message, "%s", message);
    return code;
}

/* The rows from the one that *s stands on to the last. */
static l2cdb_status statement_rows(l2c_render *r, l2c_cell *cells, l2cdb_stmt *s, bool row,
                                   l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    while (rc == L2CDB_OK && row) {
        for (size_t i = 0; i < r->columns; i++) {
            cells[i] = l2c_cell_column(s, (int)i);
        }
        if (!l2c_render_row(r, cells)) {
            return fail(err, L2CDB_E_IO, "could not write the output");
        }
        rc = l2cdb_step(s, &row, err);
    }
    return rc;
}

l2cdb_status l2c_render_statement(const l2c_render_options *o, l2cdb_stmt *s, uint64_t *rows,
                                  l2cdb_error *err) {
    size_t columns = (size_t)l2cdb_column_count(s);
    const char **names = calloc(columns + 1, sizeof *names);
    l2c_cell *cells = calloc(columns + 1, sizeof *cells);
    l2c_render *r = NULL;
    bool row = false;
    l2cdb_status rc = l2cdb_step(s, &row, err);
    if (rc != L2CDB_OK) { // an answer that never came has no header
        free(names);
        free(cells);
        return rc;
    }
    if (names != NULL && cells != NULL) {
        for (size_t i = 0; i < columns; i++) {
            names[i] = l2cdb_column_name(s, (int)i);
        }
        r = l2c_render_new(o, names, columns);
    }
    if (r == NULL) {
        rc = fail(err, L2CDB_E_NOMEM, "out of memory");
    } else {
        rc = statement_rows(r, cells, s, row, err);
        if (rows != NULL) {
            *rows = r->rows;
        }
        if (!l2c_render_end(r) && rc == L2CDB_OK) {
            rc = fail(err, L2CDB_E_IO, "could not write the output");
        }
    }
    free(names);
    free(cells);
    return rc;
}
