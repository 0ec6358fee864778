// The products of the overlapping-pyramid code of 2 bits with up to 8 rows of activations.
#include "cuda/overlap_decode.cuh"
#include "cuda/table_product.cuh"

namespace pvq {

int overlap_product_4(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_product<OverlapChunk<4>>(task, multiprocessors, stream);
}

}  // namespace pvq
