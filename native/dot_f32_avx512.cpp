// AVX-512 dot: 16 lanes, one fused multiply-add chain a pair, a masked load for the last lanes.
//
// Each product passes through at most ceil(D / 16) fused roundings and 4 additions: with n their sum and u = 2^-24
// the result is within n * u / (1 - n * u) * sum|q_i * v_i| of the exact one, as long as that sum is finite in float32.
#include <immintrin.h>

#include "dot_f32.hpp"

namespace xinfluencer {
namespace {

// Sixteen registers of partial sums in, one register of sixteen sums out. Every step adds lanes that are 8, 4, 2 and
// 1 apart of two registers at once, 45 instructions where sixteen separate reductions take about 200.
// Lane 4 * i + j of the result belongs to register order(i, j); the caller's permutation puts it right.
inline __m512 fold(const __m512* sums) {
    __m512 eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i)
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0x44),
                                 _mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0xEE));
    for (int i = 0; i < 4; ++i)
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eight[2 * i], eight[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(eight[2 * i], eight[2 * i + 1], 0xDD));
    for (int i = 0; i < 2; ++i)
        two[i] = _mm512_add_ps(_mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0x44),
                               _mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0xEE));
    const __m512 one = _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xDD));
    // Lane 4 * i + j now holds register 4 * j + i: a transpose of 4 x 4.
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), one);
}

// sums[q * R + r] of one pass. A lone query waits for memory alone, and its four rows at a time ask for the four
// after them: 5 to 15 % faster than sixteen rows at once. A prefetch past the last row reads nothing and cannot fault.
template <int Q, int R>
inline void add_up(const float* const* queries, const float* const* rows, size_t dimensions, __m512* sums) {
    for (int i = 0; i < Q * R; ++i) sums[i] = _mm512_setzero_ps();
    const size_t whole = dimensions & ~size_t{15};
    for (size_t i = 0; i < whole; i += 16) {
        __m512 a[Q];
        for (int q = 0; q < Q; ++q) a[q] = _mm512_loadu_ps(queries[q] + i);
        for (int r = 0; r < R; ++r) {
            if (Q == 1) _mm_prefetch(reinterpret_cast<const char*>(rows[r] + i + R * dimensions), _MM_HINT_T0);
            const __m512 b = _mm512_loadu_ps(rows[r] + i);
            for (int q = 0; q < Q; ++q) sums[q * R + r] = _mm512_fmadd_ps(a[q], b, sums[q * R + r]);
        }
    }
    if (whole < dimensions) {
        const __mmask16 mask = static_cast<__mmask16>((1u << (dimensions - whole)) - 1u);
        for (int r = 0; r < R; ++r) {
            const __m512 b = _mm512_maskz_loadu_ps(mask, rows[r] + whole);
            for (int q = 0; q < Q; ++q)
                sums[q * R + r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, queries[q] + whole), b, sums[q * R + r]);
        }
    }
}

void tile_4x4(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    __m512 sums[tile_pairs];
    add_up<4, 4>(queries, rows, dimensions, sums);
    _mm512_storeu_ps(out, fold(sums));
}

void tile_1x16(const float* const* queries, const float* const* rows, size_t dimensions, float* out) {
    __m512 sums[tile_pairs];
    for (int r = 0; r < tile_pairs; r += 4) add_up<1, 4>(queries, rows + r, dimensions, sums + r);
    _mm512_storeu_ps(out, fold(sums));
}

bool has_avx512() { return __builtin_cpu_supports("avx512f"); }

}  // namespace

const Kernel dot_f32_avx512{"avx512", has_avx512, tile_4x4, tile_1x16};

}  // namespace xinfluencer
