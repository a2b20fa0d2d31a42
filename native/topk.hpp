// Top-k: queries and vectors in, the k best rows of each query out, by any dot kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dot_f32.hpp"

namespace xinfluencer {

// queries [Q, D], vectors [N, D], indices and scores [Q, k], all C-contiguous; 0 <= k <= N. Scores descend, equal
// scores by lowest index, NaN after everything else. The number of threads changes nothing in the answer. Throws
// std::bad_alloc or std::system_error; needs no interpreter lock.
void topk_dot_f32(const Kernel& kernel, const float* queries, size_t query_count, const float* vectors,
                  size_t vector_count, size_t dimensions, size_t k, size_t threads, int64_t* indices, float* scores);

}  // namespace xinfluencer
