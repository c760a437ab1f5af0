/* What db.c needs of its neighbours to make and unmake a handle; nobody else includes it. */
#ifndef L2C_OPEN_H
#define L2C_OPEN_H

#include "engine/engine.h"

l2cdb_status l2c_query_cache_new(l2c_query_cache **out, l2cdb_error *err);
void l2c_query_cache_free(l2c_query_cache *c); /* NULL accepted */

/* After a writable open: removes unfinished index files of processes that are dead. */
void l2c_care_sweep(const l2cdb *db);
/* Before close: waits for a build that a writer of this handle caused, cancels others. */
void l2c_view_stop_builds(l2cdb *db);

#endif
