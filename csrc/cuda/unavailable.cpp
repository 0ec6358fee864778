// The functions of csrc/cuda in a build without nvcc: each launch returns kCudaUnavailable.
#include "cuda/cuda.h"
#include "cuda/hadamard.h"

namespace pvq {

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
const char* cuda_error_string(int) {
  return "this build of pvq has no CUDA kernels: install nvcc (CUDA 12.8 or newer), then build again";
}

int64_t hadamard_cuda_workspace(const HadamardCuda&) { return 0; }
int hadamard_cuda(const HadamardCuda&, void*, void*) { return kCudaUnavailable; }

}  // namespace pvq
