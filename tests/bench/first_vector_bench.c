/* How long a model takes from its files to the first text vector, and what it keeps in memory.
 *
 *   first_vector_bench MODEL [PRECISION]
 *
 * One JSON object: open_ms, vector_ms (one caption, the first), resident_mb (VmHWM, the most that
 * the process held). The start of the process is not in it: peers/first_vector.py times that as
 * well. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "encoders/encoders.h"

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static double resident_mb(void) {
    char line[256];
    long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            kb = strtol(line + 6, NULL, 10);
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return (double)kb / 1e3;
}

int main(int argc, char **argv) {
    l2cdb_error err;
    l2c_model *m;
    l2c_precision precision = L2C_PRECISION_AUTO;
    const char *text = "a brown dog runs across the grass behind a red ball on a sunny afternoon";
    double start = now_ms();
    if (argc < 2 || (argc > 2 && l2c_precision_parse(&precision, argv[2], &err) != L2CDB_OK)) {
        fprintf(stderr, "usage: first_vector_bench MODEL [auto|f32|bf16|int8]\n");
        return 2;
    }
    if (l2c_model_open(&m, &(l2c_model_options){ .path = argv[1], .precision = precision }, &err) !=
        L2CDB_OK) {
        fprintf(stderr, "first_vector_bench: %s\n", err.message);
        return 1;
    }
    double opened = now_ms();
    const l2c_model_info *info = l2c_model_get_info(m);
    float *out = malloc(info->text_width * sizeof *out);
    if (out == NULL || l2c_model_text_features(m, out, &text, 1, 0, NULL, &err) != L2CDB_OK) {
        fprintf(stderr, "first_vector_bench: %s\n", out != NULL ? err.message : "out of memory");
        return 1;
    }
    printf(
        "{\"precision\": \"%s\", \"open_ms\": %.1f, \"vector_ms\": %.1f, \"resident_mb\": %.0f}\n",
        l2c_precision_name(info->precision), opened - start, now_ms() - opened, resident_mb());
    free(out);
    l2c_model_close(m);
    return 0;
}
