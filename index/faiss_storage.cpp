// FAISS objects behind a C interface; see faiss_storage.h.
//
// FAISS trains, encodes, keeps the arrays and reads and writes the file. What is ours is where the
// time goes: Debian compiles FAISS for SSE, so the classes below replace its assignment to lists
// and its scanning of them by the kernels of codes.c and kernels.c, and graphs are linked and
// searched by graph.c in FAISS's own arrays. A file written from these classes is that of their
// FAISS ancestors, since FAISS looks at the ancestor when it writes.
#include "index/faiss_storage.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/FaissException.h>

#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_io_c.h>

#include "index/huge_pages.h"
#include "index/kernels.h"

namespace {

using idx = faiss::Index::idx_t;

template <typename T> void reserve_huge(std::vector<T> &v, size_t n) {
    v.reserve(n);
    l2c_huge_pages(v.data(), n * sizeof(T));
}

/* The centroids: brute force with our kernels. A tile of centroids stays in the second-level cache
 * while a tile of queries passes over it. */
struct Centroids : faiss::IndexFlatIP {
    explicit Centroids(idx width) : faiss::IndexFlatIP(width) {
    }

    void search(idx n, const float *x, idx k, float *distances, idx *labels,
                const faiss::SearchParameters *params) const override {
        FAISS_THROW_IF_NOT(params == nullptr);
        const idx query_tile = 32, row_tile = 256;
#pragma omp parallel for schedule(dynamic) if (n > query_tile)
        for (idx q0 = 0; q0 < n; q0 += query_tile) {
            idx q1 = std::min(n, q0 + query_tile);
            float dots[row_tile];
            for (idx q = q0; q < q1; q++) {
                faiss::minheap_heapify(size_t(k), distances + q * k, labels + q * k);
            }
            for (idx r0 = 0; r0 < ntotal; r0 += row_tile) {
                idx rows = std::min(ntotal - r0, row_tile);
                for (idx q = q0; q < q1; q++) {
                    l2c_kernel_dots_block(dots, x + q * d, get_xb() + r0 * d, size_t(rows),
                                          size_t(d));
                    float *heap = distances + q * k;
                    for (idx r = 0; r < rows; r++) {
                        if (dots[r] > heap[0]) {
                            faiss::minheap_replace_top(size_t(k), heap, labels + q * k, dots[r],
                                                       r0 + r);
                        }
                    }
                }
            }
            for (idx q = q0; q < q1; q++) {
                faiss::minheap_reorder(size_t(k), distances + q * k, labels + q * k);
            }
        }
    }
};

struct Scanner : faiss::InvertedListScanner {
    const l2c_codes *kind;
    l2c_codes_query query{};
    std::unique_ptr<uint8_t[]> memory;

    Scanner(const l2c_codes *codes, bool pairs, const faiss::IDSelector *selector)
        : faiss::InvertedListScanner(pairs, selector), kind(codes),
          memory(new uint8_t[codes->query_bytes + 64]) {
        keep_max = true;
        code_size = codes->row_bytes;
    }

    void set_query(const float *x) override {
        auto aligned = (reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t(63);
        l2c_codes_prepare(&query, kind, x, reinterpret_cast<void *>(aligned));
    }

    void set_list(idx list, float) override {
        list_no = list;
    }

    float distance_to_code(const uint8_t *code) const override {
        float dot;
        l2c_codes_dots_block(&dot, &query, code, 1);
        return dot;
    }

    /* Rows that a selector refuses are not computed. */
    size_t scan_codes(size_t n, const uint8_t *codes, const idx *ids, float *heap, idx *labels,
                      size_t k) const override {
        const size_t group = 64;
        const uint8_t *rows[group + 4];
        size_t places[group], updates = 0, m = 0;
        float dots[group];
        for (size_t i = 0; i <= n; i++) {
            if (i < n && (sel == nullptr || sel->is_member(ids[i]))) {
                rows[m] = codes + i * code_size;
                places[m++] = i;
            }
            if (m < group && i < n) {
                continue;
            }
            for (size_t j = 0; j < m; j += 4) {
                for (size_t r = m; r < j + 4; r++) {
                    rows[r] = rows[m - 1];
                }
                float four[4];
                kind->dots4(four, &query, rows + j);
                std::copy(four, four + std::min(size_t(4), m - j), dots + j);
            }
            for (size_t j = 0; j < m; j++) {
                if (dots[j] > heap[0]) {
                    idx id = store_pairs ? faiss::lo_build(uint64_t(list_no), places[j])
                                         : ids[places[j]];
                    faiss::minheap_replace_top(k, heap, labels, dots[j], id);
                    updates++;
                }
            }
            m = 0;
        }
        return updates;
    }
};

struct Lists : faiss::IndexIVFFlat {
    l2c_codes kind{};
    using faiss::IndexIVFFlat::IndexIVFFlat;

    void ready() {
        l2c_codes_init(&kind, L2C_QUANT_F32, size_t(d), nullptr, nullptr, nullptr);
    }
    faiss::InvertedListScanner *
    get_InvertedListScanner(bool pairs, const faiss::IDSelector *selector) const override {
        return new Scanner(&kind, pairs, selector);
    }
};

/* FAISS decodes c as min + (c + 1/2)/levels*range. */
void code_steps(std::vector<float> &min, std::vector<float> &step, const faiss::ScalarQuantizer &sq,
                float levels) {
    size_t n = sq.d;
    min.resize(n);
    step.resize(n);
    for (size_t i = 0; i < n; i++) {
        step[i] = sq.trained[n + i] / levels;
        min[i] = sq.trained[i] + 0.5f * step[i];
    }
}

l2c_quant quant_of(const faiss::ScalarQuantizer &sq) {
    return sq.qtype == faiss::ScalarQuantizer::QT_fp16   ? L2C_QUANT_FP16
           : sq.qtype == faiss::ScalarQuantizer::QT_8bit ? L2C_QUANT_SQ8
                                                         : L2C_QUANT_SQ4;
}

/* Codes of a scalar quantiser as codes.h wants them. */
struct Steps {
    std::vector<float> min, step;

    void init(l2c_codes *codes, const faiss::ScalarQuantizer &sq, const uint8_t *rows) {
        l2c_quant quant = quant_of(sq);
        if (quant != L2C_QUANT_FP16) {
            code_steps(min, step, sq, quant == L2C_QUANT_SQ8 ? 255.0f : 15.0f);
        }
        l2c_codes_init(codes, quant, sq.d, rows, min.data(), step.data());
    }
};

struct CodedLists : faiss::IndexIVFScalarQuantizer {
    l2c_codes kind{};
    Steps steps;
    using faiss::IndexIVFScalarQuantizer::IndexIVFScalarQuantizer;

    void ready() {
        steps.init(&kind, sq, nullptr);
    }
    faiss::InvertedListScanner *
    get_InvertedListScanner(bool pairs, const faiss::IDSelector *selector) const override {
        return new Scanner(&kind, pairs, selector);
    }
};

struct Selector : faiss::IDSelector {
    const l2c_ann_filter *filter;

    explicit Selector(const l2c_ann_filter *f) : filter(f) {
    }
    bool is_member(idx id) const override {
        return filter->pass(filter->ctx, size_t(id));
    }
};

faiss::ScalarQuantizer::QuantizerType type_of(l2c_quant quant) {
    return quant == L2C_QUANT_FP16  ? faiss::ScalarQuantizer::QT_fp16
           : quant == L2C_QUANT_SQ4 ? faiss::ScalarQuantizer::QT_4bit
                                    : faiss::ScalarQuantizer::QT_8bit;
}

/* Every (count/most)-th row. */
std::vector<float> sample(const float *vectors, size_t count, size_t width, size_t most) {
    size_t n = std::min(count, most);
    std::vector<float> out(n * width);
    for (size_t i = 0; i < n; i++) {
        const float *row = vectors + (i * count / n) * width;
        std::copy(row, row + width, out.data() + i * width);
    }
    return out;
}

void set_range(faiss::ScalarQuantizer &sq) {
    if (sq.qtype == faiss::ScalarQuantizer::QT_4bit) {
        // Sixteen levels are better spent on the middle of a dimension than on its extremes.
        sq.rangestat = faiss::ScalarQuantizer::RS_meanstd;
        sq.rangestat_arg = 2.6f;
    }
}

void train_codes(faiss::ScalarQuantizer &sq, const std::vector<float> &rows, size_t width) {
    set_range(sq);
    sq.train(rows.size() / width, rows.data());
}

struct Cancelled {};

struct Progress {
    l2c_index_progress_fn fn;
    void *ctx;

    void operator()(const char *phase, size_t done, size_t total) const {
        if (fn != nullptr && !fn(ctx, phase, done, total)) {
            throw Cancelled();
        }
    }
};

} // namespace

struct l2c_ann {
    std::unique_ptr<faiss::Index> index;
    l2c_index_kind kind = L2C_INDEX_HNSW;
    l2c_quant quant = L2C_QUANT_SQ8;
    l2c_graph graph{};
    l2c_codes codes{};
    Steps steps;
};

namespace {

/* The views of graph.c into FAISS's arrays. */
void graph_views(l2c_ann *ann) {
    auto &h = static_cast<faiss::IndexHNSW *>(ann->index.get())->hnsw;
    auto *storage = static_cast<faiss::IndexFlatCodes *>(
        static_cast<faiss::IndexHNSW *>(ann->index.get())->storage);
    ann->graph.count = size_t(ann->index->ntotal);
    ann->graph.degree0 = size_t(h.nb_neighbors(0));
    ann->graph.degree = size_t(h.nb_neighbors(1));
    ann->graph.offsets = h.offsets.data();
    ann->graph.levels = h.levels.data();
    ann->graph.neighbors = h.neighbors.data();
    ann->graph.entry = h.entry_point;
    ann->graph.max_level = h.max_level;
    const uint8_t *rows = storage->codes.data();
    if (auto *coded = dynamic_cast<faiss::IndexScalarQuantizer *>(storage)) {
        ann->steps.init(&ann->codes, coded->sq, rows);
    } else {
        l2c_codes_init(&ann->codes, L2C_QUANT_F32, size_t(ann->index->d), rows, nullptr, nullptr);
    }
}

void encode(std::vector<uint8_t> &codes, size_t code_bytes, const float *vectors, size_t count,
            size_t width, const Progress &progress,
            const std::function<void(const float *, uint8_t *, size_t)> &encoder) {
    const size_t chunk = 4096;
    reserve_huge(codes, count * code_bytes);
    codes.resize(count * code_bytes);
    for (size_t i = 0; i < count; i += chunk) {
        size_t n = std::min(chunk, count - i);
        encoder(vectors + i * width, codes.data() + i * code_bytes, n);
        progress("train", i + n, count);
    }
}

void set_levels(faiss::HNSW &h, size_t count) {
    h.levels.resize(count);
    h.offsets.resize(count + 1);
    for (size_t i = 0; i < count; i++) {
        int level = h.random_level();
        h.levels[i] = level + 1;
        h.offsets[i + 1] = h.offsets[i] + size_t(h.cum_nb_neighbors(level + 1));
    }
    reserve_huge(h.neighbors, h.offsets[count]);
    h.neighbors.resize(h.offsets[count], -1);
}

l2cdb_status build_graph(l2c_ann *ann, const float *vectors, size_t count, size_t width,
                         const l2c_index_params *p, const Progress &progress, l2cdb_error *err) {
    std::unique_ptr<faiss::IndexHNSW> index;
    if (p->quant == L2C_QUANT_F32) {
        index.reset(new faiss::IndexHNSWFlat(int(width), int(p->m), faiss::METRIC_INNER_PRODUCT));
    } else {
        index.reset(new faiss::IndexHNSWSQ(int(width), type_of(p->quant), int(p->m),
                                           faiss::METRIC_INNER_PRODUCT));
    }
    index->hnsw.efConstruction = int(p->ef_construction);
    std::vector<float> rows = sample(vectors, count, width, 32768);
    auto *storage = static_cast<faiss::IndexFlatCodes *>(index->storage);
    if (auto *scalar = dynamic_cast<faiss::IndexScalarQuantizer *>(storage)) {
        train_codes(scalar->sq, rows, width);
    }
    storage->is_trained = index->is_trained = true;

    // The graph is built on the codes themselves, or on bytes that are dropped afterwards where the
    // codes are larger than bytes.
    faiss::ScalarQuantizer sq8(width, faiss::ScalarQuantizer::QT_8bit);
    std::vector<uint8_t> own;
    const uint8_t *built_on = nullptr;
    bool coded = p->quant == L2C_QUANT_SQ8 || p->quant == L2C_QUANT_SQ4;
    if (!coded) {
        train_codes(sq8, rows, width);
        encode(own, width, vectors, count, width, progress,
               [&](const float *x, uint8_t *to, size_t n) { sq8.compute_codes(x, to, n); });
        built_on = own.data();
    }
    encode(storage->codes, storage->code_size, vectors, count, width, progress,
           [&](const float *x, uint8_t *to, size_t n) { storage->sa_encode(idx(n), x, to); });
    storage->ntotal = index->ntotal = idx(count);
    if (coded) {
        built_on = storage->codes.data();
    }
    set_levels(index->hnsw, count);
    faiss::HNSW &h = index->hnsw;
    ann->index = std::move(index);
    graph_views(ann);
    Steps steps;
    l2c_codes codes;
    steps.init(&codes, coded ? static_cast<faiss::IndexScalarQuantizer *>(storage)->sq : sq8,
               built_on);
    l2cdb_status rc = l2c_graph_build(&ann->graph, &codes, p->ef_construction, p->threads,
                                      progress.fn, progress.ctx, err);
    h.entry_point = ann->graph.entry;
    h.max_level = ann->graph.max_level;
    if (p->ef_search > 0) {
        h.efSearch = int(p->ef_search);
    }
    return rc;
}

faiss::IndexIVF *new_lists(Centroids *centroids, size_t width, const l2c_index_params *p) {
    size_t nlist = p->nlist;
    if (p->quant == L2C_QUANT_F32) {
        auto *lists = new Lists(centroids, width, nlist, faiss::METRIC_INNER_PRODUCT);
        lists->ready();
        return lists;
    }
    if (p->quant == L2C_QUANT_PQ) {
        size_t parts = width % 8 == 0 ? width / 8 : width / 4;
        auto *lists =
            new faiss::IndexIVFPQ(centroids, width, nlist, parts, 8, faiss::METRIC_INNER_PRODUCT);
        lists->pq.cp.min_points_per_centroid = 1; // else FAISS prints its opinion
        return lists;
    }
    return new CodedLists(centroids, width, nlist, type_of(p->quant), faiss::METRIC_INNER_PRODUCT,
                          false);
}

void build_lists(l2c_ann *ann, const float *vectors, size_t count, size_t width,
                 const l2c_index_params *p, const Progress &progress) {
    auto centroids = std::make_unique<Centroids>(idx(width));
    std::unique_ptr<faiss::IndexIVF> lists(new_lists(centroids.get(), width, p));
    lists->own_fields = true;
    centroids.release();
    lists->cp.niter = 10;
    lists->cp.spherical = true;
    lists->cp.min_points_per_centroid = 1;
    lists->cp.max_points_per_centroid = 64;
    progress("train", 0, count);
    std::vector<float> rows = sample(vectors, count, width, std::max<size_t>(64 * p->nlist, 16384));
    auto *coded = dynamic_cast<CodedLists *>(lists.get());
    if (coded != nullptr) {
        set_range(coded->sq);
    }
    lists->train(idx(rows.size() / width), rows.data());
    if (coded != nullptr) {
        coded->ready();
    }
    const size_t chunk = 8192;
    for (size_t i = 0; i < count; i += chunk) {
        progress("build", i, count);
        lists->add(idx(std::min(chunk, count - i)), vectors + i * width);
    }
    lists->nprobe = std::max<size_t>(p->nprobe, 1);
    ann->index = std::move(lists);
}

l2cdb_status faiss_failed(l2cdb_error *err, l2cdb_status code, const char *what) {
    return l2c_fail(err, code, "%s: FAISS: %s", what, faiss_get_last_error());
}

/* FAISS reads its own classes; their members move into ours. */
bool lists_adopt(l2c_ann *ann) {
    auto *read = dynamic_cast<faiss::IndexIVF *>(ann->index.get());
    auto *flat = read != nullptr ? dynamic_cast<faiss::IndexFlat *>(read->quantizer) : nullptr;
    if (flat == nullptr || !read->own_fields) {
        return false;
    }
    auto centroids = std::make_unique<Centroids>(read->d);
    centroids->codes.swap(flat->codes);
    centroids->ntotal = flat->ntotal;
    delete flat;
    read->quantizer = centroids.release();
    std::unique_ptr<faiss::IndexIVF> ours;
    if (auto *plain = dynamic_cast<faiss::IndexIVFFlat *>(read)) {
        auto *lists = new Lists(plain->quantizer, size_t(plain->d), plain->nlist,
                                faiss::METRIC_INNER_PRODUCT);
        ours.reset(lists);
        lists->ready();
    } else if (auto *coded = dynamic_cast<faiss::IndexIVFScalarQuantizer *>(read)) {
        auto *lists = new CodedLists(coded->quantizer, size_t(coded->d), coded->nlist,
                                     coded->sq.qtype, faiss::METRIC_INNER_PRODUCT, false);
        ours.reset(lists);
        lists->sq = coded->sq;
        lists->ready();
    } else {
        return true; // product quantisers are scanned by FAISS
    }
    ours->own_fields = true;
    read->own_fields = false;
    ours->replace_invlists(read->invlists, true);
    read->own_invlists = false;
    ours->is_trained = true;
    ours->ntotal = read->ntotal;
    ours->nprobe = read->nprobe;
    ann->index = std::move(ours);
    return true;
}

template <typename F> l2cdb_status guarded(l2cdb_error *err, const char *what, F f) {
    try {
        return f();
    } catch (const Cancelled &) {
        return l2c_fail(err, L2CDB_E_CANCELLED, "%s was cancelled", what);
    } catch (const std::bad_alloc &) {
        return l2c_fail(err, L2CDB_E_NOMEM, "%s: out of memory", what);
    } catch (const std::exception &e) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "%s: FAISS: %s", what, e.what());
    }
}

} // namespace

extern "C" {

const char *l2c_ann_library(void) {
    static const std::string name = "faiss " + std::to_string(FAISS_VERSION_MAJOR) + "." +
                                    std::to_string(FAISS_VERSION_MINOR) + "." +
                                    std::to_string(FAISS_VERSION_PATCH);
    return name.c_str();
}

l2cdb_status l2c_ann_build(l2c_ann **out, const float *vectors, size_t count, size_t width,
                           const l2c_index_params *params, l2c_index_progress_fn progress,
                           void *ctx, l2cdb_error *err) {
    *out = nullptr;
    return guarded(err, "building the index", [&] {
        auto ann = std::make_unique<l2c_ann>();
        ann->kind = params->kind;
        ann->quant = params->quant;
        l2cdb_status rc = L2CDB_OK;
        if (params->kind == L2C_INDEX_HNSW) {
            rc = build_graph(ann.get(), vectors, count, width, params, { progress, ctx }, err);
        } else {
            build_lists(ann.get(), vectors, count, width, params, { progress, ctx });
        }
        *out = rc == L2CDB_OK ? ann.release() : nullptr;
        return rc;
    });
}

void l2c_ann_free(l2c_ann *ann) {
    delete ann;
}

uint64_t l2c_ann_memory_bytes(const l2c_ann *ann) {
    if (ann->kind == L2C_INDEX_HNSW) {
        const auto &h = static_cast<const faiss::IndexHNSW *>(ann->index.get())->hnsw;
        return h.neighbors.size() * sizeof(h.neighbors[0]) +
               h.offsets.size() * sizeof(h.offsets[0]) + h.levels.size() * sizeof(h.levels[0]) +
               ann->graph.count * ann->codes.row_bytes;
    }
    const auto *lists = static_cast<const faiss::IndexIVF *>(ann->index.get());
    return uint64_t(lists->ntotal) * (lists->code_size + sizeof(idx)) +
           lists->nlist * uint64_t(lists->d) * sizeof(float);
}

const l2c_graph *l2c_ann_graph(const l2c_ann *ann) {
    return ann->kind == L2C_INDEX_HNSW ? &ann->graph : nullptr;
}

const l2c_codes *l2c_ann_codes(const l2c_ann *ann) {
    return ann->kind == L2C_INDEX_HNSW ? &ann->codes : nullptr;
}

l2cdb_status l2c_ann_lists_search(l2c_near *out, size_t *found, const l2c_ann *ann,
                                  const float *query, size_t k, size_t nprobe,
                                  const l2c_ann_filter *filter, l2cdb_error *err) {
    *found = 0;
    return guarded(err, "searching the index", [&] {
        const auto *lists = static_cast<const faiss::IndexIVF *>(ann->index.get());
        Selector selector(filter);
        faiss::SearchParametersIVF params;
        params.nprobe = std::min(nprobe, lists->nlist);
        params.sel = filter != nullptr ? &selector : nullptr;
        std::vector<float> dots(k);
        std::vector<idx> labels(k);
        lists->search(1, query, idx(k), dots.data(), labels.data(), &params);
        while (*found < k && labels[*found] >= 0) {
            out[*found] = { -dots[*found], uint32_t(labels[*found]) };
            ++*found;
        }
        return L2CDB_OK;
    });
}

l2cdb_status l2c_ann_save(const l2c_ann *ann, FILE *f, l2cdb_error *err) {
    const auto *index = reinterpret_cast<const FaissIndex *>(ann->index.get());
    return faiss_write_index(index, f) == OK ? L2CDB_OK
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
    int failed = faiss_read_index(f, 0, &index);
    fclose(f);
    if (failed != OK) {
        return faiss_failed(err, L2CDB_E_CORRUPT, "reading the index");
    }
    return guarded(err, "reading the index", [&] {
        std::unique_ptr<faiss::Index> owned(reinterpret_cast<faiss::Index *>(index));
        auto ann = std::make_unique<l2c_ann>();
        ann->index = std::move(owned);
        ann->kind = kind;
        ann->quant = quant;
        bool fits = size_t(ann->index->ntotal) == count && size_t(ann->index->d) == width &&
                    ann->index->metric_type == faiss::METRIC_INNER_PRODUCT;
        if (fits && kind == L2C_INDEX_HNSW) {
            fits = dynamic_cast<faiss::IndexHNSW *>(ann->index.get()) != nullptr;
            if (fits) {
                graph_views(ann.get());
                fits = ann->codes.quant == quant;
                const auto &links =
                    static_cast<faiss::IndexHNSW *>(ann->index.get())->hnsw.neighbors;
                l2c_huge_pages(links.data(), links.size() * sizeof links[0]);
                l2c_huge_pages(ann->codes.rows, count * ann->codes.row_bytes);
            }
        } else if (fits) {
            fits = lists_adopt(ann.get());
        }
        if (!fits) {
            return l2c_fail(err, L2CDB_E_CORRUPT, "the FAISS part does not fit its header");
        }
        *out = ann.release();
        return L2CDB_OK;
    });
}
}
