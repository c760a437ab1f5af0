// The calls of FAISS's C API that the index makes, written against FAISS's own headers of it.
//
// Debian ships the headers (faiss/c_api) without the library; where libfaiss_c exists, CMake links
// that and leaves this file out. Behaviour is that of the original: 0 or a negative FaissErrorCode,
// the message through faiss_get_last_error.
#include <exception>
#include <string>

#include <faiss/IndexFlat.h>
#include <faiss/impl/FaissException.h>
#include <faiss/index_io.h>

#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_io_c.h>

namespace {

thread_local std::string last_error;

template <typename F> int guarded(F f) {
    try {
        f();
        return OK;
    } catch (const faiss::FaissException &e) {
        last_error = e.what();
        return FAISS_EXCEPT;
    } catch (const std::exception &e) {
        last_error = e.what();
        return STD_EXCEPT;
    } catch (...) {
        last_error = "unknown error";
        return UNKNOWN_EXCEPT;
    }
}

faiss::Index *of(FaissIndex *index) {
    return reinterpret_cast<faiss::Index *>(index);
}

const faiss::Index *of(const FaissIndex *index) {
    return reinterpret_cast<const faiss::Index *>(index);
}

} // namespace

extern "C" {

const char *faiss_get_last_error() {
    return last_error.c_str();
}

void faiss_Index_free(FaissIndex *index) {
    delete of(index);
}

idx_t faiss_Index_ntotal(const FaissIndex *index) {
    return of(index)->ntotal;
}

int faiss_Index_d(const FaissIndex *index) {
    return of(index)->d;
}

FaissMetricType faiss_Index_metric_type(const FaissIndex *index) {
    return static_cast<FaissMetricType>(of(index)->metric_type);
}

int faiss_Index_train(FaissIndex *index, idx_t n, const float *x) {
    return guarded([&] { of(index)->train(n, x); });
}

int faiss_Index_add(FaissIndex *index, idx_t n, const float *x) {
    return guarded([&] { of(index)->add(n, x); });
}

int faiss_write_index(const FaissIndex *index, FILE *f) {
    return guarded([&] { faiss::write_index(of(index), f); });
}

int faiss_read_index(FILE *f, int io_flags, FaissIndex **p_out) {
    return guarded(
        [&] { *p_out = reinterpret_cast<FaissIndex *>(faiss::read_index(f, io_flags)); });
}
}
