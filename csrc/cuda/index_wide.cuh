// The products from exact indices; csrc/cuda/index_wide_{8,16}.cu instantiate them.
//
#pragma once

#include "cuda/float16_wide.cuh"
#include "cuda/index_decode.cuh"
#include "cuda/index_product_task.h"

namespace pvq {

template <class Widths>
struct IndexOperand : Float16Operand {
  static constexpr int kDim = Widths::kDim;
  static constexpr int kChunkBytes = int(index_chunk_bytes(kDim, Widths::kBits));
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
        IndexSet<Widths> set;
        set.load(form, SharedBytes{from} + s * set.size(form), lane);
        const IndexNumbers numbers = set.numbers(form);
        IndexGroup<Widths> group[4];
        decode_groups(form, numbers, group);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float level = group[i].scale(form);
          const __half2 scale = __floats2half2_rn(level, level);
          const int b = kDim == 16 ? i / 2 : s, u = kDim == 16 ? i % 2 : i / 2;
#pragma unroll
          for (int l = 0; l < kLeaves; ++l) {
            const int q = kDim == 16 ? l : i % 2 * kLeaves + l;
            float16_weights(group[i].leaf[l], signed_pair(scale, numbers.signs, kLeaves * i + l),
                            a[b][q][u], a[b][q][2 + u]);
          }
        }
      }
    }
    // Both negative where bit `place`, at most 15, of the signs is set, of which there are 16.
    static __device__ __forceinline__ __half2 signed_pair(__half2 scale, uint32_t signs,
                                                          int place) {
      const uint32_t both = signs * (1u << (31 - place) | 1u << (15 - place)) & 0x80008000u;
      return as_half2(as_word(scale) ^ both);
    }
    // 1024 + v is exact in float16, whose last bits are v, and so is y = 1024 + v - (1024 + 128) of
    // v = y + 128.
    static __device__ __forceinline__ void float16_weights(uint32_t leaf, __half2 scale,
                                                           uint32_t& first, uint32_t& second) {
      leaf ^= 0x80808080u;
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
