// How a wide product (wide_product.cuh) shares out its work, and the memory that it needs.
#pragma once

#include "cuda/product_task.h"
#include "cuda/work_split.h"

namespace pvq {

constexpr int kWarpgroupRows = 64;

// What an instance of the kernel takes at a time: rows of activations, and the warpgroups of a
// block, at most max_depth of which take the same rows and different chunks.
struct WideTile {
  int columns, warpgroups, max_depth;
};

// A group is row_parts * 64 rows times tile.columns rows of activations, a step of it `depth`
// chunks; row_parts * depth are the block's warpgroups. Groups of the same rows follow each other.
struct WidePlan {
  WorkSplit split;
  int row_parts, depth, column_groups, groups;

  // stride: rows of the quantized activations, a multiple of tile.columns.
  static WidePlan of(const WideTile& tile, int64_t rows, int64_t chunks, int64_t stride,
                     int multiprocessors);
};

constexpr int kPartialSlots = 2;  // a block cuts at most two groups

// The quantized activations, counters and partial sums follow each other.
struct WideWorkspace {
  int64_t activations, counters, partials;  // bytes of each

  WideWorkspace(const WideTile& tile, const WidePlan& plan, ActivationForm form, int64_t chunks,
                int64_t stride);
  int64_t bytes() const { return activations + counters + partials; }
  // Points a task at it.
  void place(void* memory, ActivationForm form, int64_t stride, ProductTask* task) const;
};

}  // namespace pvq
