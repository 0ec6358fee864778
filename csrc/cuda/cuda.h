// CUDA kernels over raw device pointers and a stream (a cudaStream_t as void*).
// Every function returns a cudaError_t as int, 0 for success; kCudaUnavailable without nvcc.
#pragma once

#include <cstdint>

namespace pvq {

constexpr int kCudaUnavailable = -1;

bool built_with_cuda();
int cuda_device_count();
const char* cuda_error_string(int error);

// True while the stream's work is recorded for a graph instead of run.
bool cuda_is_capturing(void* stream);

// The number of the capture that records the stream's work, unique in this process; 0 for none.
uint64_t cuda_capture_id(void* stream);

// *value = the word in device memory once the stream's work so far is done, which this waits for.
int cuda_read_word(const void* word, uint64_t* value, void* stream);

}  // namespace pvq
