// activation_points on the CPU; cpu/points.h defines it.
#include "cpu/points.h"

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "core/platform.h"
#include "ops/matmul.h"

namespace pvq::ops {
namespace {

// Values handed to a thread at once.
constexpr int64_t kGrain = 1 << 13;

std::tuple<Tensor, Tensor> activation_points_cpu(const Tensor& x, int64_t dim, int64_t pulses) {
  constexpr const char* op = "activation_points";
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check_range(op, "dim", dim, 1, kMaxDim);
  check_range(op, "pulses", pulses, 1, kMaxPulses);
  PVQ_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) % dim == 0, "pvq::", op, ": x has shape ",
            shape_name(x), ", expected [..., cols] with a multiple of dim = ", dim, " columns");
  const Tensor input = as_contiguous(as_dtype(x, ScalarType::Float));
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  Tensor point = torch::stable::new_empty(x, shape, ScalarType::Short);
  shape.back() /= dim;
  Tensor amplitude = torch::stable::new_empty(x, shape, ScalarType::BFloat16);
  const float* in = input.const_data_ptr<float>();
  int16_t* y = point.mutable_data_ptr<int16_t>();
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
