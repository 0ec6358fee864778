// The two kernels behind hadamard_cuda: launches over device pointers. Each returns a cudaError_t.
#pragma once

#include <cuda_runtime.h>

#include "cuda/hadamard.h"

namespace pvq::hadamard {

// Blocks of 2^log2. The input is of the task's type or float32 (then the task's type is the
// output's), and `scale` multiplies the result.
struct PowerLaunch {
  HadamardCuda task;
  bool from_float32;
  int log2;
  float scale;
};
cudaError_t launch_power(const PowerLaunch& launch, cudaStream_t stream);
// Bytes of shared memory that this needs; from_float32 reaches up to kMaxFloat32Log2.
int power_shared_bytes(int log2);
constexpr int kMaxFloat32Log2 = 12;

// Blocks of factor << log2. With `partial`, only the product by H_m of the signed input, unscaled,
// as float32 in the input's layout.
struct FactorLaunch {
  HadamardCuda task;
  int factor, log2;
  float* partial;
};
cudaError_t launch_factor(const FactorLaunch& launch, cudaStream_t stream);
int factor_shared_bytes(const FactorLaunch& launch);

}  // namespace pvq::hadamard
