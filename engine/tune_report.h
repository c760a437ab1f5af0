/* What a tuning run leaves for people: JSON for the generation's record, and a folder with the
 * figures and their curves. */
#ifndef L2C_TUNE_REPORT_H
#define L2C_TUNE_REPORT_H

#include "engine/engine.h"

/* One epoch; recall is -1 where nothing was held out. */
typedef struct l2c_tune_epoch {
    double loss, lr;
    double t2i_r10, i2t_r10;
} l2c_tune_epoch;

/* The report as one JSON object, appended to `out`. */
void l2c_tune_report_json(l2c_buf *out, const l2cdb_tune_report *r);
/* dir/tune-g<N>.json (report and epochs) and dir/tune-g<N>.svg (loss and recall by epoch). dir is
 * made if its parent exists. */
l2cdb_status l2c_tune_report_write(const char *dir, const l2cdb_tune_report *r,
                                   const l2c_tune_epoch *epochs, size_t epochs_count,
                                   l2cdb_error *err);

#endif
