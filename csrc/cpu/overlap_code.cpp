#include "cpu/overlap_code.h"

#include <algorithm>
#include <cstring>

#include "cpu/isa.h"

namespace pvq {

const OverlapDecoder& overlap_decoder() {
#ifdef PVQ_X86
  switch (cpu_isa()) {
    case Isa::kAmx:
    case Isa::kAvx512:
      return overlap_decoder_avx512;
    case Isa::kAvx2:
      return overlap_decoder_avx2;
    default:
      break;
  }
#endif
  return overlap_decoder_portable;
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

void decode_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, int8_t* y) {
  const OverlapDecoder& decoder = overlap_decoder();
  const OverlapTrellis& t = code.trellis;
  for (int64_t block = c0 / kOverlapBlock * kOverlapBlock; block < c1; block += kOverlapBlock) {
    const int64_t begin = std::max(block, c0), end = std::min(block + kOverlapBlock, c1);
    const int64_t width = std::min<int64_t>(kOverlapBlock, code.cols - block);
    const int64_t bytes = overlap_row_bytes(t, width);
    const uint8_t* ring = code.row(row) + overlap_row_bytes(t, block);
    // The ring, cut open: its end stands before its beginning too.
    uint8_t stream[kStreamBefore + kOverlapBlock + kStreamAfter] = {};
    std::memcpy(stream + kStreamBefore, ring, size_t(bytes));
    if (bytes >= kStreamBefore)
      std::memcpy(stream, ring + bytes - kStreamBefore, kStreamBefore);
    else
      for (int i = 0; i < kStreamBefore; ++i)
        stream[i] = ring[(kStreamBefore * bytes - kStreamBefore + i) % bytes];
    int8_t whole[kOverlapBlock];
    decoder.decode(t, code.windows, code.table, code.spread, stream + kStreamBefore,
                   int(width) / t.dim, whole);
    std::memcpy(y + (begin - c0), whole + (begin - block), size_t(end - begin));
  }
}

void dequantize_overlap(const OverlapView& code, int64_t row, int64_t c0, int64_t c1, float* w) {
  const float scale = code.scale(row);
  int8_t y[kOverlapBlock];
  for (int64_t c = c0; c < c1;) {
    const int64_t end = std::min((c / kOverlapBlock + 1) * kOverlapBlock, c1);
    decode_overlap(code, row, c, end, y);
    for (int64_t i = 0; i < end - c; ++i) w[c - c0 + i] = scale * float(y[i]);
    c = end;
  }
}

}  // namespace pvq
