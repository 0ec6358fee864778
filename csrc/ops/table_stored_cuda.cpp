// table_quantize, table_dequantize, table_matmul and table_matmul_transposed on the GPU, from and
// to the stored form. Codes and weights are the CPU's bit for bit, but for the rotation, whose sums
// run in another order.
//
// table_quantize refuses NaN and infinity as on the CPU, which takes one wait for the stream. While
// the stream is captured for a graph nothing may wait: then such a row gets the scale NaN.
#include "cuda/table_stored.h"

#include <tuple>

#include "ops/aligned.h"
#include "ops/code_on_cuda.h"
#include "ops/cuda_refusals.h"
#include "ops/tables.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor> table_quantize(const Tensor& w, int64_t bits) {
  constexpr const char* op = "table_quantize";
  check_table_weights(op, w, bits);
  const DeviceGuard guard(w.get_device_index());
  const Tensor input = aligned(w);
  TableQuantizeCuda task{};
  task.rows = w.size(0);
  task.cols = w.size(1);
  task.bits = int(bits);
  const int64_t row_bytes = table_row_bytes(task.bits, task.cols);
  Tensor code = torch::stable::new_empty(w, {task.rows, row_bytes}, ScalarType::Byte);
  Tensor row_scale = torch::stable::new_empty(w, {task.rows}, ScalarType::BFloat16);
  void* stream = current_cuda_stream(w);
  const Refusals refusals(w, stream, task.rows);
  task.w = input.const_data_ptr<float>();
  task.names = table_names(task.bits);
  task.code = code.mutable_data_ptr<uint8_t>();
  task.row_scale = static_cast<uint16_t*>(row_scale.mutable_data_ptr());
  task.refusal = refusals.refusal();
  check_cuda(op, table_quantize_cuda(task, stream));
  const int64_t refused = refusals.first(op);
  if (refused >= 0) refuse_table_row(refused);
  return {code, row_scale};
}

CodeOnCuda<TableView> on_cuda(const char* op, const StoredTable& stored) {
  return {op, stored.view, "code", stored.code, table_dequantize_cuda};
}

Tensor table_dequantize(const Tensor& code, const Tensor& row_scale, int64_t bits, int64_t cols,
                        ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "table_dequantize";
  const StoredTable stored = checked_table(op, code, row_scale, bits, cols);
  return on_cuda(op, stored).dequantize(dtype, {block, seed});
}

Tensor table_matmul(const Tensor& x, const Tensor& code, const Tensor& row_scale, int64_t bits,
                    int64_t block, int64_t seed) {
  constexpr const char* op = "table_matmul";
  const StoredTable stored = checked_table(op, code, row_scale, bits, columns_of(op, x));
  return on_cuda(op, stored).multiply(x, {block, seed});
}

Tensor table_matmul_transposed(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                               int64_t bits, int64_t cols, int64_t block, int64_t seed) {
  constexpr const char* op = "table_matmul_transposed";
  const StoredTable stored = checked_table(op, code, row_scale, bits, cols);
  return on_cuda(op, stored).multiply_transposed(g, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_quantize", TORCH_BOX(&table_quantize));
  m.impl("table_dequantize", TORCH_BOX(&table_dequantize));
  m.impl("table_matmul", TORCH_BOX(&table_matmul));
  m.impl("table_matmul_transposed", TORCH_BOX(&table_matmul_transposed));
}

}  // namespace pvq::ops
