// How a lane turns the symbols of a chunk of an overlapping-pyramid code (core/overlap.h) into the
// A fragments of m16n8k32 uint8 products: the counterpart of table_decode.cuh, with the same lanes,
// steps and registers. The 128 columns of a chunk are the ring of each row.
//
// A lane owns 32 columns of each of two rows, one stretch of bytes of the stored form (with a
// spread the symbols' lower bits, and the others behind them). Their 32-bit words stand in pairs of
// the two rows, 16 bytes a lane and load, then 8 for an odd pair, then 4 for two halves of words.
//
// A word of the table has both points of a window, each made positive, so that no carry goes from
// byte to byte and a sum of two is the weight plus 128 (with a spread and what that adds).
//
// Groups of two weights: the point of the own group stands in the lower half and that of the later
// group in the upper half. The word of a group can take both parts: with groups i and j = i + lag,
//
//   E_i + (upper half of E_(i - lag) | lower half of E_j << 16) = y_i | y_j << 16.
//
// Two groups cost two look-ups of two or three instructions, one permutation and one addition.
// Shared memory binds: a look-up reads 128 bytes of it for a warp, all that it gives in a clock.
//
// Groups of four weights: the word is the point of the own group, a byte a weight, and 16 times the
// word, cut off at 32 bits, is the point of the next one (core/overlap.h), so that
//
//   E_i + 16 E_(i - 1) = y_i.
//
// Groups depend on the ones before them in the ring, which for a lane's first one are in the lane
// next to it. Where symbols are whole bytes that lane hands over the word of its last group, which
// it has looked up first, and a bit of its last symbol; else the lane reads its neighbour's
// symbols.
//
// With a spread the factor is kSpreadFactor and the lower bits of the bytes alone count, and a word
// more has a further bit of each weight: byte k has weight k of all groups, the first group lowest.
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

// kMayHandOver: whether lanes may hand over words of the table (below).
template <int kPairBits, bool kMayHandOver = true>
struct OverlapChunk {
  // Beside more rows of activations than one there are no registers left for it at 4 bits.
  using ForMany = OverlapChunk<kPairBits, kMayHandOver && kPairBits != 8>;
  static constexpr OverlapShape kShape = overlap_shape(kPairBits);
  static constexpr int kStep = kShape.step_bits, kWindow = kShape.window_bits, kLag = kShape.lag;
  static constexpr bool kQuads = kShape.dim == 4, kSpreads = kShape.spread;
  static_assert(kQuads ? kLag == 1 : kShape.dim == 2 && (kLag == 1 || kLag == 2));
  static constexpr TableFormat kFormat = TableFormat::overlapping(kPairBits);
  static constexpr int kBytes = kFormat.chunk_bytes(), kHeaderBytes = kFormat.header_bytes();
  static constexpr bool kHalfOdd = false, kBiased = true, kCrossed = kLag == 2;

  static constexpr int kPairs = kSpreads ? 2 : kPairBits / 2;  // of whole words
  static constexpr bool kHalves = kPairBits % 2;               // half words behind them
  static constexpr int kHalvesAt = 256 * kPairs;               // in the chunk

  // Whether lanes of a product hand over words of the table. All of a warp must decode together.
  template <class Table>
  static constexpr bool kHandsOver = kMayHandOver && Table::kOfLanes && kStep == 8 && kLag == 1;
  static constexpr int kGroups = 32 / kShape.dim;  // of a lane and row

  // Of each row: what comes before the lane's symbols, newest bits on top, and its words.
  uint32_t word[2][1 + kPairs + kHalves];
  uint32_t above[2];       // whether weights are above the sum of their points
  uint32_t late[2][kLag];  // words of the table of the last groups decoded
  uint32_t last[2];        // that of the lane's last group, if it hands it over

  // Without kBefore not what comes before the lane's symbols.
  template <bool kBefore, class Read>
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
    } else if constexpr (kBefore) {
      set(0,
          read.pair(kPairs % 2 ? 256 * kLast + 8 * before : 256 * (kLast - 1) + 16 * before + 8));
    } else if constexpr (kWindow > kStep) {
      // Of the symbol before, its newest bit.
      set(0, make_uint2(top_bits(word[0][kPairs], before), top_bits(word[1][kPairs], before)));
    }
    if constexpr (kSpreads) {
      const uint2 rows = read.pair(256 * kPairs + 8 * lane);
      above[0] = rows.x, above[1] = rows.y;
    }
  }
  __device__ __forceinline__ void load(uint32_t from, int lane) {
    load_with<!kHandsOver<LaneTable>>(SharedChunk{from}, lane);
  }
  // A word of each load.
  __device__ __forceinline__ uint32_t loaded() const {
    uint32_t of_each = 0;
#pragma unroll
    for (int p = 0; p < kPairs; p += 2) of_each ^= word[0][1 + p];
    if constexpr (kHalves) of_each ^= word[0][kPairs + 1];
    if constexpr (kHalves || !kHandsOver<LaneTable>) of_each ^= word[0][0];
    if constexpr (kSpreads) of_each ^= above[0];
    return of_each;
  }
  __device__ __forceinline__ void load_global(const uint8_t* from, int lane) {
    load_with<true>(GlobalChunk{from}, lane);
  }

  // The steps must follow each other from 0 on.
  template <int kPart, class Table>
  __device__ __forceinline__ void decode(const Table& table, uint32_t (&a)[4]) {
    if constexpr (kPart == 0) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        if constexpr (kHandsOver<Table>) {
          last[u] = entry<kGroups - 1>(u, table);
          late[u][0] = __shfl_sync(~0u, last[u], threadIdx.x + 3, 4);
        } else {
          if constexpr (kLag == 2) late[u][0] = entry<-2>(u, table);
          late[u][kLag - 1] = entry<-1>(u, table);
        }
      }
    }
    constexpr int kFirst = 8 / kShape.dim * kPart;  // group
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (kSpreads) {
        const uint32_t e = entry<kFirst>(u, table), next = last_entry<kFirst + 1>(u, table);
        a[u] = spread_weights<kFirst>(u, multiply_add(late[u][0] & kSpreadMask, kSpreadFactor, e));
        a[2 + u] =
            spread_weights<kFirst + 1>(u, multiply_add(e & kSpreadMask, kSpreadFactor, next));
        late[u][0] = next;
      } else if constexpr (kQuads) {
        const uint32_t e = entry<kFirst>(u, table), next = last_entry<kFirst + 1>(u, table);
        a[u] = e + kOverlapFactor * late[u][0];
        a[2 + u] = next + kOverlapFactor * e;
        late[u][0] = next;
      } else {
        const uint32_t e[4] = {entry<kFirst>(u, table), entry<kFirst + 1>(u, table),
                               entry<kFirst + 2>(u, table), last_entry<kFirst + 3>(u, table)};
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
      a[u] ^= 0x80808080u;
      a[2 + u] ^= 0x80808080u;
    }
  }

 private:
  // The top bit of the word of lane `lane` on top.
  static __device__ __forceinline__ uint32_t top_bits(uint32_t word, int lane) {
    return __ballot_sync(~0u, int32_t(word) < 0) << (31 - lane);
  }
  // Of the last group of a part.
  template <int kGroup, class Table>
  __device__ __forceinline__ uint32_t last_entry(int u, const Table& table) const {
    if constexpr (kHandsOver<Table> && kGroup == kGroups - 1) return last[u];
    return entry<kGroup>(u, table);
  }
  __device__ __forceinline__ void set(int i, uint2 rows) {
    word[0][i] = rows.x, word[1][i] = rows.y;
  }
  // A product with as much of twice the spread as a bit's place leaves.
  template <int kGroup>
  __device__ __forceinline__ uint32_t spread_weights(int u, uint32_t sum) const {
    constexpr int kPlace = kGroup % 4;
    static_assert(2 * kSpread % (1 << kPlace) == 0);
    const uint32_t bits = (kGroup < 4 ? above[u] : above[u] >> 4) & (0x01010101u << kPlace);
    return sum + bits * uint32_t(2 * kSpread >> kPlace);
  }
  static __device__ __forceinline__ uint32_t upper_lower(uint32_t first, uint32_t second) {
    return byte_permute(first, second, 0x5432);
  }

  // The table's word of the window of a group; kGroup is negative before the lane's own.
  template <int kGroup, class Table>
  __device__ __forceinline__ uint32_t entry(int u, const Table& table) const {
    constexpr int kTop = 32 + (kGroup + 1) * kStep - 1;  // its newest bit in `word`
    constexpr int kAt = kTop / 32, kBit = kTop % 32;
    static_assert(kAt > 0 || kBit + 1 >= kWindow);
    if constexpr (kWindow == 8) {
      // A byte, after a shift that other windows of the word share.
      constexpr int kShift = 7 - kBit % 8;
      return table.template entry<(kBit + kShift) / 8>(
          kBit + 1 < kWindow ? __funnelshift_l(word[u][kAt - 1], word[u][kAt], kShift)
                             : word[u][kAt] << kShift);
    } else if constexpr (kStep == 8 && kWindow == 9) {
      constexpr int kByte = kBit / 8;
      return table.template entry_below<kByte, (kByte + 3) % 4>(word[u][kAt],
                                                                word[u][kByte ? kAt : kAt - 1]);
    } else {
      return table.template entry_at<kWindow>(with_top_at_15<kAt, kBit>(u));
    }
  }
  template <int kAt, int kBit>
  __device__ __forceinline__ uint32_t with_top_at_15(int u) const {
    if constexpr (kBit >= 15) {
      return word[u][kAt] >> (kBit - 15);
    } else if constexpr (kBit + 1 >= kWindow) {
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
