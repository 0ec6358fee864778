// Four sequences of a search and the threads that work on them: where their numbers stand, and the
// terms of the costs, which cpu/overlap_search.h defines. The operations are the same in the same
// order as there, so that the results are the same bits.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "core/ieee.h"
#include "cuda/overlap_search_plan.h"
#include "cuda/ptx.cuh"

namespace pvq {
namespace {

using ieee::multiply;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Of a quad's sequences, in shared memory.
struct Ends {
  int start[kQuad], end[kQuad];  // given
  int state[kQuad];              // found
  float cost[kQuad];
};

template <int kDim>
struct Quad {
  __device__ __forceinline__ Quad(const OverlapSearchPlan& plan, bool shared_costs)
      : plan(plan),
        t(plan.task.trellis),
        thread(int(threadIdx.x) & (plan.quad_threads - 1)),
        threads(plan.quad_threads) {
    const int number = int(threadIdx.x) / threads;
    const int64_t quad = int64_t(blockIdx.x) * plan.quads + number;
    own_points = reinterpret_cast<float*>(dynamic_shared());
    other_points = own_points + t.rows() * kDim;
    auto* mine =
        reinterpret_cast<uint8_t*>(other_points + t.rows() * kDim) + number * plan.quad_bytes;
    costs = shared_costs ? reinterpret_cast<Four*>(mine) : plan.costs + quad * state_places(t);
    first = reinterpret_cast<Four*>(mine) + (shared_costs ? state_places(t) : 0);
    second = first + t.rows();
    ends = reinterpret_cast<Ends*>(second + t.rows());
    history = plan.history + quad * plan.sets * t.states();
  }

  // The table, for all quads of the block.
  __device__ void load_table() const {
    for (int i = int(threadIdx.x); i < t.rows() * kDim; i += int(blockDim.x)) {
      const int row = i / kDim, d = i % kDim;
      own_points[i] = __ldg(plan.task.table + (2 * row) * kDim + d);
      other_points[place_of_window(row) * kDim + d] =
          __ldg(plan.task.table + (2 * row + 1) * kDim + d);
    }
  }

  // Bits of states, beside a symbol; and those of windows.
  __device__ __forceinline__ int old_bits() const { return t.state_bits() - t.step_bits; }
  __device__ __forceinline__ int rest_bits() const { return t.window_bits - t.step_bits; }
  // The window a of a state after a group.
  __device__ __forceinline__ int own_window(int state) const {
    return state >> (t.reach() - t.step_bits);
  }

  // Where a state's costs are, and a window's second term and point. Threads next to each other
  // differ in `old` and read the same o: the gap behind each `old`, and `o` on top in the window,
  // give them different banks.
  __device__ __forceinline__ int place_of_state(int state) const {
    return state + (state >> t.step_bits);
  }
  __device__ __forceinline__ int place_of_window(int window) const {
    return (window & (t.symbols() - 1)) << rest_bits() | window >> t.step_bits;
  }

  __device__ __forceinline__ int64_t row_of(int lane) const {
    return min(sequence + lane, plan.task.rows - 1);
  }
  __device__ __forceinline__ int given_state(const int32_t* states, int lane) const {
    const int state = states ? states[row_of(lane)] : kFreeState;
    return state < 0 ? kFreeState : state & (t.states() - 1);
  }
  __device__ __forceinline__ float weight_of(int group, int d) const {
    return plan.task.weight ? __ldg(plan.task.weight + int64_t(group) * kDim + d) : 1.0f;
  }
  __device__ __forceinline__ float target_of(int lane, int group, int d) const {
    return __ldg(plan.task.x + (row_of(lane) * plan.task.groups + group) * kDim + d);
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
  // With a spread: `cost` and what all weights add to it, given what the second point leaves of
  // them. Without `kWeighted` the weights are ones, which change no bit.
  template <bool kWeighted>
  __device__ __forceinline__ float spread_cost(float cost, const float (&weight)[kDim],
                                               const float (&rest)[kDim],
                                               const float (&point)[kDim]) const {
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      const float error = fabsf(rest[d] - point[d]) - plan.task.spread;
      cost = __fmaf_rn(kWeighted ? multiply(weight[d], error) : error, error, cost);
    }
    return cost;
  }
  __device__ __forceinline__ void factors_of(int window, const float (&weight)[kDim],
                                             float (&factor)[kDim]) const {
#pragma unroll
    for (int d = 0; d < kDim; ++d)
      factor[d] = multiply(multiply(2.0f, weight[d]), own_points[window * kDim + d]);
  }

  const OverlapSearchPlan& plan;
  const OverlapTrellis t;
  const int thread, threads;         // of the quad
  int64_t sequence = 0;              // the first one
  float *own_points, *other_points;  // the table's, the latter at place_of_window
  Four* costs;                       // at place_of_state
  Four *first, *second;              // terms of a group, the latter at place_of_window
  Ends* ends;
  Four* history;  // [sets][states]
};

}  // namespace
}  // namespace pvq
