// overlap_dequantize, overlap_matmul and overlap_matmul_transposed on the GPU, from the stored
// form: products expand the codes to a dense scratch of the activations' dtype that lives for the
// call, and the library multiplies.
#include "cuda/overlap_dequantize.h"
#include "ops/code_on_cuda.h"
#include "ops/overlap.h"

namespace pvq::ops {
namespace {

CodeOnCuda<OverlapView> on_cuda(const char* op, const StoredOverlap& stored) {
  return {op, stored.view, "code", stored.code, overlap_dequantize_cuda};
}

Tensor overlap_dequantize(const Tensor& code, const Tensor& row_scale, const Tensor& table,
                          int64_t step_bits, int64_t lag, int64_t spread, int64_t cols,
                          ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_dequantize";
  const StoredOverlap stored =
      checked_overlap(op, code, row_scale, table, step_bits, lag, spread, cols);
  return on_cuda(op, stored).dequantize(dtype, {block, seed});
}

Tensor overlap_matmul(const Tensor& x, const Tensor& code, const Tensor& row_scale,
                      const Tensor& table, int64_t step_bits, int64_t lag, int64_t spread,
                      int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul";
  const StoredOverlap stored =
      checked_overlap(op, code, row_scale, table, step_bits, lag, spread, columns_of(op, x));
  return on_cuda(op, stored).multiply(x, {block, seed});
}

Tensor overlap_matmul_transposed(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                                 const Tensor& table, int64_t step_bits, int64_t lag,
                                 int64_t spread, int64_t cols, int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul_transposed";
  const StoredOverlap stored =
      checked_overlap(op, code, row_scale, table, step_bits, lag, spread, cols);
  return on_cuda(op, stored).multiply_transposed(g, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("overlap_dequantize", TORCH_BOX(&overlap_dequantize));
  m.impl("overlap_matmul", TORCH_BOX(&overlap_matmul));
  m.impl("overlap_matmul_transposed", TORCH_BOX(&overlap_matmul_transposed));
}

}  // namespace pvq::ops
