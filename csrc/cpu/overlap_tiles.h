// Matrices in an overlapping-pyramid code (core/overlap.h), as the products see them.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/matmul_tiles.h"
#include "cpu/overlap_code.h"

namespace pvq {

class OverlapTiles final : public WeightTiles {
 public:
  OverlapTiles(const OverlapView& code, bool transposed);
  int64_t fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
               int64_t stride) const override;
  std::unique_ptr<Product> make_direct(int64_t tokens) const override;

 private:
  OverlapView code_;
  bool transposed_;
};

}  // namespace pvq
