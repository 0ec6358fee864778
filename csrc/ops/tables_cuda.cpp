// Table codes on the GPU in fragments: their expansion, and the fused product.
#include <vector>

#include "cuda/table_matmul.h"
#include "ops/cuda_stream.h"
#include "ops/hadamard.h"
#include "ops/rotation.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

void check_bits(const char* op, int64_t bits) { check_range(op, "bits", bits, 2, 4); }

// Columns of the matrix behind fragments of `rows` rows.
int64_t checked_columns(const char* op, const Tensor& fragments, int64_t rows, int64_t bits) {
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  const int64_t bytes = fragments.numel() - kTableBytes;
  const int64_t column_of_chunks = tiles_of(rows) * table_chunk_bytes(int(bits));
  PVQ_CHECK(fragments.is_contiguous() && bytes >= 0 &&
                (column_of_chunks ? bytes % column_of_chunks == 0 : bytes == 0),
            "pvq::", op, ": fragments has ", fragments.numel(),
            " bytes, which is no whole number of chunks for ", rows, " rows at ", bits,
            " bits; expected what pvq::table_fragments gives");
  return column_of_chunks ? bytes / column_of_chunks * kChunkCols : 0;
}

FloatType float_type(ScalarType dtype) {
  return dtype == ScalarType::Half ? FloatType::kFloat16 : FloatType::kBFloat16;
}

Tensor table_expand(const Tensor& fragments, const Tensor& row_scale, int64_t bits,
                    ScalarType dtype) {
  constexpr const char* op = "table_expand";
  check_bits(op, bits);
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
  PVQ_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
            "pvq::table_expand: dtype is ", dtype_name(dtype), ", expected float16 or bfloat16");
  const int64_t rows = row_scale.size(0), cols = checked_columns(op, fragments, rows, bits);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor scale = torch::stable::contiguous(row_scale);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, table_expand_cuda(fragments.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   int(bits), float_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

// Many tokens: the library's product with a dense scratch that lives for this call.
Tensor multiply_expanded(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                         int64_t bits, Rotation rotation) {
  const Tensor rotated =
      rotation.block ? hadamard_on_cuda(x, rotation.block, rotation.seed, /*inverse=*/false) : x;
  const Tensor w = table_expand(fragments, row_scale, bits, x.scalar_type());
  return torch::stable::matmul(rotated, torch::stable::transpose(w, 0, 1));
}

Tensor table_matmul_fragments(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                              int64_t bits, int64_t block, int64_t seed, bool residual) {
  constexpr const char* op = "table_matmul_fragments";
  check_bits(op, bits);
  check_dtype(op, "x", x, {ScalarType::Half, ScalarType::BFloat16});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_same_device(op, "x", x, "fragments", fragments);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
  const int64_t rows = row_scale.size(0), cols = checked_columns(op, fragments, rows, bits);
  PVQ_CHECK(x.dim() >= 1 && x.size(-1) == cols, "pvq::", op, ": x has shape ", shape_name(x),
            ", expected [..., ", cols, "]");
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(x.get_device_index());
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = rows;
  const int64_t tokens = cols ? x.numel() / cols : 0;
  if (tokens == 0 || rows == 0) return torch::stable::new_zeros(x, shape);
  if (tokens > kMaxProductTokens || !products_supported() || !product_block_supported(block))
    return multiply_expanded(x, fragments, row_scale, bits, {block, seed});

  Tensor input = torch::stable::contiguous(x);
  if (reinterpret_cast<uintptr_t>(input.const_data_ptr()) % 16) input = torch::stable::clone(input);
  const Tensor scale = torch::stable::contiguous(row_scale);
  Tensor y = torch::stable::new_empty(x, shape);
  TableProduct task{};
  task.fragments = fragments.const_data_ptr<uint8_t>();
  task.row_scale = static_cast<const uint16_t*>(scale.const_data_ptr());
  task.x = input.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.rows = rows;
  task.cols = cols;
  task.tokens = int(tokens);
  task.bits = int(bits);
  task.block = int(block);
  task.seed = uint64_t(seed);
  task.residual = residual;
  task.type = float_type(x.scalar_type());
  const int64_t bytes = table_product_workspace(task);
  Tensor workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  task.workspace = bytes ? workspace.mutable_data_ptr() : nullptr;
  check_cuda(op, table_product_cuda(task, current_cuda_stream(x)));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_expand", TORCH_BOX(&table_expand));
  m.impl("table_matmul_fragments", TORCH_BOX(&table_matmul_fragments));
}

}  // namespace pvq::ops
