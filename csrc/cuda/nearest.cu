// The search of core/project.h on the GPU: one thread a vector, its arrays in registers, for
// vectors of 8, 16 and 32 coordinates; half a warp a vector for all others.
//
// Counted on D = 16, K = 28, quality 1: about 8 pulses are placed one by one and 2 moved, some 16
// instructions a coordinate and pulse, hence 200 instructions a weight and 100 to 150 billion
// weights a second on an H200. Half a warp would need twice that, most of it exchanges.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/project.h"
#include "cuda/encode.h"
#include "cuda/lanes.cuh"

namespace pvq {
namespace {

constexpr int kThreads = 128;

__device__ float load_real(const NearestCuda& task, int64_t i) {
  switch (task.type) {
    case RealType::kFloat16:
      return __half2float(static_cast<const __half*>(task.x)[i]);
    case RealType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(task.x)[i]);
    default:
      return static_cast<const float*>(task.x)[i];
  }
}

// Values [kDim] of a vector in 16-byte loads.
template <int kDim, class Values>
__device__ void load_vector(const NearestCuda& task, int64_t vector, Values& x) {
  if (task.type == RealType::kFloat32) {
    const float4* source = static_cast<const float4*>(task.x) + vector * (kDim / 4);
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
      const float4 v = source[i];
      x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
    }
    return;
  }
  const uint4* source = static_cast<const uint4*>(task.x) + vector * (kDim / 8);
  const bool half = task.type == RealType::kFloat16;
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
    const uint4 v = source[i];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint16_t bits = uint16_t(words[j / 2] >> (16 * (j % 2)));
      x[8 * i + j] = half ? __half2float(__ushort_as_half(bits))
                          : __bfloat162float(__ushort_as_bfloat16(bits));
    }
  }
}

// What is known of a vector beside its point.
__device__ void finish(const NearestCuda& task, int64_t vector, const project::Nearest& nearest) {
  if (nearest.found == project::Found::kNotFinite) task.refusal.report(task.first + vector);
  if (task.amplitude) task.amplitude[vector] = nearest.amplitude;
}

// kThorough: quality 2, whose second point takes kDim registers more.
template <int kDim, bool kThorough>
__global__ void __launch_bounds__(kThreads)
    nearest_one_thread(const __grid_constant__ NearestCuda task) {
  const int64_t vector = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (vector >= task.count) return;
  const OneThread<kDim> lanes(kDim);
  typename OneThread<kDim>::Values x, y;
  load_vector<kDim>(task, vector, x);
  uint32_t negative = 0;  // a bit a coordinate
  lanes.each([&](int i) {
    negative |= uint32_t(x[i] < 0) << i;
    x[i] = fabsf(x[i]);
  });
  const int quality = kThorough ? 2 : task.quality > 0;
  const project::Nearest nearest = project::nearest(lanes, x, task.pulses, quality, y);
  uint4* target = reinterpret_cast<uint4*>(task.y) + vector * (kDim / 8);
#pragma unroll
  for (int i = 0; i < kDim; i += 8) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int low = i + 2 * j, high = low + 1;
      const int a = int(negative >> low & 1 ? -y[low] : y[low]);
      const int b = int(negative >> high & 1 ? -y[high] : y[high]);
      words[j] = (uint32_t(a) & 0xFFFF) | uint32_t(b) << 16;
    }
    target[i / 8] = {words[0], words[1], words[2], words[3]};
  }
  finish(task, vector, nearest);
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads)
    nearest_half_warp(const __grid_constant__ NearestCuda task) {
  const int64_t vector = int64_t(blockIdx.x) * (kThreads / 16) + threadIdx.x / 16;
  if (vector >= task.count) return;
  const HalfWarp<kSlots> lanes(task.dim);
  typename HalfWarp<kSlots>::Values x, a, y;
  const int64_t start = vector * task.dim;
  lanes.each([&](int s) {
    x[s] = lanes.valid(s) ? load_real(task, start + lanes.coordinate(s)) : 0.0f;
    a[s] = fabsf(x[s]);
  });
  const project::Nearest nearest = project::nearest(lanes, a, task.pulses, task.quality, y);
  lanes.each([&](int s) {
    if (lanes.valid(s)) task.y[start + lanes.coordinate(s)] = int16_t(int(x[s] < 0 ? -y[s] : y[s]));
  });
  if (lanes.first()) finish(task, vector, nearest);
}

}  // namespace

int nearest_cuda(const NearestCuda& task, void* stream) {
  if (task.count == 0) return cudaSuccess;
  const auto launch = [&](auto* kernel, int vectors_per_block) {
    const int64_t blocks = (task.count + vectors_per_block - 1) / vectors_per_block;
    kernel<<<unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(task);
    return cudaGetLastError();
  };
  const auto one_thread = [&](auto* kernel, auto* thorough) {
    return task.quality == 2 ? launch(thorough, kThreads) : launch(kernel, kThreads);
  };
  if (task.dim == 8) return one_thread(nearest_one_thread<8, false>, nearest_one_thread<8, true>);
  if (task.dim == 16)
    return one_thread(nearest_one_thread<16, false>, nearest_one_thread<16, true>);
  if (task.dim == 32)
    return one_thread(nearest_one_thread<32, false>, nearest_one_thread<32, true>);
  constexpr int kVectors = kThreads / 16;
  if (task.dim <= 16) return launch(nearest_half_warp<1>, kVectors);
  if (task.dim <= 32) return launch(nearest_half_warp<2>, kVectors);
  if (task.dim <= 64) return launch(nearest_half_warp<4>, kVectors);
  if (task.dim <= 128) return launch(nearest_half_warp<8>, kVectors);
  return launch(nearest_half_warp<16>, kVectors);
}

}  // namespace pvq
