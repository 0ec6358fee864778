// The block Hadamard transform on the GPU: which kernels a block takes.
#include "cuda/hadamard.h"

#include <algorithm>
#include <cmath>

#include "core/hadamard_factors.h"
#include "cuda/cuda.h"
#include "cuda/hadamard_kernels.h"

namespace pvq {
namespace {

using hadamard::FactorLaunch;
using hadamard::PowerLaunch;

// A block that does not fit in shared memory takes two kernels with a float32 array between them:
// H_m, then blocks of 2^k. Powers of two do so as 16 * 2^(k - 4).
constexpr int kPowerFactor = 16;

struct Choice {
  bool fits;
  HadamardSplit split;
};

cudaError_t choose(const HadamardCuda& task, Choice* choice) {
  int device = 0, available = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  HadamardSplit& split = choice->split;
  if (!split_hadamard_block(task.block, &split)) return cudaErrorInvalidValue;
  if (split.factor > 1) {
    const FactorLaunch launch{task, split.factor, split.log2, nullptr};
    choice->fits = hadamard::factor_shared_bytes(launch) <= available;
  } else {
    choice->fits = hadamard::power_shared_bytes(split.log2) <= available;
    if (!choice->fits) split = {kPowerFactor, split.log2 - 4};
  }
  return cudaSuccess;
}

cudaError_t run(const HadamardCuda& task, const Choice& choice, float* workspace,
                cudaStream_t stream) {
  const HadamardSplit split = choice.split;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(task.block)));
  if (choice.fits) {
    if (split.factor > 1)
      return hadamard::launch_factor({task, split.factor, split.log2, nullptr}, stream);
    return hadamard::launch_power({task, false, split.log2, scale}, stream);
  }
  if (!workspace) return cudaErrorInvalidValue;
  const cudaError_t error =
      hadamard::launch_factor({task, split.factor, split.log2, workspace}, stream);
  if (error != cudaSuccess) return error;
  HadamardCuda rest = task;
  rest.in = workspace;
  rest.has_signs = task.has_signs && task.inverse;  // the others were applied to the input
  return hadamard::launch_power({rest, true, split.log2, scale}, stream);
}

// As many rows as one launch takes: the kernels count elements in 32 bits, and their last blocks of
// threads reach beyond the end.
int64_t elements_per_launch(const HadamardCuda& task) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return std::min(task.size, std::max<int64_t>(1, kMost / task.cols) * task.cols);
}

}  // namespace

int64_t hadamard_cuda_workspace(const HadamardCuda& task) {
  Choice choice;
  if (choose(task, &choice) != cudaSuccess || choice.fits) return 0;
  return elements_per_launch(task) * static_cast<int64_t>(sizeof(float));
}

int hadamard_cuda(const HadamardCuda& task, void* workspace, void* stream) {
  Choice choice;
  cudaError_t error = choose(task, &choice);
  const int64_t step = elements_per_launch(task);
  const int64_t width = task.type == HadamardType::kFloat32 ? 4 : 2;
  for (int64_t done = 0; error == cudaSuccess && done < task.size; done += step) {
    HadamardCuda part = task;
    part.in = static_cast<const char*>(task.in) + done * width;
    part.out = static_cast<char*>(task.out) + done * width;
    part.size = std::min(step, task.size - done);
    error = run(part, choice, static_cast<float*>(workspace), static_cast<cudaStream_t>(stream));
  }
  return error;
}

}  // namespace pvq
