// Products from table codes: the choice of the kernel.
#include "cuda/table_matmul.h"

#include <cuda_runtime.h>

#include "cuda/product_output.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {
namespace {

// How a product runs: one kernel or two, and the rows of the quantized activations.
struct Plan {
  bool narrow, fused;
  int stride;
};

Plan plan_of(const TableProduct& t) {
  const int rows = t.tokens * (t.residual ? 2 : 1);
  Plan plan;
  plan.narrow = rows <= kNarrowRows;
  // More tokens cost less in a launch of their own, which every block then shares.
  plan.fused = t.tokens <= 2 && QuantizedActivations::bytes(t.cols / kChunkCols, rows, 1) <=
                                    int64_t(kTableAddress) - 2048;
  const int step = plan.narrow ? 1 : table_wide_step(rows);
  plan.stride = (rows + step - 1) / step * step;
  return plan;
}

}  // namespace

int64_t table_product_workspace(const TableProduct& task) {
  const Plan plan = plan_of(task);
  return plan.fused ? 0 : QuantizedActivations::bytes(task.cols / kChunkCols, plan.stride, 1);
}

int table_product_cuda(const TableProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const Plan plan = plan_of(t);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, t.cols, t.tokens, t.block, t.seed, t.residual ? 2 : 1};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  if (!plan.fused) {
    task.quantized = QuantizedActivations::at(t.workspace, task.chunks, plan.stride, 1);
    if (const int error = quantize_activations(task.activations, task.quantized, queue))
      return error;
  }
  const int processors = device_limits().multiprocessors;
  if (plan.narrow)
    return t.bits == 2   ? table_product_2(task, processors, queue)
           : t.bits == 3 ? table_product_3(task, processors, queue)
                         : table_product_4(task, processors, queue);
  return t.bits == 2   ? table_product_wide_2(task, processors, queue)
         : t.bits == 3 ? table_product_wide_3(task, processors, queue)
                       : table_product_wide_4(task, processors, queue);
}

}  // namespace pvq
