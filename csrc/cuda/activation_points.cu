// The rounding of activations to points (core/point_rounding.h) on the GPU: four values a thread,
// so 2 to 32 threads a group of 8 to 128 values, with loads and stores of neighbours by neighbours.
//
// What takes time is the pulses that rounding leaves over, which move one after the other: of 128
// Gaussian values some 3 in both roundings at 4 bits, 6 and then 10 at 2 bits. Each takes an
// extreme over the group, one instruction for a whole warp, and an update in the thread that holds
// it.
#include "cuda/activation_points.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/point_rounding.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/rounded.cuh"

namespace pvq {
namespace {

constexpr int kThreads = 128;

// kLanes neighbouring threads a group, in whose slot s the thread's place is lane + kLanes * s.
// All groups of a warp run together.
template <int kLanes, int kSlots>
class ThreadLanes {
 public:
  template <class T>
  struct Slots {
    T slot[kSlots];
    __device__ T& operator[](int s) { return slot[s]; }
    __device__ T operator[](int s) const { return slot[s]; }
  };
  using Floats = Slots<float>;
  using Integers = Slots<int32_t>;

  __device__ explicit ThreadLanes(int dim) : dim_(dim), lane_(threadIdx.x % kLanes) {}

  __device__ int dim() const { return dim_; }
  __device__ int place(int s) const { return lane_ + kLanes * s; }
  __device__ bool any(bool condition) const { return __any_sync(~0u, condition); }

  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) f(s);
  }
  template <class F>
  __device__ void at(int wanted, F f) const {
    each([&](int s) {
      if (place(s) == wanted) f(s);
    });
  }
  template <class F>
  __device__ void repeat(int count, F f) const {
    const int most = largest_among<32>(count);
#pragma unroll 1
    for (int i = 0; i < most; ++i) f(i < count);
  }
  template <class T, class F>
  __device__ T sum(F term) const {
    T t[kSlots];
    each([&](int s) { t[s] = term(s); });
#pragma unroll
    for (int width = kSlots / 2; width >= 1; width /= 2) {
#pragma unroll
      for (int s = 0; s < width; ++s) t[s] = t[s] + t[s + width];
    }
#pragma unroll
    for (int width = kLanes / 2; width >= 1; width /= 2)
      t[0] = t[0] + __shfl_xor_sync(~0u, t[0], width);
    return t[0];
  }
  template <class F>
  __device__ int32_t largest(F f) const {
    int32_t best = f(0);
    each([&](int s) { best = max(best, f(s)); });
    return largest_among<kLanes>(best);
  }
  template <class F>
  __device__ int32_t smallest(F f) const {
    return ~largest([&](int s) { return ~f(s); });
  }

 private:
  // Of so many neighbouring threads.
  template <int kNeighbours>
  static __device__ int32_t largest_among(int32_t value) {
    if constexpr (kNeighbours == 32) {
      value = __reduce_max_sync(~0u, value);
    } else {
#pragma unroll
      for (int width = kNeighbours / 2; width >= 1; width /= 2)
        value = max(value, __shfl_xor_sync(~0u, value, width));
    }
    return value;
  }

  int dim_, lane_;
};

__device__ float float_of(float value) { return value; }
__device__ float float_of(__half value) { return __half2float(value); }
__device__ float float_of(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T, int kLanes, int kSlots>
__global__ void __launch_bounds__(kThreads) points_kernel(const __grid_constant__ PointsTask task) {
  using Lanes = ThreadLanes<kLanes, kSlots>;
  wait_for_previous_kernel();
  allow_next_kernel();
  const Lanes lanes(task.dim);
  const int64_t group = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const auto is_value = [&](int s) { return group < task.count && lanes.place(s) < task.dim; };
  const T* x = static_cast<const T*>(task.x) + group * task.dim;
  typename Lanes::Floats value;
  lanes.each([&](int s) { value[s] = is_value(s) ? float_of(x[lanes.place(s)]) : 0.0f; });

  PointRounding<Lanes> rounding(lanes);
  lanes.each([&](int s) { rounding.magnitude[s] = fabsf(value[s]); });
  const uint16_t amplitude = rounding.round(task.pulses).amplitude;
  lanes.each([&](int s) {
    const int y = static_cast<int>(rounding.rounded[s]);
    if (is_value(s))
      task.y[group * task.dim + lanes.place(s)] = static_cast<int16_t>(value[s] < 0 ? -y : y);
  });
  if (group < task.count && lanes.place(0) == 0) task.amplitude[group] = amplitude;
}

template <class T, int kLanes, int kSlots = 4>
int launch(const PointsTask& task, cudaStream_t stream) {
  constexpr int kGroups = kThreads / kLanes;
  const int64_t blocks = (task.count + kGroups - 1) / kGroups;
  return launch_overlapped(points_kernel<T, kLanes, kSlots>, dim3(unsigned(blocks)), kThreads, 0,
                           stream, task);
}

template <class T>
int launch_points(const PointsTask& task, cudaStream_t stream) {
  if (task.dim <= 8) return launch<T, 2>(task, stream);
  if (task.dim <= 16) return launch<T, 4>(task, stream);
  if (task.dim <= 32) return launch<T, 8>(task, stream);
  if (task.dim <= 64) return launch<T, 16>(task, stream);
  if (task.dim <= 128) return launch<T, 32>(task, stream);
  return launch<T, 32, 8>(task, stream);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const __grid_constant__ PointsOperand points, int64_t total, T* out) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < total)
    out[i] = rounded<T>(from_bfloat16(points.amplitude[i / points.dim]) *
                        static_cast<float>(points.y[i]));
}

template <class T>
int launch_decode(const PointsOperand& points, int64_t count, void* out, cudaStream_t stream) {
  const int64_t total = count * points.dim, blocks = (total + kThreads - 1) / kThreads;
  return launch_overlapped(decode_kernel<T>, dim3(unsigned(blocks)), kThreads, 0, stream, points,
                           total, static_cast<T*>(out));
}

}  // namespace

int activation_points_cuda(const PointsTask& task, void* stream) {
  if (task.count == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  return task.type == RealType::kFloat32   ? launch_points<float>(task, queue)
         : task.type == RealType::kFloat16 ? launch_points<__half>(task, queue)
                                           : launch_points<__nv_bfloat16>(task, queue);
}

int decode_points_cuda(const PointsOperand& points, int64_t count, RealType type, void* out,
                       void* stream) {
  if (count == 0) return cudaSuccess;
  const auto queue = static_cast<cudaStream_t>(stream);
  return type == RealType::kFloat32   ? launch_decode<float>(points, count, out, queue)
         : type == RealType::kFloat16 ? launch_decode<__half>(points, count, out, queue)
                                      : launch_decode<__nv_bfloat16>(points, count, out, queue);
}

}  // namespace pvq
