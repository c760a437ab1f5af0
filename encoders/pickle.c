/* The pickle machine; see pickle.h. Source: Python's pickletools (the opcodes), design notes 8.3
 * (which of them torch writes).
 *
 * A pickle is a program. This machine leaves out every opcode that could reach code: the only
 * callables are collections.OrderedDict and torch's two rebuild functions, and they are cases of a
 * switch. Costs stay linear in the bytes: each opcode does a bounded amount of work, a memo slot
 * cannot be farther than the pickle is long, and cycles are found by one colouring walk. */
#include "encoders/pickle.h"

#include <string.h>

#include "engine/base/utf8.h"

#define PICKLE_BYTES_MAX (4u << 20) /* a checkpoint with optimizer state has some 200 kB */
#define DEPTH_MAX 100
#define MEMO_FREE 65536 /* slots that a pickle of any length may name */

typedef enum global {
    GLOBAL_ORDERED_DICT,
    GLOBAL_REBUILD_TENSOR,
    GLOBAL_REBUILD_PARAMETER,
    GLOBAL_STORAGE, /* + dtype */
} global;

static const struct {
    const char *module, *name;
    int value;
} globals[] = {
    { "collections", "OrderedDict", GLOBAL_ORDERED_DICT },
    { "torch._utils", "_rebuild_tensor_v2", GLOBAL_REBUILD_TENSOR },
    { "torch._utils", "_rebuild_parameter", GLOBAL_REBUILD_PARAMETER },
    { "torch", "HalfStorage", GLOBAL_STORAGE + L2C_DTYPE_F16 },
    { "torch", "FloatStorage", GLOBAL_STORAGE + L2C_DTYPE_F32 },
    { "torch", "BFloat16Storage", GLOBAL_STORAGE + L2C_DTYPE_BF16 },
    { "torch", "DoubleStorage", GLOBAL_STORAGE + L2C_DTYPE_F64 },
    { "torch", "LongStorage", GLOBAL_STORAGE + L2C_DTYPE_I64 },
    { "torch", "IntStorage", GLOBAL_STORAGE + L2C_DTYPE_I32 },
    { "torch", "BoolStorage", GLOBAL_STORAGE + L2C_DTYPE_BOOL },
};

typedef struct machine {
    l2c_arena *arena;
    const uint8_t *p;
    size_t n, at;
    l2c_pickle **stack, **memo;
    size_t stack_count, stack_capacity, memo_capacity;
    size_t *marks;
    size_t marks_count, marks_capacity;
    char *block; /* where small values come from; the arena itself aligns to 64 bytes */
    size_t block_left;
    const char *what;
    l2cdb_error *err;
} machine;

static l2cdb_status broken(machine *m, const char *why) {
    return l2c_fail(m->err, L2CDB_E_FORMAT, "%s: data.pkl, byte %zu: %s", m->what, m->at, why);
}

/* Room for item `index` of a growing array; doubles. */
static bool grow(void **array, size_t *capacity, size_t index, size_t item_bytes) {
    if (index < *capacity) {
        return true;
    }
    size_t wanted = *capacity > 0 ? *capacity : 64;
    while (wanted <= index) {
        wanted *= 2;
    }
    void *p = l2c_realloc(*array, wanted, item_bytes);
    if (p == NULL) {
        return false;
    }
    memset((char *)p + *capacity * item_bytes, 0, (wanted - *capacity) * item_bytes);
    *array = p;
    *capacity = wanted;
    return true;
}

/* Small memory, 8-byte aligned, so that a value costs no more than a few times its opcode. */
static void *small(machine *m, size_t count, size_t size) {
    size_t bytes;
    if (!l2c_mul_size(&bytes, count, size) || bytes > SIZE_MAX - 7) {
        return NULL;
    }
    bytes = (bytes + 7) & ~(size_t)7;
    if (bytes > 1024) {
        return l2c_arena_alloc(m->arena, bytes, 1);
    }
    if (bytes > m->block_left) {
        m->block = l2c_arena_alloc(m->arena, 16384, 1);
        if (m->block == NULL) {
            m->block_left = 0;
            return NULL;
        }
        m->block_left = 16384;
    }
    void *p = m->block;
    m->block += bytes;
    m->block_left -= bytes;
    return p;
}

static l2c_pickle *new_value(machine *m, l2c_pickle_kind kind) {
    l2c_pickle *v = small(m, 1, sizeof *v);
    if (v != NULL) {
        *v = (l2c_pickle){ .kind = (uint8_t)kind };
    }
    return v;
}

static l2cdb_status push(machine *m, l2c_pickle *v) {
    if (v == NULL ||
        !grow((void **)&m->stack, &m->stack_capacity, m->stack_count, sizeof *m->stack)) {
        return l2c_fail_nomem(m->err, sizeof *v);
    }
    m->stack[m->stack_count++] = v;
    return L2CDB_OK;
}

static l2cdb_status push_int(machine *m, l2c_pickle_kind kind, int64_t integer) {
    l2c_pickle *v = new_value(m, kind);
    if (v != NULL) {
        v->integer = integer;
    }
    return push(m, v);
}

/* Values above the last mark may be popped, not the mark itself. */
static l2c_pickle *pop(machine *m) {
    size_t floor = m->marks_count > 0 ? m->marks[m->marks_count - 1] : 0;
    return m->stack_count > floor ? m->stack[--m->stack_count] : NULL;
}

static l2c_pickle *top(machine *m) {
    size_t floor = m->marks_count > 0 ? m->marks[m->marks_count - 1] : 0;
    return m->stack_count > floor ? m->stack[m->stack_count - 1] : NULL;
}

/* Unsigned little-endian number of k bytes; false at the end of the pickle. */
static bool read_number(machine *m, size_t k, uint64_t *out) {
    if (m->n - m->at < k) {
        return false;
    }
    *out = 0;
    for (size_t i = k; i > 0; i--) {
        *out = *out << 8 | m->p[m->at + i - 1];
    }
    m->at += k;
    return true;
}

static l2cdb_status push_string(machine *m, size_t length_bytes) {
    uint64_t length;
    if (!read_number(m, length_bytes, &length) || length > m->n - m->at) {
        return broken(m, "a string reaches past the end");
    }
    const char *s = (const char *)m->p + m->at;
    if (!l2c_utf8_valid(s, (size_t)length, NULL) || memchr(s, 0, (size_t)length) != NULL) {
        return broken(m, "a string is not UTF-8");
    }
    char *copy = small(m, (size_t)length + 1, 1);
    l2c_pickle *v = new_value(m, L2C_PICKLE_STRING);
    if (copy == NULL || v == NULL) {
        return l2c_fail_nomem(m->err, length);
    }
    memcpy(copy, s, (size_t)length);
    copy[length] = '\0';
    v->string = copy;
    v->count = (uint32_t)length;
    m->at += (size_t)length;
    return push(m, v);
}

static l2cdb_status push_global(machine *m) {
    const char *words[2];
    size_t lengths[2];
    for (int i = 0; i < 2; i++) {
        const uint8_t *start = m->p + m->at;
        const uint8_t *end = memchr(start, '\n', m->n - m->at);
        if (end == NULL) {
            return broken(m, "a global has no end");
        }
        words[i] = (const char *)start;
        lengths[i] = (size_t)(end - start);
        m->at += lengths[i] + 1;
    }
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (strlen(globals[i].module) == lengths[0] && strlen(globals[i].name) == lengths[1] &&
            memcmp(globals[i].module, words[0], lengths[0]) == 0 &&
            memcmp(globals[i].name, words[1], lengths[1]) == 0) {
            return push_int(m, L2C_PICKLE_GLOBAL, globals[i].value);
        }
    }
    char found[2][64];
    for (int i = 0; i < 2; i++) {
        size_t n = lengths[i] < sizeof found[i] - 1 ? lengths[i] : sizeof found[i] - 1;
        for (size_t k = 0; k < n; k++) {
            found[i][k] = words[i][k] >= ' ' && words[i][k] <= '~' ? words[i][k] : '?';
        }
        found[i][n] = '\0';
    }
    l2c_fail(m->err, L2CDB_E_UNSUPPORTED,
             "%s: data.pkl wants %s.%s; only tensors in dictionaries are read, nothing is run",
             m->what, found[0], found[1]);
    return l2c_hint(m->err, "save the model's state_dict alone, or use a safetensors file");
}

/* Removes the last mark; *first is where its values begin on the stack. */
static l2cdb_status take_mark(machine *m, size_t *first) {
    if (m->marks_count == 0) {
        return broken(m, "no mark is set");
    }
    *first = m->marks[--m->marks_count];
    return L2CDB_OK;
}

static l2cdb_status append(machine *m, l2c_pickle *list, l2c_pickle **values, size_t n) {
    if (list->count + n > list->capacity) {
        size_t capacity = list->capacity > 0 ? (size_t)list->capacity * 2 : 8;
        while (capacity < list->count + n) {
            capacity *= 2;
        }
        l2c_pickle **items = small(m, capacity, sizeof *items);
        if (items == NULL) {
            return l2c_fail_nomem(m->err, capacity * sizeof *items);
        }
        if (list->count > 0) {
            memcpy(items, list->items, list->count * sizeof *items);
        }
        list->items = items;
        list->capacity = (uint32_t)capacity;
    }
    if (n > 0) {
        memcpy(list->items + list->count, values, n * sizeof *values);
    }
    list->count += (uint32_t)n;
    return L2CDB_OK;
}

/* The n topmost values as a tuple. */
static l2cdb_status push_tuple(machine *m, size_t n) {
    size_t floor = m->marks_count > 0 ? m->marks[m->marks_count - 1] : 0;
    l2c_pickle *v = new_value(m, L2C_PICKLE_TUPLE);
    if (v == NULL) {
        return l2c_fail_nomem(m->err, sizeof *v);
    }
    if (m->stack_count - floor < n) {
        return broken(m, "the stack is empty");
    }
    v->items = small(m, n, sizeof *v->items);
    if (v->items == NULL) {
        return l2c_fail_nomem(m->err, n * sizeof *v->items);
    }
    m->stack_count -= n;
    if (n > 0) {
        memcpy(v->items, m->stack + m->stack_count, n * sizeof *v->items);
    }
    v->count = (uint32_t)n;
    return push(m, v);
}

/* SETITEMS, APPENDS (marked) and SETITEM, APPEND (n values). */
static l2cdb_status add_items(machine *m, l2c_pickle_kind kind, bool marked, size_t n) {
    if (marked) {
        size_t first = 0;
        l2cdb_status rc = take_mark(m, &first);
        if (rc != L2CDB_OK) {
            return rc;
        }
        n = m->stack_count - first;
    }
    size_t floor = m->marks_count > 0 ? m->marks[m->marks_count - 1] : 0;
    if (m->stack_count - floor < n + 1) {
        return broken(m, "the stack is empty");
    }
    l2c_pickle *to = m->stack[m->stack_count - n - 1];
    if (to->kind != kind || (kind == L2C_PICKLE_DICT && n % 2 != 0)) {
        return broken(m, kind == L2C_PICKLE_DICT ? "these are no pairs for a dictionary"
                                                 : "items for something that is no list");
    }
    m->stack_count -= n;
    return append(m, to, m->stack + m->stack_count, n);
}

static l2cdb_status memo_put(machine *m, size_t index_bytes) {
    uint64_t index;
    l2c_pickle *v = top(m);
    if (!read_number(m, index_bytes, &index) || v == NULL) {
        return broken(m, "nothing to remember");
    }
    // torch numbers the slots from 0, and every PUT takes two bytes or more; others leave gaps.
    if (index >= m->n && index >= MEMO_FREE) {
        return broken(m, "a memo slot is out of range");
    }
    if (!grow((void **)&m->memo, &m->memo_capacity, (size_t)index, sizeof *m->memo)) {
        return l2c_fail_nomem(m->err, index * sizeof *m->memo);
    }
    m->memo[index] = v;
    return L2CDB_OK;
}

static l2cdb_status memo_get(machine *m, size_t index_bytes) {
    uint64_t index;
    if (!read_number(m, index_bytes, &index) || index >= m->memo_capacity ||
        m->memo[index] == NULL) {
        return broken(m, "a memo slot is empty");
    }
    return push(m, m->memo[index]);
}

static bool is_kind(const l2c_pickle *v, l2c_pickle_kind kind) {
    return v != NULL && v->kind == (uint8_t)kind;
}

static bool is_size(const l2c_pickle *v) {
    return is_kind(v, L2C_PICKLE_INT) && v->integer >= 0;
}

static bool key_is_plain(const l2c_pickle *v) {
    return v->count > 0 && v->count <= 64 &&
           strspn(v->string, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-") ==
               v->count;
}

/* ('storage', storage class, key, location, numel) */
static l2cdb_status push_storage(machine *m) {
    l2c_pickle *id = pop(m);
    if (!is_kind(id, L2C_PICKLE_TUPLE) || id->count != 5 ||
        !is_kind(id->items[0], L2C_PICKLE_STRING) || strcmp(id->items[0]->string, "storage") != 0 ||
        !is_kind(id->items[1], L2C_PICKLE_GLOBAL) || id->items[1]->integer < GLOBAL_STORAGE ||
        !is_kind(id->items[2], L2C_PICKLE_STRING) || !is_kind(id->items[3], L2C_PICKLE_STRING)) {
        return broken(m, "a persistent id is no storage");
    }
    if (!key_is_plain(id->items[2])) {
        return broken(m, "the key of a storage is no plain name");
    }
    l2c_pickle *v = new_value(m, L2C_PICKLE_STORAGE);
    l2c_pickle_storage *s = small(m, 1, sizeof *s);
    if (v == NULL || s == NULL) {
        return l2c_fail_nomem(m->err, sizeof *s);
    }
    s->dtype = (l2c_dtype)(id->items[1]->integer - GLOBAL_STORAGE);
    s->key = id->items[2]->string;
    size_t bytes;
    if (!is_size(id->items[4]) ||
        !l2c_mul_size(&bytes, (size_t)id->items[4]->integer, l2c_dtype_bytes(s->dtype))) {
        return broken(m, "the size of a storage is out of range");
    }
    s->numel = (size_t)id->items[4]->integer;
    v->storage = s;
    return push(m, v);
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static l2cdb_status rebuild_tensor(machine *m, const l2c_pickle *args) {
    if (args->count < 6 || args->count > 7 || !is_kind(args->items[0], L2C_PICKLE_STORAGE) ||
        !is_size(args->items[1]) || !is_kind(args->items[2], L2C_PICKLE_TUPLE) ||
        !is_kind(args->items[3], L2C_PICKLE_TUPLE) ||
        args->items[2]->count != args->items[3]->count) {
        return broken(m, "the arguments of a tensor are wrong");
    }
    const l2c_pickle *size = args->items[2], *stride = args->items[3];
    if (size->count > L2C_TENSOR_DIMS_MAX) {
        return broken(m, "a tensor has too many dimensions");
    }
    l2c_pickle *v = new_value(m, L2C_PICKLE_TENSOR);
    l2c_pickle_tensor *t = small(m, 1, sizeof *t);
    if (v == NULL || t == NULL) {
        return l2c_fail_nomem(m->err, sizeof *t);
    }
    *t = (l2c_pickle_tensor){ .storage = args->items[0]->storage,
                              .ndim = (int)size->count,
                              .offset = (size_t)args->items[1]->integer,
                              .count = 1 };
    size_t last = t->offset, reach;
    for (uint32_t i = 0; i < size->count; i++) {
        if (!is_size(size->items[i]) || !is_size(stride->items[i])) {
            return broken(m, "a size or stride is out of range");
        }
        t->shape[i] = (size_t)size->items[i]->integer;
        t->stride[i] = (size_t)stride->items[i]->integer;
        if (!l2c_mul_size(&t->count, t->count, t->shape[i]) ||
            (t->shape[i] > 0 && (!l2c_mul_size(&reach, t->shape[i] - 1, t->stride[i]) ||
                                 !l2c_add_size(&last, last, reach)))) {
            return broken(m, "a tensor is too large");
        }
    }
    // count may exceed numel only by repeating elements (stride 0), which no weight file does and
    // which would turn a small file into a large copy.
    if (t->offset > t->storage->numel || t->count > t->storage->numel ||
        (t->count > 0 && last >= t->storage->numel)) {
        return broken(m, "a tensor reaches past its storage");
    }
    v->tensor = t;
    return push(m, v);
}

static l2cdb_status reduce(machine *m) {
    l2c_pickle *args = pop(m), *callable = pop(m);
    if (!is_kind(callable, L2C_PICKLE_GLOBAL) || !is_kind(args, L2C_PICKLE_TUPLE)) {
        return broken(m, "a call of something that is no function");
    }
    switch (callable->integer) {
    case GLOBAL_ORDERED_DICT:
        return args->count == 0 ? push(m, new_value(m, L2C_PICKLE_DICT))
                                : broken(m, "OrderedDict with arguments");
    case GLOBAL_REBUILD_TENSOR:
        return rebuild_tensor(m, args);
    case GLOBAL_REBUILD_PARAMETER:
        return args->count == 3 && is_kind(args->items[0], L2C_PICKLE_TENSOR)
                   ? push(m, args->items[0])
                   : broken(m, "the arguments of a parameter are wrong");
    default:
        return broken(m, "a storage class is called");
    }
}

/* OrderedDict carries its `_metadata` this way; nothing else is built. */
static l2cdb_status build(machine *m) {
    l2c_pickle *state = pop(m), *object = top(m);
    if (!is_kind(state, L2C_PICKLE_DICT) || !is_kind(object, L2C_PICKLE_DICT)) {
        return broken(m, "attributes for something that has none");
    }
    return L2CDB_OK;
}

static l2cdb_status push_long(machine *m) {
    uint64_t length, value;
    if (!read_number(m, 1, &length) || length > 8 || !read_number(m, (size_t)length, &value)) {
        return broken(m, "an integer is too long");
    }
    if (length > 0 && length < 8 && (value >> (length * 8 - 1) & 1) != 0) {
        value |= ~(uint64_t)0 << (length * 8);
    }
    return push_int(m, L2C_PICKLE_INT, (int64_t)value);
}

static l2cdb_status push_plain(machine *m, size_t bytes) {
    uint64_t value;
    if (!read_number(m, bytes, &value)) {
        return broken(m, "a number reaches past the end");
    }
    return push_int(m, L2C_PICKLE_INT,
                    bytes == 4 ? (int64_t)(int32_t)(uint32_t)value : (int64_t)value);
}

static l2cdb_status set_mark(machine *m) {
    if (!grow((void **)&m->marks, &m->marks_capacity, m->marks_count, sizeof *m->marks)) {
        return l2c_fail_nomem(m->err, m->marks_count * sizeof *m->marks);
    }
    m->marks[m->marks_count++] = m->stack_count;
    return L2CDB_OK;
}

static l2cdb_status tuple_marked(machine *m) {
    size_t first = 0;
    l2cdb_status rc = take_mark(m, &first);
    return rc == L2CDB_OK ? push_tuple(m, m->stack_count - first) : rc;
}

static l2cdb_status step(machine *m, uint8_t op) {
    uint64_t number;
    switch (op) {
    case '(':
        return set_mark(m);
    case '}':
        return push(m, new_value(m, L2C_PICKLE_DICT));
    case ']':
        return push(m, new_value(m, L2C_PICKLE_LIST));
    case ')':
        return push_tuple(m, 0);
    case 't':
        return tuple_marked(m);
    case 0x85:
        return push_tuple(m, 1);
    case 0x86:
        return push_tuple(m, 2);
    case 0x87:
        return push_tuple(m, 3);
    case 's':
        return add_items(m, L2C_PICKLE_DICT, false, 2);
    case 'u':
        return add_items(m, L2C_PICKLE_DICT, true, 0);
    case 'a':
        return add_items(m, L2C_PICKLE_LIST, false, 1);
    case 'e':
        return add_items(m, L2C_PICKLE_LIST, true, 0);
    case 'q':
        return memo_put(m, 1);
    case 'r':
        return memo_put(m, 4);
    case 'h':
        return memo_get(m, 1);
    case 'j':
        return memo_get(m, 4);
    case 'X':
        return push_string(m, 4);
    case 0x8c:
        return push_string(m, 1);
    case 'J':
        return push_plain(m, 4);
    case 'K':
        return push_plain(m, 1);
    case 'M':
        return push_plain(m, 2);
    case 0x8a:
        return push_long(m);
    case 'N':
        return push(m, new_value(m, L2C_PICKLE_NONE));
    case 0x88:
        return push_int(m, L2C_PICKLE_BOOL, 1);
    case 0x89:
        return push_int(m, L2C_PICKLE_BOOL, 0);
    case 'G':
        // Learning rates of optimizers: the value itself is never used.
        return read_number(m, 8, &number) ? push(m, new_value(m, L2C_PICKLE_FLOAT))
                                          : broken(m, "a number reaches past the end");
    case 'c':
        return push_global(m);
    case 'R':
        return reduce(m);
    case 'b':
        return build(m);
    case 'Q':
        return push_storage(m);
    default:
        return l2c_fail(m->err, L2CDB_E_UNSUPPORTED,
                        "%s: data.pkl, byte %zu: opcode 0x%02x is not one that torch writes",
                        m->what, m->at - 1, op);
    }
}

/* White 0, grey 1 (on the path), black 2. Recursion is at most DEPTH_MAX deep. */
static bool is_acyclic(l2c_pickle *v, int depth) {
    bool container =
        v->kind == L2C_PICKLE_TUPLE || v->kind == L2C_PICKLE_LIST || v->kind == L2C_PICKLE_DICT;
    if (!container || v->mark == 2) {
        return true;
    }
    if (v->mark == 1 || depth == DEPTH_MAX) {
        return false;
    }
    v->mark = 1;
    for (uint32_t i = 0; i < v->count; i++) {
        if (!is_acyclic(v->items[i], depth + 1)) {
            return false;
        }
    }
    v->mark = 2;
    return true;
}

static l2cdb_status run(machine *m, const l2c_pickle **out) {
    if (m->n > PICKLE_BYTES_MAX) {
        return l2c_fail(m->err, L2CDB_E_LIMIT, "%s: data.pkl has %zu bytes, at most %u are read",
                        m->what, m->n, PICKLE_BYTES_MAX);
    }
    if (m->n < 2 || m->p[0] != 0x80 || m->p[1] < 2 || m->p[1] > 4) {
        return broken(m, "expected a pickle of protocol 2");
    }
    m->at = 2;
    for (;;) {
        if (m->at == m->n) {
            return broken(m, "the pickle has no end");
        }
        uint8_t op = m->p[m->at++];
        if (op == '.') {
            break;
        }
        l2cdb_status rc = step(m, op);
        if (rc != L2CDB_OK) {
            return rc;
        }
    }
    if (m->at != m->n || m->stack_count != 1 || m->marks_count != 0) {
        return broken(m, "the pickle ends in an odd state");
    }
    if (!is_acyclic(m->stack[0], 0)) {
        return broken(m, "a value contains itself, or is nested too deeply");
    }
    *out = m->stack[0];
    return L2CDB_OK;
}

l2cdb_status l2c_pickle_run(const l2c_pickle **out, l2c_arena *arena, const uint8_t *p, size_t n,
                            const char *what, l2cdb_error *err) {
    machine m = { .arena = arena, .p = p, .n = n, .what = what, .err = err };
    *out = NULL;
    l2cdb_status rc = run(&m, out);
    l2c_free(m.stack);
    l2c_free(m.memo);
    l2c_free(m.marks);
    return rc;
}

const l2c_pickle *l2c_pickle_get(const l2c_pickle *dict, const char *key) {
    if (!is_kind(dict, L2C_PICKLE_DICT)) {
        return NULL;
    }
    // The last one counts, as in Python.
    for (uint32_t i = dict->count; i >= 2; i -= 2) {
        const l2c_pickle *k = dict->items[i - 2];
        if (k->kind == L2C_PICKLE_STRING && strcmp(k->string, key) == 0) {
            return dict->items[i - 1];
        }
    }
    return NULL;
}
