/* What the terminal can do: its size, colours, and how wide a string is on it. */
#ifndef L2C_TERM_H
#define L2C_TERM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* True if `f` is a terminal that takes colours: NO_COLOR unset or empty, TERM not "dumb". */
bool l2c_term_colour(FILE *f);

/* Columns and rows of the terminal behind `f`; 80 × 24 when it is none or does not say. */
size_t l2c_term_columns(FILE *f);
size_t l2c_term_rows(FILE *f);

/* Columns that n bytes of UTF-8 take. Combining marks take none, wide East Asian characters and
 * emoji two; bytes that are not UTF-8 count one each. */
size_t l2c_term_width(const char *s, size_t n);

/* The longest prefix of s[0..n) that fits into `columns`, in bytes; *used (may be NULL) is the
 * number of columns it takes. */
size_t l2c_term_fit(const char *s, size_t n, size_t columns, size_t *used);

/* Writes n bytes so that they cannot steer the terminal: control characters and bytes that are not
 * UTF-8 become a visible escape ("\n", "\x1b"). Returns a malloc'd NUL-terminated string, NULL
 * without memory. */
char *l2c_term_clean(const char *s, size_t n);

#endif
