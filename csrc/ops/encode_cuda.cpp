// nearest, encode and quantize on the GPU: the CPU's results bit for bit.
//
// Values that cannot be coded (NaN, infinity, vectors off the pyramid) are refused as on the CPU,
// which takes one wait for the stream. While the stream is captured for a graph nothing may wait:
// then such vectors become zero groups, and a row of weights with NaN or infinity gets the row
// scale NaN and zero groups.
#include "cuda/encode.h"

#include <tuple>

#include "ops/aligned.h"
#include "ops/cuda_refusals.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/encode.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor nearest_cuda(const Tensor& x, int64_t pulses, int64_t quality) {
  constexpr const char* op = "nearest";
  const NearestArguments a = check_nearest(x, pulses, quality);
  const DeviceGuard guard(x.get_device_index());
  const bool wide = x.scalar_type() == ScalarType::Double;
  const Tensor input = aligned(wide ? torch::stable::to(x, ScalarType::Float) : x);
  Tensor y = torch::stable::new_empty(input, input.sizes(), ScalarType::Short);
  void* stream = current_cuda_stream(x);
  const Refusals refusals(x, stream, a.count);
  NearestCuda task{};
  task.x = input.const_data_ptr();
  task.type = real_type(input.scalar_type());
  task.count = a.count;
  task.dim = a.dim;
  task.pulses = a.pulses;
  task.quality = a.quality;
  task.y = y.mutable_data_ptr<int16_t>();
  task.refusal = refusals.refusal();
  check_cuda(op, pvq::nearest_cuda(task, stream));
  if (refusals.first(op) >= 0) refuse_vectors();
  return y;
}

Tensor encode_cuda(const Tensor& y, int64_t pulses) {
  constexpr const char* op = "encode";
  const EncodeArguments a = check_encode(y, pulses);
  const DeviceGuard guard(y.get_device_index());
  const Tensor points = aligned(y);
  Tensor index = torch::stable::new_empty(y, {a.rows, a.stride}, ScalarType::Byte);
  void* stream = current_cuda_stream(y);
  const Refusals refusals(y, stream, a.rows * a.groups);
  const EncodeCuda task = {&a.pyramid, points.const_data_ptr<int16_t>(),  a.rows,
                           a.groups,   index.mutable_data_ptr<uint8_t>(), refusals.refusal()};
  check_cuda(op, pvq::encode_cuda(task, stream));
  const int64_t refused = refusals.first(op);
  if (refused >= 0) refuse_point(refused / a.groups, refused % a.groups, pulses);
  return index;
}

std::tuple<Tensor, Tensor, Tensor> quantize_cuda(const Tensor& w, int64_t dim, int64_t pulses,
                                                 int64_t gain_bits, std::string law,
                                                 int64_t quality) {
  constexpr const char* op = "quantize";
  const QuantizeArguments a = check_quantize(w, dim, pulses, gain_bits, law, quality);
  const DeviceGuard guard(w.get_device_index());
  const Tensor input = aligned(w);
  Tensor index = torch::stable::new_empty(w, {a.rows, a.index_stride}, ScalarType::Byte);
  Tensor gain = torch::stable::new_empty(w, {a.rows, a.gain_stride}, ScalarType::Byte);
  Tensor row_scale = torch::stable::new_empty(w, {a.rows}, ScalarType::BFloat16);
  void* stream = current_cuda_stream(w);
  const Refusals refusals(w, stream, a.rows * a.groups);
  QuantizeCuda task{};
  task.pyramid = &a.pyramid;
  task.w = input.const_data_ptr<float>();
  task.rows = a.rows;
  task.cols = a.cols;
  task.gain_bits = a.gain_bits;
  task.quality = a.quality;
  task.levels = &a.levels;
  task.index = index.mutable_data_ptr<uint8_t>();
  task.gain = gain.mutable_data_ptr<uint8_t>();
  task.row_scale = static_cast<uint16_t*>(row_scale.mutable_data_ptr());
  task.refusal = refusals.refusal();
  const Tensor workspace =
      torch::stable::new_empty(w, {quantize_cuda_workspace(task)}, ScalarType::Byte);
  check_cuda(op, pvq::quantize_cuda(task, workspace.mutable_data_ptr(), stream));
  const int64_t refused = refusals.first(op);
  if (refused >= 0) refuse_row(refused / a.groups);
  return {index, gain, row_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("nearest", TORCH_BOX(&nearest_cuda));
  m.impl("encode", TORCH_BOX(&encode_cuda));
  m.impl("quantize", TORCH_BOX(&quantize_cuda));
}

}  // namespace pvq::ops
