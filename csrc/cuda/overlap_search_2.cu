// The search's kernels for groups of two weights.
#include "cuda/overlap_search.cuh"

namespace pvq {

cudaError_t launch_search_2(const OverlapSearchPlan& plan, cudaStream_t stream) {
  if (!plan.shared_costs) return launch_search<2, 16, false>(plan, stream);
  return plan.tile == 16  ? launch_search<2, 16>(plan, stream)
         : plan.tile == 8 ? launch_search<2, 8>(plan, stream)
                          : launch_search<2, 4>(plan, stream);
}

}  // namespace pvq
