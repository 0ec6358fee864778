// The 2^k part of a block m * 2^k, behind the product by H_m: butterflies in registers and between
// lanes, an exchange through shared memory, the last stages and the output.
#pragma once

#include "cuda/hadamard_product.cuh"

namespace pvq::hadamard {

// Where column `col` of row `row` stands in shared memory, [factor][cols]: 16-byte chunks (4
// columns) are permuted within 128 bytes so that eight lanes that write (two rows, chunks 4 apart)
// and sixteen that read pairs (two rows, 16 columns) meet every bank once.
__device__ inline int slot(int row, int col, int log2_cols) {
  const int chunk = (col >> 5 & 1) ^ (row & 1) * 6;
  return (row << log2_cols) + (col ^ chunk << 2);
}
// The same for col + offset, given slot(row, col), if the two have no bit in common. The offset's
// high bits stay an immediate.
__device__ inline int slot_at(int base_slot, int offset) {
  const int moved = offset ^ (offset >> 5 & 1) << 2;
  return (base_slot ^ (moved & 31)) + (moved & ~31);
}

// Stages in registers and between lanes: none; those of columns 1 to 8 apart and no more, which are
// all of them for 2^k from 16 to 1024; or min(k, 4), and for 2^k from 2048 on one or two more.
enum class Stages { kNone, kFour, kAny };

// After the product a lane has, for rows g and g + 8 of a tile of output rows, the columns 16 q to
// 16 q + 15 of the warp's 64; sums[t][n] is row g + 8 (n / 2), column 8 (n % 2) + t.
// The stages, then to(row, column, four values).
template <Stages kStages, class To>
__device__ void finish_rows(const FactorParameters& p, const float (&sums)[8][4], int tile, To to) {
  const int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
  float v[2][16];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 16; ++i) v[half][i] = sums[i % 8][half * 2 + i / 8];
    if constexpr (kStages == Stages::kFour) {
      butterflies<4, 0, 4>(v[half]);
    } else if constexpr (kStages == Stages::kAny) {
      if (p.log2 > 0) butterflies<4, 0, 1>(v[half]);
      if (p.log2 > 1) butterflies<4, 1, 2>(v[half]);
      if (p.log2 > 2) butterflies<4, 2, 3>(v[half]);
      if (p.log2 > 3) butterflies<4, 3, 4>(v[half]);
      if (p.log2 > 10) butterflies_between_lanes<16>(v[half], 1);
      if (p.log2 > 11) butterflies_between_lanes<16>(v[half], 2);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile * kTile + g + half * 8;
    if (row >= p.factor) continue;
#pragma unroll
    for (int i = 0; i < 16; i += 4) to(row, 16 * q + i, v[half] + i);
  }
}

// The signs of columns first_col + i * 2^log2_stride + h, h < kTogether, in bit i * kTogether + h.
template <int kTogether>
__device__ uint64_t output_signs(const FactorParameters& p, uint32_t first_col, int log2_stride) {
  const int width = 1 << p.log2, stride = 1 << log2_stride;
  uint64_t bits = 0;
  int at = 0;
#pragma unroll 1
  for (int col = 0; col < width; col += 64) {
    uint64_t word = sign_word(p.seed, (first_col + col) >> 6) >> (first_col & 63);
    for (int i = 0; i < min(64, width); i += stride, at += kTogether, word >>= stride)
      bits |= (word & ((1 << kTogether) - 1)) << at;
  }
  return bits;
}

// The last kStages stages of every row in shared memory, kTogether columns a thread, and the
// output. 2^log2_stride columns are done already.
template <class T, int kStages, int kTogether>
__device__ void last_stages(const FactorParameters& p, const float* data, uint32_t first_column,
                            int log2_stride) {
  constexpr int kCount = 1 << kStages, kLog2Together = kTogether - 1;
  static_assert(kTogether == 1 || kTogether == 2);
  const int log2_threads = log2_stride - kLog2Together;
  const uint32_t threads = p.factor << (p.log2_cols - p.log2) << log2_threads;
  const uint32_t size = p.factor << p.log2;
#pragma unroll 1
  for (uint32_t thread = threadIdx.x; thread < threads; thread += blockDim.x) {
    const int j = (thread & ((1 << log2_threads) - 1)) * kTogether;
    const uint32_t line = thread >> log2_threads;  // rows of one block, then of the next
    const uint32_t row = line % p.factor, local_block = line / p.factor;
    const uint32_t block = (first_column >> p.log2) + local_block;
    if (block << p.log2 >= p.columns) continue;
    const uint32_t in_block = (row << p.log2) + j;
    uint64_t signs = 0;
    if (p.signs_out)
      signs = output_signs<kTogether>(p, block % p.blocks_per_row * size + in_block, log2_stride);

    float v[kCount * kTogether];
    const int base_slot = slot(row, (local_block << p.log2) + j, p.log2_cols);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float* from = data + slot_at(base_slot, i << log2_stride);
      if constexpr (kTogether == 2) {
        const float2 pair = *reinterpret_cast<const float2*>(from);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
      } else {
        v[i] = *from;
      }
    }
    butterflies<kStages + kLog2Together, kLog2Together, kStages + kLog2Together>(v);
#pragma unroll
    for (float& x : v) x *= p.scale;
    if (p.signs_out) {
#pragma unroll
      for (int i = 0; i < kCount * kTogether; ++i)
        v[i] = flip(v[i], static_cast<uint32_t>(signs >> i));
    }
    T* out = static_cast<T*>(p.out) + block * size + in_block;
#pragma unroll
    for (int i = 0; i < kCount; ++i) store<kTogether>(out + (i << log2_stride), v + i * kTogether);
  }
}

template <class T>
__device__ void finish_blocks(const FactorParameters& p, const float* data, uint32_t first_column) {
  switch (p.log2) {  // 2^4 columns are done, or 2^(k - 6) if that is more; constants save registers
    case 5:
      return last_stages<T, 1, 2>(p, data, first_column, 4);
    case 6:
      return last_stages<T, 2, 2>(p, data, first_column, 4);
    case 7:
      return last_stages<T, 3, 2>(p, data, first_column, 4);
    case 8:
      return last_stages<T, 4, 2>(p, data, first_column, 4);
    case 9:
      return last_stages<T, 5, 2>(p, data, first_column, 4);
    case 10:
      return last_stages<T, 6, 1>(p, data, first_column, 4);
    case 11:
      return last_stages<T, 6, 1>(p, data, first_column, 5);
    case 12:
      return last_stages<T, 6, 1>(p, data, first_column, 6);
    default:
      return last_stages<T, 0, 1>(p, data, first_column, p.log2);
  }
}

}  // namespace pvq::hadamard
