// table_fragments, table_codes and table_rows: the run-time form of table codes on the GPU, made
// from the stored form, turned back into it, and read by the row.
#include "cuda/table_fragments.h"

#include "cuda/table_matmul.h"
#include "ops/aligned.h"
#include "ops/cuda_stream.h"
#include "ops/cuda_types.h"
#include "ops/hadamard.h"
#include "ops/matmul.h"
#include "ops/tables.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

// The words of a table int8 [256, entries] on the CPU.
TableWords checked_words(const char* op, const Tensor& table, int64_t bits) {
  const int64_t entries = table_dim(int(bits));
  check_dtype(op, "table", table, {ScalarType::Char});
  check_shape(op, "table", table, {kTablePoints, entries});
  PVQ_CHECK(table.is_cpu(), "pvq::", op, ": table is on a GPU, expected it on the CPU");
  const Tensor host = as_contiguous(table);
  const auto* bytes = static_cast<const uint8_t*>(host.const_data_ptr());
  TableWords words = {};
  for (int64_t i = 0; i < kTablePoints * entries; ++i)
    words.word[i / entries] |= uint32_t(bytes[i]) << (8 * (i % entries));
  return words;
}

// Fragments of a [rows, cols] matrix.
Tensor checked_fragments(const char* op, const Tensor& fragments, int64_t rows, int64_t cols,
                         int64_t bits) {
  check_table_bits(op, bits);
  check_dtype(op, "fragments", fragments, {ScalarType::Byte});
  check_rank(op, "fragments", fragments, 1);
  PVQ_CHECK(rows >= 0, "pvq::", op, ": rows is ", rows, ", expected 0 or more");
  PVQ_CHECK(cols >= 0 && cols % kChunkCols == 0, "pvq::", op, ": cols is ", cols,
            ", expected a multiple of ", kChunkCols);
  const int64_t bytes = TableFormat::table(int(bits)).fragment_bytes(rows, cols);
  PVQ_CHECK(fragments.numel() == bytes, "pvq::", op, ": fragments has ", fragments.numel(),
            " bytes, expected the ", bytes, " of ", rows, " rows and ", cols, " columns at ", bits,
            " bits");
  return aligned(fragments);
}

Tensor table_fragments(const Tensor& code, const Tensor& table, int64_t bits) {
  constexpr const char* op = "table_fragments";
  check_table_bits(op, bits);
  check_dtype(op, "code", code, {ScalarType::Byte});
  check_rank(op, "code", code, 2);
  const TableWords words = checked_words(op, table, bits);
  const int64_t rows = code.size(0), cols = code.size(1) * 8 / bits;
  PVQ_CHECK(cols % kChunkCols == 0 && table_row_bytes(int(bits), cols) == code.size(1), "pvq::", op,
            ": code has ", code.size(1), " bytes a row, expected those of a multiple of ",
            kChunkCols, " columns at ", bits, " bits");
  const DeviceGuard guard(code.get_device_index());
  const Tensor source = aligned(code);
  Tensor fragments = torch::stable::new_empty(
      code, {TableFormat::table(int(bits)).fragment_bytes(rows, cols)}, ScalarType::Byte);
  check_cuda(op, fragments_from_codes_cuda(words, source.const_data_ptr<uint8_t>(), rows, cols,
                                           int(bits), fragments.mutable_data_ptr<uint8_t>(),
                                           current_cuda_stream(code)));
  return fragments;
}

Tensor table_codes(const Tensor& fragments, int64_t rows, int64_t cols, int64_t bits) {
  constexpr const char* op = "table_codes";
  const Tensor source = checked_fragments(op, fragments, rows, cols, bits);
  const DeviceGuard guard(fragments.get_device_index());
  Tensor code = torch::stable::new_empty(fragments, {rows, table_row_bytes(int(bits), cols)},
                                         ScalarType::Byte);
  check_cuda(op, codes_from_fragments_cuda(source.const_data_ptr<uint8_t>(), rows, cols, int(bits),
                                           code.mutable_data_ptr<uint8_t>(),
                                           current_cuda_stream(fragments)));
  return code;
}

// An id that names no row cannot raise, because that would wait for the stream: its row is NaN.
Tensor table_rows(const Tensor& fragments, const Tensor& row_scale, const Tensor& ids, int64_t bits,
                  int64_t cols, ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "table_rows";
  check_weight_dtype(op, dtype);
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  check_dtype(op, "ids", ids, {ScalarType::Long});
  check_rank(op, "ids", ids, 1);
  check_same_device(op, "row_scale", row_scale, "fragments", fragments);
  check_same_device(op, "ids", ids, "fragments", fragments);
  check_rotation(op, {block, seed}, cols);
  const Tensor source = checked_fragments(op, fragments, row_scale.size(0), cols, bits);
  const DeviceGuard guard(fragments.get_device_index());
  const Tensor scale = as_contiguous(row_scale), which = as_contiguous(ids);
  // Rotated weights are rounded after the rotation, and there is no kernel for float64.
  const bool exact = block != 0 || dtype == ScalarType::Double;
  const ScalarType decoded = exact ? ScalarType::Float : dtype;
  const Tensor w = torch::stable::new_empty(fragments, {ids.size(0), cols}, decoded);
  FragmentRows task{};
  task.fragments = source.const_data_ptr<uint8_t>();
  task.row_scale = static_cast<const uint16_t*>(scale.const_data_ptr());
  task.ids = which.const_data_ptr<int64_t>();
  task.count = ids.size(0);
  task.rows = row_scale.size(0);
  task.cols = cols;
  task.bits = int(bits);
  task.type = real_type(decoded);
  task.w = w.mutable_data_ptr();
  check_cuda(op, rows_from_fragments_cuda(task, current_cuda_stream(fragments)));
  if (block) hadamard_on_cuda_(w, block, seed, /*inverse=*/true);
  return as_dtype(w, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) {
  m.impl("table_fragments", TORCH_BOX(&table_fragments));
  m.impl("table_codes", TORCH_BOX(&table_codes));
  m.impl("table_rows", TORCH_BOX(&table_rows));
}

}  // namespace pvq::ops
