/* Memory: checked sizes, a growable byte buffer, and an arena for scratch that dies with a call.
 *
 * Three lifetimes exist in l2cdb: with the handle, with the call (arena), with the caller (buffers
 * passed in). All allocation goes through l2c_alloc so that tests can make the n-th one fail. */
#ifndef L2C_MEM_H
#define L2C_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/status.h"

/* a*b or a+b into *out; false on overflow (then *out is unspecified). */
static inline bool l2c_mul_size(size_t *out, size_t a, size_t b) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool l2c_add_size(size_t *out, size_t a, size_t b) {
    return !__builtin_add_overflow(a, b, out);
}

/* malloc/calloc/realloc with overflow check; NULL on failure or count*size overflow. Zero-sized
 * requests return a unique pointer. Freed with l2c_free (NULL accepted). */
void *l2c_alloc(size_t count, size_t size);
void *l2c_calloc(size_t count, size_t size);
void *l2c_realloc(void *p, size_t count, size_t size);
/* 64-byte aligned, for vectors and weights; contents unspecified. Freed with l2c_free. */
void *l2c_alloc_aligned(size_t count, size_t size);
char *l2c_strdup(const char *s);
char *l2c_strndup(const char *s, size_t n);
void l2c_free(void *p);

/* Tests: the allocation number `n` from now (1 = the next) fails, once; 0 switches off. */
void l2c_alloc_fail_at(uint64_t n);

/* A growable byte string. `data` is NUL-terminated whenever it is not NULL; `size` excludes the
 * NUL. Appends share a sticky status: after a failed append all later ones do nothing and
 * `failed` stays set, so a run of appends needs one check at its end. */
typedef struct l2c_buf {
    char *data;
    size_t size;
    size_t capacity;
    bool failed;
} l2c_buf;

void l2c_buf_init(l2c_buf *b);
void l2c_buf_fini(l2c_buf *b);
void l2c_buf_clear(l2c_buf *b);
bool l2c_buf_reserve(l2c_buf *b, size_t more);
void l2c_buf_append(l2c_buf *b, const void *data, size_t size);
void l2c_buf_puts(l2c_buf *b, const char *s);
void l2c_buf_putc(l2c_buf *b, char c);
void l2c_buf_printf(l2c_buf *b, const char *fmt, ...) L2CDB_PRINTF(2, 3);
/* Appends s as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD. */
void l2c_buf_json_string(l2c_buf *b, const char *s, size_t n);
/* The string itself (caller frees with l2c_free), or NULL if an append had failed. */
char *l2c_buf_take(l2c_buf *b);

/* Bump allocator in growing blocks, 64-byte aligned. Not thread-safe: one arena a thread. */
typedef struct l2c_arena {
    struct l2c_arena_block *head;
    size_t block_bytes;
    size_t used_bytes, peak_bytes;
} l2c_arena;

typedef struct l2c_arena_mark {
    struct l2c_arena_block *block;
    size_t offset, used_bytes;
} l2c_arena_mark;

/* block_bytes 0 means 1 MiB. Allocates nothing yet. */
void l2c_arena_init(l2c_arena *a, size_t block_bytes);
void l2c_arena_fini(l2c_arena *a);
/* count*size bytes, contents unspecified, 64-byte aligned; NULL on overflow or no memory. */
void *l2c_arena_alloc(l2c_arena *a, size_t count, size_t size);
/* Everything allocated after the mark is released by reset; blocks are kept for reuse. */
l2c_arena_mark l2c_arena_get_mark(const l2c_arena *a);
void l2c_arena_reset(l2c_arena *a, l2c_arena_mark mark);

#endif
