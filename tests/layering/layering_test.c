/* The walls of the house, checked on every #include of the tree.
 *
 * Arrows point down: cli → engine → encoders, index, storage → engine/base; siblings never meet; a
 * room is entered by its door; and each foreign library is included in the files named here and
 * nowhere else. If this test failed, a room could not be understood, tested or replaced alone. */
#define _XOPEN_SOURCE 700 // nftw

#include "tests/test.h"

#include <dirent.h>
#include <fnmatch.h>
#include <ftw.h>
#include <stdbool.h>

/* ---- The plan -------------------------------------------------------------------------------- */

/* What files under `folder` may include of ours: names that match one of `may`, which are
 * fnmatch(3) patterns without FNM_PATHNAME, so * crosses folders. The first folder that fits
 * counts. */
static const struct {
    const char *folder;
    const char *may[8];
} rooms[] = {
    { "engine/base/", { "engine/base/*" } },
    { "encoders/", { "engine/base/*", "encoders/*" } },
    { "index/", { "engine/base/*", "index/*" } },
    { "storage/", { "engine/base/*", "storage/*" } },
    { "engine/",
      { "engine/*", "encoders/encoders.h", "encoders/trainer.h", "index/index.h",
        "storage/store.h" } },
    { "cli/", { "cli/*", "engine/l2cdb.h" } },
    { "examples/", { "engine/l2cdb.h" } },
    { "tests/", { "*" } },
};

/* Where a foreign header may be included. Headers that match none of these must be of the language
 * or the system (below). */
static const struct {
    const char *header;
    const char *may[4];
} foreign[] = {
    { "jansson.h", { "engine/base/json.h", "cli/*" } },
    { "xxhash.h", { "engine/base/hash.c" } },
    { "cblas.h", { "encoders/gemm_openblas.c" } },
    { "dnnl*", { "encoders/gemm_onednn*" } },
    { "oneapi/dnnl/*", { "encoders/gemm_onednn*" } },
    { "pcre2.h", { "encoders/tokenizer*" } },
    { "utf8proc.h", { "encoders/tokenizer*", "cli/term.c", "cli/json_out.c" } },
    { "libexif/*", { "encoders/exif.c" } },
    { "jpeglib.h", { "encoders/jpeg.c" } },
    { "jerror.h", { "encoders/jpeg.c" } },
    { "png.h", { "encoders/png.c" } },
    { "webp/*", { "encoders/webp.c" } },
    { "zlib.h", { "encoders/torch_zip.c" } },
    { "faiss/*", { "index/faiss_*" } },
    { "omp.h", { "encoders/*", "index/*" } },
    { "sqlite3.h", { "storage/*", "engine/sql_*" } },
    { "sqlite3ext.h", { "engine/sql_*" } },
    { "csv.h", { "engine/captions*" } },
    { "uv.h", { "cli/serve/*", "examples/client.c" } },
    { "llhttp*", { "cli/serve/*" } },
    { "editline/*", { "cli/shell*" } },
    { "histedit.h", { "cli/shell*" } },
    { "chafa.h", { "cli/preview.c" } },
};

/* C11, POSIX, the system calls of Linux, C++ and the processors' intrinsics: everywhere. */
static const char *const everywhere[] = {
    "assert.h",   "complex.h",   "ctype.h",     "errno.h",       "fenv.h",     "float.h",
    "inttypes.h", "iso646.h",    "limits.h",    "locale.h",      "math.h",     "setjmp.h",
    "signal.h",   "stdalign.h",  "stdarg.h",    "stdatomic.h",   "stdbool.h",  "stddef.h",
    "stdint.h",   "stdio.h",     "stdlib.h",    "stdnoreturn.h", "string.h",   "strings.h",
    "tgmath.h",   "time.h",      "uchar.h",     "wchar.h",       "wctype.h",   "aio.h",
    "arpa/*",     "cpio.h",      "dirent.h",    "dlfcn.h",       "fcntl.h",    "fnmatch.h",
    "ftw.h",      "glob.h",      "grp.h",       "langinfo.h",    "libgen.h",   "net/*",
    "netdb.h",    "netinet/*",   "poll.h",      "pthread.h",     "pwd.h",      "regex.h",
    "sched.h",    "semaphore.h", "sys/*",       "syslog.h",      "termios.h",  "unistd.h",
    "utime.h",    "linux/*",     "immintrin.h", "cpuid.h",       "arm_neon.h", "arm_sve.h",
    "malloc.h",   "asm/*",       "link.h",
};

/* Folders that hold no source of ours. */
static const char *const skipped[] = { "build", "build-*", ".git", "shared" };

/* ---- The rules ------------------------------------------------------------------------------- */

static bool matches_any(const char *name, const char *const *patterns, size_t most) {
    for (size_t i = 0; i < most && patterns[i] != NULL; i++) {
        if (fnmatch(patterns[i], name, 0) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_cxx(const char *header) {
    return strchr(header, '.') == NULL; // <vector>, <new>
}

// NULL if `file` may include `header`, else why not. Paths are relative to the root.
static const char *breach(const char *file, const char *header, bool quoted) {
    if (!quoted) {
        for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
            if (fnmatch(foreign[i].header, header, 0) == 0) {
                bool tested = strncmp(file, "tests/", 6) == 0;
                return tested || matches_any(file, foreign[i].may, 4)
                           ? NULL
                           : "this library belongs to other files";
            }
        }
        bool known = strncmp(file, "tests/", 6) == 0 || is_cxx(header) ||
                     matches_any(header, everywhere, sizeof everywhere / sizeof *everywhere);
        return known ? NULL : "a foreign library without a place in the plan";
    }
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) {
        if (strncmp(file, rooms[i].folder, strlen(rooms[i].folder)) == 0) {
            if (matches_any(header, rooms[i].may, 8)) {
                return NULL;
            }
            return strchr(header, '/') == NULL ? "write the path from the root"
                                               : "this room may not see that one";
        }
    }
    return "a folder without a place in the plan";
}

/* ---- The walk -------------------------------------------------------------------------------- */

typedef struct walk {
    const char *root;
    size_t files, includes, breaches;
    char *names[4096]; // of source files, without folders
    bool loud;         // print breaches
} walk;

// `#include <x>` or `#include "x"` in a line: the name, and how it was written.
static bool parse_include(const char *line, char name[256], bool *quoted) {
    line += strspn(line, " \t");
    if (*line++ != '#') {
        return false;
    }
    line += strspn(line, " \t");
    if (strncmp(line, "include", 7) != 0) {
        return false;
    }
    line += 7;
    line += strspn(line, " \t");
    if (*line != '<' && *line != '"') {
        return false;
    }
    *quoted = *line == '"';
    const char *end = strpbrk(line + 1, ">\"");
    if (end == NULL || (size_t)(end - line) > 255) {
        return false;
    }
    memcpy(name, line + 1, (size_t)(end - line - 1));
    name[end - line - 1] = '\0';
    return true;
}

static void check_file(walk *w, const char *path) {
    char full[8192], line[4096], header[256];
    snprintf(full, sizeof full, "%s/%s", w->root, path);
    FILE *f = fopen(full, "r");
    assert_non_null(f);
    for (size_t number = 1; fgets(line, sizeof line, f) != NULL; number++) {
        bool quoted;
        if (!parse_include(line, header, &quoted)) {
            continue;
        }
        w->includes++;
        const char *why = breach(path, header, quoted);
        if (why != NULL) {
            w->breaches++;
            if (w->loud) {
                printf("%s:%zu: includes %s: %s\n", path, number, header, why);
            }
        }
    }
    fclose(f);
}

static bool is_source(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot != NULL && (strcmp(dot, ".c") == 0 || strcmp(dot, ".h") == 0 ||
                           strcmp(dot, ".cpp") == 0 || strcmp(dot, ".hpp") == 0);
}

static void walk_folder(walk *w, const char *folder) {
    char full[8192];
    snprintf(full, sizeof full, "%s/%s", w->root, folder);
    DIR *d = opendir(full);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[4096];
        snprintf(path, sizeof path, "%s%s", folder, e->d_name);
        snprintf(full, sizeof full, "%s/%s", w->root, path);
        struct stat st;
        if (e->d_name[0] == '.' || lstat(full, &st) != 0) {
            continue;
        }
        if (S_ISDIR(st.st_mode)) {
            if (!matches_any(e->d_name, skipped, sizeof skipped / sizeof *skipped)) {
                strcat(path, "/");
                walk_folder(w, path);
            }
        } else if (is_source(e->d_name)) {
            assert_true(w->files < sizeof w->names / sizeof *w->names);
            w->names[w->files++] = strdup(e->d_name);
            check_file(w, path);
        }
    }
    closedir(d);
}

static walk *walk_tree(const char *root, bool loud) {
    walk *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->root = root;
    w->loud = loud;
    walk_folder(w, "");
    return w;
}

static void walk_free(walk *w) {
    for (size_t i = 0; i < w->files; i++) {
        free(w->names[i]);
    }
    free(w);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static char root[4096];

static void the_tree_keeps_its_walls(void **state) {
    (void)state;
    walk *w = walk_tree(root, true);
    printf("%zu files, %zu includes, %zu breaches\n", w->files, w->includes, w->breaches);
    assert_true(w->files > 50 && w->includes > 500); // it really was the tree
    assert_int_equal(w->breaches, 0);
    walk_free(w);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void file_names_are_unique(void **state) {
    (void)state;
    walk *w = walk_tree(root, false);
    qsort(w->names, w->files, sizeof *w->names, by_name);
    size_t twins = 0;
    for (size_t i = 1; i < w->files; i++) {
        if (strcmp(w->names[i - 1], w->names[i]) == 0) {
            printf("two files are called %s\n", w->names[i]);
            twins++;
        }
    }
    assert_int_equal(twins, 0);
    walk_free(w);
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

// A file with one include in a small tree of its own; the breaches found there.
static size_t plant(const char *folder, const char *file, const char *include) {
    const char *temp = test_temp_dir();
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", temp, folder);
    for (char *slash = path + strlen(temp) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/%s", temp, folder, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "/* A planted file. */\n#include %s\n", include);
    fclose(f);
    walk *w = walk_tree(temp, false);
    assert_int_equal(w->includes, 1);
    size_t breaches = w->breaches;
    walk_free(w);
    nftw(temp, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return breaches;
}

static void planted_breaches_are_found(void **state) {
    (void)state;
    static const struct {
        const char *folder, *file, *include;
        size_t breaches;
    } cases[] = {
        { "encoders", "x.c", "\"storage/store.h\"", 1 },
        { "index", "x.c", "\"encoders/encoders.h\"", 1 },
        { "storage", "x.c", "\"engine/engine.h\"", 1 },
        { "engine/base", "x.c", "\"engine/l2cdb.h\"", 1 },
        { "engine", "x.c", "\"index/exact.h\"", 1 },
        { "engine", "x.c", "\"cli/render.h\"", 1 },
        { "cli", "x.c", "\"engine/base/mem.h\"", 1 },
        { "cli/serve", "x.c", "\"storage/store.h\"", 1 },
        { "examples", "x.c", "\"engine/engine.h\"", 1 },
        { "encoders", "vit.c", "<cblas.h>", 1 },
        { "encoders", "vit.c", "<png.h>", 1 },
        { "engine", "search.c", "<sqlite3.h>", 1 },
        { "cli", "cmd_search.c", "<uv.h>", 1 },
        { "cli", "main.c", "<editline/readline.h>", 1 },
        { "index", "exact.c", "<faiss/Index.h>", 1 },
        { "encoders", "x.c", "<curl/curl.h>", 1 },
        { "attic", "x.c", "\"engine/l2cdb.h\"", 1 },
        { "encoders", "x.c", "\"tensors.h\"", 1 },
        // and what is allowed is not called a breach
        { "encoders", "x.c", "\"engine/base/mem.h\"", 0 },
        { "engine", "x.c", "\"storage/store.h\"", 0 },
        { "cli/serve", "x.c", "<uv.h>", 0 },
        { "engine", "sql_images.c", "<sqlite3.h>", 0 },
        { "index", "faiss_x.cpp", "<faiss/Index.h>", 0 },
        { "index", "faiss_x.cpp", "<vector>", 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t found = plant(cases[i].folder, cases[i].file, cases[i].include);
        if (found != cases[i].breaches) {
            fail_msg("%s/%s with %s: %zu breaches, expected %zu", cases[i].folder, cases[i].file,
                     cases[i].include, found, cases[i].breaches);
        }
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0); // breaches are told before the failure
    snprintf(root, sizeof root, "%s", test_source(""));
    root[strlen(root) - 1] = '\0'; // test_source ends in /
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tree_keeps_its_walls),
        cmocka_unit_test(file_names_are_unique),
        cmocka_unit_test(planted_breaches_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
