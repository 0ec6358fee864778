// csrc/cuda/launch.cuh on the CPU, in whose place this file is read.
#pragma once

#include "machine.h"

namespace pvq {

template <class... Parameters>
cudaError_t prefer_shared_memory(void (*)(Parameters...)) {
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, int threads, size_t,
                              cudaStream_t, const Arguments&... arguments) {
  emulation::run_grid(grid, threads, [&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace pvq
