// Functions marked PVQ_HD are compiled for the CPU and, by nvcc, for the GPU as well: what both
// must agree on bit for bit is written once.
#pragma once

#include <stddef.h>
#include <cstdint>

#ifdef __CUDACC__
#define PVQ_HD __host__ __device__
#else
#define PVQ_HD
#endif

// Before a loop over an array that the GPU must keep in registers: those have no addresses.
#ifdef __CUDA_ARCH__
#define PVQ_UNROLL _Pragma("unroll")
#else
#define PVQ_UNROLL
#endif

namespace pvq {

constexpr int kMaxDim = 256;
constexpr int kMaxPulses = 4096;

// High half of a 64 x 64 bit product.
PVQ_HD inline uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

}  // namespace pvq
