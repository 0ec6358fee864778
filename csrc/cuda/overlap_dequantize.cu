// Overlapping-pyramid codes in their stored form to weights.
//
// A thread takes eight weights, four groups of two or two of four, each the sum of two rows'
// points. Bytes of a ring and rows of the table stay in the caches.
#include "cuda/overlap_dequantize.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/rounded.cuh"

namespace pvq {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;
constexpr int kOctet = 8;

template <class T>
struct alignas(16) Octet {
  T value[kOctet];
};

// The symbols of a block of columns, which close to a ring of whole bytes.
struct Ring {
  const uint8_t* bytes;
  int symbols, stored_bits, step_bits, window_bits;

  // Window of symbol i, which may be below zero: the bits that end with it, the newest on top. With
  // a spread the bits of the symbol's weights are above that.
  __device__ __forceinline__ int window(int i) const { return bits(i) & ((1 << window_bits) - 1); }
  __device__ __forceinline__ int bits(int i) const {
    const int bits = symbols * stored_bits, count = bits / 8;
    int first = i * stored_bits + step_bits - window_bits;
    while (first < 0) first += bits;
    uint32_t word = 0;
#pragma unroll
    for (int k = 0; k < 3; ++k) word |= uint32_t(__ldg(bytes + (first / 8 + k) % count)) << (8 * k);
    return int(word >> (first % 8));
  }
};

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    overlap_kernel(const __grid_constant__ OverlapView code, T* w) {
  wait_for_previous_kernel();
  allow_next_kernel();
  OverlapTrellis t = code.trellis;
  t.dim = kDim;  // which the compiler then divides by
  const int64_t octets = code.cols / kOctet, total = code.rows * octets;
  const int64_t row_bytes = overlap_row_bytes(t, code.cols);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < total;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t row = i / octets, column = i % octets * kOctet;
    const int64_t first = column / kOverlapBlock * kOverlapBlock;
    const int cols = int(min(int64_t(kOverlapBlock), code.cols - first));
    const Ring ring = {code.code + row * row_bytes + overlap_row_bytes(t, first), cols / kDim,
                       t.stored_bits(), t.step_bits, t.window_bits};
    const int group = int(column - first) / kDim;
    const float scale = __uint_as_float(uint32_t(code.row_scale[row]) << 16);
    Octet<T> out;
#pragma unroll
    for (int g = 0; g < kOctet / kDim; ++g) {
      const int8_t* own = code.table + ring.window(group + g) * (2 * kDim);
      const int8_t* other = code.table + ring.window(group + g - t.lag) * (2 * kDim) + kDim;
#pragma unroll
      for (int k = 0; k < kDim; ++k) {
        int y = int(__ldg(own + k)) + int(__ldg(other + k));
        if (t.spread)
          y += ring.bits(group + g) >> (t.window_bits + k) & 1 ? code.spread : -code.spread;
        out.value[g * kDim + k] = rounded<T>(scale * static_cast<float>(y));
      }
    }
    reinterpret_cast<Octet<T>*>(w)[i] = out;
  }
}

template <class T>
int launch(const OverlapView& code, void* w, cudaStream_t stream) {
  const int64_t octets = code.rows * (code.cols / kOctet);
  if (octets == 0) return cudaSuccess;
  const auto blocks = unsigned(std::min(kMostBlocks, (octets + kThreads - 1) / kThreads));
  const auto kernel = code.trellis.dim == 2 ? overlap_kernel<T, 2> : overlap_kernel<T, 4>;
  return launch_overlapped(kernel, dim3(blocks), kThreads, 0, stream, code, static_cast<T*>(w));
}

}  // namespace

int overlap_dequantize_cuda(const OverlapView& code, RealType type, void* w, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return type == RealType::kFloat32   ? launch<float>(code, w, queue)
         : type == RealType::kFloat16 ? launch<__half>(code, w, queue)
                                      : launch<__nv_bfloat16>(code, w, queue);
}

}  // namespace pvq
