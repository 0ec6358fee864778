// Products from table codes: fragments, their expansion, and the choice of the kernel.
#include "cuda/table_matmul.h"

#include <cuda_runtime.h>

#include "cuda/table_activations.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {
namespace {

// --- fragments ------------------------------------------------------------------------------------

constexpr int kBlockThreads = 256;

// A thread makes one byte. Rows beyond the last get zero bytes: what they decode to is not written.
__global__ void fragments_kernel(const uint8_t* code, int64_t rows, int64_t cols, int bits,
                                 int64_t size, uint8_t* fragments) {
  const int64_t place = blockIdx.x * int64_t(kBlockThreads) + threadIdx.x;
  if (place >= size) return;
  const int chunk_bytes = int(table_chunk_bytes(bits)), byte = int(place % chunk_bytes);
  const int64_t chunk = place / chunk_bytes, chunks = cols / kChunkCols;
  const int64_t first_row = chunk / chunks * kTileRows, first_col = chunk % chunks * kChunkCols;
  const int64_t stride = cols * bits / 8;
  uint8_t value = 0;
  if (bits == 3 && byte >= 512) {
    const int offset = byte - 512;
    for (int bit = 0; bit < 8; ++bit) {
      const FragmentPlace at{offset / 8, offset % 8 / 4 * 2 + (7 - bit) / 4, (7 - bit) % 4,
                             offset % 4};
      const int64_t row = first_row + at.row(), col = first_col + at.column();
      if (row < rows)
        value |= uint8_t((code[row * stride + cols / 4 + col / 8] >> (col % 8) & 1) << bit);
    }
  } else {
    const FragmentPlace at = FragmentPlace::of_code_byte(byte, bits);
    const int64_t row = first_row + at.row(), col = first_col + at.column();
    if (row < rows) value = code[row * stride + col / (bits == 4 ? 2 : 4)];
  }
  fragments[kTableBytes + place] = value;
}

template <class T>
__device__ T to_float_type(float value);
template <>
__device__ __half to_float_type(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __nv_bfloat16 to_float_type(float value) {
  return __float2bfloat16_rn(value);
}

// A thread expands the four weights of a register.
template <class T>
__global__ void expand_kernel(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                              int64_t cols, int bits, T* w) {
  const int64_t quad = blockIdx.x * int64_t(kBlockThreads) + threadIdx.x;
  const int64_t row = quad / (cols / 4), col = quad % (cols / 4) * 4;
  if (row >= rows) return;
  const uint32_t* table = reinterpret_cast<const uint32_t*>(fragments);
  const uint8_t* chunk =
      fragments + kTableBytes +
      (row / kTileRows * (cols / kChunkCols) + col / kChunkCols) * table_chunk_bytes(bits);
  const FragmentPlace at =
      FragmentPlace::of_weight(int(row % kTileRows), int(col % kChunkCols));
  uint32_t entry = table[chunk[at.code_byte(bits)]];
  if (bits == 4) entry = (entry & 0xFFFF) | table[chunk[at.code_byte(bits) + 1]] << 16;
  const float scale = __uint_as_float(uint32_t(row_scale[row]) << 16);
  T out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float value = static_cast<float>(static_cast<int8_t>(entry >> (8 * i)));
    if (bits == 3) {
      value = 2 * value + 1;
      if (chunk[at.sign_byte() + i] >> at.sign_bit() & 1) value = -value;
    }
    out[i] = to_float_type<T>(scale * value);
  }
  *reinterpret_cast<uint2*>(w + row * cols + col) = *reinterpret_cast<const uint2*>(out);
}

int64_t blocks_for(int64_t threads) { return (threads + kBlockThreads - 1) / kBlockThreads; }

// --- activations of a product of their own launch ---------------------------------------------------

constexpr int kQuantizeThreads = 512;

template <int kTokens>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_kernel(const Activations a, const QuantizedActivations<kTokens> out) {
  __shared__ float exchange[kQuantizeThreads * 8];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t column = (blockIdx.x * int64_t(kQuantizeThreads) + threadIdx.x) * 8;
  quantize_octet(a, blockIdx.y, column, exchange, out);
}

template <int kTokens>
int quantize(const ProductTask& task, cudaStream_t stream) {
  const Activations& a = task.activations;
  const dim3 grid(unsigned((a.cols + kQuantizeThreads * 8 - 1) / (kQuantizeThreads * 8)),
                  unsigned(a.tokens));
  quantize_kernel<kTokens><<<grid, kQuantizeThreads, 0, stream>>>(
      a, QuantizedActivations<kTokens>{task.values, task.scale, task.sum});
  return cudaGetLastError();
}

struct DeviceLimits {
  int multiprocessors = 0, shared = 0, major = 0;
};

// Read once a device.
const DeviceLimits& device_limits() {
  constexpr int kMaxDevices = 64;
  static DeviceLimits limits[kMaxDevices];
  static const DeviceLimits none;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return none;
  DeviceLimits& d = limits[device];
  if (d.multiprocessors == 0) {
    cudaDeviceGetAttribute(&d.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&d.major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  return d;
}

int padded_tokens(int tokens) { return tokens <= 8 ? 8 : 16; }

// Bytes of the activations in the fused form: they must fit below the table.
int64_t fused_bytes(const TableProduct& task) {
  return task.tokens * task.cols + task.cols / kChunkCols * padded_tokens(task.tokens) * 8;
}

// One or two tokens: more cost less in a launch of their own, which every block then shares.
bool is_fused(const TableProduct& task) {
  return task.tokens <= 2 && fused_bytes(task) <= int64_t(kTableAddress) - 2048;
}

}  // namespace

int table_fragments_cuda(const uint8_t* code, const uint32_t* table, int64_t rows, int64_t cols,
                         int bits, uint8_t* fragments, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaMemcpyAsync(fragments, table, kTableBytes, cudaMemcpyHostToDevice, s);
  if (error != cudaSuccess) return error;
  const int64_t size = table_fragment_bytes(rows, cols, bits) - kTableBytes;
  if (size > 0)
    fragments_kernel<<<unsigned(blocks_for(size)), kBlockThreads, 0, s>>>(code, rows, cols, bits,
                                                                          size, fragments);
  return cudaGetLastError();
}

int table_expand_cuda(const uint8_t* fragments, const uint16_t* row_scale, int64_t rows,
                      int64_t cols, int bits, FloatType type, void* w, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto blocks = unsigned(blocks_for(rows * cols / 4));
  if (blocks == 0) return cudaSuccess;
  if (type == FloatType::kFloat16) {
    expand_kernel<<<blocks, kBlockThreads, 0, s>>>(fragments, row_scale, rows, cols, bits,
                                                   static_cast<__half*>(w));
  } else {
    expand_kernel<<<blocks, kBlockThreads, 0, s>>>(fragments, row_scale, rows, cols, bits,
                                                   static_cast<__nv_bfloat16*>(w));
  }
  return cudaGetLastError();
}

bool table_product_supported() {
  return device_limits().major >= 9 && device_limits().shared >= 227 * 1024;
}

bool table_product_block_supported(int64_t block) {
  return block == 0 || block == 128 || block == 256 || block == 512 || block == 1024;
}

int64_t table_product_workspace(const TableProduct& task) {
  if (is_fused(task)) return 0;
  return task.tokens * task.cols + task.cols / kChunkCols * padded_tokens(task.tokens) * 8;
}

int table_product_cuda(const TableProduct& t, void* stream) {
  ProductTask task{};
  task.fragments = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, t.cols, t.tokens, t.block, t.seed};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  if (!is_fused(t)) {
    const int tokens = padded_tokens(t.tokens);
    task.values = static_cast<int8_t*>(t.workspace);
    task.scale = reinterpret_cast<float*>(task.values + t.tokens * t.cols);
    task.sum = task.scale + task.chunks * tokens;
    const auto s = static_cast<cudaStream_t>(stream);
    const int error = tokens == 8 ? quantize<8>(task, s) : quantize<16>(task, s);
    if (error != cudaSuccess) return error;
  }
  const int multiprocessors = device_limits().multiprocessors;
  return t.bits == 2   ? table_product_2(task, multiprocessors, stream)
         : t.bits == 3 ? table_product_3(task, multiprocessors, stream)
                       : table_product_4(task, multiprocessors, stream);
}

}  // namespace pvq
