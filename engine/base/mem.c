/* Allocation, byte buffer and arena. See mem.h for the contracts. */
#include "engine/base/mem.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/utf8.h"

static _Atomic uint64_t fail_countdown;

void l2c_alloc_fail_at(uint64_t n) {
    atomic_store(&fail_countdown, n);
}

static bool fails_now(void) {
    uint64_t n = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    if (n == 0) {
        return false;
    }
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

void *l2c_alloc(size_t count, size_t size) {
    size_t bytes;
    if (!l2c_mul_size(&bytes, count, size) || fails_now()) {
        return NULL;
    }
    return malloc(bytes > 0 ? bytes : 1);
}

void *l2c_calloc(size_t count, size_t size) {
    size_t bytes;
    if (!l2c_mul_size(&bytes, count, size) || fails_now()) {
        return NULL;
    }
    return calloc(bytes > 0 ? bytes : 1, 1);
}

void *l2c_realloc(void *p, size_t count, size_t size) {
    size_t bytes;
    if (!l2c_mul_size(&bytes, count, size) || fails_now()) {
        return NULL;
    }
    return realloc(p, bytes > 0 ? bytes : 1);
}

void *l2c_alloc_aligned(size_t count, size_t size) {
    size_t bytes, padded;
    if (!l2c_mul_size(&bytes, count, size) || !l2c_add_size(&padded, bytes, 63) || fails_now()) {
        return NULL;
    }
    padded &= ~(size_t)63;
    return aligned_alloc(64, padded > 0 ? padded : 64);
}

char *l2c_strndup(const char *s, size_t n) {
    if (n == SIZE_MAX) {
        return NULL;
    }
    char *copy = l2c_alloc(n + 1, 1);
    if (copy != NULL) {
        memcpy(copy, s, n);
        copy[n] = '\0';
    }
    return copy;
}

char *l2c_strdup(const char *s) {
    return l2c_strndup(s, strlen(s));
}

void l2c_free(void *p) {
    free(p);
}

void l2c_buf_init(l2c_buf *b) {
    *b = (l2c_buf){ 0 };
}

void l2c_buf_fini(l2c_buf *b) {
    l2c_free(b->data);
    l2c_buf_init(b);
}

void l2c_buf_clear(l2c_buf *b) {
    b->size = 0;
    b->failed = false;
    if (b->data != NULL) {
        b->data[0] = '\0';
    }
}

bool l2c_buf_reserve(l2c_buf *b, size_t more) {
    size_t need;
    if (b->failed || !l2c_add_size(&need, b->size, more) || !l2c_add_size(&need, need, 1)) {
        b->failed = true;
        return false;
    }
    if (need <= b->capacity) {
        return true;
    }
    size_t capacity = b->capacity < 64 ? 64 : b->capacity;
    while (capacity < need) {
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    }
    char *grown = l2c_realloc(b->data, capacity, 1);
    if (grown == NULL) {
        b->failed = true;
        return false;
    }
    b->data = grown;
    b->capacity = capacity;
    return true;
}

void l2c_buf_append(l2c_buf *b, const void *data, size_t size) {
    if (!l2c_buf_reserve(b, size)) {
        return;
    }
    if (size > 0) {
        memcpy(b->data + b->size, data, size);
    }
    b->size += size;
    b->data[b->size] = '\0';
}

void l2c_buf_puts(l2c_buf *b, const char *s) {
    l2c_buf_append(b, s, strlen(s));
}

void l2c_buf_putc(l2c_buf *b, char c) {
    l2c_buf_append(b, &c, 1);
}

void l2c_buf_printf(l2c_buf *b, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        b->failed = true;
    } else if (l2c_buf_reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
}

void l2c_buf_json_string(l2c_buf *b, const char *s, size_t n) {
    l2c_buf_putc(b, '"');
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        if (c < 0x20 || c == '"' || c == '\\' || c == 0x7F) {
            const char *short_form = c == '"'    ? "\\\""
                                     : c == '\\' ? "\\\\"
                                     : c == '\n' ? "\\n"
                                     : c == '\r' ? "\\r"
                                     : c == '\t' ? "\\t"
                                                 : NULL;
            if (short_form != NULL) {
                l2c_buf_puts(b, short_form);
            } else {
                l2c_buf_printf(b, "\\u%04x", c);
            }
            i++;
        } else if (c < 0x80) {
            l2c_buf_putc(b, (char)c);
            i++;
        } else {
            uint32_t code;
            size_t used = l2c_utf8_decode(s + i, n - i, &code);
            if (used == 0) {
                l2c_buf_puts(b, "\xEF\xBF\xBD");
                i++;
            } else {
                l2c_buf_append(b, s + i, used);
                i += used;
            }
        }
    }
    l2c_buf_putc(b, '"');
}

char *l2c_buf_take(l2c_buf *b) {
    if (b->failed || (b->data == NULL && !l2c_buf_reserve(b, 0))) {
        l2c_buf_fini(b);
        return NULL;
    }
    char *s = b->data;
    s[b->size] = '\0';
    l2c_buf_init(b);
    return s;
}

/* Blocks form a list from newest to oldest; reset walks back and keeps one spare block, so that a
 * steady workload settles into no allocation at all. */
struct l2c_arena_block {
    struct l2c_arena_block *next;
    size_t capacity, used;
    unsigned char pad[64 - sizeof(void *) - 2 * sizeof(size_t)];
    unsigned char data[];
};

void l2c_arena_init(l2c_arena *a, size_t block_bytes) {
    *a = (l2c_arena){ .block_bytes = block_bytes > 0 ? block_bytes : (size_t)1 << 20 };
}

void l2c_arena_fini(l2c_arena *a) {
    struct l2c_arena_block *b = a->head;
    while (b != NULL) {
        struct l2c_arena_block *next = b->next;
        l2c_free(b);
        b = next;
    }
    a->head = NULL;
    a->used_bytes = 0;
}

void *l2c_arena_alloc(l2c_arena *a, size_t count, size_t size) {
    size_t bytes;
    if (!l2c_mul_size(&bytes, count, size) || !l2c_add_size(&bytes, bytes, 63)) {
        return NULL;
    }
    bytes &= ~(size_t)63;
    struct l2c_arena_block *b = a->head;
    if (b == NULL || b->capacity - b->used < bytes) {
        size_t capacity = bytes > a->block_bytes ? bytes : a->block_bytes;
        size_t total;
        if (!l2c_add_size(&total, sizeof *b, capacity)) {
            return NULL;
        }
        b = l2c_alloc_aligned(total, 1);
        if (b == NULL) {
            return NULL;
        }
        b->next = a->head;
        b->capacity = capacity;
        b->used = 0;
        a->head = b;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    a->used_bytes += bytes;
    if (a->used_bytes > a->peak_bytes) {
        a->peak_bytes = a->used_bytes;
    }
    return p;
}

l2c_arena_mark l2c_arena_get_mark(const l2c_arena *a) {
    return (l2c_arena_mark){ .block = a->head,
                             .offset = a->head != NULL ? a->head->used : 0,
                             .used_bytes = a->used_bytes };
}

void l2c_arena_reset(l2c_arena *a, l2c_arena_mark mark) {
    size_t wanted = a->peak_bytes;
    bool several = a->head != mark.block && a->head != NULL && a->head->next != mark.block;
    while (a->head != mark.block) {
        struct l2c_arena_block *b = a->head;
        assert(b != NULL);
        if (!several && b->next == mark.block) {
            b->used = 0;
            // The only block above the mark stays for the next call, unless it hides mark.block.
            if (mark.block == NULL) {
                a->used_bytes = mark.used_bytes;
                return;
            }
        }
        a->head = b->next;
        l2c_free(b);
    }
    if (a->head != NULL) {
        a->head->used = mark.offset;
    }
    if (several && mark.block == NULL && wanted > a->block_bytes) {
        a->block_bytes = wanted; // next time one block is enough
    }
    a->used_bytes = mark.used_bytes;
}
