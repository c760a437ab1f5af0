/* What holds of every set of tensors that a reader lets through. */
#ifndef L2C_WEIGHTS_FUZZ_H
#define L2C_WEIGHTS_FUZZ_H

#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "encoders/layout.h"

/* Names are sorted and different, sizes agree, and every byte can be read. */
static inline void check_tensors(const l2c_tensors *s) {
    uint32_t sum = 0;
    for (size_t i = 0; i < s->count; i++) {
        const l2c_tensor *t = &s->items[i];
        FUZZ_CHECK(i == 0 || strcmp(s->items[i - 1].name, t->name) < 0);
        FUZZ_CHECK(t->ndim >= 0 && t->ndim <= L2C_TENSOR_DIMS_MAX);
        size_t count = 1;
        for (int k = 0; k < t->ndim; k++) {
            count *= t->shape[k];
        }
        FUZZ_CHECK(count == t->count && t->bytes == count * l2c_dtype_bytes(t->dtype));
        for (size_t k = 0; k < t->bytes; k++) {
            sum += ((const uint8_t *)t->data)[k];
        }
    }
    volatile uint32_t keep = sum;
    (void)keep;
}

/* The same set as a vision part: whatever passes has the shapes that its configuration says. The
 * set is used up. */
static inline void check_as_model(l2c_tensors *s) {
    l2cdb_error err;
    l2c_bundle b = { .name = "fuzz" };
    l2c_tensors_init(&b.vision_tensors);
    l2c_tensors_init(&b.llm_tensors);
    l2c_tensors_init(&b.head_tensors);
    if (l2c_layout_take_vision(&b, s, NULL, "fuzz", &err) == L2CDB_OK &&
        l2c_layout_finish(&b, &err) == L2CDB_OK) {
        FUZZ_CHECK(b.vision.heads * b.vision.head_width == b.vision.width);
        FUZZ_CHECK(b.vision.grid * b.vision.patch == b.vision.image_side);
        check_tensors(&b.vision_tensors);
        check_tensors(&b.head_tensors);
    }
    l2c_tensors_fini(&b.vision_tensors);
    l2c_tensors_fini(&b.llm_tensors);
    l2c_tensors_fini(&b.head_tensors);
}

#endif
