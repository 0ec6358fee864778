// The products of csrc/cuda/wgmma.cuh on the CPU, in whose place this file is read. They are made
// at once. Layouts: the PTX manual, sections on wgmma.m64nNk16 and k32 and on the 128-byte swizzle.
#pragma once

#include "machine.h"

namespace pvq {

// The start, the stride of 8 rows, and a mark of the swizzle that is known here.
inline uint64_t wgmma_operand(uint32_t address) {
  if (address % 1024) std::abort();
  return address;
}
inline uint64_t wgmma_step(uint64_t operand, int step) { return operand + 32 * step; }
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kLeft>
void wgmma_wait() {}
template <int kSteps>
void wgmma_clear(uint32_t (&a)[kSteps][4]) {
  for (auto& step : a) std::fill_n(step, 4, 0u);
}
template <int kSteps>
void wgmma_done_with(const uint32_t (&)[kSteps][4]) {}

struct Left {
  uint32_t a[4];
};

// d (+)= a b; kBytes bytes a value, which value(bytes) reads.
template <int kBytes, class T, int kSums, class Value>
void multiply_warpgroup(T (&d)[kSums], const uint32_t (&a)[4], uint64_t b, int add, Value value) {
  using emulation::self;
  constexpr int kDepth = 32 / kBytes, kPerWord = 4 / kBytes;
  const Left mine = {{a[0], a[1], a[2], a[3]}};
  emulation::among_lanes(mine, [&](const Left* all) {
    const int g = self.lane() / 4, t = self.lane() % 4;
    for (int i = 0; i < kSums; ++i) {
      const int row = g + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
      T sum = add ? d[i] : T(0);
      for (int k = 0; k < kDepth; ++k) {
        const int half = k / (kDepth / 2), quarter = k % (kDepth / 2) / kPerWord;
        const uint32_t word = all[row % 8 * 4 + quarter].a[row / 8 + 2 * half];
        uint32_t place = uint32_t(b) + column / 8 * 1024 + column % 8 * 128 + k * kBytes;
        place ^= (place >> 7 & 7) << 4;
        sum += value(reinterpret_cast<const uint8_t*>(&word) + k % kPerWord * kBytes) *
               value(self.block->shared.data() + place);
      }
      d[i] = sum;
    }
    return 0;
  });
}

template <int kSums>
void wgmma_int8(int (&d)[kSums], const uint32_t (&a)[4], uint64_t b, int add) {
  multiply_warpgroup<1>(d, a, b, add, [](const uint8_t* p) { return int(int8_t(*p)); });
}
template <int kSums>
void wgmma_float16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b, int add) {
  multiply_warpgroup<2>(d, a, b, add, [](const uint8_t* p) {
    __half_raw raw;
    std::memcpy(&raw.x, p, 2);
    return __half2float(__half(raw));
  });
}

}  // namespace pvq
