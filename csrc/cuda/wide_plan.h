// How a wide product (wide_product.cuh) shares out its work, and the memory that it needs.
#pragma once

#include "cuda/product_task.h"
#include "cuda/shared_memory.h"
#include "cuda/work_split.h"

namespace pvq {

constexpr int kWarpgroupRows = 64;
constexpr int kMostStages = 8;

// Whether groups keep a device busy though blocks take them whole.
constexpr bool enough_groups(int64_t groups, int64_t multiprocessors) {
  return 4 * groups >= 3 * multiprocessors;
}

// What an instance of the kernel takes at a time: rows of activations, and the warpgroups of a
// block, at most max_depth of which take the same rows and different chunks.
struct WideTile {
  int columns, warpgroups, max_depth;
  ActivationForm form;
  int chunk_bytes;  // of 16 rows of weights and a chunk
  bool table;       // whether there is a table in shared memory, as a table code's
  bool gaps;        // and gaps between its rows
  // Of a warpgroup: that adding up the sums of a group cut between blocks takes as long as.
  int cut_chunks;
  int own_bytes = 0;  // of other tables there, before the ring; a multiple of 1 KB

  // Where the stages of the ring begin (a multiple of 1 KB) and end.
  PVQ_HD constexpr int ring() const { return table ? kTableEnd : kFirstAddress + own_bytes; }
  PVQ_HD constexpr int ring_end() const { return offsets() - (gaps ? 0 : exchange_bytes()); }
  // Sums that the warpgroups of another depth leave to the first: behind the ring, or in the gaps
  // of the table.
  PVQ_HD constexpr int exchange_bytes() const {
    return max_depth == 1 ? 0 : warpgroups / 2 * kWarpgroupRows * columns * int(sizeof(float));
  }
  PVQ_HD constexpr int offsets() const {
    return barriers() - warpgroups * columns * int(sizeof(float));
  }
  PVQ_HD constexpr int barriers() const { return end() - 2 * 8 * kMostStages; }
  // Whether the kernel that narrows activations has room beside a block, and where that ends.
  PVQ_HD constexpr bool room_beside() const { return pvq::room_beside(columns); }
  PVQ_HD constexpr int end() const { return room_beside() ? kEndAddress : kAllEndAddress; }
  // Bytes of a step's activations and of the sums behind them.
  PVQ_HD constexpr int value_bytes(int chunks) const {
    return chunks * sections_of(form) * columns * kSectionBytes;
  }
  PVQ_HD constexpr int scale_bytes(int chunks) const {
    return has_one_scale(form) ? 0 : chunks * columns * 2 * int(sizeof(float));
  }
  // Of a stage, whole KB: `depth` times `run` chunks of a step, and the codes of all warpgroups.
  PVQ_HD constexpr int stage_bytes(int depth, int run) const {
    return (value_bytes(depth * run) + scale_bytes(depth * run) +
            4 * warpgroups * run * chunk_bytes + 1023) /
           1024 * 1024;
  }
};

// A group is row_parts * 64 rows times tile.columns rows of activations, a step of it `depth` times
// `run` chunks, of which each warpgroup takes a run; row_parts * depth are the block's warpgroups.
// Groups of the same rows follow each other.
struct WidePlan {
  WorkSplit split;
  int group_steps;
  Divisor by_group_steps, by_column_groups;
  int row_parts, row_bits, depth, run;  // row_parts = 2^row_bits
  int column_groups, groups;
  int fold_steps;  // steps of the columns of a scale
  // Of the ring, whose stages hold a step's activations, their scales, and its codes tile by tile.
  int stages, stage_bytes;
  int early_stages;  // whose codes are copied before the kernel before ends

  // columns: rows of the quantized activations, a multiple of tile.columns.
  static WidePlan of(const WideTile& tile, int64_t rows, int64_t chunks, int64_t columns,
                     int multiprocessors);
  PVQ_HD int step_chunks() const { return depth * run; }
  PVQ_HD int64_t steps() const { return int64_t(groups) * group_steps; }
};

// The quantized activations, counters and partial sums follow each other.
struct WideWorkspace {
  int64_t activations, counters, partials;  // bytes of each

  WideWorkspace(const WideTile& tile, const WidePlan& plan, int64_t chunks, int64_t columns);
  int64_t bytes() const { return activations + counters + partials; }
  // Points a task at it.
  void place(void* memory, const WideTile& tile, int64_t columns, ProductTask* task) const;
};

}  // namespace pvq
