// overlap_search on the GPU (cuda/overlap_search.h, cuda/overlap_beam.h): the CPU's results bit for
// bit. Nothing here waits for the GPU, so states are not checked: one that is too large counts
// modulo their number.
#include "cuda/overlap_search.h"

#include <limits>

#include "cuda/overlap_beam.h"
#include "ops/cuda_stream.h"
#include "ops/overlap_search.h"

namespace pvq::ops {
namespace {

using torch::stable::accelerator::DeviceGuard;

const int32_t* states_of(const std::optional<Tensor>& given) {
  return given ? given->const_data_ptr<int32_t>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> overlap_search(const Tensor& x, const Tensor& table,
                                                  int64_t step_bits, int64_t lag,
                                                  const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& start,
                                                  const std::optional<Tensor>& end, bool ring,
                                                  int64_t beam, double spread) {
  constexpr const char* op = "overlap_search";
  const DeviceGuard guard(x.get_device_index());
  const SearchArguments a =
      check_search(x, table, step_bits, lag, weight, start, end, ring, beam, spread);
  PVQ_CHECK(a.beam || overlap_search_supported(a.trellis), "pvq::", op, ": ", a.trellis.states(),
            " states of groups of ", a.trellis.dim,
            " are more than the GPU's exact search holds; pass ", a.spread > 0 ? "" : "a beam, or ",
            "tensors on the CPU");
  PVQ_CHECK(a.groups <= std::numeric_limits<int32_t>::max() / 2, "pvq::", op, ": x has ", a.cols,
            " columns, expected 2^30 groups at most");
  if (a.empty()) return a.results();
  OverlapSearchTask task{};
  task.trellis = a.trellis;
  task.x = a.x.const_data_ptr<float>();
  task.table = a.table.const_data_ptr<float>();
  task.spread = a.spread;
  task.weight = a.factors();
  task.start = states_of(a.start);
  task.end = states_of(a.end);
  task.ring = ring;
  task.rows = a.rows;
  task.groups = a.groups;
  task.symbol = a.symbol.mutable_data_ptr<uint8_t>();
  task.began = a.began.mutable_data_ptr<int32_t>();
  task.cost = a.cost.mutable_data_ptr<float>();
  const int64_t bytes =
      a.beam ? overlap_beam_workspace(task, a.beam) : overlap_search_workspace(task);
  const Tensor workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  void *memory = workspace.mutable_data_ptr(), *stream = current_cuda_stream(x);
  check_cuda(op, a.beam ? overlap_beam_cuda(task, a.beam, memory, stream)
                        : overlap_search_cuda(task, memory, stream));
  return a.results();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pvq, CUDA, m) { m.impl("overlap_search", TORCH_BOX(&overlap_search)); }

}  // namespace pvq::ops
