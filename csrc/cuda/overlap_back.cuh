// The way back of a search: where the best path ends, and from there the symbols.
//
// The costs of every `stride`-th group are at hand. From the state behind a group back to one of
// those, the transitions that lead to it are searched again: from all the states there from which
// the symbols between lead to it, 2^(step * groups between) of them.
#pragma once

#include "cuda/overlap_quad.cuh"

namespace pvq {
namespace {

// What the way back knows of a state: the cost of its path, and where that began.
struct Path {
  float cost;
  int from;
};

// Among states of equal cost the first.
__device__ __forceinline__ void improve(Path& best, const Path& other) {
  if (other.cost < best.cost || (other.cost == best.cost && other.from < best.from)) best = other;
}

// q.ends->state and cost behind the last group. Afterwards the costs are gone.
template <int kDim>
__device__ void find_end(const Quad<kDim>& q) {
  Path best[kQuad];
#pragma unroll
  for (int lane = 0; lane < kQuad; ++lane) {
    best[lane] = {q.costs[q.place_of_state(q.thread)].at[lane], q.thread};
#pragma unroll 1
    for (int state = q.thread; state < q.t.states(); state += q.threads)
      improve(best[lane], {q.costs[q.place_of_state(state)].at[lane], state});
  }
  for (int lane = q.thread; lane < kQuad; lane += q.threads)
    if (q.ends->end[lane] != kFreeState)
      q.ends->cost[lane] = q.costs[q.place_of_state(q.ends->end[lane])].at[lane];
  __syncthreads();
  Path* bests = reinterpret_cast<Path*>(q.costs);
#pragma unroll
  for (int lane = 0; lane < kQuad; ++lane) bests[q.thread * kQuad + lane] = best[lane];
  for (int width = q.threads / 2; width > 0; width /= 2) {
    __syncthreads();
    for (int i = q.thread; q.thread < width && i < width * kQuad; i += width)
      improve(bests[i], bests[i + width * kQuad]);
  }
  __syncthreads();
  for (int lane = q.thread; lane < kQuad; lane += q.threads) {
    const bool free = q.ends->end[lane] == kFreeState;
    q.ends->state[lane] = free ? bests[lane].from : q.ends->end[lane];
    if (free) q.ends->cost[lane] = bests[lane].cost;
  }
  __syncthreads();
}

// One group of the way back: the best paths to the states, behind the group, from which later_bits
// bits of symbols lead to q.ends->state. Of them only the lowest bits are free, and number them; so
// do more bits of the states before the group, whose costs are `costs` or in `before`.
template <int kDim, bool kSpreads>
struct BackStep {
  const Quad<kDim>& q;
  const int group, later_bits;
  const Four* costs;
  const Path* before;
  Path* after;

  // Path number i is of sequence i % kQuad, to this state.
  __device__ __forceinline__ int state_of(int i) const {
    return ((q.ends->state[i % kQuad] << later_bits) & (q.t.states() - 1)) | i / kQuad;
  }

  // The best transition of path i among the old symbols begin, begin + step ...
  __device__ Path transition(int i, int begin, int step) const {
    const int lane = i % kQuad, low = i / kQuad, state = state_of(i);
    const int old = state & ((1 << q.old_bits()) - 1);
    float x[kDim], weight[kDim], factor[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      x[d] = q.target_of(lane, group, d);
      weight[d] = q.weight_of(group, d);
    }
    const int own = q.own_window(state);
    q.factors_of(own, weight, factor);
    float own_point[kDim];
#pragma unroll
    for (int d = 0; d < kDim; ++d) own_point[d] = q.own_points[own * kDim + d];
    Path best = {kInfinity, begin};
#pragma unroll 4
    for (int o = begin; o < q.t.symbols(); o += step) {
      const int place = q.place_of_window((old << q.t.step_bits | o) & (q.t.rows() - 1));
      float second = 0, point[kDim], rest[kDim];
#pragma unroll
      for (int d = 0; d < kDim; ++d) {
        point[d] = q.other_points[place * kDim + d];
        second += Quad<kDim>::second_term(weight[d], x[d], point[d]);
        rest[d] = x[d] - point[d];
      }
      const float cost = before ? before[(low << q.t.step_bits | o) * kQuad + lane].cost
                                : costs[old << q.t.step_bits | o].at[lane];
      const float path = kSpreads ? q.template spread_cost<true>(cost, weight, rest, own_point)
                                  : cost + second + Quad<kDim>::cross(factor, point);
      if (path < best.cost) best = {path, o};
    }
    return best;
  }

  // Path i behind the group, which comes by `best`.
  __device__ void finish(int i, const Path& best) const {
    const int lane = i % kQuad, from = i / kQuad << q.t.step_bits | best.from;
    const float* own = q.own_points + q.own_window(state_of(i)) * kDim;
    float first = 0;
#pragma unroll
    for (int d = 0; d < kDim; ++d)
      first += Quad<kDim>::first_term(q.weight_of(group, d), q.target_of(lane, group, d), own[d]);
    after[i] = {kSpreads ? best.cost : best.cost + first,
                before ? before[from * kQuad + lane].from : from};
  }

  // `parts`: room for a path of each thread. Threads without a path of their own share one.
  __device__ void run(Path* parts) const {
    const int paths = kQuad << later_bits;
    const int share = min(q.t.symbols(), max(1, q.threads / paths));
    for (int i = q.thread; i < paths * share; i += q.threads) {
      const Path best = transition(i / share, i % share, share);
      if (share == 1)
        finish(i, best);
      else
        parts[i] = best;
    }
    __syncthreads();
    if (share == 1) return;
    for (int i = q.thread; i < paths; i += q.threads) {
      Path best = parts[i * share];
      for (int j = 1; j < share; ++j) improve(best, parts[i * share + j]);
      finish(i, best);
    }
    __syncthreads();
  }
};

// The newest `steps` symbols of the state are those of the groups from `begin` on.
template <int kDim>
__device__ void write_symbols(const Quad<kDim>& q, int begin, int steps) {
  for (int lane = q.thread; lane < kQuad; lane += q.threads)
    if (q.sequence + lane < q.plan.task.rows)
      for (int i = 0; i < steps; ++i) {
        const int bit = q.t.state_bits() - (steps - i) * q.t.step_bits;
        q.plan.task.symbol[(q.sequence + lane) * q.plan.task.groups + begin + i] =
            uint8_t(q.ends->state[lane] >> bit & (q.t.symbols() - 1));
      }
}

// From q.ends->state behind `time` groups, the first of which is number `from` of the ring, to the
// state behind `until`, a multiple of the stride; on the way the symbols, if asked. Paths stand
// where the costs of the last group stood: of all groups between two sets fewer than 1.5 for each
// state, and a quarter for the threads' parts, at 8 bytes.
template <bool kSpreads, int kDim>
__device__ void go_back(const Quad<kDim>& q, int from, int time, int until, bool write) {
  Path* const paths = reinterpret_cast<Path*>(q.costs);
  Path* const parts = paths + q.t.states() + q.t.states() / 2;
  while (time > until) {
    const int begin = (time - 1) / q.plan.stride * q.plan.stride, steps = time - begin;
    if (write) write_symbols(q, begin, steps);
    const Four* costs = q.history + int64_t(begin / q.plan.stride) * q.t.states();
    const Path* before = nullptr;
    Path* after = paths;
    for (int i = 0; i < steps; ++i) {
      const int later_bits = (steps - 1 - i) * q.t.step_bits;
      const int group = (from + begin + i) % int(q.plan.task.groups);
      BackStep<kDim, kSpreads>{q, group, later_bits, costs, before, after}.run(parts);
      before = after;
      after += kQuad << later_bits;
    }
    for (int lane = q.thread; lane < kQuad; lane += q.threads)
      q.ends->state[lane] =
          ((q.ends->state[lane] << (steps * q.t.step_bits)) & (q.t.states() - 1)) |
          before[lane].from;
    __syncthreads();
    time = begin;
  }
}

}  // namespace
}  // namespace pvq
