/* JSON in, through jansson: strict RFC 8259, duplicate keys refused, depth and size bounded.
 *
 * This header is the only place that includes <jansson.h> below the cli; json_t is jansson's own
 * type. The getters give errors that name the file, the key, what was found and what was expected.
 * Output is written with l2c_buf_json_string (mem.h): printing needs no tree. */
#ifndef L2C_JSON_H
#define L2C_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/mem.h"

/* Parses exactly one value of n bytes. `what` names the input in errors. *out is owned by the
 * caller (json_decref). Refused: trailing text, duplicate keys, invalid UTF-8, NUL in strings,
 * nesting deeper than jansson's limit. E_FORMAT with the byte offset. */
l2cdb_status l2c_json_parse(json_t **out, const char *text, size_t n, const char *what,
                            l2cdb_error *err);
/* The same from a file of at most size_max bytes. */
l2cdb_status l2c_json_read(json_t **out, const char *path, size_t size_max, l2cdb_error *err);

/* Members of an object. A missing key leaves *out as it was (its default) when `required` is
 * false, and is E_FORMAT otherwise; a wrong type or range always is. null counts as missing. */
l2cdb_status l2c_json_get_size(const json_t *o, const char *key, size_t *out, size_t least,
                               size_t most, bool required, const char *what, l2cdb_error *err);
l2cdb_status l2c_json_get_double(const json_t *o, const char *key, double *out, bool required,
                                 const char *what, l2cdb_error *err);
l2cdb_status l2c_json_get_bool(const json_t *o, const char *key, bool *out, bool required,
                               const char *what, l2cdb_error *err);
/* Borrowed from the tree. */
l2cdb_status l2c_json_get_string(const json_t *o, const char *key, const char **out, bool required,
                                 const char *what, l2cdb_error *err);

#endif
