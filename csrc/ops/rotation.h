// The rotation among an operator's arguments: (block, seed), block 0 for none.
#pragma once

#include "core/hadamard_factors.h"
#include "ops/checks.h"

namespace pvq::ops {

struct Rotation {
  int64_t block, seed;
};

inline void check_rotation(const char* op, Rotation rotation, int64_t cols) {
  if (rotation.block == 0) return;
  HadamardSplit split;
  PVQ_CHECK(split_hadamard_block(rotation.block, &split), "pvq::", op, ": block is ",
                  rotation.block,
                  ", for which there is no Hadamard matrix; expected 0 (no rotation) or a supported "
                  "size (pvq.rotation.supported_block)");
  PVQ_CHECK(cols % rotation.block == 0, "pvq::", op, ": block is ", rotation.block,
                  ", which does not divide the ", cols, " columns");
}

}  // namespace pvq::ops
