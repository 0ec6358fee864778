// PointsKernels for AVX2: the plain loops, which the compiler turns into vectors of 8 integers.
#ifdef PVQ_X86
#include <stdint.h>

#include "core/point_rounding.h"
#include "cpu/points_kernels.h"

namespace {
#include "cpu/points_loops.h"
#include "cpu/points_rounding.h"
}  // namespace

const pvq::PointsKernels pvq::points_kernels_avx2 = {&round_points, &multiply4, &multiply8};
#endif
