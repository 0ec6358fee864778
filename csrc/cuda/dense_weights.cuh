// Weights of a chunk as kernels write them that expand fragments whose lanes hold 16 of a row.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"
#include "cuda/rounded.cuh"

namespace pvq {

// Four integers, biased by kBias each, times `scale`.
template <class T, int kBias>
__device__ __forceinline__ uint2 leaf_weights(uint32_t leaf, float scale) {
  // 2^23 + v is exact, whose last bits are v, and so is y = 2^23 + v - (2^23 + kBias).
  constexpr uint32_t kMagic = 0x4B000000;
  float weight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    weight[i] =
        scale * (__uint_as_float(byte_permute(leaf, kMagic, 0x7650 | i)) - (8388608 + kBias));
  return make_uint2(rounded_pair<T>(weight[0], weight[1]), rounded_pair<T>(weight[2], weight[3]));
}

// Writes 16 weights of each lane, at column 16 (lane % 4) of a row that four lanes share. Lanes
// exchange halves with their neighbours, so that they write 32 bytes together.
__device__ __forceinline__ void write_weights(uint8_t* row, bool inside, const uint2 (&four)[4]) {
  const int t = threadIdx.x % 4;
  const bool odd = t & 1;
  const uint4 low = make_uint4(four[0].x, four[0].y, four[1].x, four[1].y);
  const uint4 high = make_uint4(four[2].x, four[2].y, four[3].x, four[3].y);
  const uint4 mine = odd ? low : high;
  const uint4 theirs = make_uint4(__shfl_xor_sync(~0u, mine.x, 1), __shfl_xor_sync(~0u, mine.y, 1),
                                  __shfl_xor_sync(~0u, mine.z, 1), __shfl_xor_sync(~0u, mine.w, 1));
  if (!inside) return;
  uint4* const to = reinterpret_cast<uint4*>(row) + 4 * (t / 2) + odd;
  to[0] = odd ? theirs : low;
  to[2] = odd ? high : theirs;
}

}  // namespace pvq
