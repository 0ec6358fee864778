// Table codes on the GPU in fragments: their expansion, and the fused product.
#include "cuda/table_matmul.h"
#include "ops/fragments.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

void check_bits(const char* op, int64_t bits) { check_range(op, "bits", bits, 2, 4); }

// Columns of the matrix behind fragments of `rows` rows.
int64_t checked_columns(const char* op, const Tensor& fragments, int64_t rows, int64_t bits) {
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  const int64_t bytes = fragments.numel() - kTableBytes;
  const int64_t column_of_chunks = tiles_of(rows) * table_chunk_bytes(int(bits));
  PVQ_CHECK(fragments.is_contiguous() && bytes >= 0 &&
                (column_of_chunks ? bytes % column_of_chunks == 0 : bytes == 0),
            "pvq::", op, ": fragments has ", fragments.numel(),
            " bytes, which is no whole number of chunks for ", rows, " rows at ", bits,
            " bits; expected what pvq::table_fragments gives");
  return column_of_chunks ? bytes / column_of_chunks * kChunkCols : 0;
}

Tensor table_expand(const Tensor& fragments, const Tensor& row_scale, int64_t bits,
                    ScalarType dtype) {
  constexpr const char* op = "table_expand";
  check_bits(op, bits);
  check_fragments(op, fragments, row_scale);
  check_expanded_dtype(op, dtype);
  const int64_t rows = row_scale.size(0), cols = checked_columns(op, fragments, rows, bits);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor scale = torch::stable::contiguous(row_scale);
  Tensor w = torch::stable::new_empty(fragments, {rows, cols}, dtype);
  check_cuda(op, table_expand_cuda(fragments.const_data_ptr<uint8_t>(),
                                   static_cast<const uint16_t*>(scale.const_data_ptr()), rows, cols,
                                   int(bits), real_type(dtype), w.mutable_data_ptr(),
                                   current_cuda_stream(fragments)));
  return w;
}

Tensor table_matmul_fragments(const Tensor& x, const Tensor& fragments, const Tensor& row_scale,
                              int64_t bits, int64_t block, int64_t seed, bool residual) {
  constexpr const char* op = "table_matmul_fragments";
  check_bits(op, bits);
  check_fragment_operands(op, x, fragments, row_scale);
  const int64_t cols = checked_columns(op, fragments, row_scale.size(0), bits);
  PVQ_CHECK(x.dim() >= 1 && x.size(-1) == cols, "pvq::", op, ": x has shape ", shape_name(x),
            ", expected [..., ", cols, "]");
  TableProduct task{};
  task.bits = int(bits);
  task.residual = residual;
  return multiply_fragments(op, x, fragments, row_scale, cols, {block, seed}, task,
                            table_product_workspace, table_product_cuda, [&] {
                              return table_expand(fragments, row_scale, bits, x.scalar_type());
                            });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_expand", TORCH_BOX(&table_expand));
  m.impl("table_matmul_fragments", TORCH_BOX(&table_matmul_fragments));
}

}  // namespace pvq::ops
