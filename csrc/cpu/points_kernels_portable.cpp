// PointsKernels for any machine.
#include <stdint.h>

#include "core/point_rounding.h"
#include "cpu/points_kernels.h"

namespace {
#include "cpu/points_loops.h"
#include "cpu/points_rounding.h"
}  // namespace

const pvq::PointsKernels pvq::points_kernels_portable = {&round_points, &multiply4, &multiply8};
