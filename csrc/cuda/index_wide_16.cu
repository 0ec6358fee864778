// The products from exact indices of 16 dimensions: of 2.25 and 3.25 bits a weight, and of any.
#include "cuda/index_wide.cuh"

namespace pvq {

int index_product_16(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return with_index_widths<16>(task.index, [&](auto widths) {
    return launch_float16_wide<IndexOperand<decltype(widths)>>(task, multiprocessors, stream);
  });
}

}  // namespace pvq
