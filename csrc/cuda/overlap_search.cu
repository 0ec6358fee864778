// The search's layout over threads (overlap_search_plan.h) for a task and a device.
#include "cuda/overlap_search.h"

#include <algorithm>

#include "cuda/overlap_search_plan.h"
#include "cuda/product_task.h"
#include "cuda/shared_memory.h"

namespace pvq {
namespace {

constexpr int kBlockThreads = 256;  // of a block, if a quad has fewer
constexpr int kFewestQuadThreads = 64;
constexpr int kSmallestTile = 4;
// Registers of a thread with the largest tile allow this many threads on an SM.
constexpr int kThreadsOfSM = 512;
constexpr int kSystemBytes = 1024;  // of shared memory, for each block
// The states four groups back would be more than those there are in the library's codes; and it
// divides kOverlapSeam.
constexpr int kMostStride = 3;
static_assert(kOverlapSeam % kMostStride == 0 && kOverlapSeam % 2 == 0);

// Points and costs stay in registers.
int largest_tile(int dim) { return dim <= 2 ? 16 : dim <= 4 ? 8 : kSmallestTile; }

// Of the plan what depends on the trellis alone.
OverlapSearchPlan plan_of(const OverlapTrellis& t) {
  OverlapSearchPlan plan{};
  plan.tile = std::min(largest_tile(t.dim), t.symbols());
  while (plan.tile > kSmallestTile && t.states() / plan.tile < kFewestQuadThreads) plan.tile /= 2;
  plan.quad_threads = t.states() / plan.tile;
  plan.quads = std::max(1, kBlockThreads / plan.quad_threads);
  plan.stride = std::min(kMostStride, t.state_bits() / t.step_bits);
  // Costs, first and second terms, and the ends.
  plan.quad_bytes = int64_t(sizeof(Four)) * (state_places(t) + 2 * t.rows() + 4);
  return plan;
}

int64_t shared_bytes(const OverlapTrellis& t, const OverlapSearchPlan& plan) {
  return int64_t(sizeof(float)) * 2 * t.rows() * t.dim + plan.quads * plan.quad_bytes;
}

OverlapSearchPlan plan_of(const OverlapSearchTask& task) {
  const OverlapTrellis& t = task.trellis;
  OverlapSearchPlan plan = plan_of(t);
  plan.task = task;
  const int processors = std::max(1, device_limits().multiprocessors);
  const int64_t quads = (task.rows + kQuad - 1) / kQuad;
  // Two blocks share an SM where they can; few quads are spread over all SMs.
  while (plan.quads > 1 && plan.quads * plan.quad_threads > 32 &&
         (2 * (shared_bytes(t, plan) + kSystemBytes) > kSharedBytes ||
          plan.quads / 2 * int64_t(processors) >= quads))
    plan.quads /= 2;
  plan.shared_bytes = shared_bytes(t, plan);
  const int64_t groups = std::max<int64_t>(task.groups, task.ring ? 2 * kOverlapSeam : 0);
  plan.sets = (groups + plan.stride - 1) / plan.stride;
  const int64_t history = plan.quads * plan.sets * t.states() * int64_t(sizeof(Four));
  const int64_t of_sm =
      std::max<int64_t>(1, std::min<int64_t>(kThreadsOfSM / (plan.quads * plan.quad_threads),
                                             kSharedBytes / (plan.shared_bytes + kSystemBytes)));
  plan.blocks =
      int(std::max<int64_t>(1, std::min({(quads + plan.quads - 1) / plan.quads, processors * of_sm,
                                         kMostSearchBytes / std::max<int64_t>(1, history)})));
  return plan;
}

}  // namespace

bool overlap_search_supported(const OverlapTrellis& t) {
  OverlapSearchPlan plan = plan_of(t);
  while (plan.quads > 1 && plan.quads * plan.quad_threads > 32) plan.quads /= 2;
  return plan.quad_threads <= kMostSearchThreads && shared_bytes(t, plan) <= kSharedBytes;
}

int64_t overlap_search_workspace(const OverlapSearchTask& task) {
  const OverlapSearchPlan plan = plan_of(task);
  return int64_t(sizeof(Four)) * plan.blocks * plan.quads * plan.sets * task.trellis.states();
}

int overlap_search_cuda(const OverlapSearchTask& task, void* workspace, void* stream) {
  if (task.rows == 0 || task.groups == 0) return cudaSuccess;
  OverlapSearchPlan plan = plan_of(task);
  plan.history = static_cast<Four*>(workspace);
  const auto queue = static_cast<cudaStream_t>(stream);
  const int dim = task.trellis.dim;
  return dim == 1   ? launch_search_1(plan, queue)
         : dim == 2 ? launch_search_2(plan, queue)
                    : launch_search_wide(plan, queue);
}

}  // namespace pvq
