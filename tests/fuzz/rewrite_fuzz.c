/* The SQL rewriter under libFuzzer: any text. Besides memory errors it looks for a broken promise:
 * an output that still holds an operator, an offset outside the input, a statement without `<=>`
 * that was changed all the same, a tail that goes backwards. */
#include <string.h>

#include "engine/sql_rewrite.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *sql = (const char *)data;
    size_t at = 0;
    while (at < size) {
        l2c_rewrite r;
        l2cdb_error err;
        l2cdb_status rc = l2c_rewrite_run(&r, sql + at, size - at, &err);
        if (rc != L2CDB_OK) {
            FUZZ_CHECK(err.message[0] != 0);
            FUZZ_CHECK(err.offset <= (int64_t)(size - at));
            break;
        }
        FUZZ_CHECK(r.tail > 0 && r.tail <= size - at);
        for (size_t i = 0; i < r.text.size; i++) {
            FUZZ_CHECK(l2c_rewrite_offset(&r, i) <= r.tail);
        }
        if (!r.changed && r.verb == L2C_VERB_PLAIN) {
            FUZZ_CHECK(r.text.size <= r.tail);
            FUZZ_CHECK(memcmp(r.text.data, sql + at, r.text.size) == 0);
        }
        if (r.verb == L2C_VERB_PLAIN) {
            l2c_rewrite again;
            if (l2c_rewrite_run(&again, r.text.data, r.text.size, &err) == L2CDB_OK) {
                FUZZ_CHECK(again.operators == 0);
                l2c_rewrite_fini(&again);
            }
        }
        at += r.tail;
        l2c_rewrite_fini(&r);
    }
    (void)l2c_rewrite_complete(sql, size);
    return 0;
}
