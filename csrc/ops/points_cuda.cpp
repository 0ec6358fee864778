// activation_points on the GPU: the CPU's results bit for bit. Values that are not finite are not
// refused, which would wait for the device: their groups become zeros.
#include "cuda/activation_points.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/points.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

PointTensors activation_points(const Tensor& x, int64_t dim, int64_t pulses) {
  check_points(x, dim, pulses);
  const DeviceGuard guard(x.get_device_index());
  const Tensor input = torch::stable::contiguous(x);
  const auto [point, amplitude] = new_points(x, dim);
  PointsTask task{};
  task.x = input.const_data_ptr();
  task.type = real_type(x.scalar_type());
  task.count = amplitude.numel();
  task.dim = int(dim);
  task.pulses = int(pulses);
  task.y = static_cast<int16_t*>(point.mutable_data_ptr());
  task.amplitude = static_cast<uint16_t*>(amplitude.mutable_data_ptr());
  check_cuda("activation_points", activation_points_cuda(task, current_cuda_stream(x)));
  return {point, amplitude};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("activation_points", TORCH_BOX(&activation_points));
}

}  // namespace pvq::ops
