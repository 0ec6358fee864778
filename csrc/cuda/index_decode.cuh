// How a lane turns the exact indices of a chunk (index_matmul.h) into weights: core/regions.h line
// by line, with the tables of index_form.h in shared memory.
//
// What stands by pulses is at most 33 neighbouring words, which a warp reads in one wavefront; a
// cell of 64 words takes two, a leaf or a region 3.4.
#pragma once

#include <cuda_fp16.h>

#include "cuda/index_form.h"
#include "cuda/ptx.cuh"

namespace pvq {

// Where the bytes of a chunk are.
struct SharedBytes {
  uint32_t at;
  __device__ __forceinline__ SharedBytes operator+(int offset) const { return {at + offset}; }
  __device__ __forceinline__ uint4 vector() const { return load_shared_vector(at); }
  __device__ __forceinline__ uint2 pair() const { return load_shared_pair(at); }
  __device__ __forceinline__ uint32_t word() const { return load_shared_word(at); }
  __device__ __forceinline__ uint32_t half() const { return load_shared_half(at); }
  __device__ __forceinline__ uint32_t byte() const { return load_shared_byte(at); }
};
struct GlobalBytes {
  const uint8_t* at;
  __device__ __forceinline__ GlobalBytes operator+(int offset) const { return {at + offset}; }
  template <class T>
  __device__ __forceinline__ T as() const {
    return __ldg(reinterpret_cast<const T*>(at));
  }
  __device__ __forceinline__ uint4 vector() const { return as<uint4>(); }
  __device__ __forceinline__ uint2 pair() const { return as<uint2>(); }
  __device__ __forceinline__ uint32_t word() const { return as<uint32_t>(); }
  __device__ __forceinline__ uint32_t half() const { return as<uint16_t>(); }
  __device__ __forceinline__ uint32_t byte() const { return as<uint8_t>(); }
};

// Bits of a group's number that a kernel was compiled for, and of how many leaves the last bits of
// their numbers stand apart; 0 bits if the form says both.
template <int kDim_, int kBits_, int kSplit_>
struct IndexWidths {
  static constexpr int kDim = kDim_, kBits = kBits_, kSplit = kSplit_;
  static constexpr int kLeaves = kDim / 4;
  // Sections hold the next bits from the highest on, so the last one has the signs alone.
  static_assert(kBits == 0 || (kBits & (2 * kLeaves - 1)) == kLeaves);
  static bool fit(const IndexForm& form) {
    return kBits == form.bits && kSplit == form.split && form.gain_bits + form.split > 0;
  }
};

// call(widths) with those of 2.25 and 3.25 bits a weight if they fit, or of any form; on the host.
template <int kDim, class Call>
auto with_index_widths(const IndexForm& form, const Call& call) {
  using Fewer = IndexWidths<kDim, kDim == 16 ? 36 : 18, 0>;
  using More = IndexWidths<kDim, kDim == 16 ? 52 : 26, kDim == 16 ? 2 : 0>;
  if (Fewer::fit(form)) return call(Fewer{});
  if (More::fit(form)) return call(More{});
  return call(IndexWidths<kDim, 0, 0>{});
}

// The numbers of a lane's groups: words and gains from the highest bit of 64 on, the signs of group
// i from bit kLeaves i on.
struct IndexNumbers {
  uint32_t high[4], low[4], signs;
};

// The sections of a set as a lane reads them. Those that its numbers do not have stay unread.
template <class Widths>
struct IndexSet {
  static constexpr int kBits = Widths::kBits, kLeaves = Widths::kLeaves;
  uint4 words;
  uint2 halves;
  uint32_t bytes, nibbles, pairs, bits;

  static __device__ __forceinline__ int size(const IndexForm& form) { return 16 * width(form); }

  template <class Bytes>
  __device__ __forceinline__ void load(const IndexForm& form, Bytes from, int lane) {
    const int width = IndexSet::width(form);
    if (width & 32) words = (from + lane * 16).vector(), from = from + 512;
    if (width & 16) halves = (from + lane * 8).pair(), from = from + 256;
    if (width & 8) bytes = (from + lane * 4).word(), from = from + 128;
    if (width & 4) nibbles = (from + lane * 2).half(), from = from + 64;
    if (width & 2) pairs = (from + lane).byte(), from = from + 32;
    if (width & 1) bits = (from + lane / 2).byte() >> (lane % 2 * 4);
  }

  // Unpacks what was read; where widths are known with an instruction a field.
  __device__ __forceinline__ IndexNumbers numbers(const IndexForm& form) const {
    IndexNumbers n{};
    if constexpr (kBits == 0) {
      add_any(form.bits, n);
      return n;
    }
    constexpr bool kWide = kBits >= 32;
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t rest = 0;
      if (kBits & 16) rest = byte_permute(i / 2 ? halves.y : halves.x, 0, i % 2 ? 0x3244 : 0x1044);
      if (kBits & 8)
        rest |= byte_permute(bytes, 0, kBits & 16 ? 0x4404 + 0x10 * i : 0x0444 + 0x1000 * i);
      n.high[i] = kWide ? word[i] : rest;
      n.low[i] = kWide ? rest : 0;
    }
    n.signs = kLeaves == 4 ? nibbles : pairs;
    return n;
  }

 private:
  static __device__ __forceinline__ int width(const IndexForm& form) {
    return kBits ? kBits : form.bits;
  }
  __device__ __forceinline__ void add_any(int width, IndexNumbers& n) const {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    const bool wide = width & 32;
    const int end = 64 - width;  // of a number: its last bit
    const uint64_t mask = uint64_t((1 << kLeaves) - 1) << end;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t rest = 0;
      int place = 32;
      const auto add = [&](int bits, uint32_t fields, int at) {
        if (width & bits) place -= bits, rest |= (fields >> at & ((1u << bits) - 1)) << place;
      };
      add(16, i / 2 ? halves.y : halves.x, i % 2 * 16);
      add(8, bytes, 8 * i);
      add(4, nibbles, 4 * i);
      add(2, pairs, 2 * i);
      add(1, bits, i);
      const uint64_t number = uint64_t(wide ? word[i] : rest) << 32 | (wide ? rest : 0);
      n.signs |= (uint32_t(number >> end) & ((1 << kLeaves) - 1)) << (kLeaves * i);
      n.high[i] = uint32_t((number & ~mask) >> 32), n.low[i] = uint32_t(number & ~mask);
    }
  }
};

// A group: its leaves, four integers each, before their signs, and its level.
template <class Widths>
struct IndexGroup {
  static constexpr int kDim = Widths::kDim, kLeaves = Widths::kLeaves;
  uint32_t level;             // where it is among the levels, in bytes
  uint32_t pulses;            // as the tables have them
  uint32_t address[kLeaves];  // of the leaves in shared memory
  uint32_t leaf[kLeaves];

  __device__ __forceinline__ void find(const IndexForm& form, uint32_t high, uint32_t low) {
    const int marked = (Widths::kBits ? Widths::kBits : form.bits) - kLeaves;  // word and gain
    const Bits bits{high, low};
    level = uint32_t(bits.all() >> (62 - marked)) & ((4u << form.gain_bits) - 4);
    if constexpr (kDim == 16) {
      const int rest = 64 - marked + form.gain_bits;  // the first bit of those apart
      const int split = Widths::kBits ? Widths::kSplit : form.split;
      const uint32_t cell =
          look_up_half<kIndexCells>(bits.at(rest + 2 * split - 1) & ((2u << form.cell_bits) - 2));
      const uint32_t slot = __funnelshift_l(high, 0, cell);  // by the last five bits
      pulses = look_up_word<0>((cell & ~31u) + 4 * slot);
      uint32_t fraction = __funnelshift_l(low, high, cell);
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const uint32_t at = entry<kIndexPulses>(l, l / 2);
        const uint2 product = multiply_wide(fraction, at & kIndexCountMask);
        fraction = product.x;
        if (Widths::kBits ? l < Widths::kSplit : split > 0) {
          const uint32_t apart = bits.at(rest + 2 * l - 2) & (l < split ? 12 : 0);
          const int unit = l < split ? 4 : 2;
          address[l] = (at >> kIndexCountBits) + (product.y << unit) | apart;
        } else {
          address[l] = (at >> kIndexCountBits) + 4 * product.y;
        }
      }
    } else {
      const uint32_t word = high >> (32 - form.word_bits);
      const uint2 region = look_up_pair<kIndexRegions>(word >> form.unit_bits << 3);
      pulses = region.y;
      const uint2 left = multiply_wide(word - region.x, entry<kIndexShares>(1, 0));
      address[0] = entry<kIndexPulses>(0, 0) + 4 * left.y;
      address[1] =
          entry<kIndexPulses>(1, 0) + 4 * multiply_wide(left.x, entry<kIndexPulses>(1, 1)).y;
    }
  }

  // Of leaves that are not there something that is.
  __device__ __forceinline__ void read() {
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) leaf[i] = look_up_word<0>(address[i]);
  }
  __device__ __forceinline__ void read_rare(const IndexForm& form) {
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) {
      const uint32_t k = pulses >> (8 * i + 2) & 63;
      if (int(k) > form.most_pulses)
        leaf[i] = __ldg(form.leaf + __ldg(form.start + k) + (address[i] - kIndexRareAddress) / 4);
    }
  }

  // Level over norm; of the zero group something finite.
  __device__ __forceinline__ float scale(const IndexForm& form) const {
    constexpr int kMagic = 0x4B000000;  // 2^23, whose last bits count ones
    int square = kMagic;
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) square = __dp4a(int(leaf[i]), int(leaf[i]), square);
    const float norm = __int_as_float(square) - __int_as_float(kMagic);
    const float amplitude = __uint_as_float(look_up_word<0>(form.levels + level));
    return amplitude * fminf(reciprocal_root(norm), 1.0f);
  }

 private:
  struct Bits {
    uint32_t high, low;
    __device__ __forceinline__ uint64_t all() const { return uint64_t(high) << 32 | low; }
    // From bit `place` on, which is behind the slot and the fraction: where widths are known, so is
    // the word that it is in, whatever the gain takes.
    __device__ __forceinline__ uint32_t at(int place) const {
      constexpr int kMarked = Widths::kBits - kLeaves;
      if constexpr (Widths::kBits > 0 && kMarked <= 32) return high >> (place - 32);
      if constexpr (kMarked >= 48) return __funnelshift_r(low, high, place);
      return uint32_t(all() >> place);
    }
  };
  // What a table at kTable has for the pulses of a leaf; the second of such tables.
  template <int kTable>
  __device__ __forceinline__ uint32_t entry(int leaf, int second) const {
    const uint32_t at = leaf == 0   ? pulses & 0xFC
                        : leaf == 3 ? pulses >> 24
                                    : byte_permute(pulses, 0, 0x4440 + leaf);
    return second ? look_up_word<kTable + kIndexPulsesBytes>(at) : look_up_word<kTable>(at);
  }
};

// All groups of a set.
template <class Widths>
__device__ __forceinline__ void decode_groups(const IndexForm& form, const IndexNumbers& numbers,
                                              IndexGroup<Widths> (&group)[4]) {
  uint32_t any = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    group[i].find(form, numbers.high[i], numbers.low[i]);
    group[i].read();
    any |= group[i].pulses;
  }
  asm("" : "+r"(any));  // or else each is compared by itself
  if (any & 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (group[i].pulses & 1) group[i].read_rare(form);
  }
}

// The tables of a product's form into shared memory.
__device__ __forceinline__ void copy_index_tables(const IndexForm& form, uint8_t* target,
                                                  int threads) {
  const auto* source = reinterpret_cast<const uint4*>(form.tables);
  auto* words = reinterpret_cast<uint4*>(target);
#pragma unroll 8
  for (int i = threadIdx.x; i < form.table_bytes / 16; i += threads) words[i] = __ldg(source + i);
}

}  // namespace pvq
