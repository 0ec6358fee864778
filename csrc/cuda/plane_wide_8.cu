// The products of planes of 8 bits.
#include "cuda/plane_wide.cuh"

namespace pvq {

int plane_product_8(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream) {
  return group == 8 ? launch_float16_wide<PlaneOperand<8, 8>>(task, multiprocessors, stream)
                    : launch_float16_wide<PlaneOperand<8, 16>>(task, multiprocessors, stream);
}

}  // namespace pvq
