/* Status codes and the error object of l2cdb; part of the public interface through l2cdb.h.
 *
 * Every function that can fail returns l2cdb_status, 0 for success, and takes a `l2cdb_error *`
 * (may be NULL) that it fills where the fact is known: what was found, what was expected, and in
 * `hint` what the caller can do about it. Nothing is allocated; an error is a plain value. */
#ifndef L2CDB_STATUS_H
#define L2CDB_STATUS_H

#include <stdarg.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define L2CDB_API __attribute__((visibility("default")))
#define L2CDB_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define L2CDB_API
#define L2CDB_PRINTF(f, a)
#endif

/* One list gives the enum, the names and the texts. Codes are stable: append only. */
#define L2CDB_STATUS_MAP(X)                                                                        \
    X(OK, 0, "done")                                                                               \
    X(E_INVALID, 1, "invalid argument or input")                                                   \
    X(E_NOMEM, 2, "out of memory")                                                                 \
    X(E_IO, 3, "input or output failed")                                                           \
    X(E_NOTFOUND, 4, "not found")                                                                  \
    X(E_EXISTS, 5, "exists already")                                                               \
    X(E_FORMAT, 6, "malformed data")                                                               \
    X(E_UNSUPPORTED, 7, "not supported")                                                           \
    X(E_MISMATCH, 8, "parts do not fit together")                                                  \
    X(E_LIMIT, 9, "a limit was exceeded")                                                          \
    X(E_CANCELLED, 10, "cancelled")                                                                \
    X(E_BUSY, 11, "busy")                                                                          \
    X(E_FULL, 12, "disk full")                                                                     \
    X(E_DENIED, 13, "permission denied")                                                           \
    X(E_VERSION, 14, "written by another version")                                                 \
    X(E_CORRUPT, 15, "damaged data")                                                               \
    X(E_SQL, 16, "SQL error")                                                                      \
    X(E_TIMEOUT, 17, "time limit exceeded")                                                        \
    X(E_INTERNAL, 18, "internal error")

typedef enum l2cdb_status {
#define X(name, value, text) L2CDB_##name = value,
    L2CDB_STATUS_MAP(X)
#undef X
} l2cdb_status;

#define L2CDB_ERROR_MESSAGE_BYTES 640
#define L2CDB_ERROR_HINT_BYTES 320

typedef struct l2cdb_error {
    l2cdb_status code;
    int64_t offset;                          /* byte offset in the user's input, or -1 */
    char message[L2CDB_ERROR_MESSAGE_BYTES]; /* UTF-8, one line, no final stop */
    char hint[L2CDB_ERROR_HINT_BYTES];       /* the remedy; "" if there is none */
} l2cdb_error;

/* "E_INVALID" and "invalid argument or input"; never NULL, also for unknown codes. */
L2CDB_API const char *l2cdb_status_name(l2cdb_status code);
L2CDB_API const char *l2cdb_status_text(l2cdb_status code);

/* Resets `err` to OK; NULL is accepted. */
L2CDB_API void l2cdb_error_clear(l2cdb_error *err);

/* Inside the library. */

/* Fills `err` (NULL accepted; hint is cleared, offset set to -1) and returns `code`, so that a
 * failing function can say `return l2c_fail(err, L2CDB_E_FORMAT, "row %zu: ...", i);`. */
l2cdb_status l2c_fail(l2cdb_error *err, l2cdb_status code, const char *fmt, ...) L2CDB_PRINTF(3, 4);

/* Adds the remedy to an error just filled; returns err->code, or E_INTERNAL if err is NULL. */
l2cdb_status l2c_hint(l2cdb_error *err, const char *fmt, ...) L2CDB_PRINTF(2, 3);

/* Puts "context: " before the message of an error that comes from below; returns err->code. */
l2cdb_status l2c_context(l2cdb_error *err, const char *fmt, ...) L2CDB_PRINTF(2, 3);

/* The errno of a failed system call as a status: ENOSPC → E_FULL, ENOENT → E_NOTFOUND, … */
l2cdb_status l2c_fail_errno(l2cdb_error *err, int errno_value, const char *fmt, ...)
    L2CDB_PRINTF(3, 4);

/* E_NOMEM with the number of bytes that were asked for. */
l2cdb_status l2c_fail_nomem(l2cdb_error *err, uint64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
