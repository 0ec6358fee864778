// Viterbi's algorithm for overlapping-pyramid codes: the kernel. cpu/overlap_search.h defines the
// costs; the operations here are the same in the same order, so that the results are the same bits.
//
// Four sequences, a quad, share what depends on the table alone. A thread of a quad has one `old`,
// the bits that states before and after a group have in common, and kTile of the new symbols: for
// each old symbol o, in turn, it reads the cost of the state (old, o) before the group and lowers
// the costs of its kTile states after it, kept in registers:
//
//   least[i] = min(least[i], before[old, o] + second[o] + T0[i] . T1[o])
//
// The costs of all states stay in shared memory, or in the caches where that is too small. The
// states before a group and after it share the same place: all have been read when the first is
// written.
//
//    new  <- kTile of a thread ->            o: all, one after another
//   +-----+---------------------+           +---------------------+-----+
//   |  h  |         old         |  after    |         old         |  o  |  before
//   +-----+---------------------+           +---------------------+-----+
//
// Nothing is noted down about which o was best: that would take two instructions more where there
// are three. (With a spread no part of a transition's error is that of one state: it takes 14, or
// 18 with weights; 256 states, kTile = 4, 49 million weights a second.) Instead the costs of every
// `stride`-th group are kept in global memory, and the way back repeats the few transitions that
// lead from those to the state that it comes from: 2^step +
// ... + 2^(stride * step) of them, against the 2^word of each group.
//
// The two numbers, of the 2-bit code (4,096 states, kTile = 16): 2.95 instructions and 0.6 bytes of
// shared memory a transition. For one o a thread has 64 transitions: 48 instructions for the
// products T0 . T1, rounded as on the CPU (two multiplications and an addition for each i), 64
// additions and 64 minima for the four sequences, 4 additions of `second`, 3 loads (40 bytes) and
// 5.5 for addresses and the loop [377 for two o in the machine code for sm_90a, nvcc 13.0]. Shared
// memory would give 213 transitions a clock on each SM, the pipe of the minima 64, the issue slots
// 43: so these bind, at 132 SMs and 1.755 GHz 10.1e12 transitions a second. A weight takes 32,768,
// and 1.75 times as many in a ring of 128, which is gone around by 48 groups more to find where it
// closes: 175 million weights a second. What a group costs besides is a quarter of its loop's
// instructions, so 140 million at the most, and with stalls and the way back a prediction of 100.
// The 64 KB of costs that each quad keeps for three groups are 0.4 TB/s then. With kTile = 8
// (3.5 and 4 bits) a transition takes 3.09 instructions: 165 and 80 million, and with kTile = 16 44
// million for 2.5 bits, before those losses.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/overlap_back.cuh"
#include "cuda/overlap_quad.cuh"

namespace pvq {
namespace {

// The number, which the compiler takes for another one each time: what depends on it is computed
// where it is needed, not once for all groups to be kept in registers that there are not.
__device__ __forceinline__ int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

template <int kDim, int kTile, bool kSharedCosts, bool kSpreads>
class QuadSearch {
  struct alignas(kDim % 4 == 0 ? 16 : kDim % 2 == 0 ? 8 : 4) Point {
    float at[kDim];
  };

 public:
  __device__ __forceinline__ QuadSearch(const OverlapSearchPlan& plan) : q_(plan, kSharedCosts) {
    const int olds = 1 << q_.old_bits();
    old_ = q_.thread & (olds - 1);
    new_ = q_.thread / olds * kTile;
  }

  // For all quads of the block.
  __device__ void load_table() const { q_.load_table(); }

  // The quad's four sequences; behind the last one it repeats.
  __device__ void search(int64_t quad) {
    const OverlapSearchTask& task = q_.plan.task;
    q_.sequence = quad * kQuad;
    for (int lane = q_.thread; lane < kQuad; lane += q_.threads) {
      q_.ends->start[lane] = q_.given_state(task.start, lane);
      q_.ends->end[lane] = q_.given_state(task.end, lane);
    }
    __syncthreads();
    const int groups = int(task.groups);
    // A ring is gone through twice, first from a little before its seam to a little behind it: the
    // state at the seam is the one that the best path there passes through.
    for (int pass = task.ring ? 0 : 1; pass < 2; ++pass) {
      const bool seam = pass == 0;
      const int from = seam ? (groups - kOverlapSeam % groups) % groups : 0;
      const int count = seam ? 2 * kOverlapSeam : groups, until = seam ? kOverlapSeam : 0;
      forward(from, count, until);
      find_end(q_);
      go_back<kSpreads>(q_, from, count, until, /*write=*/!seam);
      if (seam) {
        for (int lane = q_.thread; lane < kQuad; lane += q_.threads)
          q_.ends->start[lane] = q_.ends->end[lane] = q_.ends->state[lane];
        __syncthreads();
      }
    }
    for (int lane = q_.thread; lane < kQuad; lane += q_.threads)
      if (q_.sequence + lane < task.rows) {
        task.began[q_.sequence + lane] = q_.ends->state[lane];
        task.cost[q_.sequence + lane] = q_.ends->cost[lane];
      }
    __syncthreads();
  }

 private:
  // q_.first and q_.second of a group.
  __device__ __forceinline__ void own_costs(int group) const {
    float x[kQuad][kDim], weight[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      weight[d] = q_.weight_of(group, d);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) x[lane][d] = q_.target_of(lane, group, d);
    }
#pragma unroll 1
    for (int row = q_.thread; row < q_.t.rows(); row += q_.threads) {
      const int place = q_.place_of_window(row);
      Four one = {}, two = {};
#pragma unroll
      for (int d = 0; d < kDim; ++d) {
        const float own = q_.own_points[row * kDim + d], other = q_.other_points[place * kDim + d];
#pragma unroll
        for (int lane = 0; lane < kQuad; ++lane) {
          one.at[lane] += Quad<kDim>::first_term(weight[d], x[lane][d], own);
          two.at[lane] += Quad<kDim>::second_term(weight[d], x[lane][d], other);
        }
      }
      q_.first[row] = one;
      q_.second[place] = two;
    }
  }

  // Costs behind `count` groups, the first of which is number `from` of the ring. Those of every
  // stride-th group from group `keep` on go to q_.history.
  __device__ void forward(int from, int count, int keep) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int state = (new_ + i) << q_.old_bits() | old_;
      Four begin;
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) {
        const int only = q_.ends->start[lane];
        begin.at[lane] = only == kFreeState || only == state ? 0.0f : kInfinity;
      }
      q_.costs[q_.place_of_state(state)] = begin;
      if (keep == 0) q_.history[state] = begin;
    }
    int group = from;
    for (int time = 1; time <= count; ++time) {
      if constexpr (!kSpreads) own_costs(group);
      __syncthreads();  // the costs before this group, and its own, are there
      const bool kept = time % q_.plan.stride == 0 && time >= keep && time < count;
      step(group, kept ? q_.history + int64_t(time / q_.plan.stride) * q_.t.states() : nullptr);
      if (++group == int(q_.plan.task.groups)) group = 0;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void step(int group, Four* kept) const {
    const int old = anew(old_), next = anew(new_) << q_.old_bits() | old;  // of the states after it
    const int window = q_.own_window(next);                                // the first one's
    Four least[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) least[i] = {kInfinity, kInfinity, kInfinity, kInfinity};
    if constexpr (kSpreads) {
      if (q_.plan.task.weight)
        lower_spread<true>(group, old, window, least);
      else
        lower_spread<false>(group, old, window, least);
    } else {
      lower(group, old, window, least);
    }
    __syncthreads();  // all have read the costs before this group, and its own
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int state = next + (i << q_.old_bits());
      q_.costs[q_.place_of_state(state)] = least[i];
      if (kept) kept[state] = least[i];
    }
  }

  // The costs of the states with windows from `window` on, from all before them.
  __device__ __forceinline__ void lower(int group, int old, int window,
                                        Four (&least)[kTile]) const {
    float factor[kTile][kDim], weight[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) weight[d] = q_.weight_of(group, d);
#pragma unroll
    for (int i = 0; i < kTile; ++i)
      q_.factors_of(window + (i << q_.rest_bits()), weight, factor[i]);
    const Four* before = q_.costs + q_.place_of_state(old << q_.t.step_bits);
    const int rest = old & ((1 << q_.rest_bits()) - 1);
    const Four* second = q_.second + rest;
    const Point* other = reinterpret_cast<const Point*>(q_.other_points) + rest;
    const Four* const end = before + q_.t.symbols();
#pragma unroll 2
    for (; before != end; ++before) {
      Four path = *before;
      const Four two = *second;
      const Point point = *other;
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) path.at[lane] += two.at[lane];
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        const float between = Quad<kDim>::cross(factor[i], point.at);
#pragma unroll
        for (int lane = 0; lane < kQuad; ++lane)
          least[i].at[lane] = fminf(path.at[lane] + between, least[i].at[lane]);
      }
      second += 1 << q_.rest_bits();
      other += 1 << q_.rest_bits();
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const Four first = q_.first[window + (i << q_.rest_bits())];
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) least[i].at[lane] += first.at[lane];
    }
  }

  // The same with a spread, where no part of the costs is that of one state.
  template <bool kWeighted>
  __device__ __forceinline__ void lower_spread(int group, int old, int window,
                                               Four (&least)[kTile]) const {
    float x[kQuad][kDim], own[kTile][kDim], weight[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      weight[d] = q_.weight_of(group, d);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) x[lane][d] = q_.target_of(lane, group, d);
#pragma unroll
      for (int i = 0; i < kTile; ++i)
        own[i][d] = q_.own_points[(window + (i << q_.rest_bits())) * kDim + d];
    }
    const Four* before = q_.costs + q_.place_of_state(old << q_.t.step_bits);
    const int rest = old & ((1 << q_.rest_bits()) - 1);
    const Point* other = reinterpret_cast<const Point*>(q_.other_points) + rest;
    const Four* const end = before + q_.t.symbols();
#pragma unroll 1
    for (; before != end; ++before, other += 1 << q_.rest_bits()) {
      const Four path = *before;
      const Point point = *other;
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) {
        float left[kDim];
#pragma unroll
        for (int d = 0; d < kDim; ++d) left[d] = x[lane][d] - point.at[d];
#pragma unroll
        for (int i = 0; i < kTile; ++i) {
          const float path_here =
              q_.template spread_cost<kWeighted>(path.at[lane], weight, left, own[i]);
          least[i].at[lane] = fminf(path_here, least[i].at[lane]);
        }
      }
    }
  }

  Quad<kDim> q_;
  int old_, new_;
};

template <int kDim, int kTile, bool kSharedCosts, bool kSpreads>
__global__ void __launch_bounds__(kMostSearchThreads)
    overlap_search_kernel(const __grid_constant__ OverlapSearchPlan plan) {
  wait_for_previous_kernel();
  allow_next_kernel();
  QuadSearch<kDim, kTile, kSharedCosts, kSpreads> search(plan);
  search.load_table();
  __syncthreads();
  const int64_t quads = (plan.task.rows + kQuad - 1) / kQuad;
  // All quads of a block go together, those behind the last one with the last sequence.
  for (int64_t first = int64_t(blockIdx.x) * plan.quads; first < quads;
       first += int64_t(gridDim.x) * plan.quads)
    search.search(first + int(threadIdx.x) / plan.quad_threads);
}

template <int kDim, int kTile, bool kSharedCosts = true, bool kSpreads = false>
cudaError_t launch_search(const OverlapSearchPlan& plan, cudaStream_t stream) {
  return launch_overlapped(overlap_search_kernel<kDim, kTile, kSharedCosts, kSpreads>,
                           dim3(unsigned(plan.blocks)), plan.quads * plan.quad_threads,
                           size_t(plan.shared_bytes), stream, plan);
}

}  // namespace
}  // namespace pvq
