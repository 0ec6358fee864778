// Launches with programmatic dependent launch: what a kernel does before wait_for_previous_kernel
// (ptx.cuh) overlaps the end of the one before it in the stream, and of those before that one where
// it lets its successor start before it has waited itself. So what is read there (codes, tables)
// must not have been written by any such kernel.
#pragma once

#include <cuda_runtime.h>

#include "cuda/device_limits.h"

namespace pvq {

// For a kernel between others that need all of a multiprocessor's shared memory: divided as they
// have it. It is divided anew only while nothing runs there.
template <class... Parameters>
cudaError_t prefer_shared_memory(void (*kernel)(Parameters...)) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

// Returns a cudaError_t.
template <class... Parameters, class... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, int threads,
                              size_t shared_bytes, cudaStream_t stream,
                              const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024)
    if (const int error = allow_shared_memory(reinterpret_cast<const void*>(kernel)))
      return cudaError_t(error);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device_limits().major >= 9 ? 1 : 0;  // earlier devices have no such launches
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace pvq
