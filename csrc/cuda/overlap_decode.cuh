// How a lane turns the symbols of a chunk of an overlapping-pyramid code (core/overlap.h) into the
// A fragments of m16n8k32 uint8 products: the counterpart of table_decode.cuh, with the same lanes,
// steps and registers. The 128 columns of a chunk are the ring of each row.
//
// A lane owns 32 columns of each of two rows, one stretch of bytes of the stored form. Their 32-bit
// words stand in pairs of the two rows, 16 bytes a lane and load, then 8 for an odd pair, then 4
// for two halves of words.
//
// A word of the table has both points of a window, each made positive: in groups of two weights the
// point of the own group in its lower half and that of the later group in its upper half, a byte a
// weight; in groups of four the two in the lower and upper halves of each byte.
//
// Products do not need the sums of points. With few activations, multiply() takes the words as they
// are: what belongs to the later group meets the activations of the later group, so a chunk of 128
// columns is a product over 256. With groups of two, the word of group i is the operand for
//
//   x_i | x_(i + lag) << 16;
//
// with groups of four the lower halves of its bytes are for x_i and the upper ones, 16 times what
// they stand for, for x_(i + 1), in a sum of their own.
//
// With many activations, whose own doubling would cost more, decode() adds points up. Groups of
// two: E_i + (upper half of E_(i - lag) | lower half of E_j << 16) = y_i | y_j << 16, j = i + lag,
// for no carry goes from byte to byte.
#pragma once

#include "core/overlap.h"
#include "cuda/table_decode.cuh"

namespace pvq {

struct SharedChunk {
  uint32_t from;

  __device__ __forceinline__ uint4 vector(int i) const { return load_shared_vector(from + i); }
  __device__ __forceinline__ uint2 pair(int i) const { return load_shared_pair(from + i); }
  __device__ __forceinline__ uint32_t word(int i) const { return load_shared_word(from + i); }
};

struct GlobalChunk {
  const uint8_t* from;

  template <class T>
  __device__ __forceinline__ T at(int i) const {
    return __ldg(reinterpret_cast<const T*>(from + i));
  }
  __device__ __forceinline__ uint4 vector(int i) const { return at<uint4>(i); }
  __device__ __forceinline__ uint2 pair(int i) const { return at<uint2>(i); }
  __device__ __forceinline__ uint32_t word(int i) const { return at<uint32_t>(i); }
};

template <int kPairBits>
struct OverlapChunk {
  static constexpr OverlapShape kShape = overlap_shape(kPairBits);
  static constexpr int kStep = kShape.step_bits, kWindow = kShape.window_bits, kLag = kShape.lag;
  static constexpr bool kQuads = kShape.dim == 4;
  static_assert(kQuads ? kLag == 1 && kStep == 8 : kShape.dim == 2 && (kLag == 1 || kLag == 2));
  static constexpr TableFormat kFormat = TableFormat::overlapping(kPairBits);
  static constexpr int kBytes = kFormat.chunk_bytes(), kHeaderBytes = kFormat.header_bytes();
  static constexpr bool kHalfOdd = false, kCrossed = kLag == 2;
  static constexpr int kOffset = kQuads ? -16 : -128;
  static constexpr int kSums = kQuads ? 2 : 1;
  static constexpr int kActivations = kQuads ? 10 : 9;

  static constexpr int kPairs = kPairBits / 2;    // of whole words
  static constexpr bool kHalves = kPairBits % 2;  // half words behind them
  static constexpr int kHalvesAt = 256 * kPairs;  // in the chunk

  // Of each row: what comes before the lane's symbols, newest bits on top, and its words.
  uint32_t word[2][1 + kPairs + kHalves];
  uint32_t late[2][kLag];  // words of the table of the last groups decoded
  uint32_t begin[2];       // and of the first one

  template <class Read>
  __device__ __forceinline__ void load_with(const Read& read, int lane) {
    const int before = (lane & ~3) | ((lane + 3) & 3);  // has the ring's symbols before the lane's
#pragma unroll
    for (int p = 0; p + 1 < kPairs; p += 2) {
      const uint4 v = read.vector(256 * p + 16 * lane);
      word[0][1 + p] = v.x, word[1][1 + p] = v.y;
      word[0][2 + p] = v.z, word[1][2 + p] = v.w;
    }
    constexpr int kLast = kPairs - 1;
    if constexpr (kPairs % 2) set(kPairs, read.pair(256 * kLast + 8 * lane));
    if constexpr (kHalves) {
      const uint32_t v = read.word(kHalvesAt + 4 * lane), w = read.word(kHalvesAt + 4 * before);
      set(kPairs + 1, make_uint2(v, v >> 16));
      set(0, make_uint2(w << 16, w));
    } else if constexpr (kPairs % 2) {
      set(0, read.pair(256 * kLast + 8 * before));
    } else {
      set(0, read.pair(256 * (kLast - 1) + 16 * before + 8));
    }
  }
  __device__ __forceinline__ void load(uint32_t from, int lane) {
    load_with(SharedChunk{from}, lane);
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
    load_with(GlobalChunk{from}, lane);
  }

  // The steps must follow each other from 0 on.
  template <int kPart, class Table>
  __device__ __forceinline__ void decode(const Table& table, uint32_t (&a)[4]) {
    if constexpr (kPart == 0) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        if constexpr (kLag == 2) late[u][0] = entry<-2>(u, table);
        late[u][kLag - 1] = entry<-1>(u, table);
      }
    }
    constexpr int kFirst = 8 / kShape.dim * kPart;  // group
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (kQuads) {
        const uint32_t e[2] = {entry<kFirst>(u, table), entry<kFirst + 1>(u, table)};
        a[u] = (e[0] & kLow) + (late[u][0] >> 4 & kLow);
        a[2 + u] = (e[1] & kLow) + (e[0] >> 4 & kLow);
        late[u][0] = e[1];
      } else {
        const uint32_t e[4] = {entry<kFirst>(u, table), entry<kFirst + 1>(u, table),
                               entry<kFirst + 2>(u, table), entry<kFirst + 3>(u, table)};
        if constexpr (kLag == 2) {
          a[u] = e[0] + upper_lower(late[u][0], e[2]);
          a[2 + u] = e[1] + upper_lower(late[u][1], e[3]);
          late[u][0] = e[2], late[u][1] = e[3];
        } else {
          a[u] = e[0] + upper_lower(late[u][0], e[1]);
          a[2 + u] = e[2] + upper_lower(e[1], e[3]);
          late[u][0] = e[3];
        }
      }
    }
  }

  // Registers 2 h + u of columns 4 h + i, and signed bytes.
  static __device__ __forceinline__ void to_signed_columns(uint32_t (&a)[4]) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (kCrossed) {
        const uint32_t first = a[u], second = a[2 + u];
        a[u] = byte_permute(first, second, 0x5410);
        a[2 + u] = byte_permute(first, second, 0x7632);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if constexpr (kQuads) a[2 * h + u] += (128 + kOffset) * 0x01010101u;
        a[2 * h + u] ^= 0x80808080u;
      }
    }
  }

  // The lane's activations as multiply() reads them: of columns 4 i ... 4 i + 3, or crossed as the
  // registers of a step are; behind them those of the first four columns of the next lane. Products
  // take them in pairs of registers from an even one on.
  static __device__ __forceinline__ void arrange(uint32_t (&x)[kActivations], int lane) {
    x[8] = __shfl_sync(~0u, x[0], (lane & ~3) | ((lane + 1) & 3));
    if constexpr (kQuads) x[9] = x[1];
    if constexpr (kCrossed) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const uint32_t first = x[i], second = x[i + 1];
        x[i] = byte_permute(first, second, 0x5410);
        x[i + 1] = byte_permute(first, second, 0x7632);
      }
    }
  }

  // Adds the products of a step to the sums.
  template <int kPart, class Table>
  __device__ __forceinline__ void multiply(const Table& table, const uint32_t (&x)[kActivations],
                                           int (&first)[4], int (&second)[4]) {
    constexpr int kFirst = 8 / kShape.dim * kPart;  // group
    uint32_t w[4];
    if constexpr (kQuads) {
      entries<kFirst, kFirst + 1>(table, w);
      uint32_t low[4], high[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) low[r] = w[r] & kLow, high[r] = w[r] & ~kLow;
      mma_uint8(first, low, x[kFirst], x[kFirst + 1], first);
      // Second points of the group before and of the first one, which meet the same activations.
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        w[u] = late[u][0], w[2 + u] = high[u];
        late[u][0] = high[2 + u];
        if (kPart == 0) begin[u] = high[u];
      }
      if constexpr (kPart > 0) mma_uint8(second, w, x[kFirst], x[kFirst + 1], second);
      if constexpr (kPart == 3) {  // of the last and the first
        const uint32_t ends[4] = {high[2], high[3], begin[0], begin[1]};
        mma_uint8(second, ends, x[8], x[9], second);
      }
    } else if constexpr (kLag == 1) {
      entries<kFirst, kFirst + 2>(table, w);
      mma_uint8(first, w, x[2 * kPart], x[2 * kPart + 1], first);
      entries<kFirst + 1, kFirst + 3>(table, w);
      mma_uint8(second, w, upper_lower_here(x[2 * kPart], x[2 * kPart + 1]),
                upper_lower_here(x[2 * kPart + 1], x[2 * kPart + 2]), second);
    } else {
      entries<kFirst, kFirst + 1>(table, w);
      mma_uint8(first, w, x[2 * kPart], x[2 * kPart + 1], first);
      entries<kFirst + 2, kFirst + 3>(table, w);
      // The next lane's activations are not crossed.
      const uint32_t low = upper_lower_here(x[2 * kPart], x[2 * kPart + 2]);
      const uint32_t high = kPart == 3 ? byte_permute_here(x[7], x[8], 0x7632)
                                       : upper_lower_here(x[2 * kPart + 1], x[2 * kPart + 3]);
      mma_uint8(second, w, low, high, second);
    }
  }

 private:
  static constexpr uint32_t kLow = 0x0F0F0F0Fu;

  __device__ __forceinline__ void set(int i, uint2 rows) {
    word[0][i] = rows.x, word[1][i] = rows.y;
  }
  static __device__ __forceinline__ uint32_t upper_lower(uint32_t first, uint32_t second) {
    return byte_permute(first, second, 0x5432);
  }

  static __device__ __forceinline__ uint32_t upper_lower_here(uint32_t first, uint32_t second) {
    return byte_permute_here(first, second, 0x5432);
  }

  // The table's words of two groups as a fragment.
  template <int kOne, int kOther, class Table>
  __device__ __forceinline__ void entries(const Table& table, uint32_t (&w)[4]) const {
    w[0] = entry<kOne>(0, table), w[1] = entry<kOne>(1, table);
    w[2] = entry<kOther>(0, table), w[3] = entry<kOther>(1, table);
  }

  // The table's word of the window of a group; kGroup is negative before the lane's own.
  template <int kGroup, class Table>
  __device__ __forceinline__ uint32_t entry(int u, const Table& table) const {
    constexpr int kTop = 32 + (kGroup + 1) * kStep - 1;  // its newest bit in `word`
    constexpr int kAt = kTop / 32, kBit = kTop % 32;
    if constexpr (kWindow == 8 && kBit % 8 == 7) {
      return table.template entry<kBit / 8>(word[u][kAt]);
    } else {
      return table.template entry_at<kWindow>(with_top_at_15<kAt, kBit>(u));
    }
  }
  template <int kAt, int kBit>
  __device__ __forceinline__ uint32_t with_top_at_15(int u) const {
    if constexpr (kBit >= 15) {
      return word[u][kAt] >> (kBit - 15);
    } else if constexpr (kBit + 1 >= kWindow || kAt == 0) {
      return word[u][kAt] << (15 - kBit);
    } else {
      return __funnelshift_l(word[u][kAt - 1], word[u][kAt], 15 - kBit);
    }
  }
};

// call(tag) with the chunk of a format as tag::type.
template <class Chunk>
struct ChunkTag {
  using type = Chunk;
};
template <class Call>
auto with_chunk(TableFormat format, const Call& call) {
  if (!format.overlap) {
    switch (format.half_bits) {
      case 4:
        return call(ChunkTag<TableChunk<2>>{});
      case 6:
        return call(ChunkTag<TableChunk<3>>{});
      default:
        return call(ChunkTag<TableChunk<4>>{});
    }
  }
  switch (format.half_bits) {
    case 4:
      return call(ChunkTag<OverlapChunk<4>>{});
    case 5:
      return call(ChunkTag<OverlapChunk<5>>{});
    case 6:
      return call(ChunkTag<OverlapChunk<6>>{});
    case 7:
      return call(ChunkTag<OverlapChunk<7>>{});
    default:
      return call(ChunkTag<OverlapChunk<8>>{});
  }
}

}  // namespace pvq
