// Copies of the pyramid tables, one for each pyramid and device.
#include "cuda/pyramid_device.h"

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

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

cudaError_t copy_to_device(const std::vector<char>& bytes, void* target) {
  cudaStream_t stream;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  error = cudaMemcpyAsync(target, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  return error;
}

cudaError_t make(const Pyramid& pyramid, std::unique_ptr<PyramidDevice>* result) {
  const OutsideCapture outside;
  std::vector<char> bytes;
  size_t row_bytes = 0;
  pyramid.relocated(0, &bytes, &row_bytes);  // for the size
  void* memory = nullptr;
  cudaError_t error = cudaMalloc(&memory, bytes.size());
  if (error != cudaSuccess) return error;
  bytes.clear();
  auto made = std::make_unique<PyramidDevice>();
  made->view = pyramid.relocated(reinterpret_cast<uintptr_t>(memory), &bytes, &row_bytes);
  made->tables = static_cast<const char*>(memory);
  made->row_bytes = static_cast<int>(row_bytes);
  error = copy_to_device(bytes, memory);
  if (error == cudaSuccess)
    *result = std::move(made);
  else
    cudaFree(memory);
  return error;
}

}  // namespace

int pyramid_device(const Pyramid& pyramid, const PyramidDevice** result) {
  static std::mutex mutex;
  static auto& cache =
      *new std::map<std::pair<const Pyramid*, int>, std::unique_ptr<PyramidDevice>>;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[{&pyramid, device}];
  if (!entry)
    if (const cudaError_t error = make(pyramid, &entry); error != cudaSuccess) return error;
  *result = entry.get();
  return cudaSuccess;
}

}  // namespace pvq
