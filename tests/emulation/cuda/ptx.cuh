// The instructions of csrc/cuda/ptx.cuh on the CPU, in whose place this file is read. The layouts
// of the matrix fragments are those of the PTX manual, sections on mma.m16n8k8, k16 and k32.
#pragma once

#include "machine.h"

namespace pvq {

using emulation::self;
using emulation::shared_at;

inline uint8_t* dynamic_shared() { return self.block->shared.data() + emulation::kFirstAddress; }

inline uint32_t shared_address(const void* p) {
  return uint32_t(static_cast<const uint8_t*>(p) - self.block->shared.data());
}

inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 15;
    uint8_t byte = uint8_t(bytes >> (8 * (s & 7)));
    if (s & 8) byte = byte & 0x80 ? 0xFF : 0;
    r |= uint32_t(byte) << (8 * i);
  }
  return r;
}

inline uint2 multiply_wide(uint32_t a, uint32_t b) {
  const uint64_t product = uint64_t(a) * b;
  return {uint32_t(product), uint32_t(product >> 32)};
}

inline uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) { return a * b + c; }

inline uint32_t load_word_now(const void* address) {
  uint32_t r;
  std::memcpy(&r, address, sizeof r);
  return r;
}
inline void wait_for_value(uint32_t) {}
inline uint32_t byte_signs(uint32_t word) { return byte_permute(word, 0, 0xBA98); }

template <class T>
T load_shared(uint32_t address) {
  T v;
  std::memcpy(&v, shared_at(address, sizeof(T)), sizeof(T));
  return v;
}
template <int kOffset>
uint32_t look_up_word(uint32_t address) {
  return load_shared<uint32_t>(address + kOffset);
}
template <int kOffset>
uint32_t look_up_half(uint32_t address) {
  return load_shared<uint16_t>(address + kOffset);
}
template <int kOffset>
uint2 look_up_pair(uint32_t address) {
  return load_shared<uint2>(address + kOffset);
}
inline void hold(uint32_t&) {}
inline uint32_t load_shared_byte(uint32_t address) { return load_shared<uint8_t>(address); }
inline uint32_t load_shared_half(uint32_t address) { return load_shared<uint16_t>(address); }
inline uint32_t load_shared_word(uint32_t address) { return load_shared<uint32_t>(address); }
inline uint2 load_shared_pair(uint32_t address) { return load_shared<uint2>(address); }
inline uint4 load_shared_vector(uint32_t address) { return load_shared<uint4>(address); }
inline void store_shared_word(uint32_t address, uint32_t value) {
  std::memcpy(shared_at(address, sizeof(value)), &value, sizeof(value));
}

// Copies are made as late as the program allows, when somebody waits for their barrier.
inline void barrier_init(uint32_t barrier, int arrivals) {
  emulation::Barrier& b = self.block->barrier(barrier);
  b.expected = b.missing = arrivals;
}
inline void barrier_init_fence() {}
inline void read_before_copies() {}
inline void barrier_arrive(uint32_t barrier) {
  self.block->barrier(barrier).arrive(0);
  emulation::linger();
}
inline void barrier_arrive_with(uint32_t barrier, uint32_t, int zero) {
  if (zero == 0) barrier_arrive(barrier);
}
inline void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  self.block->barrier(barrier).arrive(bytes);
}
inline void barrier_wait(uint32_t barrier, int parity) {
  emulation::Barrier& b = self.block->barrier(barrier);
  while (!b.passed(parity)) emulation::give_way();
}
template <int kRegisters>
void give_registers_up() {}
template <int kRegisters>
void take_registers() {}
inline void arrive_at_all(int) {
  self.block->meeting.arrive(false);
  emulation::linger();
}
inline void barrier_of_all(int) { self.block->meeting.arrive(); }
inline void barrier_of_first(int threads) { self.block->first(threads).arrive(); }
inline void barrier_of_team(int team) { self.block->team[team].arrive(); }
inline void wait_for_turn(int group) { self.block->turn[group].arrive(true); }
inline void give_turn(int group) {
  self.block->turn[group].arrive(false);
  emulation::linger();
}
inline void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  if (bytes % 16 || to % 16 || uintptr_t(from) % 16) std::abort();
  if (to < emulation::kFirstAddress || to + bytes > emulation::kEndAddress) std::abort();
  self.block->barrier(barrier).copy(self.block->shared.data() + to, from, bytes);
}

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}
inline unsigned load_acquire(const unsigned* p) { return *p; }

inline float max_or_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : a > b ? a : b;
}
inline float reciprocal(float v) { return 1 / v; }
inline float reciprocal_root(float v) { return 1 / std::sqrt(v); }

inline uint32_t transposed(uint32_t pair) {
  return emulation::among_lanes(pair, [](const uint32_t* all) {
    const int g = self.lane() / 4, t = self.lane() % 4;
    const auto at = [&](int row) { return all[4 * row + g / 2] >> (16 * (g % 2)) & 0xFFFF; };
    return at(2 * t) | at(2 * t + 1) << 16;
  });
}

constexpr uint32_t kTf32Mask = ~0x1FFFu;
struct Operands {
  uint32_t a[4], b[2];
};

// d[i] = c[i] + sum over k of a(row, k) b(k, column) for a 16 x kDepth by kDepth x 8 product whose
// registers hold kPerWord values each; value(word, i) is value i of a word of b, and of a too
// unless value_of_a says otherwise.
template <int kDepth, int kPerWord, class T, class Value, class ValueOfA>
void multiply(T (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const T (&c)[4],
              Value value, ValueOfA value_of_a) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  T sums[4];
  emulation::among_lanes(mine, [&](const Operands* all) {
    const int g = self.lane() / 4, t = self.lane() % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i / 2 * 8, column = 2 * t + i % 2;
      sums[i] = c[i];
      for (int k = 0; k < kDepth; ++k) {
        const int half = k / (kDepth / 2), quarter = k % (kDepth / 2) / kPerWord,
                  item = k % kPerWord;
        sums[i] += value_of_a(all[row % 8 * 4 + quarter].a[row / 8 + 2 * half], item) *
                   value(all[column * 4 + quarter].b[half], item);
      }
    }
    return 0;
  });
  for (int i = 0; i < 4; ++i) d[i] = sums[i];
}
template <int kDepth, int kPerWord, class T, class Value>
void multiply(T (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const T (&c)[4],
              Value value) {
  multiply<kDepth, kPerWord>(d, a, b0, b1, c, value, value);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<8, 1>(d, a, b0, b1, d,
                 [](uint32_t word, int) { return __uint_as_float(word & kTf32Mask); });
}
inline void mma_float16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<16, 2>(d, a, b0, b1, d, [](uint32_t word, int i) {
    __half_raw raw;
    raw.x = uint16_t(word >> (16 * i));
    return __half2float(__half(raw));
  });
}
inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<16, 2>(d, a, b0, b1, d, [](uint32_t word, int i) {
    return __uint_as_float(i ? word & 0xFFFF0000u : word << 16);
  });
}
inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     const int (&c)[4]) {
  multiply<32, 4>(d, a, b0, b1, c,
                  [](uint32_t word, int i) { return int(int8_t(word >> (8 * i))); });
}
inline void mma_uint8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                      const int (&c)[4]) {
  multiply<32, 4>(
      d, a, b0, b1, c, [](uint32_t word, int i) { return int(int8_t(word >> (8 * i))); },
      [](uint32_t word, int i) { return int(uint8_t(word >> (8 * i))); });
}

}  // namespace pvq
