// The skeleton of the products for many tokens, which table_wide.cuh and plane_wide.cuh fill in.
//
// A warpgroup decodes 64 rows of a chunk (128 columns) into registers, multiplies them with
// kColumns rows of activations in shared memory (wgmma), and folds the sums into float sums, times
// the activations' scales. The warpgroups of a block share the activations if they take other rows,
// or add their sums up at the end if they take other chunks of the same rows (wide_plan.h).
//
// Every block takes an equal run of steps (work_split.h), one block an SM. Sums of a group that is
// cut between blocks meet in global memory: each block writes its own, waits until the others have,
// adds up its share of the group in a fixed order, and writes it. All blocks run at the same time,
// because there are no more than SMs; a kernel that waits for this one cannot take their places,
// because it starts when all of them have.
//
//   shared memory: | table, sums of depths in its gaps | ring of activations | their scales |
//                  | ring of codes | offsets | barriers |
//
// Codes come through a ring that is private to a lane, which reads what it copied. Activations come
// through a ring of bulk copies: warp i mod 16 starts those of a later step in step i, once all
// warps have left the place.
//
// An Operand says how 16 rows x 128 columns are stored and multiplied:
//
//   kHeaderBytes, kChunkBytes   chunks of a tile follow each other behind a header, tiles likewise
//   kForm                       of the activations
//   kTable                      whether it has a table
//   kHalfOdd                    the result is 2 sums + the sum of the activations, not the sums
//   prepare(weights, table, threads)       fills the table
//   copy_async(to_shared, weights, lane)   starts the copy of a chunk, each lane its own part
//   Tile      a chunk in registers: load(from_shared, lane)
//   Sum       float or int, and sum_of(Sum) the float that it means
//   multiply(tile, sections, section_bytes, sums)   starts the products of a chunk
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/ptx.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/wide_plan.h"

namespace pvq {

template <class Operand, int kColumns>
struct WideShape {
  static constexpr WideTile kTile = Operand::tile(kColumns);
  static constexpr int kWarps = 4 * kTile.warpgroups;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSections = sections_of(Operand::kForm);
  static constexpr int kSectionRows = kColumns * kSectionBytes;  // bytes of a section's rows
  static constexpr int kValueBytes = kTile.max_depth * kSections * kSectionRows;  // of a step
  static constexpr int kScaleBytes = kTile.max_depth * kColumns * int(sizeof(ChunkScale));
  static constexpr int kCodeBytes = kWarps * Operand::kChunkBytes;
  static constexpr int kItems = kColumns / 8;  // float4 of sums a thread
  // Sums of a thread that another depth adds to its own.
  static constexpr int kExchangeBytes =
      (kTile.max_depth - 1) * (kTile.warpgroups / kTile.max_depth) * kItems * 128 * 16;
  static_assert(!Operand::kTable || kExchangeBytes <= 32 * 1024);

  static constexpr int kBarriers = kEndAddress - 128;
  static constexpr int kOffsets = kBarriers - kTile.warpgroups * kColumns * 4;
  static constexpr int kExchange = kOffsets - (Operand::kTable ? 0 : kExchangeBytes);
  static constexpr int kValues = Operand::kTable ? kTableEnd : kFirstAddress;  // multiple of 1 KB
  static constexpr int kStages =
      std::min(8, (kExchange - kValues) / (kValueBytes + kScaleBytes + kCodeBytes));
  static_assert(kStages >= 4);
  static constexpr int kScales = kValues + kStages * kValueBytes;
  static constexpr int kCodes = kScales + kStages * kScaleBytes;
  // Steps by which copies of activations are ahead: what they overwrite was read two steps ago.
  static constexpr int kAhead = kStages - 2;

  static __device__ __forceinline__ uint32_t full_barrier(int slot) { return kBarriers + 8 * slot; }
  static __device__ __forceinline__ uint32_t free_barrier(int slot) {
    return kBarriers + 64 + 8 * slot;
  }
  static __device__ __forceinline__ float4* exchange(uint8_t* shared, int item, int thread) {
    const uint32_t offset = uint32_t(item * 128 + thread) * 16;
    const uint32_t address = Operand::kTable ? beside_table(offset) : kExchange + offset;
    return reinterpret_cast<float4*>(shared + (address - kFirstAddress));
  }
};

// Where a group's rows and activations begin.
struct GroupPlace {
  int tile, column;

  __device__ GroupPlace(int group, const WidePlan& plan, int columns)
      : tile(group / plan.column_groups * plan.row_parts * (kWarpgroupRows / kTileRows)),
        column(group % plan.column_groups * columns) {}
};

// Writes four sums of a group: of rows g and g + 8 of a tile, and columns 2 t and 2 t + 1 of eight.
// thread: of the warpgroup that takes the group's rows part_row * 64 ...
__device__ __forceinline__ void write_item(const ProductTask& task, const GroupPlace& place,
                                           int part_row, int item, int thread, float4 v) {
  const int lane = thread % 32;
  const int tile = place.tile + part_row * (kWarpgroupRows / kTileRows) + thread / 32;
  const int column = place.column + item * 8 + lane % 4 * 2;
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

template <class Operand, int kColumns>
__global__ void __launch_bounds__(WideShape<Operand, kColumns>::kThreads, 1)
    wide_kernel(const __grid_constant__ ProductTask task, const __grid_constant__ WidePlan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = WideShape<Operand, kColumns>;
  constexpr int kStages = Shape::kStages, kItems = Shape::kItems;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int in_group = thread % 128;  // of the warpgroup
  const int part_row = warp / 4 % plan.row_parts, depth = warp / 4 / plan.row_parts;
  const WorkSplit& split = plan.split;
  const int64_t begin = split.first_step(blockIdx.x);
  const int run = int(split.first_step(blockIdx.x + 1) - begin);
  const int first_group = int(begin / split.group_steps);
  const int first_step = int(begin % split.group_steps);

  // --- copies of codes
  const int last_tile = (task.rows - 1) / kTileRows;
  const uint32_t code_slot = Shape::kCodes + warp * Operand::kChunkBytes;
  const int warp_tile = part_row * (kWarpgroupRows / kTileRows) + warp % 4;
  int code_left = run, code_step = first_step, code_group = first_group;
  // Tiles beyond the last are not written.
  int code_tile = min(GroupPlace(code_group, plan, kColumns).tile + warp_tile, last_tile);
  const auto copy_codes = [&](int slot) {
    if (code_left-- > 0) {
      const int chunk = code_step * plan.depth + depth;
      if (chunk < task.chunks)
        Operand::copy_async(code_slot + slot * Shape::kCodeBytes,
                            task.weights + Operand::kHeaderBytes +
                                (int64_t(code_tile) * task.chunks + chunk) * Operand::kChunkBytes,
                            lane);
      if (++code_step == split.group_steps) {
        code_step = 0;
        code_tile = min(GroupPlace(++code_group, plan, kColumns).tile + warp_tile, last_tile);
      }
    }
    cp_async_commit();
  };

  // --- copies of activations, by one thread
  const QuantizedActivations& a = task.quantized;
  int ahead_step = first_step, ahead_group = first_group, ahead_slot = 0, ahead_phase = 0;
  int ahead_left = run;
  const auto copy_activations = [&](bool mine) {
    if (ahead_left-- <= 0) return;
    if (mine) {
      const int column = GroupPlace(ahead_group, plan, kColumns).column;
      const int first = ahead_step * plan.depth, chunks = min(plan.depth, task.chunks - first);
      const uint32_t barrier = Shape::full_barrier(ahead_slot);
      barrier_wait(Shape::free_barrier(ahead_slot), ahead_phase ^ 1);
      constexpr int kScaleRows = kColumns * int(sizeof(ChunkScale));
      barrier_arrive_expecting(barrier,
                               chunks * (Shape::kSections * Shape::kSectionRows + kScaleRows));
#pragma unroll 1
      for (int d = 0; d < chunks; ++d) {
#pragma unroll
        for (int b = 0; b < Shape::kSections; ++b) {
          const int section = d * Shape::kSections + b;
          copy_bulk(
              Shape::kValues + ahead_slot * Shape::kValueBytes + section * Shape::kSectionRows,
              a.section(int64_t(first) * Shape::kSections + section, column), Shape::kSectionRows,
              barrier);
        }
        copy_bulk(Shape::kScales + ahead_slot * Shape::kScaleBytes + d * kScaleRows,
                  a.scales + int64_t(first + d) * a.stride + column, kScaleRows, barrier);
      }
    }
    if (++ahead_step == split.group_steps) ahead_step = 0, ++ahead_group;
    if (++ahead_slot == kStages) ahead_slot = 0, ahead_phase ^= 1;
  };

  // Weights do not depend on the kernel before, activations do.
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) copy_codes(stage);
  if (thread == 0) {
#pragma unroll 1
    for (int slot = 0; slot < kStages; ++slot) {
      barrier_init(Shape::full_barrier(slot), 1);
      barrier_init(Shape::free_barrier(slot), Shape::kWarps);
    }
    barrier_init_fence();
  }
  if constexpr (Operand::kTable)
    Operand::prepare(task.weights, shared + (kTableAddress - kFirstAddress), Shape::kThreads);
  __syncthreads();
  wait_for_previous_kernel();
  allow_next_kernel();
#pragma unroll 1
  for (int stage = 0; stage < Shape::kAhead; ++stage) copy_activations(thread == 0);

  // --- partial sums
  float4* const partials = reinterpret_cast<float4*>(task.partials);
  const int group_items = plan.row_parts * kItems * 128;

  // --- the product
  float out[kItems][4] = {};
  float offset = 0;  // of column in_group
  int slot = 0, phase = 0, group = first_group, step = first_step;
  int turn = 0;                // the warp that copies activations
  bool cut = first_step != 0;  // the group's first steps are another block's
#pragma unroll 1
  for (int left = run; left > 0; --left) {
    cp_async_wait<kStages - 2>();
    const bool inside = step * plan.depth + depth < task.chunks;
    typename Operand::Tile tile;
    if (inside) tile.load(code_slot + slot * Shape::kCodeBytes, lane);
    copy_codes(slot ? slot - 1 : kStages - 1);
    copy_activations(warp == turn && lane == 0);
    if (++turn == Shape::kWarps) turn = 0;
    if (inside) {
      barrier_wait(Shape::full_barrier(slot), phase);
      typename Operand::Sum sums[4 * kItems];
      wgmma_fence();
      Operand::multiply(tile,
                        Shape::kValues + slot * Shape::kValueBytes +
                            depth * Shape::kSections * Shape::kSectionRows,
                        Shape::kSectionRows, sums);
      wgmma_commit();
      const uint32_t scales =
          Shape::kScales + slot * Shape::kScaleBytes + depth * kColumns * int(sizeof(ChunkScale));
      if (Operand::kHalfOdd && in_group < kColumns)
        offset += __uint_as_float(load_shared_pair(scales + in_group * sizeof(ChunkScale)).y);
      wgmma_wait();
#pragma unroll
      for (int n = 0; n < kItems; ++n) {
        const uint4 s =
            load_shared_vector(scales + (8 * n + lane % 4 * 2) * int(sizeof(ChunkScale)));
        const float scale[2] = {__uint_as_float(s.x), __uint_as_float(s.z)};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[n][i] = __fmaf_rn(Operand::sum_of(sums[4 * n + i]), scale[i & 1], out[n][i]);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(Shape::free_barrier(slot));
    if (++slot == kStages) slot = 0, phase ^= 1;
    if (++step < split.group_steps && left > 1) continue;

    // --- the end of a group, or of the run
    cut = cut || step < split.group_steps;
    if (Operand::kHalfOdd) {
      float* const offsets = reinterpret_cast<float*>(shared + (Shape::kOffsets - kFirstAddress)) +
                             warp / 4 * kColumns;
      if (in_group < kColumns) offsets[in_group] = offset;
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kItems; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[n][i] = 2 * out[n][i] + offsets[8 * n + lane % 4 * 2 + (i & 1)];
      offset = 0;
      __syncthreads();
    }
    if (plan.depth > 1) {
      if (depth > 0) {
#pragma unroll
        for (int n = 0; n < kItems; ++n)
          *Shape::exchange(shared, ((depth - 1) * plan.row_parts + part_row) * kItems + n,
                           in_group) = make_float4(out[n][0], out[n][1], out[n][2], out[n][3]);
      }
      __syncthreads();
      if (depth == 0) {
#pragma unroll 1
        for (int d = 0; d < plan.depth - 1; ++d)
#pragma unroll
          for (int n = 0; n < kItems; ++n) {
            const float4 v =
                *Shape::exchange(shared, (d * plan.row_parts + part_row) * kItems + n, in_group);
            out[n][0] += v.x, out[n][1] += v.y, out[n][2] += v.z, out[n][3] += v.w;
          }
      }
      __syncthreads();
    }
    if (depth == 0) {
      float4* const mine =
          partials +
          (int64_t(blockIdx.x) * kPartialSlots + split.slot(blockIdx.x, group)) * group_items;
      const GroupPlace place(group, plan, kColumns);
#pragma unroll
      for (int n = 0; n < kItems; ++n) {
        const float4 v = make_float4(out[n][0], out[n][1], out[n][2], out[n][3]);
        if (cut) {
          __stcg(mine + (part_row * kItems + n) * 128 + in_group, v);
        } else {
          write_item(task, place, part_row, n, in_group, v);
        }
      }
      if (cut) __threadfence();
    }
    if (cut) {
      __syncthreads();
      if (thread == 0) atomicAdd(task.counters + group, 1u);
    }
#pragma unroll
    for (int n = 0; n < kItems; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] = 0;
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
    const GroupPlace place(g, plan, kColumns);
    const int share = blockIdx.x - from;
    const int last = int(int64_t(share + 1) * group_items / count);
#pragma unroll 1
    for (int i = int(int64_t(share) * group_items / count) + thread; i < last;
         i += Shape::kThreads) {
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
      for (int block = from; block <= to; ++block) {
        const float4 v = __ldcg(
            partials + (int64_t(block) * kPartialSlots + split.slot(block, g)) * group_items + i);
        total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      }
      write_item(task, place, i / (kItems * 128), i / 128 % kItems, i % 128, total);
    }
  }
#endif
}

template <class Operand, int kColumns>
int launch_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = WideShape<Operand, kColumns>;
  const WidePlan plan =
      WidePlan::of(Shape::kTile, task.rows, task.chunks, task.quantized.stride, multiprocessors);
  const auto kernel = wide_kernel<Operand, kColumns>;
  return launch_overlapped(kernel, dim3(unsigned(plan.split.blocks)), Shape::kThreads, kSharedBytes,
                           stream, task, plan);
}

}  // namespace pvq
