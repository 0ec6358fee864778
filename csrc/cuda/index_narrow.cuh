// The products from exact indices for one and two tokens; csrc/cuda/index_narrow_{8,16}.cu
// instantiate them. index_wide.cuh has those for more.
//
// Tensor cores want operands of one type in a fragment, so that a wide product scales and signs
// every weight in float16. Here a lane multiplies the integers of a group as they are with
// activations of 16 bits, two at a time, and scales the sum.
//
// All warps take equal runs of chunks (work_split.h), so that a tile of rows is cut between warps
// and between blocks. A warp leaves its sums of a tile that others have a part of in shared memory;
// the warp that has the tile's first chunk of the block's adds them in order. It leaves the total
// in global memory if the tile began in another block, which waits for it and adds it to its own.
//
//   shared memory: | tables | a barrier | activations | their scales | sums |
//
// Limits at one token, D = 16 and 3.25 bits, a group of each of the 32 lanes: 13 clocks of an SM's
// share of an H200's memory; some 82 instructions, 20 clocks of issue; 27 wavefronts of shared
// memory, of which leaves take 13.6, the region 3.4, what stands by pulses 4, the cell 2, codes and
// activations 3.
#pragma once

#include "cuda/index_decode.cuh"
#include "cuda/index_narrow.h"
#include "cuda/index_product_task.h"
#include "cuda/launch.cuh"
#include "cuda/product_output.cuh"

namespace pvq {

// What the launch adds to the task.
struct IndexNarrowPlan {
  WorkSplit split;  // of the chunks, into runs of all blocks' warps
  Divisor by_chunks;
};

// Activations of a token and its residual as integers of 16 bits, 254 times the one and the other.
__device__ __forceinline__ void copy_activations(const QuantizedActivations& a, int tokens,
                                                 int chunks, uint8_t* shared) {
  using Shape = IndexNarrowShape;
  constexpr ActivationForm kForm = ActivationForm::kInt8Lanes;
  constexpr int kWords = kChunkCols / 4;
  for (int i = threadIdx.x; i < tokens * chunks * kWords; i += Shape::kThreads) {
    const int word = i % kWords, place = i / kWords;
    const int token = place >= chunks, chunk = place - token * chunks;
    uint32_t slots[2];
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      const int row = 2 * token + slot;
      slots[slot] = __ldcg(reinterpret_cast<const uint32_t*>(a.section(chunk, 0, row) +
                                                             a.unit(kForm, row, word / 4)) +
                           word % 4);
    }
    uint32_t value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      value[j] = uint32_t(254 * int8_t(slots[0] >> (8 * j)) + int8_t(slots[1] >> (8 * j)));
    *reinterpret_cast<uint2*>(shared + (Shape::kActivations - kFirstAddress) + 8 * i) = make_uint2(
        byte_permute(value[0], value[1], 0x5410), byte_permute(value[2], value[3], 0x5410));
    if (word == 0)
      *reinterpret_cast<float*>(shared + (Shape::scales(tokens, chunks) - kFirstAddress) +
                                4 * place) = __ldcg(&a.scale(chunk, 2 * token + 1));
  }
}

// The sum of a group's leaves times its activations, two to a word. What is between the signs of
// two leaves turns over all that is behind the first.
template <class Widths>
__device__ __forceinline__ int dot(const IndexGroup<Widths>& group, const uint32_t* x,
                                   uint32_t changes, uint32_t signs, int first_sign) {
  int sum = 0;
#pragma unroll
  for (int l = Widths::kLeaves - 1; l >= 0; --l) {
    sum = __dp2a_lo(int(x[2 * l]), int(group.leaf[l]), sum);
    sum = __dp2a_hi(int(x[2 * l + 1]), int(group.leaf[l]), sum);
    if ((l > 0 ? changes >> (l - 1) : signs) >> first_sign & 1) sum = -sum;
  }
  return sum;
}

template <class Widths, int kTokens>
__global__ void __maxnreg__(IndexNarrowShape::kRegisters)
    index_narrow_kernel(const __grid_constant__ ProductTask task,
                        const __grid_constant__ IndexNarrowPlan plan) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = IndexNarrowShape;
  constexpr int kSets = 16 / Widths::kDim;
  uint8_t* const shared = dynamic_shared();
  check_first_address(shared);
  const IndexForm& form = task.index;
  const int chunks = task.chunks;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, t = lane % 4;
  if (thread == 0) {
    barrier_init(Shape::kBarrier, 1);
    barrier_init_fence();
    barrier_arrive_expecting(Shape::kBarrier, form.table_bytes);
    copy_bulk(kTableAddress, form.tables, form.table_bytes, Shape::kBarrier);
  }
  const int run_begin = plan.split.first_step(int(blockIdx.x) * Shape::kWarps + warp);
  const int run_end = plan.split.first_step(int(blockIdx.x) * Shape::kWarps + warp + 1);
  IndexSet<Widths> next[kSets];
  const int set_bytes = IndexSet<Widths>::size(form);
  const uint8_t* codes = task.weights + int64_t(run_begin) * kSets * set_bytes;  // of the next
  const auto load_next = [&](bool there) {
#pragma unroll
    for (int s = 0; s < kSets && there; ++s)
      next[s].load(form, GlobalBytes{codes + s * set_bytes}, lane);
    codes += kSets * set_bytes;
  };
  load_next(run_begin < run_end);  // codes do not depend on the kernel before
  wait_for_previous_kernel();
  allow_next_kernel();
  copy_activations(task.quantized, kTokens, chunks, shared);
  __syncthreads();
  barrier_wait(Shape::kBarrier, 0);

  float* const sums =
      reinterpret_cast<float*>(shared + (Shape::sums(kTokens, chunks) - kFirstAddress));
  // Where a warp leaves its sums of its first tile and of its last, if that is another.
  const auto sums_of = [&](int warp, int last) {
    return sums + (2 * warp + last) * (2 * kTileRows);
  };
  const int first_tile = plan.by_chunks.quotient(run_begin);
  int tile = first_tile, column = run_begin - tile * chunks;
  float out[kTokens][2] = {};
#pragma unroll 1
  for (int place = run_begin; place < run_end; ++place) {
    IndexNumbers numbers[kSets];
#pragma unroll
    for (int s = 0; s < kSets; ++s) numbers[s] = next[s].numbers(form);
    load_next(place + 1 < run_end);
    float part[kTokens][2] = {};
#pragma unroll
    for (int s = 0; s < kSets; ++s) {
      IndexGroup<Widths> group[4];
      decode_groups(form, numbers[s], group);
      const uint32_t signs = numbers[s].signs, changes = signs ^ signs >> 1;
      // Columns 64 b + 16 t ... + 15 of the chunk.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int b = kSets == 1 ? half : s, h = kSets == 1 ? 0 : half;
        constexpr int kWords = Widths::kDim / 2;
        uint32_t x[kTokens][kWords];
#pragma unroll
        for (int token = 0; token < kTokens; ++token)
#pragma unroll
          for (int i = 0; i < kWords; i += 4) {
            const uint4 v =
                load_shared_vector(Shape::kActivations + token * Shape::token_bytes(chunks) +
                                   column * 256 + b * 128 + t * 32 + h * 16 + i * 4);
            x[token][i] = v.x, x[token][i + 1] = v.y, x[token][i + 2] = v.z, x[token][i + 3] = v.w;
          }
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int i = kSets == 1 ? 2 * b + u : 2 * u + h;
          const float scale = group[i].scale(form);
#pragma unroll
          for (int token = 0; token < kTokens; ++token)
            part[token][u] = __fmaf_rn(
                static_cast<float>(dot(group[i], x[token], changes, signs, Widths::kLeaves * i)),
                scale, part[token][u]);
        }
      }
    }
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const float scale = __uint_as_float(
          load_shared_word(Shape::scales(kTokens, chunks) + (token * chunks + column) * 4));
#pragma unroll
      for (int u = 0; u < 2; ++u) out[token][u] = __fmaf_rn(part[token][u], scale, out[token][u]);
    }
    if (++column < chunks && place + 1 < run_end) continue;

    // --- the end of a tile, or of the run
    float total = 0;  // of row 8 (t % 2) + lane / 4 and token t / 2
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float sum = out[token][u];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (t == 2 * token + u) total = sum;
        out[token][u] = 0;
      }
    const int token = t / 2, in_tile = 8 * (t % 2) + lane / 4;
    const bool whole = column == chunks && place + 1 - chunks >= run_begin;
    if (!whole) {
      sums_of(warp, tile > first_tile)[token * kTileRows + in_tile] = total;
    } else if (token < kTokens) {
      const int row = tile * kTileRows + in_tile;
      if (row < task.rows) write_scaled(task, token, row, total * row_scale_of(task, row));
    }
    if (column == chunks) column = 0, ++tile;
  }
  __syncthreads();

  // --- tiles that are cut: lane 16 token + row
  const int block_begin = plan.split.first_step(int(blockIdx.x) * Shape::kWarps);
  const int block_end = plan.split.first_step((int(blockIdx.x) + 1) * Shape::kWarps);
  const auto finish = [&](int tile, int last) {
    const int begin = tile * chunks, end = begin + chunks;
    float total = sums_of(warp, last)[lane];
    for (int other = warp + 1; other < Shape::kWarps; ++other) {
      const int theirs = plan.split.first_step(int(blockIdx.x) * Shape::kWarps + other);
      if (theirs >= min(end, block_end)) break;
      total += sums_of(other, 0)[lane];
    }
    if (begin < block_begin) {
      __stcg(task.partials + (int(blockIdx.x) * 32 + lane), total);
      __threadfence();
      __syncwarp();
      if (lane == 0) atomicAdd(task.counters + tile, 1u);
      return;
    }
    if (end > block_end) {
      const int until = plan.split.block_until(int(blockIdx.x) * Shape::kWarps, end) /
                        Shape::kWarps;  // the block that has the tile's last chunk
      while (load_acquire(task.counters + tile) < unsigned(until - int(blockIdx.x)))
        __nanosleep(20);
      for (int block = int(blockIdx.x) + 1; block <= until; ++block)
        total += __ldcg(task.partials + (block * 32 + lane));
    }
    const int token = lane / kTileRows, row = tile * kTileRows + lane % kTileRows;
    if (token < kTokens && row < task.rows)
      write_scaled(task, token, row, total * row_scale_of(task, row));
  };
  if (run_begin == run_end) return;
  const int last_tile = plan.by_chunks.quotient(run_end - 1);
  const bool is_cut[2] = {first_tile * chunks < run_begin || (first_tile + 1) * chunks > run_end,
                          last_tile > first_tile && (last_tile + 1) * chunks > run_end};
  // The first tile is the business of the warp before, if that has some of it.
  if (is_cut[0] && (run_begin == block_begin || first_tile * chunks >= run_begin))
    finish(first_tile, 0);
  if (is_cut[1]) finish(last_tile, 1);
#endif
}

template <int kDim>
int launch_index_narrow(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  using Shape = IndexNarrowShape;
  const int tokens = task.activations.tokens;
  IndexNarrowPlan plan;
  plan.split = index_narrow_split(task.rows, task.chunks, multiprocessors);
  plan.by_chunks = Divisor(task.chunks);
  return with_index_widths<kDim>(task.index, [&](auto widths) {
    using Widths = decltype(widths);
    const auto kernel =
        tokens == 1 ? index_narrow_kernel<Widths, 1> : index_narrow_kernel<Widths, 2>;
    return launch_overlapped(kernel, dim3(unsigned(plan.split.blocks / Shape::kWarps)),
                             Shape::kThreads, Shape::end(tokens, task.chunks) - kFirstAddress,
                             stream, task, plan);
  });
}

}  // namespace pvq
