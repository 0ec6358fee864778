// The shares of a wide product.
#include "cuda/wide_plan.h"

#include <algorithm>

namespace pvq {
namespace {

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

WidePlan WidePlan::of(const WideTile& tile, int64_t rows, int64_t chunks, int64_t columns,
                      int multiprocessors) {
  // Runs of so many steps or more are worth cutting groups, if that spares reads of many
  // activations.
  constexpr int kLongRun = 24, kManyColumns = 64;
  WidePlan plan;
  plan.column_groups = int(columns / tile.columns);
  // Wide groups read the activations less often; narrow ones leave fewer sums of groups that are
  // cut between blocks, where there are fewer groups than multiprocessors.
  for (plan.depth = 1;; plan.depth *= 2) {
    plan.row_parts = tile.warpgroups / plan.depth;
    plan.row_bits = plan.row_parts / 2;  // of 1, 2 or 4
    const int64_t group_rows = kWarpgroupRows * plan.row_parts;
    plan.groups = int((rows + group_rows - 1) / group_rows * plan.column_groups);
    // Two chunks a step and warpgroup, which cost less to copy than one twice, if there are stages
    // enough: with 128 columns warpgroups have weights of two at a time.
    for (plan.run = 2;; plan.run = 1) {
      plan.stage_bytes = tile.stage_bytes(plan.depth, plan.run);
      plan.stages = std::min(kMostStages, (tile.ring_end() - tile.ring()) / plan.stage_bytes);
      if (plan.stages >= (tile.columns == 128 ? 3 : 2) || plan.run == 1) break;
    }
    plan.group_steps = int((chunks + plan.step_chunks() - 1) / plan.step_chunks());
    if (plan.depth == tile.max_depth || enough_groups(plan.groups, multiprocessors)) break;
    if (tile.columns >= kManyColumns && 3 * plan.groups >= multiprocessors &&
        plan.steps() >= int64_t(kLongRun) * multiprocessors)
      break;
  }
  plan.fold_steps = std::max(1, scale_cols(tile.form) / (kChunkCols * plan.step_chunks()));
  const int stage_codes = 4 * tile.warpgroups * plan.run * tile.chunk_bytes;
  plan.early_stages = std::clamp(kEarlyBytes / stage_codes, 1, plan.stages);
  int blocks = int(std::min<int64_t>(plan.steps(), multiprocessors));
  const int64_t run_steps = (plan.steps() + blocks - 1) / blocks;
  if (plan.groups <= multiprocessors && plan.group_steps <= run_steps + tile.cut_chunks / plan.run)
    blocks = plan.groups;
  plan.split = WorkSplit(plan.steps(), blocks);
  plan.by_group_steps = Divisor(plan.group_steps);
  plan.by_column_groups = Divisor(plan.column_groups);
  return plan;
}

WideWorkspace::WideWorkspace(const WideTile& tile, const WidePlan& plan, int64_t chunks,
                             int64_t columns) {
  activations = round_up(QuantizedActivations::bytes(tile.form, chunks, columns), 16);
  counters = round_up(plan.groups * int64_t(sizeof(unsigned)), 16);
  partials = int64_t(plan.split.blocks) * plan.row_parts * kWarpgroupRows * tile.columns *
             int64_t(sizeof(float));
}

void WideWorkspace::place(void* memory, const WideTile& tile, int64_t columns,
                          ProductTask* task) const {
  uint8_t* bytes = static_cast<uint8_t*>(memory);
  int group_bits = 0;
  while (1 << group_bits < tile.columns) ++group_bits;
  task->quantized =
      QuantizedActivations::at(bytes, tile.form, task->chunks, int(columns), group_bits);
  task->counters = reinterpret_cast<unsigned*>(bytes + activations);
  task->partials = reinterpret_cast<float*>(bytes + activations + counters);
}

}  // namespace pvq
