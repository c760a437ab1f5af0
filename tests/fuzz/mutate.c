/* Drives a fuzz target without libFuzzer: mutate ROUNDS FOLDER…
 *
 * Every file of the folders is given to the entry as it is, then ROUNDS mutations of files taken in
 * turn. The sequence depends on nothing but the files, so a failure repeats; the round is printed
 * before it is run if L2CDB_FUZZ_TRACE is set. Inputs lie in allocations of their exact size, where
 * the sanitizer build sees a read past the end. An input that takes longer than SECONDS_MAX of
 * processor time is a failure as well: parsers of outside bytes do not hang. */
#include "tests/test.h"

#include <dirent.h>
#include <stdbool.h>
#include <time.h>

#include "tests/fuzz/fuzz.h"

#define SEED_BYTES_MAX ((size_t)256 << 10)
#define SECONDS_MAX 10.0

typedef struct seed {
    char name[256];
    uint8_t *bytes;
    size_t size;
} seed;

static seed *seeds;
static size_t seeds_count;

static uint64_t random_state = 20240229;

static uint64_t next_random(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t below(size_t n) {
    return (size_t)(next_random() % n);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const seed *)a)->name, ((const seed *)b)->name);
}

static void add_seed(const char *folder, const char *name) {
    char path[4600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    struct stat st;
    size_t length = strlen(name);
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) || (size_t)st.st_size > SEED_BYTES_MAX ||
        (length > 4 && strcmp(name + length - 4, ".npy") == 0)) {
        return;
    }
    seeds = realloc(seeds, (seeds_count + 1) * sizeof *seeds);
    seed *s = &seeds[seeds_count++];
    *s = (seed){ .size = (size_t)st.st_size };
    snprintf(s->name, sizeof s->name, "%s", name);
    s->bytes = malloc(s->size + 1);
    FILE *f = fopen(path, "rb");
    if (f == NULL || fread(s->bytes, 1, s->size, f) != s->size) {
        fprintf(stderr, "could not read %s\n", path);
        exit(1);
    }
    fclose(f);
}

static void add_folder(const char *folder) {
    DIR *d = opendir(folder);
    if (d == NULL) {
        fprintf(stderr, "could not open the folder %s\n", folder);
        exit(1);
    }
    size_t first = seeds_count;
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        add_seed(folder, e->d_name);
    }
    closedir(d);
    qsort(seeds + first, seeds_count - first, sizeof *seeds, by_name); // whatever readdir's order
}

/* One change in place; returns the new size, at most `capacity`. */
static size_t change(uint8_t *bytes, size_t n, size_t capacity) {
    static const uint32_t edges[] = { 0,      1,      0x7f,       0x80,       0xff,      0x7fff,
                                      0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff };
    if (n == 0) {
        return 0;
    }
    // most structure is near the front
    size_t at = below(3) == 0 ? below(n < 64 ? n : 64) : below(n);
    size_t length = 1 + below(n - at < 64 ? n - at : 64);
    switch (below(8)) {
    case 0:
        bytes[at] ^= (uint8_t)(1u << below(8));
        return n;
    case 1:
        bytes[at] = (uint8_t)next_random();
        return n;
    case 2: { // a number at an edge of its type, in either byte order
        uint32_t v = edges[below(sizeof edges / sizeof edges[0])];
        v = below(2) == 0 ? v : __builtin_bswap32(v);
        memcpy(bytes + at, &v, n - at < 4 ? n - at : 4);
        return n;
    }
    case 3: // lose a piece
        memmove(bytes + at, bytes + at + length, n - at - length);
        return n - length;
    case 4: // repeat a piece
        if (n + length > capacity) {
            return n;
        }
        memmove(bytes + at + length, bytes + at, n - at);
        return n + length;
    case 5: // cut
        return below(4) == 0 ? at : n;
    case 6: // a piece of another seed
    {
        const seed *other = &seeds[below(seeds_count)];
        if (other->size > length) {
            memcpy(bytes + at, other->bytes + below(other->size - length), length);
        }
        return n;
    }
    default:
        memset(bytes + at, (int)(next_random() & 0xff), length);
        return n;
    }
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double slowest;

static void run(const uint8_t *bytes, size_t n) {
    uint8_t *exact = malloc(n > 0 ? n : 1);
    memcpy(exact, bytes, n);
    double start = cpu_seconds();
    LLVMFuzzerTestOneInput(exact, n);
    double took = cpu_seconds() - start;
    slowest = took > slowest ? took : slowest;
    free(exact);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s ROUNDS FOLDER...\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        add_folder(argv[i][0] == '/' ? argv[i] : test_shared(argv[i]));
    }
    for (size_t i = 0; i < seeds_count; i++) {
        run(seeds[i].bytes, seeds[i].size);
    }
    unsigned long rounds = strtoul(argv[1], NULL, 10);
    bool trace = getenv("L2CDB_FUZZ_TRACE") != NULL;
    for (unsigned long r = 0; r < rounds; r++) {
        const seed *s = &seeds[r % seeds_count];
        size_t n = s->size, capacity = s->size + 1024;
        uint8_t *bytes = malloc(capacity);
        memcpy(bytes, s->bytes, n);
        for (size_t changes = 1 + below(6); changes > 0; changes--) {
            n = change(bytes, n, capacity);
        }
        if (trace) {
            fprintf(stderr, "round %lu: %s\n", r, s->name);
        }
        run(bytes, n);
        free(bytes);
    }
    printf("%zu seeds, %lu mutations, slowest %.3f s\n", seeds_count, rounds, slowest);
    for (size_t i = 0; i < seeds_count; i++) {
        free(seeds[i].bytes);
    }
    free(seeds);
    return slowest > SECONDS_MAX ? 1 : 0;
}
