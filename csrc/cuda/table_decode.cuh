// How a lane turns the words of a chunk into the A fragments of m16n8k32 int8 products.
//
// A chunk is 16 rows x 128 columns. Lane l = 4 g + t owns rows g and g + 8 and columns
// 32 t ... 32 t + 31, in four steps s of eight: columns 32 t + 8 s + 4 h + i. Fragment register
// r = 2 h + (row >= 8) of step s holds i = 0 ... 3, which is what the instruction wants for
// k-quarter t and half h; the columns of a step are not consecutive, and the activations use the
// same order.
//
// Table rows are 256 bytes apart, and each lane has its own copy of the entry at byte 4 * lane of
// the row: one byte permutation makes an offset out of a code byte, and no two lanes ever meet in a
// bank. The table's address is a constant of the load.
#pragma once

#include <cstdint>

#include "cuda/product_output.cuh"
#include "cuda/ptx.cuh"
#include "cuda/table_matmul.h"

namespace pvq {

constexpr int kTableRowBytes = 256;
// Sums start here: the bits of 1.5 * 2^23, whose float value plus n is 12582912 + n, so that an
// int32 sum below 2^22 becomes a float by a subtraction.
constexpr int kMagicBits = 0x4B400000;
constexpr float kMagic = 12582912.0f;

// The table in front of a code's fragments, a copy a lane.
template <class Chunk, int kThreads>
__device__ __forceinline__ void fill_table(const uint8_t* fragments, uint8_t* table) {
  constexpr int kRows = Chunk::kHeaderBytes / 4, kStep = kThreads / 8, kEach = kRows / kStep;
  static_assert(kRows % kStep == 0);
  constexpr int kRowBytes = 256 * kTableRowBytes / kRows;
  const int first = threadIdx.x / 8;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(fragments) + first;
  uint4* const to = reinterpret_cast<uint4*>(table + first * kRowBytes) + threadIdx.x % 8;
  uint32_t word[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) word[i] = __ldg(words + i * kStep);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    to[i * kStep * kRowBytes / 16] = make_uint4(word[i], word[i], word[i], word[i]);
}

// Offset in the table of the entry of code byte `kByte` of `word`: byte 1 is the code, byte 0 the
// lane's.
template <int kByte>
__device__ __forceinline__ uint32_t table_offset(uint32_t word, uint32_t lane_offset) {
  return byte_permute(word, lane_offset, 0x7604 | kByte << 4);
}

// Reads entries from the table in shared memory, the lane's own copy. kOfLanes: whether all lanes
// of a warp read at the same time.
struct LaneTable {
  static constexpr bool kOfLanes = true;
  uint32_t lane_offset;  // 4 * lane

  template <int kByte>
  __device__ __forceinline__ uint32_t entry(uint32_t word) const {
    return look_up_word<kTableAddress>(table_offset<kByte>(word, lane_offset));
  }
  // By a row's number of nine bits: a byte of `word`, and below it the top bit of byte kBelow of
  // `below`. The lane's offset comes beside such bits of two bytes at once.
  template <int kByte, int kBelow>
  __device__ __forceinline__ uint32_t entry_below(uint32_t word, uint32_t below) const {
    constexpr int kOdd = kBelow % 2 * 8;
    const uint32_t low =
        (below & (0x00800080u << kOdd)) | (lane_offset << kOdd | lane_offset << (16 + kOdd));
    constexpr uint32_t kZero = 4 + (kBelow ^ 1);  // a byte of `low`
    return look_up_word<kTableAddress>(
        byte_permute(word, low, kZero << 12 | kZero << 8 | kByte << 4 | (4 + kBelow)));
  }
  // By the offset of the row in the table, among other bits; kRowBits are a row's number, of which
  // bit 15 is the highest.
  template <int kRowBits>
  __device__ __forceinline__ uint32_t entry_at(uint32_t offset) const {
    constexpr uint32_t kMask = 0x10000 - (0x10000 >> kRowBits);
    return look_up_word<kTableAddress>((offset & kMask) | lane_offset);
  }
};

// Reads them through a function of the code.
template <class Entry>
struct AnyTable {
  static constexpr bool kOfLanes = false;
  Entry read;

  template <int kByte>
  __device__ __forceinline__ uint32_t entry(uint32_t word) const {
    return read(word >> (8 * kByte) & 255);
  }
  template <int kByte, int kBelow>
  __device__ __forceinline__ uint32_t entry_below(uint32_t word, uint32_t below) const {
    return read((word >> (8 * kByte) & 255) << 1 | (below >> (8 * kBelow + 7) & 1));
  }
  template <int kRowBits>
  __device__ __forceinline__ uint32_t entry_at(uint32_t offset) const {
    return read((offset & 0xFFFF) >> (16 - kRowBits));
  }
};

template <class Table>
__device__ __forceinline__ void look_up(uint32_t word, const Table& table, uint32_t (&entry)[4]) {
  entry[0] = table.template entry<0>(word);
  entry[1] = table.template entry<1>(word);
  entry[2] = table.template entry<2>(word);
  entry[3] = table.template entry<3>(word);
}

// A chunk in registers: load(from_shared, lane) or load_global(from, lane), then the steps in
// order, decode<step>(table, a). loaded() needs every load's value. kHeaderBytes, the table, stand
// in front of the fragments. Weights are the signed bytes v of a, or
//   kHalfOdd   2 v + 1
//   kBiased    v - 128, v unsigned
// With kCrossed, register 2 h + u of a step holds columns 2 h, 2 h + 1, 2 h + 4 and 2 h + 5 instead
// of 4 h + i. to_signed_columns(a) makes a as if it were neither biased nor crossed. ForMany is the
// chunk of products with more rows of activations than one.

// chunk.decode<step>(table, a) for a step that is constant once loops are unrolled.
template <class Chunk, class Table>
__device__ __forceinline__ void decode_step(Chunk& chunk, int step, const Table& table,
                                            uint32_t (&a)[4]) {
  switch (step) {
    case 0:
      return chunk.template decode<0>(table, a);
    case 1:
      return chunk.template decode<1>(table, a);
    case 2:
      return chunk.template decode<2>(table, a);
    default:
      return chunk.template decode<3>(table, a);
  }
}

template <int kBits>
struct TableTraits {
  static constexpr TableFormat kFormat = TableFormat::table(kBits);
  static constexpr int kBytes = kFormat.chunk_bytes(), kHeaderBytes = kFormat.header_bytes();
  static constexpr bool kHalfOdd = false, kBiased = false, kCrossed = false;
  static __device__ __forceinline__ void to_signed_columns(uint32_t (&)[4]) {}
};

template <int kBits>
struct TableChunk;

// A byte names four weights: byte r of word s is register r of step s.
template <>
struct TableChunk<2> : TableTraits<2> {
  using ForMany = TableChunk;
  uint4 codes;

  __device__ __forceinline__ uint32_t loaded() const { return codes.x; }

  __device__ __forceinline__ void load(uint32_t from, int lane) {
    codes = load_shared_vector(from + lane * 16);
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
    codes = __ldg(reinterpret_cast<const uint4*>(from) + lane);
  }
  template <int kStep, class Table>
  __device__ __forceinline__ void decode(const Table& table, uint32_t (&a)[4]) const {
    look_up(kStep == 0 ? codes.x : kStep == 1 ? codes.y : kStep == 2 ? codes.z : codes.w, table, a);
  }
};

// The same with magnitudes, and 64 sign bits a lane: bit 8 i + 7 - 4 (s & 1) - r of sign word s / 2
// belongs to weight i of register r of step s. The table holds a for magnitudes 2 a + 1, so the
// complement of an entry is its negative.
template <>
struct TableChunk<3> : TableTraits<3> {
  using ForMany = TableChunk;
  static constexpr bool kHalfOdd = true;
  uint4 codes;
  uint2 signs;

  __device__ __forceinline__ uint32_t loaded() const { return codes.x ^ signs.x; }
  __device__ __forceinline__ void load(uint32_t from, int lane) {
    codes = load_shared_vector(from + lane * 16);
    signs = load_shared_pair(from + 512 + lane * 8);
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
    codes = __ldg(reinterpret_cast<const uint4*>(from) + lane);
    signs = __ldg(reinterpret_cast<const uint2*>(from + 512) + lane);
  }
  template <int kStep, class Table>
  __device__ __forceinline__ void decode(const Table& table, uint32_t (&a)[4]) const {
    look_up(kStep == 0 ? codes.x : kStep == 1 ? codes.y : kStep == 2 ? codes.z : codes.w, table, a);
    const uint32_t word = kStep < 2 ? signs.x : signs.y;
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] ^= byte_signs(word << (4 * (kStep & 1) + r));
  }
};

// A byte names two weights: bytes 2 r and 2 r + 1 of the eight of a step are register r.
template <>
struct TableChunk<4> : TableTraits<4> {
  using ForMany = TableChunk;
  uint4 codes[2];

  __device__ __forceinline__ uint32_t loaded() const { return codes[0].x ^ codes[1].x; }
  __device__ __forceinline__ void load(uint32_t from, int lane) {
    codes[0] = load_shared_vector(from + lane * 16);
    codes[1] = load_shared_vector(from + 512 + lane * 16);
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
    codes[0] = __ldg(reinterpret_cast<const uint4*>(from) + lane);
    codes[1] = __ldg(reinterpret_cast<const uint4*>(from) + 32 + lane);
  }
  template <int kStep, class Table>
  __device__ __forceinline__ void decode(const Table& table, uint32_t (&a)[4]) const {
    const uint4& v = codes[kStep >> 1];
    uint32_t low[4], high[4];
    look_up(kStep & 1 ? v.z : v.x, table, low);
    look_up(kStep & 1 ? v.w : v.y, table, high);
    constexpr uint32_t kLowHalves = 0x5410;
    a[0] = byte_permute(low[0], low[1], kLowHalves);
    a[1] = byte_permute(low[2], low[3], kLowHalves);
    a[2] = byte_permute(high[0], high[1], kLowHalves);
    a[3] = byte_permute(high[2], high[3], kLowHalves);
  }
};

// A weight's place in the fragments of its chunk.
struct FragmentPlace {
  int lane, step, reg, item;

  static __device__ FragmentPlace of_weight(int row, int column) {
    return {(row & 7) * 4 + column / 32, column % 32 / 8, column % 8 / 4 * 2 + row / 8, column % 4};
  }
  // Offset in the chunk of the code byte.
  __device__ int code_byte(int bits) const {
    if (bits < 4) return lane * 16 + step * 4 + reg;
    return step / 2 * 512 + lane * 16 + step % 2 * 8 + reg * 2 + item / 2;
  }
  // At 3 bits: offset of the byte with the sign, and the bit in it.
  __device__ int sign_byte() const { return 512 + lane * 8 + step / 2 * 4 + item; }
  __device__ int sign_bit() const { return 7 - 4 * (step & 1) - reg; }
};

}  // namespace pvq
