// Conversions of table codes between the stored form and fragments, and rows of fragments.
//
// A block moves up to four chunks of one tile, 16 rows x 512 columns, through shared memory: in
// fragments they are one run of bytes, in the stored form a run of 128 to 256 bytes in each row,
// and either side is read and written in runs. Which byte goes where is FragmentPlace's alone.
#include "cuda/table_fragments.h"

#include <cuda_runtime.h>

#include "cuda/rounded.cuh"
#include "cuda/table_decode.cuh"
#include "cuda/table_matmul.h"

namespace pvq {
namespace {

constexpr int kThreads = 256;
constexpr int kChunks = 4;  // of a block
constexpr int kHeaderBytes = TableFormat::table(2).header_bytes();

template <int kBits>
struct Stored {
  static constexpr int kWeights = TableCode<kBits>::kDim;        // that a byte names
  static constexpr int kWords = kChunkCols / kWeights / 4;       // of a row's names in a chunk
  static constexpr int kChunkBytes = TableChunk<kBits>::kBytes;  // as fragments
};

struct Matrix {
  int64_t rows, cols;
  int bits;

  __host__ __device__ int64_t chunks() const { return cols / kChunkCols; }
  __host__ __device__ int64_t spans() const { return (chunks() + kChunks - 1) / kChunks; }
  __host__ __device__ int64_t row_bytes() const { return table_row_bytes(bits, cols); }
};

// The chunks that a block moves.
struct Span {
  int64_t row, chunk;  // the first
  int count;           // chunks
  int64_t offset;      // in the fragments, in chunks

  __device__ explicit Span(const Matrix& m) {
    const int64_t tile = blockIdx.x / m.spans();
    row = tile * kTileRows;
    chunk = blockIdx.x % m.spans() * kChunks;
    count = int(min(int64_t(kChunks), m.chunks() - chunk));
    offset = tile * m.chunks() + chunk;
  }
};

// Place of the names of four weights or pairs in the stored form, and the chunk they are in.
template <int kBits>
struct NameWord {
  int row, word;

  __device__ NameWord(int i, const Span& span) {
    const int row_words = span.count * Stored<kBits>::kWords;
    row = i / row_words;
    word = i % row_words;
  }
  static __device__ int count(const Span& span) {
    return kTileRows * span.count * Stored<kBits>::kWords;
  }
  __device__ int64_t byte(const Matrix& m, const Span& span) const {
    return (span.row + row) * m.row_bytes() + (span.chunk * Stored<kBits>::kWords + word) * 4;
  }
  // Offset of name `i` of the word among the chunks.
  __device__ int place(int i) const {
    const int column = (word % Stored<kBits>::kWords * 4 + i) * Stored<kBits>::kWeights;
    return word / Stored<kBits>::kWords * Stored<kBits>::kChunkBytes +
           FragmentPlace::of_weight(row, column).code_byte(kBits);
  }
};

// At 3 bits, the signs that one lane of the product needs are eight bytes of a chunk: those of 32
// columns, a word of the stored form, in rows `row` and `row + 8`.
struct LaneSigns {
  static constexpr int kWords = kChunkCols / 32;  // of a row's signs in a chunk
  int row, word;

  __device__ LaneSigns(int i, const Span& span) {
    row = i / (span.count * kWords);
    word = i % (span.count * kWords);
  }
  static __device__ int count(const Span& span) { return kTileRows / 2 * span.count * kWords; }
  __device__ int64_t byte(const Matrix& m, const Span& span, int half) const {
    return (span.row + row + 8 * half) * m.row_bytes() + m.cols / 4 +
           (span.chunk * kWords + word) * 4;
  }
  // Offset of the eight bytes among the chunks.
  __device__ int place() const {
    return word / kWords * Stored<3>::kChunkBytes + (at(0, 0).sign_byte() & ~7);
  }
  // Bit of the eight bytes that is the sign of column `i`.
  __device__ int bit(int half, int i) const {
    return 8 * (at(half, i).sign_byte() & 7) + at(half, i).sign_bit();
  }

 private:
  __device__ FragmentPlace at(int half, int i) const {
    return FragmentPlace::of_weight(row + 8 * half, word % kWords * 32 + i);
  }
};

__device__ void copy_vectors(uint8_t* to, const uint8_t* from, int bytes) {
  for (int i = threadIdx.x; i < bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    fragments_kernel(const __grid_constant__ TableWords table, const uint8_t* code, const Matrix m,
                     uint8_t* fragments) {
  __shared__ __align__(16) uint8_t chunks[kChunks * Stored<kBits>::kChunkBytes];
  const Span span(m);
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < kTablePoints; i += kThreads)
      reinterpret_cast<uint32_t*>(fragments)[i] = table.word[i];

  for (int i = threadIdx.x; i < NameWord<kBits>::count(span); i += kThreads) {
    const NameWord<kBits> names(i, span);
    const bool present = span.row + names.row < m.rows;
    const uint32_t word =
        present ? *reinterpret_cast<const uint32_t*>(code + names.byte(m, span)) : 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) chunks[names.place(b)] = uint8_t(word >> (8 * b));
  }
  if constexpr (kBits == 3) {
    for (int i = threadIdx.x; i < LaneSigns::count(span); i += kThreads) {
      const LaneSigns signs(i, span);
      uint64_t lane = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool present = span.row + signs.row + 8 * half < m.rows;
        const uint32_t word =
            present ? *reinterpret_cast<const uint32_t*>(code + signs.byte(m, span, half)) : 0;
#pragma unroll
        for (int c = 0; c < 32; ++c) lane |= uint64_t(word >> c & 1) << signs.bit(half, c);
      }
      *reinterpret_cast<uint64_t*>(chunks + signs.place()) = lane;
    }
  }
  __syncthreads();  // the chunks are whole
  constexpr int kBytes = Stored<kBits>::kChunkBytes;
  copy_vectors(fragments + kHeaderBytes + span.offset * kBytes, chunks, span.count * kBytes);
}

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    codes_kernel(const uint8_t* fragments, const Matrix m, uint8_t* code) {
  __shared__ __align__(16) uint8_t chunks[kChunks * Stored<kBits>::kChunkBytes];
  const Span span(m);
  constexpr int kBytes = Stored<kBits>::kChunkBytes;
  copy_vectors(chunks, fragments + kHeaderBytes + span.offset * kBytes, span.count * kBytes);
  __syncthreads();  // the chunks are there

  for (int i = threadIdx.x; i < NameWord<kBits>::count(span); i += kThreads) {
    const NameWord<kBits> names(i, span);
    if (span.row + names.row >= m.rows) continue;
    uint32_t word = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) word |= uint32_t(chunks[names.place(b)]) << (8 * b);
    *reinterpret_cast<uint32_t*>(code + names.byte(m, span)) = word;
  }
  if constexpr (kBits == 3) {
    for (int i = threadIdx.x; i < LaneSigns::count(span); i += kThreads) {
      const LaneSigns signs(i, span);
      const uint64_t lane = *reinterpret_cast<const uint64_t*>(chunks + signs.place());
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (span.row + signs.row + 8 * half >= m.rows) continue;
        uint32_t word = 0;
#pragma unroll
        for (int c = 0; c < 32; ++c) word |= uint32_t(lane >> signs.bit(half, c) & 1) << c;
        *reinterpret_cast<uint32_t*>(code + signs.byte(m, span, half)) = word;
      }
    }
  }
}

// --- rows
// -----------------------------------------------------------------------------------------

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T value[4];
};

// A thread decodes four weights.
template <class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(const FragmentRows task) {
  const int64_t quads = task.cols / 4;
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= task.count * quads) return;
  const int64_t id = task.ids[i / quads], row = id < 0 ? id + task.rows : id;
  const int64_t column = i % quads * 4;
  Quad<T> out;
  if (row < 0 || row >= task.rows) {
    for (T& value : out.value) value = rounded<T>(__int_as_float(0x7FFFFFFF));
  } else {
    const int bits = task.bits;
    const auto* table = reinterpret_cast<const uint32_t*>(task.fragments);
    const int64_t chunk_number = row / kTileRows * (task.cols / kChunkCols) + column / kChunkCols;
    const uint8_t* chunk =
        task.fragments + kHeaderBytes + chunk_number * TableFormat::table(bits).chunk_bytes();
    const FragmentPlace at =
        FragmentPlace::of_weight(int(row % kTileRows), int(column % kChunkCols));
    uint32_t entries = table[chunk[at.code_byte(bits)]];
    if (bits == 4) entries = (entries & 0xFFFF) | table[chunk[at.code_byte(bits) + 1]] << 16;
    const float scale = __uint_as_float(uint32_t(task.row_scale[row]) << 16);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      auto value = static_cast<float>(static_cast<int8_t>(entries >> (8 * k)));
      if (bits == 3) {
        value = 2 * value + 1;
        const FragmentPlace sign =
            FragmentPlace::of_weight(int(row % kTileRows), int(column % kChunkCols) + k);
        if (chunk[sign.sign_byte()] >> sign.sign_bit() & 1) value = -value;
      }
      out.value[k] = rounded<T>(scale * value);
    }
  }
  reinterpret_cast<Quad<T>*>(task.w)[i] = out;
}

// --- launches
// -------------------------------------------------------------------------------------

unsigned blocks_for(const Matrix& m) { return unsigned(tiles_of(m.rows) * m.spans()); }

template <int kBits>
cudaError_t launch_fragments(const TableWords& table, const uint8_t* code, const Matrix& m,
                             uint8_t* fragments, cudaStream_t stream) {
  fragments_kernel<kBits><<<blocks_for(m), kThreads, 0, stream>>>(table, code, m, fragments);
  return cudaGetLastError();
}

template <int kBits>
cudaError_t launch_codes(const uint8_t* fragments, const Matrix& m, uint8_t* code,
                         cudaStream_t stream) {
  codes_kernel<kBits><<<blocks_for(m), kThreads, 0, stream>>>(fragments, m, code);
  return cudaGetLastError();
}

__global__ void table_kernel(const __grid_constant__ TableWords table, uint8_t* fragments) {
  reinterpret_cast<uint32_t*>(fragments)[threadIdx.x] = table.word[threadIdx.x];
}

}  // namespace

int fragments_from_codes_cuda(const TableWords& table, const uint8_t* code, int64_t rows,
                              int64_t cols, int bits, uint8_t* fragments, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const Matrix m = {rows, cols, bits};
  if (blocks_for(m) == 0) {
    table_kernel<<<1, kTablePoints, 0, queue>>>(table, fragments);
    return cudaGetLastError();
  }
  return bits == 2   ? launch_fragments<2>(table, code, m, fragments, queue)
         : bits == 3 ? launch_fragments<3>(table, code, m, fragments, queue)
                     : launch_fragments<4>(table, code, m, fragments, queue);
}

int codes_from_fragments_cuda(const uint8_t* fragments, int64_t rows, int64_t cols, int bits,
                              uint8_t* code, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const Matrix m = {rows, cols, bits};
  if (blocks_for(m) == 0) return cudaSuccess;
  return bits == 2   ? launch_codes<2>(fragments, m, code, queue)
         : bits == 3 ? launch_codes<3>(fragments, m, code, queue)
                     : launch_codes<4>(fragments, m, code, queue);
}

int rows_from_fragments_cuda(const FragmentRows& task, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const auto blocks = unsigned((task.count * (task.cols / 4) + kThreads - 1) / kThreads);
  if (blocks == 0) return cudaSuccess;
  switch (task.type) {
    case RealType::kFloat32:
      rows_kernel<float><<<blocks, kThreads, 0, queue>>>(task);
      break;
    case RealType::kFloat16:
      rows_kernel<__half><<<blocks, kThreads, 0, queue>>>(task);
      break;
    case RealType::kBFloat16:
      rows_kernel<__nv_bfloat16><<<blocks, kThreads, 0, queue>>>(task);
      break;
  }
  return cudaGetLastError();
}

}  // namespace pvq
