#include "cli/lines.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "cli/options.h"
#include "cli/session.h"

// Takes over `line`.
static bool add(l2c_lines *l, size_t *room, char *line, size_t size) {
    if (l->count == *room) {
        size_t more = *room == 0 ? 64 : *room * 2;
        char **lines = realloc(l->lines, more * sizeof *lines);
        l->lines = lines != NULL ? lines : l->lines;
        size_t *sizes = realloc(l->sizes, more * sizeof *sizes);
        l->sizes = sizes != NULL ? sizes : l->sizes;
        if (lines == NULL || sizes == NULL) {
            free(line);
            return false;
        }
        *room = more;
    }
    l->lines[l->count] = line;
    l->sizes[l->count++] = size;
    return true;
}

int l2c_lines_read(l2c_lines *out, const char *path) {
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (f == NULL) {
        return l2c_session_error(NULL, "could not open %s: %s", path, strerror(errno));
    }
    size_t room = 0;
    int rc = L2C_EXIT_DONE;
    while (rc == L2C_EXIT_DONE) {
        char *line = NULL;
        size_t line_room = 0;
        ssize_t n = getline(&line, &line_room, f);
        if (n < 0) {
            free(line);
            break;
        }
        if (n > 0 && line[n - 1] == '\n') {
            line[--n] = '\0';
        }
        if (n > 0 && line[n - 1] == '\r') {
            line[--n] = '\0';
        }
        if (!add(out, &room, line, (size_t)n)) {
            rc = l2c_session_error(NULL, "out of memory at line %zu of %s", out->count + 1, path);
        }
    }
    if (rc == L2C_EXIT_DONE && ferror(f) != 0) {
        rc = l2c_session_error(NULL, "could not read %s: %s", path, strerror(errno));
    }
    if (f != stdin) {
        fclose(f);
    }
    return rc;
}

void l2c_lines_fini(l2c_lines *l) {
    for (size_t i = 0; i < l->count; i++) {
        free(l->lines[i]);
    }
    free(l->lines);
    free(l->sizes);
}
