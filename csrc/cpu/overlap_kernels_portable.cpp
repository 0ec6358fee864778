// OverlapKernels for any machine: vectors of 16 bytes.
#include "cpu/overlap_kernels.h"

namespace {

typedef float Float __attribute__((vector_size(16)));

[[gnu::always_inline]] inline Float minimum(Float a, Float b) { return a < b ? a : b; }

#include "cpu/overlap_loops.h"

}  // namespace

const pvq::OverlapKernels pvq::overlap_kernels_portable = {&cross, &step};
