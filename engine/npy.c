#include "engine/npy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define HEADER_MAX 65536

static l2cdb_status malformed(const char *path, const char *what, l2cdb_error *err) {
    l2c_fail(err, L2CDB_E_FORMAT, "%s: %s, expected a NumPy .npy file", path, what);
    return l2c_hint(err, "write it with numpy.save(path, array.astype('float32'))");
}

/* The text after "'key':" in the header, spaces skipped; NULL if the key is not there. */
static const char *value_of(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (at == NULL) {
        return NULL;
    }
    at += strlen(key);
    return at + strspn(at, " ");
}

static l2cdb_status parse_header(l2c_npy *in, const char *path, const char *header,
                                 l2cdb_error *err) {
    const char *descr = value_of(header, "'descr':"), *order = value_of(header, "'fortran_order':"),
               *shape = value_of(header, "'shape':");
    if (descr == NULL || order == NULL || shape == NULL || *shape != '(') {
        return malformed(path, "its header lacks descr, fortran_order or shape", err);
    }
    if (strncmp(descr, "'<f4'", 5) != 0) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: holds type %.8s, expected '<f4' (f32)", path,
                 descr);
        return l2c_hint(err, "convert it with array.astype('float32')");
    }
    if (strncmp(order, "False", 5) != 0) {
        l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: is in Fortran order, expected C order", path);
        return l2c_hint(err, "convert it with numpy.ascontiguousarray(array)");
    }
    size_t dims[2] = { 0, 0 }, count = 0;
    for (const char *p = shape + 1; *p != ')' && *p != '\0';) {
        char *end;
        unsigned long long n = strtoull(p, &end, 10);
        if (end == p || n > SIZE_MAX / 8 || count == 2) {
            l2c_fail(err, L2CDB_E_UNSUPPORTED, "%s: has shape %.40s, expected (rows, width)", path,
                     shape);
            return l2c_hint(err, "reshape it to two dimensions");
        }
        dims[count++] = (size_t)n;
        p = end + strspn(end, ", ");
    }
    in->rows = count == 2 ? dims[0] : 1;
    in->width = count == 2 ? dims[1] : dims[0];
    if (count == 0 || in->width == 0 || in->width > 65536) {
        return l2c_fail(err, L2CDB_E_UNSUPPORTED,
                        "%s: has vectors of %zu values, expected 1 to 65536", path, in->width);
    }
    return L2CDB_OK;
}

static l2cdb_status check_size(const l2c_npy *in, const char *path, l2cdb_error *err) {
    struct stat st;
    long at = ftell(in->file);
    size_t bytes;
    if (fstat(fileno(in->file), &st) != 0 || !S_ISREG(st.st_mode) || at < 0) {
        return L2CDB_OK; // a pipe: the reads will tell
    }
    if (!l2c_mul_size(&bytes, in->rows, in->width) || !l2c_mul_size(&bytes, bytes, sizeof(float)) ||
        (uint64_t)st.st_size - (uint64_t)at != bytes) {
        return l2c_fail(err, L2CDB_E_FORMAT,
                        "%s: holds %lld bytes of data, its header promises %zu rows of %zu values",
                        path, (long long)st.st_size - at, in->rows, in->width);
    }
    return L2CDB_OK;
}

static l2cdb_status read_header(l2c_npy *in, const char *path, l2cdb_error *err) {
    unsigned char head[12];
    if (fread(head, 1, 10, in->file) != 10 || memcmp(head, "\x93NUMPY", 6) != 0) {
        return malformed(path, "has no NumPy header", err);
    }
    size_t bytes = head[8] | (size_t)head[9] << 8;
    if (head[6] >= 2) { // versions 2 and 3 have four bytes of length
        if (fread(head + 10, 1, 2, in->file) != 2) {
            return malformed(path, "ends inside its header", err);
        }
        bytes |= (size_t)head[10] << 16 | (size_t)head[11] << 24;
    }
    if (head[6] == 0 || head[6] > 3 || bytes > HEADER_MAX) {
        return malformed(path, "has a header of unknown version or length", err);
    }
    char *header = l2c_calloc(bytes + 1, 1);
    if (header == NULL) {
        return l2c_fail_nomem(err, bytes);
    }
    l2cdb_status rc = fread(header, 1, bytes, in->file) == bytes
                          ? parse_header(in, path, header, err)
                          : malformed(path, "ends inside its header", err);
    l2c_free(header);
    return rc;
}

l2cdb_status l2c_npy_open(l2c_npy *in, const char *path, l2cdb_error *err) {
    *in = (l2c_npy){ 0 };
    in->file = fopen(path, "rb");
    if (in->file == NULL) {
        return l2c_fail_errno(err, errno, "%s: cannot be opened", path);
    }
    l2cdb_status rc = read_header(in, path, err);
    if (rc == L2CDB_OK) {
        rc = check_size(in, path, err);
    }
    if (rc != L2CDB_OK) {
        l2c_npy_close(in);
    }
    return rc;
}

l2cdb_status l2c_npy_read(l2c_npy *in, float *out, size_t n, l2cdb_error *err) {
    if (fread(out, in->width * sizeof *out, n, in->file) != n) {
        return ferror(in->file) ? l2c_fail_errno(err, errno, "the array cannot be read")
                                : l2c_fail(err, L2CDB_E_FORMAT, "the array ends too early");
    }
    return L2CDB_OK;
}

void l2c_npy_close(l2c_npy *in) {
    if (in->file != NULL) {
        fclose(in->file);
        in->file = NULL;
    }
}

void l2c_npy_header(char out[L2C_NPY_HEADER_BYTES], const char *descr, size_t rows, size_t width) {
    memset(out, ' ', L2C_NPY_HEADER_BYTES);
    memcpy(out, "\x93NUMPY\x01\x00\x76\x00", 10); // 118 bytes follow
    char text[L2C_NPY_HEADER_BYTES];
    int n = width != 0 ? snprintf(text, sizeof text,
                                  "{'descr': '%s', 'fortran_order': False, 'shape': (%zu, %zu), }",
                                  descr, rows, width)
                       : snprintf(text, sizeof text,
                                  "{'descr': '%s', 'fortran_order': False, 'shape': (%zu,), }",
                                  descr, rows);
    memcpy(out + 10, text, (size_t)n);
    out[L2C_NPY_HEADER_BYTES - 1] = '\n';
}
