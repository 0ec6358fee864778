// The float32 product, and the choice between it and the bfloat16 one.
#include "cpu/matmul.h"

#include <cstring>

#include "cpu/matmul_blocks.h"
#include "cpu/matmul_kernels.h"

namespace pvq {
namespace {

// A tile of 64 lanes by 128 reduction indices has 32 KB, and stays in the first-level cache
// together with the activations that belong to it.
constexpr int64_t kPanelLanes = 64;
constexpr int64_t kTileDepth = 128;

// Activations are packed as [blocks][depth][tokens of the block]; a block's tokens are what the
// kernel keeps sums for in registers, in blocks of about equal size.
class FloatProduct final : public Product {
 public:
  FloatProduct(const WeightTiles& weights, int64_t tokens)
      : weights_(weights),
        tokens_(tokens),
        direct_(weights.prefers_direct(tokens)),
        tile_depth_(round_down(kTileDepth, weights.depth_step)),
        panel_lanes_(round_down(kPanelLanes, weights.lane_step)),
        width_(round_up(panel_lanes_, kLanes)) {
    const int64_t limit = direct_ ? matmul_kernels().direct_tokens : matmul_kernels().max_tokens;
    block_tokens_ = divide_up(tokens, std::max(divide_up(tokens, limit), int64_t{1}));
    packed_bytes_ = tokens * weights.depth * sizeof(float);
    if (tokens > 1)
      pack_units_ = divide_up(tokens, block_tokens_) * divide_up(weights.depth, tile_depth_);
    panels_ = divide_up(weights.lanes, panel_lanes_);
  }

  void pack(const float* a, int64_t begin, int64_t end, void* packed) const override {
    const int64_t depth = weights_.depth, steps = divide_up(depth, tile_depth_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t0 = unit / steps * block_tokens_, i0 = unit % steps * tile_depth_;
      const int64_t tokens = std::min(block_tokens_, tokens_ - t0);
      const float* from = a + t0 * depth;
      float* to = static_cast<float*>(packed) + t0 * depth;
      for (int64_t i = i0; i < std::min(i0 + tile_depth_, depth); ++i)
        for (int64_t t = 0; t < tokens; ++t) to[i * tokens + t] = from[t * depth + i];
    }
  }

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto c = make_buffer<float>(tokens_ * width_);
    const auto tile = make_buffer<float>(direct_ ? 0 : tile_depth_ * width_);
    const auto missing = make_buffer<float>(block_tokens_ * width_);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t l0 = panel * panel_lanes_, l1 = std::min(l0 + panel_lanes_, weights_.lanes);
      const int64_t bad = multiply_panel(static_cast<const float*>(packed), l0, l1, tile.get(),
                                         missing.get(), c.get());
      if (bad != kNoRow) return bad;
      for (int64_t t = 0; t < tokens_; ++t)
        std::memcpy(out + t * weights_.lanes + l0, c.get() + t * width_, (l1 - l0) * sizeof(float));
    }
    return kNoRow;
  }

 private:
  int64_t multiply_panel(const float* a, int64_t l0, int64_t l1, float* tile, float* missing,
                         float* c) const {
    if (direct_) {
      weights_.multiply_directly(l0, l1, a, int(tokens_), c, width_);
    } else {
      std::fill_n(c, tokens_ * width_, 0.0f);
      for (int64_t i0 = 0; i0 < weights_.depth; i0 += tile_depth_) {
        const int64_t i1 = std::min(i0 + tile_depth_, weights_.depth);
        const int64_t bad = weights_.fill(i0, i1, l0, l1, tile, width_);
        if (bad != kNoRow) return bad;
        for (int64_t t = 0; t < tokens_; t += block_tokens_) {
          const int64_t tokens = std::min(block_tokens_, tokens_ - t);
          matmul_kernels().multiply(tile, width_, a + t * weights_.depth + i0 * tokens, i1 - i0,
                                    int(tokens), c + t * width_);
        }
      }
    }
    int64_t bad = kNoRow;
    for (int64_t t = 0; t < tokens_ && bad == kNoRow; t += block_tokens_)
      bad = add_missing(weights_, l0, l1, a + t * weights_.depth,
                        std::min(block_tokens_, tokens_ - t), width_, missing, c + t * width_);
    return bad;
  }

  const WeightTiles& weights_;
  const int64_t tokens_;
  const bool direct_;
  const int64_t tile_depth_, panel_lanes_;
  const int64_t width_;  // panel_lanes_ padded to whole vectors
  int64_t block_tokens_;
};

}  // namespace

// A weight's products with all tokens are one vector in `sum`; c has the other order.
int64_t add_missing(const WeightTiles& weights, int64_t l0, int64_t l1, const float* a,
                    int64_t tokens, int64_t width, float* sum, float* c) {
  if (!weights.has_missing()) return kNoRow;
  std::fill_n(sum, width * tokens, 0.0f);
  const int64_t bad = weights.add_missing(l0, l1, a, tokens, sum);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t l = 0; l < l1 - l0; ++l) c[t * width + l] += sum[l * tokens + t];
  return bad;
}

std::unique_ptr<Product> Product::make(const WeightTiles& weights, int64_t tokens, bool bfloat16) {
  std::unique_ptr<Product> product;
  if (bfloat16) product = make_bfloat16_product(weights, tokens);
  if (!product) product = weights.make_direct(tokens);
  if (!product) product = std::make_unique<FloatProduct>(weights, tokens);
  return product;
}

}  // namespace pvq
