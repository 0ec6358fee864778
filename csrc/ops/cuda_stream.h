// torch's current CUDA stream, and how a launch's error becomes an exception.
#pragma once

#include "cuda/cuda.h"
#include "ops/checks.h"

// Part of libtorch_cuda: weak, so that the extension also loads into a torch without CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream)
    __attribute__((weak));

namespace pvq::ops {

// The current stream (a cudaStream_t) of the tensor's device.
inline void* current_cuda_stream(const Tensor& t) {
  PVQ_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "pvq: this build of torch has no CUDA support");
  void* stream = nullptr;
  const AOTITorchError error = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  PVQ_CHECK(error == 0, "pvq: no current CUDA stream on device ", t.get_device_index());
  return stream;
}

inline void check_cuda(const char* op, int error) {
  PVQ_CHECK(error == 0, "pvq::", op, ": ", cuda_error_string(error));
}

}  // namespace pvq::ops
