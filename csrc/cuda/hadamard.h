// Block Hadamard transform on the GPU: the definition of cpu/hadamard.h over device pointers and a
// stream (a cudaStream_t as void*). Computed in float32, rounded once.
#pragma once

#include <cstdint>

namespace pvq {

enum class HadamardType { kFloat32, kFloat16, kBFloat16 };

struct HadamardCuda {
  const void* in;  // contiguous, 16-byte aligned
  void* out;       // likewise; in == out is allowed, partial overlap is not
  HadamardType type;
  int64_t size;  // rows * cols
  int64_t cols;  // a multiple of block, below 2^31
  int block;     // supported (split_hadamard_block)
  bool has_signs;
  uint64_t seed;  // of the signs
  bool inverse;
};

// Bytes of device memory that hadamard_cuda needs as workspace: 0 unless a block is too large for
// the shared memory of the current device.
int64_t hadamard_cuda_workspace(const HadamardCuda& task);

// Launches on the stream; neither synchronises nor allocates. Returns a cudaError_t.
int hadamard_cuda(const HadamardCuda& task, void* workspace, void* stream);

}  // namespace pvq
