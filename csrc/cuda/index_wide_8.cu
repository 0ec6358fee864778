// The products from exact indices of 8 dimensions: of 2.25 and 3.25 bits a weight, and of any.
#include "cuda/index_wide.cuh"

namespace pvq {

int index_product_8(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (task.index.bits) {
    case 18:
      return launch_float16_wide<IndexOperand<8, 18>>(task, multiprocessors, stream);
    case 26:
      return launch_float16_wide<IndexOperand<8, 26>>(task, multiprocessors, stream);
    default:
      return launch_float16_wide<IndexOperand<8, 0>>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
