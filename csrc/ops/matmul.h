// The product operators' common part: tensors in, tiles multiplied by all threads, tensor out.
#pragma once

#include <cstdint>

#include "cpu/matmul_tiles.h"
#include "ops/rotation.h"

namespace pvq::ops {

// x [..., size] of float32, bfloat16 or float16 on the device of `other`.
void check_activations(const char* op, const char* name, const Tensor& x, int64_t size,
                       const char* size_name, const char* other_name, const Tensor& other);

struct ProductResult {
  Tensor out;       // [..., lanes], in x's dtype
  int64_t bad_row;  // kNoRow, or the weight row whose stored form is damaged; `out` is then void
};

// rotate(x) times the tiles.
ProductResult multiply_rotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation);
// x times the tiles, rotated back.
ProductResult multiply_unrotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation);

}  // namespace pvq::ops
