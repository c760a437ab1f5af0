/* Any bytes as a torch archive, and as the pickle inside of one. */
#include "encoders/pickle.h"
#include "tests/fuzz/weights_fuzz.h"

/* Walks the graph; it has no cycle, but shared parts, so the steps are bounded. */
static void check_value(const l2c_pickle *v, int depth, size_t *steps) {
    FUZZ_CHECK(depth <= 101);
    if ((*steps)++ > 10000) {
        return;
    }
    if (v->kind == L2C_PICKLE_TUPLE || v->kind == L2C_PICKLE_LIST || v->kind == L2C_PICKLE_DICT) {
        FUZZ_CHECK(v->kind != L2C_PICKLE_DICT || v->count % 2 == 0);
        for (uint32_t i = 0; i < v->count; i++) {
            check_value(v->items[i], depth + 1, steps);
        }
    } else if (v->kind == L2C_PICKLE_STRING) {
        FUZZ_CHECK(strlen(v->string) == v->count);
    } else if (v->kind == L2C_PICKLE_TENSOR) {
        size_t last = v->tensor->offset;
        for (int i = 0; i < v->tensor->ndim; i++) {
            last += v->tensor->shape[i] > 0 ? (v->tensor->shape[i] - 1) * v->tensor->stride[i] : 0;
        }
        FUZZ_CHECK(v->tensor->count <= v->tensor->storage->numel);
        FUZZ_CHECK(v->tensor->count == 0 || last < v->tensor->storage->numel);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    l2c_tensors s;
    l2cdb_error err;
    l2c_tensors_init(&s);
    if (l2c_torch_read(&s, data, n, "fuzz", &err) == L2CDB_OK &&
        l2c_tensors_seal(&s, "fuzz", &err) == L2CDB_OK) {
        check_tensors(&s);
        check_as_model(&s);
    }
    l2c_tensors_fini(&s);

    // Seeds are whole archives: the pickle begins at its protocol.
    const uint8_t *start = n > 0 ? memchr(data, 0x80, n < 200 ? n : 200) : NULL;
    l2c_arena arena;
    l2c_arena_init(&arena, 0);
    const l2c_pickle *top;
    if (start != NULL) {
        // A pickle ends at its STOP and may not go on; the archive goes on.
        for (size_t size = 2, tries = 0; tries < 4 && start + size <= data + n; size++) {
            if (start[size - 1] != '.') {
                continue;
            }
            tries++;
            if (l2c_pickle_run(&top, &arena, start, size, "fuzz", &err) == L2CDB_OK) {
                size_t steps = 0;
                check_value(top, 0, &steps);
            }
        }
    }
    FUZZ_CHECK(arena.used_bytes <= n * 64 + (1u << 20));
    l2c_arena_fini(&arena);
    return 0;
}
