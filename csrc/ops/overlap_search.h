// The arguments of overlap_search, checked: the same on every device.
#pragma once

#include <optional>
#include <tuple>

#include "ops/overlap.h"

namespace pvq::ops {

// Contiguous (copied if need be), with the results, which are full already where there is nothing
// to search: no rows or no groups.
struct SearchArguments {
  OverlapTrellis trellis;
  int64_t rows, cols, groups;
  bool ring;
  float spread;
  int beam;  // paths that are kept; 0 for Viterbi's algorithm, with tables of two terms
  Tensor x, table;
  std::optional<Tensor> weight, start, end;
  Tensor symbol, began, cost;

  bool empty() const { return rows == 0 || groups == 0; }
  const float* factors() const { return weight ? weight->const_data_ptr<float>() : nullptr; }
  std::tuple<Tensor, Tensor, Tensor> results() const { return {symbol, began, cost}; }
};

SearchArguments check_search(const Tensor& x, const Tensor& table, int64_t step_bits, int64_t lag,
                             const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& start, const std::optional<Tensor>& end,
                             bool ring, int64_t beam, double spread);

}  // namespace pvq::ops
