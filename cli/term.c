/* Terminal facts. Width follows utf8proc's tables (UAX #11 and emoji presentation), not wcwidth:
 * the answer must not depend on the locale of whoever runs the program. */
#include "cli/term.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <utf8proc.h>

bool l2c_term_colour(FILE *f) {
    const char *no_color = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    if (no_color != NULL && *no_color != '\0') {
        return false;
    }
    return isatty(fileno(f)) != 0 && term != NULL && strcmp(term, "dumb") != 0;
}

static bool window_size(FILE *f, struct winsize *size) {
    return ioctl(fileno(f), TIOCGWINSZ, size) == 0;
}

size_t l2c_term_columns(FILE *f) {
    struct winsize size;
    return window_size(f, &size) && size.ws_col > 0 ? size.ws_col : 80;
}

size_t l2c_term_rows(FILE *f) {
    struct winsize size;
    return window_size(f, &size) && size.ws_row > 0 ? size.ws_row : 24;
}

// Decodes one code point; a byte that is not UTF-8 is one column of its own (*code -1).
static size_t next_code(const char *s, size_t n, utf8proc_int32_t *code) {
    utf8proc_ssize_t used =
        utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, code);
    if (used <= 0) {
        *code = -1;
        return 1;
    }
    return (size_t)used;
}

size_t l2c_term_fit(const char *s, size_t n, size_t columns, size_t *used) {
    size_t at = 0, width = 0;
    while (at < n) {
        utf8proc_int32_t code;
        size_t bytes = next_code(s + at, n - at, &code);
        size_t w = code < 0 ? 1 : (size_t)utf8proc_charwidth(code);
        if (width + w > columns) {
            break;
        }
        width += w;
        at += bytes;
    }
    if (used != NULL) {
        *used = width;
    }
    return at;
}

size_t l2c_term_width(const char *s, size_t n) {
    size_t width;
    l2c_term_fit(s, n, SIZE_MAX, &width);
    return width;
}

char *l2c_term_clean(const char *s, size_t n) {
    char *out = malloc(n * 4 + 1); // the longest escape of one byte is "\x1b"
    if (out == NULL) {
        return NULL;
    }
    char *o = out;
    for (size_t at = 0; at < n;) {
        utf8proc_int32_t code;
        size_t bytes = next_code(s + at, n - at, &code);
        if (code == '\n' || code == '\t' || code == '\r') {
            *o++ = '\\';
            *o++ = code == '\n' ? 'n' : code == '\t' ? 't' : 'r';
        } else if (code < 0x20 || (code >= 0x7f && code < 0xa0)) {
            for (size_t i = 0; i < bytes; i++) {
                static const char hex[] = "0123456789abcdef";
                unsigned char byte = (unsigned char)s[at + i];
                *o++ = '\\';
                *o++ = 'x';
                *o++ = hex[byte >> 4];
                *o++ = hex[byte & 15];
            }
        } else {
            memcpy(o, s + at, bytes);
            o += bytes;
        }
        at += bytes;
    }
    *o = '\0';
    return out;
}
