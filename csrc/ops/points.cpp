// activation_points on the CPU; cpu/points.h defines it.
#include "ops/points.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/platform.h"
#include "cpu/points.h"
#include "ops/matmul.h"

namespace pvq::ops {

void check_points(const Tensor& x, int64_t dim, int64_t pulses) {
  constexpr const char* op = "activation_points";
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check_range(op, "dim", dim, 1, kMaxDim);
  check_range(op, "pulses", pulses, 1, kMaxPulses);
  PVQ_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) % dim == 0, "pvq::", op, ": x has shape ",
            shape_name(x), ", expected [..., cols] with a multiple of dim = ", dim, " columns");
}

PointTensors new_points(const Tensor& x, int64_t dim) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  Tensor point = torch::stable::new_empty(x, shape, ScalarType::Short);
  shape.back() /= dim;
  return {point, torch::stable::new_empty(x, shape, ScalarType::BFloat16)};
}

namespace {

// Values handed to a thread at once.
constexpr int64_t kGrain = 1 << 13;

PointTensors activation_points_cpu(const Tensor& x, int64_t dim, int64_t pulses) {
  check_points(x, dim, pulses);
  const Tensor input = as_contiguous(as_dtype(x, ScalarType::Float));
  const auto [point, amplitude] = new_points(x, dim);
  const float* in = input.const_data_ptr<float>();
  auto* y = static_cast<int16_t*>(point.mutable_data_ptr());
  auto* levels = static_cast<uint16_t*>(amplitude.mutable_data_ptr());
  std::atomic<bool> finite = true;
  torch::stable::parallel_for(
      0, amplitude.numel(), std::max<int64_t>(1, kGrain / dim), [&](int64_t begin, int64_t end) {
        if (!activation_points(in + begin * dim, end - begin, static_cast<int>(dim),
                               static_cast<int>(pulses), y + begin * dim, levels + begin))
          finite = false;
      });
  PVQ_CHECK(finite, "pvq::activation_points: x holds NaN or infinity, expected finite values");
  return {point, amplitude};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("activation_points", TORCH_BOX(&activation_points_cpu));
}

}  // namespace pvq::ops
