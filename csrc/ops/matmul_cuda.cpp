// matmul and matmul_transposed on the GPU from the exact index: the codes are decoded into a dense
// scratch of the activations' dtype that lives for the call, and the library multiplies.
#include <optional>

#include "ops/code.h"
#include "ops/cuda_stream.h"
#include "ops/decode.h"
#include "ops/dense_product.h"

namespace pvq::ops {
namespace {

void check_input(const char* op, const char* name, const Tensor& x, int64_t size,
                 const Tensor& index) {
  check_dtype(op, name, x, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  PVQ_CHECK(x.dim() >= 1 && x.size(-1) == size, "pvq::", op, ": ", name, " has shape ",
            shape_name(x), ", expected [..., ", size, "]");
  check_same_device(op, name, x, "index", index);
}

// The matrix in the rotated domain, [rows, cols] of x's dtype.
Tensor expand(const Tensor& x, const Tensor& index, const Tensor& gain, const Tensor& row_scale,
              int64_t dim, int64_t pulses, int64_t gain_bits, const std::string& gain_law,
              int64_t cols) {
  return dequantize_on_cuda(index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols,
                            x.scalar_type(), 0, 0);
}

Tensor matmul_cuda(const Tensor& x, const Tensor& index, const Tensor& gain,
                   const Tensor& row_scale, int64_t dim, int64_t pulses, int64_t gain_bits,
                   std::string gain_law, int64_t block, int64_t seed) {
  constexpr const char* op = "matmul";
  PVQ_CHECK(x.dim() >= 1, "pvq::matmul: x has no dimensions, expected [..., in_features]");
  const int64_t cols = x.size(-1);
  checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_input(op, "x", x, cols, index);
  check_rotation(op, {block, seed}, cols);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor w = expand(x, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  return multiply_dense(x, w, {block, seed});
}

Tensor matmul_transposed_cuda(const Tensor& g, const Tensor& index, const Tensor& gain,
                              const Tensor& row_scale, int64_t dim, int64_t pulses,
                              int64_t gain_bits, std::string gain_law, int64_t cols, int64_t block,
                              int64_t seed) {
  constexpr const char* op = "matmul_transposed";
  checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_input(op, "g", g, row_scale.size(0), index);
  check_rotation(op, {block, seed}, cols);
  const torch::stable::accelerator::DeviceGuard guard(g.get_device_index());
  const Tensor w = expand(g, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  return multiply_dense_transposed(g, w, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("matmul", TORCH_BOX(&matmul_cuda));
  m.impl("matmul_transposed", TORCH_BOX(&matmul_transposed_cuda));
}

}  // namespace pvq::ops
