// CUDA kernels over raw device pointers and a stream (a cudaStream_t as void*).
// Every function returns a cudaError_t as int, 0 for success; kCudaUnavailable without nvcc.
#pragma once

namespace pvq {

constexpr int kCudaUnavailable = -1;

bool built_with_cuda();
int cuda_device_count();
const char* cuda_error_string(int error);

}  // namespace pvq
