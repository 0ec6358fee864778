// OverlapKernels for any machine: vectors of 16 bytes.
#include "cpu/overlap_kernels.h"

namespace {

typedef float Float __attribute__((vector_size(16)));

[[gnu::always_inline]] inline Float minimum(Float a, Float b) { return a < b ? a : b; }
[[gnu::always_inline]] inline Float absolute(Float a) { return a < 0 ? -a : a; }
[[gnu::always_inline]] inline Float multiply_add(Float a, Float b, Float c) {
  for (int i = 0; i < 4; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}

#include "cpu/overlap_loops.h"

}  // namespace

const pvq::OverlapKernels pvq::overlap_kernels_portable = {&cross, &step, &spread_step};
