// The products from exact indices of 16 dimensions for one and two tokens.
#include "cuda/index_narrow.cuh"

namespace pvq {

int index_narrow_16(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_index_narrow<16>(task, multiprocessors, stream);
}

}  // namespace pvq
