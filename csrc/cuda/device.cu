// What is asked of the CUDA runtime itself.
#include <cuda_runtime.h>

#include "cuda/cuda.h"

namespace pvq {

bool built_with_cuda() { return true; }

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace pvq
