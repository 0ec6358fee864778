// overlap_dequantize, overlap_matmul and overlap_matmul_transposed on the CPU: the
// overlapping-pyramid codes of core/overlap.h.
#include "ops/overlap.h"

#include <algorithm>
#include <vector>

#include "cpu/overlap_tiles.h"
#include "ops/whole_code.h"

namespace pvq::ops {

// The most bits of a state: 64 Ki states of 16 sequences are 4 MiB of costs for each group.
constexpr int kMaxStateBits = 16;
constexpr int kMaxWindowBits = 12;
constexpr int kMaxSearchDim = 8;

OverlapTrellis checked_trellis(const char* op, const Tensor& table, int64_t step_bits, int64_t lag,
                               bool spread, int64_t most_terms) {
  check_range(op, "step_bits", step_bits, 2, 8);
  check_range(op, "lag", lag, 1, kMaxOverlapLag);
  check_rank(op, "table", table, 3);
  int window_bits = 0;
  while (window_bits < kMaxWindowBits && int64_t{1} << window_bits < table.size(0)) ++window_bits;
  const OverlapTrellis t{int(table.size(2)), int(step_bits),     window_bits,
                         int(lag),           int(table.size(1)), spread};
  PVQ_CHECK(table.size(0) == t.rows() && window_bits >= step_bits && t.terms >= 2 &&
                t.terms <= most_terms && t.dim >= 1 && t.dim <= kMaxSearchDim,
            "pvq::", op, ": table has shape ", shape_name(table), ", expected [2^n, ",
            most_terms == 2 ? "2" : "2 or 3", ", dim] with n from step_bits = ", step_bits, " to ",
            kMaxWindowBits, " and dim from 1 to ", kMaxSearchDim);
  PVQ_CHECK(t.state_bits() <= kMaxStateBits, "pvq::", op, ": a state has ", t.state_bits(),
            " bits (window bits + ((terms - 1) * lag - 1) * step_bits), expected ", kMaxStateBits,
            " at most");
  PVQ_CHECK(!spread || (t.terms == 2 && window_bits == step_bits), "pvq::", op,
            ": spread with a table of shape ", shape_name(table),
            ", expected [2^step_bits, 2, dim]");
  return t;
}

StoredOverlap checked_overlap(const char* op, const Tensor& code, const Tensor& row_scale,
                              const Tensor& table, int64_t step_bits, int64_t lag, int64_t spread,
                              int64_t cols) {
  check_dtype(op, "table", table, {ScalarType::Char});
  check_range(op, "spread", spread, 0, 127);
  const OverlapTrellis trellis = checked_trellis(op, table, step_bits, lag, spread > 0);
  PVQ_CHECK(
      overlap_decodes(trellis), "pvq::", op, ": table has shape ", shape_name(table),
      " with step_bits = ", step_bits,
      ", expected groups (the last dimension) of 2 weights, or of 4 with even step_bits, and of "
      "4 with step_bits = 8 and 256 windows with a spread");
  PVQ_CHECK(cols >= 0 && cols % kOverlapStep == 0, "pvq::", op, ": cols is ", cols,
            ", expected a multiple of ", kOverlapStep);
  check_dtype(op, "code", code, {ScalarType::Byte});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  const int64_t rows = row_scale.size(0);
  check_shape(op, "code", code, {rows, overlap_row_bytes(trellis, cols)});
  check_same_device(op, "row_scale", row_scale, "code", code);
  check_same_device(op, "table", table, "code", code);
  StoredOverlap stored{{}, as_contiguous(code), as_contiguous(row_scale), as_contiguous(table)};
  stored.view = {stored.code.const_data_ptr<uint8_t>(),
                 static_cast<const uint16_t*>(stored.row_scale.const_data_ptr()),
                 stored.table.const_data_ptr<int8_t>(),
                 rows,
                 cols,
                 trellis,
                 int(spread),
                 overlap_windows(trellis)};
  return stored;
}

namespace {

// What the CPU's functions for whole rings need, as long as this lives.
struct RingRows {
  OverlapPlanes planes;

  explicit RingRows(OverlapView& view) {
    view.ring_rows = overlap_rows(view.trellis, view.table, view.spread, &planes);
    if (view.ring_rows) view.planes = &planes;
  }
};

Tensor overlap_dequantize_cpu(const Tensor& code, const Tensor& row_scale, const Tensor& table,
                              int64_t step_bits, int64_t lag, int64_t spread, int64_t cols,
                              ScalarType dtype, int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_dequantize";
  StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, spread, cols);
  const RingRows ring_rows(stored.view);
  return dequantize_whole(op, stored, dtype, {block, seed}, dequantize_overlap);
}

Tensor overlap_matmul_cpu(const Tensor& x, const Tensor& code, const Tensor& row_scale,
                          const Tensor& table, int64_t step_bits, int64_t lag, int64_t spread,
                          int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul";
  StoredOverlap stored =
      checked_overlap(op, code, row_scale, table, step_bits, lag, spread, columns_of(op, x));
  const RingRows ring_rows(stored.view);
  return multiply_whole<OverlapTiles>(op, x, stored, {block, seed});
}

Tensor overlap_matmul_transposed_cpu(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                                     const Tensor& table, int64_t step_bits, int64_t lag,
                                     int64_t spread, int64_t cols, int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul_transposed";
  StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, spread, cols);
  const RingRows ring_rows(stored.view);
  return multiply_whole_transposed<OverlapTiles>(op, g, stored, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("overlap_dequantize", TORCH_BOX(&overlap_dequantize_cpu));
  m.impl("overlap_matmul", TORCH_BOX(&overlap_matmul_cpu));
  m.impl("overlap_matmul_transposed", TORCH_BOX(&overlap_matmul_transposed_cpu));
}

}  // namespace pvq::ops
