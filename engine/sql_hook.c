/* Plain `.load ./l2cdb` is enough for `<=>`: how our SQL reaches SQLite's parser in other programs.
 *
 * SQLite's parser is not extensible, and no interface shows a statement to an extension before it
 * is parsed. `ORDER BY embedding <=> embed('a dog')` is a syntax error before anything of ours
 * runs. The ways out that were weighed:
 *  - other spellings only (MATCH, functions, l2cdb_query). They work everywhere and stay, but then
 *    the SQL of our manual is not the SQL of the sqlite3 program;
 *  - a library for LD_PRELOAD that stands before sqlite3_prepare_v2. It was here first. It must be
 *    named before the program starts, which nobody remembers and a desktop program does not offer;
 *  - a patched SQLite. It would be a second SQLite beside that of the distribution;
 *  - writing a jump over the first bytes of sqlite3_prepare_v2. It needs a disassembler, writable
 *    code, and all threads to stand still;
 *  - what is done here: the entries of the global offset tables through which the objects of the
 *    process call sqlite3_prepare and its kin are pointed to functions of ours. The loader has
 *    written these entries itself, one aligned pointer each, and keeps their places in tables that
 *    dl_iterate_phdr(3) and the ELF specification (System V ABI, chapter 5, "Dynamic Linking")
 *    describe.
 *
 * What always holds
 *  1. A statement is rewritten on connections that have loaded the extension, and on no other: for
 *     those the detour costs one look at a short list. A text the rewriter does not change, or
 *     refuses, reaches SQLite as it was, so every other error is SQLite's own.
 *  2. The real functions are called through the table SQLite gave us, never through an entry that
 *     we have changed. Entries that lead to another SQLite than ours are left alone.
 *  3. An entry, once changed, must not dangle: this library is linked with -z nodelete.
 *  4. The entry is written by one atomic store, so a thread that is calling meanwhile takes the old
 *     way or the new one. Where the loader has made its page read-only (RELRO), the page is
 *     writable for the time of that store, under a lock, and read-only again afterwards.
 *
 * What it cannot reach: SQLite linked into the program itself, or into a driver (DBeaver's, some
 * builds of Python); objects that are loaded later, until the extension is loaded once more;
 * function pointers that were stored earlier; calls inside a libsqlite3 that was linked with
 * -Bsymbolic. There the other spellings remain. L2CDB_SQL_HOOK=off leaves every entry as it is. */
#define _GNU_SOURCE // dl_iterate_phdr, dlinfo, RTLD_DEFAULT
#include "engine/sql_hook.h"

#if defined(__linux__) && defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define CAN_REDIRECT 1
#endif

/* ---- Connections with the extension ------------------------------------------------------------
 */

static pthread_rwlock_t watched_lock = PTHREAD_RWLOCK_INITIALIZER;
static l2c_sql_conn *watched; /* linked by `next` */

void l2c_sql_hook_watch(l2c_sql_conn *c) {
    pthread_rwlock_wrlock(&watched_lock);
    c->next = watched;
    watched = c;
    pthread_rwlock_unlock(&watched_lock);
}

void l2c_sql_hook_forget(l2c_sql_conn *c) {
    pthread_rwlock_wrlock(&watched_lock);
    for (l2c_sql_conn **at = &watched; *at != NULL; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            break;
        }
    }
    pthread_rwlock_unlock(&watched_lock);
}

/* Ours for this connection, or NULL. It lives as long as the connection, which the caller is using.
 */
static l2c_sql_conn *find(const sqlite3 *sqlite) {
    pthread_rwlock_rdlock(&watched_lock);
    l2c_sql_conn *c = watched;
    while (c != NULL && c->sqlite != sqlite) {
        c = c->next;
    }
    pthread_rwlock_unlock(&watched_lock);
    return c;
}

bool l2c_sql_hook_watches(sqlite3 *sqlite) {
    return find(sqlite) != NULL;
}

#ifdef CAN_REDIRECT

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/base/utf8.h"
#include "engine/sql_answer.h"
#include "engine/sql_rewrite.h"

/* ---- What is prepared instead ------------------------------------------------------------------
 */

/* True if the statement is one that we run ourselves. On a file that is no database of ours nothing
 * is, and DROP INDEX is SQLite's unless the name is that of an index on embeddings. */
static bool is_ours(const l2c_sql_conn *c, const l2c_rewrite *r) {
    if (c->db == NULL || r->verb == L2C_VERB_PLAIN || r->verb == L2C_VERB_EMPTY) {
        return false;
    }
    bool owns = true;
    l2cdb_target target;
    l2cdb_error ignored;
    return r->verb != L2C_VERB_DROP_INDEX ||
           (l2c_answer_owns_index(c->db, r->name, &owns, &target, &ignored) == L2CDB_OK && owns);
}

/* The text to prepare instead of sql[0..r->tail), to be freed with l2c_free; NULL to leave it as it
 * is. A statement of ours is a call of l2cdb_exec: one row with its answer, or no row. */
static char *replacement(const l2c_sql_conn *c, const l2c_rewrite *r, const char *sql) {
    if (!is_ours(c, r)) {
        return r->verb == L2C_VERB_PLAIN && r->changed ? l2c_strdup(r->text.data) : NULL;
    }
    size_t columns;
    const char *const *names = l2c_answer_names(r->verb, &columns);
    l2c_buf b;
    l2c_buf_init(&b);
    l2c_buf_puts(&b, columns > 0 ? "SELECT l2cdb_exec('" : "SELECT 1 WHERE l2cdb_exec('");
    for (size_t i = 0; i < r->tail; i++) {
        l2c_buf_puts(&b, sql[i] == '\'' ? "'" : "");
        l2c_buf_putc(&b, sql[i]);
    }
    l2c_buf_puts(&b, "')");
    if (columns > 0) {
        l2c_buf_printf(&b, " AS %s", columns == 1 ? names[0] : "report");
    } else {
        l2c_buf_puts(&b, " NOTNULL");
    }
    return l2c_buf_take(&b);
}

/* ---- In the place of SQLite's functions --------------------------------------------------------
 */

/* sqlite3_prepare, _v2 and _v3 in one. */
static int real(int version, sqlite3 *sqlite, const char *sql, int n, unsigned flags,
                sqlite3_stmt **out, const char **tail) {
    switch (version) {
    case 1:
        return sqlite3_prepare(sqlite, sql, n, out, tail);
    case 2:
        return sqlite3_prepare_v2(sqlite, sql, n, out, tail);
    default:
        return sqlite3_prepare_v3(sqlite, sql, n, flags, out, tail);
    }
}

/* Prepares what stands for sql[0..size) on a watched connection and sets *used to the bytes of this
 * statement; *changed false if it is to be prepared as it is, and then nothing was prepared. */
static int prepare_changed(l2c_sql_conn *c, int version, const char *sql, size_t size,
                           unsigned flags, sqlite3_stmt **out, size_t *used, bool *changed) {
    *changed = false;
    c->error_from = c->error_to = -1;
    l2c_rewrite r;
    if (l2c_rewrite_run(&r, sql, size, NULL) != L2CDB_OK) {
        return SQLITE_OK;
    }
    char *text = replacement(c, &r, sql);
    int rc = SQLITE_OK;
    if (text != NULL) {
        *changed = true;
        *used = r.tail;
        rc = real(version, c->sqlite, text, -1, flags, out, NULL);
        int offset = rc != SQLITE_OK ? sqlite3_error_offset(c->sqlite) : -1;
        if (offset >= 0) {
            c->error_from = offset;
            c->error_to = is_ours(c, &r) ? -1 : (int)l2c_rewrite_offset(&r, (size_t)offset);
        }
    }
    l2c_free(text);
    l2c_rewrite_fini(&r);
    return rc;
}

static int prepare(int version, sqlite3 *sqlite, const char *sql, int n, unsigned flags,
                   sqlite3_stmt **out, const char **tail) {
    l2c_sql_conn *c = find(sqlite);
    if (c == NULL || sql == NULL || out == NULL) {
        return real(version, sqlite, sql, n, flags, out, tail);
    }
    size_t used = 0, size = n < 0 ? strlen(sql) : strnlen(sql, (size_t)n);
    bool changed;
    sqlite3_mutex_enter(sqlite3_db_mutex(sqlite));
    int rc = prepare_changed(c, version, sql, size, flags, out, &used, &changed);
    if (!changed) {
        rc = real(version, sqlite, sql, n, flags, out, tail);
    } else if (tail != NULL) {
        *tail = sql + used;
    }
    sqlite3_mutex_leave(sqlite3_db_mutex(sqlite));
    return rc;
}

static int prepare_v1(sqlite3 *sqlite, const char *sql, int n, sqlite3_stmt **out,
                      const char **tail) {
    return prepare(1, sqlite, sql, n, 0, out, tail);
}

static int prepare_v2(sqlite3 *sqlite, const char *sql, int n, sqlite3_stmt **out,
                      const char **tail) {
    return prepare(2, sqlite, sql, n, 0, out, tail);
}

static int prepare_v3(sqlite3 *sqlite, const char *sql, int n, unsigned flags, sqlite3_stmt **out,
                      const char **tail) {
    return prepare(3, sqlite, sql, n, flags, out, tail);
}

/* UTF-16 in the machine's byte order, as Qt has it. */

static int real16(int version, sqlite3 *sqlite, const void *sql, int n, unsigned flags,
                  sqlite3_stmt **out, const void **tail) {
    switch (version) {
    case 1:
        return sqlite3_prepare16(sqlite, sql, n, out, tail);
    case 2:
        return sqlite3_prepare16_v2(sqlite, sql, n, out, tail);
    default:
        return sqlite3_prepare16_v3(sqlite, sql, n, flags, out, tail);
    }
}

static uint16_t unit_at(const char *sql, size_t i) {
    uint16_t unit; // the text need not be aligned
    memcpy(&unit, sql + i * sizeof unit, sizeof unit);
    return unit;
}

/* units[0..n) up to a zero as UTF-8, to be freed; NULL if a surrogate stands alone or without
 * memory. */
static char *utf8_of(const char *sql, size_t n) {
    l2c_buf b;
    l2c_buf_init(&b);
    bool valid = true;
    for (size_t i = 0; i < n && unit_at(sql, i) != 0 && valid; i++) {
        uint32_t code = unit_at(sql, i);
        uint32_t low = i + 1 < n ? unit_at(sql, i + 1) : 0;
        if (code >= 0xD800 && code < 0xDC00 && low >= 0xDC00 && low < 0xE000) {
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            i++;
        }
        char bytes[4];
        size_t size = l2c_utf8_encode(code, bytes);
        valid = size > 0;
        l2c_buf_append(&b, bytes, size);
    }
    if (!valid) {
        l2c_buf_fini(&b);
        return NULL;
    }
    return l2c_buf_take(&b);
}

/* Units of UTF-16 that the first `size` bytes of valid UTF-8 take. */
static size_t units_of(const char *text, size_t size) {
    size_t units = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code = 0;
        at += l2c_utf8_decode(text + at, size - at, &code);
        units += code > 0xFFFF ? 2 : 1;
    }
    return units;
}

static int prepare_wide(int version, sqlite3 *sqlite, const void *sql, int n, unsigned flags,
                        sqlite3_stmt **out, const void **tail) {
    l2c_sql_conn *c = find(sqlite);
    char *text = c != NULL && sql != NULL && out != NULL
                     ? utf8_of(sql, n < 0 ? SIZE_MAX : (size_t)n / sizeof(uint16_t))
                     : NULL;
    if (text == NULL) {
        return real16(version, sqlite, sql, n, flags, out, tail);
    }
    size_t used = 0;
    bool changed;
    sqlite3_mutex_enter(sqlite3_db_mutex(sqlite));
    int rc = prepare_changed(c, version, text, strlen(text), flags, out, &used, &changed);
    if (!changed) {
        rc = real16(version, sqlite, sql, n, flags, out, tail);
    } else if (tail != NULL) {
        *tail = (const char *)sql + units_of(text, used) * sizeof(uint16_t);
    }
    sqlite3_mutex_leave(sqlite3_db_mutex(sqlite));
    l2c_free(text);
    return rc;
}

static int prepare16_v1(sqlite3 *sqlite, const void *sql, int n, sqlite3_stmt **out,
                        const void **tail) {
    return prepare_wide(1, sqlite, sql, n, 0, out, tail);
}

static int prepare16_v2(sqlite3 *sqlite, const void *sql, int n, sqlite3_stmt **out,
                        const void **tail) {
    return prepare_wide(2, sqlite, sql, n, 0, out, tail);
}

static int prepare16_v3(sqlite3 *sqlite, const void *sql, int n, unsigned flags, sqlite3_stmt **out,
                        const void **tail) {
    return prepare_wide(3, sqlite, sql, n, flags, out, tail);
}

/* Where the caret of an error stands, in the text that the program gave. */
static int error_offset(sqlite3 *sqlite) {
    l2c_sql_conn *c = find(sqlite);
    int offset = sqlite3_error_offset(sqlite);
    return c != NULL && offset >= 0 && offset == c->error_from ? c->error_to : offset;
}

/* ---- Imports -----------------------------------------------------------------------------------
 */

typedef void (*function)(void);

typedef struct imported {
    const char *name;
    function ours, real;
} imported;

#define IMPORTS_COUNT 7

/* The real ones are known once SQLite has handed us its table. */
static void list_imports(imported list[IMPORTS_COUNT]) {
    const imported known[IMPORTS_COUNT] = {
        { "sqlite3_prepare", (function)prepare_v1, (function)sqlite3_prepare },
        { "sqlite3_prepare_v2", (function)prepare_v2, (function)sqlite3_prepare_v2 },
        { "sqlite3_prepare_v3", (function)prepare_v3, (function)sqlite3_prepare_v3 },
        { "sqlite3_prepare16", (function)prepare16_v1, (function)sqlite3_prepare16 },
        { "sqlite3_prepare16_v2", (function)prepare16_v2, (function)sqlite3_prepare16_v2 },
        { "sqlite3_prepare16_v3", (function)prepare16_v3, (function)sqlite3_prepare16_v3 },
        { "sqlite3_error_offset", (function)error_offset, (function)sqlite3_error_offset },
    };
    memcpy(list, known, sizeof known);
}

/* One object of the process. `handle` keeps it from being unloaded while we write into it. */
typedef struct object {
    void *handle;
    ElfW(Addr) base;
    const ElfW(Phdr) * segments;
    size_t segments_count;
    const ElfW(Sym) * symbols;
    const char *strings;
    const ElfW(Rela) * tables[2]; // of functions that are called, and of everything else
    size_t tables_bytes[2];
} object;

typedef struct seen {
    char *name;
    ElfW(Addr) base;
    const ElfW(Phdr) * segments;
    size_t segments_count;
} seen;

typedef struct seen_list {
    seen *items;
    size_t count, capacity;
} seen_list;

/* Only notes: the loader holds a lock meanwhile, so nothing may be opened here. */
static int note_object(struct dl_phdr_info *info, size_t size, void *ctx) {
    (void)size;
    seen_list *list = ctx;
    if (list->count == list->capacity) {
        size_t more = list->capacity == 0 ? 64 : list->capacity * 2;
        seen *items = l2c_realloc(list->items, more, sizeof *items);
        if (items == NULL) {
            return 1;
        }
        list->items = items;
        list->capacity = more;
    }
    char *name = l2c_strdup(info->dlpi_name != NULL ? info->dlpi_name : "");
    if (name == NULL) {
        return 1;
    }
    list->items[list->count++] = (seen){ name, info->dlpi_addr, info->dlpi_phdr, info->dlpi_phnum };
    return 0;
}

/* A pointer out of the dynamic section: some loaders have added the base to it, some have not. */
static const void *dynamic_pointer(ElfW(Addr) base, ElfW(Addr) value) {
    return (const void *)(value < base ? base + value : value);
}

static bool open_object(object *o, const seen *s) {
    *o = (object){ .base = s->base, .segments = s->segments, .segments_count = s->segments_count };
    o->handle = dlopen(s->name[0] != 0 ? s->name : NULL, RTLD_LAZY | RTLD_NOLOAD);
    struct link_map *map = NULL;
    if (o->handle == NULL || dlinfo(o->handle, RTLD_DI_LINKMAP, &map) != 0 || map == NULL ||
        map->l_addr != s->base) {
        return false; // the kernel's page, or unloaded meanwhile
    }
    bool rela = true;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB:
            o->symbols = dynamic_pointer(s->base, d->d_un.d_ptr);
            break;
        case DT_STRTAB:
            o->strings = dynamic_pointer(s->base, d->d_un.d_ptr);
            break;
        case DT_JMPREL:
            o->tables[0] = dynamic_pointer(s->base, d->d_un.d_ptr);
            break;
        case DT_PLTRELSZ:
            o->tables_bytes[0] = d->d_un.d_val;
            break;
        case DT_PLTREL:
            rela = d->d_un.d_val == DT_RELA;
            break;
        case DT_RELA:
            o->tables[1] = dynamic_pointer(s->base, d->d_un.d_ptr);
            break;
        case DT_RELASZ:
            o->tables_bytes[1] = d->d_un.d_val;
            break;
        default:
            break;
        }
    }
    return rela && o->symbols != NULL && o->strings != NULL;
}

static void close_object(object *o) {
    if (o->handle != NULL) {
        dlclose(o->handle);
    }
}

static bool in_object(const object *o, ElfW(Addr) address) {
    for (size_t i = 0; i < o->segments_count; i++) {
        const ElfW(Phdr) *p = &o->segments[i];
        if (p->p_type == PT_LOAD && address - (o->base + p->p_vaddr) < p->p_memsz) {
            return true;
        }
    }
    return false;
}

static bool is_import_type(unsigned type) {
#ifdef __x86_64__
    return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT;
#else
    return type == R_AARCH64_JUMP_SLOT || type == R_AARCH64_GLOB_DAT;
#endif
}

static function found_by_name(const object *o, const char *name) {
    void *symbol = dlsym(RTLD_DEFAULT, name);
    symbol = symbol != NULL ? symbol : dlsym(o->handle, name);
    function f;
    memcpy(&f, &symbol, sizeof f);
    return f;
}

/* True if the entry leads to the SQLite that has loaded us: it holds the address, or the loader has
 * not looked yet (lazy binding; then it points into the object's own stubs) and will find it. */
static bool leads_to(const object *o, const imported *i, const ElfW(Sym) * symbol, function value) {
    if (value == i->real) {
        return true;
    }
    ElfW(Addr) address = (ElfW(Addr))value;
    bool own = symbol->st_shndx != SHN_UNDEF && address == o->base + symbol->st_value;
    return !own && in_object(o, address) && found_by_name(o, i->name) == i->real;
}

/* Writes an entry of the global offset table. */
static bool redirect(const object *o, function *entry, function to) {
    static size_t page_bytes;
    page_bytes = page_bytes != 0 ? page_bytes : (size_t)sysconf(_SC_PAGESIZE);
    ElfW(Addr) page = (ElfW(Addr))entry & ~(ElfW(Addr))(page_bytes - 1);
    bool sealed = false;
    for (size_t i = 0; i < o->segments_count; i++) {
        const ElfW(Phdr) *p = &o->segments[i];
        ElfW(Addr) start = (o->base + p->p_vaddr) & ~(ElfW(Addr))(page_bytes - 1);
        ElfW(Addr) end = (o->base + p->p_vaddr + p->p_memsz) & ~(ElfW(Addr))(page_bytes - 1);
        sealed = sealed || (p->p_type == PT_GNU_RELRO && page >= start && page < end);
    }
    if (sealed && mprotect((void *)page, page_bytes, PROT_READ | PROT_WRITE) != 0) {
        return false; // a system that forbids it: the other spellings remain
    }
    __atomic_store_n(entry, to, __ATOMIC_RELEASE);
    if (sealed) {
        (void)mprotect((void *)page, page_bytes, PROT_READ);
    }
    return true;
}

static size_t redirect_all(const object *o, const imported list[IMPORTS_COUNT]) {
    size_t done = 0;
    for (size_t t = 0; t < 2; t++) {
        size_t count = o->tables[t] != NULL ? o->tables_bytes[t] / sizeof *o->tables[t] : 0;
        for (size_t k = 0; k < count; k++) {
            const ElfW(Rela) *rela = &o->tables[t][k];
            const ElfW(Sym) *symbol = &o->symbols[ELF64_R_SYM(rela->r_info)];
            const char *name = o->strings + symbol->st_name;
            // An undefined symbol with a value: the program has its own stub for the function, and
            // the address that SQLite's table holds is that stub. It must go on leading to SQLite.
            bool stub = symbol->st_shndx == SHN_UNDEF && symbol->st_value != 0;
            if (!is_import_type((unsigned)ELF64_R_TYPE(rela->r_info)) || stub ||
                strncmp(name, "sqlite3_", 8) != 0) {
                continue;
            }
            function *entry = (function *)(o->base + rela->r_offset);
            for (size_t i = 0; i < IMPORTS_COUNT; i++) {
                if (strcmp(name, list[i].name) != 0) {
                    continue;
                }
                function value = __atomic_load_n(entry, __ATOMIC_ACQUIRE);
                done += value == list[i].ours || (leads_to(o, &list[i], symbol, value) &&
                                                  redirect(o, entry, list[i].ours))
                            ? 1
                            : 0;
            }
        }
    }
    return done;
}

size_t l2c_sql_hook_install(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const char *wish = getenv("L2CDB_SQL_HOOK");
    if (wish != NULL && strcasecmp(wish, "off") == 0) {
        return 0;
    }
    imported list[IMPORTS_COUNT];
    seen_list objects = { 0 };
    size_t done = 0;
    list_imports(list);
    pthread_mutex_lock(&lock);
    dl_iterate_phdr(note_object, &objects);
    for (size_t i = 0; i < objects.count; i++) {
        object o;
        done += open_object(&o, &objects.items[i]) ? redirect_all(&o, list) : 0;
        close_object(&o);
        l2c_free(objects.items[i].name);
    }
    pthread_mutex_unlock(&lock);
    l2c_free(objects.items);
    return done;
}

#else

size_t l2c_sql_hook_install(void) {
    return 0;
}

#endif
