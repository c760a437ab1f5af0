/* A tool of the build: tokenizer_compile IN.json OUT.bin. The default model's tokenizer goes into
 * the program in its compiled form. */
#include <stdio.h>

#include "encoders/tokenizer.h"
#include "engine/base/file.h"

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: tokenizer_compile IN.json OUT.bin\n");
        return 2;
    }
    l2cdb_error err;
    l2c_tokenizer *t = NULL;
    l2c_buf out;
    l2c_buf_init(&out);
    l2cdb_status rc = l2c_tokenizer_open(&t, argv[1], &err);
    if (rc == L2CDB_OK) {
        rc = l2c_tokenizer_save(t, &out, &err);
    }
    if (rc == L2CDB_OK) {
        rc = l2c_file_replace(argv[2], out.data, out.size, &err);
    }
    if (rc != L2CDB_OK) {
        fprintf(stderr, "tokenizer_compile: %s\n", err.message);
    }
    l2c_buf_fini(&out);
    l2c_tokenizer_close(t);
    return rc == L2CDB_OK ? 0 : 1;
}
