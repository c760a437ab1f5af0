#include "cli/serve/wbuf.h"

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
    size_t at = sizeof text;
    uint64_t left = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do {
        text[--at] = (char)('0' + left % 10);
        left /= 10;
    } while (left > 0);
    if (v < 0) {
        text[--at] = '-';
    }
    l2c_wbuf_put(b, text + at, sizeof text - at);
}

/* "%.*f" by whole numbers, several times as fast; ties may round the other way. */
static int fixed_text(char *out, double v, int decimals) {
    static const double scales[] = { 1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6 };
    char digits[24];
    int n = 0, size = 0;
    uint64_t scaled = (uint64_t)(fabs(v) * scales[decimals] + 0.5);
    do {
        digits[n++] = (char)('0' + scaled % 10);
        scaled /= 10;
    } while (scaled > 0 || n <= decimals);
    if (v < 0) {
        out[size++] = '-';
    }
    while (n > 0) {
        if (n == decimals) {
            out[size++] = '.';
        }
        out[size++] = digits[--n];
    }
    return size;
}

void l2c_wbuf_fixed(wbuf *b, double v, int decimals) {
    if (!isfinite(v) || fabs(v) > 1e15) {
        l2c_wbuf_double(b, v);
        return;
    }
    char text[64];
    int n = fabs(v) < 1e9 && decimals <= 6 ? fixed_text(text, v, decimals)
                                           : snprintf(text, sizeof text, "%.*f", decimals, v);
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

/* Value of each digit in both alphabets; 64 for what is none. */
static const unsigned char base64_values[256] = {
#define NONE8 64, 64, 64, 64, 64, 64, 64, 64
#define NONE32 NONE8, NONE8, NONE8, NONE8
    NONE32, NONE8, 64, 64, 64, 62, 64, 62, 64, 63, 52,     53,     54,     55,    56, 57,
    58,     59,    60, 61, 64, 64, 64, 64, 64, 64, 64,     0,      1,      2,     3,  4,
    5,      6,     7,  8,  9,  10, 11, 12, 13, 14, 15,     16,     17,     18,    19, 20,
    21,     22,    23, 24, 25, 64, 64, 64, 64, 63, 64,     26,     27,     28,    29, 30,
    31,     32,    33, 34, 35, 36, 37, 38, 39, 40, 41,     42,     43,     44,    45, 46,
    47,     48,    49, 50, 51, 64, 64, 64, 64, 64, NONE32, NONE32, NONE32, NONE32
#undef NONE8
#undef NONE32
};

size_t l2c_wbuf_base64_decode(void *out, const char *text, size_t n) {
    unsigned char *d = out;
    size_t size = 0;
    while (n > 0 && text[n - 1] == '=') {
        n--;
    }
    if (n % 4 == 1) {
        return SIZE_MAX;
    }
    const unsigned char *t = (const unsigned char *)text;
    uint32_t v = 0;
    unsigned bad = 0; // bit 6 is set once a byte was no digit
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32_t a = base64_values[t[i]], b = base64_values[t[i + 1]];
        uint32_t c = base64_values[t[i + 2]], e = base64_values[t[i + 3]];
        bad |= a | b | c | e;
        v = a << 18 | b << 12 | c << 6 | e;
        d[size++] = (unsigned char)(v >> 16);
        d[size++] = (unsigned char)(v >> 8);
        d[size++] = (unsigned char)v;
    }
    for (v = 0; i < n; i++) {
        bad |= base64_values[t[i]];
        v = v << 6 | base64_values[t[i]];
    }
    if (bad & 64) {
        return SIZE_MAX;
    }
    if (n % 4 == 2) {
        d[size++] = (unsigned char)(v >> 4);
    } else if (n % 4 == 3) {
        d[size++] = (unsigned char)(v >> 10);
        d[size++] = (unsigned char)(v >> 2);
    }
    return size;
}
