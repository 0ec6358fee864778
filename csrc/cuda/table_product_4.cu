// The products of the 4-bit table code.
#include "cuda/table_product.cuh"

namespace pvq {

int table_product_4(const ProductTask& task, int multiprocessors, void* stream) {
  return launch_table_product<4>(task, multiprocessors, static_cast<cudaStream_t>(stream));
}

}  // namespace pvq
