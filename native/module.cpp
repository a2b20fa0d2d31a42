// Binding: NumPy arrays in, NumPy arrays out, the interpreter lock released while the kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "topk.hpp"

namespace nb = nanobind;
using namespace xinfluencer;

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Every kernel compiled in, fastest first.
const std::vector<const Kernel*>& kernels() {
    static const std::vector<const Kernel*> all{
#if defined(XINFLUENCER_X86)
        &dot_f32_avx512, &dot_f32_avx2,
#endif
#if defined(XINFLUENCER_NEON)
        &dot_f32_neon,
#endif
        &dot_f32_serial,
    };
    return all;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernel* kernel : kernels())
        if (kernel->runs_here()) names.emplace_back(kernel->name);
    return names;
}

const Kernel& kernel_of(const std::string& isa) {
    for (const Kernel* kernel : kernels())
        if (isa == kernel->name && kernel->runs_here()) return *kernel;
    throw std::invalid_argument("instruction set '" + isa + "' is not available here");
}

// An array that owns its memory, so it lives as long as Python keeps it.
template <typename T>
auto array_of(std::unique_ptr<T[]> data, size_t rows, size_t columns) {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<2>>(raw, {rows, columns}, owner);
}

nb::tuple topk_dot(Matrix queries, Matrix vectors, size_t k, const std::string& isa, size_t threads) {
    const Kernel& kernel = kernel_of(isa);
    if (queries.shape(1) != vectors.shape(1)) throw std::invalid_argument("queries and vectors differ in dimensions");
    if (k > vectors.shape(0)) throw std::invalid_argument("k is larger than the number of vectors");
    const size_t query_count = queries.shape(0);
    auto indices = std::make_unique<int64_t[]>(query_count * k);
    auto scores = std::make_unique<float[]>(query_count * k);
    {
        nb::gil_scoped_release release;
        topk_dot_f32(kernel, queries.data(), query_count, vectors.data(), vectors.shape(0), queries.shape(1), k,
                     threads, indices.get(), scores.get());
    }
    return nb::make_tuple(array_of(std::move(indices), query_count, k), array_of(std::move(scores), query_count, k));
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "Compiled kernels; call them through the `native` package, which checks arguments.";
    m.def("instruction_sets", &instruction_sets, "Names that `isa` accepts on this processor, fastest first.");
    m.def("topk_dot", &topk_dot, nb::arg("queries").noconvert(), nb::arg("vectors").noconvert(), nb::arg("k"),
          nb::arg("isa"), nb::arg("threads"));
}
