// The skeleton of the products for many tokens, which table_wide.cuh and plane_wide.cuh fill in.
//
// A warpgroup decodes 64 rows of a chunk (128 columns) into registers and multiplies them with
// kColumns rows of activations in shared memory (wgmma). Where a scale of the activations ends it
// folds the sums into float sums, times that scale; with one scale a row that is once, at the end
// of a group, and takes no registers meanwhile. The warpgroups of a block share the activations if
// they take other rows, or add their sums up at the end if they take other chunks of the same rows
// (wide_plan.h). One more warpgroup copies codes and activations into a ring of stages, one a step.
//
// A warpgroup decodes while others multiply, of four some always do. Of two both might do the same
// at the same time, so they take turns at the tensor cores: one after each product, where decoding
// a chunk takes no longer than a product, else after two, and decode what comes next meanwhile.
//
// Blocks take equal runs of steps (work_split.h), at most one block an SM. A group that is cut
// between blocks belongs to the one that has its first steps, the last of that block's run; the
// others, which begin with their part of it, leave their sums in global memory, and the owner adds
// them to its own in their order. All blocks run at the same time, because there are no more than
// SMs; a kernel that waits for this one cannot take their places, because it starts when all of
// them have.
//
//   shared memory: | table, sums of depths in its gaps | stages | sums of depths without gaps |
//                  | offsets | barriers |
//
// An Operand says how 16 rows x 128 columns are stored and multiplied:
//
//   kHeaderBytes, kChunkBytes   chunks of a tile follow each other behind a header, tiles likewise;
//                               kChunkBytes 0 if the task says how many
//   kHalfOdd                    the result is 2 sums + the sum of the activations, not the sums
//   kTurns                      of two warpgroups
//   tile(columns)               of an instance
//   prepare<kThreads>(weights, table)      fills the table, if tiles have one; so many threads
//   Tile      a chunk in registers: load(from_shared, lane), clear(); done() behind wgmma_wait()
//             with tables of their own, prepare and load get the task before all else
//   Sum       float or int, and sum_of(Sum) the float that it means
//   multiply(tile, sections, section_bytes, add, sums)   starts the products of a chunk
#pragma once

#include <algorithm>
#include <climits>

#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"
#include "cuda/ptx.cuh"
#include "cuda/rounded.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/wide_plan.h"

namespace pvq {

// Of two warpgroups at the tensor cores: none, of one product, or of two where a step has two.
enum class Turns { kNone, kOfProducts, kOfPairs };

template <class Operand, int kColumns>
struct WideShape {
  static constexpr int kSections = sections_of(Operand::tile(kColumns).form);
  static constexpr int kSectionRows = kColumns * kSectionBytes;  // bytes of a section's rows
  static constexpr int kItems = kColumns / 8;                    // float4 of sums a thread
  static constexpr int kScaleChunks = scale_cols(Operand::tile(kColumns).form) / kChunkCols;
  static constexpr bool kOneScale = has_one_scale(Operand::tile(kColumns).form);

  static PVQ_HD constexpr WideTile tile() { return Operand::tile(kColumns); }
  static_assert(!tile().gaps || tile().exchange_bytes() <= kTableGapBytes);
  static constexpr int kWarps = 4 * tile().warpgroups;  // that multiply
  static constexpr int kMultiplyingThreads = 32 * kWarps;
  static constexpr int kThreads = kMultiplyingThreads + 128;
  static constexpr bool kTurns = tile().warpgroups == 2 && Operand::kTurns != Turns::kNone;
  // Chunks that a warpgroup has in registers. Where four of them take 64 rows of activations there
  // is room for one.
  static constexpr int kTiles = kColumns == 64 && tile().warpgroups == 4 ? 1 : 2;
  // Where a stage is freed only behind the wait for the next one, there must be two.
  static_assert((!kTurns && kTiles == 2) ||
                2 * tile().stage_bytes(tile().max_depth, 1) <= tile().ring_end() - tile().ring());
  // Whose sums of a group are asked for before any of them is added.
  static constexpr int kBlocksAtOnce = std::clamp(8 / kItems, 1, 4);
  // Of a thread. What the copying warpgroup gives up the others take. Few columns need so few that
  // the kernel which narrows activations has its place beside this one.
  static constexpr int kLaunchRegisters = tile().room_beside()     ? registers_beside(kThreads / 32)
                                          : tile().warpgroups == 4 ? 96
                                                                   : 168;
  static constexpr int kCopyingRegisters = tile().room_beside() ? 24 : 32;
  static constexpr int kRegisters =
      (kLaunchRegisters * kThreads - kCopyingRegisters * 128) / kMultiplyingThreads / 8 * 8;

  static constexpr int kRing = tile().ring();
  static __device__ __forceinline__ uint32_t full_barrier(int slot) {
    return tile().barriers() + 16 * slot;
  }
  static __device__ __forceinline__ uint32_t free_barrier(int slot) {
    return tile().barriers() + 16 * slot + 8;
  }
  static __device__ __forceinline__ float4* exchange(uint8_t* shared, int item, int thread) {
    const uint32_t offset = uint32_t(item * 128 + thread) * 16;
    const uint32_t address = tile().gaps ? beside_table(offset) : tile().ring_end() + offset;
    return reinterpret_cast<float4*>(shared + (address - kFirstAddress));
  }
};

template <class Operand>
__device__ __forceinline__ int chunk_bytes_of(const ProductTask& task) {
  if constexpr (Operand::kChunkBytes > 0)
    return Operand::kChunkBytes;
  else
    return task.chunk_bytes;
}

// A stage of the ring: its place, the bytes before it, and the parity of the phase of its barriers.
struct Stage {
  int slot = 0;
  uint32_t offset = 0;
  int phase = 0;

  __device__ __forceinline__ void advance(const WidePlan& plan) {
    ++slot, offset += plan.stage_bytes;
    if (slot == plan.stages) slot = 0, offset = 0, phase ^= 1;
  }
};

// Where a group's rows and activations begin.
struct GroupPlace {
  int tile, column;

  __device__ GroupPlace(int group, const WidePlan& plan, int columns) {
    const int rows = plan.by_column_groups.quotient(group);
    tile = (rows << plan.row_bits) * (kWarpgroupRows / kTileRows);
    column = (group - rows * plan.column_groups) * columns;
  }
};

// Writes the sums of a thread: of rows g and g + 8 of a tile, and columns 8 n + 2 t and the next.
// Two neighbouring rows of a token leave together: lanes exchange 8 x 8 outputs. Where a value and
// its residual are neighbours, two times four tokens are eight.
template <class T, int kItems>
__device__ __forceinline__ void write_pairs(const ProductTask& task, int tile, int first_column,
                                            const float (&row_scale)[2],
                                            const float (&out)[kItems][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, row = tile * kTileRows + lane % 4 * 2;
  const bool paired = task.activations.slots == 2;
  const int tokens = task.activations.tokens;
#pragma unroll
  for (int n = 0; n < kItems; ++n) {
    if (paired && n % 2) continue;
    const int token =
        paired ? (first_column + n * 8) / 2 + g / 2 + g % 2 * 4 : first_column + n * 8 + g;
    T* const to = static_cast<T*>(task.y) + int64_t(token) * task.rows + row;
    constexpr float kNone[4] = {};
    const float (&next)[4] = n + 1 < kItems ? out[n + 1 < kItems ? n + 1 : 0] : kNone;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float first = out[n][2 * u], second = out[n][2 * u + 1];
      const uint32_t pair =
          rounded_pair<T>((paired ? first + second : first) * row_scale[u],
                          (paired ? next[2 * u] + next[2 * u + 1] : second) * row_scale[u]);
      const uint32_t rows = transposed(pair);
      if (token < tokens && row + 8 * u < task.rows)
        *reinterpret_cast<uint32_t*>(to + 8 * u) = rows;
    }
  }
}

template <int kItems>
__device__ __forceinline__ void write_singly(const ProductTask& task, int tile, int first_column,
                                             const float (&row_scale)[2],
                                             const float (&out)[kItems][4]) {
  const int lane = threadIdx.x % 32, row = tile * kTileRows + lane / 4;
  const bool paired = task.activations.slots == 2;
  const int tokens = task.activations.tokens;
#pragma unroll
  for (int n = 0; n < kItems; ++n) {
    const int column = first_column + n * 8 + lane % 4 * 2;
    const int token = paired ? column / 2 : column;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (row + 8 * u >= task.rows) break;
      const float first = out[n][2 * u], second = out[n][2 * u + 1];
      if (token < tokens)
        write_scaled(task, token, row + 8 * u, (paired ? first + second : first) * row_scale[u]);
      if (!paired && token + 1 < tokens)
        write_scaled(task, token + 1, row + 8 * u, second * row_scale[u]);
    }
  }
}

template <int kItems>
__device__ __forceinline__ void write_sums(const ProductTask& task, int tile, int first_column,
                                           const float (&row_scale)[2],
                                           const float (&out)[kItems][4]) {
  if (task.rows % 2) {  // a pair of rows would not be aligned
    write_singly(task, tile, first_column, row_scale, out);
  } else if (task.activations.type == RealType::kFloat16) {
    write_pairs<__half>(task, tile, first_column, row_scale, out);
  } else {
    write_pairs<__nv_bfloat16>(task, tile, first_column, row_scale, out);
  }
}

template <int kItems>
__device__ __forceinline__ void add_to(float (&sum)[kItems][4], const float4 (&v)[kItems]) {
#pragma unroll
  for (int n = 0; n < kItems; ++n)
    sum[n][0] += v[n].x, sum[n][1] += v[n].y, sum[n][2] += v[n].z, sum[n][3] += v[n].w;
}

// Copies what the steps of a block's run need into the ring: each warp of the copying warpgroup the
// codes of every fourth tile, its first lanes a tile each; lane 31 of the first two the activations
// and their scales.
template <class Operand, int kColumns>
struct WideStream {
  using Shape = WideShape<Operand, kColumns>;
  static constexpr int kPayer = 31;
  const ProductTask& task;
  const WidePlan& plan;
  int warp, lane;  // of the warpgroup
  int left, group, step;
  int slot = 0;
  int column = 0;                      // of the group's activations
  const uint8_t* row_codes = nullptr;  // of the lane's tile

  __device__ __forceinline__ void find_group() {
    const GroupPlace place(group, plan, kColumns);
    column = place.column;
    // Tiles beyond the last are not written.
    const int tile = min(place.tile + 4 * lane + warp, (task.rows - 1) / kTileRows);
    row_codes = task.weights + Operand::kHeaderBytes +
                int64_t(tile) * task.chunks * chunk_bytes_of<Operand>(task);
  }
  __device__ __forceinline__ void next() {
    --left;
    if (++slot == plan.stages) slot = 0;
    if (++step == plan.group_steps) {
      step = 0, ++group;
      find_group();
    }
  }
  __device__ __forceinline__ int chunks() const {  // of the step
    return min(plan.step_chunks(), task.chunks - step * plan.step_chunks());
  }
  // The bytes that a warp announces come with copy_codes and copy_activations.
  __device__ __forceinline__ void announce() const {
    if (lane != kPayer) return;
    const int count = chunks();
    int bytes = plan.row_parts * count * chunk_bytes_of<Operand>(task);
    if (warp == 0) bytes += Shape::tile().value_bytes(count);
    if (warp == 1) bytes += Shape::tile().scale_bytes(count);
    barrier_arrive_expecting(Shape::full_barrier(slot), bytes);
  }
  __device__ __forceinline__ void copy_codes() const {
    if (lane >= plan.row_parts) return;
    const int step_bytes = plan.step_chunks() * chunk_bytes_of<Operand>(task);
    copy_bulk(Shape::kRing + slot * plan.stage_bytes +
                  Shape::tile().value_bytes(plan.step_chunks()) +
                  Shape::tile().scale_bytes(plan.step_chunks()) + (4 * lane + warp) * step_bytes,
              row_codes + int64_t(step) * step_bytes, chunks() * chunk_bytes_of<Operand>(task),
              Shape::full_barrier(slot));
  }
  __device__ __forceinline__ void copy_activations() const {
    if (lane != kPayer || warp > 1) return;
    const int count = chunks(), first = step * plan.step_chunks();
    const uint32_t stage = Shape::kRing + slot * plan.stage_bytes;
    const uint32_t barrier = Shape::full_barrier(slot);
    if (warp == 0) {
      copy_bulk(stage, task.quantized.section(first, 0, column), Shape::tile().value_bytes(count),
                barrier);
    } else if (!Shape::kOneScale) {
      copy_bulk(stage + Shape::tile().value_bytes(plan.step_chunks()),
                &task.quantized.scale(first, column), Shape::tile().scale_bytes(count), barrier);
    }
  }
};

template <class Operand, int kColumns>
__global__ void __maxnreg__((WideShape<Operand, kColumns>::kLaunchRegisters))
    wide_kernel(const __grid_constant__ ProductTask task, const __grid_constant__ WidePlan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = WideShape<Operand, kColumns>;
  constexpr int kItems = Shape::kItems;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  // From a lane that all others follow, so that the compiler knows it to be the same for all.
  const int thread = threadIdx.x, lane = thread % 32, warp = __shfl_sync(~0u, thread / 32, 0);
  const int begin = plan.split.first_step(blockIdx.x);
  const int run = plan.split.first_step(blockIdx.x + 1) - begin;
  const int first_group = plan.by_group_steps.quotient(begin);
  const int first_step = begin - first_group * plan.group_steps;

  if (warp >= Shape::kWarps) {
    give_registers_up<Shape::kCopyingRegisters>();
    if (const int slot = thread - Shape::kMultiplyingThreads; slot < plan.stages) {
      barrier_init(Shape::full_barrier(slot), 4);
      barrier_init(Shape::free_barrier(slot), Shape::kWarps);
      barrier_init_fence();
    }
    WideStream<Operand, kColumns> codes{task,        plan,      warp - Shape::kWarps, lane, run,
                                        first_group, first_step};
    codes.find_group();
    auto activations = codes;
    barrier_of_team(0);  // the barriers stand
    arrive_at_all(Shape::kThreads);
    // Codes do not depend on the kernel before, activations do, which stand in the queues of the
    // memory behind all codes that were asked for.
    int stage = 0;
#pragma unroll 1
    for (; stage < plan.early_stages && codes.left > 0; ++stage, codes.next()) {
      codes.announce();
      codes.copy_codes();
    }
    wait_for_previous_kernel();
    allow_next_kernel();
#pragma unroll 1
    for (int i = 0; i < plan.early_stages && activations.left > 0; ++i, activations.next())
      activations.copy_activations();
#pragma unroll 1
    for (; stage < plan.stages && codes.left > 0; ++stage, codes.next()) {
      codes.announce();
      codes.copy_codes();
      codes.copy_activations();
    }
    int parity = 0;
#pragma unroll 1
    for (; codes.left > 0; codes.next()) {
      barrier_wait(Shape::free_barrier(codes.slot), parity);
      __syncwarp();  // or a lane without anything to copy could miss the phase
      codes.announce();
      codes.copy_codes();
      codes.copy_activations();
      if (codes.slot == plan.stages - 1) parity ^= 1;
    }
    return;
  }
  take_registers<Shape::kRegisters>();
  const int in_group = thread % 128;  // of the warpgroup
  const int part_row = warp / 4 & (plan.row_parts - 1), depth = warp / 4 >> plan.row_bits;
  constexpr int kTableOffset = kTableAddress - kFirstAddress;
  if constexpr (Shape::tile().own_bytes > 0)
    Operand::template prepare<Shape::kMultiplyingThreads>(task, shared + kTableOffset);
  if constexpr (Shape::tile().table)
    Operand::template prepare<Shape::kMultiplyingThreads>(task.weights, shared + kTableOffset);
  barrier_of_all(Shape::kThreads);  // the table is there, the barriers stand
  wait_for_previous_kernel();
  allow_next_kernel();

  // --- partial sums
  float4* const partials = reinterpret_cast<float4*>(task.partials);
  const int group_items = plan.row_parts * kItems * 128;

  // --- the product
  const int step_chunks = plan.step_chunks(), my_chunk = depth * plan.run;
  constexpr int kChunkScales = kColumns * 2 * int(sizeof(float));
  constexpr uint32_t kChunkValues = Shape::kSections * Shape::kSectionRows;
  const uint32_t first_scales = Shape::kRing + Shape::tile().value_bytes(step_chunks);
  // A chunk of the step that has the scales of the warpgroup's, and is there if those are.
  const int scale_chunk = step_chunks > Shape::kScaleChunks ? my_chunk : 0;
  float out[kItems][4] = {};
  float offset = 0;  // of column in_group
  int group = first_group, step = first_step;
  Stage next{};                  // to wait for
  bool owner = first_step == 0;  // of the group
  if (Shape::kTurns && warp >= 4) give_turn(0);
  typename Operand::Sum sums[4 * kItems];
  // Where the warpgroup's first chunk of a step begins in a stage: its codes and its values.
  uint32_t my_codes =
      first_scales + Shape::tile().scale_bytes(step_chunks) +
      ((part_row * 4 + warp % 4) * step_chunks + my_chunk) * chunk_bytes_of<Operand>(task);
  hold(my_codes);
  const uint32_t my_values = Shape::kRing + my_chunk * kChunkValues;
  // Decodes the warpgroup's chunk c of step `at`; zeros, if the matrix has none there.
  const auto decode = [&](auto& tile, uint32_t stage_offset, int at, int c) {
    const uint32_t from = my_codes + stage_offset + c * chunk_bytes_of<Operand>(task);
    const bool there = at * step_chunks + my_chunk + c < task.chunks;
    if (!there) {
      tile.clear();
    } else if constexpr (Shape::tile().own_bytes > 0) {
      tile.load(task, from, lane);
    } else {
      tile.load(from, lane);
    }
    return there;
  };
  // Whether the sums have a product at all.
  bool any = false;
  const auto multiply = [&](const auto& tile, uint32_t stage_offset, int c, bool there, bool add) {
    if (!add) any = there;
    // Zeros are multiplied with what the stage has of another chunk: all of it is finite.
    const uint32_t values = there ? my_values + c * kChunkValues : Shape::kRing;
    wgmma_fence();
    Operand::multiply(tile, values + stage_offset, Shape::kSectionRows, add, sums);
    wgmma_commit();
    if (Operand::kHalfOdd && there && in_group < kColumns)
      offset += __uint_as_float(load_shared_word(
          first_scales + stage_offset + (my_chunk + c) * kChunkScales + (kColumns + in_group) * 4));
  };
  const auto await_stage = [&](const Stage& stage) {
    barrier_wait(Shape::full_barrier(stage.slot), stage.phase);
  };
  const auto free_stage = [&](int slot) {
    if (Operand::kHalfOdd) read_before_copies();  // the sums of the activations
    __syncwarp();
    if (lane == 0) barrier_arrive(Shape::free_barrier(slot));
  };
  const auto fold = [&](uint32_t stage_offset) {
    if (Shape::kOneScale || !any) return;
    const uint32_t scales = first_scales + stage_offset + scale_chunk * kChunkScales;
#pragma unroll
    for (int n = 0; n < kItems; ++n) {
      const uint2 s = load_shared_pair(scales + (8 * n + lane % 4 * 2) * 4);
      const float scale[2] = {__uint_as_float(s.x), __uint_as_float(s.y)};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out[n][i] = __fmaf_rn(Operand::sum_of(sums[4 * n + i]), scale[i & 1], out[n][i]);
    }
    if (!Operand::kHalfOdd) read_before_copies();  // the scales, the last reads of a stage
  };
  // Behind step `at` the scales are others, or the group or the run is over.
  const auto end_of = [&](int at, int left) {
    return min(min((at | (plan.fold_steps - 1)) + 1, plan.group_steps), at + left);
  };
  typename Operand::Tile tile[Shape::kTiles];
  // With turns, products come in pairs: of the two chunks of a step, or of two steps.
  const int pair_steps = 3 - plan.run;
  Stage first{}, second{};  // of the weights in the tiles
  bool first_there = false, second_there = false;
  const auto decode_first = [&](int at) {
    await_stage(next);
    first = second = next;
    next.advance(plan);
    first_there = decode(tile[0], first.offset, at, 0);
  };
  // `end`: of the steps with the same scales.
  const auto decode_second = [&](int at, int end) {
    if (pair_steps == 1) {
      second_there = decode(tile[1], second.offset, at, 1);
    } else if (at + 1 < end) {
      await_stage(next);
      second = next;
      next.advance(plan);
      second_there = decode(tile[1], second.offset, at + 1, 0);
    } else {
      second_there = false;
      tile[1].clear();
    }
  };
  const auto multiply_first = [&](bool add) {
    multiply(tile[0], first.offset, 0, first_there, add);
  };
  const auto multiply_second = [&] {
    multiply(tile[1], second.offset, plan.run - 1, second_there, true);
  };
  const bool by_pairs = Operand::kTurns == Turns::kOfPairs && plan.run == 2;
  if constexpr (Shape::kTurns) {
    if (run > 0) decode_first(step);
    if (run > 0 && by_pairs) decode_second(step, end_of(step, run));
  }
  int left = run;
  bool summed = false;  // whether the sums go on
#pragma unroll 1
  while (left > 0) {
    if constexpr (!Shape::kTurns && Shape::kTiles == 2) {
      await_stage(next);
      multiply(tile[0], next.offset, 0, decode(tile[0], next.offset, step, 0), summed);
      if (plan.run > 1)
        multiply(tile[1], next.offset, 1, decode(tile[1], next.offset, step, 1), true);
      wgmma_wait<0>();
      tile[0].done();
      tile[1].done();
      --left, ++step;
      const bool ends = step == plan.group_steps || left == 0;
      summed = !ends && (step & (plan.fold_steps - 1)) != 0;
      if (!summed) fold(next.offset);
      free_stage(next.slot);
      next.advance(plan);
      if (!ends) continue;
    } else if constexpr (!Shape::kTurns) {
      const int begin = step;
      step = end_of(begin, left);
      left -= step - begin;
      int held = -1;  // the stage that the product under way is the last to read
#pragma unroll 1
      for (int at = begin; at < step; ++at) {
        await_stage(next);
#pragma unroll 1
        for (int c = 0; c < plan.run; ++c) {
          wgmma_wait<0>();
          tile[0].done();
          if (held >= 0) free_stage(held);
          held = -1;
          const bool there = decode(tile[0], next.offset, at, c);
          multiply(tile[0], next.offset, c, there, at > begin || c > 0);
        }
        first = next;
        held = next.slot;
        next.advance(plan);
      }
      wgmma_wait<0>();
      tile[0].done();
      fold(first.offset);
      free_stage(held);
      if (step < plan.group_steps && left > 0) continue;
    } else {
      const int begin = step;
      step = end_of(begin, left);
      left -= step - begin;
      // Of the pair behind that from step `at` on. Its weights take the registers of this one's as
      // they become free.
      const auto is_last = [&](int at) { return at + pair_steps >= step; };
      const auto is_more = [&](int at) { return !is_last(at) || left > 0; };
      const auto behind = [&](int at) {
        return !is_last(at) ? at + pair_steps : step == plan.group_steps ? 0 : step;
      };
      // Who gives the last turn of all finds nobody waiting for it.
      const auto give = [&](bool more) {
        if (more || warp < 4) give_turn(1 - warp / 4);
      };
      if (by_pairs) {
#pragma unroll 1
        for (int at = begin; at < step; at += pair_steps) {
          wait_for_turn(warp / 4);
          multiply_first(at > begin);
          multiply_second();
          give(is_more(at));
          const Stage mine = second;
          wgmma_wait<1>();
          tile[0].done();
          if (is_more(at)) decode_first(behind(at));
          wgmma_wait<0>();
          tile[1].done();
          if (is_last(at)) fold(mine.offset);
          free_stage(mine.slot);
          if (is_more(at)) decode_second(behind(at), step);
        }
      } else {
#pragma unroll 1
        for (int at = begin; at < step; at += pair_steps) {
          wait_for_turn(warp / 4);
          multiply_first(at > begin);
          give(true);
          decode_second(at, step);
          wgmma_wait<0>();
          tile[0].done();
          if (first.slot != second.slot) free_stage(first.slot);
          wait_for_turn(warp / 4);
          multiply_second();
          give(is_more(at));
          const Stage mine = second;
          if (is_more(at)) decode_first(behind(at));
          wgmma_wait<0>();
          tile[1].done();
          if (is_last(at)) fold(mine.offset);
          free_stage(mine.slot);
        }
      }
      if (step < plan.group_steps && left > 0) continue;
    }

    // --- the end of a group, or of the run
    const GroupPlace place(group, plan, kColumns);
    if constexpr (Shape::kOneScale) {
      const float* scales = &task.quantized.scale(0, place.column) + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kItems; ++n) {
        const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * n);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[n][i] = any ? Operand::sum_of(sums[4 * n + i]) * (i & 1 ? scale.y : scale.x) : 0;
      }
    }
    const int row_tile = place.tile + part_row * (kWarpgroupRows / kTileRows) + warp % 4;
    float row_scale[2] = {};  // asked for before they are needed
    if (owner && depth == 0) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int row = row_tile * kTileRows + lane / 4 + 8 * u;
        if (row < task.rows) row_scale[u] = row_scale_of(task, row);
      }
    }
    if (Operand::kHalfOdd) {
      float* const offsets =
          reinterpret_cast<float*>(shared + (Shape::tile().offsets() - kFirstAddress)) +
          warp / 4 * kColumns;
      if (in_group < kColumns) offsets[in_group] = offset;
      barrier_of_first(Shape::kMultiplyingThreads);
#pragma unroll
      for (int n = 0; n < kItems; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[n][i] = 2 * out[n][i] + offsets[8 * n + lane % 4 * 2 + (i & 1)];
      offset = 0;
      barrier_of_first(Shape::kMultiplyingThreads);
    }
#pragma unroll 1
    for (int d = 1; d < plan.depth; ++d) {
      if (depth == d) {
#pragma unroll
        for (int n = 0; n < kItems; ++n)
          *Shape::exchange(shared, part_row * kItems + n, in_group) =
              make_float4(out[n][0], out[n][1], out[n][2], out[n][3]);
      }
      barrier_of_first(Shape::kMultiplyingThreads);
      if (depth == 0) {
        float4 v[kItems];
#pragma unroll
        for (int n = 0; n < kItems; ++n)
          v[n] = *Shape::exchange(shared, part_row * kItems + n, in_group);
        add_to(out, v);
      }
      barrier_of_first(Shape::kMultiplyingThreads);
    }
    // A block leaves sums of one group at most, the one that it begins with.
    const int first_item = part_row * kItems * 128 + in_group;
    if (owner) {
      if (step < plan.group_steps) {
        const int last = plan.split.block_until(blockIdx.x, (group + 1) * plan.group_steps);
        if (thread == 0)
          while (load_acquire(task.counters + group) < last - blockIdx.x) __nanosleep(20);
        barrier_of_first(Shape::kMultiplyingThreads);
        if (depth == 0) {
          const float4* theirs = partials + first_item;
#pragma unroll 1
          for (int block = blockIdx.x + 1; block <= last; block += Shape::kBlocksAtOnce) {
            float4 v[Shape::kBlocksAtOnce][kItems] = {};
#pragma unroll
            for (int b = 0; b < Shape::kBlocksAtOnce; ++b) {
              if (b > 0 && block + b > last) break;
#pragma unroll
              for (int n = 0; n < kItems; ++n)
                v[b][n] = __ldcg(theirs + int64_t(block + b) * group_items + n * 128);
            }
#pragma unroll
            for (int b = 0; b < Shape::kBlocksAtOnce; ++b) add_to(out, v[b]);
          }
        }
      }
      if (depth == 0) write_sums(task, row_tile, place.column, row_scale, out);
    } else {
      if (depth == 0) {
        float4* const mine = partials + int64_t(blockIdx.x) * group_items + first_item;
#pragma unroll
        for (int n = 0; n < kItems; ++n)
          __stcg(mine + n * 128, make_float4(out[n][0], out[n][1], out[n][2], out[n][3]));
      }
      barrier_of_first(Shape::kMultiplyingThreads);
      if (thread == 0) {
        __threadfence();  // for all that wrote before the barrier
        atomicAdd(task.counters + group, 1u);
      }
    }
#pragma unroll
    for (int n = 0; n < kItems; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] = 0;
    owner = true;
    step = 0, ++group;
  }
#endif
}

template <class Operand, int kColumns>
int launch_wide(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = WideShape<Operand, kColumns>;
  WideTile tile = Shape::tile();
  if (Operand::kChunkBytes == 0) tile.chunk_bytes = task.chunk_bytes;
  const WidePlan plan =
      WidePlan::of(tile, task.rows, task.chunks, task.quantized.rows, multiprocessors);
  if (plan.steps() > INT_MAX) return cudaErrorInvalidValue;
  const auto kernel = wide_kernel<Operand, kColumns>;
  return launch_overlapped(kernel, dim3(unsigned(plan.split.blocks)), Shape::kThreads,
                           tile.end() - kFirstAddress, stream, task, plan);
}

}  // namespace pvq
