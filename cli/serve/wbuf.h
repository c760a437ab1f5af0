/* A growing run of bytes with the JSON writing that replies need.
 *
 * Growth that fails sets `failed` and the contents stay as they were; later appends do nothing. A
 * run of appends therefore needs one look at the end (sticky status), and a reply whose buffer
 * failed becomes a 503. A zeroed wbuf is empty and valid. Not for several threads at a time. */
#ifndef L2C_WBUF_H
#define L2C_WBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct wbuf {
    char *data; /* NULL while empty */
    size_t size, room;
    bool failed; /* an allocation did not succeed */
} wbuf;

void l2c_wbuf_fini(wbuf *b); /* frees and zeroes */
bool l2c_wbuf_reserve(wbuf *b, size_t more);
void l2c_wbuf_put(wbuf *b, const void *data, size_t n);
void l2c_wbuf_str(wbuf *b, const char *s);
void l2c_wbuf_char(wbuf *b, char c);
void l2c_wbuf_printf(wbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first n bytes. */
void l2c_wbuf_drop(wbuf *b, size_t n);
/* Ends the text with a NUL that is not counted in size; "" if that failed. */
const char *l2c_wbuf_cstr(wbuf *b);

/* A JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. NULL becomes null. */
void l2c_wbuf_json(wbuf *b, const char *s);
void l2c_wbuf_json_n(wbuf *b, const char *s, size_t n);
void l2c_wbuf_int(wbuf *b, int64_t v);
/* At most `decimals` digits after the point, trailing zeros dropped; NaN and infinity are null. */
void l2c_wbuf_fixed(wbuf *b, double v, int decimals);
/* Digits that read back as the same double. */
void l2c_wbuf_double(wbuf *b, double v);
/* Digits that read back as the same f32, as a JSON array of n numbers. */
void l2c_wbuf_floats(wbuf *b, const float *v, size_t n);
/* Base64 with padding, without quotes. */
void l2c_wbuf_base64(wbuf *b, const void *data, size_t n);

/* Reads base64 (padding optional, both alphabets, no spaces) into out[0 .. n / 4 * 3 + 2]; returns
 * the number of bytes or SIZE_MAX if it is not base64. */
size_t l2c_wbuf_base64_decode(void *out, const char *text, size_t n);

#endif
