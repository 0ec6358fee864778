#include "cpu/overlap_tiles.h"

#include <algorithm>

#include "cpu/matmul_blocks.h"
#include "cpu/matmul_kernels.h"
#include "cpu/overlap_decode.h"

namespace pvq {
namespace {

constexpr int64_t kDirectTokens = 6;

// out [tokens, rows] straight from the stored rows, block after block of each. A panel is a number
// of rows.
class OverlapProduct final : public Product {
 public:
  OverlapProduct(const OverlapView& code, int64_t tokens)
      : code_(code), decoder_(overlap_decoder()), tokens_(tokens) {
    panels_ = divide_up(code.rows, kPanelRows);
  }

  void pack(const float*, int64_t, int64_t, void*) const override {}

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto* x = static_cast<const float*>(packed);
    for (int64_t r = begin * kPanelRows; r < std::min(end * kPanelRows, code_.rows); ++r) {
      float sum[kDirectTokens][16] = {};
      int8_t y[kOverlapBlock];
      for (int64_t c = 0; c < code_.cols; c += kOverlapBlock) {
        const int64_t count = std::min<int64_t>(kOverlapBlock, code_.cols - c);
        decode_overlap(code_, r, c, c + count, y);
        decoder_.dot(y, int(count), x + c, code_.cols, int(tokens_), sum);
      }
      for (int64_t t = 0; t < tokens_; ++t) {
        for (int half = 8; half; half /= 2)
          for (int l = 0; l < half; ++l) sum[t][l] += sum[t][l + half];
        out[t * code_.rows + r] = code_.scale(r) * sum[t][0];
      }
    }
    return kNoRow;
  }

 private:
  static constexpr int64_t kPanelRows = 32;

  const OverlapView& code_;
  const OverlapDecoder& decoder_;
  const int64_t tokens_;
};

}  // namespace

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

std::unique_ptr<Product> OverlapTiles::make_direct(int64_t tokens) const {
  if (transposed_ || tokens > kDirectTokens) return nullptr;
  return std::make_unique<OverlapProduct>(code_, tokens);
}

}  // namespace pvq
