// What the current device can do.
#include "cuda/product_task.h"

namespace pvq {

const DeviceLimits& device_limits() {
  constexpr int kMaxDevices = 64;
  static DeviceLimits limits[kMaxDevices];
  static const DeviceLimits none;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return none;
  DeviceLimits& d = limits[device];
  if (d.multiprocessors == 0) {
    cudaDeviceGetAttribute(&d.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&d.major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  return d;
}

int allow_shared_memory(const void* kernel) {
  cudaFuncAttributes of_kernel;
  const cudaError_t error = cudaFuncGetAttributes(&of_kernel, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              device_limits().shared - int(of_kernel.sharedSizeBytes));
}

bool products_supported() {
#ifdef PVQ_SM90A
  return device_limits().major == 9 && device_limits().shared >= 227 * 1024;
#else
  return false;
#endif
}

bool product_block_supported(int64_t block) {
  return block >= 0 && block <= 1024 && (block & (block - 1)) == 0;
}

}  // namespace pvq
