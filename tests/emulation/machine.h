// Blocks of GPU threads on the CPU, each a fiber. Enough of CUDA to run the kernels of products and
// searches as they are, slowly, on small matrices.
#pragma once

#include "fibers.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

// The CUDA headers have been read as host code; what follows them is the device's.
#undef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#ifndef __forceinline__
#define __forceinline__ inline
#endif

namespace emulation {

constexpr uint32_t kFirstAddress = 1024, kEndAddress = 228 * 1024;  // of shared memory

struct Warp {
  Meeting meeting{32};
  alignas(16) uint8_t box[32][32];
};

// A barrier in shared memory (ptx.cuh). The one who first asks for the end of a phase makes its
// copies.
struct Barrier {
  int expected = 0, missing = 0, phase = 0;
  long announced = 0;
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;

  void arrive(int bytes) {
    if (--missing < 0) std::abort();
    ++events;
    announced += bytes;
    if (missing == 0 && announced == 0 && copies.empty()) next();
  }
  void copy(void* to, const void* from, size_t bytes) {
    copies.push_back({to, from, bytes});
    ++events;
    announced -= long(bytes);
  }
  bool passed(int parity) {
    if (missing == 0 && announced == 0) {
      for (const Copy& c : copies) std::memcpy(c.to, c.from, c.bytes);
      copies.clear();
      next();
    }
    return phase % 2 != parity;
  }
  void next() { missing = expected, ++phase, ++events; }
};

struct Block {
  explicit Block(int threads) : meeting(threads), warps(threads / 32) {
    // Poisoned: what is read before it was written shows, as NaN if it is real.
    shared.assign(kEndAddress, 0xFF);
  }
  Barrier& barrier(uint32_t address) {
    if (address % 8) std::abort();
    return barriers[address];
  }
  Meeting& first(int threads) {
    if (!meeting_of_first) meeting_of_first = std::make_unique<Meeting>(threads);
    return *meeting_of_first;
  }
  std::unique_ptr<Meeting> meeting_of_first;
  std::map<uint32_t, Barrier> barriers;
  Meeting turn[2] = {Meeting(256), Meeting(256)};
  Meeting team[4] = {Meeting(128), Meeting(128), Meeting(128), Meeting(128)};
  std::vector<uint8_t> shared;
  Meeting meeting;
  std::vector<Warp> warps;
};

struct Thread {
  dim3 thread_index, block_index, grid_dim, block_dim;
  Block* block = nullptr;

  int lane() const { return int(thread_index.x % 32); }
  Warp& warp() const { return block->warps[thread_index.x / 32]; }
};

inline Thread self;  // that runs

inline uint8_t* shared_at(uint32_t address, size_t bytes) {
  if (address < kFirstAddress || address + bytes > kEndAddress || address % bytes) std::abort();
  return self.block->shared.data() + address;
}

// What every lane of the warp brings, as f sees it.
template <class T, class F>
auto among_lanes(const T& mine, F f) {
  static_assert(sizeof(T) <= 32);
  Warp& warp = self.warp();
  std::memcpy(warp.box[self.lane()], &mine, sizeof(T));
  warp.meeting.arrive();
  T all[32];
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all[lane], warp.box[lane], sizeof(T));
  warp.meeting.arrive();
  return f(all);
}

// Blocks of one grid row run together: those of a wide product wait for each other.
inline void run_grid(dim3 grid, int threads, const std::function<void()>& kernel) {
  for (unsigned y = 0; y < grid.y; ++y) {
    std::vector<std::unique_ptr<Block>> blocks;
    for (unsigned x = 0; x < grid.x; ++x) blocks.push_back(std::make_unique<Block>(threads));
    run_fibers(int(grid.x) * threads, 32, kernel, [&](int i) {
      const unsigned x = unsigned(i / threads);
      self = {dim3(unsigned(i % threads)), dim3(x, y), grid, dim3(unsigned(threads)),
              blocks[x].get()};
    });
  }
}

}  // namespace emulation

#define threadIdx (emulation::self.thread_index)
#define blockIdx (emulation::self.block_index)
#define gridDim (emulation::self.grid_dim)
#define blockDim (emulation::self.block_dim)

template <class T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <class T>
T max(T a, T b) {
  return a > b ? a : b;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
T __shfl_sync(unsigned, T value, int from, int width = 32) {
  const int first = emulation::self.lane() & -width;
  return emulation::among_lanes(value,
                                [&](const T* all) { return all[first | (from & (width - 1))]; });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return __shfl_sync(~0u, value, emulation::self.lane() ^ distance);
}
template <class T>
T __reduce_max_sync(unsigned, T value) {
  return emulation::among_lanes(value,
                                [](const T* all) { return *std::max_element(all, all + 32); });
}
inline int __reduce_add_sync(unsigned, int value) {
  return emulation::among_lanes(value,
                                [](const int* all) { return std::accumulate(all, all + 32, 0); });
}
inline uint32_t __ballot_sync(unsigned, int condition) {
  return emulation::among_lanes(condition, [](const int* all) {
    uint32_t bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= uint32_t(all[lane] != 0) << lane;
    return bits;
  });
}
inline bool __any_sync(unsigned, bool condition) {
  return __reduce_max_sync(~0u, int(condition)) != 0;
}
inline void __syncthreads() { emulation::self.block->meeting.arrive(); }
inline void __syncwarp() { emulation::self.warp().meeting.arrive(); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { emulation::give_way(); }
inline unsigned atomicAdd(unsigned* p, unsigned n) {
  ++emulation::events;
  const unsigned before = *p;
  *p += n;
  emulation::linger();
  return before;
}
[[noreturn]] inline void __trap() { std::abort(); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return uint64_t((unsigned __int128)a * b >> 64);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) >> (shift < 32 ? shift : 32));
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int8_t(a >> (8 * i)) * int8_t(b >> (8 * i));
  return c;
}
// Two int16 of a times two int8 of b, its first or its last two.
inline int __dp2a_lo(int a, int b, int c) {
  for (int i = 0; i < 2; ++i) c += int16_t(a >> (16 * i)) * int8_t(b >> (8 * i));
  return c;
}
inline int __dp2a_hi(int a, int b, int c) { return __dp2a_lo(a, b >> 16, c); }
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(uint32_t(bits)); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
