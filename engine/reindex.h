/* Bringing a generation up and switching to it; for tune.c. */
#ifndef L2C_REINDEX_H
#define L2C_REINDEX_H

#include "engine/engine.h"

/* Fills what generation g lacks (features, vectors, indexes), beside the active one and resumable,
 * then makes it the active one in one transaction. Nothing to do if it is active already. The
 * caller is between l2c_db_enter and leave. */
l2cdb_status l2c_reindex_to(l2cdb *db, int64_t generation, l2cdb_progress_fn progress, void *ctx,
                            l2cdb_error *err);

#endif
