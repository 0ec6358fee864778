// The search's kernels for groups of three weights and more.
#include "cuda/overlap_search.cuh"

namespace pvq {

cudaError_t launch_search_3(const OverlapSearchPlan& plan, cudaStream_t stream) {
  const bool eight = plan.tile == 8;
  if (plan.task.trellis.spread && plan.task.trellis.dim == kSpreadDim)
    return eight ? launch_search<kSpreadDim, 8, true, true>(plan, stream)
                 : launch_search<kSpreadDim, 4, true, true>(plan, stream);
  switch (plan.task.trellis.dim) {
    case 3:
      return eight ? launch_search<3, 8>(plan, stream) : launch_search<3, 4>(plan, stream);
    case 4:
      return eight ? launch_search<4, 8>(plan, stream) : launch_search<4, 4>(plan, stream);
    case 5:
      return launch_search<5, 4>(plan, stream);
    case 6:
      return launch_search<6, 4>(plan, stream);
    case 7:
      return launch_search<7, 4>(plan, stream);
    case 8:
      return launch_search<8, 4>(plan, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace pvq
