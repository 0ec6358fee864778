// The first step of a block m * 2^k: the product by H_m of 64 columns at a time, by tensor cores.
//
// +-1 times 16-bit numbers, summed in float32, is exact but for the sums; float32 input is cut into
// three bfloat16 parts (8 + 8 + 8 bits of its 24) that are multiplied one after the other. (An
// infinity in float32 input therefore makes its block NaN.) m is padded to a multiple of 16 with
// zero input. An output row of 64 columns costs m / 16 * 8 / 16 instructions of a warp, one for
// every 64 elements of a lane and 16 rows: m = 28 takes 4 / 7 of an instruction an element, where
// additions would take 28.
#pragma once

#include "core/hadamard_factors.h"
#include "cuda/hadamard_device.cuh"
#include "cuda/mma.cuh"

namespace pvq::hadamard {

constexpr int kTile = 16;      // rows and columns of H_m in one tensor-core instruction
constexpr int kWarpCols = 64;  // columns that a warp multiplies at a time: 8 for each lane group
constexpr int kMaxTiles = kMaxHadamardFactor / kTile;

struct FactorParameters {
  const void* in;
  void* out;                // or, for the partial product, float*
  uint32_t columns;         // of all blocks
  uint32_t blocks_per_row;  // of the array
  int factor, log2;
  int log2_cols;  // columns of a block of threads
  float scale;
  bool signs_in, signs_out;
  uint64_t seed;
};

// The signs of H_m (or its transpose) as lanes need them. Word [row tile][quad][lane] holds four
// tiles of 16 columns; register r of tile t of the quad (mma.cuh) has its lower element's sign at
// bit 4 t + r and its upper element's at 16 + 4 t + r, 1 for -1. What lies beyond m is arbitrary.
template <int kTiles>
struct FactorSigns {
  static constexpr int kQuads = (kTiles + 3) / 4;
  uint32_t word[kTiles * kQuads * kWarp];
};

// --- input
// ----------------------------------------------------------------------------------------

// Eight columns of one row.
template <class T>
struct RowPiece {
  static constexpr int kVectors = sizeof(T) / 2;
  uint4 raw[kVectors];
};

// Rows 2q, 2q + 1, 2q + 8, 2q + 9 of a tile of 16 input rows, for lane 4 g + q: what the second
// operand of the instruction wants, for eight columns.
template <class T>
using TilePiece = RowPiece<T>[4];

__device__ inline int row_of(int tile, int i) {
  return tile * kTile + threadIdx.x % 4 * 2 + (i & 1) + (i & 2) * 4;
}

// The eight columns that lane group g loads of a warp's 64.
template <class T>
struct Columns {
  const T* in;          // row 0, null if the columns do not exist
  uint32_t row_stride;  // elements
  uint32_t first_col;   // of the array, for the signs

  // In the array, for 2^k >= 8.
  __device__ static Columns of_array(const FactorParameters& p, uint32_t column) {
    column += threadIdx.x % kWarp / 4 * 8;
    if (column >= p.columns) return {nullptr, 0, 0};
    const uint32_t width = 1u << p.log2, size = p.factor * width;
    const uint32_t block = column >> p.log2, j = column & (width - 1);
    return {static_cast<const T*>(p.in) + block * size + j, width,
            p.signs_in ? block % p.blocks_per_row * size + j : 0};
  }
};

template <class T>
__device__ void load_tile(const FactorParameters& p, const Columns<T>& columns, int tile,
                          TilePiece<T>& piece) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = row_of(tile, i);
    const bool exists = row < p.factor && columns.in;
#pragma unroll
    for (int h = 0; h < RowPiece<T>::kVectors; ++h)
      piece[i].raw[h] = exists
                            ? load16(columns.in + row * columns.row_stride + h * (16 / sizeof(T)))
                            : make_uint4(0, 0, 0, 0);
  }
}

template <class T>
__device__ void flip_row(RowPiece<T>& piece, uint32_t bits) {
#pragma unroll
  for (int h = 0; h < RowPiece<T>::kVectors; ++h)
    piece.raw[h] = flip_vector<T>(piece.raw[h], bits >> h * 4);
}

// The signs of a warp's input, computed here. Where the 64 columns of a row are one word of signs,
// each lane computes the word of a row, and the lanes that have the row ask for it.
template <class T, int kTiles>
__device__ void sign_tiles(const FactorParameters& p, const Columns<T>& columns,
                           TilePiece<T> (&input)[kTiles]) {
  const auto flip = [&](const auto& bits_of) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) flip_row(input[tile][i], bits_of(row_of(tile, i)));
  };
  if (p.log2 >= 6) {
    const int lane = threadIdx.x % kWarp, group = lane / 4;
    const uint32_t first = columns.first_col - group * 8;
    const uint64_t word = sign_word(p.seed, (first + lane * columns.row_stride) >> 6);
    flip([&](int row) {
      const uint32_t low = __shfl_sync(~0u, static_cast<uint32_t>(word), row);
      const uint32_t high = __shfl_sync(~0u, static_cast<uint32_t>(word >> 32), row);
      return (group < 4 ? low : high) >> group % 4 * 8;
    });
  } else {
    flip([&](int row) { return sign_bits(p.seed, columns.first_col + row * columns.row_stride); });
  }
}

// Those of a tile from a table, whose byte [row][stride] has the signs of the eight columns.
template <class T>
__device__ void sign_tile(const FactorParameters& p, const uint8_t* table, int stride, int tile,
                          TilePiece<T>& piece) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (row_of(tile, i) < p.factor) flip_row(piece[i], table[row_of(tile, i) * stride]);
}

// Fills such a table, [factor][cols / 8], for the columns of a block of threads.
__device__ inline void fill_sign_table(const FactorParameters& p, uint32_t first_column,
                                       uint8_t* table) {
  const uint32_t width = 1u << p.log2, log2_stride = p.log2_cols - 3;
  for (uint32_t i = threadIdx.x; i < p.factor << log2_stride; i += blockDim.x) {
    const uint32_t row = i >> log2_stride;
    const uint32_t column = first_column + (i - (row << log2_stride)) * 8;
    const uint32_t block_in_row = (column >> p.log2) % p.blocks_per_row;
    const uint32_t col = (block_in_row * p.factor + row) * width + (column & (width - 1));
    table[i] = static_cast<uint8_t>(sign_bits(p.seed, col));
  }
}

// For 2^k < 8, where eight columns belong to several blocks: the input of a block of threads with
// its signs, as [factor][cols].
template <class T>
__device__ void gather_columns(const FactorParameters& p, uint32_t first_column, T* gathered) {
  const uint32_t width = 1u << p.log2, size = p.factor * width;
  const uint32_t first = first_column * p.factor, total = p.columns * p.factor;
  for (uint32_t i = threadIdx.x; i < p.factor << p.log2_cols; i += blockDim.x) {
    const uint32_t block = i / size, row = i % size / width, j = i % width;
    T x = T(0.f);
    if (first + i < total) x = static_cast<const T*>(p.in)[first + i];
    if (p.signs_in && (sign_bits(p.seed, (first + i) % (p.blocks_per_row * size)) & 1)) x = -x;
    gathered[(row << p.log2_cols) + block * width + j] = x;
  }
}

// --- product
// --------------------------------------------------------------------------------------

// The type whose instruction multiplies T.
template <class T>
using Multiplied = std::conditional_t<std::is_same_v<T, Half>, Half, BFloat16>;

__device__ inline uint32_t signed_ones(Half, uint32_t signs) { return signs ^ 0x3C003C00u; }
__device__ inline uint32_t signed_ones(BFloat16, uint32_t signs) { return signs ^ 0x3F803F80u; }

// A tile of H_m, the first operand, from its word of FactorSigns.
template <class T>
__device__ void expand_signs(uint32_t word, int tile_in_quad, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
    a[r] = signed_ones(Multiplied<T>{}, word << (15 - 4 * tile_in_quad - r) & 0x80008000u);
}

__device__ inline uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Column t of two rows in a register.
template <class T>
__device__ uint32_t row_pair(const RowPiece<T>& upper, const RowPiece<T>& lower, int t) {
  return __byte_perm(word_of(upper.raw[0], t / 2), word_of(lower.raw[0], t / 2),
                     t % 2 ? 0x7632 : 0x5410);
}

// For float32: the leading 16 bits of each, which are then taken off.
__device__ inline uint32_t leading_pair(float& upper, float& lower) {
  const uint32_t u = __float_as_uint(upper), l = __float_as_uint(lower);
  upper -= __uint_as_float(u & 0xFFFF0000u);
  lower -= __uint_as_float(l & 0xFFFF0000u);
  return __byte_perm(u, l, 0x7632);
}

// sums[t] += (a tile of H_m) (a tile of the input), for the eight columns t of each lane group.
template <class T>
__device__ void multiply_tile(const uint32_t (&a)[4], const TilePiece<T>& piece,
                              float (&sums)[8][4]) {
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    if constexpr (sizeof(T) == 2) {
      mma(T{}, sums[t], a, row_pair<T>(piece[0], piece[1], t), row_pair<T>(piece[2], piece[3], t));
    } else {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(word_of(piece[i].raw[t / 4], t % 4));
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        const uint32_t b0 = leading_pair(x[0], x[1]), b1 = leading_pair(x[2], x[3]);
        mma(BFloat16{}, sums[t], a, b0, b1);
      }
    }
  }
}

}  // namespace pvq::hadamard
