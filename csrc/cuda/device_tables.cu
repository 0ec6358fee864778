#include "cuda/device_tables.h"

#include <cuda_runtime.h>

namespace pvq {
namespace {

// Lets this thread allocate and copy while some stream of its is captured: nothing here is part of
// the graph.
class OutsideCapture {
 public:
  OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

int allocate_tables(size_t bytes, void** memory) {
  const OutsideCapture outside;
  return cudaMalloc(memory, bytes);
}

int copy_tables(const void* source, size_t bytes, void* memory) {
  const OutsideCapture outside;
  cudaStream_t stream;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(memory, source, bytes, cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  if (error != cudaSuccess) cudaFree(memory);
  return error;
}

}  // namespace pvq
