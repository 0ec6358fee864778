// Activations as points of a pyramid (cpu/points.h) on the GPU. Pointers are device memory; the
// functions launch on a stream (a cudaStream_t as void*), neither wait nor allocate, and return a
// cudaError_t.
#pragma once

#include <cstdint>

#include "cuda/real_type.h"

namespace pvq {

// The integers and amplitudes (bfloat16) of groups x [count, dim]: the CPU's, bit for bit. A group
// that holds NaN or infinity becomes zeros, because refusing it would wait for the device.
struct PointsTask {
  const void* x;
  RealType type;
  int64_t count;
  int dim, pulses;  // up to kMaxDim and kMaxPulses
  int16_t* y;
  uint16_t* amplitude;  // [count]
};
int activation_points_cuda(const PointsTask& task, void* stream);

// Activations [tokens, cols] as points: the operand of a product.
struct PointsOperand {
  const int16_t* y;           // [tokens, cols], 16-byte aligned
  const uint16_t* amplitude;  // [tokens, cols / dim]
  int dim;
  int largest;  // no magnitude of y is more
};

// out [count, dim] = amplitude * y, rounded once.
int decode_points_cuda(const PointsOperand& points, int64_t count, RealType type, void* out,
                       void* stream);

}  // namespace pvq
