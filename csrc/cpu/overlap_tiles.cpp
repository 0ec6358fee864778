#include "cpu/overlap_tiles.h"

#include <algorithm>

#include "cpu/matmul_blocks.h"
#include "cpu/matmul_kernels.h"
#include "cpu/overlap_decode.h"

namespace pvq {
namespace {

// The sums of 16 parts each.
void add_parts(int64_t tokens, float (*sum)[16], float scale, float* out, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int half = 8; half; half /= 2)
      for (int l = 0; l < half; ++l) sum[t][l] += sum[t][l + half];
    out[t * stride] += scale * sum[t][0];
  }
}

// out [tokens, rows] straight from the stored rows, block after block of each.
class OverlapProduct final : public Product {
 public:
  OverlapProduct(const OverlapView& code, int64_t tokens)
      : code_(code), decoder_(overlap_decoder()), tokens_(tokens) {
    panels_ = divide_up(code.rows, kStoredRows);
  }

  void pack(const float*, int64_t, int64_t, void*) const override {}

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto* x = static_cast<const float*>(packed);
    for_row_panels(code_, begin, end, tokens_, out,
                   [&](int64_t r0, int64_t count, const float* scale) {
                     for (int64_t r = 0; r < count; ++r) {
                       float sum[kMostDirectTokens][16] = {};
                       int8_t y[kOverlapBlock];
                       for (int64_t c = 0; c < code_.cols; c += kOverlapBlock) {
                         const int64_t width = std::min<int64_t>(kOverlapBlock, code_.cols - c);
                         decode_overlap(code_, r0 + r, c, c + width, y);
                         decoder_.dot(y, int(width), x + c, code_.cols, int(tokens_), sum);
                       }
                       add_parts(tokens_, sum, scale[r], out + r0 + r, code_.rows);
                     }
                   });
    return kNoRow;
  }

 private:
  const OverlapView& code_;
  const OverlapDecoder& decoder_;
  const int64_t tokens_;
};

// The same in units of whole rings, whose activations are packed. Behind them, as they are, those
// of the last ring if it is shorter.
class OverlapRowsProduct final : public Product {
 public:
  OverlapRowsProduct(const OverlapView& code, int64_t tokens)
      : code_(code),
        decoder_(overlap_decoder()),
        tokens_(tokens),
        unit_columns_(code.planes->unit_columns()),
        units_(divide_up(code.ring_columns(), unit_columns_)),
        rest_(code.cols - code.ring_columns()),
        block_units_(std::max<int64_t>(1, kBlockFloats / (tokens * unit_columns_))) {
    panels_ = divide_up(code.rows, kStoredRows);
    packed_bytes_ = size_t((units_ * unit_columns_ + rest_) * tokens) * sizeof(float);
    pack_units_ = divide_up(units_, kPackUnits) + (rest_ > 0);
  }

  void pack(const float* a, int64_t begin, int64_t end, void* packed) const override {
    auto* out = static_cast<float*>(packed);
    const int64_t first = begin * kPackUnits, last = std::min(end * kPackUnits, units_);
    if (first < last)
      code_.ring_rows->pack(*code_.planes, a, code_.cols, code_.ring_columns(), int(tokens_), first,
                            last, out);
    if (rest_ > 0 && end == pack_units_)
      for (int64_t t = 0; t < tokens_; ++t)
        std::copy_n(a + t * code_.cols + code_.ring_columns(), rest_, rest_of(out) + t * rest_);
  }

  int64_t multiply(const void* packed, int64_t begin, int64_t end, float* out) const override {
    const auto* x = static_cast<const float*>(packed);
    for_row_panels(code_, begin, end, tokens_, out,
                   [&](int64_t r0, int64_t count, const float* scale) {
                     for (int64_t unit = 0; unit < units_; unit += block_units_)
                       code_.ring_rows->direct(*code_.planes, code_.row(r0), code_.row_bytes(),
                                               count, code_.ring_columns(), unit,
                                               std::min(unit + block_units_, units_), scale, x,
                                               int(tokens_), out + r0, code_.rows);
                     for (int64_t r = 0; r < count && rest_ > 0; ++r) {
                       float sum[kMostDirectTokens][16] = {};
                       int8_t y[kOverlapBlock];
                       decode_overlap(code_, r0 + r, code_.ring_columns(), code_.cols, y);
                       decoder_.dot(y, int(rest_), rest_of(x), rest_, int(tokens_), sum);
                       add_parts(tokens_, sum, scale[r], out + r0 + r, code_.rows);
                     }
                   });
    return kNoRow;
  }

 private:
  static constexpr int64_t kPackUnits = 4;

  template <class T>
  T* rest_of(T* packed) const {
    return packed + units_ * unit_columns_ * tokens_;
  }

  const OverlapView& code_;
  const OverlapDecoder& decoder_;
  const int64_t tokens_, unit_columns_, units_, rest_, block_units_;
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
  const OverlapDecoder& decoder = overlap_decoder();
  int8_t y[kLanes][kMaxTile];
  for (int64_t l = l0; l < l1; l += kLanes, tile += kLanes) {
    float scale[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {  // a lane without a row is zero
      scale[lane] = l + lane < l1 ? code_.scale(l + lane) : 0.0f;
      decode_overlap(code_, std::min(l + lane, l1 - 1), i0, i1, y[lane]);
    }
    if (decoder.tile) {
      decoder.tile(y[0], kMaxTile, i1 - i0, scale, tile, stride);
      continue;
    }
    for (int64_t i = 0; i < i1 - i0; ++i)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        tile[i * stride + lane] = scale[lane] * float(y[lane][i]);
  }
  return kNoRow;
}

std::unique_ptr<Product> OverlapTiles::make_direct(int64_t tokens) const {
  if (transposed_ || tokens > kMostDirectTokens) return nullptr;
  if (code_.ring_rows) return std::make_unique<OverlapRowsProduct>(code_, tokens);
  return std::make_unique<OverlapProduct>(code_, tokens);
}

}  // namespace pvq
