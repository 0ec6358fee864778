// overlap_search on the CPU: the best symbols of an overlapping-pyramid code
// (cpu/overlap_search.h).
#include "ops/overlap_search.h"

#include <algorithm>
#include <cmath>

#include "cpu/overlap_beam.h"
#include "cpu/overlap_search.h"
#include "ops/matmul.h"

namespace pvq::ops {
namespace {

constexpr const char* kOp = "overlap_search";

constexpr int64_t kMostBeam = 1 << 16;  // links of paths have 16 bits for one
constexpr int kMostExactBeam = 1 << 12;

using torch::stable::parallel_for;

std::optional<Tensor> checked_states(const char* name, const std::optional<Tensor>& given,
                                     const Tensor& x) {
  if (!given) return std::nullopt;
  check_dtype(kOp, name, *given, {ScalarType::Int});
  check_shape(kOp, name, *given, {x.size(0)});
  check_same_device(kOp, name, *given, "x", x);
  return as_contiguous(*given);
}

// The states of a tensor in the CPU's memory, or null.
const int32_t* states_in_range(const char* name, const std::optional<Tensor>& given, int states) {
  if (!given) return nullptr;
  const int32_t* state = given->const_data_ptr<int32_t>();
  for (int64_t r = 0; r < given->size(0); ++r)
    PVQ_CHECK(state[r] >= kFreeState && state[r] < states, "pvq::", kOp, ": ", name, " has ",
              state[r], " at ", r, ", expected -1 (any) or a state below ", states);
  return state;
}

}  // namespace

SearchArguments check_search(const Tensor& x, const Tensor& table, int64_t step_bits, int64_t lag,
                             const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& start, const std::optional<Tensor>& end,
                             bool ring, int64_t beam, double spread) {
  check_dtype(kOp, "x", x, {ScalarType::Float});
  check_rank(kOp, "x", x, 2);
  check_dtype(kOp, "table", table, {ScalarType::Float});
  SearchArguments a;
  PVQ_CHECK(spread >= 0 && std::isfinite(float(spread)), "pvq::", kOp, ": spread is ", spread,
            ", expected a finite number from 0 on");
  a.trellis = checked_trellis(kOp, table, step_bits, lag, spread > 0, /*most_terms=*/3);
  a.spread = float(spread);
  PVQ_CHECK(!(spread > 0) || a.trellis.dim == kSpreadDim, "pvq::", kOp, ": table has shape ",
            shape_name(table), ", expected groups (the last dimension) of 4 weights with a spread");
  PVQ_CHECK(!(spread > 0) || beam == 0, "pvq::", kOp, ": beam is ", beam,
            " with a spread, expected 0 (exact)");
  check_range(kOp, "beam", beam, 0, kMostBeam);
  a.beam = int(beam);
  if (beam == 0 && a.trellis.terms > 2) {
    PVQ_CHECK(a.trellis.states() <= kMostExactBeam, "pvq::", kOp, ": beam is 0 (exact), but ",
              a.trellis.states(), " states of three terms are too many for that; expected ",
              kMostExactBeam, " at most, or a beam, the number of paths that are kept");
    a.beam = a.trellis.states();  // as wide as the states, a beam search is exact
  }
  check_same_device(kOp, "table", table, "x", x);
  a.rows = x.size(0), a.cols = x.size(1), a.ring = ring;
  PVQ_CHECK(a.cols % a.trellis.dim == 0, "pvq::", kOp, ": x has ", a.cols,
            " columns, expected a multiple of dim = ", a.trellis.dim);
  a.groups = a.cols / a.trellis.dim;
  if (weight) {
    check_dtype(kOp, "weight", *weight, {ScalarType::Float});
    check_shape(kOp, "weight", *weight, {a.cols});
    check_same_device(kOp, "weight", *weight, "x", x);
    a.weight = as_contiguous(*weight);
  }
  a.start = checked_states("start", start, x);
  a.end = checked_states("end", end, x);
  PVQ_CHECK(!ring || !(start || end), "pvq::", kOp, ": ring with start or end, expected one");
  PVQ_CHECK(!ring || a.groups == 0 || a.groups * step_bits >= a.trellis.state_bits(), "pvq::", kOp,
            ": a ring of ", a.groups, " groups has ", a.groups * step_bits,
            " bits, expected those of a state, ", a.trellis.state_bits(), ", at least");
  a.x = as_contiguous(x);
  a.table = as_contiguous(table);
  a.symbol = torch::stable::new_empty(x, {a.rows, a.groups}, ScalarType::Byte);
  a.began = torch::stable::new_empty(x, {a.rows}, ScalarType::Int);
  a.cost = torch::stable::new_empty(x, {a.rows}, ScalarType::Float);
  if (a.empty()) {
    torch::stable::fill_(a.began, 0);
    torch::stable::fill_(a.cost, 0);
  }
  return a;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> overlap_search_cpu(const Tensor& x, const Tensor& table,
                                                      int64_t step_bits, int64_t lag,
                                                      const std::optional<Tensor>& weight,
                                                      const std::optional<Tensor>& start,
                                                      const std::optional<Tensor>& end, bool ring,
                                                      int64_t beam, double spread) {
  SearchArguments a =
      check_search(x, table, step_bits, lag, weight, start, end, ring, beam, spread);
  const int32_t* from = states_in_range("start", a.start, a.trellis.states());
  const int32_t* to = states_in_range("end", a.end, a.trellis.states());
  if (a.empty()) return a.results();
  const float* in = a.x.const_data_ptr<float>();
  const float* points = a.table.const_data_ptr<float>();
  const float* factors = a.factors();
  uint8_t* out = a.symbol.mutable_data_ptr<uint8_t>();
  int32_t* state = a.began.mutable_data_ptr<int32_t>();
  float* costs = a.cost.mutable_data_ptr<float>();
  if (a.beam) {
    parallel_for(0, a.rows, 1, [&](int64_t first, int64_t last) {
      OverlapBeam search(a.trellis, points, factors, a.groups, a.beam);
      for (int64_t r = first; r < last; ++r) {
        state[r] = from ? from[r] : kFreeState;
        const float* sequence = in + r * a.cols;
        uint8_t* symbols = out + r * a.groups;
        costs[r] = ring ? search.ring(sequence, &state[r], symbols)
                        : search.open(sequence, &state[r], to ? to[r] : kFreeState, symbols);
      }
    });
    return a.results();
  }
  const int64_t bundles = (a.rows + kOverlapLanes - 1) / kOverlapLanes;
  parallel_for(0, bundles, 1, [&](int64_t first, int64_t last) {
    OverlapSearch search(a.trellis, points, a.spread, factors, a.groups);
    for (int64_t r = first * kOverlapLanes; r < std::min(last * kOverlapLanes, a.rows);
         r += kOverlapLanes) {
      const int lanes = int(std::min<int64_t>(kOverlapLanes, a.rows - r));
      const float* sequence[kOverlapLanes];
      uint8_t* symbols[kOverlapLanes];
      int begins[kOverlapLanes], ends[kOverlapLanes];
      for (int lane = 0; lane < lanes; ++lane) {
        sequence[lane] = in + (r + lane) * a.cols;
        symbols[lane] = out + (r + lane) * a.groups;
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
  return a.results();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CPU, m) { m.impl("overlap_search", TORCH_BOX(&overlap_search_cpu)); }

}  // namespace pvq::ops
