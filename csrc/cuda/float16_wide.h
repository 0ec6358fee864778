// The wide products with float16 activations, from planes and from exact indices: how they are laid
// out, and their activations.
#pragma once

#include "cuda/wide_plan.h"

namespace pvq {

// Rows of activations that a product takes at a time, of its tokens.
constexpr int float16_columns(int tokens) { return tokens <= 8 ? 8 : tokens <= 16 ? 16 : 64; }
// own_bytes: of tables in shared memory.
PVQ_HD constexpr WideTile float16_tile(int columns, int chunk_bytes, int own_bytes = 0) {
  return {columns,
          columns >= 64 ? 2 : 4,
          columns == 8    ? 4
          : columns == 16 ? 2
                          : 1,
          columns == 128 ? ActivationForm::kFloat16Rows : ActivationForm::kFloat16Steps,
          chunk_bytes,
          false,
          false,
          own_bytes ? 2 : 4,  // chunks from indices take longer
          own_bytes};
}

// The layout of a product of PlaneProduct or IndexProduct.
template <class Product>
struct Float16Layout {
  const Product& product;
  WideTile tile;
  int columns;
  WidePlan plan;

  Float16Layout(const Product& t, int at_a_time, int chunk_bytes, int own_bytes = 0)
      : product(t), tile(float16_tile(at_a_time, chunk_bytes, own_bytes)) {
    columns = (t.tokens + tile.columns - 1) / tile.columns * tile.columns;
    plan = WidePlan::of(tile, t.rows, chunks(), columns, device_limits().multiprocessors);
  }
  int64_t chunks() const { return product.cols / kChunkCols; }
  WideWorkspace workspace() const { return WideWorkspace(tile, plan, chunks(), columns); }

  // The task, and the launch that narrows its activations; returns a cudaError_t.
  int begin(ProductTask& task, cudaStream_t stream) const {
    task.weights = product.fragments;
    task.row_scale = product.row_scale;
    task.y = product.y;
    task.activations = {
        product.x, product.type, int(product.cols), product.tokens, product.block, product.seed,
        1,         false};
    task.rows = int(product.rows);
    task.chunks = int(chunks());
    workspace().place(product.workspace, tile, columns, &task);
    return quantize_activations(task, tile.form, plan.groups, stream);
  }
};

}  // namespace pvq
