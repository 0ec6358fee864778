// Planes back to dense weights.
#include "cuda/expand.cuh"
#include "cuda/plane_decode.cuh"
#include "cuda/rounded.cuh"

namespace pvq {
namespace {

// A warp expands a chunk, eight bytes of a row at a time.
template <int kBits, int kGroup, class T>
__global__ void __launch_bounds__(kExpandThreads)
    expand_kernel(const uint8_t* __restrict__ fragments, const uint16_t* __restrict__ row_scale,
                  int64_t rows, int64_t cols, int64_t num_chunks, T* __restrict__ w) {
  using Chunk = PlaneChunk<kBits, kGroup>;
  const int lane = threadIdx.x % 32;
  const int64_t chunks = cols / kChunkCols;  // of a tile
  const int64_t warps = int64_t(gridDim.x) * (kExpandThreads / 32);
  for (int64_t place = (blockIdx.x * int64_t(kExpandThreads) + threadIdx.x) / 32;
       place < num_chunks; place += warps) {
    Chunk chunk;
    chunk.load_global(fragments + place * Chunk::kBytes, lane);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int64_t row = place / chunks * kTileRows + lane / 4 + 8 * u;
      if (row >= rows) continue;
      const float scale = __uint_as_float(uint32_t(row_scale[row]) << 16);
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const uint32_t v = chunk.leaf(b, u, q);
          const float s = scale * __low2float(chunk.scale(b, u, q));
          float weight[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            weight[i] = s * static_cast<float>(int(v >> (8 * i) & 255) - Chunk::kBias);
          const int64_t col = place % chunks * kChunkCols + 64 * b + 16 * (lane % 4) + 4 * q;
          *reinterpret_cast<uint2*>(w + row * cols + col) = make_uint2(
              rounded_pair<T>(weight[0], weight[1]), rounded_pair<T>(weight[2], weight[3]));
        }
    }
  }
}

template <int kBits, int kGroup>
int expand(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows, int64_t cols,
           RealType type, void* w, cudaStream_t stream) {
  return launch_expand(expand_kernel<kBits, kGroup, __half>,
                       expand_kernel<kBits, kGroup, __nv_bfloat16>, fragments, row_scale, rows,
                       cols, type, w, stream);
}

template <int kBits>
int expand(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows, int64_t cols,
           int group, RealType type, void* w, cudaStream_t stream) {
  return group == 8 ? expand<kBits, 8>(fragments, row_scale, rows, cols, type, w, stream)
                    : expand<kBits, 16>(fragments, row_scale, rows, cols, type, w, stream);
}

}  // namespace

int plane_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int bits, int group, RealType type, void* w, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return bits == 4   ? expand<4>(fragments, row_scale, rows, cols, group, type, w, queue)
         : bits == 6 ? expand<6>(fragments, row_scale, rows, cols, group, type, w, queue)
                     : expand<8>(fragments, row_scale, rows, cols, group, type, w, queue);
}

}  // namespace pvq
