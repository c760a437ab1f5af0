/* Content hashes and checksums: XXH3 in its 128-bit form (github.com/Cyan4973/xxHash).
 *
 * Not cryptographic. It finds equal photos, names weights and detects damage; 128 bits make an
 * accidental collision among 10^12 files less likely than a disk error. Nothing that grants a
 * right depends on it. */
#ifndef L2C_HASH_H
#define L2C_HASH_H

#include <stddef.h>
#include <stdint.h>

#define L2C_HASH_BYTES 16
#define L2C_HASH_HEX_BYTES 33

typedef struct l2c_hash {
    uint8_t bytes[L2C_HASH_BYTES]; /* canonical (big-endian) form: the same on every machine */
} l2c_hash;

l2c_hash l2c_hash_of(const void *data, size_t size);
/* 32 lower-case hexadecimal digits and a NUL. */
void l2c_hash_hex(const l2c_hash *h, char hex[L2C_HASH_HEX_BYTES]);

/* Streaming; the state is a heap object. new returns NULL without memory. */
typedef struct l2c_hasher l2c_hasher;
l2c_hasher *l2c_hasher_new(void);
void l2c_hasher_add(l2c_hasher *h, const void *data, size_t size);
l2c_hash l2c_hasher_get(const l2c_hasher *h);
void l2c_hasher_free(l2c_hasher *h);

#endif
