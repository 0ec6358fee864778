// Exact indices in fragments back to dense weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/index_decode.cuh"
#include "cuda/index_matmul.h"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/product_task.h"
#include "cuda/rounded.cuh"

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

// The weights of a leaf, scaled.
template <class T>
__device__ __forceinline__ uint2 leaf_weights(uint32_t leaf, float scale) {
  // 2^23 + v is exact, whose last bits are v, and so is y = 2^23 + v - (2^23 + 128).
  constexpr uint32_t kMagic = 0x4B000000;
  float weight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    weight[i] = scale * (__uint_as_float(byte_permute(leaf, kMagic, 0x7650 | i)) - (8388608 + 128));
  return make_uint2(rounded_pair<T>(weight[0], weight[1]), rounded_pair<T>(weight[2], weight[3]));
}

// Writes 16 weights of each lane, at column 16 (lane % 4) of a row that four lanes share. Lanes
// exchange halves with their neighbours, so that they write 32 bytes together.
__device__ __forceinline__ void write_weights(uint8_t* row, bool inside, uint4 low, uint4 high) {
  const int t = threadIdx.x % 4;
  const bool odd = t & 1;
  const uint4 mine = odd ? low : high;
  const uint4 theirs = make_uint4(__shfl_xor_sync(~0u, mine.x, 1), __shfl_xor_sync(~0u, mine.y, 1),
                                  __shfl_xor_sync(~0u, mine.z, 1), __shfl_xor_sync(~0u, mine.w, 1));
  if (!inside) return;
  uint4* const to = reinterpret_cast<uint4*>(row) + 4 * (t / 2) + odd;
  to[0] = odd ? theirs : low;
  to[2] = odd ? high : theirs;
}

// A warp expands a chunk at a time. kBits as in IndexSet.
template <int kDim, int kBits, class T>
__global__ void __launch_bounds__(kThreads, 1)
    expand_kernel(const __grid_constant__ ExpandTask task) {
  constexpr int kSets = 16 / kDim, kLeaves = kDim / 4;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  copy_index_tables(task.form, shared, kThreads);
  wait_for_previous_kernel();
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const unsigned chunks = unsigned(task.cols / kChunkCols);  // of a tile
  const unsigned warps = gridDim.x * kWarps;
  unsigned place = blockIdx.x * kWarps + threadIdx.x / 32;
  IndexSet<kBits> next[kSets];
  const auto load_next = [&](unsigned from) {
    if (from >= task.num_chunks) return;
#pragma unroll
    for (int s = 0; s < kSets; ++s)
      next[s].load(task.form,
                   GlobalBytes{task.fragments +
                               (int64_t(from) * kSets + s) * IndexSet<kBits>::bytes(task.form)},
                   lane);
  };
  load_next(place);
#pragma unroll 1
  for (; place < task.num_chunks; place += warps) {
    IndexSet<kBits> set[kSets];
#pragma unroll
    for (int s = 0; s < kSets; ++s) set[s] = next[s];
    load_next(place + warps);
    const int64_t first_row = int64_t(place / chunks) * kTileRows + lane / 4;
    uint8_t* const origin =
        static_cast<uint8_t*>(task.w) +
        (first_row * task.cols + int64_t(place % chunks) * kChunkCols) * int64_t(sizeof(T));
#pragma unroll
    for (int s = 0; s < kSets; ++s) {
      IndexGroup<kDim> group[4];
      decode_set(task.form, set[s], group);
#pragma unroll
      for (int half = 0; half < 4 / kSets; ++half) {  // of a row, 64 b on, of row 8 u on
        const int b = kDim == 16 ? half / 2 : s, u = half % 2;
        const bool inside = first_row + 8 * u < task.rows;
        const float row_scale =
            inside ? __uint_as_float(uint32_t(task.row_scale[first_row + 8 * u]) << 16) : 0;
        uint2 four[4];
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          const IndexGroup<kDim>& from = group[half * kSets + l / kLeaves];
          const float scale = row_scale * from.scale(task.form);
          const uint32_t sign = from.signs >> (l % kLeaves) << 31;
          four[l] = leaf_weights<T>(from.leaf[l % kLeaves],
                                    __uint_as_float(__float_as_uint(scale) ^ sign));
        }
        write_weights(origin + (8 * u * task.cols + 64 * b) * int64_t(sizeof(T)), inside,
                      make_uint4(four[0].x, four[0].y, four[1].x, four[1].y),
                      make_uint4(four[2].x, four[2].y, four[3].x, four[3].y));
      }
    }
  }
}

template <int kDim, int kBits, class T>
cudaError_t launch(const ExpandTask& task, cudaStream_t stream) {
  const unsigned blocks = (task.num_chunks + kWarps - 1) / kWarps;
  const auto grid = std::min(blocks, unsigned(device_limits().multiprocessors));
  return launch_overlapped(expand_kernel<kDim, kBits, T>, dim3(grid), kThreads, kIndexReachBytes,
                           stream, task);
}

// Of the rates at which the products know the widths, and of any.
template <class T>
cudaError_t expand(int dim, const ExpandTask& task, cudaStream_t stream) {
  if (dim == 8) return launch<8, 0, T>(task, stream);
  switch (task.form.bits) {
    case 36:
      return launch<16, 36, T>(task, stream);
    case 52:
      return launch<16, 52, T>(task, stream);
    default:
      return launch<16, 0, T>(task, stream);
  }
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
