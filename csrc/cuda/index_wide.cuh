// The products from exact indices; csrc/cuda/index_wide_{8,16}.cu instantiate them.
//
// Limits at one token, D = 16 and 3.25 bits, a chunk (2048 weights): 832 bytes, 26 clocks of an
// SM's share of an H200's memory; 450 instructions of a warp, 112 clocks of issue (the copying
// warps' aside); some 124 wavefronts of shared memory, of which leaves take 54, regions 22, what
// stands by pulses 20, classes 12, codes 7, and activations and levels 9.
#pragma once

#include "cuda/float16_wide.cuh"
#include "cuda/index_decode.cuh"
#include "cuda/index_product_task.h"

namespace pvq {

// kBits: of a group, known to the compiler, which spares a tenth of the instructions; 0 for any.
template <int kDim, int kBits>
struct IndexOperand : Float16Operand {
  static constexpr int kChunkBytes = int(index_chunk_bytes(kDim, kBits));
  static constexpr int kMostColumns = 64;        // tables leave no room for more activations
  static constexpr Turns kTurns = Turns::kNone;  // decoding takes far longer than a product
  static PVQ_HD constexpr WideTile tile(int columns) {
    return float16_tile(columns, kChunkBytes, kIndexTableBytes);
  }

  template <int kThreads>
  static __device__ __forceinline__ void prepare(const ProductTask& task, uint8_t* table) {
    copy_index_tables(task.index, table, kThreads);
  }

  struct Tile : Fragments {
    __device__ __forceinline__ void load(const ProductTask& task, uint32_t from, int lane) {
      constexpr int kSets = 16 / kDim, kLeaves = kDim / 4;
      const IndexForm& form = task.index;
#pragma unroll
      for (int s = 0; s < kSets; ++s) {
        IndexSet<kBits> set;
        set.load(form, SharedBytes{from} + s * set.bytes(form), lane);
        IndexGroup<kDim> group[4];
        decode_set(form, set, group);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float level = group[i].scale(form);
          const __half2 scale = __floats2half2_rn(level, level);
          const int b = kDim == 16 ? i / 2 : s, u = kDim == 16 ? i % 2 : i / 2;
#pragma unroll
          for (int l = 0; l < kLeaves; ++l) {
            const int q = kDim == 16 ? l : i % 2 * kLeaves + l;
            float16_weights(group[i].leaf[l], signed_pair(scale, group[i].signs, l), a[b][q][u],
                            a[b][q][2 + u]);
          }
        }
      }
    }
    // Both negative where bit `l` of the signs is set. There are at most four signs.
    static __device__ __forceinline__ __half2 signed_pair(__half2 scale, uint32_t signs, int l) {
      const uint32_t both = signs * (1u << (31 - l) | 1u << (15 - l)) & 0x80008000u;
      return as_half2(as_word(scale) ^ both);
    }
    // 1024 + v is exact in float16, whose last bits are v, and so is y = 1024 + v - (1024 + 128).
    static __device__ __forceinline__ void float16_weights(uint32_t leaf, __half2 scale,
                                                           uint32_t& first, uint32_t& second) {
      const __half2 origin = __float2half2_rn(1024 + 128);
      constexpr uint32_t kOnes = 0x64646464;  // the upper byte of 1024 ... 1279
      first = as_word(__hmul2(__hsub2(as_half2(byte_permute(leaf, kOnes, 0x4140)), origin), scale));
      second =
          as_word(__hmul2(__hsub2(as_half2(byte_permute(leaf, kOnes, 0x4342)), origin), scale));
    }
    static __device__ __forceinline__ __half2 as_half2(uint32_t word) {
      return *reinterpret_cast<const __half2*>(&word);
    }
    static __device__ __forceinline__ uint32_t as_word(__half2 pair) {
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
  };
};

}  // namespace pvq
