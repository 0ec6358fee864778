// OverlapKernels for AVX2.
#ifdef PVQ_X86
#include <immintrin.h>

#include "cpu/overlap_kernels.h"

namespace {

typedef float Float __attribute__((vector_size(32)));

[[gnu::always_inline]] inline Float minimum(Float a, Float b) { return _mm256_min_ps(a, b); }
[[gnu::always_inline]] inline Float absolute(Float a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
[[gnu::always_inline]] inline Float multiply_add(Float a, Float b, Float c) {
  return _mm256_fmadd_ps(a, b, c);
}

#include "cpu/overlap_loops.h"

}  // namespace

const pvq::OverlapKernels pvq::overlap_kernels_avx2 = {&cross, &step, &spread_step};
#endif
