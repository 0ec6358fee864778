// Table codes and overlapping-pyramid codes from fragments back to dense weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/overlap_decode.cuh"
#include "cuda/rounded.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_matmul.h"

namespace pvq {
namespace {

constexpr int kThreads = 256;

// A warp expands a chunk: a lane has 32 neighbouring columns of two rows, and writes 16 bytes of
// them at a time. The table lies in shared memory once: conflicts cost less here than copies.
template <class Chunk, class T>
__global__ void __launch_bounds__(kThreads)
    expand_kernel(const uint8_t* __restrict__ fragments, const uint16_t* __restrict__ row_scale,
                  int64_t rows, int64_t cols, int64_t num_chunks, T* __restrict__ w) {
  constexpr int kWords = Chunk::kHeaderBytes / 4;
  __shared__ uint32_t table[kWords];
  for (int i = threadIdx.x; i < kWords; i += kThreads)
    table[i] = reinterpret_cast<const uint32_t*>(fragments)[i];
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t chunks = cols / kChunkCols;  // of a tile
  const int64_t warps = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t place = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / 32; place < num_chunks;
       place += warps) {
    Chunk chunk;
    chunk.load_global(fragments + Chunk::kHeaderBytes + place * Chunk::kBytes, lane);
    const int64_t first_row = place / chunks * kTileRows + lane / 4;
    const int64_t col = place % chunks * kChunkCols + lane % 4 * 32;
    float scale[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int64_t row = first_row + 8 * u;
      scale[u] = row < rows ? __uint_as_float(uint32_t(row_scale[row]) << 16) : 0.0f;
    }
    const auto write_step = [&](int step, uint32_t (&a)[4]) {
      Chunk::to_signed_columns(a);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        uint32_t out[4];
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            float v[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const int stored = static_cast<int8_t>(a[2 * h + u] >> (8 * (i + k)));
              v[k] = scale[u] * static_cast<float>(Chunk::kHalfOdd ? 2 * stored + 1 : stored);
            }
            out[2 * h + i / 2] = rounded_pair<T>(v[0], v[1]);
          }
        if (first_row + 8 * u < rows)
          *reinterpret_cast<uint4*>(w + (first_row + 8 * u) * cols + col + 8 * step) =
              make_uint4(out[0], out[1], out[2], out[3]);
      }
    };
    const auto read = [&](uint32_t code) { return table[code]; };
    const AnyTable<decltype(read)> entries{read};
    uint32_t a[4];
    chunk.template decode<0>(entries, a);
    write_step(0, a);
    chunk.template decode<1>(entries, a);
    write_step(1, a);
    chunk.template decode<2>(entries, a);
    write_step(2, a);
    chunk.template decode<3>(entries, a);
    write_step(3, a);
  }
}

template <class Chunk>
int expand(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows, int64_t cols,
           RealType type, void* w, cudaStream_t stream) {
  const int64_t num_chunks = tiles_of(rows) * (cols / kChunkCols);
  if (num_chunks == 0) return cudaSuccess;
  constexpr int64_t kWarps = kThreads / 32, kMostBlocks = 8192;
  const auto grid = unsigned(std::min((num_chunks + kWarps - 1) / kWarps, kMostBlocks));
  if (type == RealType::kFloat16) {
    expand_kernel<Chunk, __half><<<grid, kThreads, 0, stream>>>(
        fragments, row_scale, rows, cols, num_chunks, static_cast<__half*>(w));
  } else {
    expand_kernel<Chunk, __nv_bfloat16><<<grid, kThreads, 0, stream>>>(
        fragments, row_scale, rows, cols, num_chunks, static_cast<__nv_bfloat16*>(w));
  }
  return cudaGetLastError();
}

}  // namespace

int table_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, TableFormat format, RealType type, void* w, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return with_chunk(format, [&](auto chunk) {
    return expand<typename decltype(chunk)::type>(fragments, row_scale, rows, cols, type, w, queue);
  });
}

}  // namespace pvq
