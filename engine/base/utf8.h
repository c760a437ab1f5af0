/* UTF-8 decoding, encoding and validation (RFC 3629: no overlong forms, no surrogates). */
#ifndef L2C_UTF8_H
#define L2C_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes the code point at s[0..n); returns the bytes it takes (1–4), or 0 if they are not valid
 * UTF-8 or n is 0 (then *code is untouched). */
size_t l2c_utf8_decode(const char *s, size_t n, uint32_t *code);
/* Writes code as UTF-8 into out[0..4); returns the bytes written, 0 for a surrogate or > U+10FFFF.
 */
size_t l2c_utf8_encode(uint32_t code, char out[4]);
/* True if all n bytes are valid; else *bad (may be NULL) is the offset of the first bad byte. */
bool l2c_utf8_valid(const char *s, size_t n, size_t *bad);
/* True for a text of nothing but spaces, tabs and line ends. */
bool l2c_utf8_blank(const char *s);

#endif
