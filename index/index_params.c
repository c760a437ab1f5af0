/* Parameters by name, and what `auto` chooses. */
#define _GNU_SOURCE // _SC_PHYS_PAGES
#include "index/index_params.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const kind_names[] = { "auto", "flat", "hnsw", "ivf" };
static const char *const quant_names[] = { "auto", "f32", "fp16", "sq8", "sq4", "pq" };

const char *l2c_index_kind_name(l2c_index_kind k) {
    return (size_t)k < sizeof kind_names / sizeof *kind_names ? kind_names[k] : "unknown";
}

const char *l2c_quant_name(l2c_quant q) {
    return (size_t)q < sizeof quant_names / sizeof *quant_names ? quant_names[q] : "unknown";
}

typedef struct number {
    const char *name;
    size_t offset, least, most;
} number;

static const number numbers[] = {
    { "m", offsetof(l2c_index_params, m), 4, 128 },
    { "ef_construction", offsetof(l2c_index_params, ef_construction), 8, 4096 },
    { "nlist", offsetof(l2c_index_params, nlist), 1, 1 << 20 },
    { "ef_search", offsetof(l2c_index_params, ef_search), 1, 1 << 20 },
    { "nprobe", offsetof(l2c_index_params, nprobe), 1, 1 << 20 },
    { "threads", offsetof(l2c_index_params, threads), 1, 1024 },
};

static l2cdb_status set_word(int *out, const char *name, const char *value,
                             const char *const *words, size_t n, l2cdb_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(value, words[i]) == 0) {
            *out = (int)i;
            return L2CDB_OK;
        }
    }
    char allowed[80] = "";
    for (size_t i = 0; i < n; i++) {
        size_t used = strlen(allowed);
        snprintf(allowed + used, sizeof allowed - used, "%s%s", i > 0 ? ", " : "", words[i]);
    }
    return l2c_fail(err, L2CDB_E_INVALID, "index parameter %s is '%s', expected one of %s", name,
                    value, allowed);
}

l2cdb_status l2c_index_params_set(l2c_index_params *p, const char *name, const char *value,
                                  l2cdb_error *err) {
    int word = 0;
    l2cdb_status rc;
    if (strcmp(name, "kind") == 0) {
        rc = set_word(&word, name, value, kind_names, sizeof kind_names / sizeof *kind_names, err);
        if (rc == L2CDB_OK) {
            p->kind = (l2c_index_kind)word;
        }
        return rc;
    }
    if (strcmp(name, "quant") == 0) {
        rc = set_word(&word, name, value, quant_names, sizeof quant_names / sizeof *quant_names,
                      err);
        if (rc == L2CDB_OK) {
            p->quant = (l2c_quant)word;
        }
        return rc;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const number *n = &numbers[i];
        if (strcmp(name, n->name) != 0) {
            continue;
        }
        char *end;
        errno = 0;
        unsigned long v = strtoul(value, &end, 10);
        if (errno != 0 || end == value || *end != '\0' || strchr(value, '-') != NULL ||
            v < n->least || v > n->most) {
            return l2c_fail(err, L2CDB_E_INVALID,
                            "index parameter %s is '%s', expected a number from %zu to %zu", name,
                            value, n->least, n->most);
        }
        *(size_t *)(void *)((char *)p + n->offset) = (size_t)v;
        return L2CDB_OK;
    }
    l2c_fail(err, L2CDB_E_INVALID, "there is no index parameter '%s'", name);
    l2c_hint(err,
             "known are kind, quant, m, ef_construction, ef_search, nlist, nprobe and threads");
    return L2CDB_E_INVALID;
}

static uint64_t memory_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}

/* Bytes a row of a graph: codes, 2m links on the bottom level and m on 1/(m−1) of the rows above,
 * level, offset and id. */
uint64_t l2c_graph_row_bytes(l2c_quant quant, size_t m, size_t width) {
    size_t code = quant == L2C_QUANT_F32    ? width * 4
                  : quant == L2C_QUANT_FP16 ? width * 2
                  : quant == L2C_QUANT_SQ4  ? (width + 1) / 2
                                            : width;
    return code + m * 8 + m * 4 / (m - 1) + 4 + 8 + 8;
}

static void choose_graph(l2c_index_params *p, size_t rows, size_t width, char *why, size_t size) {
    uint64_t half = memory_bytes() / 2;
    if (p->quant == L2C_QUANT_AUTO) {
        p->quant = L2C_QUANT_SQ8;
        if (rows * l2c_graph_row_bytes(L2C_QUANT_SQ8, p->m > 0 ? p->m : 32, width) > half) {
            p->quant = L2C_QUANT_SQ4;
        }
    }
    if (p->m == 0) {
        p->m = p->quant == L2C_QUANT_SQ4 ? 16 : 32;
    }
    if (p->ef_construction == 0) {
        p->ef_construction = 100;
    }
    uint64_t need = rows * l2c_graph_row_bytes(p->quant, p->m, width);
    snprintf(why, size, "%zu rows: a graph with %s codes takes %llu MB of %llu MB memory", rows,
             l2c_quant_name(p->quant), (unsigned long long)(need >> 20),
             (unsigned long long)(half >> 19));
}

static void choose_lists(l2c_index_params *p, size_t rows, char *why, size_t size) {
    if (p->quant == L2C_QUANT_AUTO) {
        p->quant = L2C_QUANT_SQ8;
    }
    if (p->nlist == 0) {
        p->nlist = (size_t)(4 * sqrt((double)rows));
    }
    // k-means needs some rows a list to mean anything.
    if (p->nlist > rows / 8) {
        p->nlist = rows / 8;
    }
    if (p->nlist < 1) {
        p->nlist = 1;
    }
    snprintf(why, size, "%zu rows in %zu lists, %s codes", rows, p->nlist,
             l2c_quant_name(p->quant));
}

void l2c_index_params_choose(l2c_index_params *p, size_t rows, size_t width, char *why,
                             size_t size) {
    bool asked = p->kind != L2C_INDEX_AUTO;
    if (!asked) {
        uint64_t half = memory_bytes() / 2;
        p->kind = rows < L2C_FLAT_ROWS                                          ? L2C_INDEX_FLAT
                  : rows * l2c_graph_row_bytes(L2C_QUANT_SQ4, 16, width) > half ? L2C_INDEX_IVF
                                                                                : L2C_INDEX_HNSW;
    }
    if (rows == 0) {
        p->kind = L2C_INDEX_FLAT; // there is nothing to build a graph from yet
    }
    char reason[120] = "";
    if (p->kind == L2C_INDEX_FLAT) {
        p->quant = L2C_QUANT_F32;
        snprintf(reason, sizeof reason, "%zu rows: below %d an exact scan is quick enough", rows,
                 L2C_FLAT_ROWS);
        if (rows >= L2C_FLAT_ROWS) {
            snprintf(reason, sizeof reason, "%zu rows, scanned exactly", rows);
        }
    } else if (p->kind == L2C_INDEX_HNSW) {
        choose_graph(p, rows, width, reason, sizeof reason);
    } else {
        choose_lists(p, rows, reason, sizeof reason);
    }
    snprintf(why, size, "%s%s", asked ? "as asked; " : "", reason);
}

l2cdb_status l2c_index_params_check(const l2c_index_params *p, size_t width, l2cdb_error *err) {
    if (p->quant == L2C_QUANT_PQ && p->kind != L2C_INDEX_IVF) {
        return l2c_fail(err, L2CDB_E_INVALID, "quant=pq is for kind=ivf, not for kind=%s",
                        l2c_index_kind_name(p->kind));
    }
    if (p->quant == L2C_QUANT_PQ && width % 4 != 0) {
        return l2c_fail(err, L2CDB_E_INVALID, "quant=pq needs a width divisible by 4, not %zu",
                        width);
    }
    return L2CDB_OK;
}
