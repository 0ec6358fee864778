// The products of the 3-bit table code with any number of tokens.
#include "cuda/table_wide.cuh"

namespace pvq {

int table_product_wide_3(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_wide<TableChunk<3>>(task, multiprocessors, stream);
}

}  // namespace pvq
