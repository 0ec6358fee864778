// TableKernels for any machine.
#include "cpu/table_kernels.h"

#include "core/table_codes.h"

namespace {

#include "cpu/table_quads.h"

PVQ_INLINE Quad fma(Quad a, Quad b, Quad c) { return a * b + c; }

// Twelve sums, two quads of weights and one of the input fill 15 of the 16 registers.
constexpr int kDirectTokens = 3;

#include "cpu/table_loops.h"

}  // namespace

const pvq::TableKernels pvq::table_kernels_portable[3] = {kernels<2>(), kernels<3>(), kernels<4>()};
