/* The SQL rewriter under libFuzzer: any text. Besides memory errors it looks for a broken promise:
 * an output that still holds an operator, an offset outside the input, a statement without `<=>`
 * that was changed all the same, a tail that goes backwards. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sql_rewrite.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void promise(int kept) {
    if (!kept) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *sql = (const char *)data;
    size_t at = 0;
    while (at < size) {
        l2c_rewrite r;
        l2cdb_error err;
        l2cdb_status rc = l2c_rewrite_run(&r, sql + at, size - at, &err);
        if (rc != L2CDB_OK) {
            promise(err.message[0] != 0);
            promise(err.offset <= (int64_t)(size - at));
            break;
        }
        promise(r.tail > 0 && r.tail <= size - at);
        for (size_t i = 0; i < r.text.size; i++) {
            promise(l2c_rewrite_offset(&r, i) <= r.tail);
        }
        if (!r.changed && r.verb == L2C_VERB_PLAIN) {
            promise(r.text.size <= r.tail);
            promise(memcmp(r.text.data, sql + at, r.text.size) == 0);
        }
        if (r.verb == L2C_VERB_PLAIN) {
            l2c_rewrite again;
            if (l2c_rewrite_run(&again, r.text.data, r.text.size, &err) == L2CDB_OK) {
                promise(again.operators == 0);
                l2c_rewrite_fini(&again);
            }
        }
        at += r.tail;
        l2c_rewrite_fini(&r);
    }
    (void)l2c_rewrite_complete(sql, size);
    return 0;
}
