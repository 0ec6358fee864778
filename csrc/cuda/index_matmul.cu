// Products from exact indices: the choice of the kernel.
#include "cuda/index_matmul.h"

#include "cuda/index_product_task.h"

namespace pvq {
namespace {

constexpr ActivationForm kForm = ActivationForm::kFloat16Steps;

int columns_of(const IndexProduct& t) {
  const int step = index_step(t.tokens);
  return (t.tokens + step - 1) / step * step;
}

int chunk_bytes_of(const IndexProduct& t) { return int(index_chunk_bytes(t.dim, t.form.bits)); }

WideTile tile_of(const IndexProduct& t) {
  return index_wide_tile(index_step(t.tokens), chunk_bytes_of(t));
}

WidePlan plan_of(const IndexProduct& t) {
  return WidePlan::of(tile_of(t), t.rows, t.cols / kChunkCols, columns_of(t),
                      device_limits().multiprocessors);
}

WideWorkspace workspace_of(const IndexProduct& t) {
  return WideWorkspace(tile_of(t), plan_of(t), t.cols / kChunkCols, columns_of(t));
}

}  // namespace

int64_t index_product_workspace(const IndexProduct& t) { return workspace_of(t).bytes(); }

int index_product_cuda(const IndexProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, t.cols, t.tokens, t.block, t.seed, 1, false};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  task.chunk_bytes = chunk_bytes_of(t);
  task.index = t.form;
  workspace_of(t).place(t.workspace, tile_of(t), columns_of(t), &task);
  if (const int error = quantize_activations(task, kForm, plan_of(t).groups, queue)) return error;
  const int processors = device_limits().multiprocessors;
  return t.dim == 8 ? index_product_8(task, processors, queue)
                    : index_product_16(task, processors, queue);
}

}  // namespace pvq
