// to_planes, and the products with planes on the CPU: of activations (matmul_planes and its
// transpose) and of activation points. cpu/planes.h defines the layout, cpu/points.h the points.
#include "cpu/planes.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/points.h"
#include "ops/code.h"
#include "ops/matmul.h"

namespace pvq::ops {
namespace {

using PlaneTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
int64_t write_panels(const CodeView& code, T* planes, int64_t panel_size, float* scale,
                     std::vector<std::vector<Outlier>>& outliers) {
  DamagedRow damaged;
  const int64_t groups = code.cols / code.dim;
  const auto panels = static_cast<int64_t>(outliers.size());
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      damaged.report(write_panel(code, panel, planes + panel * panel_size,
                                 scale + panel * groups * kPanelRows, &outliers[panel]));
    }
  });
  return damaged.row();
}

PlaneTensors to_planes_cpu(const Tensor& index, const Tensor& gain, const Tensor& row_scale,
                           int64_t dim, int64_t pulses, int64_t gain_bits,
                           const std::string& gain_law, int64_t cols) {
  constexpr const char* op = "to_planes";
  const StoredCode code =
      checked_code(op, index, gain, row_scale, dim, pulses, gain_bits, gain_law, cols);
  check_range(op, "cols", cols, 0, std::numeric_limits<int32_t>::max() / kPanelRows);
  const int64_t rows = code.view.rows, panels = panel_count(rows), words = words_per_row(cols);
  const bool nibbles = plane_bits(code.view.dim, code.view.pulses) == 4;
  Tensor planes = torch::stable::new_zeros(index, {panels, nibbles ? words : cols, kPanelRows},
                                           nibbles ? ScalarType::Int : ScalarType::Char);
  Tensor scale =
      torch::stable::new_zeros(index, {panels, cols / dim, kPanelRows}, ScalarType::Float);
  std::vector<std::vector<Outlier>> outliers(panels);
  float* scale_data = scale.mutable_data_ptr<float>();
  const int64_t bad_row = nibbles ? write_panels(code.view, planes.mutable_data_ptr<int32_t>(),
                                                 words * kPanelRows, scale_data, outliers)
                                  : write_panels(code.view, planes.mutable_data_ptr<int8_t>(),
                                                 cols * kPanelRows, scale_data, outliers);
  if (bad_row != kNoRow) refuse_index(op, bad_row);

  int64_t total = 0;
  for (const auto& panel : outliers) total += static_cast<int64_t>(panel.size());
  PVQ_CHECK(total <= std::numeric_limits<int32_t>::max(), "pvq::to_planes: ", total,
            " integers do not fit the planes, expected fewer than 2^31; multiply from the index "
            "instead");
  Tensor start = torch::stable::new_empty(index, {panels + 1}, ScalarType::Int);
  Tensor place = torch::stable::new_empty(index, {total}, ScalarType::Int);
  Tensor value = torch::stable::new_empty(index, {total}, ScalarType::Float);
  int32_t* starts = start.mutable_data_ptr<int32_t>();
  int32_t* places = place.mutable_data_ptr<int32_t>();
  float* values = value.mutable_data_ptr<float>();
  int32_t count = 0;
  for (const auto& panel : outliers) {
    *starts++ = count;
    for (const Outlier& outlier : panel) {
      places[count] = outlier.place;
      values[count++] = outlier.value;
    }
  }
  *starts = count;
  return {planes, scale, start, place, value};
}

// The planes among an operator's arguments, checked, with the tensors that keep their memory alive.
struct StoredPlanes {
  PlanesView view;
  Tensor planes, scale, outlier_start, outlier_place, outlier_value;
};

StoredPlanes checked_planes(const char* op, const Tensor& planes, const Tensor& scale,
                            const Tensor& outlier_start, const Tensor& outlier_place,
                            const Tensor& outlier_value, int64_t rows, int64_t dim) {
  check_range(op, "dim", dim, 1, kMaxDim);
  PVQ_CHECK(rows >= 0, "pvq::", op, ": rows is ", rows, ", expected 0 or more");
  check_dtype(op, "planes", planes, {ScalarType::Int, ScalarType::Char});
  check_dtype(op, "scale", scale, {ScalarType::Float});
  check_dtype(op, "outlier_start", outlier_start, {ScalarType::Int});
  check_dtype(op, "outlier_place", outlier_place, {ScalarType::Int});
  check_dtype(op, "outlier_value", outlier_value, {ScalarType::Float});
  check_rank(op, "scale", scale, 3);
  check_rank(op, "outlier_place", outlier_place, 1);
  const bool nibbles = planes.scalar_type() == ScalarType::Int;
  const int64_t panels = panel_count(rows), groups = scale.size(1), cols = groups * dim;
  const int64_t outliers = outlier_place.size(0);
  check_shape(op, "scale", scale, {panels, groups, kPanelRows});
  check_shape(op, "planes", planes, {panels, nibbles ? words_per_row(cols) : cols, kPanelRows});
  check_shape(op, "outlier_start", outlier_start, {panels + 1});
  check_shape(op, "outlier_value", outlier_value, {outliers});
  check_same_device(op, "scale", scale, "planes", planes);
  check_same_device(op, "outlier_start", outlier_start, "planes", planes);
  check_same_device(op, "outlier_place", outlier_place, "planes", planes);
  check_same_device(op, "outlier_value", outlier_value, "planes", planes);

  StoredPlanes stored{{},
                      as_contiguous(planes),
                      as_contiguous(scale),
                      as_contiguous(outlier_start),
                      as_contiguous(outlier_place),
                      as_contiguous(outlier_value)};
  stored.view = {nibbles ? stored.planes.const_data_ptr<int32_t>() : nullptr,
                 nibbles ? nullptr : stored.planes.const_data_ptr<int8_t>(),
                 stored.scale.const_data_ptr<float>(),
                 stored.outlier_start.const_data_ptr<int32_t>(),
                 stored.outlier_place.const_data_ptr<int32_t>(),
                 stored.outlier_value.const_data_ptr<float>(),
                 rows,
                 groups,
                 outliers,
                 static_cast<int>(dim)};
  return stored;
}

Tensor checked_result(const char* op, const ProductResult& result) {
  PVQ_CHECK(result.bad_row == kNoRow, "pvq::", op, ": the outliers of row ", result.bad_row,
            " or the 15 after it are damaged; make the planes again with to_planes");
  return result.out;
}

Tensor matmul_planes_cpu(const Tensor& x, const Tensor& planes, const Tensor& scale,
                         const Tensor& outlier_start, const Tensor& outlier_place,
                         const Tensor& outlier_value, int64_t rows, int64_t dim, int64_t block,
                         int64_t seed) {
  constexpr const char* op = "matmul_planes";
  const StoredPlanes stored =
      checked_planes(op, planes, scale, outlier_start, outlier_place, outlier_value, rows, dim);
  const int64_t cols = stored.view.cols();
  check_activations(op, "x", x, cols, "columns of the matrix", "planes", planes);
  check_rotation(op, {block, seed}, cols);
  const PlaneTiles tiles(stored.view, /*transposed=*/false);
  return checked_result(op, multiply_rotated(x, tiles, {block, seed}));
}

Tensor matmul_planes_transposed_cpu(const Tensor& g, const Tensor& planes, const Tensor& scale,
                                    const Tensor& outlier_start, const Tensor& outlier_place,
                                    const Tensor& outlier_value, int64_t rows, int64_t dim,
                                    int64_t block, int64_t seed) {
  constexpr const char* op = "matmul_planes_transposed";
  const StoredPlanes stored =
      checked_planes(op, planes, scale, outlier_start, outlier_place, outlier_value, rows, dim);
  check_activations(op, "g", g, rows, "rows of the matrix", "planes", planes);
  check_rotation(op, {block, seed}, stored.view.cols());
  const PlaneTiles tiles(stored.view, /*transposed=*/true);
  return checked_result(op, multiply_unrotated(g, tiles, {block, seed}));
}

Tensor matmul_planes_points_cpu(const Tensor& point, const Tensor& amplitude, const Tensor& planes,
                                const Tensor& scale, const Tensor& outlier_start,
                                const Tensor& outlier_place, const Tensor& outlier_value,
                                int64_t rows, int64_t dim, ScalarType dtype) {
  constexpr const char* op = "matmul_planes_points";
  const StoredPlanes stored =
      checked_planes(op, planes, scale, outlier_start, outlier_place, outlier_value, rows, dim);
  const int64_t cols = stored.view.cols();
  check_dtype(op, "point", point, {ScalarType::Short});
  check_dtype(op, "amplitude", amplitude, {ScalarType::BFloat16});
  check_weight_dtype(op, dtype);
  check_same_device(op, "point", point, "planes", planes);
  check_same_device(op, "amplitude", amplitude, "planes", planes);
  const int64_t rank = point.dim();
  PVQ_CHECK(rank >= 1 && point.size(rank - 1) == cols, "pvq::", op, ": point has shape ",
            shape_name(point), ", expected [..., ", cols, "], the columns of the matrix");
  std::vector<int64_t> shape(point.sizes().begin(), point.sizes().end());
  int64_t tokens = 1;
  for (int64_t i = 0; i + 1 < rank; ++i) tokens *= shape[i];
  shape.back() = rows;
  if (cols == 0) return torch::stable::new_zeros(scale, shape, dtype);
  const int64_t groups = amplitude.dim() == rank ? amplitude.size(rank - 1) : 0;
  PVQ_CHECK(groups > 0 && amplitude.numel() == tokens * groups && cols % groups == 0 &&
                PointsProduct::supports(static_cast<int>(dim), static_cast<int>(cols / groups)),
            "pvq::", op, ": amplitude has shape ", shape_name(amplitude), " beside ",
            shape_name(point), ", expected [..., groups] with groups of a multiple of dim = ", dim,
            " columns, itself a multiple of 8");
  Tensor out = torch::stable::new_empty(scale, shape, ScalarType::Float);
  const Tensor y = as_contiguous(point), levels = as_contiguous(amplitude);
  const int16_t* values = y.const_data_ptr<int16_t>();
  int largest = 0;
  for (int64_t i = 0; i < tokens * cols; ++i)
    largest = std::max(largest, std::abs(static_cast<int>(values[i])));
  PVQ_CHECK(largest <= kMaxPulses, "pvq::", op, ": point holds a magnitude of ", largest,
            ", expected no more than the most pulses, ", kMaxPulses);
  const PointsProduct product({values, static_cast<const uint16_t*>(levels.const_data_ptr()),
                               tokens, cols, static_cast<int>(cols / groups), largest},
                              stored.view);
  float* result = out.mutable_data_ptr<float>();
  DamagedRow damaged;
  constexpr int64_t kWorkPerThread = 1 << 16;
  const int64_t work = std::max<int64_t>(1, tokens * cols * kPanelRows);
  torch::stable::parallel_for(
      0, tokens > 0 ? product.panels() : 0, std::max<int64_t>(1, kWorkPerThread / work),
      [&](int64_t begin, int64_t end) { damaged.report(product.multiply(begin, end, result)); });
  return checked_result(op, {as_dtype(out, dtype), damaged.row()});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("to_planes", TORCH_BOX(&to_planes_cpu));
  m.impl("matmul_planes", TORCH_BOX(&matmul_planes_cpu));
  m.impl("matmul_planes_transposed", TORCH_BOX(&matmul_planes_transposed_cpu));
  m.impl("matmul_planes_points", TORCH_BOX(&matmul_planes_points_cpu));
}

}  // namespace pvq::ops
