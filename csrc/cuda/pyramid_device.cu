// Copies of the pyramid tables, one for each pyramid and device.
#include "cuda/pyramid_device.h"

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/device_tables.h"

namespace pvq {
namespace {

int make(const Pyramid& pyramid, std::unique_ptr<PyramidDevice>* result) {
  std::vector<char> bytes;
  size_t row_bytes = 0;
  pyramid.relocated(0, &bytes, &row_bytes);  // for the size
  void* memory = nullptr;
  if (const int error = allocate_tables(bytes.size(), &memory)) return error;
  bytes.clear();
  auto made = std::make_unique<PyramidDevice>();
  made->view = pyramid.relocated(reinterpret_cast<uintptr_t>(memory), &bytes, &row_bytes);
  made->tables = static_cast<const char*>(memory);
  made->row_bytes = static_cast<int>(row_bytes);
  if (const int error = copy_tables(bytes.data(), bytes.size(), memory)) return error;
  *result = std::move(made);
  return cudaSuccess;
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
    if (const int error = make(pyramid, &entry)) return error;
  *result = entry.get();
  return cudaSuccess;
}

}  // namespace pvq
