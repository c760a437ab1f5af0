/* Logging: the library speaks through one hook with a level; the program decides where it goes.
 * One line per event, facts as key=value with units. Never called per row or inside a layer. */
#ifndef L2C_LOG_H
#define L2C_LOG_H

#include "engine/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum l2cdb_log_level {
    L2CDB_LOG_ERROR,
    L2CDB_LOG_WARN,
    L2CDB_LOG_INFO,
    L2CDB_LOG_DEBUG,
} l2cdb_log_level;

/* Called from any thread, one call at a time; must not call back into l2cdb. */
typedef void (*l2cdb_log_fn)(void *ctx, l2cdb_log_level level, const char *line);

/* Process-wide; NULL (the default) discards. `most` is the highest level that is passed on. */
L2CDB_API void l2cdb_log_set(l2cdb_log_fn fn, void *ctx, l2cdb_log_level most);

void l2c_log(l2cdb_log_level level, const char *fmt, ...) L2CDB_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
