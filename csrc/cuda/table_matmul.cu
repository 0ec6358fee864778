// Products from table codes: fragments, and the choice of the kernel.
#include "cuda/table_matmul.h"

#include <cuda_runtime.h>

#include "cuda/product_output.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_product_task.h"

namespace pvq {
namespace {

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

int64_t blocks_for(int64_t threads) { return (threads + kBlockThreads - 1) / kBlockThreads; }

// How a product runs: one kernel or two, and the rows of the quantized activations.
struct Plan {
  bool narrow, fused;
  int stride;
};

Plan plan_of(const TableProduct& t) {
  const int rows = t.tokens * (t.residual ? 2 : 1);
  Plan plan;
  plan.narrow = rows <= kNarrowRows;
  // More tokens cost less in a launch of their own, which every block then shares.
  plan.fused = t.tokens <= 2 && QuantizedActivations::bytes(t.cols / kChunkCols, rows, 1) <=
                                    int64_t(kTableAddress) - 2048;
  const int step = plan.narrow ? 1 : table_wide_step(rows);
  plan.stride = (rows + step - 1) / step * step;
  return plan;
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

int64_t table_product_workspace(const TableProduct& task) {
  const Plan plan = plan_of(task);
  return plan.fused ? 0 : QuantizedActivations::bytes(task.cols / kChunkCols, plan.stride, 1);
}

int table_product_cuda(const TableProduct& t, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const Plan plan = plan_of(t);
  ProductTask task{};
  task.weights = t.fragments;
  task.row_scale = t.row_scale;
  task.y = t.y;
  task.activations = {t.x, t.type, t.cols, t.tokens, t.block, t.seed, t.residual ? 2 : 1};
  task.rows = int(t.rows);
  task.chunks = int(t.cols / kChunkCols);
  if (!plan.fused) {
    task.quantized = QuantizedActivations::at(t.workspace, task.chunks, plan.stride, 1);
    if (const int error = quantize_activations(task.activations, task.quantized, queue))
      return error;
  }
  const int processors = device_limits().multiprocessors;
  if (plan.narrow)
    return t.bits == 2   ? table_product_2(task, processors, queue)
           : t.bits == 3 ? table_product_3(task, processors, queue)
                         : table_product_4(task, processors, queue);
  return t.bits == 2   ? table_product_wide_2(task, processors, queue)
         : t.bits == 3 ? table_product_wide_3(task, processors, queue)
                       : table_product_wide_4(task, processors, queue);
}

}  // namespace pvq
