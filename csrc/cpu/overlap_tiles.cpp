#include "cpu/overlap_tiles.h"

#include <algorithm>

#include "cpu/matmul_blocks.h"
#include "cpu/matmul_kernels.h"

namespace pvq {

OverlapTiles::OverlapTiles(const OverlapView& code, bool transposed)
    : WeightTiles(transposed ? code.rows : code.cols, transposed ? code.cols : code.rows,
                  transposed ? 1 : kOverlapStep, transposed ? kOverlapBlock : 1),
      code_(code),
      transposed_(transposed) {}

int64_t OverlapTiles::fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                           int64_t stride) const {
  if (transposed_) {
    for (int64_t row = i0; row < i1; ++row, tile += stride) {
      dequantize_overlap(code_, row, l0, l1, tile);
      std::fill(tile + (l1 - l0), tile + round_up(l1 - l0, kLanes), 0.0f);
    }
    return kNoRow;
  }
  int8_t y[kLanes][kMaxTile];
  for (int64_t l = l0; l < l1; l += kLanes, tile += kLanes) {
    float scale[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {  // a lane without a row is zero
      scale[lane] = l + lane < l1 ? code_.scale(l + lane) : 0.0f;
      decode_overlap(code_, std::min(l + lane, l1 - 1), i0, i1, y[lane]);
    }
    for (int64_t i = 0; i < i1 - i0; ++i)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        tile[i * stride + lane] = scale[lane] * float(y[lane][i]);
  }
  return kNoRow;
}

}  // namespace pvq
