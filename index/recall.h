/* How often the approximate answer is the exact one, on the index's own rows. */
#ifndef L2C_RECALL_H
#define L2C_RECALL_H

#include "index/handle.h"

/* See l2c_index_recall; on one snapshot, with `breadth` (ef_search or nprobe, 0: the base's own) as
 * the setting in force. `progress` as in l2c_index_build, phase "tune". */
l2cdb_status l2c_recall_measure(l2c_recall_result *out, const l2c_snapshot *snap, size_t breadth,
                                size_t k, size_t samples, double target, uint64_t seed,
                                l2c_index_progress_fn progress, void *ctx, l2cdb_error *err);

#endif
