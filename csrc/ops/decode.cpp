// decode, dequantize and check_codes on the CPU.
#include <algorithm>
#include <vector>

#include "core/signs.h"
#include "cpu/hadamard.h"
#include "ops/code.h"
#include "ops/rotation.h"

namespace pvq::ops {
namespace {

using torch::stable::parallel_for;

// Columns that are rotated in one call: what the first-level cache holds.
constexpr int64_t kRotatedColumns = 4096;

// Rows for a thread at once: some ten thousand weights at least.
int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols)); }

Tensor decode_cpu(const Tensor& index, int64_t dim, int64_t pulses, int64_t groups) {
  constexpr const char* op = "decode";
  const StoredIndex stored = checked_index(op, index, dim, pulses, groups);
  Tensor y = torch::stable::new_empty(index, {stored.rows, groups, dim}, ScalarType::Short);
  const uint8_t* in = stored.index.const_data_ptr<uint8_t>();
  int16_t* out = y.mutable_data_ptr<int16_t>();
  FirstRefused refused;
  parallel_for(0, stored.rows, row_grain(groups * dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      if (!decode_points(stored.pyramid, in + r * stored.stride, 0, groups, out + r * groups * dim))
        refused.report(r);
  });
  if (refused.element() >= 0) refuse_index(op, refused.element());
  return y;
}

void check_codes_cpu(const Tensor& index, int64_t dim, int64_t pulses, int64_t groups) {
  constexpr const char* op = "check_codes";
  const StoredIndex stored = checked_index(op, index, dim, pulses, groups);
  const uint8_t* in = stored.index.const_data_ptr<uint8_t>();
  FirstRefused refused;
  parallel_for(0, stored.rows, row_grain(groups * dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      if (!check_indices(stored.pyramid, in + r * stored.stride, 0, groups)) refused.report(r);
  });
  if (refused.element() >= 0) refuse_index(op, refused.element());
}

Tensor dequantize_cpu(const Tensor& index, const Tensor& gain, const Tensor& row_scale, int64_t dim,
                      int64_t pulses, int64_t gain_bits, std::string gain_law, int64_t cols,
                      ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "dequantize";
  check_weight_dtype(op, dtype);
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_rotation(op, {block, seed}, cols);
  const int64_t rows = code.view.rows, groups = cols / dim;
  Tensor w = torch::stable::new_empty(index, {rows, cols}, ScalarType::Float);
  float* out = w.mutable_data_ptr<float>();
  std::vector<uint64_t> signs(block ? sign_word_count(cols) : 0);
  if (block) fill_sign_words(static_cast<uint64_t>(seed), cols, signs.data());
  // Short rows are rotated many at a time: a call takes longer than a row of 64 columns.
  const int64_t tile = std::max<int64_t>(1, kRotatedColumns / std::max<int64_t>(1, cols));
  FirstRefused refused;
  parallel_for(0, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    std::vector<int16_t> y(cols);
    std::vector<float> scale(groups);
    for (int64_t first = begin; first < end; first += tile) {
      const int64_t last = std::min(first + tile, end);
      for (int64_t r = first; r < last; ++r) {
        if (!decode_groups(code.view, r, 0, groups, y.data(), scale.data())) {
          refused.report(r);
          continue;
        }
        dequantize_groups(code.view, 0, groups, y.data(), scale.data(), out + r * cols);
      }
      if (block)
        hadamard_blocks(out, out, cols, static_cast<int>(block), signs.data(), /*inverse=*/true,
                        first * (cols / block), last * (cols / block));
    }
  });
  if (refused.element() >= 0) refuse_index(op, refused.element());
  return dtype == ScalarType::Float ? w : torch::stable::to(w, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("decode", TORCH_BOX(&decode_cpu));
  m.impl("dequantize", TORCH_BOX(&dequantize_cpu));
  m.impl("check_codes", TORCH_BOX(&check_codes_cpu));
}

}  // namespace pvq::ops
