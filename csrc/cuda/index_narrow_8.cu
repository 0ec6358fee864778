// The products from exact indices of 8 dimensions for one and two tokens.
#include "cuda/index_narrow.cuh"

namespace pvq {

int index_narrow_8(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_index_narrow<8>(task, multiprocessors, stream);
}

}  // namespace pvq
