// table_quantize, table_dequantize, table_matmul and table_matmul_transposed on the CPU: the
// pyramid-table codes of core/table_codes.h.
#include "ops/tables.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <tuple>

#include "cpu/table_quantize.h"
#include "cpu/table_tiles.h"
#include "ops/whole_code.h"

namespace pvq::ops {

void check_table_bits(const char* op, int64_t bits) { check_range(op, "bits", bits, 2, 4); }

void check_table_columns(const char* op, const char* name, int64_t cols) {
  PVQ_CHECK(cols >= 0 && cols % kTableStep == 0, "pvq::", op, ": ", name, " is ", cols,
            ", expected a multiple of ", kTableStep);
}

StoredTable checked_table(const char* op, const Tensor& code, const Tensor& row_scale, int64_t bits,
                          int64_t cols) {
  check_table_bits(op, bits);
  check_table_columns(op, "cols", cols);
  check_dtype(op, "code", code, {ScalarType::Byte});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  const int64_t rows = row_scale.size(0);
  check_shape(op, "code", code, {rows, table_row_bytes(int(bits), cols)});
  check_same_device(op, "row_scale", row_scale, "code", code);
  StoredTable stored{{}, as_contiguous(code), as_contiguous(row_scale)};
  stored.view = {stored.code.const_data_ptr<uint8_t>(),
                 static_cast<const uint16_t*>(stored.row_scale.const_data_ptr()), rows, cols,
                 int(bits)};
  return stored;
}

void check_table_weights(const char* op, const Tensor& w, int64_t bits) {
  check_table_bits(op, bits);
  check_dtype(op, "w", w, {ScalarType::Float});
  check_rank(op, "w", w, 2);
  check_table_columns(op, "the number of columns of w", w.size(1));
}

void refuse_table_row(int64_t row) {
  fail("pvq::table_quantize: row ", row, " of w holds NaN or infinity, expected finite weights");
}

namespace {

std::tuple<Tensor, Tensor> table_quantize_cpu(const Tensor& w, int64_t bits) {
  check_table_weights("table_quantize", w, bits);
  const int64_t rows = w.size(0), cols = w.size(1);
  const Tensor input = as_contiguous(w);
  const int64_t row_bytes = table_row_bytes(int(bits), cols);
  Tensor code = torch::stable::new_empty(w, {rows, row_bytes}, ScalarType::Byte);
  Tensor row_scale = torch::stable::new_empty(w, {rows}, ScalarType::BFloat16);
  const float* in = input.const_data_ptr<float>();
  uint8_t* out = code.mutable_data_ptr<uint8_t>();
  auto* scale = static_cast<uint16_t*>(row_scale.mutable_data_ptr());
  std::atomic<int64_t> refused = -1;
  torch::stable::parallel_for(0, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    TableQuantizer quantize_row(int(bits), cols);
    for (int64_t r = begin; r < end; ++r) {
      const float* row = in + r * cols;
      if (std::all_of(row, row + cols, [](float x) { return std::isfinite(x); }))
        quantize_row(row, out + r * row_bytes, scale + r);
      else
        refused = r;
    }
  });
  if (refused >= 0) refuse_table_row(refused);
  return {code, row_scale};
}

Tensor table_dequantize_cpu(const Tensor& code, const Tensor& row_scale, int64_t bits, int64_t cols,
                            ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "table_dequantize";
  const StoredTable stored = checked_table(op, code, row_scale, bits, cols);
  return dequantize_whole(op, stored, dtype, {block, seed}, dequantize_table);
}

Tensor table_matmul_cpu(const Tensor& x, const Tensor& code, const Tensor& row_scale, int64_t bits,
                        int64_t block, int64_t seed) {
  constexpr const char* op = "table_matmul";
  const StoredTable stored = checked_table(op, code, row_scale, bits, columns_of(op, x));
  return multiply_whole<TableTiles>(op, x, stored, {block, seed});
}

Tensor table_matmul_transposed_cpu(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                                   int64_t bits, int64_t cols, int64_t block, int64_t seed) {
  constexpr const char* op = "table_matmul_transposed";
  const StoredTable stored = checked_table(op, code, row_scale, bits, cols);
  return multiply_whole_transposed<TableTiles>(op, g, stored, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("table_quantize", TORCH_BOX(&table_quantize_cpu));
  m.impl("table_dequantize", TORCH_BOX(&table_dequantize_cpu));
  m.impl("table_matmul", TORCH_BOX(&table_matmul_cpu));
  m.impl("table_matmul_transposed", TORCH_BOX(&table_matmul_transposed_cpu));
}

}  // namespace pvq::ops
