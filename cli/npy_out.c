#include "cli/npy_out.h"

#include <stdio.h>
#include <string.h>

bool l2c_npy_out_write(const char *path, const float *v, size_t rows, size_t columns) {
    bool to_stdout = strcmp(path, "-") == 0;
    FILE *f = to_stdout ? stdout : fopen(path, "wb");
    if (f == NULL) {
        return false;
    }
    // Magic (8 bytes), header length (2), and the header padded with spaces to a multiple of 64.
    char head[128] = "\x93NUMPY\x01";
    char dict[128];
    int n =
        snprintf(dict, sizeof dict,
                 "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, columns);
    memset(head + 10, ' ', sizeof head - 10);
    memcpy(head + 10, dict, (size_t)n);
    head[sizeof head - 1] = '\n';
    head[8] = (char)(sizeof head - 10);
    bool ok = fwrite(head, 1, sizeof head, f) == sizeof head &&
              fwrite(v, sizeof *v, rows * columns, f) == rows * columns;
    return (to_stdout ? fflush(f) == 0 : fclose(f) == 0) && ok;
}
