// Dot products: 16 (query, row) pairs at a time; one table entry an instruction set.
//
// A tile multiplies `queries` queries with `rows` rows, queries * rows == 16, so that 16 independent sums hide the
// latency of the multiply-add. Two shapes: 4x4 reads each value once for four uses, 1x16 serves a lone query.
// Every pair is summed in the same order in both shapes, whatever its place in the tile, so equal rows get equal
// scores and "ties by lowest index" means what it says.
#pragma once

#include <stddef.h>

namespace xinfluencer {

inline constexpr int tile_pairs = 16;

// queries[i] and rows[j] point at `dimensions` floats each; out[i * (number of rows) + j] is their product.
using Tile = void (*)(const float* const* queries, const float* const* rows, size_t dimensions, float* out);

struct Kernel {
    const char* name;
    bool (*runs_here)();  // does this processor, under this operating system, have the instructions
    Tile dot_4x4;
    Tile dot_1x16;
};

extern const Kernel dot_f32_serial;
#if defined(XINFLUENCER_X86)
extern const Kernel dot_f32_avx2;
extern const Kernel dot_f32_avx512;
#endif
#if defined(XINFLUENCER_NEON)
extern const Kernel dot_f32_neon;
#endif

}  // namespace xinfluencer
