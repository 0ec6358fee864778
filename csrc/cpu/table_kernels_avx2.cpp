// TableKernels for AVX2: the same loops with three operands and fused products.
#ifdef PVQ_X86
#include <immintrin.h>

#include "cpu/table_kernels.h"

#include "core/table_codes.h"

namespace {

#include "cpu/table_quads.h"

PVQ_INLINE Quad fma(Quad a, Quad b, Quad c) { return _mm_fmadd_ps(a, b, c); }

// Twelve sums, two quads of weights and one of the input fill 15 of the 16 registers.
constexpr int kDirectTokens = 3;

#include "cpu/table_loops.h"

}  // namespace

const pvq::TableKernels pvq::table_kernels_avx2[3] = {kernels<2>(), kernels<3>(), kernels<4>()};
#endif
