// The functions of cuda.h in a build without nvcc: each returns kCudaUnavailable.
#include "cuda/cuda.h"

namespace pvq {

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
const char* cuda_error_string(int) {
  return "this build of pvq has no CUDA kernels: install nvcc (CUDA 12.8 or newer), then build again";
}

}  // namespace pvq
