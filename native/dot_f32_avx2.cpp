// AVX2 dot: 8 lanes, one fused multiply-add chain a pair, a masked load for the last lanes.
//
// Each product passes through at most ceil(D / 8) fused roundings and 3 additions: with n their sum and u = 2^-24
// the result is within n * u / (1 - n * u) * sum|q_i * v_i| of the exact one, as long as that sum is finite in float32.
#include <immintrin.h>

#include "dot_f32.hpp"

namespace xinfluencer {
namespace {

// Eight registers of partial sums in, one register of eight sums out, adding lanes that are 1, 2 and 4 apart.
inline __m256 fold(const __m256* sums) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// Eight pairs fit the sixteen registers: Q queries by R rows, Q * R == 8.
template <int Q, int R>
inline __m256 half(const float* const* queries, const float* const* rows, size_t dimensions) {
    static_assert(Q * R == 8);
    __m256 sums[8];
    for (auto& sum : sums) sum = _mm256_setzero_ps();
    const size_t whole = dimensions & ~size_t{7};
    for (size_t i = 0; i < whole; i += 8) {
        __m256 a[Q];
        for (int q = 0; q < Q; ++q) a[q] = _mm256_loadu_ps(queries[q] + i);
        for (int r = 0; r < R; ++r) {
            const __m256 b = _mm256_loadu_ps(rows[r] + i);
            for (int q = 0; q < Q; ++q) sums[q * R + r] = _mm256_fmadd_ps(a[q], b, sums[q * R + r]);
        }
    }
    if (whole < dimensions) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(dimensions - whole)), lanes);
        for (int r = 0; r < R; ++r) {
            const __m256 b = _mm256_maskload_ps(rows[r] + whole, mask);
            for (int q = 0; q < Q; ++q)
                sums[q * R + r] = _mm256_fmadd_ps(_mm256_maskload_ps(queries[q] + whole, mask), b, sums[q * R + r]);
        }
    }
    return fold(sums);
}

void tile_4x4(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    _mm256_storeu_ps(out, half<2, 4>(queries, rows, dimensions));
    _mm256_storeu_ps(out + 8, half<2, 4>(queries + 2, rows, dimensions));
}

void tile_1x16(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    _mm256_storeu_ps(out, half<1, 8>(queries, rows, dimensions));
    _mm256_storeu_ps(out + 8, half<1, 8>(queries, rows + 8, dimensions));
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Kernel dot_f32_avx2{"avx2", has_avx2, tile_4x4, tile_1x16};

}  // namespace xinfluencer
