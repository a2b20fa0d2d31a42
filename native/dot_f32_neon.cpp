// NEON dot: 4 lanes, one fused multiply-add chain a pair, the last lanes one by one.
//
// Each product passes through at most ceil(D / 4) + 3 fused roundings and 2 additions: with n their sum and u = 2^-24
// the result is within n * u / (1 - n * u) * sum|q_i * v_i| of the exact one, as long as that sum is finite in float32.
#include <arm_neon.h>

#include "dot_f32.hpp"

namespace xinfluencer {
namespace {

template <int Q, int R>
void tile(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    float32x4_t sums[tile_pairs];
    for (auto& sum : sums) sum = vdupq_n_f32(0.0f);
    const size_t whole = dimensions & ~size_t{3};
    for (size_t i = 0; i < whole; i += 4) {
        float32x4_t a[Q];
        for (int q = 0; q < Q; ++q) a[q] = vld1q_f32(queries[q] + i);
        for (int r = 0; r < R; ++r) {
            const float32x4_t b = vld1q_f32(rows[r] + i);
            for (int q = 0; q < Q; ++q) sums[q * R + r] = vfmaq_f32(sums[q * R + r], a[q], b);
        }
    }
    for (int q = 0; q < Q; ++q)
        for (int r = 0; r < R; ++r) {
            float sum = vaddvq_f32(sums[q * R + r]);
            for (size_t i = whole; i < dimensions; ++i) sum = __builtin_fmaf(queries[q][i], rows[r][i], sum);
            out[q * R + r] = sum;
        }
}

bool always() { return true; }  // every 64-bit Arm processor has it

}  // namespace

const Kernel dot_f32_neon{"neon", always, tile<4, 4>, tile<1, 16>};

}  // namespace xinfluencer
