// FAISS objects behind a C interface; see faiss_storage.h.
#include "index/faiss_storage.h"

#include <new>

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>

#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_io_c.h>

struct l2c_ann {
    l2c_index_kind kind;
    l2c_quant quant;
    FaissIndex *index;
};

static l2cdb_status faiss_failed(l2cdb_error *err, l2cdb_status code, const char *what) {
    return l2c_fail(err, code, "%s: FAISS: %s", what, faiss_get_last_error());
}

extern "C" {

void l2c_ann_free(l2c_ann *ann) {
    if (ann != nullptr) {
        faiss_Index_free(ann->index);
        delete ann;
    }
}

uint64_t l2c_ann_memory_bytes(const l2c_ann *ann) {
    const auto *index = reinterpret_cast<const faiss::Index *>(ann->index);
    if (const auto *graph = dynamic_cast<const faiss::IndexHNSW *>(index)) {
        const faiss::HNSW &h = graph->hnsw;
        uint64_t bytes = h.neighbors.size() * sizeof(h.neighbors[0]) +
                         h.offsets.size() * sizeof(h.offsets[0]) +
                         h.levels.size() * sizeof(h.levels[0]);
        const auto *codes = dynamic_cast<const faiss::IndexFlatCodes *>(graph->storage);
        return bytes + (codes != nullptr ? codes->codes.size() : 0);
    }
    const auto *lists = dynamic_cast<const faiss::IndexIVF *>(index);
    return lists == nullptr ? 0
                            : static_cast<uint64_t>(lists->ntotal) * (lists->code_size + 8) +
                                  lists->nlist * static_cast<uint64_t>(lists->d) * sizeof(float);
}

l2cdb_status l2c_ann_save(const l2c_ann *ann, FILE *f, l2cdb_error *err) {
    return faiss_write_index(ann->index, f) == OK
               ? L2CDB_OK
               : faiss_failed(err, L2CDB_E_IO, "writing the index");
}

l2cdb_status l2c_ann_load(l2c_ann **out, const void *data, size_t bytes, l2c_index_kind kind,
                          l2c_quant quant, size_t width, size_t count, l2cdb_error *err) {
    *out = nullptr;
    FILE *f = fmemopen(const_cast<void *>(data), bytes, "rb");
    FaissIndex *index = nullptr;
    if (f == nullptr) {
        return l2c_fail_nomem(err, bytes);
    }
    int rc = faiss_read_index(f, 0, &index);
    fclose(f);
    if (rc != OK) {
        return faiss_failed(err, L2CDB_E_CORRUPT, "reading the index");
    }
    l2c_ann *ann = new (std::nothrow) l2c_ann{ kind, quant, index };
    if (ann == nullptr) {
        faiss_Index_free(index);
        return l2c_fail_nomem(err, sizeof *ann);
    }
    if (static_cast<size_t>(faiss_Index_ntotal(index)) != count ||
        static_cast<size_t>(faiss_Index_d(index)) != width ||
        faiss_Index_metric_type(index) != METRIC_INNER_PRODUCT) {
        l2c_ann_free(ann);
        return l2c_fail(err, L2CDB_E_CORRUPT, "the FAISS part does not fit its header");
    }
    *out = ann;
    return L2CDB_OK;
}
}
