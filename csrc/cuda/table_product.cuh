// The product kernel of the table codes for up to 8 rows of activations (tokens, or tokens and
// their residuals); csrc/cuda/table_product_{2,3,4}.cu instantiate it. table_wide.cuh has the one
// for more.
//
// A block of 16 warps owns a run of tiles (16 rows each) and walks over the whole depth: warp w
// takes chunk (128 columns) 16 i + w of every tile, so its activations are the same for all tiles
// and stay in registers, and sums of a tile meet once, in shared memory, in a fixed order.
//
//   shared memory: | table, partial sums in its gaps | ring of codes | activations (fused form) |
//
// Weights come through a ring of asynchronous copies that are private to a lane: it reads the 16
// bytes that it copied itself, so the main loop has no barrier. (A ring in registers ran at half
// the speed: a warp has six scoreboards, and waiting for a shared-memory load then waits for the
// global loads behind it.) The ring fills while the activations are rotated, and, with programmatic
// dependent launch, while the previous kernel still runs.
//
// Bytes and instructions at one token and 2 bits: 16 table words, 4 words of codes written and read
// by a lane and chunk of 64 weights: 24 shared-memory wavefronts for 2048 weights, where an H200's
// memory would feed one chunk an SM every 31 clocks; some 65 instructions a chunk.
#pragma once

#include <algorithm>

#include "cuda/activations.cuh"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/ptx.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;

template <int kBits>
struct ProductShape {
  using Chunk = TableChunk<kBits>;
  static constexpr int kStageBytes = kWarps * Chunk::kBytes;
  // 96 KB in flight: twice what keeps an H200's memory busy, so that it stays so while the
  // activations are rotated.
  static constexpr int kStages = kBits == 2 ? 12 : kBits == 3 ? 8 : 6;
  static constexpr int kRingAddress = kTableEnd;
  static constexpr int kActivationsAddress = kRingAddress + kStages * kStageBytes;
  static constexpr int kOffsetsAddress = kEndAddress - kNarrowRows * 4;
};
constexpr int kSumsBytes = 32 * 1024;

// Floats between the sums of one row of activations and the next: with 16, the lanes of a warp that
// write two rows would meet in a bank.
__host__ __device__ inline int sums_stride(int rows) { return rows == 1 ? kTileRows : 20; }

// What the launch adds to the task: passes over the columns (a warp takes J chunks a pass), and how
// many tiles' partial sums fit the shared memory.
struct NarrowPlan {
  int passes, group;
};

template <int kBits, int J>
__global__ void __launch_bounds__(kThreads, 1)
    table_product_kernel(const __grid_constant__ ProductTask task, const NarrowPlan plan) {
#if __CUDA_ARCH__ >= 900
  using Shape = ProductShape<kBits>;
  using Chunk = typename Shape::Chunk;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const Activations& x = task.activations;
  const int rows = x.rows(), chunks = task.chunks;

  // --- the block's tiles, and the first copies
  const int tiles = (task.rows + kTileRows - 1) / kTileRows;
  const int first_tile = int(int64_t(blockIdx.x) * tiles / gridDim.x);
  const int num_tiles = int(int64_t(blockIdx.x + 1) * tiles / gridDim.x) - first_tile;
  const int64_t tile_bytes = int64_t(chunks) * Chunk::kBytes;
  const uint8_t* origin =
      task.weights + kTableBytes + first_tile * tile_bytes + warp * Chunk::kBytes;
  const uint8_t* next = origin;
  int copy_group = 0, copy_pass = 0, copy_tile = 0;
  int copy_chunk = warp;  // of the tile; J * 16 a pass
  int copy_group_tiles = min(plan.group, num_tiles);
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
        if (++copy_pass == plan.passes) {
          copy_pass = 0;
          copy_group += copy_group_tiles;
          copy_group_tiles = min(plan.group, num_tiles - copy_group);
        }
      }
      copy_chunk = warp + copy_pass * J * kWarps;
      next = origin + (copy_group + copy_tile) * tile_bytes +
             int64_t(copy_pass) * J * Shape::kStageBytes;
    }
  };
  // Half of the ring before the table is asked for, half behind it.
#pragma unroll
  for (int stage = 0; stage < Shape::kStages / 2; ++stage) copy_next(stage % J);
  fill_table(task.weights, shared + (kTableAddress - kFirstAddress), kThreads);
#pragma unroll
  for (int stage = Shape::kStages / 2; stage < Shape::kStages - 1; ++stage) copy_next(stage % J);

  // --- the activations
  const auto sum_at = [&](int i) {
    return reinterpret_cast<float*>(shared + (beside_table(i * 4) - kFirstAddress));
  };
  float* offset = reinterpret_cast<float*>(shared + (Shape::kOffsetsAddress - kFirstAddress));
  constexpr ActivationForm kForm = ActivationForm::kInt8Lanes;
  QuantizedActivations a = task.quantized;
  if (!a.values) {
    a = QuantizedActivations::at(shared + (Shape::kActivationsAddress - kFirstAddress), kForm,
                                 chunks, rows);
    const PieceRotation rotation(x.block, x.type);
    const PieceShare share(x.block, warp, kWarps);
    const PieceSigns signs(x, share, 0);
    wait_for_previous_kernel();
    allow_next_kernel();
    for (int token = 0; token < x.tokens; ++token)
      quantize_token<kForm>(x, rotation, signs, a, token, share);
  } else {
    wait_for_previous_kernel();
    allow_next_kernel();
  }
  __syncthreads();
  if (kBits == 3 && warp < rows) {
    float total = 0;
    for (int chunk = lane; chunk < chunks; chunk += 32)
      total += a.scales[chunk * a.stride + warp].sum;
    for (int distance = 16; distance > 0; distance /= 2)
      total += __shfl_xor_sync(~0u, total, distance);
    if (lane == 0) offset[warp] = total;
  }

  // --- the product
  const LaneTable table{uint32_t(lane * 4)};
  const int row = lane / 4, quarter = lane % 4;  // of the fragment
  const int stride = sums_stride(rows);
  const int magic[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
  uint32_t read_slot = ring;
  for (int group = 0; group < num_tiles; group += plan.group) {
    const int group_tiles = min(plan.group, num_tiles - group);
    for (int pass = 0; pass < plan.passes; ++pass) {
      uint4 b[J][2];
      float2 scale[J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int chunk = (pass * J + j) * kWarps + warp;
        b[j][0] = b[j][1] = make_uint4(0, 0, 0, 0);
        scale[j] = make_float2(0, 0);
        if (chunk < chunks) {
          if (row < rows) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
              b[j][h] = *reinterpret_cast<const uint4*>(a.section(chunk, row) +
                                                        a.unit(kForm, row, 2 * quarter + h));
          }
          const ChunkScale* scales = a.scales + chunk * a.stride + 2 * quarter;
          if (2 * quarter < rows) scale[j].x = scales[0].scale;
          if (2 * quarter + 1 < rows) scale[j].y = scales[1].scale;
        }
      }

      int partial = warp * rows * stride;
#pragma unroll 1
      for (int tile = 0; tile < group_tiles; ++tile) {
        float out[4] = {};
#pragma unroll
        for (int j = 0; j < J; ++j) {
          cp_async_wait<Shape::kStages - 2>();
          Chunk chunk;
          chunk.load(read_slot, lane);
          read_slot += Shape::kStageBytes;
          if (read_slot == ring + kRingBytes) read_slot = ring;
          copy_next((j + Shape::kStages - 1) % J);
          uint32_t w[4][4];
          chunk.template decode<0>(table, w[0]);
          chunk.template decode<1>(table, w[1]);
          chunk.template decode<2>(table, w[2]);
          chunk.template decode<3>(table, w[3]);
          int sum[4];
          mma_int8(sum, w[0], b[j][0].x, b[j][0].y, magic);
          mma_int8(sum, w[1], b[j][0].z, b[j][0].w, sum);
          mma_int8(sum, w[2], b[j][1].x, b[j][1].y, sum);
          mma_int8(sum, w[3], b[j][1].z, b[j][1].w, sum);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            out[i] =
                __fmaf_rn(__int_as_float(sum[i]) - kMagic, i & 1 ? scale[j].y : scale[j].x, out[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = 2 * quarter + (i & 1);
          if (column < rows) {
            float* place = sum_at(partial + column * stride + row + (i >> 1) * 8);
            *place = pass ? *place + out[i] : out[i];
          }
        }
        partial += kWarps * rows * stride;
      }
    }

    // --- the group's sums over the warps
    __syncthreads();
    const int outputs = group_tiles * kTileRows * x.tokens;
    for (int i = thread; i < outputs; i += kThreads) {
      const int in_tile = i % kTileRows, tile = i / kTileRows % group_tiles;
      const int token = i / (kTileRows * group_tiles);
      float total = 0;
      for (int slot = 0; slot < x.slots; ++slot) {
        const int column = token * x.slots + slot;
        const int from = (tile * kWarps * rows + column) * stride + in_tile;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += *sum_at(from + w * rows * stride);
        total += kBits == 3 ? 2 * sum + offset[column] : sum;
      }
      const int64_t out_row = (first_tile + group + tile) * kTileRows + in_tile;
      if (out_row < task.rows) write_output(task, token, out_row, total);
    }
    __syncthreads();
  }
#endif
}

// Launches one instance; the grid is one block an SM, or one a tile where there are fewer.
template <int kBits, int J>
int launch_table_product(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = ProductShape<kBits>;
  const int rows = task.activations.rows();
  NarrowPlan plan;
  plan.passes = (task.chunks + J * kWarps - 1) / (J * kWarps);
  plan.group = kSumsBytes / (kWarps * rows * sums_stride(rows) * int(sizeof(float)));
  static_assert(kSumsBytes >= kWarps * kNarrowRows * 20 * 4);
  static_assert(
      QuantizedActivations::bytes(ActivationForm::kInt8Lanes, kMostFusedValues / kChunkCols, 2) <=
      Shape::kOffsetsAddress - Shape::kActivationsAddress);
  const int grid = std::min(int(tiles_of(task.rows)), multiprocessors);
  const auto kernel = table_product_kernel<kBits, J>;
  return launch_overlapped(kernel, dim3(unsigned(grid)), kThreads, kSharedBytes, stream, task,
                           plan);
}

// Picks the instance for the task's columns. Activations of a pass stay in registers, 8 a chunk,
// which bounds the chunks of a pass.
template <int kBits>
int launch_table_product(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  constexpr int kMost = 7;
  const int chunks = (task.chunks + kWarps - 1) / kWarps;  // of a warp
  const int passes = (chunks + kMost - 1) / kMost;
  switch ((chunks + passes - 1) / passes) {
    case 1:
      return launch_table_product<kBits, 1>(task, multiprocessors, stream);
    case 2:
      return launch_table_product<kBits, 2>(task, multiprocessors, stream);
    case 3:
      return launch_table_product<kBits, 3>(task, multiprocessors, stream);
    case 4:
      return launch_table_product<kBits, 4>(task, multiprocessors, stream);
    case 5:
      return launch_table_product<kBits, 5>(task, multiprocessors, stream);
    case 6:
      return launch_table_product<kBits, 6>(task, multiprocessors, stream);
    default:
      return launch_table_product<kBits, 7>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
