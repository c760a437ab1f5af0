#include "cli/json_out.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

void l2c_json_out_init(l2c_json_out *j, FILE *f) {
    j->f = f;
    j->comma = false;
}

static void before_value(l2c_json_out *j) {
    if (j->comma) {
        fputc(',', j->f);
    }
    j->comma = true;
}

void l2c_json_out_open(l2c_json_out *j, char open) {
    before_value(j);
    fputc(open, j->f);
    j->comma = false;
}

void l2c_json_out_close(l2c_json_out *j, char close) {
    fputc(close, j->f);
    j->comma = true;
}

void l2c_json_out_key(l2c_json_out *j, const char *key) {
    l2c_json_out_string(j, key);
    fputc(':', j->f);
    j->comma = false;
}

void l2c_json_out_text(l2c_json_out *j, const char *s, size_t n) {
    before_value(j);
    fputc('"', j->f);
    for (size_t at = 0; at < n;) {
        utf8proc_int32_t code;
        utf8proc_ssize_t bytes =
            utf8proc_iterate((const utf8proc_uint8_t *)s + at, (utf8proc_ssize_t)(n - at), &code);
        if (bytes <= 0) {
            fputs("\xef\xbf\xbd", j->f);
            at++;
            continue;
        }
        if (code == '"' || code == '\\') {
            fputc('\\', j->f);
            fputc(code, j->f);
        } else if (code == '\n') {
            fputs("\\n", j->f);
        } else if (code == '\t') {
            fputs("\\t", j->f);
        } else if (code < 0x20 || code == 0x7f) {
            fprintf(j->f, "\\u%04x", (unsigned)code);
        } else {
            fwrite(s + at, 1, (size_t)bytes, j->f);
        }
        at += (size_t)bytes;
    }
    fputc('"', j->f);
}

void l2c_json_out_string(l2c_json_out *j, const char *s) {
    if (s == NULL) {
        l2c_json_out_null(j);
    } else {
        l2c_json_out_text(j, s, strlen(s));
    }
}

void l2c_json_out_int(l2c_json_out *j, int64_t v) {
    before_value(j);
    fprintf(j->f, "%" PRId64, v);
}

void l2c_json_out_uint(l2c_json_out *j, uint64_t v) {
    before_value(j);
    fprintf(j->f, "%" PRIu64, v);
}

void l2c_json_out_number(char out[32], double v, int decimals) {
    if (decimals >= 0 && fabs(v) < 1e15) {
        snprintf(out, 32, "%.*f", decimals, v);
        if (strchr(out, '.') != NULL) {
            size_t n = strlen(out);
            while (out[n - 1] == '0') {
                n--;
            }
            out[out[n - 1] == '.' ? n - 1 : n] = '\0';
        }
        if (strcmp(out, "-0") == 0) {
            strcpy(out, "0");
        }
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (strtod(out, NULL) == v) {
            return;
        }
    }
}

void l2c_json_out_double(l2c_json_out *j, double v, int decimals) {
    if (!isfinite(v)) {
        l2c_json_out_null(j);
        return;
    }
    char text[32];
    l2c_json_out_number(text, v, decimals);
    before_value(j);
    fputs(text, j->f);
}

void l2c_json_out_bool(l2c_json_out *j, bool v) {
    before_value(j);
    fputs(v ? "true" : "false", j->f);
}

void l2c_json_out_null(l2c_json_out *j) {
    before_value(j);
    fputs("null", j->f);
}

void l2c_json_out_floats(l2c_json_out *j, const void *v, size_t n) {
    l2c_json_out_open(j, '[');
    for (size_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, (const char *)v + i * sizeof f, sizeof f);
        char text[32];
        for (int digits = 6; digits <= 9; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, (double)f);
            if (strtof(text, NULL) == f) {
                break;
            }
        }
        before_value(j);
        fputs(isfinite(f) ? text : "null", j->f);
    }
    l2c_json_out_close(j, ']');
}

void l2c_json_out_hex(l2c_json_out *j, const void *data, size_t n) {
    before_value(j);
    fputc('"', j->f);
    for (size_t i = 0; i < n; i++) {
        fprintf(j->f, "%02x", ((const unsigned char *)data)[i]);
    }
    fputc('"', j->f);
}
