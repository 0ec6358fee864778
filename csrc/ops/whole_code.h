// The operators of a stored form that cannot be damaged, every byte of which means something, on
// the CPU. Such a form, checked, is a struct `stored` with a view and the tensor `code`.
#pragma once

#include "ops/dequantize.h"

namespace pvq::ops {

// The matrix, rotated back; dequantize_part(view, row, c0, c1, w) decodes columns [c0, c1) of a
// row.
template <class Stored, class DequantizePart>
Tensor dequantize_whole(const char* op, const Stored& stored, ScalarType dtype, Rotation rotation,
                        const DequantizePart& dequantize_part) {
  const auto& view = stored.view;
  check_weight_dtype(op, dtype);
  check_rotation(op, rotation, view.cols);
  return dequantize_rows(stored.code, view.rows, view.cols, dtype, rotation, [&] {
    return [&](int64_t row, float* w) { dequantize_part(view, row, 0, view.cols, w); };
  });
}

// rotate(x) W^T; Tiles are the form's WeightTiles.
template <class Tiles, class Stored>
Tensor multiply_whole(const char* op, const Tensor& x, const Stored& stored, Rotation rotation) {
  check_activations(op, "x", x, stored.view.cols, "in_features", "code", stored.code);
  check_rotation(op, rotation, stored.view.cols);
  return multiply_rotated(x, Tiles(stored.view, /*transposed=*/false), rotation).out;
}

// g W, rotated back.
template <class Tiles, class Stored>
Tensor multiply_whole_transposed(const char* op, const Tensor& g, const Stored& stored,
                                 Rotation rotation) {
  check_activations(op, "g", g, stored.view.rows, "rows of the matrix", "code", stored.code);
  check_rotation(op, rotation, stored.view.cols);
  return multiply_unrotated(g, Tiles(stored.view, /*transposed=*/true), rotation).out;
}

}  // namespace pvq::ops
