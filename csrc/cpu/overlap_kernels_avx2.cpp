// OverlapKernels for AVX2.
#ifdef PVQ_X86
#include <immintrin.h>

#include "cpu/overlap_kernels.h"

namespace {

typedef float Float __attribute__((vector_size(32)));

[[gnu::always_inline]] inline Float minimum(Float a, Float b) { return _mm256_min_ps(a, b); }

#include "cpu/overlap_loops.h"

}  // namespace

const pvq::OverlapKernels pvq::overlap_kernels_avx2 = {&cross, &step};
#endif
