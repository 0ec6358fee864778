// The product kernel of the table codes; csrc/cuda/table_product_{2,3,4}.cu instantiate it.
//
// A block of 16 warps owns a run of tiles (16 rows each) and walks over the whole depth: warp w
// takes chunk (128 columns) 16 i + w of every tile, so its activations are the same for all tiles
// and stay in registers, and sums of a tile meet once, in shared memory, in a fixed order.
//
//   shared memory, by address           0x10000           0x20000
//   | activations, scales, (fused form) | table, a copy a lane | ring of codes | partial sums |
//
// Weights come through a ring of asynchronous copies that are private to a lane: it reads the 16
// bytes that it copied itself, so the main loop has no barrier. (A ring in registers ran at half the
// speed: a warp has six scoreboards, and waiting for a shared-memory load then waits for the global
// loads behind it.) The ring fills while the activations are rotated, and, with programmatic
// dependent launch, while the previous kernel still runs.
//
// Bytes and instructions at one token and 2 bits: 16 table words, 4 words of codes written and read
// by a lane and chunk of 64 weights: 24 shared-memory wavefronts for 2048 weights, where an H200's
// memory would feed one chunk an SM every 31 clocks; some 65 instructions a chunk.
#pragma once

#include <algorithm>

#include "cuda/ptx.cuh"
#include "cuda/table_activations.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kSharedBytes = 227 * 1024;
// Sums start here: the bits of 1.5 * 2^23, whose float value plus n is 12582912 + n, so that an
// int32 sum below 2^22 becomes a float by a subtraction.
constexpr int kMagicBits = 0x4B400000;
constexpr float kMagic = 12582912.0f;

template <int kBits, int kTokenTiles, int J>
struct ProductShape {
  using Chunk = TableChunk<kBits>;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kStageBytes = kWarps * Chunk::kBytes;
  // 48 to 64 KB in flight: an H200 needs some 32 KB an SM to keep its memory busy.
  static constexpr int kStages = kBits == 2 ? 6 : kBits == 3 ? 5 : 4;
  static constexpr int kRingAddress = kTableAddress + 256 * kTableRowBytes;
  static constexpr int kSumsAddress = kRingAddress + kStages * kStageBytes;
  // Shared addresses start at 1 KB; what lies below belongs to the system.
  static constexpr int kFirstAddress = 1024;
  static constexpr int kOffsetsAddress = kSharedBytes + kFirstAddress - kTokens * 4;
  static constexpr int kSumsBytes = kOffsetsAddress - kSumsAddress;
  static_assert(kSumsBytes >= kThreads * 8 * 4, "the exchange of the rotation must fit");
};

template <int kBits, int kTokenTiles, int J>
__global__ void __launch_bounds__(kThreads, 1) table_product_kernel(const ProductTask task) {
#if __CUDA_ARCH__ >= 900
  using Shape = ProductShape<kBits, kTokenTiles, J>;
  using Chunk = typename Shape::Chunk;
  constexpr int kTokens = Shape::kTokens;
  extern __shared__ __align__(1024) uint8_t shared[];
  const int base = static_cast<int>(shared_address(shared));
  if (base > Shape::kFirstAddress) __trap();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const Activations& x = task.activations;
  const int tokens = x.tokens, chunks = task.chunks;

  // --- the block's tiles, and the first copies
  const int tiles = (task.rows + kTileRows - 1) / kTileRows;
  const int first_tile = int(int64_t(blockIdx.x) * tiles / gridDim.x);
  const int num_tiles = int(int64_t(blockIdx.x + 1) * tiles / gridDim.x) - first_tile;
  const int64_t tile_bytes = int64_t(chunks) * Chunk::kBytes;
  const uint8_t* origin = task.fragments + kTableBytes + first_tile * tile_bytes +
                          warp * Chunk::kBytes;
  const uint8_t* next = origin;
  int copy_group = 0, copy_pass = 0, copy_tile = 0;
  int copy_chunk = warp;  // of the tile; J * 16 a pass
  int copy_group_tiles = min(task.group, num_tiles);
  const uint32_t ring = Shape::kRingAddress + warp * Chunk::kBytes;
  constexpr uint32_t kRingBytes = Shape::kStages * Shape::kStageBytes;
  uint32_t write_slot = ring;
  const auto copy_next = [&](int j) {  // j: the chunk's number within the pass
    if (copy_group < num_tiles && copy_chunk < chunks) Chunk::copy_async(write_slot, next, lane);
    cp_async_commit();
    write_slot += Shape::kStageBytes;
    if (write_slot == ring + kRingBytes) write_slot = ring;
    next += Shape::kStageBytes;
    copy_chunk += kWarps;
    if (j == J - 1) {
      if (++copy_tile == copy_group_tiles) {
        copy_tile = 0;
        if (++copy_pass == task.passes) {
          copy_pass = 0;
          copy_group += copy_group_tiles;
          copy_group_tiles = min(task.group, num_tiles - copy_group);
        }
      }
      copy_chunk = warp + copy_pass * J * kWarps;
      next = origin + (copy_group + copy_tile) * tile_bytes +
             int64_t(copy_pass) * J * Shape::kStageBytes;
    }
  };
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) copy_next(stage % J);

  // --- the table, a copy a lane
  {
    uint8_t* table = shared + (kTableAddress - base);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(task.fragments);
#pragma unroll
    for (int row = thread / 8; row < 256; row += kThreads / 8) {
      const uint32_t word = words[row];
      reinterpret_cast<uint4*>(table + row * kTableRowBytes)[thread % 8] =
          make_uint4(word, word, word, word);
    }
  }

  // --- the activations
  float* sums = reinterpret_cast<float*>(shared + (Shape::kSumsAddress - base));
  float* offset = reinterpret_cast<float*>(shared + (Shape::kOffsetsAddress - base));
  QuantizedActivations<kTokens> a{task.values, task.scale, task.sum};
  wait_for_previous_kernel();
  allow_next_kernel();
  if (!task.values) {
    a.scale = reinterpret_cast<float*>(shared);
    a.sum = a.scale + chunks * kTokens;
    a.values = reinterpret_cast<int8_t*>(a.sum + chunks * kTokens);
    for (int token = 0; token < tokens; ++token)
      for (int64_t column = thread * 8; column - thread * 8 < x.cols; column += kThreads * 8)
        quantize_octet(x, token, column, sums, a);
  }
  __syncthreads();
  if (kBits == 3) {
    for (int token = warp; token < tokens; token += kWarps) {
      float total = 0;
      for (int chunk = lane; chunk < chunks; chunk += 32) total += a.sum[chunk * kTokens + token];
      for (int distance = 16; distance > 0; distance /= 2)
        total += __shfl_xor_sync(~0u, total, distance);
      if (lane == 0) offset[token] = total;
    }
  }

  // --- the product
  const uint32_t lane_base = kTableAddress | lane * 4;
  const int row = lane / 4, quarter = lane % 4;  // of the fragment
  const int magic[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
  uint32_t read_slot = ring;
  for (int group = 0; group < num_tiles; group += task.group) {
    const int group_tiles = min(task.group, num_tiles - group);
    for (int pass = 0; pass < task.passes; ++pass) {
      uint4 b[J][kTokenTiles][2];
      float2 scale[J][kTokenTiles];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int chunk = (pass * J + j) * kWarps + warp;
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          b[j][n][0] = b[j][n][1] = make_uint4(0, 0, 0, 0);
          scale[j][n] = make_float2(0, 0);
          if (chunk < chunks) {
            const int token = n * 8 + row, pair = n * 8 + 2 * quarter;
            if (token < tokens) {
              const uint4* from = reinterpret_cast<const uint4*>(
                  a.values + token * x.cols + chunk * kChunkCols + quarter * 32);
              b[j][n][0] = from[0];
              b[j][n][1] = from[1];
            }
            if (pair < tokens) scale[j][n].x = a.scale[chunk * kTokens + pair];
            if (pair + 1 < tokens) scale[j][n].y = a.scale[chunk * kTokens + pair + 1];
          }
        }
      }

      float* partial = sums + warp * kTileRows * tokens;
#pragma unroll 1
      for (int tile = 0; tile < group_tiles; ++tile) {
        float out[kTokenTiles][4] = {};
#pragma unroll
        for (int j = 0; j < J; ++j) {
          cp_async_wait<Shape::kStages - 2>();
          Chunk chunk;
          chunk.load(read_slot, lane);
          read_slot += Shape::kStageBytes;
          if (read_slot == ring + kRingBytes) read_slot = ring;
          copy_next((j + Shape::kStages - 1) % J);
          uint32_t w[4][4];
          chunk.template decode<0>(lane_base, w[0]);
          chunk.template decode<1>(lane_base, w[1]);
          chunk.template decode<2>(lane_base, w[2]);
          chunk.template decode<3>(lane_base, w[3]);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            int sum[4];
            mma_int8(sum, w[0], b[j][n][0].x, b[j][n][0].y, magic);
            mma_int8(sum, w[1], b[j][n][0].z, b[j][n][0].w, sum);
            mma_int8(sum, w[2], b[j][n][1].x, b[j][n][1].y, sum);
            mma_int8(sum, w[3], b[j][n][1].z, b[j][n][1].w, sum);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              out[n][i] = __fmaf_rn(__int_as_float(sum[i]) - kMagic,
                                    i & 1 ? scale[j][n].y : scale[j][n].x, out[n][i]);
          }
        }
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int token = n * 8 + 2 * quarter + (i & 1);
            if (token < tokens) {
              float* place = partial + (row + (i >> 1) * 8) * tokens + token;
              *place = pass ? *place + out[n][i] : out[n][i];
            }
          }
        partial += kWarps * kTileRows * tokens;
      }
    }

    // --- the group's sums over the warps
    __syncthreads();
    const int outputs = group_tiles * kTileRows * tokens;
    for (int i = thread; i < outputs; i += kThreads) {
      const int in_tile = i % kTileRows, tile = i / kTileRows % group_tiles;
      const int token = i / (kTileRows * group_tiles);
      const float* from = sums + (tile * kWarps * kTileRows + in_tile) * tokens + token;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += from[w * kTileRows * tokens];
      if (kBits == 3) sum = 2 * sum + offset[token];
      const int64_t out_row = (first_tile + group + tile) * kTileRows + in_tile;
      if (out_row < task.rows) {
        const float value = sum * __uint_as_float(uint32_t(task.row_scale[out_row]) << 16);
        const int64_t place = token * int64_t(task.rows) + out_row;
        if (x.type == FloatType::kFloat16) {
          static_cast<__half*>(task.y)[place] = __float2half_rn(value);
        } else {
          static_cast<__nv_bfloat16*>(task.y)[place] = __float2bfloat16_rn(value);
        }
      }
    }
    __syncthreads();
  }
#endif
}

// Launches one instance; the grid is one block an SM, or one a tile where there are fewer.
template <int kBits, int kTokenTiles, int J>
int launch_table_product(ProductTask task, int multiprocessors, cudaStream_t stream) {
  using Shape = ProductShape<kBits, kTokenTiles, J>;
  const auto kernel = table_product_kernel<kBits, kTokenTiles, J>;
  static_assert(Shape::kSumsBytes > 0);
  const int tiles = int(table_tiles(task.rows));
  const int grid = std::min(tiles, multiprocessors);
  task.passes = (task.chunks + J * kWarps - 1) / (J * kWarps);
  task.group = Shape::kSumsBytes / (kWarps * kTileRows * task.activations.tokens * int(sizeof(float)));
  // The launch before the first of a device sets the attribute; setting it again costs little.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, task);
}

// Picks the instance for the task's tokens and columns. Activations of a pass stay in registers: 8 a
// chunk and token tile, which bounds the chunks of a pass.
template <int kBits>
int launch_table_product(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  const int chunks = (task.chunks + kWarps - 1) / kWarps;  // of a warp
  const bool one_tile = task.activations.tokens <= 8;
  const int most = one_tile ? 7 : 3, passes = (chunks + most - 1) / most;
  const int per_pass = (chunks + passes - 1) / passes;
  if (!one_tile) {
    switch (per_pass) {
      case 1:
        return launch_table_product<kBits, 2, 1>(task, multiprocessors, stream);
      case 2:
        return launch_table_product<kBits, 2, 2>(task, multiprocessors, stream);
      default:
        return launch_table_product<kBits, 2, 3>(task, multiprocessors, stream);
    }
  }
  switch (per_pass) {
    case 1:
      return launch_table_product<kBits, 1, 1>(task, multiprocessors, stream);
    case 2:
      return launch_table_product<kBits, 1, 2>(task, multiprocessors, stream);
    case 3:
      return launch_table_product<kBits, 1, 3>(task, multiprocessors, stream);
    case 4:
      return launch_table_product<kBits, 1, 4>(task, multiprocessors, stream);
    case 5:
      return launch_table_product<kBits, 1, 5>(task, multiprocessors, stream);
    case 6:
      return launch_table_product<kBits, 1, 6>(task, multiprocessors, stream);
    default:
      return launch_table_product<kBits, 1, 7>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
