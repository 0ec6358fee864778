// overlap_dequantize, overlap_matmul and overlap_matmul_transposed on the GPU, from the stored
// form: products expand the codes to a dense scratch of the activations' dtype that lives for the
// call, and the library multiplies.
#include "cuda/overlap_dequantize.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/dense_product.h"
#include "ops/matmul.h"
#include "ops/overlap.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Weights of a float dtype that kernels write, still rotated.
Tensor expand(const char* op, const StoredOverlap& stored, ScalarType dtype) {
  Tensor w = torch::stable::new_empty(stored.code, {stored.view.rows, stored.view.cols}, dtype);
  check_cuda(op, overlap_dequantize_cuda(stored.view, real_type(dtype), w.mutable_data_ptr(),
                                         current_cuda_stream(stored.code)));
  return w;
}

Tensor overlap_dequantize(const Tensor& code, const Tensor& row_scale, const Tensor& table,
                          int64_t step_bits, int64_t lag, int64_t cols, ScalarType dtype,
                          int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_dequantize";
  check_weight_dtype(op, dtype);
  const StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, cols);
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(code.get_device_index());
  // Rotated weights are rounded after the rotation, and there is no kernel for float64.
  const bool exact = block != 0 || dtype == ScalarType::Double;
  const Tensor w = expand(op, stored, exact ? ScalarType::Float : dtype);
  if (block) hadamard_on_cuda_(w, block, seed, /*inverse=*/true);
  return as_dtype(w, dtype);
}

Tensor overlap_matmul(const Tensor& x, const Tensor& code, const Tensor& row_scale,
                      const Tensor& table, int64_t step_bits, int64_t lag, int64_t block,
                      int64_t seed) {
  constexpr const char* op = "overlap_matmul";
  PVQ_CHECK(x.dim() >= 1, "pvq::overlap_matmul: x has no dimensions, expected [..., in_features]");
  const int64_t cols = x.size(x.dim() - 1);
  const StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, cols);
  check_activations(op, "x", x, cols, "in_features", "code", code);
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(x.get_device_index());
  return multiply_dense(x, expand(op, stored, x.scalar_type()), {block, seed});
}

Tensor overlap_matmul_transposed(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                                 const Tensor& table, int64_t step_bits, int64_t lag, int64_t cols,
                                 int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul_transposed";
  const StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, cols);
  check_activations(op, "g", g, stored.view.rows, "rows of the matrix", "code", code);
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(g.get_device_index());
  return multiply_dense_transposed(g, expand(op, stored, g.scalar_type()), {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("overlap_dequantize", TORCH_BOX(&overlap_dequantize));
  m.impl("overlap_matmul", TORCH_BOX(&overlap_matmul));
  m.impl("overlap_matmul_transposed", TORCH_BOX(&overlap_matmul_transposed));
}

}  // namespace pvq::ops
