// Products from planes: the choice of the kernel.
#include "cuda/plane_matmul.h"

#include "cuda/plane_product_task.h"

namespace pvq {
namespace {

constexpr ActivationForm kForm = ActivationForm::kFloat16Steps;

int columns_of(const PlaneProduct& t) {
  const int step = plane_step(t.tokens);
  return (t.tokens + step - 1) / step * step;
}

WideTile tile_of(const PlaneProduct& t) {
  return plane_wide_tile(t.bits, t.group, plane_step(t.tokens));
}

WidePlan plan_of(const PlaneProduct& t) {
  return WidePlan::of(tile_of(t), t.rows, t.cols / kChunkCols, columns_of(t),
                      device_limits().multiprocessors);
}

WideWorkspace workspace_of(const PlaneProduct& t) {
  return WideWorkspace(tile_of(t), plan_of(t), t.cols / kChunkCols, columns_of(t));
}

}  // namespace

int64_t plane_product_workspace(const PlaneProduct& t) { return workspace_of(t).bytes(); }

int plane_product_cuda(const PlaneProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, t.cols, t.tokens, t.block, t.seed, 1, false};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  workspace_of(t).place(t.workspace, tile_of(t), columns_of(t), &task);
  if (const int error = quantize_activations(task, kForm, plan_of(t).groups, queue)) return error;
  const int processors = device_limits().multiprocessors;
  return t.bits == 4   ? plane_product_4(task, t.group, processors, queue)
         : t.bits == 6 ? plane_product_6(task, t.group, processors, queue)
                       : plane_product_8(task, t.group, processors, queue);
}

}  // namespace pvq
