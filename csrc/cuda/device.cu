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

bool cuda_is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return status != cudaStreamCaptureStatusNone;
}

uint64_t cuda_capture_id(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &status, &id);
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

int cuda_read_word(const void* word, uint64_t* value, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaMemcpyAsync(value, word, sizeof(*value), cudaMemcpyDeviceToHost, queue);
  return error != cudaSuccess ? error : cudaStreamSynchronize(queue);
}

}  // namespace pvq
