// A tile's share of the streams of indices in shared memory, and reading fields from it.
#pragma once

#include <cuda_runtime.h>

#include "core/limbs.h"
#include "core/pyramid.h"
#include "cuda/tiles.cuh"

namespace pvq {

// 32-bit words of shared memory for a tile of so many bytes: any alignment, and two words that a
// read of the last field may touch.
__host__ __device__ inline int stream_words(int bytes) { return (bytes + 3) / 4 + 3; }

// Copies a tile's bytes and zeros behind them; returns the bit at which the first field begins.
// Reads aligned words, and bytes where a word would leave the tile. The block must synchronise
// before it reads.
__device__ inline int stage_stream(const uint8_t* index, const Tile& tile, uint32_t* words) {
  const uint8_t* begin = index + tile.byte;
  const uint8_t* end = begin + tile.bytes();
  const int skip = int(reinterpret_cast<uintptr_t>(begin) % 4);
  const uint8_t* aligned = begin - skip;
  for (int i = threadIdx.x; i < stream_words(tile.bytes()); i += blockDim.x) {
    const uint8_t* source = aligned + 4 * i;
    uint32_t word = 0;
    if (source >= begin && source + 4 <= end) {
      word = *reinterpret_cast<const uint32_t*>(source);
    } else {
      for (int b = 0; b < 4; ++b)
        if (source + b >= begin && source + b < end) word |= uint32_t(source[b]) << (8 * b);
    }
    words[i] = word;
  }
  return 8 * skip;
}

// 32 bits from `bit` on.
__device__ inline uint32_t read_word(const uint32_t* words, int bit) {
  const int i = bit / 32;
  return __funnelshift_r(words[i], words[i + 1], bit % 32);
}

// A field of at most 64 bits.
__device__ inline uint64_t read_narrow(const uint32_t* words, int bit, int width) {
  const uint64_t value = uint64_t(read_word(words, bit + 32)) << 32 | read_word(words, bit);
  return value & ~uint64_t(0) >> (64 - width);
}

// Limb i of a field.
__device__ inline uint32_t read_limb(const uint32_t* words, int bit, int width, int i) {
  const uint32_t value = read_word(words, bit + 32 * i);
  const int left = width - 32 * i;
  return left < 32 ? value & ((1u << left) - 1) : value;
}

// -1, 0, 1 for a field below, at and above the zero group's index.
__device__ inline int compare_with_zero_index(const uint32_t* words, int bit,
                                              const PyramidView& p) {
  const LevelView& root = p.level[0];
  const uint32_t* zero_index = root.counts + size_t(p.pulses) * root.limbs;
  for (int i = p.limbs - 1; i >= 0; --i) {
    const uint32_t limb = read_limb(words, bit, p.index_bits, i);
    if (limb != zero_index[i]) return limb < zero_index[i] ? -1 : 1;
  }
  return 0;
}

}  // namespace pvq
