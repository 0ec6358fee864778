// The launch of kernels that expand fragments to dense weights, a warp a chunk.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/fragments.h"

namespace pvq {

constexpr int kExpandThreads = 256;

template <class T>
using ExpandKernel = void (*)(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                              int64_t cols, int64_t num_chunks, T* w);

// Returns a cudaError_t.
inline int launch_expand(ExpandKernel<__half> to_float16, ExpandKernel<__nv_bfloat16> to_bfloat16,
                         const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                         int64_t cols, RealType type, void* w, cudaStream_t stream) {
  const int64_t num_chunks = tiles_of(rows) * (cols / kChunkCols);
  if (num_chunks == 0) return cudaSuccess;
  constexpr int64_t kWarps = kExpandThreads / 32, kMostBlocks = 8192;
  const int64_t blocks = (num_chunks + kWarps - 1) / kWarps;
  const auto grid = unsigned(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (type == RealType::kFloat16) {
    to_float16<<<grid, kExpandThreads, 0, stream>>>(fragments, row_scale, rows, cols, num_chunks,
                                                    static_cast<__half*>(w));
  } else {
    to_bfloat16<<<grid, kExpandThreads, 0, stream>>>(fragments, row_scale, rows, cols, num_chunks,
                                                     static_cast<__nv_bfloat16*>(w));
  }
  return cudaGetLastError();
}

}  // namespace pvq
