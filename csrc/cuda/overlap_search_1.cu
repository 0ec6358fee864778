// The search's kernels for groups of one weight.
#include "cuda/overlap_search.cuh"

namespace pvq {

cudaError_t launch_search_1(const OverlapSearchPlan& plan, cudaStream_t stream) {
  if (!plan.shared_costs) return launch_search<1, 16, false>(plan, stream);
  return plan.tile == 16  ? launch_search<1, 16>(plan, stream)
         : plan.tile == 8 ? launch_search<1, 8>(plan, stream)
                          : launch_search<1, 4>(plan, stream);
}

}  // namespace pvq
