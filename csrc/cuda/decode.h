// From the stored form to points and weights on the GPU, with the results of cpu/code.h bit for
// bit. Functions launch on a stream (a cudaStream_t as void*) and return a cudaError_t; none waits,
// and none allocates but the tables of a pyramid new to the device.
#pragma once

#include <cstdint>

#include "cpu/code.h"
#include "cuda/real_type.h"
#include "cuda/refusal.h"

namespace pvq {

// Streams of indices, [rows, stride] for groups fields a row.
struct IndexStreams {
  const Pyramid* pyramid;
  const uint8_t* index;
  int64_t rows, groups;
};

// y [rows, groups, dim], 16-byte aligned; zero where an index names no point.
int decode_cuda(const IndexStreams& streams, int16_t* y, void* stream);

// w [rows, cols], 16-byte aligned, in float32 rounded once; NaN where an index names no point.
// code.levels is memory of the host, everything else of the device.
int dequantize_cuda(const CodeView& code, RealType type, void* w, void* stream);

// Reports the groups whose index names no point.
int check_codes_cuda(const IndexStreams& streams, const Refusal& refusal, void* stream);

}  // namespace pvq
