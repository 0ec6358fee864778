// decode, dequantize and check_codes on the GPU: the CPU's results bit for bit, but for the
// rotation, whose sums run in another order.
//
// decode and dequantize do not wait for the stream, so they cannot raise for an index that names no
// point: such a group decodes to zeros, and dequantizes to NaN. check_codes waits and raises; call
// it once for codes that come from outside.
#include "cuda/decode.h"

#include "ops/code.h"
#include "ops/code_on_cuda.h"
#include "ops/cuda_refusals.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

IndexStreams streams_of(const StoredIndex& stored) {
  return {&stored.pyramid, stored.index.const_data_ptr<uint8_t>(), stored.rows, stored.groups};
}

Tensor decode_cuda(const Tensor& index, int64_t dim, int64_t pulses, int64_t groups) {
  constexpr const char* op = "decode";
  const StoredIndex stored = checked_index(op, index, dim, pulses, groups);
  const DeviceGuard guard(index.get_device_index());
  Tensor y = torch::stable::new_empty(index, {stored.rows, groups, dim}, ScalarType::Short);
  check_cuda(op, pvq::decode_cuda(streams_of(stored), y.mutable_data_ptr<int16_t>(),
                                  current_cuda_stream(index)));
  return y;
}

void check_codes_cuda(const Tensor& index, int64_t dim, int64_t pulses, int64_t groups) {
  constexpr const char* op = "check_codes";
  const StoredIndex stored = checked_index(op, index, dim, pulses, groups);
  const DeviceGuard guard(index.get_device_index());
  void* stream = current_cuda_stream(index);
  PVQ_CHECK(!cuda_is_capturing(stream),
            "pvq::check_codes: the stream is captured for a CUDA graph, and the check must wait "
            "for it; check before the capture");
  const Refusals refusals(index, stream, stored.rows * groups);
  check_cuda(op, pvq::check_codes_cuda(streams_of(stored), refusals.refusal(), stream));
  const int64_t refused = refusals.first(op);
  if (refused >= 0) refuse_index(op, refused / groups);
}

Tensor dequantize_cuda(const Tensor& index, const Tensor& gain, const Tensor& row_scale,
                       int64_t dim, int64_t pulses, int64_t gain_bits, std::string gain_law,
                       int64_t cols, ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "dequantize";
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  return CodeOnCuda<CodeView>(op, code.view, "index", code.index, pvq::dequantize_cuda)
      .dequantize(dtype, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("decode", TORCH_BOX(&decode_cuda));
  m.impl("dequantize", TORCH_BOX(&dequantize_cuda));
  m.impl("check_codes", TORCH_BOX(&check_codes_cuda));
}

}  // namespace pvq::ops
