// OverlapKernels for AVX-512.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/overlap_kernels.h"

namespace {

typedef float Float __attribute__((vector_size(64)));

[[gnu::always_inline]] inline Float minimum(Float a, Float b) { return _mm512_min_ps(a, b); }
[[gnu::always_inline]] inline Float absolute(Float a) { return _mm512_abs_ps(a); }
[[gnu::always_inline]] inline Float multiply_add(Float a, Float b, Float c) {
  return _mm512_fmadd_ps(a, b, c);
}

#include "cpu/overlap_loops.h"

}  // namespace

const pvq::OverlapKernels pvq::overlap_kernels_avx512 = {&cross, &step, &spread_step};
#endif
