// decode, dequantize and check_codes on the CPU.
#include <vector>

#include "ops/code.h"
#include "ops/dequantize.h"

namespace pvq::ops {
namespace {

using torch::stable::parallel_for;

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
  const int64_t groups = cols / dim;
  FirstRefused refused;
  const Tensor w = dequantize_rows(index, code.view.rows, cols, dtype, {block, seed}, [&] {
    return [&, y = std::vector<int16_t>(cols), scale = std::vector<float>(groups)](
               int64_t row, float* out) mutable {
      if (decode_groups(code.view, row, 0, groups, y.data(), scale.data()))
        dequantize_groups(code.view, 0, groups, y.data(), scale.data(), out);
      else
        refused.report(row);
    };
  });
  if (refused.element() >= 0) refuse_index(op, refused.element());
  return w;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("decode", TORCH_BOX(&decode_cpu));
  m.impl("dequantize", TORCH_BOX(&dequantize_cpu));
  m.impl("check_codes", TORCH_BOX(&check_codes_cpu));
}

}  // namespace pvq::ops
