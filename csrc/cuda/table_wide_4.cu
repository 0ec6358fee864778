// The products of the 4-bit table code with any number of tokens.
#include "cuda/table_wide.cuh"

namespace pvq {

int table_product_wide_4(const ProductTask& task, int multiprocessors, cudaStream_t stream) {
  return launch_table_wide<TableChunk<4>>(task, multiprocessors, stream);
}

}  // namespace pvq
