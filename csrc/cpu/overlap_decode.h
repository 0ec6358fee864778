// The inner loops of reading overlapping-pyramid codes (core/overlap.h), one table of functions for
// each instruction set.
#pragma once

#include <stdint.h>

#include "core/overlap.h"

namespace pvq {

constexpr int kMostBlockGroups = kOverlapBlock / 2;  // of a block, where they are of two weights
// Bytes that a stream has before its first symbol, the end of its ring, and room after the last.
constexpr int kStreamBefore = 32, kStreamAfter = 32;

// Where the windows of eight groups lie in the bytes around their symbols, for byte shuffles within
// 16 bytes: window i ends with symbol i, so that its lowest bit is 16 + stored_bits * i + step_bits
// - window_bits counted from two bytes before the first symbol. All bits are then below 112.
struct OverlapWindows {
  alignas(32) uint8_t byte[32];   // the four bytes of each window, as an int32, low first
  alignas(32) uint32_t shift[8];  // down, to the window's lowest bit
};

OverlapWindows overlap_windows(const OverlapTrellis& trellis);

struct OverlapDecoder {
  // y [dim * groups] = the integers of the symbols at `stream`; dim is 2 or 4, dim * groups a
  // multiple of 16, kOverlapBlock at most, and y has room for that. `table` is [rows][2][dim].
  void (*decode)(const OverlapTrellis& trellis, const OverlapWindows& windows, const int8_t* table,
                 int spread, const uint8_t* stream, int groups, int8_t* y);
  // sum[t][l] += a part of sum over c of y[c] * x[t * stride + c], c < count: all 16 parts together
  // are all of it. count is a multiple of 16.
  void (*dot)(const int8_t* y, int count, const float* x, int64_t stride, int tokens,
              float (*sum)[16]);
  // tile[i * stride + lane] = scale[lane] * y[lane * y_stride + i] of 16 lanes, i < count, a
  // multiple of 16. Null where the compiler does as well.
  void (*tile)(const int8_t* y, int64_t y_stride, int64_t count, const float* scale, float* tile,
               int64_t stride);
};

// The table of the instruction set in use (isa.h).
const OverlapDecoder& overlap_decoder();

extern const OverlapDecoder overlap_decoder_portable;
#ifdef PVQ_X86
extern const OverlapDecoder overlap_decoder_avx2;
extern const OverlapDecoder overlap_decoder_avx512;
#endif

}  // namespace pvq
