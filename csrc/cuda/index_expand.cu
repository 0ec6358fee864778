// Exact indices in fragments back to dense weights.
#include <cuda_bf16.h>

#include "cuda/index_decode.cuh"
#include "cuda/index_matmul.h"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/product_task.h"
#include "cuda/rounded.cuh"

namespace pvq {
namespace {

constexpr int kThreads = 512;

struct ExpandTask {
  const uint8_t* fragments;
  const uint16_t* row_scale;
  int64_t rows, cols, num_chunks;
  void* w;
  IndexForm form;
};

// A warp expands a chunk, a leaf of a row at a time.
template <int kDim, class T>
__global__ void __launch_bounds__(kThreads, 1)
    expand_kernel(const __grid_constant__ ExpandTask task) {
  constexpr int kSets = 16 / kDim, kLeaves = kDim / 4;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  copy_index_tables(task.form, shared, kThreads);
  wait_for_previous_kernel();
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t chunks = task.cols / kChunkCols;  // of a tile
  const int64_t warps = int64_t(gridDim.x) * (kThreads / 32);
  T* const w = static_cast<T*>(task.w);
  for (int64_t place = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / 32; place < task.num_chunks;
       place += warps) {
#pragma unroll
    for (int s = 0; s < kSets; ++s) {
      IndexSet<0> set;
      const int64_t begin = (place * kSets + s) * set.bytes(task.form);
      set.load(task.form, GlobalBytes{task.fragments + begin}, lane);
      IndexGroup<kDim> group[4];
      decode_set(task.form, set, group);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int b = kDim == 16 ? i / 2 : s, u = kDim == 16 ? i % 2 : i / 2;
        const int64_t row = place / chunks * kTileRows + lane / 4 + 8 * u;
        if (row >= task.rows) continue;
        const float row_scale = __uint_as_float(uint32_t(task.row_scale[row]) << 16);
        const float scale = row_scale * group[i].scale(task.form);
        const int64_t col = place % chunks * kChunkCols + 64 * b + 16 * (lane % 4) +
                            (kDim == 16 ? 0 : i % 2 * kDim);
#pragma unroll
        for (int l = 0; l < kLeaves; ++l) {
          const float s = group[i].signs >> l & 1 ? -scale : scale;
          const uint32_t v = group[i].leaf[l];
          float weight[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            weight[j] = s * static_cast<float>(int(v >> (8 * j) & 255) - 128);
          *reinterpret_cast<uint2*>(w + row * task.cols + col + 4 * l) = make_uint2(
              rounded_pair<T>(weight[0], weight[1]), rounded_pair<T>(weight[2], weight[3]));
        }
      }
    }
  }
}

template <int kDim, class T>
cudaError_t expand(const ExpandTask& task, cudaStream_t stream) {
  constexpr int64_t kWarps = kThreads / 32;
  const int64_t blocks = (task.num_chunks + kWarps - 1) / kWarps;
  const int processors = device_limits().multiprocessors;
  const auto grid = unsigned(blocks < processors ? blocks : processors);
  return launch_overlapped(expand_kernel<kDim, T>, dim3(grid), kThreads, kIndexReachBytes, stream,
                           task);
}

}  // namespace

int index_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int dim, const IndexForm& form, RealType type, void* w,
                      void* stream) {
  const ExpandTask task = {fragments, row_scale, rows, cols, tiles_of(rows) * (cols / kChunkCols),
                           w,         form};
  if (task.num_chunks == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  const bool half = type == RealType::kFloat16;
  if (dim == 8)
    return half ? expand<8, __half>(task, queue) : expand<8, __nv_bfloat16>(task, queue);
  return half ? expand<16, __half>(task, queue) : expand<16, __nv_bfloat16>(task, queue);
}

}  // namespace pvq
