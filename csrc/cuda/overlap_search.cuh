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
// are three. Instead the costs of every `stride`-th group are kept in global memory, and the way
// back repeats the few transitions that lead from those to the state that it comes from: 2^step +
// ... + 2^(stride * step) of them, against the 2^word of each group.
//
// The two numbers, of the 2-bit code (4,096 states, kTile = 16): 2.95 instructions and 0.6 bytes of
// shared memory a transition. For one o a thread has 64 transitions: 48 instructions for the
// products T0 . T1, rounded as on the CPU (two multiplications and an addition for each i), 64
// additions and 64 minima for the four sequences, 4 additions of `second`, 3 loads (40 bytes)
// and 5.5 for addresses and the loop [377 for two o in the machine code for sm_90a, nvcc 13.0].
// Shared memory would give 213 transitions a clock on each SM, the pipe of the minima 64, the issue
// slots 43: so these bind, at 132 SMs and 1.755 GHz 10.1e12 transitions a second. A weight takes
// 32,768, and 1.75 times as many in a ring of 128, which is gone around by 48 groups more to find
// where it closes: 175 million weights a second at the most. What a group costs besides, a seventh
// of the instructions of its loop, the way back and stalls will leave 100 to 120. The 64 KB of
// costs that each quad keeps for three groups are 0.4 TB/s then.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "core/ieee.h"
#include "cuda/launch.cuh"
#include "cuda/overlap_search_plan.h"
#include "cuda/ptx.cuh"

namespace pvq {
namespace {

using ieee::multiply;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the way back knows of a state: the cost of its path, and where that began.
struct Path {
  float cost;
  int from;
};

// Of a quad, in shared memory.
struct Ends {
  int start[kQuad], end[kQuad], state[kQuad];
  float cost[kQuad];
};

// The number, which the compiler takes for another one each time: what depends on it is computed
// where it is needed, not once for all groups to be kept in registers that there are not.
__device__ __forceinline__ int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

template <int kDim, int kTile, bool kSharedCosts>
class QuadSearch {
  struct alignas(kDim % 4 == 0 ? 16 : kDim % 2 == 0 ? 8 : 4) Point {
    float at[kDim];
  };

 public:
  __device__ __forceinline__ QuadSearch(const OverlapSearchPlan& plan)
      : plan_(plan),
        t_(plan.task.trellis),
        thread_(int(threadIdx.x) & (plan.quad_threads - 1)),
        quad_(int(threadIdx.x) / plan.quad_threads) {
    uint8_t* shared = dynamic_shared();
    own_ = reinterpret_cast<float*>(shared);
    other_ = own_ + t_.rows() * kDim;
    uint8_t* mine = reinterpret_cast<uint8_t*>(other_ + t_.rows() * kDim) + quad_ * plan.quad_bytes;
    const int64_t quad = int64_t(blockIdx.x) * plan.quads + quad_;
    costs_ = kSharedCosts ? reinterpret_cast<Four*>(mine) : plan.costs + quad * state_places(t_);
    first_ = reinterpret_cast<Four*>(mine) + (kSharedCosts ? state_places(t_) : 0);
    second_ = first_ + t_.rows();
    ends_ = reinterpret_cast<Ends*>(second_ + t_.rows());
    history_ = plan.history + quad * plan.sets * t_.states();
    const int olds = 1 << old_bits();
    old_ = thread_ & (olds - 1);
    new_ = thread_ / olds * kTile;
  }

  // The table, for all quads of the block.
  __device__ void load_table() const {
    for (int i = int(threadIdx.x); i < t_.rows() * kDim; i += int(blockDim.x)) {
      const int row = i / kDim, d = i % kDim;
      own_[i] = __ldg(plan_.task.table + (2 * row) * kDim + d);
      other_[place_of_window(row) * kDim + d] = __ldg(plan_.task.table + (2 * row + 1) * kDim + d);
    }
  }

  // The quad's four sequences; behind the last one it repeats.
  __device__ void search(int64_t quad) {
    const OverlapSearchTask& task = plan_.task;
    sequence_ = quad * kQuad;
    for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads) {
      ends_->start[lane] = given_state(task.start, lane);
      ends_->end[lane] = given_state(task.end, lane);
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
      find_end();
      back(from, count, until, /*write=*/!seam);
      if (seam) {
        for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads)
          ends_->start[lane] = ends_->end[lane] = ends_->state[lane];
        __syncthreads();
      }
    }
    for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads)
      if (sequence_ + lane < task.rows) {
        task.began[sequence_ + lane] = ends_->state[lane];
        task.cost[sequence_ + lane] = ends_->cost[lane];
      }
    __syncthreads();
  }

 private:
  // Bits of states, beside a symbol; and those of windows.
  __device__ __forceinline__ int old_bits() const { return t_.state_bits() - t_.step_bits; }
  __device__ __forceinline__ int rest_bits() const { return t_.window_bits - t_.step_bits; }
  // The window a of a state after a group.
  __device__ __forceinline__ int own_window(int state) const {
    return state >> (t_.reach() - t_.step_bits);
  }

  // Where a state's costs are, and a window's second term and point. Threads next to each other
  // differ in `old` and read the same o: the gap behind each `old`, and `o` on top in the window,
  // give them different banks.
  __device__ __forceinline__ int place_of_state(int state) const {
    return state + (state >> t_.step_bits);
  }
  __device__ __forceinline__ int place_of_window(int window) const {
    return (window & (t_.symbols() - 1)) << rest_bits() | window >> t_.step_bits;
  }

  __device__ __forceinline__ int64_t row_of(int lane) const {
    return min(sequence_ + lane, plan_.task.rows - 1);
  }
  __device__ __forceinline__ int given_state(const int32_t* states, int lane) const {
    const int state = states ? states[row_of(lane)] : kFreeState;
    return state < 0 ? kFreeState : state & (t_.states() - 1);
  }
  __device__ __forceinline__ float weight_of(int group, int d) const {
    return plan_.task.weight ? __ldg(plan_.task.weight + int64_t(group) * kDim + d) : 1.0f;
  }
  __device__ __forceinline__ float target_of(int lane, int group, int d) const {
    return __ldg(plan_.task.x + (row_of(lane) * plan_.task.groups + group) * kDim + d);
  }

  // The terms of the costs.
  static __device__ __forceinline__ float first_term(float weight, float x, float point) {
    const float error = x - point;
    return multiply(weight, multiply(error, error));
  }
  static __device__ __forceinline__ float second_term(float weight, float x, float point) {
    return multiply(multiply(weight, point), point - multiply(2.0f, x));
  }
  static __device__ __forceinline__ float cross(const float (&factor)[kDim],
                                                const float (&point)[kDim]) {
    float sum = multiply(factor[0], point[0]);
#pragma unroll
    for (int d = 1; d < kDim; ++d) sum += multiply(factor[d], point[d]);
    return sum;
  }
  __device__ __forceinline__ void factors_of(int state, const float (&weight)[kDim],
                                             float (&factor)[kDim]) const {
#pragma unroll
    for (int d = 0; d < kDim; ++d)
      factor[d] = multiply(multiply(2.0f, weight[d]), own_[own_window(state) * kDim + d]);
  }

  // first_ and second_ of a group.
  __device__ __forceinline__ void own_costs(int group) const {
    float x[kQuad][kDim], weight[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      weight[d] = weight_of(group, d);
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) x[lane][d] = target_of(lane, group, d);
    }
#pragma unroll 1
    for (int row = thread_; row < t_.rows(); row += plan_.quad_threads) {
      const int place = place_of_window(row);
      Four one = {}, two = {};
#pragma unroll
      for (int d = 0; d < kDim; ++d) {
        const float own = own_[row * kDim + d], other = other_[place * kDim + d];
#pragma unroll
        for (int lane = 0; lane < kQuad; ++lane) {
          one.at[lane] += first_term(weight[d], x[lane][d], own);
          two.at[lane] += second_term(weight[d], x[lane][d], other);
        }
      }
      first_[row] = one;
      second_[place] = two;
    }
  }

  // Costs behind `count` groups, the first of which is number `from` of the ring. Those of every
  // stride-th group from group `keep` on go to history_.
  __device__ void forward(int from, int count, int keep) {
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int state = (new_ + i) << old_bits() | old_;
      Four begin;
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) {
        const int only = ends_->start[lane];
        begin.at[lane] = only == kFreeState || only == state ? 0.0f : kInfinity;
      }
      costs_[place_of_state(state)] = begin;
      if (keep == 0) history_[state] = begin;
    }
    int group = from;
    for (int time = 1; time <= count; ++time) {
      own_costs(group);
      __syncthreads();  // the costs before this group, and its own, are there
      const bool kept = time % plan_.stride == 0 && time >= keep && time < count;
      step(group, kept ? history_ + int64_t(time / plan_.stride) * t_.states() : nullptr);
      if (++group == int(plan_.task.groups)) group = 0;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void step(int group, Four* kept) const {
    const int old = anew(old_), next = anew(new_) << old_bits() | old;  // of the states after it
    float factor[kTile][kDim], weight[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) weight[d] = weight_of(group, d);
    Four least[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      factors_of(next + (i << old_bits()), weight, factor[i]);
      least[i] = {kInfinity, kInfinity, kInfinity, kInfinity};
    }
    const Four* before = costs_ + place_of_state(old << t_.step_bits);
    const int rest = old & ((1 << rest_bits()) - 1);
    const Four* second = second_ + rest;
    const Point* other = reinterpret_cast<const Point*>(other_) + rest;
    const Four* const end = before + t_.symbols();
#pragma unroll 2
    for (; before != end; ++before) {
      Four path = *before;
      const Four two = *second;
      const Point point = *other;
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) path.at[lane] += two.at[lane];
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        const float between = cross(factor[i], point.at);
#pragma unroll
        for (int lane = 0; lane < kQuad; ++lane)
          least[i].at[lane] = fminf(path.at[lane] + between, least[i].at[lane]);
      }
      second += 1 << rest_bits();
      other += 1 << rest_bits();
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const Four first = first_[own_window(next + (i << old_bits()))];
#pragma unroll
      for (int lane = 0; lane < kQuad; ++lane) least[i].at[lane] += first.at[lane];
    }
    __syncthreads();  // all have read the costs before this group, and its own
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const int state = next + (i << old_bits());
      costs_[place_of_state(state)] = least[i];
      if (kept) kept[state] = least[i];
    }
  }

  // Among states of equal cost the first.
  static __device__ __forceinline__ void improve(Path& best, const Path& other) {
    if (other.cost < best.cost || (other.cost == best.cost && other.from < best.from)) best = other;
  }

  // ends_->state and ends_->cost behind the last group. Afterwards the costs are gone.
  __device__ void find_end() {
    Path best[kQuad];
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) {
      best[lane] = {costs_[place_of_state(thread_)].at[lane], thread_};
#pragma unroll 1
      for (int state = thread_; state < t_.states(); state += plan_.quad_threads)
        improve(best[lane], {costs_[place_of_state(state)].at[lane], state});
    }
    for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads)
      if (ends_->end[lane] != kFreeState)
        ends_->cost[lane] = costs_[place_of_state(ends_->end[lane])].at[lane];
    __syncthreads();
    Path* bests = reinterpret_cast<Path*>(costs_);
#pragma unroll
    for (int lane = 0; lane < kQuad; ++lane) bests[thread_ * kQuad + lane] = best[lane];
    for (int width = plan_.quad_threads / 2; width > 0; width /= 2) {
      __syncthreads();
      for (int i = thread_; thread_ < width && i < width * kQuad; i += width)
        improve(bests[i], bests[i + width * kQuad]);
    }
    __syncthreads();
    for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads) {
      const bool free = ends_->end[lane] == kFreeState;
      ends_->state[lane] = free ? bests[lane].from : ends_->end[lane];
      if (free) ends_->cost[lane] = bests[lane].cost;
    }
    __syncthreads();
  }

  // From ends_->state behind `time` groups, as in `forward`, to the state behind `until`, a
  // multiple of the stride; on the way the symbols, if asked.
  __device__ void back(int from, int time, int until, bool write) {
    while (time > until) {
      const int begin = (time - 1) / plan_.stride * plan_.stride, steps = time - begin;
      if (write) write_symbols(begin, steps);
      const Path* before = nullptr;
      Path* after = reinterpret_cast<Path*>(costs_);
      for (int i = 0; i < steps; ++i) {
        const int later_bits = (steps - 1 - i) * t_.step_bits;
        best_paths((from + begin + i) % int(plan_.task.groups), later_bits,
                   history_ + int64_t(begin / plan_.stride) * t_.states(), before, after);
        __syncthreads();
        before = after;
        after += kQuad << later_bits;
      }
      for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads)
        ends_->state[lane] = ((ends_->state[lane] << (steps * t_.step_bits)) & (t_.states() - 1)) |
                             before[lane].from;
      __syncthreads();
      time = begin;
    }
  }

  // The newest `steps` symbols of the state are those of the groups from `begin` on.
  __device__ void write_symbols(int begin, int steps) const {
    for (int lane = thread_; lane < kQuad; lane += plan_.quad_threads)
      if (sequence_ + lane < plan_.task.rows)
        for (int i = 0; i < steps; ++i) {
          const int bit = t_.state_bits() - (steps - i) * t_.step_bits;
          plan_.task.symbol[(sequence_ + lane) * plan_.task.groups + begin + i] =
              uint8_t(ends_->state[lane] >> bit & (t_.symbols() - 1));
        }
  }

  // One group of the way back: the best paths to the states, behind the group, from which
  // later_bits bits of symbols lead to ends_->state. Of them only the lowest bits are free, and
  // number them; so do more bits of the states before the group, whose costs are `costs` or in
  // `before`.
  __device__ void best_paths(int group, int later_bits, const Four* costs, const Path* before,
                             Path* after) const {
    for (int i = thread_; i < kQuad << later_bits; i += plan_.quad_threads) {
      const int lane = i % kQuad, low = i / kQuad;
      const int state = ((ends_->state[lane] << later_bits) & (t_.states() - 1)) | low;
      const int old = state & ((1 << old_bits()) - 1);
      float x[kDim], weight[kDim], factor[kDim];
#pragma unroll
      for (int d = 0; d < kDim; ++d) {
        x[d] = target_of(lane, group, d);
        weight[d] = weight_of(group, d);
      }
      factors_of(state, weight, factor);
      Path best = {kInfinity, 0};
#pragma unroll 1
      for (int o = 0; o < t_.symbols(); ++o) {
        const int place = place_of_window((old << t_.step_bits | o) & (t_.rows() - 1));
        float second = 0, point[kDim];
#pragma unroll
        for (int d = 0; d < kDim; ++d) {
          point[d] = other_[place * kDim + d];
          second += second_term(weight[d], x[d], point[d]);
        }
        const float cost = before ? before[(low << t_.step_bits | o) * kQuad + lane].cost
                                  : costs[old << t_.step_bits | o].at[lane];
        const float path = cost + second + cross(factor, point);
        if (path < best.cost) best = {path, o};
      }
      const int from = low << t_.step_bits | best.from;
      float first = 0;
#pragma unroll
      for (int d = 0; d < kDim; ++d)
        first += first_term(weight[d], x[d], own_[own_window(state) * kDim + d]);
      after[i] = {best.cost + first, before ? before[from * kQuad + lane].from : from};
    }
  }

  const OverlapSearchPlan& plan_;
  const OverlapTrellis t_;
  const int thread_, quad_;  // of the quad; of the block
  int old_, new_;
  int64_t sequence_ = 0;  // the first one
  float *own_, *other_;   // the table's points, the latter at place_of_window
  Four *costs_, *first_, *second_;
  Ends* ends_;
  Four* history_;
};

template <int kDim, int kTile, bool kSharedCosts>
__global__ void __launch_bounds__(kMostSearchThreads)
    overlap_search_kernel(const __grid_constant__ OverlapSearchPlan plan) {
  wait_for_previous_kernel();
  allow_next_kernel();
  QuadSearch<kDim, kTile, kSharedCosts> search(plan);
  search.load_table();
  __syncthreads();
  const int64_t quads = (plan.task.rows + kQuad - 1) / kQuad;
  // All quads of a block go together, those behind the last one with the last sequence.
  for (int64_t first = int64_t(blockIdx.x) * plan.quads; first < quads;
       first += int64_t(gridDim.x) * plan.quads)
    search.search(first + int(threadIdx.x) / plan.quad_threads);
}

template <int kDim, int kTile, bool kSharedCosts = true>
cudaError_t launch_search(const OverlapSearchPlan& plan, cudaStream_t stream) {
  return launch_overlapped(overlap_search_kernel<kDim, kTile, kSharedCosts>,
                           dim3(unsigned(plan.blocks)), plan.quads * plan.quad_threads,
                           size_t(plan.shared_bytes), stream, plan);
}

}  // namespace
}  // namespace pvq
