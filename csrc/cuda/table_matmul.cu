// Products from table codes: the choice of the kernel.
#include "cuda/table_matmul.h"

#include <cuda_runtime.h>

#include "cuda/product_output.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {
namespace {

int rows_of(const TableProduct& t) { return t.tokens * (t.residual ? 2 : 1); }

bool is_narrow(const TableProduct& t) { return rows_of(t) <= kNarrowRows; }

// One or two tokens are quantized by every block of the product; more cost less in a launch of
// their own.
bool is_fused(const TableProduct& t) {
  return t.tokens <= 2 && QuantizedActivations::bytes(t.cols / kChunkCols, rows_of(t), 1) <=
                              int64_t(kTableAddress) - 2048;
}

int stride_of(const TableProduct& t) {
  const int step = is_narrow(t) ? 1 : table_wide_step(rows_of(t));
  return (rows_of(t) + step - 1) / step * step;
}

WideWorkspace wide_workspace(const TableProduct& t) {
  const int step = table_wide_step(rows_of(t));
  return WideWorkspace(t.rows, t.cols / kChunkCols, stride_of(t), 1, step);
}

}  // namespace

int64_t table_product_workspace(const TableProduct& t) {
  if (!is_narrow(t)) return wide_workspace(t).bytes();
  return is_fused(t) ? 0 : QuantizedActivations::bytes(t.cols / kChunkCols, stride_of(t), 1);
}

int table_product_cuda(const TableProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x,        t.type, t.cols, t.tokens, t.block, t.seed, t.residual ? 2 : 1,
                      t.bits == 3};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  const int processors = device_limits().multiprocessors;
  if (!is_narrow(t)) {
    const WideWorkspace workspace = wide_workspace(t);
    workspace.place(t.workspace, stride_of(t), 1, &task);
    if (const int error = quantize_activations(task, workspace.num_counters(), queue)) return error;
    return t.bits == 2   ? table_product_wide_2(task, processors, queue)
           : t.bits == 3 ? table_product_wide_3(task, processors, queue)
                         : table_product_wide_4(task, processors, queue);
  }
  if (!is_fused(t)) {
    task.quantized = QuantizedActivations::at(t.workspace, task.chunks, stride_of(t), 1);
    if (const int error = quantize_activations(task, 0, queue)) return error;
  }
  return t.bits == 2   ? table_product_2(task, processors, queue)
         : t.bits == 3 ? table_product_3(task, processors, queue)
                       : table_product_4(task, processors, queue);
}

}  // namespace pvq
