// The products of the overlapping-pyramid code of 4 bits with up to 8 rows of activations.
#include "cuda/overlap_decode.cuh"
#include "cuda/table_product.cuh"

namespace pvq {

int overlap_product_8(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_product<OverlapChunk<8>>(task, multiprocessors, stream);
}

}  // namespace pvq
