// The products of planes of 6 bits.
#include "cuda/plane_wide.cuh"

namespace pvq {

int plane_product_6(const ProductTask& task, int group, int multiprocessors, cudaStream_t stream) {
  return group == 8 ? launch_float16_wide<PlaneOperand<6, 8>>(task, multiprocessors, stream)
                    : launch_float16_wide<PlaneOperand<6, 16>>(task, multiprocessors, stream);
}

}  // namespace pvq
