#include "cpu/overlap_code.h"

#include <algorithm>
#include <cstring>

namespace pvq {
namespace {

constexpr int kGroups = kOverlapBlock / kOverlapDim;  // of a whole block
constexpr int kBefore = 16;                           // bytes that windows may reach back

// Entries of the table for windows [first, first + count) of a ring of `bytes` bytes, first >=
// -lag.
void read_entries(const OverlapView& code, const uint8_t* ring, int64_t bytes, int first, int count,
                  uint32_t* entry) {
  uint8_t stream[kBefore + kOverlapBlock + 8] = {};
  std::memcpy(stream + kBefore, ring, size_t(bytes));
  for (int i = 0; i < kBefore; ++i) stream[i] = ring[(kBefore * bytes - kBefore + i) % bytes];
  const OverlapTrellis& t = code.trellis;
  const uint32_t mask = uint32_t(t.rows() - 1);
  int bit = 8 * kBefore + t.step_bits * (first + 1) - t.window_bits;
  for (int i = 0; i < count; ++i, bit += t.step_bits) {
    uint32_t word;
    std::memcpy(&word, stream + bit / 8, sizeof word);
    std::memcpy(entry + i, code.table + (word >> bit % 8 & mask) * sizeof *entry, sizeof *entry);
  }
}

}  // namespace

void decode_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, int8_t* y) {
  const int lag = code.trellis.lag;
  for (int64_t block = c0 / kOverlapBlock * kOverlapBlock; block < c1; block += kOverlapBlock) {
    const int64_t begin = std::max(block, c0), end = std::min(block + kOverlapBlock, c1);
    const int64_t width = std::min<int64_t>(kOverlapBlock, code.cols - block);
    const int first = int(begin - block) / kOverlapDim, count = int(end - begin) / kOverlapDim;
    uint32_t entry[kGroups + kMaxOverlapLag];
    read_entries(code, code.row(row) + overlap_row_bytes(code.trellis.step_bits, block),
                 overlap_row_bytes(code.trellis.step_bits, width), first - lag, count + lag, entry);
    int8_t* out = y + (begin - c0);
    for (int i = 0; i < count; ++i) {
      int8_t own[4], other[4];
      std::memcpy(own, entry + i + lag, sizeof own);
      std::memcpy(other, entry + i, sizeof other);
      out[2 * i] = int8_t(own[0] + other[2]);
      out[2 * i + 1] = int8_t(own[1] + other[3]);
    }
  }
}

void dequantize_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, float* w) {
  const float scale = code.scale(row);
  int8_t y[kOverlapBlock];
  for (int64_t c = c0; c < c1; c += kOverlapBlock) {
    const int64_t count = std::min<int64_t>(kOverlapBlock, c1 - c);
    decode_overlap(code, row, c, c + count, y);
    for (int64_t i = 0; i < count; ++i) w[c - c0 + i] = scale * float(y[i]);
  }
}

}  // namespace pvq
