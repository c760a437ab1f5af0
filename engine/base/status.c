/* Status names and the filling of error objects. */
#include "engine/base/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *l2cdb_status_name(l2cdb_status code) {
    switch (code) {
#define X(name, value, text)                                                                       \
    case L2CDB_##name:                                                                             \
        return #name;
        L2CDB_STATUS_MAP(X)
#undef X
    }
    return "E_UNKNOWN";
}

const char *l2cdb_status_text(l2cdb_status code) {
    switch (code) {
#define X(name, value, text)                                                                       \
    case L2CDB_##name:                                                                             \
        return text;
        L2CDB_STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

void l2cdb_error_clear(l2cdb_error *err) {
    if (err == NULL) {
        return;
    }
    err->code = L2CDB_OK;
    err->offset = -1;
    err->message[0] = '\0';
    err->hint[0] = '\0';
}

/* A cut message must not end inside a UTF-8 sequence. */
static void trim_utf8(char *s) {
    size_t n = strlen(s);
    size_t start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)s[start - 1] & 0xC0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return;
    }
    unsigned char lead = (unsigned char)s[start - 1];
    size_t need = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
    if (lead >= 0xC0 && n - start < need) {
        s[start - 1] = '\0';
    }
}

static void fill(l2cdb_error *err, l2cdb_status code, const char *fmt, va_list args) {
    err->code = code;
    err->offset = -1;
    err->hint[0] = '\0';
    vsnprintf(err->message, sizeof err->message, fmt, args);
    trim_utf8(err->message);
}

l2cdb_status l2c_fail(l2cdb_error *err, l2cdb_status code, const char *fmt, ...) {
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        fill(err, code, fmt, args);
        va_end(args);
    }
    return code;
}

l2cdb_status l2c_hint(l2cdb_error *err, const char *fmt, ...) {
    if (err == NULL) {
        return L2CDB_E_INTERNAL;
    }
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->hint, sizeof err->hint, fmt, args);
    va_end(args);
    trim_utf8(err->hint);
    return err->code;
}

l2cdb_status l2c_context(l2cdb_error *err, const char *fmt, ...) {
    if (err == NULL) {
        return L2CDB_E_INTERNAL;
    }
    char below[L2CDB_ERROR_MESSAGE_BYTES];
    memcpy(below, err->message, sizeof below);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof err->message &&
        snprintf(err->message + n, sizeof err->message - (size_t)n, ": %s", below) < 0) {
        err->message[n] = '\0';
    }
    trim_utf8(err->message);
    return err->code;
}

static l2cdb_status status_of_errno(int e) {
    switch (e) {
    case ENOENT:
    case ENOTDIR:
        return L2CDB_E_NOTFOUND;
    case EEXIST:
        return L2CDB_E_EXISTS;
    case EACCES:
    case EPERM:
    case EROFS:
        return L2CDB_E_DENIED;
    case ENOSPC:
    case EDQUOT:
        return L2CDB_E_FULL;
    case ENOMEM:
        return L2CDB_E_NOMEM;
    default:
        return L2CDB_E_IO;
    }
}

l2cdb_status l2c_fail_errno(l2cdb_error *err, int errno_value, const char *fmt, ...) {
    l2cdb_status code = status_of_errno(errno_value);
    if (err == NULL) {
        return code;
    }
    va_list args;
    va_start(args, fmt);
    fill(err, code, fmt, args);
    va_end(args);
    size_t n = strlen(err->message);
    char text[128] = "";
    // The XSI form returns int and fills the buffer; _GNU_SOURCE is not defined in this tree.
    if (strerror_r(errno_value, text, sizeof text) != 0) {
        snprintf(text, sizeof text, "errno %d", errno_value);
    }
    snprintf(err->message + n, sizeof err->message - n, ": %s", text);
    trim_utf8(err->message);
    return code;
}

l2cdb_status l2c_fail_nomem(l2cdb_error *err, uint64_t bytes) {
    return l2c_fail(err, L2CDB_E_NOMEM, "could not allocate %llu bytes", (unsigned long long)bytes);
}
