// Serial dot: float32 in, float64 sums, rounded once; what runs where nothing better does.
//
// A product of two float32 is exact in float64, so with u = 2^-24 the result is within
// (u + D * 2^-53) * sum|q_i * v_i| of the exact one, and it overflows only if the score itself does.
#include "dot_f32.hpp"

namespace xinfluencer {
namespace {

float dot(const float* a, const float* b, size_t dimensions) {
    double sum = 0.0;
    for (size_t i = 0; i < dimensions; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return static_cast<float>(sum);
}

template <int Q, int R>
void tile(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    for (int q = 0; q < Q; ++q)
        for (int r = 0; r < R; ++r) out[q * R + r] = dot(queries[q], rows[r], dimensions);
}

bool always() { return true; }

}  // namespace

const Kernel dot_f32_serial{"serial", always, tile<4, 4>, tile<1, 16>};

}  // namespace xinfluencer
