// Exact indices in fragments back to dense weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/dense_weights.cuh"
#include "cuda/index_decode.cuh"
#include "cuda/index_matmul.h"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/product_task.h"

namespace pvq {
namespace {

constexpr int kThreads = 768;
constexpr int kWarps = kThreads / 32;

struct ExpandTask {
  const uint8_t* fragments;
  const uint16_t* row_scale;
  int64_t rows, cols;
  unsigned num_chunks;
  void* w;
  IndexForm form;
};

// A warp expands a chunk at a time.
template <class Widths, class T>
__global__ void __launch_bounds__(kThreads, 1)
    expand_kernel(const __grid_constant__ ExpandTask task) {
  constexpr int kDim = Widths::kDim, kSets = 16 / kDim, kLeaves = kDim / 4;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  copy_index_tables(task.form, shared, kThreads);
  wait_for_previous_kernel();
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const unsigned chunks = unsigned(task.cols / kChunkCols);  // of a tile
  const unsigned warps = gridDim.x * kWarps;
  unsigned place = blockIdx.x * kWarps + threadIdx.x / 32;
  IndexSet<Widths> next[kSets];
  const auto load_next = [&](unsigned from) {
    if (from >= task.num_chunks) return;
#pragma unroll
    for (int s = 0; s < kSets; ++s)
      next[s].load(task.form,
                   GlobalBytes{task.fragments +
                               (int64_t(from) * kSets + s) * IndexSet<Widths>::size(task.form)},
                   lane);
  };
  load_next(place);
#pragma unroll 1
  for (; place < task.num_chunks; place += warps) {
    IndexNumbers numbers[kSets];
#pragma unroll
    for (int s = 0; s < kSets; ++s) numbers[s] = next[s].numbers(task.form);
    load_next(place + warps);
    const int64_t first_row = int64_t(place / chunks) * kTileRows + lane / 4;
    uint8_t* const origin =
        static_cast<uint8_t*>(task.w) +
        (first_row * task.cols + int64_t(place % chunks) * kChunkCols) * int64_t(sizeof(T));
#pragma unroll
    for (int s = 0; s < kSets; ++s) {
      IndexGroup<Widths> group[4];
      decode_groups(task.form, numbers[s], group);
#pragma unroll
      for (int half = 0; half < 4 / kSets; ++half) {  // of a row, 64 b on, of row 8 u on
        const int b = kDim == 16 ? half / 2 : s, u = half % 2;
        const bool inside = first_row + 8 * u < task.rows;
        const float row_scale =
            inside ? __uint_as_float(uint32_t(task.row_scale[first_row + 8 * u]) << 16) : 0;
        uint2 four[4];
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const IndexGroup<Widths>& from = group[half * kSets + l / kLeaves];
          const float scale = row_scale * from.scale(task.form);
          const int sign_place = kLeaves * (half * kSets + l / kLeaves) + l % kLeaves;
          const uint32_t sign = numbers[s].signs >> sign_place << 31;
          four[l] = leaf_weights<T, 128>(from.leaf[l % kLeaves] ^ 0x80808080u,
                                         __uint_as_float(__float_as_uint(scale) ^ sign));
        }
        write_weights(origin + (8 * u * task.cols + 64 * b) * int64_t(sizeof(T)), inside, four);
      }
    }
  }
}

template <class Widths, class T>
cudaError_t launch(const ExpandTask& task, cudaStream_t stream) {
  const unsigned blocks = (task.num_chunks + kWarps - 1) / kWarps;
  const auto grid = std::min(blocks, unsigned(device_limits().multiprocessors));
  return launch_overlapped(expand_kernel<Widths, T>, dim3(grid), kThreads, kIndexReachBytes, stream,
                           task);
}

template <class T>
cudaError_t expand(int dim, const ExpandTask& task, cudaStream_t stream) {
  if (dim == 8) return launch<IndexWidths<8, 0, 0>, T>(task, stream);
  return with_index_widths<16>(
      task.form, [&](auto widths) { return launch<decltype(widths), T>(task, stream); });
}

}  // namespace

int index_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int dim, const IndexForm& form, RealType type, void* w,
                      void* stream) {
  const int64_t num_chunks = tiles_of(rows) * (cols / kChunkCols);
  if (num_chunks == 0) return cudaSuccess;
  const ExpandTask task = {fragments, row_scale, rows, cols, unsigned(num_chunks), w, form};
  const auto queue = static_cast<cudaStream_t>(stream);
  return type == RealType::kFloat16 ? expand<__half>(dim, task, queue)
                                    : expand<__nv_bfloat16>(dim, task, queue);
}

}  // namespace pvq
