// Weight matrices that exist only tile by tile: decoded, multiplied by all tokens, thrown away.
//
// out[t, l] = sum_i a[t, i] * m[i, l]: in the product m = W^T, so that reduction indices i are
// columns of W and lanes l its rows; in the transposed product m = W and they change places.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/code.h"
#include "cpu/planes.h"

namespace pvq {

class Product;  // matmul.h

constexpr int64_t kNoRow = -1;
// Most reduction indices, and most lanes, of a tile. No group is longer.
constexpr int64_t kMaxTile = 256;

class WeightTiles {
 public:
  virtual ~WeightTiles() = default;

  // tile[(i - i0) * stride + l - l0] = m[i, l], zero for lanes from l1 up to a multiple of 16.
  // i0 and l0 are multiples of depth_step and lane_step; so are i1 and l1, or the matrix's end.
  // Returns kNoRow, or the weight row whose stored form is damaged.
  virtual int64_t fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
                       int64_t stride) const = 0;

  // Whether fill and multiply_directly leave something out: a few weights, each by d(i, l). That is
  // a sparse product of its own, because a lone store into a tile, or a branch on where outliers
  // are, stalls the vector pipeline: 0.05 % of outliers took a quarter of the time.
  virtual bool has_missing() const;
  // sum[(l - l0) * tokens + t] += sum over i of d(i, l) * a[i * tokens + t], lanes [l0, l1).
  virtual int64_t add_missing(int64_t l0, int64_t l1, const float* a, int64_t tokens,
                              float* sum) const;

  // Whether so few tokens are multiplied faster without tiles, by multiply_directly:
  // c[t * stride + l - l0] = out[t, l] for a as [depth, tokens]; l0 and l1 as for `fill`, lanes up
  // to a multiple of 16 are written.
  virtual bool prefers_direct(int64_t tokens) const;
  virtual void multiply_directly(int64_t l0, int64_t l1, const float* a, int tokens, float* c,
                                 int64_t stride) const;

  // A product of its own that is faster than tiles for so few tokens, or null.
  virtual std::unique_ptr<Product> make_direct(int64_t tokens) const;

  const int64_t depth, lanes;
  const int64_t depth_step, lane_step;

 protected:
  WeightTiles(int64_t depth_, int64_t lanes_, int64_t depth_step_, int64_t lane_step_)
      : depth(depth_), lanes(lanes_), depth_step(depth_step_), lane_step(lane_step_) {}
};

class CodeTiles final : public WeightTiles {
 public:
  CodeTiles(const CodeView& code, bool transposed);
  int64_t fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
               int64_t stride) const override;

 private:
  CodeView code_;
  bool transposed_;
};

class PlaneTiles final : public WeightTiles {
 public:
  PlaneTiles(const PlanesView& planes, bool transposed);
  int64_t fill(int64_t i0, int64_t i1, int64_t l0, int64_t l1, float* tile,
               int64_t stride) const override;
  bool has_missing() const override;
  int64_t add_missing(int64_t l0, int64_t l1, const float* a, int64_t tokens,
                      float* sum) const override;
  bool prefers_direct(int64_t tokens) const override;
  void multiply_directly(int64_t l0, int64_t l1, const float* a, int tokens, float* c,
                         int64_t stride) const override;

 private:
  // Columns [c0, c1), whole groups, of one panel: tile[(c - c0) * stride + row - 16 * panel].
  void unpack(int64_t panel, int64_t c0, int64_t c1, float* tile, int64_t stride) const;

  PlanesView planes_;
  bool transposed_;
};

}  // namespace pvq
