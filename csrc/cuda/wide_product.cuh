// The skeleton of the products for many tokens, which table_wide.cuh and plane_wide.cuh fill in.
//
// A group is 256 rows (16 tiles) times 8 kTokenTiles rows of activations. A step multiplies one
// chunk of its columns (128, or two chunks side by side): a warp decodes two tiles of the chunk
// into registers, multiplies them with every activation of the chunk, which all warps read from
// shared memory, and folds the sums into float sums, times the activations' scales. So a weight is
// decoded once for 64 tokens, and each activation that is read serves two products.
//
// Every block takes an equal run of steps (work_split.h), one block an SM. Sums of a group that is
// cut between blocks meet in global memory: each block writes its own, waits until the others have,
// adds up its share of the group in a fixed order, and writes it. All blocks run at the same time,
// because there are no more than SMs; a kernel that waits for this one cannot take their places,
// because it starts when all of them have.
//
//   shared memory, by address        0x10000           0x20000
//   | ring of activations and scales | table           | ring of codes |
//
// An Operand says how 16 rows x 128 columns are stored and multiplied:
//
//   kHeaderBytes, kChunkBytes   chunks of a tile follow each other behind a header, tiles likewise
//   kValueBytes                 of the 128 activations of a chunk and row
//   kTable                      whether it has a table; without, the ring of codes begins there
//   kMostDepth                  1 or 2, chunks that warps take side by side
//   kHalfOdd                    the result is 2 sums + the sum of the activations, not the sums
//   prepare(weights, table, threads)       fills the 64 KB of the table
//   copy_async(to_shared, weights, lane)   starts the copy of a chunk, each lane its own part
//   Tile      a chunk in registers: load(from_shared, lane)
//   Columns   eight rows of activations of a chunk in registers: load(from_shared, lane)
//   Sum       float or int, and sum_of(Sum) the float that it means
//   multiply(tiles, columns, sums)         all products, each step of the depth for all of them
//                                          first: a product waits some 30 clocks for the one before
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/product_task.h"
#include "cuda/ptx.cuh"
#include "cuda/work_split.h"

namespace pvq {

constexpr int kWideTiles = 2;  // of a warp
constexpr int kWideWarps = 8;  // that share the rows
static_assert(kWideRows == kWideWarps * kWideTiles * kTileRows);

template <class Operand, int kTokenTiles>
struct WideShape {
  static constexpr int kColumns = 8 * kTokenTiles;  // rows of activations
  // Few tokens leave registers for twice the warps, which then take two chunks at a time.
  static constexpr int kDepth = kTokenTiles <= 2 ? Operand::kMostDepth : 1;
  static constexpr int kRowThreads = kWideWarps * 32;
  static constexpr int kThreads = kRowThreads * kDepth;
  static constexpr int kCodeBytes = kWideWarps * kDepth * kWideTiles * Operand::kChunkBytes;
  static constexpr int kValueBytes = kColumns * Operand::kValueBytes;  // of a chunk
  static constexpr int kScaleBytes = kColumns * int(sizeof(ChunkScale));
  static constexpr int kActivationBytes = kDepth * (kValueBytes + kScaleBytes);
  static constexpr int kCodeRing = Operand::kTable ? kTableEnd : kTableAddress;
  // A thread's sums, four at a time; those of the second chunk of a step meet those of the first
  // below the table.
  static constexpr int kItems = kWideTiles * kTokenTiles;
  static constexpr int kExchange = kTableAddress - (kDepth - 1) * kItems * kRowThreads * 16;
  static constexpr int kStages = std::min(
      {8, (kEndAddress - kCodeRing) / kCodeBytes, (kExchange - kFirstAddress) / kActivationBytes});
  static_assert(kStages >= 3);
};

// Where a group's rows and activations begin.
struct GroupPlace {
  int tile, column;

  __device__ GroupPlace(int group, int column_groups, int columns)
      : tile(group / column_groups * (kWideWarps * kWideTiles)),
        column(group % column_groups * columns) {}
};

// Writes four sums of a group: of rows g and g + 8 of a tile, and columns 2 t and 2 t + 1 of eight.
__device__ __forceinline__ void write_item(const ProductTask& task, const GroupPlace& place,
                                           int token_tiles, int item, int thread, float4 v) {
  const int lane = thread % 32, tile = place.tile + thread / 32 * kWideTiles + item / token_tiles;
  const int column = place.column + item % token_tiles * 8 + lane % 4 * 2;
  const bool paired = task.activations.slots == 2;  // a value and its residual
  const int token = paired ? column / 2 : column, tokens = task.activations.tokens;
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int64_t row = int64_t(tile) * kTileRows + u * 8 + lane / 4;
    if (row >= task.rows) return;
    const float first = u ? v.z : v.x, second = u ? v.w : v.y;
    if (token < tokens) write_output(task, token, row, paired ? first + second : first);
    if (!paired && token + 1 < tokens) write_output(task, token + 1, row, second);
  }
}

template <class Operand, int kTokenTiles>
__global__ void __launch_bounds__(WideShape<Operand, kTokenTiles>::kThreads, 1)
    wide_kernel(const __grid_constant__ ProductTask task, const __grid_constant__ WorkSplit split,
                const int column_groups) {
#if __CUDA_ARCH__ >= 900
  using Shape = WideShape<Operand, kTokenTiles>;
  using Sum = typename Operand::Sum;
  constexpr int kDepth = Shape::kDepth, kColumns = Shape::kColumns;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  const int thread = threadIdx.x, lane = thread % 32;
  const int warp_row = thread / 32 % kWideWarps, warp_depth = thread / Shape::kRowThreads;
  const int64_t begin = split.first_step(blockIdx.x);
  const int run = int(split.first_step(blockIdx.x + 1) - begin);
  const int first_group = int(begin / split.group_steps);
  const int first_step = int(begin % split.group_steps);

  // --- copies of codes
  const int last_tile = (task.rows - 1) / kTileRows;
  const uint32_t code_slot =
      Shape::kCodeRing + (warp_depth * kWideWarps + warp_row) * kWideTiles * Operand::kChunkBytes;
  int code_left = run, code_step = first_step, code_group = first_group;
  int code_tile = GroupPlace(code_group, column_groups, kColumns).tile + warp_row * kWideTiles;
  const auto copy_codes = [&](int slot) {
    if (code_left-- <= 0) return;
    const int chunk = code_step * kDepth + warp_depth;
    if (kDepth == 1 || chunk < task.chunks) {
#pragma unroll
      for (int r = 0; r < kWideTiles; ++r) {  // tiles beyond the last are not written
        const int place = min(code_tile + r, last_tile) * task.chunks + chunk;
        Operand::copy_async(
            code_slot + slot * Shape::kCodeBytes + r * Operand::kChunkBytes,
            task.weights + Operand::kHeaderBytes + int64_t(place) * Operand::kChunkBytes, lane);
      }
    }
    if (++code_step == split.group_steps) {
      code_step = 0;
      code_tile = GroupPlace(++code_group, column_groups, kColumns).tile + warp_row * kWideTiles;
    }
  };

  // --- copies of activations
  const QuantizedActivations& a = task.quantized;
  constexpr uint32_t activation_slot = kFirstAddress;
  int activation_left = run, activation_step = first_step, activation_group = first_group;
  int activation_column = GroupPlace(activation_group, column_groups, kColumns).column;
  const auto copy_activations = [&](int slot) {
    if (activation_left-- <= 0) return;
    constexpr int kValueUnits = Shape::kValueBytes / 16, kScaleUnits = Shape::kScaleBytes / 16;
    constexpr int kUnits = kValueUnits + kScaleUnits;  // of a chunk, 16 bytes each
    const uint32_t to = activation_slot + slot * Shape::kActivationBytes;
    for (int unit = thread; unit < kDepth * kUnits; unit += Shape::kThreads) {
      const int depth = kDepth == 1 ? 0 : unit / kUnits, offset = unit - depth * kUnits;
      const int chunk = activation_step * kDepth + depth;
      if (kDepth > 1 && chunk >= task.chunks) continue;
      const int64_t place = int64_t(chunk) * a.stride + activation_column;
      const uint8_t* from =
          offset < kValueUnits
              ? static_cast<const uint8_t*>(a.values) + place * Operand::kValueBytes + offset * 16
              : reinterpret_cast<const uint8_t*>(a.scales + place) + (offset - kValueUnits) * 16;
      cp_async_16(to + (depth * kUnits + offset) * 16, from);
    }
    if (++activation_step == split.group_steps) {
      activation_step = 0;
      activation_column = GroupPlace(++activation_group, column_groups, kColumns).column;
    }
  };

  // Weights do not depend on the kernel before, activations do. A stage is one group of copies; the
  // codes of all first stages travel with the activations of the first.
#pragma unroll 1
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) copy_codes(stage);
  if constexpr (Operand::kTable)
    Operand::prepare(task.weights, shared + (kTableAddress - kFirstAddress), Shape::kThreads);
  wait_for_previous_kernel();
  allow_next_kernel();
#pragma unroll 1
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
    copy_activations(stage);
    cp_async_commit();
  }

  // --- partial sums
  float4* const partials = reinterpret_cast<float4*>(task.partials);
  constexpr int kGroupItems = Shape::kItems * Shape::kRowThreads;
  // Adds up and writes items first ... last - 1 of a group, whose sums stand in the slots of the
  // blocks from `from` to `to` (or in `whole` of this one).
  const auto write_items = [&](int group, int first, int last, int from, int to, bool whole) {
    const GroupPlace place(group, column_groups, kColumns);
#pragma unroll 1
    for (int i = first + thread; i < last; i += Shape::kThreads) {
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
      for (int block = from; block <= to; ++block) {
        const int slot = whole ? 2 : split.slot(block, group);
        const float4 v = __ldcg(partials + (int64_t(block) * kWideSlots + slot) * kGroupItems + i);
        total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      }
      write_item(task, place, kTokenTiles, i / Shape::kRowThreads, i % Shape::kRowThreads, total);
    }
  };

  // --- the product
  const int quarter = lane % 4;
  constexpr int kPairs = kTokenTiles % 2 ? 1 : 2;  // token tiles that are multiplied together
  float out[kWideTiles][kTokenTiles][4] = {};
  float offset[kTokenTiles][2] = {};
  int slot = 0, group = first_group, step = first_step;
  bool cut = first_step != 0;  // the group's first steps are another block's
#pragma unroll 1
  for (int left = run; left > 0; --left) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();  // the copies of all threads are there, and the slot before this one is free
    {
      const int ahead = slot ? slot - 1 : Shape::kStages - 1;
      copy_codes(ahead);
      copy_activations(ahead);
      cp_async_commit();
    }
    if (kDepth == 1 || step * kDepth + warp_depth < task.chunks) {
      typename Operand::Tile tile[kWideTiles];
#pragma unroll
      for (int r = 0; r < kWideTiles; ++r)
        tile[r].load(code_slot + slot * Shape::kCodeBytes + r * Operand::kChunkBytes, lane);
      const uint32_t values = activation_slot + slot * Shape::kActivationBytes +
                              warp_depth * (Shape::kValueBytes + Shape::kScaleBytes);
      const uint32_t scales = values + Shape::kValueBytes + quarter * (2 * sizeof(ChunkScale));
#pragma unroll
      for (int n = 0; n < kTokenTiles; n += kPairs) {
        typename Operand::Columns columns[kPairs];
        float scale[kPairs][2];
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          columns[p].load(values + (n + p) * (8 * Operand::kValueBytes), lane);
          const uint4 s = load_shared_vector(scales + (n + p) * (8 * sizeof(ChunkScale)));
          scale[p][0] = __uint_as_float(s.x), scale[p][1] = __uint_as_float(s.z);
          if (Operand::kHalfOdd) {
            offset[n + p][0] += __uint_as_float(s.y);
            offset[n + p][1] += __uint_as_float(s.w);
          }
        }
        Sum sums[kWideTiles][kPairs][4];
        Operand::multiply(tile, columns, sums);
#pragma unroll
        for (int r = 0; r < kWideTiles; ++r)
#pragma unroll
          for (int p = 0; p < kPairs; ++p)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              out[r][n + p][i] =
                  __fmaf_rn(Operand::sum_of(sums[r][p][i]), scale[p][i & 1], out[r][n + p][i]);
      }
    }
    if (++slot == Shape::kStages) slot = 0;
    if (++step < split.group_steps && left > 1) continue;

    // --- the end of a group, or of the run
    cut = cut || step < split.group_steps;
    float4* const exchange = reinterpret_cast<float4*>(shared + (Shape::kExchange - kFirstAddress));
    float4* const mine =
        partials + (int64_t(blockIdx.x) * kWideSlots + (cut ? split.slot(blockIdx.x, group) : 2)) *
                       kGroupItems;
    const auto sums_of = [&](int r, int n) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = out[r][n][i];
        if (Operand::kHalfOdd) v[i] = 2 * v[i] + offset[n][i & 1];
      }
      return make_float4(v[0], v[1], v[2], v[3]);
    };
    if (kDepth > 1) {
      if (warp_depth == 1) {
#pragma unroll
        for (int k = 0; k < Shape::kItems; ++k)
          exchange[k * Shape::kRowThreads + thread - Shape::kRowThreads] =
              sums_of(k / kTokenTiles, k % kTokenTiles);
      }
      __syncthreads();
    }
    if (warp_depth == 0) {
#pragma unroll
      for (int k = 0; k < Shape::kItems; ++k) {
        float4 v = sums_of(k / kTokenTiles, k % kTokenTiles);
        if (kDepth > 1) {
          const float4 other = exchange[k * Shape::kRowThreads + thread];
          v.x += other.x, v.y += other.y, v.z += other.z, v.w += other.w;
        }
        __stcg(mine + k * Shape::kRowThreads + thread, v);
      }
      if (cut) __threadfence();
    }
    __syncthreads();
    if (cut) {
      if (thread == 0) atomicAdd(task.counters + group, 1u);
    } else {
      write_items(group, 0, kGroupItems, blockIdx.x, blockIdx.x, true);
    }
#pragma unroll
    for (int r = 0; r < kWideTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[r][n][i] = 0, offset[n][i & 1] = 0;
    cut = false;
    if (step == split.group_steps) step = 0, ++group;
  }

  // --- this block's shares of the groups that it has cut
  const int last_group = int((begin + run - 1) / split.group_steps);
#pragma unroll 1
  for (int g = first_group; g <= last_group; g += max(1, last_group - first_group)) {
    const int from = split.first_block(g), to = split.last_block(g), count = to - from + 1;
    if (count == 1) continue;
    if (thread == 0)
      while (load_acquire(task.counters + g) < unsigned(count)) __nanosleep(20);
    __syncthreads();
    const int share = blockIdx.x - from;
    write_items(g, int(int64_t(share) * kGroupItems / count),
                int(int64_t(share + 1) * kGroupItems / count), from, to, false);
  }
#endif
}

// What a wide product of `rows` rows needs for its partial sums, and how it shares out the work.
template <class Operand, int kTokenTiles>
WidePlan plan_wide(int rows, int chunks, int columns, int multiprocessors) {
  using Shape = WideShape<Operand, kTokenTiles>;
  WidePlan plan;
  plan.column_groups = (columns + Shape::kColumns - 1) / Shape::kColumns;
  const int groups = (rows + kWideRows - 1) / kWideRows * plan.column_groups;
  plan.split.group_steps = (chunks + Shape::kDepth - 1) / Shape::kDepth;
  plan.split.steps = int64_t(groups) * plan.split.group_steps;
  plan.split.blocks = int(std::min<int64_t>(plan.split.steps, multiprocessors));
  return plan;
}

template <class Operand, int kTokenTiles>
int launch_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = WideShape<Operand, kTokenTiles>;
  const WidePlan plan = plan_wide<Operand, kTokenTiles>(task.rows, task.chunks,
                                                        task.activations.rows(), multiprocessors);
  const auto kernel = wide_kernel<Operand, kTokenTiles>;
  return launch_overlapped(kernel, dim3(unsigned(plan.split.blocks)), Shape::kThreads, kSharedBytes,
                           stream, task, plan.split, plan.column_groups);
}

}  // namespace pvq
