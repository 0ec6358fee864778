// The best symbols of an overlapping-pyramid code (core/overlap.h) on the GPU: what
// cpu/overlap_search.h finds, bit for bit.
#pragma once

#include <cstdint>

#include "core/overlap.h"

namespace pvq {

// Pointers are device memory. A state that is given and no state counts modulo their number, one
// below zero is any. Where x or a weight is not finite the symbols are some symbols.
struct OverlapSearchTask {
  OverlapTrellis trellis;
  const float* x;        // [rows, groups * dim], groups > 0
  const float* table;    // [trellis.rows()][2][dim]
  float spread;          // of trellises that have one
  const float* weight;   // [groups * dim], or null for ones
  const int32_t* start;  // [rows], or null for any
  const int32_t* end;    // the same
  bool ring;             // instead of start and end
  int64_t rows, groups;
  uint8_t* symbol;  // [rows, groups]
  int32_t* began;   // [rows]
  float* cost;      // [rows]
};

// Whether a block's shared memory and threads hold the states: those of the library's codes do.
bool overlap_search_supported(const OverlapTrellis& trellis);

// Bytes of device memory beside the results, kMostSearchBytes at most unless one sequence of
// millions of groups takes more.
int64_t overlap_search_workspace(const OverlapSearchTask& task);
constexpr int64_t kMostSearchBytes = int64_t{1} << 30;

// `workspace` is 16-byte aligned. Launches on a stream (a cudaStream_t as void*), neither waits nor
// allocates, and returns a cudaError_t.
int overlap_search_cuda(const OverlapSearchTask& task, void* workspace, void* stream);

}  // namespace pvq
