// Planes of pyramid points on the GPU: their product and their expansion.
#include <vector>

#include "cuda/plane_matmul.h"
#include "ops/aligned.h"
#include "ops/cuda_stream.h"
#include "ops/hadamard.h"
#include "ops/rotation.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

struct PlaneWidth {
  int bits, group;
};

// Bits and group of the planes, which the size of a chunk tells apart.
PlaneWidth checked_width(const char* op, const Tensor& fragments, int64_t rows, int64_t cols) {
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  PVQ_CHECK(cols % kChunkCols == 0, "pvq::", op, ": cols is ", cols, ", expected a multiple of ",
            kChunkCols);
  const int64_t chunks = tiles_of(rows) * (cols / kChunkCols);
  for (const int bits : {4, 6, 8})
    for (const int group : {8, 16})
      if (chunks * plane_chunk_bytes(bits, group) == fragments.numel() && fragments.is_contiguous())
        return {bits, group};
  fail("pvq::", op, ": fragments has ", fragments.numel(), " bytes, expected the planes of ", rows,
       " rows and ", cols, " columns");
}

FloatType float_type(ScalarType dtype) {
  return dtype == ScalarType::Half ? FloatType::kFloat16 : FloatType::kBFloat16;
}

Tensor plane_expand(const Tensor& fragments, const Tensor& row_scale, int64_t cols,
                    ScalarType dtype) {
  constexpr const char* op = "plane_expand";
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
  PVQ_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
            "pvq::plane_expand: dtype is ", dtype_name(dtype), ", expected float16 or bfloat16");
  PVQ_CHECK(cols >= 0, "pvq::plane_expand: cols is ", cols, ", expected at least 0");
  const int64_t rows = row_scale.size(0);
  const PlaneWidth width = checked_width(op, fragments, rows, cols);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor scale = torch::stable::contiguous(row_scale), source = aligned(fragments);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, plane_expand_cuda(source.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   width.bits, width.group, float_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

// On a GPU without the kernel: the library's product with a dense scratch that lives for this call.
Tensor multiply_expanded(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                         Rotation rotation) {
  const Tensor rotated =
      rotation.block ? hadamard_on_cuda(x, rotation.block, rotation.seed, /*inverse=*/false) : x;
  const Tensor w = plane_expand(fragments, row_scale, x.size(-1), x.scalar_type());
  return torch::stable::matmul(rotated, torch::stable::transpose(w, 0, 1));
}

Tensor plane_matmul(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                    int64_t block, int64_t seed) {
  constexpr const char* op = "plane_matmul";
  check_dtype(op, "x", x, {ScalarType::Half, ScalarType::BFloat16});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_same_device(op, "x", x, "fragments", fragments);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
  PVQ_CHECK(x.dim() >= 1, "pvq::plane_matmul: x has shape ", shape_name(x),
            ", expected [..., cols]");
  const int64_t rows = row_scale.size(0), cols = x.size(-1);
  const PlaneWidth width = checked_width(op, fragments, rows, cols);
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(x.get_device_index());
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = rows;
  const int64_t tokens = cols ? x.numel() / cols : 0;
  if (tokens == 0 || rows == 0) return torch::stable::new_zeros(x, shape);
  if (tokens > kMaxProductTokens || !products_supported() || !product_block_supported(block))
    return multiply_expanded(x, fragments, row_scale, {block, seed});

  const Tensor input = aligned(x), source = aligned(fragments);
  const Tensor scale = torch::stable::contiguous(row_scale);
  Tensor y = torch::stable::new_empty(x, shape);
  PlaneProduct task{};
  task.fragments = source.const_data_ptr<uint8_t>();
  task.row_scale = static_cast<const uint16_t*>(scale.const_data_ptr());
  task.x = input.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.rows = rows;
  task.cols = cols;
  task.tokens = int(tokens);
  task.bits = width.bits;
  task.group = width.group;
  task.block = int(block);
  task.seed = uint64_t(seed);
  task.type = float_type(x.scalar_type());
  Tensor workspace = torch::stable::new_empty(x, {plane_product_workspace(task)}, ScalarType::Byte);
  task.workspace = workspace.mutable_data_ptr();
  check_cuda(op, plane_product_cuda(task, current_cuda_stream(x)));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("plane_expand", TORCH_BOX(&plane_expand));
  m.impl("plane_matmul", TORCH_BOX(&plane_matmul));
}

}  // namespace pvq::ops
