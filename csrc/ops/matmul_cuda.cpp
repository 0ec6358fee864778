// matmul and matmul_transposed on the GPU, from the exact index.
#include "cuda/decode.h"
#include "ops/code.h"
#include "ops/code_on_cuda.h"

namespace pvq::ops {
namespace {

CodeOnCuda<CodeView> on_cuda(const char* op, const StoredCode& code) {
  return {op, code.view, "index", code.index, dequantize_cuda};
}

Tensor matmul_cuda(const Tensor& x, const Tensor& index, const Tensor& gain,
                   const Tensor& row_scale, int64_t dim, int64_t pulses, int64_t gain_bits,
                   std::string gain_law, int64_t block, int64_t seed) {
  constexpr const char* op = "matmul";
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, columns_of(op, x));
  return on_cuda(op, code).multiply(x, {block, seed});
}

Tensor matmul_transposed_cuda(const Tensor& g, const Tensor& index, const Tensor& gain,
                              const Tensor& row_scale, int64_t dim, int64_t pulses,
                              int64_t gain_bits, std::string gain_law, int64_t cols, int64_t block,
                              int64_t seed) {
  constexpr const char* op = "matmul_transposed";
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  return on_cuda(op, code).multiply_transposed(g, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("matmul", TORCH_BOX(&matmul_cuda));
  m.impl("matmul_transposed", TORCH_BOX(&matmul_transposed_cuda));
}

}  // namespace pvq::ops
