/* Captions of photos that are not in the database. Two texts of one name are worth learning from
 * all the same: that is how a language is taught from parallel captions. */
#ifndef L2C_TUNE_PARALLEL_H
#define L2C_TUNE_PARALLEL_H

#include "engine/engine.h"

/* Groups of at least two captions each. */
typedef struct l2c_parallel {
    size_t groups, captions;
    size_t *first; /* [groups+1]: captions of group i are first[i] up to first[i+1] */
    float *texts;  /* f32 [captions, text_width]: features of v's trunk */
} l2c_parallel;

/* Reads a file of captions (l2c_captions_read), leaves out those of known photos, groups the rest
 * by the name of their photo, and encodes them; nothing is stored. Empty if every photo is known.
 */
l2cdb_status l2c_parallel_read(l2c_parallel *p, l2cdb *db, l2c_view *v, const char *path,
                               l2cdb_progress_fn progress, void *ctx, l2cdb_error *err);
void l2c_parallel_fini(l2c_parallel *p);

#endif
