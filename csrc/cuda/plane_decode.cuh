// How a lane turns the planes of a chunk (plane_matmul.h) into the A fragments of m16n8k16 float16
// products: step (b, q) multiplies the leaf q of the lane's groups. What the instruction calls
// k = 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 are the four columns of the leaf; the activations are read
// in the same order.
#pragma once

#include <cuda_fp16.h>

#include "cuda/plane_matmul.h"
#include "cuda/ptx.cuh"

namespace pvq {

template <int kBits, int kGroup>
struct PlaneChunk {
  static constexpr int kBytes = int(plane_chunk_bytes(kBits, kGroup));
  static constexpr int kSections = kBits == 4 ? 2 : kBits == 6 ? 3 : 4;  // of 16 bytes a lane
  static constexpr int kBias = 1 << (kBits - 1);

  uint4 section[kSections];
  uint32_t scales[kGroup == 16 ? 2 : 4];

  __device__ __forceinline__ void load(uint32_t from, int lane) {
#pragma unroll
    for (int s = 0; s < kSections; ++s) section[s] = load_shared_vector(from + s * 512 + lane * 16);
    if constexpr (kGroup == 16) {
      const uint2 v = load_shared_pair(from + kSections * 512 + lane * 8);
      scales[0] = v.x, scales[1] = v.y;
    } else {
      const uint4 v = load_shared_vector(from + kSections * 512 + lane * 16);
      scales[0] = v.x, scales[1] = v.y, scales[2] = v.z, scales[3] = v.w;
    }
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
#pragma unroll
    for (int s = 0; s < kSections; ++s)
      section[s] = __ldg(reinterpret_cast<const uint4*>(from + s * 512) + lane);
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(from + kSections * 512) + lane * (kGroup == 16 ? 2 : 4);
#pragma unroll
    for (int i = 0; i < (kGroup == 16 ? 2 : 4); ++i) scales[i] = __ldg(words + i);
  }

  static __device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  // The leaf q of group (b, u), a byte a weight, biased. All arguments are constants once unrolled.
  __device__ __forceinline__ uint32_t leaf(int b, int u, int q) const {
    if constexpr (kBits == 8) {
      return word_of(section[2 * b + u], q);
    } else {
      const uint32_t word = word_of(section[b], 2 * u + q / 2);
      const uint32_t low = (q & 1 ? word >> 4 : word) & 0x0F0F0F0Fu;
      if constexpr (kBits == 4) {
        return low;
      } else {
        const uint32_t high = word_of(section[2], 2 * b + u);
        return low | ((q == 0   ? high << 4
                       : q == 1 ? high << 2
                       : q == 2 ? high
                                : high >> 2) &
                      0x30303030u);
      }
    }
  }
  __device__ __forceinline__ __half2 scale(int b, int u, int q) const {
    const int i = kGroup == 16 ? 2 * b + u : 2 * (2 * b + u) + q / 2;
    const __half2 pair = as_half2(scales[i / 2]);
    return i % 2 ? __high2half2(pair) : __low2half2(pair);
  }

  // The four weights of the leaf as float16, without the row's scale: 1024 + v is exact in float16,
  // whose last bits are v, and so is y = 1024 + v - (1024 + bias).
  __device__ __forceinline__ void weights(int b, int u, int q, uint32_t (&pair)[2]) const {
    const uint32_t v = leaf(b, u, q);
    const __half2 origin = __float2half2_rn(float(1024 + kBias)), s = scale(b, u, q);
    constexpr uint32_t kOnes = 0x64646464;  // the upper byte of 1024 ... 1279
    pair[0] = as_word(__hmul2(__hsub2(as_half2(byte_permute(v, kOnes, 0x4140)), origin), s));
    pair[1] = as_word(__hmul2(__hsub2(as_half2(byte_permute(v, kOnes, 0x4342)), origin), s));
  }

  static __device__ __forceinline__ __half2 as_half2(uint32_t word) {
    return *reinterpret_cast<const __half2*>(&word);
  }
  static __device__ __forceinline__ uint32_t as_word(__half2 pair) {
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

}  // namespace pvq
