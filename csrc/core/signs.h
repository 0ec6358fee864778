// The random signs of the rotation: one bit a column, the same on CPU and GPU.
//
// Column c has sign -1 if bit c % 64 of word c / 64 is set. Word q of a seed is output q of the
// splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014) started at the seed, computed without
// its predecessors: finaliser(seed + (q + 1) * golden ratio). Columns count over the whole input
// dimension, so the signs do not depend on the block.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PVQ_HOST_DEVICE __host__ __device__
#else
#define PVQ_HOST_DEVICE
#endif

namespace pvq {

PVQ_HOST_DEVICE inline uint64_t sign_word(uint64_t seed, int64_t q) {
  uint64_t z = seed + (static_cast<uint64_t>(q) + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Words needed for the signs of `cols` columns.
PVQ_HOST_DEVICE inline int64_t sign_word_count(int64_t cols) { return (cols + 63) / 64; }

inline void fill_sign_words(uint64_t seed, int64_t cols, uint64_t* words) {
  for (int64_t q = 0; q < sign_word_count(cols); ++q) words[q] = sign_word(seed, q);
}

}  // namespace pvq
