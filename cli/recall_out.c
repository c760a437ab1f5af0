#include "cli/recall_out.h"

l2c_render *l2c_recall_out_table(FILE *out) {
    static const char *const names[] = { "",    "search", "queries",    "R@1",
                                         "R@5", "R@10",   "median rank" };
    l2c_render_options o;
    l2c_render_options_init(&o, out);
    return l2c_render_new(&o, names, sizeof names / sizeof *names);
}

static void row(l2c_render *r, const char *label, const char *search, const l2cdb_recall_at *at) {
    l2c_render_row(r, (l2c_cell[]){ l2c_cell_text(label), l2c_cell_text(search),
                                    l2c_cell_int((int64_t)at->queries), l2c_cell_real(at->r1, 1),
                                    l2c_cell_real(at->r5, 1), l2c_cell_real(at->r10, 1),
                                    l2c_cell_real(at->median_rank, 0) });
}

void l2c_recall_out_rows(l2c_render *r, const char *label, const l2cdb_eval_report *report) {
    row(r, label, "text → photo", &report->t2i);
    row(r, label, "photo → text", &report->i2t);
}

static void json_recall(l2c_json_out *j, const char *key, const l2cdb_recall_at *at) {
    l2c_json_out_key(j, key);
    l2c_json_out_open(j, '{');
    l2c_json_out_key(j, "queries");
    l2c_json_out_uint(j, at->queries);
    l2c_json_out_key(j, "r1");
    l2c_json_out_double(j, at->r1, 3);
    l2c_json_out_key(j, "r5");
    l2c_json_out_double(j, at->r5, 3);
    l2c_json_out_key(j, "r10");
    l2c_json_out_double(j, at->r10, 3);
    l2c_json_out_key(j, "median_rank");
    l2c_json_out_double(j, at->median_rank, 1);
    l2c_json_out_close(j, '}');
}

void l2c_recall_out_json(l2c_json_out *j, const l2cdb_eval_report *report) {
    l2c_json_out_open(j, '{');
    l2c_json_out_key(j, "images");
    l2c_json_out_uint(j, report->images);
    l2c_json_out_key(j, "captions");
    l2c_json_out_uint(j, report->captions);
    json_recall(j, "t2i", &report->t2i);
    json_recall(j, "i2t", &report->i2t);
    l2c_json_out_key(j, "seconds");
    l2c_json_out_double(j, report->seconds, 3);
    l2c_json_out_close(j, '}');
}
