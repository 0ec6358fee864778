// The product kernel of the table codes and the overlapping-pyramid codes for up to 8 rows of
// activations (tokens, or tokens and their residuals) a block; csrc/cuda/table_product_{2,3,4}.cu
// and overlap_product_{4..8}.cu instantiate it. table_wide.cuh has the one for more.
//
// A block owns a run of tiles (16 rows each) and walks over the whole depth: warp w of 16 takes
// chunk (128 columns) 16 i + w of every tile, so its activations are the same for all tiles and
// stay in registers. Four more warps work for them: a thread of the first copies the codes into a
// ring, 16 or 32 chunks at a time, for the chunks of a block are one stretch of memory; the others
// add up the sums of a tile over the warps, in a fixed order, and write them.
//
//   shared memory: | table, partial sums in its gaps if it has any | partial sums if not |
//                  | ring of codes | activations (fused form) | offsets | barriers |
//
// The ring fills while the activations are rotated, and, with programmatic dependent launch, while
// the previous kernel still runs. But not at once: activations that stand behind all codes of the
// ring in the queues of the memory come 1 to 2 us later than before them. So first come as many
// codes as arrive until the previous kernel ends, then the activations, then the other codes.
//
// At one token and 2 bits an H200's memory feeds one chunk (2048 weights) an SM every 31 clocks:
// 124 issue slots, of which a chunk takes some 50 (32 to look its table words up, 4 products, 4 to
// fold), and 20 shared-memory wavefronts.
#pragma once

#include <algorithm>

#include "cuda/activations.cuh"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/ptx.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {

constexpr int kWarps = 16;  // that multiply
constexpr int kMultiplyingThreads = kWarps * 32;
constexpr int kThreads = kMultiplyingThreads + 128;
constexpr int kAddingThreads = 96;
constexpr int kMostSumSlots = 8;

// J: chunks that a warp takes of a tile in a pass over the columns.
template <class Chunk, int J>
struct ProductShape {
  static constexpr int kPair = J % 2 ? 1 : 2;  // chunks a warp and stage
  static constexpr int kGroupBytes = kWarps * Chunk::kBytes;
  static constexpr int kStageBytes = kPair * kGroupBytes;
  static constexpr int kSteps = J / kPair;  // stages of a tile and pass
  // 512 rows of a table leave no gaps.
  static constexpr bool kGaps = Chunk::kHeaderBytes == 1024;
  static constexpr int kSumBytes = kGaps ? kTableGapBytes : 16 * 1024;
  static constexpr int kSumAddress = kGaps ? kTableAddress + 128 : kTableEnd;
  static constexpr int kSumStride = kGaps ? kTableRowBytes : 128;
  static constexpr int kRingAddress = kTableEnd + (kGaps ? 0 : kSumBytes);
  static constexpr int kRingLimit = 128 * 1024 - (kRingAddress - kTableEnd);
  // A multiple of the steps, so that places in the ring are constants of the unrolled loop.
  static constexpr int kStages = std::max(1, kRingLimit / (kStageBytes * kSteps)) * kSteps;
  static constexpr int kActivationsAddress = kRingAddress + kStages * kStageBytes;
  // Filled before the previous kernel ends.
  static constexpr int kEarlyStages = std::clamp(kEarlyBytes / kStageBytes, 1, kStages);
  static constexpr int kBarriers = kEndAddress - 16 * (kStages + kMostSumSlots);
  static constexpr int kOffsetsAddress = kBarriers - 3 * kNarrowRows * 4;

  static __device__ __forceinline__ uint32_t full_barrier(int stage) {
    return kBarriers + 16 * stage;
  }
  static __device__ __forceinline__ uint32_t free_barrier(int stage) {
    return kBarriers + 16 * stage + 8;
  }
  // Of the places of partial sums.
  static __device__ __forceinline__ uint32_t summed_barrier(int slot) {
    return kBarriers + 16 * (kStages + slot);
  }
  static __device__ __forceinline__ uint32_t added_barrier(int slot) {
    return kBarriers + 16 * (kStages + slot) + 8;
  }
};

// Partial sums of a tile and warp: 16 rows of each column. Two columns share 128 bytes, swizzled so
// that the lanes of a warp, which write eight rows of four pairs, meet in no bank.
template <class Shape>
struct SumPlace {
  int columns;  // of the layout: one, or an even number

  __device__ explicit SumPlace(int rows) : columns(rows == 1 ? 1 : (rows + 1) & ~1) {}
  // Of row 0 of column 0 of a warp's first tile; tiles follow each other tile_bytes() apart.
  __device__ __forceinline__ uint32_t of_warp(int warp) const {
    const int unit = warp * columns;
    return Shape::kSumAddress + (unit >> 1) * Shape::kSumStride + (unit & 1) * 64;
  }
  __device__ __forceinline__ int tile_bytes() const {
    return kWarps / 2 * columns * Shape::kSumStride;
  }
  static __device__ __forceinline__ uint32_t of_item(int column, int row) {
    return uint32_t((column >> 1) * Shape::kSumStride +
                    ((((column & 1) * 16 + row) ^ ((column >> 1) << 3)) << 2));
  }
};

// What the launch adds to the task: passes over the columns (a warp takes J chunks a pass), and how
// many tiles' partial sums have a place in shared memory.
struct NarrowPlan {
  WorkSplit tiles;  // of the blocks
  int passes, slot_bits;
  int group;  // tiles that pass over the columns together

  PVQ_HD int slots() const { return 1 << slot_bits; }
};

// Copies the codes of a block's tiles in the order in which its warps take them; one thread.
template <class Chunk, int J>
struct CodeStream {
  using Shape = ProductShape<Chunk, J>;
  const uint8_t* origin;  // of the block's first tile
  int64_t tile_bytes;
  int chunks, num_tiles;
  NarrowPlan plan;
  // What comes next.
  int group = 0, pass = 0, tile = 0, step = 0, stage = 0;
  int filled = 0;  // stages, for the first time

  __device__ __forceinline__ bool done() const { return group >= num_tiles; }
  // Copies into stages that nothing was in yet, until `stages` are filled.
  __device__ __forceinline__ void fill(int stages) {
#pragma unroll 1
    for (; filled < stages && !done(); ++filled) copy_next();
  }
  __device__ __forceinline__ void copy_next() {
    constexpr int kStageChunks = Shape::kPair * kWarps;
    const int first = (pass * Shape::kSteps + step) * kStageChunks;
    const int bytes = max(0, min(kStageChunks, chunks - first)) * Chunk::kBytes;
    const uint32_t barrier = Shape::full_barrier(stage);
    barrier_arrive_expecting(barrier, bytes);
    if (bytes > 0)
      copy_bulk(Shape::kRingAddress + stage * Shape::kStageBytes,
                origin + (group + tile) * tile_bytes + int64_t(first) * Chunk::kBytes, bytes,
                barrier);
    if (++stage == Shape::kStages) stage = 0;
    if (++step < Shape::kSteps) return;
    step = 0;
    if (++tile < min(plan.group, num_tiles - group)) return;
    tile = 0;
    if (++pass < plan.passes) return;
    pass = 0;
    group += plan.group;
  }
};

// Adds the sums of the block's tiles up over the warps and writes them; kAddingThreads of them.
template <class Chunk, int J>
__device__ __forceinline__ void add_sums(const ProductTask& task, const NarrowPlan& plan,
                                         const QuantizedActivations& a, uint8_t* shared,
                                         int first_row, int rows, int first_tile, int num_tiles,
                                         int thread) {
  using Shape = ProductShape<Chunk, J>;
  // A weight is kFactor * stored + kOffset.
  constexpr int kFactor = Chunk::kHalfOdd ? 2 : 1;
  constexpr int kOffset = Chunk::kHalfOdd ? 1 : Chunk::kBiased ? -128 : 0;
  const int slots = task.activations.slots, first_token = first_row / slots;
  const SumPlace<Shape> sums(rows);
  const int lane = thread % 32, in_tile = thread % kTileRows;
  // The sum of the activations of each column; every warp finds it for itself.
  float* offset = reinterpret_cast<float*>(shared + (Shape::kOffsetsAddress - kFirstAddress)) +
                  thread / 32 * kNarrowRows;
  if (kOffset) {
    const int column = lane % kNarrowRows;
    float total = 0;
    if (column < rows) {
#pragma unroll 4
      for (int chunk = lane / kNarrowRows; chunk < task.chunks; chunk += 32 / kNarrowRows)
        total += a.sum(chunk, first_row + column);
    }
    for (int distance = kNarrowRows; distance < 32; distance *= 2)
      total += __shfl_xor_sync(~0u, total, distance);
    if (lane < kNarrowRows) offset[column] = total;
    __syncwarp();
  }
#pragma unroll 1
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int slot = tile & (plan.slots() - 1), parity = tile >> plan.slot_bits & 1;
    const int row = (first_tile + tile) * kTileRows + in_tile;
    const float row_scale = row < task.rows ? row_scale_of(task, row) : 0;
    barrier_wait(Shape::summed_barrier(slot), parity);
#pragma unroll 1
    for (int token = thread / kTileRows; token < rows / slots;
         token += kAddingThreads / kTileRows) {
      float total = 0;
#pragma unroll 1
      for (int i = 0; i < slots; ++i) {
        const int column = token * slots + i;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          sum += *reinterpret_cast<const float*>(
              shared + (slot * sums.tile_bytes() + sums.of_warp(w) +
                        SumPlace<Shape>::of_item(column, in_tile) - kFirstAddress));
        total += kOffset ? kFactor * sum + kOffset * offset[column] : sum;
      }
      if (row < task.rows) write_scaled(task, first_token + token, row, total * row_scale);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(Shape::added_barrier(slot));
  }
}

// Two times eight columns in the order of the steps of a crossed chunk.
__device__ __forceinline__ void cross(uint4& v) {
  v = make_uint4(byte_permute(v.x, v.y, 0x5410), byte_permute(v.x, v.y, 0x7632),
                 byte_permute(v.z, v.w, 0x5410), byte_permute(v.z, v.w, 0x7632));
}

// Which rows of activations a kernel multiplies: one that each block narrows for itself (the fused
// form), one that is narrowed already, or any number of such.
enum class Rows { kOwn, kOne, kMany };

// Of a thread; with rows that are narrowed already there is room for the kernel that does so. What
// the warps that do not multiply give up the others take.
constexpr int kOthersRegisters = 56;
constexpr int launch_registers(Rows rows) {
  return rows == Rows::kOwn ? 96 : registers_beside(kThreads / 32);
}
constexpr int multiplying_registers(Rows rows) {
  return (launch_registers(rows) * kThreads - kOthersRegisters * 128) / kMultiplyingThreads / 8 * 8;
}

template <class Chunk, int J, Rows kRows>
__global__ void __maxnreg__(launch_registers(kRows))
    table_product_kernel(const __grid_constant__ ProductTask task, const NarrowPlan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = ProductShape<Chunk, J>;
  constexpr bool kOne = kRows != Rows::kMany, kFused = kRows == Rows::kOwn;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const Activations& x = task.activations;
  // blockIdx.y takes the next eight rows.
  const int first_row = kOne ? 0 : blockIdx.y * kNarrowRows;
  const int rows = kOne ? 1 : min(kNarrowRows, x.rows() - first_row), chunks = task.chunks;
  const int first_tile = plan.tiles.first_step(blockIdx.x);
  const int num_tiles = plan.tiles.first_step(blockIdx.x + 1) - first_tile;
  constexpr ActivationForm kForm = ActivationForm::kInt8Lanes;
  QuantizedActivations a = task.quantized;
  if (kFused)
    a = QuantizedActivations::at(shared + (Shape::kActivationsAddress - kFirstAddress), kForm,
                                 chunks, rows, kOneGroup);

  if (warp >= kWarps) {
    give_registers_up<kOthersRegisters>();
    const bool copies = thread == kMultiplyingThreads;
    CodeStream<Chunk, J> stream{};
    if (warp == kWarps) {
#pragma unroll 1
      for (int stage = lane; stage < Shape::kStages; stage += 32) {
        barrier_init(Shape::full_barrier(stage), 1);
        barrier_init(Shape::free_barrier(stage), kWarps);
      }
      if (lane < plan.slots()) {
        barrier_init(Shape::summed_barrier(lane), kWarps);
        barrier_init(Shape::added_barrier(lane), kAddingThreads / 32);
      }
      barrier_init_fence();
      __syncwarp();
    }
    if (copies) {
      stream.tile_bytes = int64_t(chunks) * Chunk::kBytes;
      stream.origin = task.weights + Chunk::kHeaderBytes + first_tile * stream.tile_bytes;
      stream.chunks = chunks;
      stream.num_tiles = num_tiles;
      stream.plan = plan;
      stream.fill(Shape::kEarlyStages);  // codes do not depend on the kernel before
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    if (copies && kFused) {
      // What comes with the last activations has come when the others have.
      const auto* last = static_cast<const uint16_t*>(x.x) + x.cols - 2;
      wait_for_value(load_word_now(last));
      stream.fill(Shape::kStages);
    }
    __syncthreads();
    if (warp > kWarps) {
      add_sums<Chunk, J>(task, plan, a, shared, first_row, rows, first_tile, num_tiles,
                         thread - kMultiplyingThreads - 32);
    } else if (copies) {
      // Warps have asked for their activations before they free a stage.
      if (!kFused && !stream.done()) barrier_wait(Shape::free_barrier(0), 0);
      stream.fill(Shape::kStages);
      int parity = 0;
#pragma unroll 1
      while (!stream.done()) {
        barrier_wait(Shape::free_barrier(stream.stage), parity);
        stream.copy_next();
        if (stream.stage == 0) parity ^= 1;
      }
    }
    return;
  }
  take_registers<multiplying_registers(kRows)>();
  fill_table<Chunk, kMultiplyingThreads>(task.weights, shared + (kTableAddress - kFirstAddress));

  // --- the activations
  if constexpr (kFused) {
    const PieceRotation rotation(x.block, x.type);
    quantize_row<kForm>(x, rotation, a, warp, kWarps);
  } else {
    wait_for_previous_kernel();
  }
  __syncthreads();

  // --- the product
  const LaneTable table{uint32_t(lane * 4)};
  const int row = lane / 4, quarter = lane % 4;  // of the fragment
  const SumPlace<Shape> sums(rows);
  const uint32_t my_sums = sums.of_warp(warp) + SumPlace<Shape>::of_item(2 * quarter, row);
  const auto sum_at = [&](uint32_t address) {
    return reinterpret_cast<float*>(shared + (address - kFirstAddress));
  };
  int stage = 0, parity = 0;
  for (int group = 0; group < num_tiles; group += plan.group) {
    const int group_tiles = min(plan.group, num_tiles - group);
    for (int pass = 0; pass < plan.passes; ++pass) {
      uint4 b[J][2];
      float2 scale[J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int place = (pass * J + j) * kWarps + warp;
        const auto load = [&](int chunk, int row) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            b[j][h] = *reinterpret_cast<const uint4*>(a.section(chunk, 0, first_row + row) +
                                                      a.unit(kForm, row, 2 * quarter + h));
            if constexpr (Chunk::kCrossed) cross(b[j][h]);
          }
        };
        if constexpr (kOne) {
          b[j][0] = b[j][1] = make_uint4(0, 0, 0, 0);
          scale[j] = make_float2(0, 0);
          if (place < chunks) {
            if (row == 0) load(place, row);
            if (quarter == 0) scale[j].x = a.scale(place, 0);
          }
        } else {
          // Chunks that are not there count for nothing, rows that are not there are not written.
          // Both are read as the last that is, so that all loads are under way at the same time.
          const int chunk = min(place, chunks - 1);
          const auto scale_of = [&](int column) {
            return place < chunks ? a.scale(chunk, first_row + min(column, rows - 1)) : 0;
          };
          load(chunk, min(row, rows - 1));
          scale[j] = make_float2(scale_of(2 * quarter), scale_of(2 * quarter + 1));
        }
      }

#pragma unroll 1
      for (int tile = group; tile < group + group_tiles; ++tile) {
        float out[4] = {};
#pragma unroll
        for (int step = 0; step < Shape::kSteps; ++step) {
          barrier_wait(Shape::full_barrier(stage + step), parity);
          Chunk chunk[Shape::kPair];
#pragma unroll
          for (int p = 0; p < Shape::kPair; ++p)
            chunk[p].load(Shape::kRingAddress + (stage + step) * Shape::kStageBytes +
                              p * Shape::kGroupBytes + warp * Chunk::kBytes,
                          lane);
          uint32_t loaded = 0;
#pragma unroll
          for (int p = 0; p < Shape::kPair; ++p) loaded ^= chunk[p].loaded();
          const auto free_stage = [&] {
            __syncwarp();
            barrier_arrive_with(Shape::free_barrier(stage + step), loaded, lane);
          };
          if (!kOne) free_stage();
          // Two chains of products run side by side: a product waits some 30 clocks for the one
          // before. They are those of two chunks, or alternate steps of one.
          int sum[2][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sum[0][i] = kMagicBits;
            sum[1][i] = Shape::kPair == 2 ? kMagicBits : 0;
          }
          constexpr int kChain = 2 * Shape::kPair;  // products of a chain
#pragma unroll
          for (int s = 0; s < kChain; ++s)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const int p = Shape::kPair == 2 ? c : 0, k = Shape::kPair == 2 ? s : 2 * s + c;
              const uint4& v = b[Shape::kPair * step + p][k / 2];
              uint32_t w[4];
              decode_step(chunk[p], k, table, w);
              const uint32_t b0 = k % 2 ? v.z : v.x, b1 = k % 2 ? v.w : v.y;
              if constexpr (Chunk::kBiased) {
                mma_uint8(sum[c], w, b0, b1, sum[c]);
              } else {
                mma_int8(sum[c], w, b0, b1, sum[c]);
              }
              // Behind products that needed the codes this waits for nothing; more rows of
              // activations leave no registers to hold them for so long.
              if (kOne && s == 0 && c == 1) free_stage();
            }
          if constexpr (Shape::kPair == 1) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[0][i] += sum[1][i];
          }
#pragma unroll
          for (int p = 0; p < Shape::kPair; ++p)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (kOne && i & 1) continue;
              const float2& s = scale[Shape::kPair * step + p];
              out[i] = __fmaf_rn(__int_as_float(sum[p][i]) - kMagic, i & 1 ? s.y : s.x, out[i]);
            }
        }
        stage += Shape::kSteps;
        if (stage == Shape::kStages) stage = 0, parity ^= 1;
        const int slot = tile & (plan.slots() - 1);
        const uint32_t place = my_sums + slot * sums.tile_bytes();
        if (pass == 0) barrier_wait(Shape::added_barrier(slot), ~(tile >> plan.slot_bits) & 1);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (kOne && i & 1) continue;
          if (2 * quarter + (i & 1) < rows) {
            float* const to = sum_at(place ^ ((i & 1) * 64 + (i >> 1) * 32));
            *to = pass ? *to + out[i] : out[i];
          }
        }
        __syncwarp();
        if (pass == plan.passes - 1 && lane == 0) barrier_arrive(Shape::summed_barrier(slot));
      }
    }
  }
#endif
}

// Launches one instance; the grid is one block an SM, or one a tile where there are fewer.
template <class Chunk, int J>
int launch_table_product(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = ProductShape<Chunk, J>;
  static_assert(Shape::kActivationsAddress +
                    QuantizedActivations::bytes(ActivationForm::kInt8Lanes,
                                                kMostFusedColumns / kChunkCols, 1) <=
                Shape::kOffsetsAddress);
  const int rows = task.activations.rows();
  NarrowPlan plan;
  plan.passes = (task.chunks + J * kWarps - 1) / (J * kWarps);
  const int slot_bytes = kWarps * kTileRows * 4 * std::min((rows + 1) & ~1, kNarrowRows);
  plan.slot_bits = 1;
  while (2 << plan.slot_bits <= kMostSumSlots &&
         slot_bytes << (plan.slot_bits + 1) <= Shape::kSumBytes)
    ++plan.slot_bits;
  plan.group = plan.passes == 1 ? int(tiles_of(task.rows)) : plan.slots() / 2;
  const int groups = (rows + kNarrowRows - 1) / kNarrowRows;
  const int blocks = std::min(int(tiles_of(task.rows)), multiprocessors);
  plan.tiles = WorkSplit(tiles_of(task.rows), blocks);
  const auto kernel = !task.quantized.values ? table_product_kernel<Chunk, J, Rows::kOwn>
                      : rows == 1 ? table_product_kernel<Chunk, J, Rows::kOne>
                                  : table_product_kernel<typename Chunk::ForMany, J, Rows::kMany>;
  return launch_overlapped(kernel, dim3(unsigned(blocks), unsigned(groups)), kThreads, kSharedBytes,
                           stream, task, plan);
}

// Picks the instance for the task's columns. Activations of a pass stay in registers, 8 a chunk,
// which bounds the chunks of a pass.
template <class Chunk>
int launch_table_product(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  constexpr int kMost = 4;
  const int chunks = (task.chunks + kWarps - 1) / kWarps;  // of a warp
  const int passes = (chunks + kMost - 1) / kMost;
  switch ((chunks + passes - 1) / passes) {
    case 1:
      return launch_table_product<Chunk, 1>(task, multiprocessors, stream);
    case 2:
      return launch_table_product<Chunk, 2>(task, multiprocessors, stream);
    case 3:
      return launch_table_product<Chunk, 3>(task, multiprocessors, stream);
    default:
      return launch_table_product<Chunk, 4>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
