#include "cli/serve/wbuf.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void l2c_wbuf_fini(wbuf *b) {
    free(b->data);
    *b = (wbuf){ 0 };
}

bool l2c_wbuf_reserve(wbuf *b, size_t more) {
    if (b->failed || more > SIZE_MAX / 2 - b->size) {
        b->failed = true;
        return false;
    }
    if (b->room - b->size >= more) {
        return true;
    }
    size_t room = b->room < 256 ? 256 : b->room;
    while (room - b->size < more) {
        room *= 2;
    }
    char *data = realloc(b->data, room);
    if (data == NULL) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->room = room;
    return true;
}

void l2c_wbuf_put(wbuf *b, const void *data, size_t n) {
    if (n > 0 && l2c_wbuf_reserve(b, n)) {
        memcpy(b->data + b->size, data, n);
        b->size += n;
    }
}

void l2c_wbuf_str(wbuf *b, const char *s) {
    l2c_wbuf_put(b, s, strlen(s));
}

void l2c_wbuf_char(wbuf *b, char c) {
    l2c_wbuf_put(b, &c, 1);
}

void l2c_wbuf_printf(wbuf *b, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n > 0 && l2c_wbuf_reserve(b, (size_t)n + 1)) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
}

void l2c_wbuf_drop(wbuf *b, size_t n) {
    b->size -= n;
    if (b->size > 0) {
        memmove(b->data, b->data + n, b->size);
    }
}

const char *l2c_wbuf_cstr(wbuf *b) {
    if (!l2c_wbuf_reserve(b, 1)) {
        return "";
    }
    b->data[b->size] = '\0';
    return b->data;
}

/* Length of the UTF-8 sequence at s, 0 if there is none (RFC 3629: no surrogates, no overlongs). */
static size_t utf8_length(const unsigned char *s, size_t n) {
    unsigned char c = s[0];
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : (c & 0xf0) == 0xe0    ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (length == 0 || length > n) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    bool overlong = (c == 0xe0 && s[1] < 0xa0) || (c == 0xf0 && s[1] < 0x90);
    bool outside = (c == 0xed && s[1] > 0x9f) || (c == 0xf4 && s[1] > 0x8f);
    return overlong || outside ? 0 : length;
}

static void json_escape(wbuf *b, unsigned char c) {
    switch (c) {
    case '"':
        l2c_wbuf_str(b, "\\\"");
        break;
    case '\\':
        l2c_wbuf_str(b, "\\\\");
        break;
    case '\n':
        l2c_wbuf_str(b, "\\n");
        break;
    case '\t':
        l2c_wbuf_str(b, "\\t");
        break;
    default:
        l2c_wbuf_printf(b, "\\u%04x", c);
    }
}

void l2c_wbuf_json_n(wbuf *b, const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    l2c_wbuf_char(b, '"');
    size_t start = 0; // of the run that needs no escape
    for (size_t i = 0; i < n;) {
        size_t length = u[i] >= 0x20 && u[i] < 0x7f ? 1 : utf8_length(u + i, n - i);
        if (length > 1 ||
            (length == 1 && u[i] >= 0x20 && u[i] != 0x7f && u[i] != '"' && u[i] != '\\')) {
            i += length;
            continue;
        }
        l2c_wbuf_put(b, s + start, i - start);
        if (length == 0) {
            l2c_wbuf_str(b, "\xef\xbf\xbd");
        } else {
            json_escape(b, u[i]);
        }
        start = ++i;
    }
    l2c_wbuf_put(b, s + start, n - start);
    l2c_wbuf_char(b, '"');
}

void l2c_wbuf_json(wbuf *b, const char *s) {
    if (s == NULL) {
        l2c_wbuf_str(b, "null");
    } else {
        l2c_wbuf_json_n(b, s, strlen(s));
    }
}

void l2c_wbuf_int(wbuf *b, int64_t v) {
    char text[24];
    int n = snprintf(text, sizeof text, "%" PRId64, v);
    l2c_wbuf_put(b, text, (size_t)n);
}

void l2c_wbuf_fixed(wbuf *b, double v, int decimals) {
    if (!isfinite(v) || fabs(v) > 1e15) {
        l2c_wbuf_double(b, v);
        return;
    }
    char text[64];
    int n = snprintf(text, sizeof text, "%.*f", decimals, v);
    if (decimals > 0) {
        while (text[n - 1] == '0') {
            n--;
        }
        if (text[n - 1] == '.') {
            n--;
        }
    }
    if (n == 2 && text[0] == '-' && text[1] == '0') {
        text[0] = '0';
        n = 1;
    }
    l2c_wbuf_put(b, text, (size_t)n);
}

void l2c_wbuf_double(wbuf *b, double v) {
    if (!isfinite(v)) {
        l2c_wbuf_str(b, "null");
        return;
    }
    char text[40];
    int n = snprintf(text, sizeof text, "%.15g", v);
    if (strtod(text, NULL) != v) {
        n = snprintf(text, sizeof text, "%.17g", v);
    }
    l2c_wbuf_put(b, text, (size_t)n);
}

void l2c_wbuf_floats(wbuf *b, const float *v, size_t n) {
    l2c_wbuf_char(b, '[');
    for (size_t i = 0; i < n; i++) {
        char text[32];
        int length = isfinite(v[i]) ? snprintf(text, sizeof text, "%.9g", (double)v[i])
                                    : snprintf(text, sizeof text, "null");
        if (i > 0) {
            l2c_wbuf_char(b, ',');
        }
        l2c_wbuf_put(b, text, (size_t)length);
    }
    l2c_wbuf_char(b, ']');
}

void l2c_wbuf_base64(wbuf *b, const void *data, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *d = data;
    if (n > SIZE_MAX / 2 || !l2c_wbuf_reserve(b, (n + 2) / 3 * 4)) {
        b->failed = true;
        return;
    }
    char *out = b->data + b->size;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)d[i] << 16;
        v |= i + 1 < n ? (uint32_t)d[i + 1] << 8 : 0;
        v |= i + 2 < n ? d[i + 2] : 0;
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < n ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < n ? digits[v & 63] : '=';
    }
    b->size = (size_t)(out - b->data);
}

static unsigned base64_digit(unsigned char c) {
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26u;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52u;
    }
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : 64;
}

size_t l2c_wbuf_base64_decode(void *out, const char *text, size_t n) {
    unsigned char *d = out;
    size_t size = 0;
    while (n > 0 && text[n - 1] == '=') {
        n--;
    }
    if (n % 4 == 1) {
        return SIZE_MAX;
    }
    uint32_t v = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned digit = base64_digit((unsigned char)text[i]);
        if (digit == 64) {
            return SIZE_MAX;
        }
        v = v << 6 | digit;
        if (i % 4 == 3) {
            d[size++] = (unsigned char)(v >> 16);
            d[size++] = (unsigned char)(v >> 8);
            d[size++] = (unsigned char)v;
            v = 0;
        }
    }
    if (n % 4 == 2) {
        d[size++] = (unsigned char)(v >> 4);
    } else if (n % 4 == 3) {
        d[size++] = (unsigned char)(v >> 10);
        d[size++] = (unsigned char)(v >> 2);
    }
    return size;
}
