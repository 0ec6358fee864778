// From vectors to the stored form on the GPU: the functions of cpu/encode.h over device pointers
// and a stream (a cudaStream_t as void*), with the same results bit for bit. They launch and return
// a cudaError_t; none waits, and none allocates but the tables of a pyramid new to the device.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/real_type.h"
#include "cuda/refusal.h"

namespace pvq {

class Pyramid;

// y [count, dim] nearest to x [count, dim]; zero, and the vector reported, where x holds NaN or
// infinity.
struct NearestCuda {
  const void* x;  // 16-byte aligned
  RealType type;
  int64_t count;
  int dim, pulses, quality;
  int16_t* y;        // 16-byte aligned
  float* amplitude;  // [count], or null: of the vector along y, NaN where it is reported
  Refusal refusal;   // in vectors, of which those of this task begin at `first`
  int64_t first;
};
int nearest_cuda(const NearestCuda& task, void* stream);

// index [rows, stride] of y [rows, groups, dim]; the zero group's, and the group reported, where y
// is neither a point nor zero.
struct EncodeCuda {
  const Pyramid* pyramid;
  const int16_t* y;  // 16-byte aligned
  int64_t rows, groups;
  uint8_t* index;
  Refusal refusal;  // in groups
};
int encode_cuda(const EncodeCuda& task, void* stream);

// The stored form of w [rows, cols]. A row that holds NaN or infinity is reported; its groups are
// zero groups and its scale is NaN.
struct QuantizeCuda {
  const Pyramid* pyramid;
  const float* w;  // 16-byte aligned
  int64_t rows, cols;
  int gain_bits, quality;
  const std::vector<float>* levels;
  uint8_t* index;
  uint8_t* gain;
  uint16_t* row_scale;
  Refusal refusal;  // in groups
};
// Bytes of device memory that quantize_cuda needs beside its results.
int64_t quantize_cuda_workspace(const QuantizeCuda& task);
int quantize_cuda(const QuantizeCuda& task, void* workspace, void* stream);

}  // namespace pvq
