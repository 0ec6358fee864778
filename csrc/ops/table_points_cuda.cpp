// The products of activation points with table codes and overlapping-pyramid codes in fragments:
// integers times integers on the tensor cores (cuda/table_points.h says when they are exactly those
// of the points). Where the device or the call has no kernel, both are decoded and the library
// multiplies.
//
// That no magnitude exceeds `largest` is not checked, which would wait for the device.
#include <vector>

#include "core/platform.h"
#include "cuda/table_matmul.h"
#include "ops/fragments.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Columns of a group.
int checked_dim(const char* op, const Tensor& point, const Tensor& amplitude,
                const Tensor& fragments) {
  check_dtype(op, "point", point, {ScalarType::Short});
  check_dtype(op, "amplitude", amplitude, {ScalarType::BFloat16});
  check_same_device(op, "point", point, "fragments", fragments);
  check_same_device(op, "amplitude", amplitude, "fragments", fragments);
  const int64_t rank = point.dim();
  PVQ_CHECK(rank >= 1 && point.size(rank - 1) % kChunkCols == 0, "pvq::", op, ": point has shape ",
            shape_name(point), ", expected [..., cols] with a multiple of ", kChunkCols,
            " columns");
  const int64_t cols = point.size(rank - 1);
  bool fits = amplitude.dim() == rank;
  for (int64_t i = 0; fits && i + 1 < rank; ++i) fits = amplitude.size(i) == point.size(i);
  const int64_t groups = fits ? amplitude.size(rank - 1) : -1;
  if (cols == 0 && groups == 0) return kChunkCols;
  const int64_t dim = groups > 0 && cols % groups == 0 ? cols / groups : 0;
  PVQ_CHECK(dim > 0 && kChunkCols % dim == 0 && dim % 4 == 0, "pvq::", op, ": amplitude has shape ",
            shape_name(amplitude), " beside ", shape_name(point),
            ", expected [..., groups] with groups of 4, 8, 16, 32, 64 or 128 columns");
  return int(dim);
}

// What the points stand for times the expanded codes.
Tensor multiply_decoded(const char* op, const TableProduct& task, const Tensor& fragments,
                        const std::vector<int64_t>& shape, ScalarType dtype, void* stream) {
  Tensor x = torch::stable::new_empty(fragments, {task.tokens, task.cols}, dtype);
  const int64_t count = task.tokens * task.cols / task.points.dim;
  check_cuda(op, decode_points_cuda(task.points, count, task.type, x.mutable_data_ptr(), stream));
  Tensor w = torch::stable::new_empty(fragments, {task.rows, task.cols}, dtype);
  check_cuda(op, table_expand_cuda(task.fragments, task.row_scale, task.rows, task.cols,
                                   task.format, task.type, w.mutable_data_ptr(), stream));
  return torch::stable::reshape(multiply_dense(x, w, {0, 0}), shape);
}

Tensor multiply_points(const char* op, const Tensor& point, const Tensor& amplitude,
                       const Tensor& fragments, const Tensor& row_scale, TableFormat format,
                       int64_t largest, ScalarType dtype) {
  check_range(op, "largest", largest, 0, kMaxPulses);
  check_expanded_dtype(op, dtype);
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  check_fragments(op, fragments, row_scale);
  const int dim = checked_dim(op, point, amplitude, fragments);
  const int64_t rows = row_scale.size(0), cols = point.size(point.dim() - 1);
  PVQ_CHECK(fragments.numel() == format.fragment_bytes(rows, cols), "pvq::", op, ": fragments has ",
            fragments.numel(), " bytes, expected the ", format.fragment_bytes(rows, cols), " of ",
            rows, " rows and ", cols, " columns at ", format.half_bits / 2.0, " bits");
  const DeviceGuard guard(fragments.get_device_index());
  std::vector<int64_t> shape(point.sizes().begin(), point.sizes().end());
  shape.back() = rows;
  const int64_t tokens = cols ? point.numel() / cols : 0;
  if (tokens == 0 || rows == 0) return torch::stable::new_zeros(fragments, shape, dtype);

  const Tensor source = aligned(fragments), integers = aligned(point);
  const Tensor levels = torch::stable::contiguous(amplitude),
               scale = torch::stable::contiguous(row_scale);
  TableProduct task{};
  task.fragments = source.const_data_ptr<uint8_t>();
  task.row_scale = static_cast<const uint16_t*>(scale.const_data_ptr());
  task.points = {static_cast<const int16_t*>(integers.const_data_ptr()),
                 static_cast<const uint16_t*>(levels.const_data_ptr()), dim, int(largest)};
  task.rows = rows;
  task.cols = cols;
  task.tokens = int(tokens);
  task.format = format;
  task.type = real_type(dtype);
  void* stream = current_cuda_stream(fragments);
  if (tokens > kMaxProductTokens || !products_supported())
    return multiply_decoded(op, task, source, shape, dtype, stream);
  Tensor y = torch::stable::new_empty(fragments, shape, dtype);
  const int64_t bytes = table_product_workspace(task);
  Tensor workspace = torch::stable::new_empty(fragments, {bytes}, ScalarType::Byte);
  task.y = y.mutable_data_ptr();
  task.workspace = workspace.mutable_data_ptr();
  check_cuda(op, table_product_cuda(task, stream));
  return y;
}

Tensor table_matmul_points(const Tensor& point, const Tensor& amplitude, const Tensor& fragments,
                           const Tensor& row_scale, int64_t bits, int64_t largest,
                           ScalarType dtype) {
  constexpr const char* op = "table_matmul_points";
  check_range(op, "bits", bits, 2, 4);
  return multiply_points(op, point, amplitude, fragments, row_scale, TableFormat::table(int(bits)),
                         largest, dtype);
}

Tensor overlap_matmul_points(const Tensor& point, const Tensor& amplitude, const Tensor& fragments,
                             const Tensor& row_scale, int64_t pair_bits, int64_t largest,
                             ScalarType dtype) {
  constexpr const char* op = "overlap_matmul_points";
  check_range(op, "pair_bits", pair_bits, 4, 8);
  return multiply_points(op, point, amplitude, fragments, row_scale,
                         TableFormat::overlapping(int(pair_bits)), largest, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_matmul_points", TORCH_BOX(&table_matmul_points));
  m.impl("overlap_matmul_points", TORCH_BOX(&overlap_matmul_points));
}

}  // namespace pvq::ops
