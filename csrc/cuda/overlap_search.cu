// The search's layout over threads (overlap_search_plan.h) for a task and a device.
#include "cuda/overlap_search.h"

#include <algorithm>

#include "cuda/overlap_search_plan.h"
#include "cuda/product_task.h"
#include "cuda/shared_memory.h"

namespace pvq {
namespace {

constexpr int kFewestThreads = 32;  // of a block
constexpr int kBlockThreads = 256;  // that it gets, if a quad has fewer
constexpr int kFewestQuadThreads = 64;
constexpr int kSmallestTile = 4;
// Registers of a thread with the largest tile allow this many threads on an SM.
constexpr int kThreadsOfSM = 512;
// The states four groups back would be more than those there are in the library's codes; and it
// divides kOverlapSeam.
constexpr int kMostStride = 3;
static_assert(kOverlapSeam % kMostStride == 0 && kOverlapSeam % 2 == 0);

// The tile for which there are kernels with costs in global memory: no other trellis has so many
// states.
constexpr int kGlobalTile = 16;

// Points and costs stay in registers.
int largest_tile(int dim) { return dim <= 2 ? 16 : dim <= 4 ? 8 : kSmallestTile; }

int64_t table_bytes(const OverlapTrellis& t) {
  return int64_t(sizeof(float)) * 2 * t.rows() * t.dim;
}

// Of a block.
int64_t cost_places(const OverlapSearchPlan& plan) {
  return plan.shared_costs ? 0 : plan.quads * int64_t(state_places(plan.task.trellis));
}
int64_t block_workspace(const OverlapSearchPlan& plan) {
  const int64_t kept = plan.quads * plan.sets * plan.task.trellis.states();
  return int64_t(sizeof(Four)) * (kept + cost_places(plan));
}

// Of the plan what depends on the trellis alone, for one quad a block.
OverlapSearchPlan plan_of(const OverlapTrellis& t) {
  OverlapSearchPlan plan{};
  plan.tile = std::min(largest_tile(t.dim), t.symbols());
  while (plan.tile > kSmallestTile && t.states() / plan.tile < kFewestQuadThreads) plan.tile /= 2;
  plan.quad_threads = t.states() / plan.tile;
  plan.quads = std::max(1, kFewestThreads / plan.quad_threads);
  plan.stride = std::min(kMostStride, t.state_bits() / t.step_bits);
  // First and second terms, and the ends.
  plan.quad_bytes = int64_t(sizeof(Four)) * (2 * t.rows() + 4);
  const int64_t costs = int64_t(sizeof(Four)) * state_places(t);
  const int64_t all = table_bytes(t) + plan.quads * (plan.quad_bytes + costs);
  plan.shared_costs = all <= device_limits().shared || plan.tile < kGlobalTile;
  if (plan.shared_costs) plan.quad_bytes += costs;
  plan.shared_bytes = table_bytes(t) + plan.quads * plan.quad_bytes;
  return plan;
}

OverlapSearchPlan plan_of(const OverlapSearchTask& task) {
  const OverlapTrellis& t = task.trellis;
  OverlapSearchPlan plan = plan_of(t);
  plan.task = task;
  const int processors = std::max(1, device_limits().multiprocessors);
  const int64_t quads = (task.rows + kQuad - 1) / kQuad;
  // More quads a block, while two blocks share an SM and few quads are spread over all SMs.
  const auto bytes = [&](int count) { return table_bytes(t) + count * plan.quad_bytes; };
  while (2 * plan.quads * plan.quad_threads <= kBlockThreads &&
         2 * (bytes(2 * plan.quads) + kSystemBytes) <= device_limits().shared &&
         plan.quads * int64_t(processors) < quads)
    plan.quads *= 2;
  plan.shared_bytes = bytes(plan.quads);
  const int64_t groups = std::max<int64_t>(task.groups, task.ring ? 2 * kOverlapSeam : 0);
  plan.sets = (groups + plan.stride - 1) / plan.stride;
  const int64_t of_sm = std::max<int64_t>(
      1, std::min<int64_t>(kThreadsOfSM / (plan.quads * plan.quad_threads),
                           device_limits().shared / (plan.shared_bytes + kSystemBytes)));
  plan.blocks =
      int(std::max<int64_t>(1, std::min({(quads + plan.quads - 1) / plan.quads, processors * of_sm,
                                         kMostSearchBytes / block_workspace(plan)})));
  return plan;
}

}  // namespace

bool overlap_search_supported(const OverlapTrellis& t) {
  const OverlapSearchPlan plan = plan_of(t);
  return plan.quad_threads <= kMostSearchThreads && plan.shared_bytes <= device_limits().shared;
}

int64_t overlap_search_workspace(const OverlapSearchTask& task) {
  const OverlapSearchPlan plan = plan_of(task);
  return plan.blocks * block_workspace(plan);
}

int overlap_search_cuda(const OverlapSearchTask& task, void* workspace, void* stream) {
  if (task.rows == 0 || task.groups == 0) return cudaSuccess;
  OverlapSearchPlan plan = plan_of(task);
  plan.costs = static_cast<Four*>(workspace);
  plan.history = plan.costs + plan.blocks * cost_places(plan);
  const auto queue = static_cast<cudaStream_t>(stream);
  const int dim = task.trellis.dim;
  return dim == 1   ? launch_search_1(plan, queue)
         : dim == 2 ? launch_search_2(plan, queue)
                    : launch_search_3(plan, queue);
}

}  // namespace pvq
