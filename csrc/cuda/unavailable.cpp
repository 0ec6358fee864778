// The functions of csrc/cuda in a build without nvcc: each launch returns kCudaUnavailable.
#include "cuda/cuda.h"
#include "cuda/hadamard.h"
#include "cuda/table_matmul.h"

namespace pvq {

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
const char* cuda_error_string(int) {
  return "this build of pvq has no CUDA kernels: install nvcc (CUDA 12.8 or newer), then build again";
}

int64_t hadamard_cuda_workspace(const HadamardCuda&) { return 0; }
int hadamard_cuda(const HadamardCuda&, void*, void*) { return kCudaUnavailable; }

int table_fragments_cuda(const uint8_t*, const uint32_t*, int64_t, int64_t, int, uint8_t*, void*) {
  return kCudaUnavailable;
}
int table_expand_cuda(const uint8_t*, const uint16_t*, int64_t, int64_t, int, FloatType, void*,
                      void*) {
  return kCudaUnavailable;
}
bool table_product_supported() { return false; }
bool table_product_block_supported(int64_t) { return false; }
int64_t table_product_workspace(const TableProduct&) { return 0; }
int table_product_cuda(const TableProduct&, void*) { return kCudaUnavailable; }

}  // namespace pvq
