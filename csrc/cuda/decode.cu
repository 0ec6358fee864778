// Unranking on the GPU: points and weights of a stored matrix.
//
// A block takes a tile of groups (tiles.cuh) through three steps: its bytes of the streams to
// shared memory; one thread a group unranks its index (core/index.h) and leaves the point in shared
// memory, with what the gain and the row's scale make of it; the block writes points or weights,
// neighbouring threads neighbouring addresses. For D = 8, 16 and 32 in one word the rows of splits
// stand in shared memory too (2 to 76 KB): their lookups scatter, which shared memory serves
// several times faster than the cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "core/bfloat16.h"
#include "core/gain.h"
#include "core/ieee.h"
#include "core/index.h"
#include "cuda/decode.h"
#include "cuda/pyramid_device.h"
#include "cuda/stream.cuh"

namespace pvq {
namespace {

enum class Output { kPoints, kFloat32, kFloat16, kBFloat16 };

struct DecodeTask {
  const uint8_t* index;
  Tiling tiling;
  Output output;
  void* out;           // [groups of all rows, dim]
  const char* tables;  // the pyramid's rows of splits, of which
  int table_bytes;     // so many go to shared memory
  int64_t groups;      // of a row
  // For weights:
  const uint8_t* gain;
  const uint16_t* row_scale;
  int gain_bits;
  float level[1 << kMaxGainBits];
};

// int16 values from one point in shared memory to the next: a multiple of 16 bytes that spreads the
// 16-byte accesses of eight threads over all banks when points have 8, 16 or 32 coordinates.
__host__ __device__ constexpr int point_stride(int dim) {
  return (dim + 7) / 8 * 8 + (dim > 8 ? 8 : 0);
}

// --- one group
// --------------------------------------------------------------------------------------

enum class Word { kPoint, kZero, kIllegal };

struct Unranked {
  Word word;
  int squared_norm;  // of a point
};

// From the order of an index and the zero group's.
__device__ Word word_of(int order) {
  return order < 0 ? Word::kPoint : order == 0 ? Word::kZero : Word::kIllegal;
}

__device__ int squared_norm(const int16_t* y, int dim) {
  int sum = 0;
  for (int i = 0; i < dim; ++i) sum += int(y[i]) * y[i];
  return sum;
}

__device__ void clear(int16_t* y, int dim) {
  for (int i = 0; i < dim; ++i) y[i] = 0;
}

// Two int8 values as int16: bytes 0 and 1, or 2 and 3, of `packed`.
__device__ uint32_t widen_low(uint32_t packed) {
  uint32_t pair;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(pair) : "r"(packed));
  return pair;
}
__device__ uint32_t widen_high(uint32_t packed) {
  uint32_t pair;
  asm("prmt.b32 %0, %1, 0, 0xB3A2;" : "=r"(pair) : "r"(packed));
  return pair;
}

// D = 8, 16, 32 in one word, the point in registers until it is complete.
template <int kDim_>
class FixedUnrank {
 public:
  static constexpr int kDim = kDim_;
  static constexpr int kThreads = 256;
  static constexpr int kResident = 5;  // blocks a multiprocessor holds: 48 registers
  static constexpr bool kTablesInShared = true;

  // A view whose rows of splits stand at `shared` instead of `tables`.
  __device__ FixedUnrank(const PyramidView& p, const char* tables, const char* shared) : p_(p) {
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      move(p_.level[l].rows, tables, shared);
      move(p_.level[l].splits, tables, shared);
      move(p_.level[l].first, tables, shared);
    }
  }

  __device__ Unranked operator()(const uint32_t* stream, int bit, int16_t* target) const {
    const uint64_t index = read_narrow(stream, bit, p_.index_bits);
    uint32_t pairs[kDim / 2] = {};
    int norm = 0;
    if (index < p_.zero_index)
      split_to_leaves<kDim>(p_, p_.pulses, index, 0, [&](int position, int k, uint64_t leaf) {
        if (k <= kLeafPulses) {
          const uint32_t packed = tabled_leaf(p_, k, leaf);
          pairs[position / 2] = widen_low(packed);
          pairs[position / 2 + 1] = widen_high(packed);
          norm = __dp4a(int(packed), int(packed), norm);
        } else {
          int16_t y[4];
          leaf::unrank4(k, leaf, y);
          for (int i = 0; i < 4; ++i) norm += int(y[i]) * y[i];
          pairs[position / 2] = uint16_t(y[0]) | uint32_t(uint16_t(y[1])) << 16;
          pairs[position / 2 + 1] = uint16_t(y[2]) | uint32_t(uint16_t(y[3])) << 16;
        }
      });
#pragma unroll
    for (int i = 0; i < kDim / 2; i += 4)
      reinterpret_cast<uint4*>(target)[i / 4] = {pairs[i], pairs[i + 1], pairs[i + 2],
                                                 pairs[i + 3]};
    const Word word = index < p_.zero_index    ? Word::kPoint
                      : index == p_.zero_index ? Word::kZero
                                               : Word::kIllegal;
    return {word, norm};
  }

 private:
  static constexpr int kLevels = kDim == 8 ? 1 : kDim == 16 ? 2 : 3;

  template <class T>
  static __device__ void move(const T*& pointer, const char* from, const char* to) {
    pointer = reinterpret_cast<const T*>(to + (reinterpret_cast<const char*>(pointer) - from));
  }

  PyramidView p_;
};

// Any size in one word.
class NarrowUnrank {
 public:
  static constexpr int kDim = 0;  // any
  static constexpr int kThreads = 64;
  static constexpr int kResident = 12;
  static constexpr bool kTablesInShared = false;

  __device__ NarrowUnrank(const PyramidView& p, const char*, const char*) : p_(p) {}

  __device__ Unranked operator()(const uint32_t* stream, int bit, int16_t* y) const {
    const uint64_t index = read_narrow(stream, bit, p_.index_bits);
    if (index >= p_.zero_index) {
      clear(y, p_.dim);
      return {index == p_.zero_index ? Word::kZero : Word::kIllegal, 0};
    }
    unrank_narrow(p_, 0, p_.pulses, index, y);
    return {Word::kPoint, squared_norm(y, p_.dim)};
  }

 private:
  const PyramidView& p_;
};

// Any size of at most kCapacity limbs.
template <int kCapacity>
class WideUnrank {
 public:
  static constexpr int kDim = 0;  // any
  static constexpr int kThreads = 64;
  static constexpr int kResident = 12;
  static constexpr bool kTablesInShared = false;

  __device__ WideUnrank(const PyramidView& p, const char*, const char*) : p_(p) {}

  __device__ Unranked operator()(const uint32_t* stream, int bit, int16_t* y) const {
    const Word word = word_of(compare_with_zero_index(stream, bit, p_));
    if (word != Word::kPoint) {
      clear(y, p_.dim);
      return {word, 0};
    }
    uint32_t index[kCapacity];
    for (int i = 0; i < p_.limbs; ++i) index[i] = read_limb(stream, bit, p_.index_bits, i);
    unrank_wide<kCapacity>(p_, index, y);
    return {Word::kPoint, squared_norm(y, p_.dim)};
  }

 private:
  const PyramidView& p_;
};

// What the point of a tile's group t is multiplied by; NaN where the index is illegal.
__device__ float scale_of(const DecodeTask& task, const float* level, const Unranked& unranked,
                          const Tile& tile, int t) {
  if (unranked.word == Word::kZero) return 0;
  if (unranked.word == Word::kIllegal) return std::numeric_limits<float>::quiet_NaN();
  const int r = tile.row_of(t);
  const int64_t row = tile.row + r, column = tile.column + (t - r * tile.groups);
  const uint8_t* gains = task.gain + row * bits::bytes_for(task.groups, task.gain_bits);
  const int code =
      task.gain_bits ? int(bits::read(gains, column * task.gain_bits, task.gain_bits)) : 0;
  const float row_scale = from_bfloat16(task.row_scale[row]);
  return ieee::divide(ieee::multiply(row_scale, level[code]),
                      ieee::root(float(unranked.squared_norm)));
}

// --- writing
// ----------------------------------------------------------------------------------------

struct Points {
  const int16_t* y;    // [count, point_stride(dim)] in shared memory
  const float* scale;  // [count]
  int count;
};

__device__ int16_t convert(int16_t y, float, int16_t) { return y; }
__device__ float convert(int16_t y, float scale, float) { return ieee::multiply(scale, float(y)); }
__device__ __half convert(int16_t y, float scale, __half) {
  return __float2half_rn(convert(y, scale, 0.0f));
}
__device__ __nv_bfloat16 convert(int16_t y, float scale, __nv_bfloat16) {
  return __float2bfloat16_rn(convert(y, scale, 0.0f));
}

// Sixteen bytes a thread where groups are made of such, else a value a thread.
template <class T>
__device__ void write(const Points& points, int dim, T* out) {
  constexpr int kRun = 16 / sizeof(T);
  struct alignas(16) Run {
    T value[kRun];
  };
  const bool whole = dim % 8 == 0;
  const unsigned run = whole ? kRun : 1, runs = dim / run;
  for (unsigned i = threadIdx.x; i < points.count * runs; i += blockDim.x) {
    const unsigned group = i / runs, first = (i - group * runs) * run;
    const int16_t* y = points.y + group * point_stride(dim) + first;
    const float scale = points.scale[group];
    if (whole) {
      Run values;
#pragma unroll
      for (int j = 0; j < kRun; ++j) values.value[j] = convert(y[j], scale, T());
      reinterpret_cast<Run*>(out)[i] = values;
    } else {
      out[i] = convert(*y, scale, T());
    }
  }
}

// --- kernels
// ----------------------------------------------------------------------------------------

template <class Unrank>
__global__ void __launch_bounds__(Unrank::kThreads, Unrank::kResident)
    decode_kernel(const __grid_constant__ DecodeTask task, const __grid_constant__ PyramidView p) {
  // Tables, then points, then the stream.
  extern __shared__ uint4 memory[];
  __shared__ float scale[Unrank::kThreads], level[1 << kMaxGainBits];
  char* tables = reinterpret_cast<char*>(memory);
  int16_t* points = reinterpret_cast<int16_t*>(tables + task.table_bytes);
  const int dim = Unrank::kDim ? Unrank::kDim : p.dim;
  const int stride = point_stride(dim);
  uint32_t* stream = reinterpret_cast<uint32_t*>(points + Unrank::kThreads * stride);
  for (int i = threadIdx.x; i < task.table_bytes / 16; i += Unrank::kThreads)
    memory[i] = reinterpret_cast<const uint4*>(task.tables)[i];
  for (int i = threadIdx.x; i < 1 << task.gain_bits; i += Unrank::kThreads)
    level[i] = task.level[i];
  const Unrank unrank(p, task.tables, tables);

  for (unsigned i = blockIdx.x; i < task.tiling.tiles(); i += gridDim.x) {
    const Tile tile = task.tiling.tile(i);
    const int start = stage_stream(task.index, tile, stream);
    __syncthreads();  // the stream is there, and the points of the tile before are written
    const int t = threadIdx.x;
    if (t < tile.count()) {
      const Unranked unranked =
          unrank(stream, start + tile.bit(t, p.index_bits), points + t * stride);
      if (task.output != Output::kPoints) scale[t] = scale_of(task, level, unranked, tile, t);
    }
    __syncthreads();  // the points are there, and the stream is read
    const Points decoded = {points, scale, tile.count()};
    const int64_t first = tile.group * dim;
    switch (task.output) {
      case Output::kPoints:
        write(decoded, dim, static_cast<int16_t*>(task.out) + first);
        break;
      case Output::kFloat32:
        write(decoded, dim, static_cast<float*>(task.out) + first);
        break;
      case Output::kFloat16:
        write(decoded, dim, static_cast<__half*>(task.out) + first);
        break;
      case Output::kBFloat16:
        write(decoded, dim, static_cast<__nv_bfloat16*>(task.out) + first);
        break;
    }
  }
}

struct CheckTask {
  const uint8_t* index;
  Tiling tiling;
  Refusal refusal;
};

constexpr int kCheckThreads = 128;

__global__ void __launch_bounds__(kCheckThreads)
    check_kernel(const __grid_constant__ CheckTask task, const __grid_constant__ PyramidView p) {
  extern __shared__ uint32_t stream[];
  for (unsigned i = blockIdx.x; i < task.tiling.tiles(); i += gridDim.x) {
    const Tile tile = task.tiling.tile(i);
    const int start = stage_stream(task.index, tile, stream);
    __syncthreads();  // the stream is there
    const int t = threadIdx.x;
    if (t < tile.count() &&
        compare_with_zero_index(stream, start + tile.bit(t, p.index_bits), p) > 0)
      task.refusal.report(tile.group + t);
    __syncthreads();  // the stream is read
  }
}

// --- launches
// ---------------------------------------------------------------------------------------

template <class Unrank>
cudaError_t launch(DecodeTask task, int64_t rows, const PyramidDevice& pyramid,
                   cudaStream_t stream) {
  const PyramidView& p = pyramid.view;
  task.tiling = Tiling(rows, task.groups, p.index_bits, Unrank::kThreads);
  task.tables = pyramid.tables;
  task.table_bytes = Unrank::kTablesInShared ? pyramid.row_bytes : 0;
  const size_t shared_bytes = task.table_bytes +
                              sizeof(int16_t) * Unrank::kThreads * point_stride(p.dim) +
                              sizeof(uint32_t) * stream_words(task.tiling.tile_bytes());
  int grid = 0;
  const cudaError_t error =
      persistent_grid(reinterpret_cast<const void*>(decode_kernel<Unrank>), Unrank::kThreads,
                      shared_bytes, task.tiling.tiles(), &grid);
  if (error != cudaSuccess) return error;
  decode_kernel<Unrank><<<grid, Unrank::kThreads, shared_bytes, stream>>>(task, p);
  return cudaGetLastError();
}

int decode(const DecodeTask& task, int64_t rows, const Pyramid& host_pyramid, void* stream) {
  if (rows == 0 || task.groups == 0) return cudaSuccess;
  const PyramidDevice* pyramid = nullptr;
  if (const int error = pyramid_device(host_pyramid, &pyramid)) return error;
  const PyramidView& p = pyramid->view;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (p.narrow && p.dim == 8) return launch<FixedUnrank<8>>(task, rows, *pyramid, queue);
  if (p.narrow && p.dim == 16) return launch<FixedUnrank<16>>(task, rows, *pyramid, queue);
  if (p.narrow && p.dim == 32) return launch<FixedUnrank<32>>(task, rows, *pyramid, queue);
  if (p.narrow) return launch<NarrowUnrank>(task, rows, *pyramid, queue);
  if (p.limbs <= 4) return launch<WideUnrank<4>>(task, rows, *pyramid, queue);
  if (p.limbs <= 16) return launch<WideUnrank<16>>(task, rows, *pyramid, queue);
  return launch<WideUnrank<limbs::kMax>>(task, rows, *pyramid, queue);
}

}  // namespace

int decode_cuda(const IndexStreams& streams, int16_t* y, void* stream) {
  DecodeTask task{};
  task.index = streams.index, task.groups = streams.groups;
  task.output = Output::kPoints, task.out = y;
  return decode(task, streams.rows, *streams.pyramid, stream);
}

int dequantize_cuda(const CodeView& code, RealType type, void* w, void* stream) {
  DecodeTask task{};
  task.index = code.index, task.groups = code.cols / code.dim;
  task.output = type == RealType::kFloat32   ? Output::kFloat32
                : type == RealType::kFloat16 ? Output::kFloat16
                                             : Output::kBFloat16;
  task.out = w;
  task.gain = code.gain, task.row_scale = code.row_scale, task.gain_bits = code.gain_bits;
  std::copy_n(code.levels, size_t(1) << code.gain_bits, task.level);
  return decode(task, code.rows, *code.pyramid, stream);
}

int check_codes_cuda(const IndexStreams& streams, const Refusal& refusal, void* stream) {
  if (streams.rows == 0 || streams.groups == 0) return cudaSuccess;
  const PyramidDevice* pyramid = nullptr;
  if (const int error = pyramid_device(*streams.pyramid, &pyramid)) return error;
  const PyramidView& p = pyramid->view;
  const CheckTask task = {
      streams.index, Tiling(streams.rows, streams.groups, p.index_bits, kCheckThreads), refusal};
  const size_t shared_bytes = sizeof(uint32_t) * stream_words(task.tiling.tile_bytes());
  int grid = 0;
  const cudaError_t error =
      persistent_grid(reinterpret_cast<const void*>(check_kernel), kCheckThreads, shared_bytes,
                      task.tiling.tiles(), &grid);
  if (error != cudaSuccess) return error;
  check_kernel<<<grid, kCheckThreads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(task, p);
  return cudaGetLastError();
}

}  // namespace pvq
