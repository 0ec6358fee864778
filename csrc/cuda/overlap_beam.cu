// Beam search of overlapping-pyramid codes: a block for each sequence, its paths and candidates in
// global memory, which the caches hold.
//
// What is kept of a list stays in order: each thread takes a run of it, the runs' counts are added
// up, and each writes behind those before it. The candidates to keep are those up to a key, which
// is found digit by digit from histograms.
#include "cuda/overlap_beam.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "core/overlap_beam.h"
#include "cuda/launch.cuh"
#include "cuda/product_task.h"
#include "cuda/ptx.cuh"

namespace pvq {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfSM = 2;  // by their registers
constexpr int kRuns = 16, kRunThreads = kThreads / kRuns;
constexpr int kDigits = 4, kDigitBits = 32 / kDigits;  // of a key
constexpr int kAlignment = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A block's arrays in the workspace.
struct BeamArrays {
  int* state[2];
  float* cost[2];
  int* first;        // of each `old`: its first path
  float* residual;   // [dim][beam]
  float* candidate;  // [symbols * beam]
  uint32_t* links;   // [groups][beam]
};

struct BeamPlan {
  OverlapSearchTask task;
  int beam, blocks;
  int64_t block_bytes;
  uint8_t* workspace;

  // Sets the arrays from a block's bytes on; returns the bytes that they take.
  PVQ_HD int64_t lay_out(uint8_t* bytes, BeamArrays* arrays) const {
    int64_t used = 0;
    const auto take = [&](int64_t words) {
      uint8_t* at = bytes + used;
      used += (4 * words + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    const int64_t longest =
        task.ring && task.groups < 2 * kOverlapSeam ? 2 * kOverlapSeam : task.groups;
    for (int i = 0; i < 2; ++i) {
      arrays->state[i] = reinterpret_cast<int*>(take(beam));
      arrays->cost[i] = reinterpret_cast<float*>(take(beam));
    }
    arrays->first = reinterpret_cast<int*>(take(beam + 1));
    arrays->residual = reinterpret_cast<float*>(take(int64_t(beam) * task.trellis.dim));
    arrays->candidate = reinterpret_cast<float*>(take(int64_t(beam) * task.trellis.symbols()));
    arrays->links = reinterpret_cast<uint32_t*>(take(longest * beam));
    return used;
  }
};

struct BeamShared {
  int64_t count[kThreads];  // two counts, one in each half
  int64_t run[kRuns];       // sums of runs of them
  unsigned histogram[kDigits][1 << kDigitBits];
  int64_t wanted;
  uint32_t key;
  int state, path;  // found
  float cost;
};

// The runs of a list that threads take.
struct Run {
  int64_t begin, end;
  __device__ explicit Run(int64_t length) {
    const int64_t each = (length + kThreads - 1) / kThreads;
    begin = min(length, each * int(threadIdx.x));
    end = min(length, begin + each);
  }
};

class BeamSearch {
 public:
  __device__ BeamSearch(const BeamPlan& plan, BeamShared* shared)
      : plan_(plan), trellis_{plan.task.trellis, plan.task.table}, shared_(shared) {
    plan.lay_out(plan.workspace + int64_t(blockIdx.x) * plan.block_bytes, &arrays_);
  }

  __device__ void search(int64_t row) {
    const OverlapSearchTask& task = plan_.task;
    x_ = task.x + row * task.groups * task.trellis.dim;
    int start = given_state(task.start, row), end = given_state(task.end, row);
    const int groups = int(task.groups);
    if (task.ring) {
      const int middle = kOverlapSeam;
      stretch((groups - kOverlapSeam % groups) % groups, 2 * kOverlapSeam, kFreeState, kFreeState);
      start = end = back(2 * kOverlapSeam, middle, kFreeState, nullptr);
    }
    stretch(0, groups, start, end);
    start = back(groups, 0, start, task.symbol + row * task.groups);
    if (threadIdx.x == 0) {
      task.began[row] = start;
      task.cost[row] = shared_->cost;
    }
    __syncthreads();
  }

 private:
  __device__ int given_state(const int32_t* states, int64_t row) const {
    const int state = states ? states[row] : kFreeState;
    return state < 0 ? kFreeState : state & (trellis_.trellis.states() - 1);
  }
  // The sum of the counts of the threads before this one; `all`: of all. Between two calls a
  // barrier.
  __device__ int64_t counts_before(int64_t count, int64_t* all) {
    const int thread = int(threadIdx.x);
    shared_->count[thread] = count;
    __syncthreads();
    if (thread < kRuns) {
      int64_t sum = 0;
      for (int i = thread * kRunThreads; i < (thread + 1) * kRunThreads; ++i) {
        const int64_t own = shared_->count[i];
        shared_->count[i] = sum;
        sum += own;
      }
      shared_->run[thread] = sum;
    }
    __syncthreads();
    int64_t before = shared_->count[thread];
    *all = 0;
    for (int i = 0; i < kRuns; ++i) {
      if (i < thread / kRunThreads) before += shared_->run[i];
      *all += shared_->run[i];
    }
    return before;
  }

  // The paths behind `count` groups, the first of which is number `from` of the ring, and the one
  // of them that is the end.
  __device__ void stretch(int from, int count, int start, int end) {
    now_ = 0;
    paths_ = start == kFreeState ? plan_.beam : 1;
    for (int p = int(threadIdx.x); p < paths_; p += kThreads) {
      arrays_.state[0][p] = start == kFreeState ? trellis_.free_state(p, paths_) : start;
      arrays_.cost[0][p] = 0;
    }
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const int left = min(count - 1 - i, trellis_.trellis.state_bits());
      step((from + i) % int(plan_.task.groups), trellis_.symbols(left, end),
           arrays_.links + int64_t(i) * plan_.beam);
    }
    find_end(end);
  }

  __device__ void step(int group, SymbolRange symbols, uint32_t* links) {
    const int dim = trellis_.trellis.dim;
    const float* x = x_ + int64_t(group) * dim;
    const float* weight = plan_.task.weight ? plan_.task.weight + int64_t(group) * dim : nullptr;
    const int* state = arrays_.state[now_];
    const float* cost = arrays_.cost[now_];
    for (int i = int(threadIdx.x); i < paths_ * dim; i += kThreads) {
      const int d = i / paths_, p = i % paths_;
      arrays_.residual[d * plan_.beam + p] = trellis_.residual(x[d], state[p], d);
    }
    const int olds = find_olds(state);
    const int64_t candidates = int64_t(olds) * symbols.count;
    for (int64_t c = threadIdx.x; c < candidates; c += kThreads) {
      int before;
      arrays_.candidate[c] = least(c, olds, symbols, weight, cost, state, &before);
    }
    __syncthreads();
    find_largest(candidates);
    keep(candidates, olds, symbols, weight, links);
  }

  // Where each `old` begins among the paths; returns how many there are.
  __device__ int find_olds(const int* state) {
    const Run run(paths_);
    const auto begins = [&](int64_t p) {
      return p == 0 || trellis_.old_of(state[p]) != trellis_.old_of(state[p - 1]);
    };
    int count = 0;
    for (int64_t p = run.begin; p < run.end; ++p) count += begins(p);
    int64_t olds = 0, place = counts_before(count, &olds);
    for (int64_t p = run.begin; p < run.end; ++p)
      if (begins(p)) arrays_.first[place++] = int(p);
    if (threadIdx.x == 0) arrays_.first[olds] = paths_;
    __syncthreads();
    return int(olds);
  }

  // The cost of a candidate, and the path that it comes from.
  __device__ float least(int64_t candidate, int olds, SymbolRange symbols, const float* weight,
                         const float* cost, const int* state, int* before) const {
    const int k = int(candidate % olds), symbol = symbols.begin + int(candidate / olds);
    const int first = arrays_.first[k], end = arrays_.first[k + 1];
    const float* own = trellis_.own_point(trellis_.old_of(state[first]), symbol);
    float best = kInfinity;
    *before = first;
    for (int p = first; p < end; ++p) {
      const float path = cost[p] + trellis_.distance(arrays_.residual + p, plan_.beam, weight, own);
      if (path < best) best = path, *before = p;
    }
    return best;
  }

  // shared_->key: the largest key of a candidate that is kept; shared_->wanted: how many of it.
  __device__ void find_largest(int64_t candidates) {
    const bool all = candidates <= plan_.beam;
    if (threadIdx.x == 0) {
      shared_->key = all ? ~0u : 0;
      shared_->wanted = all ? candidates : plan_.beam;
    }
    for (int i = int(threadIdx.x); i < kDigits << kDigitBits; i += kThreads)
      shared_->histogram[i >> kDigitBits][i & ((1 << kDigitBits) - 1)] = 0;
    __syncthreads();
    if (all) return;
    for (int i = 0; i < kDigits; ++i) {
      const int shift = 32 - (i + 1) * kDigitBits;
      unsigned* histogram = shared_->histogram[i];
      for (int64_t c = threadIdx.x; c < candidates; c += kThreads) {
        const uint32_t key = cost_key(arrays_.candidate[c]);
        if (uint64_t(key) >> (shift + kDigitBits) == shared_->key)
          atomicAdd(&histogram[(key >> shift) & ((1 << kDigitBits) - 1)], 1u);
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        uint32_t digit = 0;
        for (; shared_->wanted > histogram[digit]; ++digit) shared_->wanted -= histogram[digit];
        shared_->key = shared_->key << kDigitBits | digit;
      }
      __syncthreads();
    }
  }

  // Makes paths of the candidates that are kept.
  __device__ void keep(int64_t candidates, int olds, SymbolRange symbols, const float* weight,
                       uint32_t* links) {
    const uint32_t largest = shared_->key;
    const int64_t wanted = shared_->wanted;
    const Run run(candidates);
    int64_t below = 0, equal = 0;
    for (int64_t c = run.begin; c < run.end; ++c) {
      const uint32_t key = cost_key(arrays_.candidate[c]);
      below += key < largest;
      equal += key == largest;
    }
    int64_t all = 0;
    const int64_t counts = counts_before(below << 32 | equal, &all);
    below = counts >> 32, equal = counts & 0xFFFFFFFF;
    const int* state = arrays_.state[now_];
    for (int64_t c = run.begin; c < run.end; ++c) {
      const uint32_t key = cost_key(arrays_.candidate[c]);
      if (key > largest || (key == largest && equal >= wanted)) continue;
      const int64_t place = below + min(equal, wanted);
      below += key < largest;
      equal += key == largest;
      int before;
      const float cost = least(c, olds, symbols, weight, arrays_.cost[now_], state, &before);
      const int symbol = symbols.begin + int(c / olds);
      arrays_.state[1 - now_][place] = trellis_.next_state(trellis_.old_of(state[before]), symbol);
      arrays_.cost[1 - now_][place] = cost;
      links[place] = path_link(before, symbol);
    }
    paths_ = int((all >> 32) + min(all & 0xFFFFFFFF, wanted));
    now_ = 1 - now_;
    __syncthreads();
  }

  // shared_->path and its cost: of the state `end`, or the cheapest one.
  __device__ void find_end(int end) {
    if (threadIdx.x == 0) {
      const int* state = arrays_.state[now_];
      const float* cost = arrays_.cost[now_];
      shared_->path = 0;
      shared_->cost = end == kFreeState ? cost[0] : kInfinity;
      for (int p = 0; p < paths_; ++p)
        if (end == kFreeState ? cost[p] < shared_->cost : state[p] == end) {
          shared_->path = p;
          shared_->cost = cost[p];
        }
    }
    __syncthreads();
  }

  // The state behind `until` groups on the best path; its symbols if asked. `start` as it was
  // given.
  __device__ int back(int count, int until, int start, uint8_t* symbol) {
    if (threadIdx.x == 0) {
      int path = shared_->path;
      uint32_t link = 0;
      // Behind enough groups a state is their symbols; before, it begins with the first state.
      const int bits = trellis_.trellis.state_bits(), step_bits = trellis_.trellis.step_bits;
      uint32_t recent = 0;
      int known = 0;
      for (int i = count - 1; i >= 0; --i) {
        link = arrays_.links[int64_t(i) * plan_.beam + path];
        if (symbol) symbol[i] = uint8_t(link_symbol(link));
        if (i < until && known < bits) {
          const int place = bits - known - step_bits;
          recent |= place >= 0 ? uint32_t(link_symbol(link)) << place
                               : uint32_t(link_symbol(link)) >> -place;
          known += step_bits;
        }
        path = link_before(link);
      }
      const int first = start == kFreeState ? trellis_.free_state(path, plan_.beam) : start;
      if (known < bits) recent |= uint32_t(first) >> known;
      shared_->state = int(recent);
    }
    __syncthreads();
    return shared_->state;
  }

  const BeamPlan& plan_;
  const BeamTrellis trellis_;
  BeamShared* const shared_;
  BeamArrays arrays_;
  const float* x_ = nullptr;
  int paths_ = 0, now_ = 0;
};

__global__ void __launch_bounds__(kThreads)
    overlap_beam_kernel(const __grid_constant__ BeamPlan plan) {
  wait_for_previous_kernel();
  allow_next_kernel();
  BeamSearch search(plan, reinterpret_cast<BeamShared*>(dynamic_shared()));
  for (int64_t row = blockIdx.x; row < plan.task.rows; row += gridDim.x) search.search(row);
}

BeamPlan plan_of(const OverlapSearchTask& task, int beam) {
  BeamPlan plan{};
  plan.task = task;
  plan.beam = std::min(beam, task.trellis.states());
  BeamArrays arrays;
  plan.block_bytes = plan.lay_out(nullptr, &arrays);
  const int64_t most = int64_t{kBlocksOfSM} * std::max(1, device_limits().multiprocessors);
  plan.blocks =
      int(std::max<int64_t>(1, std::min({task.rows, most, kMostSearchBytes / plan.block_bytes})));
  return plan;
}

}  // namespace

int64_t overlap_beam_workspace(const OverlapSearchTask& task, int beam) {
  const BeamPlan plan = plan_of(task, beam);
  return plan.blocks * plan.block_bytes;
}

int overlap_beam_cuda(const OverlapSearchTask& task, int beam, void* workspace, void* stream) {
  if (task.rows == 0 || task.groups == 0) return cudaSuccess;
  BeamPlan plan = plan_of(task, beam);
  plan.workspace = static_cast<uint8_t*>(workspace);
  return launch_overlapped(overlap_beam_kernel, dim3(unsigned(plan.blocks)), kThreads,
                           sizeof(BeamShared), static_cast<cudaStream_t>(stream), plan);
}

}  // namespace pvq
