/* Tuning reports: JSON and a small SVG; see tune_report.h. */
#include "engine/tune_report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "engine/base/file.h"

/* ---- JSON ---- */

static void recall_json(l2c_buf *b, const char *name, const l2cdb_recall_at *r) {
    l2c_buf_printf(b, "\"%s\":{\"r1\":%.2f,\"r5\":%.2f,\"r10\":%.2f,\"median_rank\":%.1f}", name,
                   r->r1, r->r5, r->r10, r->median_rank);
}

static void eval_json(l2c_buf *b, const char *name, const l2cdb_eval_report *e) {
    l2c_buf_printf(b, ",\"%s\":{\"images\":%" PRIu64 ",\"captions\":%" PRIu64 ",", name, e->images,
                   e->captions);
    recall_json(b, "t2i", &e->t2i);
    l2c_buf_putc(b, ',');
    recall_json(b, "i2t", &e->i2t);
    l2c_buf_putc(b, '}');
}

static void report_members(l2c_buf *b, const l2cdb_tune_report *r) {
    l2c_buf_printf(b,
                   "\"generation\":%" PRId64 ",\"promoted\":%s,\"photos\":%" PRIu64
                   ",\"pairs\":%" PRIu64 ",\"photos_val\":%" PRIu64 ",\"pairs_val\":%" PRIu64
                   ",\"pairs_unmatched\":%" PRIu64 ",\"steps\":%" PRIu64
                   ",\"loss_first\":%.5f,\"loss_last\":%.5f,\"seconds\":%.2f,\"pairs_per_s\":%.1f"
                   ",\"blend\":%.2f",
                   r->generation, r->promoted ? "true" : "false", r->photos, r->pairs,
                   r->photos_val, r->pairs_val, r->pairs_unmatched, r->steps, r->loss_first,
                   r->loss_last, r->seconds, r->pairs_per_s, r->blend);
    eval_json(b, "before", &r->before);
    eval_json(b, "after", &r->after);
    if (r->general_before.images > 0) {
        eval_json(b, "general_before", &r->general_before);
        eval_json(b, "general_after", &r->general_after);
    }
}

void l2c_tune_report_json(l2c_buf *out, const l2cdb_tune_report *r) {
    l2c_buf_putc(out, '{');
    report_members(out, r);
    l2c_buf_putc(out, '}');
}

static void epochs_json(l2c_buf *b, const l2cdb_tune_report *r, const l2c_tune_epoch *epochs,
                        size_t n) {
    l2c_buf_putc(b, '{');
    report_members(b, r);
    l2c_buf_puts(b, ",\"epochs\":[");
    for (size_t i = 0; i < n; i++) {
        l2c_buf_printf(b, "%s\n{\"epoch\":%zu,\"loss\":%.5f,\"lr\":%.3g", i > 0 ? "," : "", i + 1,
                       epochs[i].loss, epochs[i].lr);
        if (epochs[i].t2i_r10 >= 0) {
            l2c_buf_printf(b, ",\"t2i_r10\":%.2f,\"i2t_r10\":%.2f", epochs[i].t2i_r10,
                           epochs[i].i2t_r10);
        }
        l2c_buf_putc(b, '}');
    }
    l2c_buf_puts(b, "]}\n");
}

/* ---- SVG ---- */

enum { WIDTH = 640, HEIGHT = 300, LEFT = 48, RIGHT = 48, TOP = 28, BOTTOM = 36 };

typedef double (*value_fn)(const l2c_tune_epoch *e);

static double loss_of(const l2c_tune_epoch *e) {
    return e->loss;
}

static double t2i_of(const l2c_tune_epoch *e) {
    return e->t2i_r10;
}

static double i2t_of(const l2c_tune_epoch *e) {
    return e->i2t_r10;
}

static void curve(l2c_buf *b, const l2c_tune_epoch *epochs, size_t n, value_fn value, double most,
                  const char *colour) {
    l2c_buf_printf(b, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
    for (size_t i = 0; i < n; i++) {
        double x =
            LEFT + (double)(WIDTH - LEFT - RIGHT) * (n > 1 ? (double)i / (double)(n - 1) : 0);
        double y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value(&epochs[i]) / most;
        l2c_buf_printf(b, "%.1f,%.1f ", x, y);
    }
    l2c_buf_puts(b, "\"/>\n");
}

static void svg(l2c_buf *b, const l2cdb_tune_report *r, const l2c_tune_epoch *epochs, size_t n) {
    double most = 1e-9;
    for (size_t i = 0; i < n; i++) {
        most = epochs[i].loss > most ? epochs[i].loss : most;
    }
    l2c_buf_printf(b,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                   "font-family=\"sans-serif\" font-size=\"12\">\n"
                   "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
                   "<path d=\"M%d %dV%dH%d\" stroke=\"#888\" fill=\"none\"/>\n",
                   WIDTH, HEIGHT, LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT);
    l2c_buf_printf(
        b,
        "<text x=\"%d\" y=\"18\">generation %" PRId64
        ": <tspan fill=\"#c33\">loss</tspan>, R@10 held out <tspan fill=\"#36c\">text to "
        "photo</tspan>, <tspan fill=\"#293\">photo to text</tspan></text>\n",
        LEFT, r->generation);
    l2c_buf_printf(b, "<text x=\"4\" y=\"%d\" fill=\"#c33\">%.2f</text>\n", TOP + 4, most);
    l2c_buf_printf(b, "<text x=\"%d\" y=\"%d\" fill=\"#36c\">100 %%</text>\n", WIDTH - RIGHT + 4,
                   TOP + 4);
    l2c_buf_printf(b, "<text x=\"%d\" y=\"%d\">epoch 1</text>\n", LEFT, HEIGHT - 14);
    l2c_buf_printf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%zu</text>\n", WIDTH - RIGHT,
                   HEIGHT - 14, n);
    curve(b, epochs, n, loss_of, most, "#c33");
    if (n > 0 && epochs[0].t2i_r10 >= 0) {
        curve(b, epochs, n, t2i_of, 100, "#36c");
        curve(b, epochs, n, i2t_of, 100, "#293");
    }
    l2c_buf_puts(b, "</svg>\n");
}

static l2cdb_status write_one(const char *dir, int64_t generation, const char *extension,
                              const l2c_buf *b, l2cdb_error *err) {
    char name[64];
    snprintf(name, sizeof name, "tune-g%" PRId64 ".%s", generation, extension);
    char *path = l2c_path_join(dir, name);
    if (path == NULL || b->failed) {
        l2c_free(path);
        return l2c_fail_nomem(err, b->size);
    }
    l2cdb_status rc = l2c_file_replace(path, b->data, b->size, err);
    l2c_free(path);
    return rc;
}

l2cdb_status l2c_tune_report_write(const char *dir, const l2cdb_tune_report *r,
                                   const l2c_tune_epoch *epochs, size_t epochs_count,
                                   l2cdb_error *err) {
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) {
        return l2c_fail_errno(err, errno, "could not make the folder %s", dir);
    }
    l2c_buf b;
    l2c_buf_init(&b);
    epochs_json(&b, r, epochs, epochs_count);
    l2cdb_status rc = write_one(dir, r->generation, "json", &b, err);
    if (rc == L2CDB_OK) {
        l2c_buf_clear(&b);
        svg(&b, r, epochs, epochs_count);
        rc = write_one(dir, r->generation, "svg", &b, err);
    }
    l2c_buf_fini(&b);
    return rc;
}
