// The product operators' common part: tensors in, tiles multiplied by all threads, tensor out.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/matmul_tiles.h"
#include "ops/rotation.h"

namespace pvq::ops {

// What torch would return too, without the microsecond that asking it takes.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}
inline Tensor as_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// The columns that the activations of a product ask for.
inline int64_t columns_of(const char* op, const Tensor& x) {
  PVQ_CHECK(x.dim() >= 1, "pvq::", op, ": x has no dimensions, expected [..., in_features]");
  return x.size(x.dim() - 1);
}

// x [..., size] of float32, bfloat16 or float16 on the device of `other`.
void check_activations(const char* op, const char* name, const Tensor& x, int64_t size,
                       const char* size_name, const char* other_name, const Tensor& other);

// The smallest row that any thread reports, so that a message does not depend on their timing.
class DamagedRow {
 public:
  void report(int64_t row) {
    int64_t known = row_;
    while (row != kNoRow && (known == kNoRow || row < known))
      if (row_.compare_exchange_weak(known, row)) return;
  }
  int64_t row() const { return row_; }  // kNoRow if there was none

 private:
  std::atomic<int64_t> row_ = kNoRow;
};

struct ProductResult {
  Tensor out;       // [..., lanes], in x's dtype
  int64_t bad_row;  // kNoRow, or the weight row whose stored form is damaged; `out` is then void
};

// rotate(x) times the tiles.
ProductResult multiply_rotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation);
// x times the tiles, rotated back.
ProductResult multiply_unrotated(const Tensor& x, const WeightTiles& tiles, Rotation rotation);

}  // namespace pvq::ops
