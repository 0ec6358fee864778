// The forms of exact indices, one for each code, table of levels and device.
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/device_tables.h"
#include "cuda/index_tables.h"

namespace pvq {

int index_form_cuda(const Regions& regions, int gain_bits, const float* levels, IndexForm* form) {
  static std::mutex mutex;
  static auto& cache = *new std::map<std::tuple<const Regions*, const float*, int>, IndexForm>;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::tuple key(&regions, levels, device);
  std::lock_guard<std::mutex> lock(mutex);
  auto found = cache.find(key);
  if (found == cache.end()) {
    const IndexTables tables(regions, gain_bits, levels);
    void* memory = nullptr;
    if (const int error = allocate_tables(tables.bytes.size(), &memory)) return error;
    if (const int error = copy_tables(tables.bytes.data(), tables.bytes.size(), memory))
      return error;
    found = cache.emplace(key, tables.at(static_cast<const uint8_t*>(memory))).first;
  }
  *form = found->second;
  return cudaSuccess;
}

}  // namespace pvq
