// Activation points as the operand of the products of tables (table_matmul.h).
//
// Groups of 128 columns, what a scale of the narrow product stands for, keep their integers: y in
// one row of bytes where no magnitude exceeds 127, else y = 128 * high + low, -64 <= low <= 64, in
// two. All other points are rounded again, to 15 bits, in two rows.
#pragma once

#include <cuda_runtime.h>

#include "cuda/activation_points.h"
#include "cuda/product_task.h"

namespace pvq {

PVQ_HD inline bool points_stay_exact(const PointsOperand& points, ActivationForm form) {
  return form == ActivationForm::kInt8Lanes && points.dim == kChunkCols;
}

// Rows that a token takes in this form.
inline int point_rows(const PointsOperand& points, ActivationForm form) {
  return points_stay_exact(points, form) && points.largest <= 127 ? 1 : 2;
}

// As quantize_activations (product_task.h), from points whose dim divides 128 and is a multiple of
// 4; the task's activations need point_rows slots. Not for float16.
int quantize_points(const PointsOperand& points, const ProductTask& task, ActivationForm form,
                    int num_counters, cudaStream_t stream);

}  // namespace pvq
