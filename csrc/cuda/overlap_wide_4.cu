// The products of the overlapping-pyramid code of 2 bits with any number of tokens.
#include "cuda/table_wide.cuh"

namespace pvq {

int overlap_product_wide_4(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_wide<OverlapChunk<4>>(task, multiprocessors, stream);
}

}  // namespace pvq
