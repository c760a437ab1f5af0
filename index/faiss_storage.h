/* What the index keeps in FAISS objects, as plain C: the graph or the lists over a segment's rows.
 * Everything C++ and everything of FAISS stays behind this header. */
#ifndef L2C_FAISS_STORAGE_H
#define L2C_FAISS_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/status.h"
#include "index/index.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct l2c_ann l2c_ann;

void l2c_ann_free(l2c_ann *ann); /* NULL accepted */
uint64_t l2c_ann_memory_bytes(const l2c_ann *ann);

/* The bytes of a file that faiss.read_index opens, at the FILE's position. */
l2cdb_status l2c_ann_save(const l2c_ann *ann, FILE *f, l2cdb_error *err);
/* From bytes whose checksum has been verified. E_CORRUPT if they are not what the header said. */
l2cdb_status l2c_ann_load(l2c_ann **out, const void *data, size_t bytes, l2c_index_kind kind,
                          l2c_quant quant, size_t width, size_t count, l2cdb_error *err);

#ifdef __cplusplus
}
#endif
#endif
