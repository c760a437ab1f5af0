/* Recall figures as rows of a table and as JSON, for eval and tune. */
#ifndef L2C_RECALL_OUT_H
#define L2C_RECALL_OUT_H

#include "cli/json_out.h"
#include "cli/render.h"
#include "engine/l2cdb.h"

/* A table with the columns label, direction, queries, R@1, R@5, R@10, median rank. */
l2c_render *l2c_recall_out_table(FILE *out);
/* The two rows of one report: text → photo and photo → text. */
void l2c_recall_out_rows(l2c_render *r, const char *label, const l2cdb_eval_report *report);

/* {"images":…,"captions":…,"t2i":{"r1":…,"r5":…,"r10":…,"median_rank":…},"i2t":{…},"seconds":…},
 * recall in per cent. */
void l2c_recall_out_json(l2c_json_out *j, const l2cdb_eval_report *report);

#endif
