// The stored form of a weight matrix as the CPU kernels see it, and its decoding group by group.
//
// Row r, group g decodes to  row_scale[r] * level[gain code] * y / ||y||  with y a point of
// P(dim, pulses), or to zero where the index names the zero group.
#pragma once

#include <cstdint>

namespace pvq {

class Pyramid;

struct CodeView {
  const uint8_t* index;       // [rows, index_stride] bit streams of index_bits fields
  int64_t index_stride;       // bytes
  const uint8_t* gain;        // [rows, gain_stride] bit streams of gain_bits fields
  int64_t gain_stride;        // bytes
  const uint16_t* row_scale;  // [rows] bfloat16 bits
  const float* levels;        // [2^gain_bits]
  const Pyramid* pyramid;
  int64_t rows, cols;  // cols is a multiple of dim
  int dim, pulses, gain_bits;
};

// Points [begin, end) of a stream of indices, into y [(end - begin) * dim].
// False if an index names no point; what was written is then meaningless.
bool decode_points(const Pyramid& pyramid, const uint8_t* stream, int64_t begin, int64_t end,
                   int16_t* y);

// True if all of them name points or the zero group, without decoding.
bool check_indices(const Pyramid& pyramid, const uint8_t* stream, int64_t begin, int64_t end);

// Decodes groups [begin, end) of a row into y [(end - begin) * dim] and
// scale [end - begin] = row_scale * level / ||y||, zero for a zero group (whose y is zero too).
// False as above.
bool decode_groups(const CodeView& code, int64_t row, int64_t begin, int64_t end, int16_t* y,
                   float* scale);

// w [(end - begin) * dim] = scale * y for what decode_groups gave.
void dequantize_groups(const CodeView& code, int64_t begin, int64_t end, const int16_t* y,
                       const float* scale, float* w);

}  // namespace pvq
