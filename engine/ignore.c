#include "engine/ignore.h"

#include <fnmatch.h>
#include <string.h>

#include "engine/base/file.h"

#define IGNORE_BYTES_MAX (1 << 20)

static l2cdb_status add_rule(l2c_ignore *g, l2c_ignore_rule rule, l2cdb_error *err) {
    if (g->count == g->capacity) {
        size_t capacity = g->capacity != 0 ? g->capacity * 2 : 16;
        l2c_ignore_rule *more = l2c_realloc(g->rules, capacity, sizeof *more);
        if (more == NULL) {
            l2c_free(rule.base);
            l2c_free(rule.pattern);
            return l2c_fail_nomem(err, capacity * sizeof *more);
        }
        g->rules = more;
        g->capacity = capacity;
    }
    g->rules[g->count++] = rule;
    return L2CDB_OK;
}

l2cdb_status l2c_ignore_add(l2c_ignore *g, const char *base, const char *line, l2cdb_error *err) {
    l2c_ignore_rule rule = { 0 };
    size_t n = strcspn(line, "\r\n");
    while (n > 0 && (line[n - 1] == ' ' || line[n - 1] == '\t') && (n < 2 || line[n - 2] != '\\')) {
        n--; // spaces at the end do not count unless quoted
    }
    if (n == 0 || *line == '#') {
        return L2CDB_OK;
    }
    if (*line == '!') {
        rule.negated = true;
        line++;
        n--;
    }
    if (n > 0 && line[n - 1] == '/') {
        rule.dirs_only = true;
        n--;
    }
    if (n == 0) {
        return L2CDB_OK;
    }
    rule.anchored = memchr(line, '/', n) != NULL;
    if (*line == '/') {
        line++;
        n--;
    }
    rule.base = l2c_strdup(base);
    rule.pattern = l2c_strndup(line, n);
    if (rule.base == NULL || rule.pattern == NULL) {
        l2c_free(rule.base);
        l2c_free(rule.pattern);
        return l2c_fail_nomem(err, n);
    }
    return add_rule(g, rule, err);
}

l2cdb_status l2c_ignore_read(l2c_ignore *g, const char *base, const char *path, l2cdb_error *err) {
    if (!l2c_path_exists(path)) {
        return L2CDB_OK;
    }
    l2c_buf text;
    l2c_buf_init(&text);
    l2cdb_status rc = l2c_file_read(&text, path, IGNORE_BYTES_MAX, err);
    const char *line = text.data;
    while (rc == L2CDB_OK && line != NULL && *line != '\0') {
        rc = l2c_ignore_add(g, base, line, err);
        const char *end = strchr(line, '\n');
        line = end != NULL ? end + 1 : NULL;
    }
    l2c_buf_fini(&text);
    return rc;
}

void l2c_ignore_truncate(l2c_ignore *g, size_t count) {
    while (g->count > count) {
        g->count--;
        l2c_free(g->rules[g->count].base);
        l2c_free(g->rules[g->count].pattern);
    }
}

void l2c_ignore_fini(l2c_ignore *g) {
    l2c_ignore_truncate(g, 0);
    l2c_free(g->rules);
    *g = (l2c_ignore){ 0 };
}

/* ---- Matching -------------------------------------------------------------------------------- */

static size_t segment_length(const char *s) {
    return strcspn(s, "/");
}

static bool segment_matches(const char *pattern, size_t pattern_n, const char *name,
                            size_t name_n) {
    char p[256], s[256];
    if (pattern_n >= sizeof p || name_n >= sizeof s) {
        return false; // no file name is longer
    }
    memcpy(p, pattern, pattern_n);
    p[pattern_n] = '\0';
    memcpy(s, name, name_n);
    s[name_n] = '\0';
    return fnmatch(p, s, 0) == 0;
}

/* Segment by segment; "**" stands for any number of them. The depth of the recursion is the number
 * of "**" in the pattern. */
static bool path_matches(const char *pattern, const char *path) {
    while (*pattern != '\0') {
        size_t pn = segment_length(pattern);
        if (pn == 2 && memcmp(pattern, "**", 2) == 0) {
            pattern += pattern[2] == '/' ? 3 : 2;
            if (*pattern == '\0') {
                return *path != '\0';
            }
            for (const char *p = path; *p != '\0';) {
                if (path_matches(pattern, p)) {
                    return true;
                }
                p += segment_length(p);
                p += *p == '/' ? 1 : 0;
            }
            return false;
        }
        size_t sn = segment_length(path);
        if (*path == '\0' || !segment_matches(pattern, pn, path, sn)) {
            return false;
        }
        pattern += pn + (pattern[pn] == '/' ? 1 : 0);
        path += sn + (path[sn] == '/' ? 1 : 0);
    }
    return *path == '\0';
}

static bool rule_matches(const l2c_ignore_rule *r, const char *path, bool is_dir) {
    size_t base_n = strlen(r->base);
    if ((r->dirs_only && !is_dir) || strncmp(path, r->base, base_n) != 0) {
        return false;
    }
    if (r->anchored) {
        return path_matches(r->pattern, path + base_n);
    }
    const char *name = strrchr(path, '/');
    return path_matches(r->pattern, name != NULL ? name + 1 : path);
}

bool l2c_ignore_matches(const l2c_ignore *g, const char *path, bool is_dir) {
    for (size_t i = g->count; i-- > 0;) {
        if (rule_matches(&g->rules[i], path, is_dir)) {
            return !g->rules[i].negated;
        }
    }
    return false;
}
