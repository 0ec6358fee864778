#include "cpu/overlap_rows.h"

#include "cpu/isa.h"

namespace pvq {

const OverlapRows* overlap_rows(const OverlapTrellis& trellis, const int8_t* table, int spread,
                                OverlapPlanes* planes) {
#ifdef PVQ_X86
  if (cpu_isa() < Isa::kAvx512Vbmi) return nullptr;
  const int pair_bits = 2 * trellis.stored_bits() / trellis.dim;
  if (pair_bits < 4 || pair_bits > 8 || trellis.terms != 2) return nullptr;
  const OverlapShape shape = overlap_shape(pair_bits);
  if (trellis.dim != shape.dim || trellis.step_bits != shape.step_bits ||
      trellis.window_bits != shape.window_bits || trellis.lag != shape.lag ||
      trellis.spread != shape.spread)
    return nullptr;
  planes->pair_bits = pair_bits;
  planes->spread = spread;
  const int more = trellis.window_bits - 8;  // oldest bits, lowest
  for (int row = 0; row < trellis.rows(); ++row)
    for (int point = 0; point < 2; ++point)
      for (int d = 0; d < trellis.dim; ++d)
        planes->at[point][d][row & ((1 << more) - 1)][row >> more] =
            uint8_t(table[(row * 2 + point) * trellis.dim + d]);
  return &overlap_rows_vbmi;
#else
  (void)trellis, (void)table, (void)spread, (void)planes;
  return nullptr;
#endif
}

}  // namespace pvq
