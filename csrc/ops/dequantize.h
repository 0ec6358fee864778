// From a stored form to the dense matrix on the CPU: rows decoded and rotated back by all threads.
#pragma once

#include <algorithm>
#include <vector>

#include "core/signs.h"
#include "cpu/hadamard.h"
#include "ops/matmul.h"

namespace pvq::ops {

// Rows for a thread at once: some ten thousand weights at least.
inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols));
}

// The matrix [rows, cols], on the device of `code`. make_decoder() gives each thread a function of
// its own, decode(row, w), that writes the values of a row, still rotated.
template <class MakeDecoder>
Tensor dequantize_rows(const Tensor& code, int64_t rows, int64_t cols, ScalarType dtype,
                       Rotation rotation, const MakeDecoder& make_decoder) {
  constexpr int64_t kRotatedColumns = 4096;  // in one call: what the first-level cache holds
  const int64_t block = rotation.block;
  Tensor w = torch::stable::new_empty(code, {rows, cols}, ScalarType::Float);
  float* out = w.mutable_data_ptr<float>();
  std::vector<uint64_t> signs(block ? sign_word_count(cols) : 0);
  if (block) fill_sign_words(static_cast<uint64_t>(rotation.seed), cols, signs.data());
  // Short rows are rotated many at a time: a call takes longer than a row of 64 columns.
  const int64_t tile = std::max<int64_t>(1, kRotatedColumns / std::max<int64_t>(1, cols));
  torch::stable::parallel_for(0, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    auto decode = make_decoder();
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t last = std::min(first + tile, end);
      for (int64_t r = first; r < last; ++r) decode(r, out + r * cols);
      if (block)
        hadamard_blocks(out, out, cols, static_cast<int>(block), signs.data(), /*inverse=*/true,
                        first * (cols / block), last * (cols / block));
    }
  });
  return as_dtype(w, dtype);
}

}  // namespace pvq::ops
