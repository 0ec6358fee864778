// The products of the 2-bit table code with any number of tokens.
#include "cuda/table_wide.cuh"

namespace pvq {

int table_product_wide_2(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_wide<TableChunk<2>>(task, multiprocessors, stream);
}

}  // namespace pvq
