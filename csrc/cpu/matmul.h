// The product of activations with a matrix of tiles, the same for the stored form and the planes,
// for the product and its transpose:  out[t, l] = sum_i a[t, i] * m[i, l].
//
// Use: pack the activations once, then let threads multiply ranges of panels. A panel is a range of
// lanes that one thread computes from its first to its last tile in a fixed order, so the result
// does not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cpu/matmul_tiles.h"

namespace pvq {

class Product {
 public:
  // The fastest way for so many tokens. `bfloat16` allows to round activations and weights to
  // bfloat16 before they are multiplied (sums stay float32), as a product of bfloat16 matrices
  // does. `weights` must outlive the product.
  static std::unique_ptr<Product> make(const WeightTiles& weights, int64_t tokens, bool bfloat16);
  virtual ~Product() = default;

  // Brings activations [tokens, depth] into the order that the kernels read. Units are independent
  // of each other and write to disjoint parts of `packed`, packed_bytes() aligned to 64. No units:
  // the order is right as it is.
  size_t packed_bytes() const { return packed_bytes_; }
  int64_t pack_units() const { return pack_units_; }
  virtual void pack(const float* a, int64_t begin, int64_t end, void* packed) const = 0;

  // out [tokens, lanes]. Returns kNoRow, or a weight row whose stored form is damaged.
  int64_t panels() const { return panels_; }
  virtual int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const = 0;

 protected:
  size_t packed_bytes_ = 0;
  int64_t pack_units_ = 0;
  int64_t panels_ = 0;
};

}  // namespace pvq
