/* Which photo a caption file means: names as people write them → ids. */
#ifndef L2C_PHOTO_NAMES_H
#define L2C_PHOTO_NAMES_H

#include "engine/engine.h"

typedef struct l2c_photo_names l2c_photo_names;

/* Every path of the database. dirs: where relative names may start (copied). */
l2cdb_status l2c_photo_names_new(l2c_photo_names **out, l2cdb *db, const char *const *dirs,
                                 size_t dirs_count, l2cdb_error *err);
void l2c_photo_names_free(l2c_photo_names *n);
/* The full path, the name below one of the dirs, or else the end of exactly one photo's path
 * ("a.jpg", "2020/a.jpg"). 0: none, or several photos. */
int64_t l2c_photo_names_find(const l2c_photo_names *n, const char *name);

#endif
