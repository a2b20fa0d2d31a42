// Top-k: vectors are read from memory once per block of queries; each query keeps its k best in a heap.
//
// Rows arrive in index order, so a later row that ties with the worst kept one loses by being later: the fast path
// is one comparison a score. Compiled without special instructions; all wide arithmetic is behind Kernel.
#include "topk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

namespace xinfluencer {
namespace {

constexpr size_t query_block_bytes = 256 * 1024;  // queries of one block, which stay in the second-level cache
constexpr size_t row_block_bytes = 256 * 1024;    // rows read from memory once, then reused by the whole query block

struct Entry {
    float score;
    int64_t index;
};

// Does a come before b in the answer? A strict weak order also with NaN, which comes last.
inline bool before(const Entry& a, const Entry& b) {
    const bool a_nan = std::isnan(a.score), b_nan = std::isnan(b.score);
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && a.score != b.score) return a.score > b.score;
    return a.index < b.index;
}

// The k best seen so far: a heap with the worst kept entry on top.
class Best {
public:
    explicit Best(size_t k) : k_(k) { heap_.reserve(k); }

    void offer(float score, int64_t index) {
        if (score <= floor_) return;  // false for NaN on either side, which the slow path below decides
        const Entry entry{score, index};
        if (heap_.size() == k_) {
            if (!before(entry, heap_.front())) return;
            std::pop_heap(heap_.begin(), heap_.end(), before);
            heap_.back() = entry;
        } else {
            heap_.push_back(entry);
        }
        std::push_heap(heap_.begin(), heap_.end(), before);
        if (heap_.size() == k_) floor_ = heap_.front().score;
    }

    // What another thread kept of later rows, best first: a tie must be offered by its lowest index first.
    void take(Best& later) {
        std::sort_heap(later.heap_.begin(), later.heap_.end(), before);
        for (const Entry& entry : later.heap_) offer(entry.score, entry.index);
    }

    void write(int64_t* indices, float* scores) {
        std::sort_heap(heap_.begin(), heap_.end(), before);
        for (size_t i = 0; i < heap_.size(); ++i) {
            indices[i] = heap_[i].index;
            scores[i] = heap_[i].score;
        }
    }

private:
    size_t k_;
    float floor_ = std::numeric_limits<float>::quiet_NaN();  // nothing is below it until k are kept
    std::vector<Entry> heap_;
};

// Rows [first, last) against `count` queries, Q at a time. Past an edge the last row or query is repeated and its
// products are ignored, so one kernel shape serves every size.
template <size_t Q, size_t R>
void scan(Tile tile, const float* queries, size_t count, const float* vectors, size_t first, size_t last,
          size_t dimensions, Best* best) {
    const float* query_of[Q];
    const float* row_of[R];
    float products[Q * R];
    for (size_t q = 0; q < count; q += Q) {
        for (size_t i = 0; i < Q; ++i) query_of[i] = queries + std::min(q + i, count - 1) * dimensions;
        for (size_t r = first; r < last; r += R) {
            for (size_t j = 0; j < R; ++j) row_of[j] = vectors + std::min(r + j, last - 1) * dimensions;
            tile(query_of, row_of, dimensions, products);
            const size_t queries_here = std::min(Q, count - q), rows_here = std::min(R, last - r);
            for (size_t i = 0; i < queries_here; ++i)
                for (size_t j = 0; j < rows_here; ++j)
                    best[q + i].offer(products[i * R + j], static_cast<int64_t>(r + j));
        }
    }
}

}  // namespace

void topk_dot_f32(const Kernel& kernel, const float* queries, size_t query_count, const float* vectors,
                  size_t vector_count, size_t dimensions, size_t k, size_t threads, int64_t* indices, float* scores) {
    if (k == 0 || query_count == 0) return;
    const size_t row_bytes = std::max<size_t>(dimensions, 1) * sizeof(float);
    const size_t query_block = std::max<size_t>(query_block_bytes / row_bytes, 4);
    const size_t row_block = std::max<size_t>(row_block_bytes / row_bytes / tile_pairs, 1) * tile_pairs;
    // Each thread has whole blocks of consecutive rows, so one that has none is not started.
    const size_t blocks = (vector_count + row_block - 1) / row_block;
    threads = std::clamp<size_t>(threads, 1, blocks);
    const size_t share = (blocks + threads - 1) / threads * row_block;

    for (size_t q = 0; q < query_count; q += query_block) {
        const float* block = queries + q * dimensions;
        const size_t count = std::min(query_block, query_count - q);
        // All memory is taken here: nothing below this allocates, so no thread can throw.
        std::vector<Best> best;
        best.reserve(threads * count);
        for (size_t i = 0; i < threads * count; ++i) best.emplace_back(k);
        const auto search = [&](size_t thread) {
            const size_t end = std::min((thread + 1) * share, vector_count);
            for (size_t first = thread * share; first < end; first += row_block) {
                const size_t last = std::min(first + row_block, end);
                Best* mine = best.data() + thread * count;
                if (count == 1)
                    scan<1, 16>(kernel.dot_1x16, block, count, vectors, first, last, dimensions, mine);
                else
                    scan<4, 4>(kernel.dot_4x4, block, count, vectors, first, last, dimensions, mine);
            }
        };
        {
            std::vector<std::jthread> others;
            others.reserve(threads - 1);
            for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(search, thread);
            search(0);
        }
        for (size_t i = 0; i < count; ++i) {
            for (size_t thread = 1; thread < threads; ++thread) best[i].take(best[thread * count + i]);
            best[i].write(indices + (q + i) * k, scores + (q + i) * k);
        }
    }
}

}  // namespace xinfluencer
