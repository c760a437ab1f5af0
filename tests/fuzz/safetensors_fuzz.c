/* Any bytes as a safetensors file. */
#include "tests/fuzz/weights_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    l2c_tensors s;
    l2cdb_error err;
    l2c_tensors_init(&s);
    if (l2c_safetensors_read(&s, data, n, "fuzz", &err) == L2CDB_OK &&
        l2c_tensors_seal(&s, "fuzz", &err) == L2CDB_OK) {
        check_tensors(&s);
        for (size_t i = 0; i < s.count; i++) {
            const uint8_t *p = s.items[i].data;
            FUZZ_CHECK(p >= data && s.items[i].bytes <= (size_t)(data + n - p));
        }
        check_as_model(&s);
    }
    l2c_tensors_fini(&s);
    return 0;
}
