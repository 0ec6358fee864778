// What the operators on fragments share, whatever code they hold: checks and the product's call.
#pragma once

#include <vector>

#include "cuda/fragments.h"
#include "ops/aligned.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/dense_product.h"

namespace pvq::ops {

inline void check_fragments(const char* op, const Tensor& fragments, const Tensor& row_scale) {
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
}

inline void check_expanded_dtype(const char* op, ScalarType dtype) {
  PVQ_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16, "pvq::", op, ": dtype is ",
            dtype_name(dtype), ", expected float16 or bfloat16");
}

inline void check_fragment_operands(const char* op, const Tensor& x, const Tensor& fragments,
                                    const Tensor& row_scale) {
  check_dtype(op, "x", x, {ScalarType::Half, ScalarType::BFloat16});
  check_same_device(op, "x", x, "fragments", fragments);
  check_fragments(op, fragments, row_scale);
}

// rotate(x) W^T. `task` (TableProduct, PlaneProduct or IndexProduct) has what only its code knows;
// workspace_bytes and product are its functions, expand() gives W where the device or the call has
// no kernel, and for more than most_tokens.
template <class Task, class Expand>
Tensor multiply_fragments(const char* op, const Tensor& x, const Tensor& fragments,
                          const Tensor& row_scale, int64_t cols, Rotation rotation, Task task,
                          int64_t (*workspace_bytes)(const Task&),
                          int (*product)(const Task&, void*), const Expand& expand,
                          int64_t most_tokens = kMaxProductTokens) {
  check_rotation(op, rotation, cols);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t rows = row_scale.size(0), tokens = cols ? x.numel() / cols : 0;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = rows;
  if (tokens == 0 || rows == 0) return torch::stable::new_zeros(x, shape);
  if (tokens > most_tokens || !products_supported() || !product_block_supported(rotation.block))
    return multiply_dense(x, expand(), rotation);

  const Tensor input = aligned(x), source = aligned(fragments);
  const Tensor scale = torch::stable::contiguous(row_scale);
  Tensor y = torch::stable::new_empty(x, shape);
  task.fragments = source.template const_data_ptr<uint8_t>();
  task.row_scale = static_cast<const uint16_t*>(scale.const_data_ptr());
  task.x = input.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.rows = rows;
  task.cols = cols;
  task.tokens = int(tokens);
  task.block = int(rotation.block);
  task.seed = uint64_t(rotation.seed);
  task.type = real_type(x.scalar_type());
  const int64_t bytes = workspace_bytes(task);
  Tensor workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  task.workspace = bytes ? workspace.mutable_data_ptr() : nullptr;
  check_cuda(op, product(task, current_cuda_stream(x)));
  return y;
}

}  // namespace pvq::ops
