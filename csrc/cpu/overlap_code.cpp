#include "cpu/overlap_code.h"

#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/matmul_blocks.h"

namespace pvq {

const OverlapDecoder& overlap_decoder() {
#ifdef PVQ_X86
  return for_isa(overlap_decoder_portable, overlap_decoder_avx2, overlap_decoder_avx512);
#else
  return overlap_decoder_portable;
#endif
}

OverlapWindows overlap_windows(const OverlapTrellis& trellis) {
  OverlapWindows windows;
  for (int i = 0; i < 8; ++i) {
    const int bit = 16 + trellis.stored_bits() * i + trellis.step_bits - trellis.window_bits;
    for (int b = 0; b < 4; ++b) windows.byte[4 * i + b] = uint8_t(bit / 8 + b);
    windows.shift[i] = uint32_t(bit % 8);
  }
  return windows;
}

namespace {

// y [count] = the integers of the ring of `count` columns that begins at `block`.
void decode_ring(const OverlapView& code, int64_t row, int64_t block, int64_t count, int8_t* y) {
  const OverlapTrellis& t = code.trellis;
  const int64_t bytes = overlap_row_bytes(t, count);
  const uint8_t* ring = code.row(row) + overlap_row_bytes(t, block);
  // The ring, cut open: its end stands before its beginning too.
  alignas(32) uint8_t stream[kStreamBefore + kOverlapBlock + kStreamAfter];
  std::memcpy(stream + kStreamBefore, ring, size_t(bytes));
  std::memset(stream + kStreamBefore + bytes, 0, kStreamAfter);
  if (bytes >= kStreamBefore)
    std::memcpy(stream, ring + bytes - kStreamBefore, kStreamBefore);
  else
    for (int i = 0; i < kStreamBefore; ++i)
      stream[i] = ring[(kStreamBefore * bytes - kStreamBefore + i) % bytes];
  overlap_decoder().decode(t, code.windows, code.table, code.spread, stream + kStreamBefore,
                           int(count) / t.dim, y);
}

}  // namespace

void decode_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, int8_t* y) {
  // As many rings at a time as a unit has, if those are whole.
  const int64_t most = code.ring_rows ? code.planes->unit_columns() : kOverlapBlock;
  for (int64_t block = c0 / kOverlapBlock * kOverlapBlock, width = 0; block < c1; block += width) {
    const bool whole = code.ring_rows && block < code.ring_columns();
    width = whole ? std::min({most, code.ring_columns() - block,
                              divide_up(c1 - block, kOverlapBlock) * kOverlapBlock})
                  : std::min<int64_t>(kOverlapBlock, code.cols - block);
    const int64_t begin = std::max(block, c0), end = std::min(block + width, c1);
    int8_t all[2 * kOverlapBlock];
    // Straight into y, if that has room for all that is written.
    int8_t* const out = whole && begin == block && end == block + width ? y + (block - c0) : all;
    if (whole) {
      const uint8_t* rings = code.row(row) + overlap_row_bytes(code.trellis, block);
      code.ring_rows->decode(*code.planes, rings, int(width / kOverlapBlock),
                             code.row(code.rows) - rings, out);
    } else {
      decode_ring(code, row, block, width, out);
    }
    if (out == all) std::memcpy(y + (begin - c0), all + (begin - block), size_t(end - begin));
  }
}

void dequantize_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, float* w) {
  const float scale = code.scale(row);
  constexpr int64_t kPart = 2 * kOverlapBlock;
  int8_t y[kPart];
  for (int64_t c = c0; c < c1;) {
    const int64_t end = std::min((c / kPart + 1) * kPart, c1);
    decode_overlap(code, row, c, end, y);
    for (int64_t i = 0; i < end - c; ++i) w[c - c0 + i] = scale * float(y[i]);
    c = end;
  }
}

}  // namespace pvq
