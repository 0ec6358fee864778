// overlap_search, overlap_dequantize, overlap_matmul and overlap_matmul_transposed on the CPU: the
// overlapping-pyramid codes of core/overlap.h.
#include "ops/overlap.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/overlap_search.h"
#include "cpu/overlap_tiles.h"
#include "ops/whole_code.h"

namespace pvq::ops {

// The most bits of a state: 64 Ki states of 16 sequences are 4 MiB of costs for each group.
constexpr int kMaxStateBits = 16;
constexpr int kMaxWindowBits = 12;
constexpr int kMaxSearchDim = 8;

OverlapTrellis checked_trellis(const char* op, const Tensor& table, int64_t step_bits,
                               int64_t lag) {
  check_range(op, "step_bits", step_bits, 2, 8);
  check_range(op, "lag", lag, 1, kMaxOverlapLag);
  check_rank(op, "table", table, 3);
  int window_bits = 0;
  while (window_bits < kMaxWindowBits && int64_t{1} << window_bits < table.size(0)) ++window_bits;
  const OverlapTrellis t{int(table.size(2)), int(step_bits), window_bits, int(lag)};
  PVQ_CHECK(table.size(0) == t.rows() && window_bits >= step_bits && table.size(1) == 2 &&
                t.dim >= 1 && t.dim <= kMaxSearchDim,
            "pvq::", op, ": table has shape ", shape_name(table),
            ", expected [2^n, 2, dim] with n ", "from step_bits = ", step_bits, " to ",
            kMaxWindowBits, " and dim from 1 to ", kMaxSearchDim);
  PVQ_CHECK(t.state_bits() <= kMaxStateBits, "pvq::", op, ": a state has ", t.state_bits(),
            " bits (window bits + (lag - 1) * step_bits), expected ", kMaxStateBits, " at most");
  return t;
}

StoredOverlap checked_overlap(const char* op, const Tensor& code, const Tensor& row_scale,
                              const Tensor& table, int64_t step_bits, int64_t lag, int64_t cols) {
  check_dtype(op, "table", table, {ScalarType::Char});
  const OverlapTrellis trellis = checked_trellis(op, table, step_bits, lag);
  PVQ_CHECK(trellis.dim == kOverlapDim, "pvq::", op, ": table has shape ", shape_name(table),
            ", expected groups of ", kOverlapDim);
  PVQ_CHECK(cols >= 0 && cols % kOverlapStep == 0, "pvq::", op, ": cols is ", cols,
            ", expected a multiple of ", kOverlapStep);
  check_dtype(op, "code", code, {ScalarType::Byte});
  check_dtype(op, "row_scale", row_scale, {ScalarType::BFloat16});
  check_rank(op, "row_scale", row_scale, 1);
  const int64_t rows = row_scale.size(0);
  check_shape(op, "code", code, {rows, overlap_row_bytes(int(step_bits), cols)});
  check_same_device(op, "row_scale", row_scale, "code", code);
  check_same_device(op, "table", table, "code", code);
  StoredOverlap stored{{}, as_contiguous(code), as_contiguous(row_scale), as_contiguous(table)};
  stored.view = {stored.code.const_data_ptr<uint8_t>(),
                 static_cast<const uint16_t*>(stored.row_scale.const_data_ptr()),
                 stored.table.const_data_ptr<int8_t>(),
                 rows,
                 cols,
                 trellis,
                 overlap_windows(trellis)};
  return stored;
}

namespace {

using torch::stable::parallel_for;

// States [rows] int32, or null.
const int32_t* checked_states(const char* op, const char* name, const std::optional<Tensor>& given,
                              const Tensor& x, int states, Tensor* held) {
  if (!given) return nullptr;
  check_dtype(op, name, *given, {ScalarType::Int});
  check_shape(op, name, *given, {x.size(0)});
  check_same_device(op, name, *given, "x", x);
  *held = as_contiguous(*given);
  const int32_t* state = held->const_data_ptr<int32_t>();
  for (int64_t r = 0; r < x.size(0); ++r)
    PVQ_CHECK(state[r] >= kFreeState && state[r] < states, "pvq::", op, ": ", name, " has ",
              state[r], " at ", r, ", expected -1 (any) or a state below ", states);
  return state;
}

std::tuple<Tensor, Tensor, Tensor> overlap_search_cpu(const Tensor& x, const Tensor& table,
                                                      int64_t step_bits, int64_t lag,
                                                      const std::optional<Tensor>& weight,
                                                      const std::optional<Tensor>& start,
                                                      const std::optional<Tensor>& end, bool ring) {
  constexpr const char* op = "overlap_search";
  check_dtype(op, "x", x, {ScalarType::Float});
  check_rank(op, "x", x, 2);
  check_dtype(op, "table", table, {ScalarType::Float});
  const OverlapTrellis trellis = checked_trellis(op, table, step_bits, lag);
  check_same_device(op, "table", table, "x", x);
  const int64_t rows = x.size(0), cols = x.size(1);
  PVQ_CHECK(cols % trellis.dim == 0, "pvq::overlap_search: x has ", cols,
            " columns, expected a multiple of dim = ", trellis.dim);
  const int64_t groups = cols / trellis.dim;
  if (weight) {
    check_dtype(op, "weight", *weight, {ScalarType::Float});
    check_shape(op, "weight", *weight, {cols});
    check_same_device(op, "weight", *weight, "x", x);
  }
  Tensor held_start, held_end;
  const int32_t* from = checked_states(op, "start", start, x, trellis.states(), &held_start);
  const int32_t* to = checked_states(op, "end", end, x, trellis.states(), &held_end);
  PVQ_CHECK(!ring || !(start || end), "pvq::overlap_search: ring with start or end, expected one");
  PVQ_CHECK(!ring || groups == 0 || groups * step_bits >= trellis.state_bits(),
            "pvq::overlap_search: a ring of ", groups, " groups has ", groups * step_bits,
            " bits, expected those of a state, ", trellis.state_bits(), ", at least");

  const Tensor input = as_contiguous(x), points = as_contiguous(table);
  const Tensor factors = weight ? as_contiguous(*weight) : points;
  Tensor symbol = torch::stable::new_empty(x, {rows, groups}, ScalarType::Byte);
  Tensor began = torch::stable::new_empty(x, {rows}, ScalarType::Int);
  Tensor cost = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  if (groups == 0) {
    torch::stable::fill_(began, 0);
    torch::stable::fill_(cost, 0);
    return {symbol, began, cost};
  }
  const float* in = input.const_data_ptr<float>();
  uint8_t* out = symbol.mutable_data_ptr<uint8_t>();
  int32_t* state = began.mutable_data_ptr<int32_t>();
  float* costs = cost.mutable_data_ptr<float>();
  const int64_t bundles = (rows + kOverlapLanes - 1) / kOverlapLanes;
  parallel_for(0, bundles, 1, [&](int64_t first, int64_t last) {
    OverlapSearch search(trellis, points.const_data_ptr<float>(),
                         weight ? factors.const_data_ptr<float>() : nullptr, groups);
    for (int64_t r = first * kOverlapLanes; r < std::min(last * kOverlapLanes, rows);
         r += kOverlapLanes) {
      const int lanes = int(std::min<int64_t>(kOverlapLanes, rows - r));
      const float* sequence[kOverlapLanes];
      uint8_t* symbols[kOverlapLanes];
      int begins[kOverlapLanes], ends[kOverlapLanes];
      for (int lane = 0; lane < lanes; ++lane) {
        sequence[lane] = in + (r + lane) * cols;
        symbols[lane] = out + (r + lane) * groups;
        begins[lane] = from ? from[r + lane] : kFreeState;
        ends[lane] = to ? to[r + lane] : kFreeState;
      }
      if (ring)
        search.ring(sequence, lanes, begins, symbols, costs + r);
      else
        search.open(sequence, lanes, begins, ends, symbols, costs + r);
      std::copy_n(begins, lanes, state + r);
    }
  });
  return {symbol, began, cost};
}

Tensor overlap_dequantize_cpu(const Tensor& code, const Tensor& row_scale, const Tensor& table,
                              int64_t step_bits, int64_t lag, int64_t cols, ScalarType dtype,
                              int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_dequantize";
  const StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, cols);
  return dequantize_whole(op, stored, dtype, {block, seed}, dequantize_overlap);
}

Tensor overlap_matmul_cpu(const Tensor& x, const Tensor& code, const Tensor& row_scale,
                          const Tensor& table, int64_t step_bits, int64_t lag, int64_t block,
                          int64_t seed) {
  constexpr const char* op = "overlap_matmul";
  const StoredOverlap stored =
      checked_overlap(op, code, row_scale, table, step_bits, lag, columns_of(op, x));
  return multiply_whole<OverlapTiles>(op, x, stored, {block, seed});
}

Tensor overlap_matmul_transposed_cpu(const Tensor& g, const Tensor& code, const Tensor& row_scale,
                                     const Tensor& table, int64_t step_bits, int64_t lag,
                                     int64_t cols, int64_t block, int64_t seed) {
  constexpr const char* op = "overlap_matmul_transposed";
  const StoredOverlap stored = checked_overlap(op, code, row_scale, table, step_bits, lag, cols);
  return multiply_whole_transposed<OverlapTiles>(op, g, stored, {block, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) {
  m.impl("overlap_search", TORCH_BOX(&overlap_search_cpu));
  m.impl("overlap_dequantize", TORCH_BOX(&overlap_dequantize_cpu));
  m.impl("overlap_matmul", TORCH_BOX(&overlap_matmul_cpu));
  m.impl("overlap_matmul_transposed", TORCH_BOX(&overlap_matmul_transposed_cpu));
}

}  // namespace pvq::ops
