// Products from table codes and overlapping-pyramid codes: the choice of the kernel.
#include "cuda/table_matmul.h"

#include <cuda_runtime.h>

#include "cuda/table_points.h"
#include "cuda/table_product_task.h"

namespace pvq {
namespace {

// Small matrices do not fill the device with the groups of a wide product.
bool is_narrow(const TableProduct& t, int slots) {
  const int groups = (t.tokens * slots + kNarrowRows - 1) / kNarrowRows;
  return groups == 1 ||
         (groups <= 4 && groups * tiles_of(t.rows) <= device_limits().multiprocessors);
}

// Rows that a token takes. If points fit a narrow product in the rows that they need there, it is
// one; in a wide one they need as many or more.
int slots_of(const TableProduct& t) {
  if (!t.points.y) return t.residual ? 2 : 1;
  const int slots = point_rows(t.points, ActivationForm::kInt8Lanes);
  return is_narrow(t, slots) ? slots : point_rows(t.points, ActivationForm::kInt8Steps);
}

int rows_of(const TableProduct& t) { return t.tokens * slots_of(t); }

bool is_narrow(const TableProduct& t) { return is_narrow(t, slots_of(t)); }

// One row of few columns is quantized by every block of the product; more cost less in a launch of
// their own.
bool is_fused(const TableProduct& t) {
  return !t.points.y && rows_of(t) == 1 && t.cols <= kMostFusedColumns;
}

WideTile tile_of(const TableProduct& t) {
  return table_wide_tile(t.format,
                         table_wide_columns(t.format, rows_of(t), t.rows, t.cols / kChunkCols,
                                            device_limits().multiprocessors));
}

int columns_of(const TableProduct& t) {
  const int step = is_narrow(t) ? 1 : tile_of(t).columns;
  return (rows_of(t) + step - 1) / step * step;
}

WidePlan plan_of(const TableProduct& t) {
  return WidePlan::of(tile_of(t), t.rows, t.cols / kChunkCols, columns_of(t),
                      device_limits().multiprocessors);
}

WideWorkspace workspace_of(const TableProduct& t) {
  return WideWorkspace(tile_of(t), plan_of(t), t.cols / kChunkCols, columns_of(t));
}

ProductLaunch* narrow_launch(TableFormat format) {
  constexpr ProductLaunch* kTable[] = {table_product_2, table_product_3, table_product_4};
  constexpr ProductLaunch* kOverlap[] = {overlap_product_4, overlap_product_5, overlap_product_6,
                                         overlap_product_7, overlap_product_8};
  return format.overlap ? kOverlap[format.half_bits - 4] : kTable[format.half_bits / 2 - 2];
}

ProductLaunch* wide_launch(TableFormat format) {
  constexpr ProductLaunch* kTable[] = {table_product_wide_2, table_product_wide_3,
                                       table_product_wide_4};
  constexpr ProductLaunch* kOverlap[] = {overlap_product_wide_4, overlap_product_wide_5,
                                         overlap_product_wide_6, overlap_product_wide_7,
                                         overlap_product_wide_8};
  return format.overlap ? kOverlap[format.half_bits - 4] : kTable[format.half_bits / 2 - 2];
}

int prepare_activations(const TableProduct& t, const ProductTask& task, ActivationForm form,
                        int num_counters, cudaStream_t stream) {
  return t.points.y ? quantize_points(t.points, task, form, num_counters, stream)
                    : quantize_activations(task, form, num_counters, stream);
}

}  // namespace

int64_t table_product_workspace(const TableProduct& t) {
  if (!is_narrow(t)) return workspace_of(t).bytes();
  if (is_fused(t)) return 0;
  return QuantizedActivations::bytes(ActivationForm::kInt8Lanes, t.cols / kChunkCols,
                                     columns_of(t));
}

int table_product_cuda(const TableProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x,     t.type, int(t.cols), t.tokens,
                      t.block, t.seed, slots_of(t), t.format.overlap || t.format.half_bits == 6};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  const int processors = device_limits().multiprocessors;
  if (!is_narrow(t)) {
    const WideTile tile = tile_of(t);
    workspace_of(t).place(t.workspace, tile, columns_of(t), &task);
    if (const int error = prepare_activations(t, task, tile.form, plan_of(t).groups, queue))
      return error;
    return wide_launch(t.format)(task, processors, queue);
  }
  if (!is_fused(t)) {
    constexpr ActivationForm kForm = ActivationForm::kInt8Lanes;
    task.quantized =
        QuantizedActivations::at(t.workspace, kForm, task.chunks, columns_of(t), kOneGroup);
    if (const int error = prepare_activations(t, task, kForm, 0, queue)) return error;
  }
  return narrow_launch(t.format)(task, processors, queue);
}

}  // namespace pvq
