// How a lane turns the exact indices of a chunk (index_matmul.h) into weights: core/regions.h line
// by line, with the tables of index_form.h in shared memory.
//
// What stands by pulses or class is at most 33 neighbouring words, which a warp reads in one
// wavefront; reading a leaf takes 3.4, a region 5.5.
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

// The numbers of a lane's groups in a set, 64 bits each. kBits: those of a group, 0 if the form
// says.
template <int kBits>
struct IndexSet {
  uint32_t low[4], high[4];

  static __device__ __forceinline__ int bytes(const IndexForm& form) { return 16 * bits(form); }

  template <class Bytes>
  __device__ __forceinline__ void load(const IndexForm& form, Bytes from, int lane) {
    const int bits = IndexSet::bits(form);
    uint32_t rest[4] = {};
    uint4 words{};
    if (bits & 32) {
      words = (from + lane * 16).vector();
      from = from + 512;
    }
    if (bits & 16) {
      const uint2 v = (from + lane * 8).pair();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        rest[i] = byte_permute(i / 2 ? v.y : v.x, 0, i % 2 ? 0x4432 : 0x4410);
      from = from + 256;
    }
    int place = bits & 16;
    if (bits & 8) {
      const uint32_t v = (from + lane * 4).word();
#pragma unroll
      for (int i = 0; i < 4; ++i) rest[i] |= byte_permute(v, 0, 0x4440 + i) << place;
      from = from + 128;
      place += 8;
    }
    if (bits & 4) {
      const uint32_t v = (from + lane * 2).half();
#pragma unroll
      for (int i = 0; i < 4; ++i) rest[i] |= (v >> (4 * i) & 15) << place;
      from = from + 64;
      place += 4;
    }
    if (bits & 2) {
      const uint32_t v = (from + lane).byte();
#pragma unroll
      for (int i = 0; i < 4; ++i) rest[i] |= (v >> (2 * i) & 3) << place;
      from = from + 32;
      place += 2;
    }
    if (bits & 1) {
      const uint32_t v = (from + lane / 2).byte() >> (lane % 2 * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) rest[i] |= (v >> i & 1) << place;
    }
    const bool wide = bits & 32;
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = wide ? word[i] : rest[i];
      high[i] = wide ? rest[i] : 0;
    }
  }

 private:
  static __device__ __forceinline__ int bits(const IndexForm& form) {
    return kBits ? kBits : form.bits;
  }
};

// A group: its leaves, four integers biased by 128 each, before the signs (leaf i's in bit i), and
// its level.
template <int kDim>
struct IndexGroup {
  static constexpr int kLeaves = kDim / 4;
  uint32_t signs, level;    // level: where it is among the levels, in bytes
  uint32_t pulses;          // as the tables have them
  uint32_t place[kLeaves];  // of the leaves in shared memory, in words
  uint32_t leaf[kLeaves];

  __device__ __forceinline__ void find(const IndexForm& form, uint32_t low, uint32_t high) {
    signs = low & ((1 << kLeaves) - 1);
    level = low >> (kLeaves - 2) & ((4u << form.gain_bits) - 4);
    const int begin = kLeaves + form.gain_bits;  // of the word
    uint32_t quotient;
    if constexpr (kDim == 16) {
      const uint32_t unit = __funnelshift_rc(low, high, begin + form.unit_bits);
      const uint32_t rest = low >> begin & ((1u << form.unit_bits) - 1);
      const uint32_t of_class = unit >> form.class_shift << 2;
      const uint32_t within = unit & ((1u << form.class_shift) - 1);
      const uint32_t number = __umulhi(within, look_up_word<kIndexClasses>(of_class));
      const uint32_t units =
          within + number * look_up_word<kIndexClasses + kIndexClassBytes>(of_class);
      const uint2 region = look_up_pair<0>(
          look_up_word<kIndexClasses + 2 * kIndexClassBytes>(of_class) + 8 * number);
      const uint2 product = multiply_wide(units << form.unit_bits | rest, region.x);
      quotient = __funnelshift_l(units, 0, form.unit_bits) * region.x + product.y;
      pulses = region.y;
      const uint32_t at2 = look_up_word<kIndexPulses>(byte_permute(pulses, 0, 0x4442));
      const uint32_t at3 = look_up_word<kIndexPulses>(pulses >> 24);
      const uint2 right = multiply_wide(product.x, at2 & 0xFFFF);
      place[2] = (at2 >> 16) + right.y;
      place[3] = (at3 >> 16) + multiply_wide(right.x, at3 & 0xFFFF).y;
    } else {
      const uint32_t word = __funnelshift_rc(low, high, begin);
      const uint2 region = look_up_pair<kIndexRegions>(word >> form.unit_bits << 3);
      quotient = word - region.x;
      pulses = region.y;
    }
    const uint32_t second = byte_permute(pulses, 0, 0x4441);
    const uint32_t at0 = look_up_word<kIndexPulses>(pulses & 0xFC);
    const uint32_t at1 = look_up_word<kIndexPulses>(second);
    const uint2 left = multiply_wide(quotient, look_up_word<kIndexShares>(second));
    place[0] = (at0 >> 16) + left.y;
    place[1] = (at1 >> 16) + multiply_wide(left.x, at1 & 0xFFFF).y;
  }

  // Of leaves that are not there something that is.
  __device__ __forceinline__ void read() {
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) leaf[i] = look_up_word<0>(place[i] << 2);
  }
  __device__ __forceinline__ void read_rare(const IndexForm& form) {
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) {
      const uint32_t k = pulses >> (8 * i + 2) & 63;
      if (int(k) > form.most_pulses)
        leaf[i] = __ldg(form.leaf + __ldg(form.start + k) + (place[i] - kIndexRarePlace));
    }
  }

  // Level over norm; of the zero group something finite.
  __device__ __forceinline__ float scale(const IndexForm& form) const {
    constexpr int kMagic = 0x4B000000;  // 2^23, whose last bits count ones
    int square = kMagic;
#pragma unroll
    for (int i = 0; i < kLeaves; ++i) {
      const int y = int(leaf[i] ^ 0x80808080u);
      square = __dp4a(y, y, square);
    }
    const float norm = __int_as_float(square) - __int_as_float(kMagic);
    const float amplitude = __uint_as_float(look_up_word<0>(form.levels + level));
    return amplitude * fminf(reciprocal_root(norm), 1.0f);
  }
};

// All groups of a set.
template <int kDim, int kBits>
__device__ __forceinline__ void decode_set(const IndexForm& form, const IndexSet<kBits>& set,
                                           IndexGroup<kDim> (&group)[4]) {
  uint32_t any = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    group[i].find(form, set.low[i], set.high[i]);
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
