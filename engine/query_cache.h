/* The cache of query vectors; see query_cache.c. Any thread. */
#ifndef L2C_QUERY_CACHE_H
#define L2C_QUERY_CACHE_H

#include "engine/engine.h"

l2c_hash l2c_query_cache_key(const l2c_generation *g, const l2c_hash *heads, const char *text);
/* True and out f32 [width] filled if the key is there. */
bool l2c_query_cache_get(l2c_query_cache *c, const l2c_hash *key, float *out, size_t width);
void l2c_query_cache_put(l2c_query_cache *c, const l2c_hash *key, const float *v, size_t width);

#endif
