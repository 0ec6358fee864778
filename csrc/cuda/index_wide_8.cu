// The products from exact indices of 8 dimensions.
#include "cuda/index_wide.cuh"

namespace pvq {

int index_product_8(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_index_wide<8>(task, multiprocessors, stream);
}

}  // namespace pvq
