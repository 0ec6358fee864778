// A float32 value as the type that a kernel writes, rounded to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

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

}  // namespace pvq
