// The bfloat16 product: tiles and activations are rounded to bfloat16 and multiplied by AMX.
#include <cstring>
#include <numeric>

#include "cpu/isa.h"
#include "cpu/matmul_blocks.h"
#include "cpu/matmul_kernels.h"

namespace pvq {

#ifdef PVQ_X86
namespace {

constexpr int64_t kBlockTokens = 16;  // rows of a tile register

// What is multiplied at once, so that tile, activations and sums stay in the first-level cache; for
// many tokens they cannot, and larger pieces of all three are reused from the second. Found by
// trying sizes on a 4th generation Xeon (48 KB and 2 MB).
struct Blocking {
  int64_t lanes, depth;
};

Blocking blocking(int64_t tokens) {
  if (tokens <= kBlockTokens) return {64, 128};
  if (tokens <= 96) return {32, 128};
  return {128, 256};
}

constexpr int64_t kMinTokens = 7;  // below, float32 without tiles is faster

// To nearest, ties to even; a NaN stays one.
uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Activations are packed twice. Rounded, as [blocks][depth / 32][16 tokens][32], zero where there
// is no token or no reduction index: each 16 x 32 is one tile register. And as they are, for the
// weights that are missing from the tiles, as [depth][tokens], so that a weight finds all of its
// factors together.
class BFloat16Product final : public Product {
 public:
  BFloat16Product(const WeightTiles& weights, int64_t tokens, int64_t depth_step)
      : weights_(weights),
        tokens_(tokens),
        padded_tokens_(round_up(tokens, tokens <= kBlockTokens ? kBlockTokens : 2 * kBlockTokens)),
        padded_depth_(round_up(weights.depth, kAmxDepth)),
        tile_depth_(round_down(blocking(tokens).depth, depth_step)),
        panel_lanes_(round_down(blocking(tokens).lanes, weights.lane_step)),
        width_(round_up(panel_lanes_, tokens <= kBlockTokens ? 64 : 32)),
        fill_lanes_(kLanes % weights.lane_step == 0 ? kLanes : panel_lanes_) {
    packed_bytes_ = rounded_bytes() + tokens * weights.depth * sizeof(float);
    pack_units_ = padded_tokens_ / kBlockTokens * (padded_depth_ / kAmxDepth);
    panels_ = divide_up(weights.lanes, panel_lanes_);
  }

  void pack(const float* a, int64_t begin, int64_t end, void* packed) const override {
    const int64_t steps = padded_depth_ / kAmxDepth;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t0 = unit / steps * kBlockTokens, i0 = unit % steps * kAmxDepth;
      const int64_t tokens = std::min(kBlockTokens, tokens_ - t0);
      const int64_t depth = std::min(int64_t{kAmxDepth}, weights_.depth - i0);
      auto* rounded = static_cast<uint16_t*>(packed) + unit * kBlockTokens * kAmxDepth;
      auto* exact = reinterpret_cast<float*>(static_cast<char*>(packed) + rounded_bytes()) +
                    i0 * tokens_ + t0;
      std::fill_n(rounded, kBlockTokens * kAmxDepth, uint16_t{0});
      for (int64_t t = 0; t < tokens; ++t) {
        const float* from = a + (t0 + t) * weights_.depth + i0;
        for (int64_t i = 0; i < depth; ++i) {
          rounded[t * kAmxDepth + i] = round_to_bfloat16(from[i]);
          exact[i * tokens_ + t] = from[i];
        }
      }
    }
  }

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto c = make_buffer<float>(padded_tokens_ * width_);
    const auto tile = make_buffer<float>(tile_depth_ * round_up(fill_lanes_, kLanes));
    const auto missing = make_buffer<float>(tokens_ * width_);
    const auto rounded = make_buffer<uint16_t>(tile_depth_ * width_);
    // Lanes that only pad the panel are multiplied too; nobody reads their sums.
    std::fill_n(rounded.get(), tile_depth_ * width_, uint16_t{0});
    open_amx();
    int64_t bad = kNoRow;
    for (int64_t panel = begin; panel < end && bad == kNoRow; ++panel) {
      const int64_t l0 = panel * panel_lanes_, l1 = std::min(l0 + panel_lanes_, weights_.lanes);
      bad = multiply_panel(static_cast<const uint16_t*>(packed), l0, l1, tile.get(), rounded.get(),
                           c.get());
      const auto* exact =
          reinterpret_cast<const float*>(static_cast<const char*>(packed) + rounded_bytes());
      if (bad == kNoRow)
        bad = add_missing(weights_, l0, l1, exact, tokens_, width_, missing.get(), c.get());
      for (int64_t t = 0; t < tokens_; ++t)
        std::memcpy(out + t * weights_.lanes + l0, c.get() + t * width_, (l1 - l0) * sizeof(float));
    }
    close_amx();
    return bad;
  }

 private:
  int64_t rounded_bytes() const { return padded_tokens_ * padded_depth_ * sizeof(uint16_t); }

  int64_t multiply_panel(const uint16_t* a, int64_t l0, int64_t l1, float* tile, uint16_t* rounded,
                         float* c) const {
    std::fill_n(c, padded_tokens_ * width_, 0.0f);
    for (int64_t i0 = 0; i0 < weights_.depth; i0 += tile_depth_) {
      const int64_t i1 = std::min(i0 + tile_depth_, weights_.depth);
      const int64_t depth = round_up(i1 - i0, kAmxDepth);
      for (int64_t from = l0; from < l1; from += fill_lanes_) {
        const int64_t to = std::min(from + fill_lanes_, l1), stride = round_up(to - from, kLanes);
        const int64_t bad = weights_.fill(i0, i1, from, to, tile, stride);
        if (bad != kNoRow) return bad;
        for (int64_t l = 0; l < stride; l += kLanes)
          round_tile_amx(tile + l, stride, i1 - i0, rounded + (from - l0 + l) * depth);
      }
      multiply_amx(rounded, width_, a + i0 * kBlockTokens, padded_depth_ * kBlockTokens, depth,
                   padded_tokens_, c);
    }
    return kNoRow;
  }

  const WeightTiles& weights_;
  const int64_t tokens_, padded_tokens_;
  const int64_t padded_depth_;
  const int64_t tile_depth_, panel_lanes_;
  const int64_t width_;       // panel_lanes_ padded to what multiply_amx wants
  const int64_t fill_lanes_;  // lanes filled at once: one vector where groups allow
};

}  // namespace

std::unique_ptr<Product> make_bfloat16_product(const WeightTiles& weights, int64_t tokens) {
  // Tiles must fill whole registers: the padding of a shorter one would meet the activations of the
  // next tile.
  const int64_t depth_step = std::lcm(weights.depth_step, int64_t{kAmxDepth});
  if (cpu_isa() != Isa::kAmx || tokens < kMinTokens || depth_step > kMaxTile) return nullptr;
  return std::make_unique<BFloat16Product>(weights, tokens, depth_step);
}
#else
std::unique_ptr<Product> make_bfloat16_product(const WeightTiles&, int64_t) { return nullptr; }
#endif

}  // namespace pvq
