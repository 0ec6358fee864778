// Activations for the table products: rotated by blocks of up to 1024 columns, then quantized to
// int8 with one scale a token and 128 columns.
//
// A thread holds 8 consecutive columns; columns of a block are bits of the position: 3 within the
// thread, 5 across the lanes of a warp, up to 2 across four warps through shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/signs.h"
#include "cuda/table_product_task.h"

namespace pvq {

// The quantized form of up to kTokens tokens: value = int8 * scale.
// values [tokens, cols]; scale and sum [cols / 128, kTokens], sum = scale * sum of the 128 int8.
template <int kTokens>
struct QuantizedActivations {
  int8_t* values;
  float* scale;
  float* sum;
};

__device__ inline void load_octet(const Activations& a, int64_t offset, float (&v)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(a.x) + offset);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 pair;
    if (a.type == FloatType::kFloat16) {
      pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    } else {
      pair = make_float2(__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xFFFF0000u));
    }
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

__device__ inline void flip_signs(uint64_t seed, int64_t column, float (&v)[8]) {
  const uint32_t bits = uint32_t(sign_word(seed, column / 64) >> (column % 64));
#pragma unroll
  for (int i = 0; i < 8; ++i)
    v[i] = __uint_as_float(__float_as_uint(v[i]) ^ (bits >> i & 1) << 31);
}

// The Hadamard transform of a warp's 256 columns in blocks of min(block, 256), without its factor.
__device__ inline void transform_warp(int block, float (&v)[8]) {
#pragma unroll
  for (int distance = 1; distance < 8; distance *= 2)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (!(i & distance)) {
        const float low = v[i], high = v[i | distance];
        v[i] = low + high;
        v[i | distance] = low - high;
      }
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    if (distance * 8 >= block) break;
    const float sign = lane & distance ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float other = __shfl_xor_sync(~0u, v[i], distance);
      v[i] = __fmaf_rn(sign, v[i], other);
    }
  }
}

// The same across the block / 256 warps of a block, through exchange [threads * 8].
__device__ inline void transform_across_warps(int block, float* exchange, float (&v)[8]) {
  const int threads = blockDim.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float4* mine = reinterpret_cast<float4*>(exchange) + threadIdx.x;
  __syncthreads();  // the last round has been read
  mine[0] = make_float4(v[0], v[1], v[2], v[3]);
  mine[threads] = make_float4(v[4], v[5], v[6], v[7]);
  __syncthreads();
  const int warps = block / 256, first = warp / warps * warps, position = warp % warps;
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = 0;
  for (int k = 0; k < warps; ++k) {
    const float sign = __popc(position & k) & 1 ? -1.0f : 1.0f;
    const float4* other = reinterpret_cast<const float4*>(exchange) + (first + k) * 32 + lane;
    const float4 low = other[0], high = other[threads];
    const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __fmaf_rn(sign, values[i], v[i]);
  }
}

// Rotates and quantizes columns column ... column + 7 of a token (columns of consecutive threads
// follow each other); every thread of the block must call it, those beyond the last column too.
template <int kTokens>
__device__ inline void quantize_octet(const Activations& a, int token, int64_t column,
                                      float* exchange, const QuantizedActivations<kTokens>& out) {
  const bool inside = column < a.cols;
  float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  if (inside) load_octet(a, token * a.cols + column, v);
  float factor = 1;
  if (a.block > 0) {
    flip_signs(a.seed, column, v);
    transform_warp(a.block, v);
    if (a.block > 256) transform_across_warps(a.block, exchange, v);
    factor = rsqrtf(static_cast<float>(a.block));
  }

  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2)  // 16 lanes hold 128 columns
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  int total = 0;
  uint32_t packed[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = __float2int_rn(v[i] * inverse);
    total += q;
    packed[i / 4] |= (uint32_t(q) & 255u) << (8 * (i % 4));
  }
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2)
    total += __shfl_xor_sync(~0u, total, distance);
  if (!inside) return;
  *reinterpret_cast<uint2*>(out.values + token * a.cols + column) =
      make_uint2(packed[0], packed[1]);
  if (threadIdx.x % 16 == 0) {
    const float scale = largest * factor / 127.0f;
    const int64_t place = column / kChunkCols * kTokens + token;
    out.scale[place] = scale;
    out.sum[place] = scale * static_cast<float>(total);
  }
}

}  // namespace pvq
