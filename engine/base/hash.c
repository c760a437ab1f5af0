/* XXH3-128 through the xxHash library. */
#include "engine/base/hash.h"

#include <string.h>
#include <xxhash.h>

static l2c_hash canonical(XXH128_hash_t value) {
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, value);
    l2c_hash h;
    memcpy(h.bytes, c.digest, sizeof h.bytes);
    return h;
}

l2c_hash l2c_hash_of(const void *data, size_t size) {
    return canonical(XXH3_128bits(data, size));
}

void l2c_hash_hex(const l2c_hash *h, char hex[L2C_HASH_HEX_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < L2C_HASH_BYTES; i++) {
        hex[2 * i] = digits[h->bytes[i] >> 4];
        hex[2 * i + 1] = digits[h->bytes[i] & 15];
    }
    hex[2 * L2C_HASH_BYTES] = '\0';
}

/* l2c_hasher is XXH3_state_t under our name. */
l2c_hasher *l2c_hasher_new(void) {
    XXH3_state_t *s = XXH3_createState();
    if (s != NULL) {
        XXH3_128bits_reset(s);
    }
    return (l2c_hasher *)s;
}

void l2c_hasher_add(l2c_hasher *h, const void *data, size_t size) {
    XXH3_128bits_update((XXH3_state_t *)h, data, size);
}

l2c_hash l2c_hasher_get(const l2c_hasher *h) {
    return canonical(XXH3_128bits_digest((const XXH3_state_t *)h));
}

void l2c_hasher_free(l2c_hasher *h) {
    XXH3_freeState((XXH3_state_t *)h);
}
