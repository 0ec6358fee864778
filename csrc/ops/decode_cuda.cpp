// decode, dequantize and check_codes on the GPU: the CPU's results bit for bit, but for the
// rotation, whose sums run in another order.
//
// decode and dequantize do not wait for the stream, so they cannot raise for an index that names no
// point: such a group decodes to zeros, and dequantizes to NaN. check_codes waits and raises; call
// it once for codes that come from outside.
#include "cuda/decode.h"

#include "ops/code.h"
#include "ops/cuda_refusals.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/decode.h"
#include "ops/hadamard.h"
#include "ops/rotation.h"

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

}  // namespace

Tensor dequantize_on_cuda(const Tensor& index, const Tensor& gain, const Tensor& row_scale,
                          int64_t dim, int64_t pulses, int64_t gain_bits, std::string gain_law,
                          int64_t cols, ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "dequantize";
  check_weight_dtype(op, dtype);
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_rotation(op, {block, seed}, cols);
  const DeviceGuard guard(index.get_device_index());
  void* stream = current_cuda_stream(index);
  // Rotated weights are rounded after the rotation, and there is no kernel for float64.
  const ScalarType decoded = block != 0 || dtype == ScalarType::Double ? ScalarType::Float : dtype;
  Tensor w = torch::stable::new_empty(index, {code.view.rows, cols}, decoded);
  check_cuda(op, pvq::dequantize_cuda(code.view, real_type(decoded), w.mutable_data_ptr(), stream));
  if (block) hadamard_on_cuda_(w, block, seed, /*inverse=*/true);
  return decoded == dtype ? w : torch::stable::to(w, dtype);
}

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("decode", TORCH_BOX(&decode_cuda));
  m.impl("dequantize", TORCH_BOX(&dequantize_on_cuda));
  m.impl("check_codes", TORCH_BOX(&check_codes_cuda));
}

}  // namespace pvq::ops
