// The products of the 2-bit table code.
#include "cuda/table_product.cuh"

namespace pvq {

int table_product_2(const ProductTask& task, int multiprocessors, void* stream) {
  return launch_table_product<2>(task, multiprocessors, static_cast<cudaStream_t>(stream));
}

}  // namespace pvq
