// The products from exact indices of 16 dimensions: of 2.25 and 3.25 bits a weight, and of any.
#include "cuda/index_wide.cuh"

namespace pvq {

int index_product_16(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  switch (task.index.bits) {
    case 36:
      return launch_float16_wide<IndexOperand<16, 36>>(task, multiprocessors, stream);
    case 52:
      return launch_float16_wide<IndexOperand<16, 52>>(task, multiprocessors, stream);
    default:
      return launch_float16_wide<IndexOperand<16, 0>>(task, multiprocessors, stream);
  }
}

}  // namespace pvq
