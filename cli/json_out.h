/* JSON to a stream, value by value. Nothing is kept, so a million rows cost no memory; and numbers
 * come out as people write them (0.7, not 0.69999999999999996 as jansson would). */
#ifndef L2C_JSON_OUT_H
#define L2C_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* One document being written. Commas are put where they belong. */
typedef struct l2c_json_out {
    FILE *f;
    bool comma; /* the next value or key needs one before it */
} l2c_json_out;

void l2c_json_out_init(l2c_json_out *j, FILE *f);
/* open is '{' or '[', close '}' or ']'. A key is followed by exactly one value. */
void l2c_json_out_open(l2c_json_out *j, char open);
void l2c_json_out_close(l2c_json_out *j, char close);
void l2c_json_out_key(l2c_json_out *j, const char *key);

/* n bytes; what is not UTF-8 becomes U+FFFD. */
void l2c_json_out_text(l2c_json_out *j, const char *s, size_t n);
/* NUL-terminated; NULL becomes null. */
void l2c_json_out_string(l2c_json_out *j, const char *s);
void l2c_json_out_int(l2c_json_out *j, int64_t v);
void l2c_json_out_uint(l2c_json_out *j, uint64_t v);
/* `decimals` ≥ 0: that many at most, trailing zeros dropped; -1: the shortest text that reads back
 * as v. Infinities and NaN, which JSON does not have, become null. */
void l2c_json_out_double(l2c_json_out *j, double v, int decimals);
void l2c_json_out_bool(l2c_json_out *j, bool v);
void l2c_json_out_null(l2c_json_out *j);
/* An array of n f32, each with the fewest digits that read back as the same f32. `v` need not be
 * aligned. */
void l2c_json_out_floats(l2c_json_out *j, const void *v, size_t n);
/* n bytes as a string of 2n hexadecimal digits. */
void l2c_json_out_hex(l2c_json_out *j, const void *data, size_t n);

/* The number text used above, for other formats: into out[0..32). */
void l2c_json_out_number(char out[32], double v, int decimals);

#endif
