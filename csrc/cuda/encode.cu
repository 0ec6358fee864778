// Ranking of points and packing of their indices on the GPU.
//
// A thread ranks a group and leaves its index in shared memory as 32-bit limbs; then the block
// writes the tile's bytes, each put together from the indices that share it, so that no two threads
// write the same byte and the streams need no zeroing.
#include <cuda_runtime.h>

#include "core/index.h"
#include "cuda/encode.h"
#include "cuda/pyramid_device.h"
#include "cuda/tiles.cuh"

namespace pvq {
namespace {

struct EncodeTask {
  const int16_t* y;
  uint8_t* index;
  Tiling tiling;
  Refusal refusal;
};

// D = 8, 16, 32 in one word: the point in registers.
template <int kDim>
struct FixedRank {
  static constexpr int kThreads = 256;

  int16_t y[kDim];

  __device__ FixedRank(const PyramidView&, const int16_t* source) {
    const uint4* words = reinterpret_cast<const uint4*>(source);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const uint4 v = words[i];
      const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 8; ++j) y[8 * i + j] = int16_t(w[j / 2] >> (16 * (j % 2)));
    }
  }

  __device__ int pulses(const PyramidView&) const {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kDim; ++i) sum += leaf::magnitude(y[i]);
    return sum;
  }

  __device__ void rank(const PyramidView& p, uint32_t* index) const {
    limbs::set(index, p.limbs, rank_fixed<kDim>(p, 0, y).index);
  }
};

// Any size of at most kCapacity limbs.
template <int kCapacity>
struct AnyRank {
  static constexpr int kThreads = 64;

  const int16_t* y;

  __device__ AnyRank(const PyramidView&, const int16_t* source) : y(source) {}
  __device__ int pulses(const PyramidView& p) const { return pulses_of(y, p.dim); }
  __device__ void rank(const PyramidView& p, uint32_t* index) const {
    uint32_t local[kCapacity];
    rank_wide<kCapacity>(p, y, local);
    limbs::copy(index, p.limbs, local, p.limbs);
  }
};

// Byte `byte` of a row of the tile, from the indices of its groups.
__device__ uint8_t pack_byte(const uint32_t* indices, const PyramidView& p, int groups, int byte) {
  const int width = p.index_bits;
  int group = unsigned(8 * byte) / unsigned(width), bit = 8 * byte - group * width, filled = 0;
  uint32_t value = 0;
  while (filled < 8 && group < groups) {
    const uint32_t* limb = indices + group * p.limbs + bit / 32;
    const int take = min(8 - filled, width - bit), shift = bit % 32;
    uint32_t field = limb[0] >> shift;
    if (shift + take > 32) field |= limb[1] << (32 - shift);
    value |= (field & ((1u << take) - 1)) << filled;
    filled += take;
    ++group;
    bit = 0;
  }
  return uint8_t(value);
}

template <class Rank>
__global__ void __launch_bounds__(Rank::kThreads)
    encode_kernel(const __grid_constant__ EncodeTask task, const __grid_constant__ PyramidView p) {
  extern __shared__ uint32_t indices[];  // [kThreads, limbs]
  const LevelView& root = p.level[0];
  const uint32_t* zero_index = root.counts + size_t(p.pulses) * root.limbs;
  for (unsigned i = blockIdx.x; i < task.tiling.tiles(); i += gridDim.x) {
    const Tile tile = task.tiling.tile(i);
    if (int(threadIdx.x) < tile.count()) {
      const int64_t group = tile.group + threadIdx.x;
      uint32_t* index = indices + threadIdx.x * p.limbs;
      const Rank point(p, task.y + group * p.dim);
      const int pulses = point.pulses(p);
      if (pulses == p.pulses) {
        point.rank(p, index);
      } else {
        if (pulses != 0) task.refusal.report(group);
        limbs::copy(index, p.limbs, zero_index, p.limbs);
      }
    }
    __syncthreads();  // all indices are there
    for (int b = threadIdx.x; b < tile.bytes(); b += Rank::kThreads) {
      const int row = tile.rows == 1 ? 0 : unsigned(b) / unsigned(tile.row_bytes);
      task.index[tile.byte + b] = pack_byte(indices + row * tile.groups * p.limbs, p, tile.groups,
                                            b - row * tile.row_bytes);
    }
    __syncthreads();  // all indices are read
  }
}

template <class Rank>
cudaError_t launch(const EncodeCuda& task, const PyramidView& p, cudaStream_t stream) {
  const EncodeTask kernel_task = {task.y, task.index,
                                  Tiling(task.rows, task.groups, p.index_bits, Rank::kThreads),
                                  task.refusal};
  const size_t shared_bytes = size_t(Rank::kThreads) * p.limbs * sizeof(uint32_t);
  int grid = 0;
  const cudaError_t error =
      persistent_grid(reinterpret_cast<const void*>(encode_kernel<Rank>), Rank::kThreads,
                      shared_bytes, kernel_task.tiling.tiles(), &grid);
  if (error != cudaSuccess) return error;
  encode_kernel<Rank><<<grid, Rank::kThreads, shared_bytes, stream>>>(kernel_task, p);
  return cudaGetLastError();
}

}  // namespace

int encode_cuda(const EncodeCuda& task, void* stream) {
  if (task.rows == 0 || task.groups == 0) return cudaSuccess;
  const PyramidDevice* pyramid = nullptr;
  if (const int error = pyramid_device(*task.pyramid, &pyramid)) return error;
  const PyramidView& p = pyramid->view;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (p.narrow && p.dim == 8) return launch<FixedRank<8>>(task, p, queue);
  if (p.narrow && p.dim == 16) return launch<FixedRank<16>>(task, p, queue);
  if (p.narrow && p.dim == 32) return launch<FixedRank<32>>(task, p, queue);
  if (p.limbs <= 4) return launch<AnyRank<4>>(task, p, queue);
  if (p.limbs <= 16) return launch<AnyRank<16>>(task, p, queue);
  return launch<AnyRank<limbs::kMax>>(task, p, queue);
}

}  // namespace pvq
