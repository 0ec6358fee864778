// Sizes and scratch memory that the two kinds of product share, and the bfloat16 product's maker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/matmul.h"

namespace pvq {

constexpr int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }
constexpr int64_t round_up(int64_t x, int64_t step) { return divide_up(x, step) * step; }
// The largest multiple of `step` up to x, but at least one step.
constexpr int64_t round_down(int64_t x, int64_t step) {
  return std::max(x / step, int64_t{1}) * step;
}

struct ReleaseAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
template <class T>
using Buffer = std::unique_ptr<T[], ReleaseAligned>;

template <class T>
Buffer<T> make_buffer(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
}

// Products straight from stored rows, whose panels are so many rows; columns come in blocks of
// activations that stay in the first-level cache while all rows of a panel meet them.
constexpr int64_t kStoredRows = 32, kBlockFloats = 8192;

// call(r0, count, scale) for each of the panels [begin, end) of a matrix of `rows` rows, with the
// rows' scales; it adds to out [tokens, rows], where those rows are zeros.
template <class Matrix, class Call>
void for_row_panels(const Matrix& matrix, int64_t begin, int64_t end, int64_t tokens, float* out,
                    const Call& call) {
  for (int64_t r0 = begin * kStoredRows; r0 < std::min(end * kStoredRows, matrix.rows);
       r0 += kStoredRows) {
    const int64_t count = std::min(kStoredRows, matrix.rows - r0);
    float scale[kStoredRows];
    for (int64_t r = 0; r < count; ++r) scale[r] = matrix.scale(r0 + r);
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(out + t * matrix.rows + r0, count, 0.0f);
    call(r0, count, scale);
  }
}

// Adds what the tiles of lanes [l0, l1) leave out to c [tokens, width], for a [depth, tokens].
// `sum` is scratch, [width, tokens]. Returns kNoRow or a damaged row.
int64_t add_missing(const WeightTiles& weights, int64_t l0, int64_t l1, const float* a,
                    int64_t tokens, int64_t width, float* sum, float* c);

// The product of matrices rounded to bfloat16, or null where this machine or the matrix's groups do
// not allow it or float32 is faster for so few tokens.
std::unique_ptr<Product> make_bfloat16_product(const WeightTiles& weights, int64_t tokens);

}  // namespace pvq
