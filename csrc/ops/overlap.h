// The arguments of the operators of overlapping-pyramid codes, checked: the same on every device.
#pragma once

#include "cpu/overlap_code.h"
#include "ops/checks.h"

namespace pvq::ops {

// What `table` [rows, terms, dim], of two terms to `most_terms`, and the numbers say; `table` is of
// the dtype that the operator takes.
OverlapTrellis checked_trellis(const char* op, const Tensor& table, int64_t step_bits, int64_t lag,
                               bool spread, int64_t most_terms = 2);

// The stored form, contiguous (copied if need be), with the tensors that keep its memory alive.
struct StoredOverlap {
  OverlapView view;
  Tensor code, row_scale, table;
};

StoredOverlap checked_overlap(const char* op, const Tensor& code, const Tensor& row_scale,
                              const Tensor& table, int64_t step_bits, int64_t lag, int64_t spread,
                              int64_t cols);

}  // namespace pvq::ops
