// What both Hadamard kernels are made of: 16-byte vectors of the element types, signs, butterflies.
// Elements are counted in 32 bits: a launch takes fewer than 2^31 (hadamard.cu).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/signs.h"

namespace pvq::hadamard {

using Half = __half;
using BFloat16 = __nv_bfloat16;

constexpr int kWarp = 32;
template <class T>
constexpr int kLog2Vector = sizeof(T) == 4 ? 2 : 3;  // elements in 16 bytes

// --- elements ------------------------------------------------------------------------------------

__device__ inline uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return __half2float(x); }
__device__ inline float to_float(BFloat16 x) { return __bfloat162float(x); }

__device__ inline void unpack(float, uint32_t word, float* v) { *v = __uint_as_float(word); }
__device__ inline void unpack(Half, uint32_t word, float* v) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  v[0] = pair.x;
  v[1] = pair.y;
}
__device__ inline void unpack(BFloat16, uint32_t word, float* v) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xFFFF0000u);
}

template <class T>
__device__ inline void unpack_vector(uint4 raw, float* v) {
  constexpr int kPerWord = 4 / sizeof(T);
  unpack(T{}, raw.x, v);
  unpack(T{}, raw.y, v + kPerWord);
  unpack(T{}, raw.z, v + 2 * kPerWord);
  unpack(T{}, raw.w, v + 3 * kPerWord);
}

__device__ inline uint32_t pack(Half, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline uint32_t pack(BFloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline void store_one(Half* p, float x) { *p = __float2half_rn(x); }
__device__ inline void store_one(BFloat16* p, float x) { *p = __float2bfloat16_rn(x); }

// kCount consecutive elements, as few stores as the types allow; p is aligned to them.
template <int kCount>
__device__ inline void store(float* p, const float* v) {
  if constexpr (kCount == 1) *p = v[0];
  if constexpr (kCount == 2) *reinterpret_cast<float2*>(p) = make_float2(v[0], v[1]);
  if constexpr (kCount >= 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
  }
}
template <int kCount, class T>
__device__ inline void store(T* p, const float* v) {
  if constexpr (kCount == 1) store_one(p, v[0]);
  if constexpr (kCount == 2) *reinterpret_cast<uint32_t*>(p) = pack(T{}, v[0], v[1]);
  if constexpr (kCount == 4)
    *reinterpret_cast<uint2*>(p) = make_uint2(pack(T{}, v[0], v[1]), pack(T{}, v[2], v[3]));
  if constexpr (kCount == 8)
    *reinterpret_cast<uint4*>(p) = make_uint4(pack(T{}, v[0], v[1]), pack(T{}, v[2], v[3]),
                                              pack(T{}, v[4], v[5]), pack(T{}, v[6], v[7]));
}

// --- signs ---------------------------------------------------------------------------------------

__device__ inline float flip(float x, uint32_t bit) {
  return __uint_as_float(__float_as_uint(x) ^ (bit << 31));
}

// Flips element i of a vector where bit i is set. For two elements a word, bit i is brought under
// the sign of the lower one and, 15 bits on, bit i + 1 under that of the upper one.
template <class T>
__device__ inline uint4 flip_vector(uint4 raw, uint32_t bits) {
  if constexpr (sizeof(T) == 4) {
    return make_uint4(raw.x ^ (bits << 31), raw.y ^ (bits << 30 & 0x80000000u),
                      raw.z ^ (bits << 29 & 0x80000000u), raw.w ^ (bits << 28 & 0x80000000u));
  } else {
    const uint32_t twice = (bits & 0xFFu) | (bits & 0xFFu) << 15;
    constexpr uint32_t kSigns = 0x80008000u;
    return make_uint4(raw.x ^ (twice << 15 & kSigns), raw.y ^ (twice << 13 & kSigns),
                      raw.z ^ (twice << 11 & kSigns), raw.w ^ (twice << 9 & kSigns));
  }
}

// The signs of columns col, col + 1, ... in the low bits, up to the next multiple of 64.
__device__ inline uint32_t sign_bits(uint64_t seed, uint32_t col) {
  return static_cast<uint32_t>(sign_word(seed, col >> 6) >> (col & 63));
}

// --- butterflies ---------------------------------------------------------------------------------

// Distances 2^kFrom ... 2^(kTo - 1) across v[0 .. 2^kLog2Count).
template <int kLog2Count, int kFrom, int kTo>
__device__ inline void butterflies(float* v) {
#pragma unroll
  for (int bit = kFrom; bit < kTo; ++bit) {
#pragma unroll
    for (int i = 0; i < 1 << kLog2Count; ++i) {
      if (i >> bit & 1) continue;
      const float a = v[i], b = v[i | 1 << bit];
      v[i] = a + b;
      v[i | 1 << bit] = a - b;
    }
  }
}

// The same distance between this lane and lane ^ mask, for each of kCount values.
template <int kCount>
__device__ inline void butterflies_between_lanes(float* v, int mask) {
  const float sign = (threadIdx.x & mask) ? -1.f : 1.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = fmaf(sign, v[i], __shfl_xor_sync(~0u, v[i], mask));
}

}  // namespace pvq::hadamard
