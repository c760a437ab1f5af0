/* Takes the vectors of a search out of its text before the JSON parser sees it.
 *
 * A vector is nearly all of such a request, and a parser that looks at each character and makes a
 * value of each number spends on it a good part of what the search itself costs. So the values of
 * members named "vector" are read here, and the parser gets {"cut":i} in their place. Whatever is
 * not plainly base64 or an array of numbers is left where it is, for the parser to judge; the same
 * pass counts the nesting. */
#include "cli/serve/server.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Shorter texts are not worth it. */
#define CUT_BYTES_MIN 64

/* at is past the opening quote; returns the closing one, or end. */
static const char *string_end(const char *at, const char *end) {
    for (;;) {
        at = memchr(at, '"', (size_t)(end - at));
        if (at == NULL) {
            return end;
        }
        size_t slashes = 0;
        while (at[-1 - (ptrdiff_t)slashes] == '\\') {
            slashes++;
        }
        if (slashes % 2 == 0) {
            return at;
        }
        at++;
    }
}

static const char *skip_spaces(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) {
        at++;
    }
    return at;
}

static const char *digits(const char *at, const char *end, uint64_t *mantissa, int *count) {
    while (at < end && *at >= '0' && *at <= '9') {
        *mantissa = *mantissa * 10 + (uint64_t)(*at++ - '0');
        ++*count;
    }
    return at;
}

/* The value of a number whose text is known to be right. Up to 19 digits fit the integer; a long
 * double then holds it and the power exactly where it has 64 bits, and is near enough elsewhere. */
static double value(const char *text, uint64_t mantissa, int digits_count, int power) {
    static const long double powers[] = {
        1e0L,  1e1L,  1e2L,  1e3L,  1e4L,  1e5L,  1e6L,  1e7L,  1e8L,  1e9L,
        1e10L, 1e11L, 1e12L, 1e13L, 1e14L, 1e15L, 1e16L, 1e17L, 1e18L, 1e19L,
        1e20L, 1e21L, 1e22L, 1e23L, 1e24L, 1e25L, 1e26L, 1e27L,
    };
    if (digits_count > 19 || power < -27 || power > 27) {
        return fabs(strtod(text, NULL));
    }
    long double v = (long double)mantissa;
    return (double)(power < 0 ? v / powers[-power] : v * powers[power]);
}

/* A JSON number at `at`; returns what follows it, NULL if it is none or too large. */
static const char *number(const char *at, const char *end, double *out) {
    const char *text = at;
    bool negative = at < end && *at == '-';
    uint64_t mantissa = 0, exponent = 0;
    int whole = 0, fraction = 0, power_digits = 0;
    at += negative;
    const char *start = at;
    at = digits(at, end, &mantissa, &whole);
    if (whole == 0 || (whole > 1 && *start == '0')) {
        return NULL;
    }
    if (at < end && *at == '.') {
        at = digits(at + 1, end, &mantissa, &fraction);
        if (fraction == 0) {
            return NULL;
        }
    }
    int power = -fraction;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        bool down = at < end && *at == '-';
        at += at < end && (*at == '-' || *at == '+');
        at = digits(at, end, &exponent, &power_digits);
        if (power_digits == 0 || power_digits > 3) {
            return NULL;
        }
        power += down ? -(int)exponent : (int)exponent;
    } else if (fraction == 0 && whole > 18) {
        return NULL; // the parser has its own view of whole numbers that long
    }
    if (at == end) {
        return NULL; // nothing stops strtod, and no array ends here
    }
    double v = value(text, mantissa, whole + fraction, power);
    *out = negative ? -v : v;
    return isfinite(v) ? at : NULL;
}

/* [n, n, …] at `at`; returns what follows it, NULL if it is something else. */
static const char *read_array(const char *at, const char *end, vector_cut *cut) {
    size_t room = (size_t)(end - at) / 2 + 1; // a number and its comma are two bytes at least
    cut->data = malloc(room * sizeof *cut->data);
    if (cut->data == NULL) {
        return NULL;
    }
    do {
        double v;
        at = number(skip_spaces(at + 1, end), end, &v);
        if (at == NULL) {
            return NULL;
        }
        cut->data[cut->count++] = (float)v;
        at = skip_spaces(at, end);
    } while (at < end && *at == ',');
    return at < end && *at == ']' ? at + 1 : NULL;
}

static const char *read_base64(const char *at, const char *end, vector_cut *cut) {
    const char *close = memchr(at + 1, '"', (size_t)(end - at - 1));
    if (close == NULL) {
        return NULL;
    }
    size_t n = (size_t)(close - at - 1);
    cut->data = malloc(n / 4 * 3 + 3 + sizeof *cut->data);
    size_t size = cut->data != NULL ? l2c_wbuf_base64_decode(cut->data, at + 1, n) : SIZE_MAX;
    if (size == SIZE_MAX || size == 0 || size % sizeof *cut->data != 0) {
        return NULL;
    }
    cut->count = size / sizeof *cut->data;
    return close + 1;
}

/* The value of a "vector" at `at`; returns what follows it, NULL to leave it. */
static const char *take(request *r, const char *at, const char *end) {
    vector_cut cut = { 0 };
    const char *after = NULL;
    if (r->cuts_count < SERVE_TERMS_MAX && end - at > CUT_BYTES_MIN) {
        after = *at == '['   ? read_array(at, end, &cut)
                : *at == '"' ? read_base64(at, end, &cut)
                             : NULL;
    }
    if (after == NULL) {
        free(cut.data);
        return NULL;
    }
    vector_cut *grown = realloc(r->cuts, (r->cuts_count + 1) * sizeof *grown);
    if (grown == NULL) {
        free(cut.data);
        return NULL;
    }
    r->cuts = grown;
    r->cuts[r->cuts_count++] = cut;
    return after;
}

bool l2c_vector_cut(request *r, bool vectors, wbuf *rest) {
    const char *at = r->body.data, *end = at + r->body.size, *kept = at;
    int depth = 0;
    while (at < end) {
        char ch = *at++;
        if (ch == '{' || ch == '[') {
            if (++depth > SERVE_JSON_DEPTH_MAX) {
                return false;
            }
        } else if (ch == '}' || ch == ']') {
            depth--;
        } else if (ch == '"') {
            const char *close = string_end(at, end);
            bool named = vectors && close - at == 6 && memcmp(at, "vector", 6) == 0;
            at = close < end ? close + 1 : end;
            const char *value = named ? skip_spaces(at, end) : end;
            value = value < end && *value == ':' ? skip_spaces(value + 1, end) : end;
            const char *after = value < end ? take(r, value, end) : NULL;
            if (after != NULL) {
                l2c_wbuf_put(rest, kept, (size_t)(value - kept));
                l2c_wbuf_printf(rest, "{\"cut\":%zu}", r->cuts_count - 1);
                kept = at = after;
            }
        }
    }
    if (r->cuts_count > 0) {
        l2c_wbuf_put(rest, kept, (size_t)(end - kept));
    }
    return true;
}
