// Table codes in their stored form back to weights.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/table_codes.h"
#include "cuda/rounded.cuh"
#include "cuda/table_stored.h"

namespace pvq {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 4096;  // of which each fills its table once

template <int kBits>
__device__ constexpr PointTable<TableCode<kBits>::kDim> kPoints = make_point_table<kBits>();

// The entries of code `i`, first weight lowest.
template <int kBits>
__device__ uint32_t entries_of(int i) {
  uint32_t entries = 0;
  for (int k = 0; k < TableCode<kBits>::kDim; ++k)
    entries |= uint32_t(uint8_t(kPoints<kBits>.point[i][k])) << (8 * k);
  return entries;
}

template <class T>
struct alignas(16) Octet {
  T value[kTableStep];
};

// Weights [column, column + 8) of a row in units of its scale.
template <int kBits>
__device__ void read_octet(const uint8_t* row, int64_t cols, int64_t column, const uint32_t* table,
                           float (&weight)[kTableStep]) {
  constexpr int kDim = TableCode<kBits>::kDim;
  const uint8_t* names = row + column / kDim;
  uint32_t signs = 0;
  if constexpr (TableCode<kBits>::kSignsApart) signs = row[cols / kDim + column / 8];
#pragma unroll
  for (int b = 0; b < kTableStep / kDim; ++b) {
    const uint32_t entries = table[names[b]];
#pragma unroll
    for (int k = 0; k < kDim; ++k) {
      const int value = table_magnitude<kBits>(static_cast<int8_t>(entries >> (8 * k)));
      const bool negative = signs >> (b * kDim + k) & 1;
      weight[b * kDim + k] = static_cast<float>(negative ? -value : value);
    }
  }
}

template <int kBits, class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const TableView code, T* w) {
  static_assert(kThreads == kTablePoints);
  __shared__ uint32_t table[kTablePoints];
  table[threadIdx.x] = entries_of<kBits>(threadIdx.x);
  __syncthreads();  // the table is there
  const int64_t octets = code.cols / kTableStep, total = code.rows * octets;
  const int64_t row_bytes = table_row_bytes(kBits, code.cols);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < total;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t row = i / octets;
    float weight[kTableStep];
    read_octet<kBits>(code.code + row * row_bytes, code.cols, i % octets * kTableStep, table,
                      weight);
    const float scale = __uint_as_float(uint32_t(code.row_scale[row]) << 16);
    Octet<T> out;
#pragma unroll
    for (int k = 0; k < kTableStep; ++k) out.value[k] = rounded<T>(scale * weight[k]);
    reinterpret_cast<Octet<T>*>(w)[i] = out;
  }
}

template <int kBits>
cudaError_t launch(const TableView& code, RealType type, void* w, cudaStream_t stream) {
  const int64_t octets = code.rows * (code.cols / kTableStep);
  const auto blocks = unsigned(std::min<int64_t>(kMostBlocks, (octets + kThreads - 1) / kThreads));
  if (blocks == 0) return cudaSuccess;
  switch (type) {
    case RealType::kFloat32:
      dequantize_kernel<kBits><<<blocks, kThreads, 0, stream>>>(code, static_cast<float*>(w));
      break;
    case RealType::kFloat16:
      dequantize_kernel<kBits><<<blocks, kThreads, 0, stream>>>(code, static_cast<__half*>(w));
      break;
    case RealType::kBFloat16:
      dequantize_kernel<kBits>
          <<<blocks, kThreads, 0, stream>>>(code, static_cast<__nv_bfloat16*>(w));
      break;
  }
  return cudaGetLastError();
}

}  // namespace

int table_dequantize_cuda(const TableView& code, RealType type, void* w, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return code.bits == 2   ? launch<2>(code, type, w, queue)
         : code.bits == 3 ? launch<3>(code, type, w, queue)
                          : launch<4>(code, type, w, queue);
}

}  // namespace pvq
