// The products from exact indices of 16 dimensions.
#include "cuda/index_wide.cuh"

namespace pvq {

int index_product_16(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_index_wide<16>(task, multiprocessors, stream);
}

}  // namespace pvq
