// Table codes and overlapping-pyramid codes on the GPU in fragments: their expansion, and the fused
// product.
#include "cuda/table_matmul.h"
#include "ops/fragments.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

TableFormat table_format(const char* op, int64_t bits) {
  check_range(op, "bits", bits, 2, 4);
  return TableFormat::table(int(bits));
}

TableFormat overlap_format(const char* op, int64_t pair_bits) {
  check_range(op, "pair_bits", pair_bits, 4, 8);
  return TableFormat::overlapping(int(pair_bits));
}

// Columns of the matrix behind fragments of `rows` rows.
int64_t checked_columns(const char* op, const Tensor& fragments, int64_t rows, TableFormat format) {
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  const int64_t bytes = fragments.numel() - format.header_bytes();
  const int64_t column_of_chunks = tiles_of(rows) * format.chunk_bytes();
  PVQ_CHECK(fragments.is_contiguous() && bytes >= 0 &&
                (column_of_chunks ? bytes % column_of_chunks == 0 : bytes == 0),
            "pvq::", op, ": fragments has ", fragments.numel(),
            " bytes, which is no whole number of chunks for ", rows, " rows at ",
            format.half_bits / 2.0, " bits; expected fragments of that code");
  return column_of_chunks ? bytes / column_of_chunks * kChunkCols : 0;
}

Tensor expand(const char* op, const Tensor& fragments, const Tensor& row_scale, TableFormat format,
              ScalarType dtype) {
  check_fragments(op, fragments, row_scale);
  check_expanded_dtype(op, dtype);
  const int64_t rows = row_scale.size(0), cols = checked_columns(op, fragments, rows, format);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor source = aligned(fragments), scale = torch::stable::contiguous(row_scale);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, table_expand_cuda(source.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   format, real_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

Tensor matmul(const char* op, const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
              TableFormat format, Rotation rotation, bool residual) {
  check_fragment_operands(op, x, fragments, row_scale);
  const int64_t cols = checked_columns(op, fragments, row_scale.size(0), format);
  PVQ_CHECK(x.dim() >= 1 && x.size(-1) == cols, "pvq::", op, ": x has shape ", shape_name(x),
            ", expected [..., ", cols, "]");
  TableProduct task{};
  task.format = format;
  task.residual = residual;
  return multiply_fragments(op, x, fragments, row_scale, cols, rotation, task,
                            table_product_workspace, table_product_cuda, [&] {
                              return expand(op, fragments, row_scale, format, x.scalar_type());
                            });
}

Tensor table_expand(const Tensor& fragments, const Tensor& row_scale, int64_t bits,
                    ScalarType dtype) {
  constexpr const char* op = "table_expand";
  return expand(op, fragments, row_scale, table_format(op, bits), dtype);
}

Tensor table_matmul_fragments(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                              int64_t bits, int64_t block, int64_t seed, bool residual) {
  constexpr const char* op = "table_matmul_fragments";
  return matmul(op, x, fragments, row_scale, table_format(op, bits), {block, seed}, residual);
}

Tensor overlap_expand(const Tensor& fragments, const Tensor& row_scale, int64_t pair_bits,
                      ScalarType dtype) {
  constexpr const char* op = "overlap_expand";
  return expand(op, fragments, row_scale, overlap_format(op, pair_bits), dtype);
}

Tensor overlap_matmul_fragments(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                                int64_t pair_bits, int64_t block, int64_t seed, bool residual) {
  constexpr const char* op = "overlap_matmul_fragments";
  return matmul(op, x, fragments, row_scale, overlap_format(op, pair_bits), {block, seed},
                residual);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_expand", TORCH_BOX(&table_expand));
  m.impl("table_matmul_fragments", TORCH_BOX(&table_matmul_fragments));
  m.impl("overlap_expand", TORCH_BOX(&overlap_expand));
  m.impl("overlap_matmul_fragments", TORCH_BOX(&overlap_matmul_fragments));
}

}  // namespace pvq::ops
