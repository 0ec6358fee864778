// Planes back to dense weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/dense_weights.cuh"
#include "cuda/device_limits.h"
#include "cuda/launch.cuh"
#include "cuda/plane_decode.cuh"
#include "cuda/plane_matmul.h"

namespace pvq {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 8;  // of an SM

struct ExpandTask {
  const uint8_t* fragments;
  const uint16_t* row_scale;
  int64_t rows, cols;
  unsigned num_chunks;
  void* w;
};

// A warp expands a chunk at a time.
template <int kBits, int kGroup, class T>
__global__ void __launch_bounds__(kThreads) expand_kernel(const __grid_constant__ ExpandTask task) {
  using Chunk = PlaneChunk<kBits, kGroup>;
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32;
  const unsigned chunks = unsigned(task.cols / kChunkCols);  // of a tile
#pragma unroll 1
  for (unsigned place = blockIdx.x * kWarps + threadIdx.x / 32; place < task.num_chunks;
       place += gridDim.x * kWarps) {
    Chunk chunk;
    chunk.load_global(task.fragments + int64_t(place) * Chunk::kBytes, lane);
    const int64_t first_row = int64_t(place / chunks) * kTileRows + lane / 4;
    uint8_t* const origin =
        static_cast<uint8_t*>(task.w) +
        (first_row * task.cols + int64_t(place % chunks) * kChunkCols) * int64_t(sizeof(T));
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const bool inside = first_row + 8 * u < task.rows;
      const float row_scale =
          inside ? __uint_as_float(uint32_t(task.row_scale[first_row + 8 * u]) << 16) : 0;
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        uint2 four[4];
#pragma unroll
        for (int q = 0; q < 4; ++q)
          four[q] = leaf_weights<T, Chunk::kBias>(chunk.leaf(b, u, q),
                                                  row_scale * __low2float(chunk.scale(b, u, q)));
        write_weights(origin + (8 * u * task.cols + 64 * b) * int64_t(sizeof(T)), inside, four);
      }
    }
  }
}

template <int kBits, int kGroup>
cudaError_t launch(const ExpandTask& task, RealType type, cudaStream_t stream) {
  const unsigned blocks = (task.num_chunks + kWarps - 1) / kWarps;
  const dim3 grid = std::min(blocks, unsigned(kBlocks * device_limits().multiprocessors));
  const auto start = [&](auto kernel) {
    return launch_overlapped(kernel, grid, kThreads, 0, stream, task);
  };
  return type == RealType::kFloat16 ? start(expand_kernel<kBits, kGroup, __half>)
                                    : start(expand_kernel<kBits, kGroup, __nv_bfloat16>);
}

template <int kBits>
cudaError_t launch(const ExpandTask& task, int group, RealType type, cudaStream_t stream) {
  return group == 8 ? launch<kBits, 8>(task, type, stream) : launch<kBits, 16>(task, type, stream);
}

}  // namespace

int plane_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int bits, int group, RealType type, void* w, void* stream) {
  const int64_t num_chunks = tiles_of(rows) * (cols / kChunkCols);
  if (num_chunks == 0) return cudaSuccess;
  const ExpandTask task = {fragments, row_scale, rows, cols, unsigned(num_chunks), w};
  const auto queue = static_cast<cudaStream_t>(stream);
  return bits == 4   ? launch<4>(task, group, type, queue)
         : bits == 6 ? launch<6>(task, group, type, queue)
                     : launch<8>(task, group, type, queue);
}

}  // namespace pvq
