// How a kernel says which element it refuses: one word of device memory, zero before the launch,
// holding `total - element` of the first element refused afterwards.
#pragma once

#include <cstdint>

namespace pvq {

struct Refusal {
  uint64_t* word = nullptr;  // null: nobody asks
  int64_t total = 0;

#ifdef __CUDACC__
  __device__ void report(int64_t element) const {
    if (word)
      atomicMax(reinterpret_cast<unsigned long long*>(word),
                static_cast<unsigned long long>(total - element));
  }
#endif
};

// -1 if nothing was refused.
inline int64_t refused_element(uint64_t word, int64_t total) {
  return word ? total - static_cast<int64_t>(word) : -1;
}

}  // namespace pvq
