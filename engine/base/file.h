/* Files: whole reads, read-only maps, and replacement that survives a crash.
 *
 * A file of ours is never changed in place: it is written beside its name, synced, renamed over
 * it, and the directory is synced. After any crash the name holds the old bytes or the new ones. */
#ifndef L2C_FILE_H
#define L2C_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/mem.h"

/* A read-only view of a file. `data` is NULL only for an empty file. Any number of threads may
 * read it. A file that shrinks while mapped raises SIGBUS, as with every mapping. */
typedef struct l2c_map {
    const uint8_t *data;
    size_t size;
} l2c_map;

/* E_NOTFOUND, E_DENIED, E_IO, E_INVALID for a directory or device. */
l2cdb_status l2c_map_open(l2c_map *map, const char *path, l2cdb_error *err);
void l2c_map_close(l2c_map *map);

/* Appends the whole file to `out`; E_LIMIT if it is larger than size_max bytes. Reads pipes too. */
l2cdb_status l2c_file_read(l2c_buf *out, const char *path, size_t size_max, l2cdb_error *err);

/* A file being written beside `path`; nothing is visible under `path` until commit. */
typedef struct l2c_writer {
    int fd;
    char *path, *temp_path;
    uint64_t size;
} l2c_writer;

l2cdb_status l2c_writer_open(l2c_writer *w, const char *path, l2cdb_error *err);
l2cdb_status l2c_writer_write(l2c_writer *w, const void *data, size_t size, l2cdb_error *err);
/* Overwrites bytes already written, for headers that hold a size or checksum of what follows. */
l2cdb_status l2c_writer_patch(l2c_writer *w, uint64_t offset, const void *data, size_t size,
                              l2cdb_error *err);
/* fsync, rename over path, fsync the directory. The writer is closed on every outcome; after an
 * error `path` still holds what it held. */
l2cdb_status l2c_writer_commit(l2c_writer *w, l2cdb_error *err);
/* Removes the temporary file. Accepts a writer that was closed or zeroed. */
void l2c_writer_abort(l2c_writer *w);

/* open → write → commit in one call. */
l2cdb_status l2c_file_replace(const char *path, const void *data, size_t size, l2cdb_error *err);

bool l2c_path_is_dir(const char *path);
bool l2c_path_exists(const char *path);
/* "dir/name" in a fresh string (caller frees with l2c_free); NULL without memory. */
char *l2c_path_join(const char *dir, const char *name);
/* The part after the last '/', borrowed from `path`. */
const char *l2c_path_base(const char *path);

#endif
