// The arguments of activation_points, checked, and its results: the same on every device.
#pragma once

#include <tuple>

#include "ops/checks.h"

namespace pvq::ops {

void check_points(const Tensor& x, int64_t dim, int64_t pulses);

// The integers and amplitudes of x, still to be written.
using PointTensors = std::tuple<Tensor, Tensor>;
PointTensors new_points(const Tensor& x, int64_t dim);

}  // namespace pvq::ops
