/* The entry of a fuzz target, libFuzzer's own form. */
#ifndef L2C_FUZZ_H
#define L2C_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Runs the parser over n bytes; always 0. Aborts where something that always holds does not. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* An assert that no build switches off. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
