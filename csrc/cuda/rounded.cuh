// A float32 value as the type that a kernel writes, rounded to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pvq {

template <class T>
__device__ T rounded(float value);
template <>
__device__ inline float rounded(float value) {
  return value;
}
template <>
__device__ inline __half rounded(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 rounded(float value) {
  return __float2bfloat16_rn(value);
}

// Two values next to each other in a word, the first lowest.
template <class T>
__device__ __forceinline__ uint32_t rounded_pair(float first, float second) {
  const T pair[2] = {rounded<T>(first), rounded<T>(second)};
  return *reinterpret_cast<const uint32_t*>(pair);
}

}  // namespace pvq
