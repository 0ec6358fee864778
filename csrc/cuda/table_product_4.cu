// The products of the 4-bit table code with up to 8 rows of activations.
#include "cuda/table_product.cuh"

namespace pvq {

int table_product_4(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_product<TableChunk<4>>(task, multiprocessors, stream);
}

}  // namespace pvq
