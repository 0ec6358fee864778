// Hadamard transforms of blocks m * 2^k: H_m by tensor cores, the 2^k part by butterflies.
//
// A block is a matrix of m rows and 2^k columns; the columns of all blocks, one after the other,
// are the columns that a block of threads takes a power of two of. H_m comes first, on the input as
// it is: +-1 times 16-bit numbers, summed in float32, is exact but for the sums; float32 input is
// cut into three bfloat16 parts (8 + 8 + 8 bits of its 24) that are multiplied one after the other.
// (An infinity in float32 input therefore makes its block NaN.) m is padded to a multiple of 16
// with zero input. A lane then holds 16 consecutive columns of a row: four stages in registers, for
// large 2^k one or two more between lanes, the rest after an exchange through shared memory.
//
// Against m additions an element, that is m / 14 tensor-core instructions for each 64 elements of a
// lane (m = 28: one instruction an element in place of 28).
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "core/hadamard_factors.h"
#include "cuda/hadamard_device.cuh"
#include "cuda/hadamard_kernels.h"
#include "cuda/mma.cuh"

namespace pvq::hadamard {
namespace {

constexpr int kTile = 16;         // rows and columns of H_m in one tensor-core instruction
constexpr int kWarpCols = 64;     // columns that a warp multiplies at a time: 8 for each lane group
constexpr int kMaxHeldTiles = 2;  // up to 2 * 16 rows the input of a warp stays in registers
constexpr int kMaxTiles = kMaxHadamardFactor / kTile;

struct Parameters {
  const void* in;
  void* out;                // or, for the partial product, float*
  uint32_t columns;         // of all blocks
  uint32_t blocks_per_row;  // of the array
  int factor, log2;
  int log2_cols;  // columns of a block of threads
  float scale;
  bool signs_in, signs_out;
  uint64_t seed;
};

// The signs of H_m (or its transpose) as lanes need them. Word [row tile][quad][lane] holds four
// tiles of 16 columns; register r of tile t of the quad (mma.cuh) has its lower element's sign at
// bit 4 t + r and its upper element's at 16 + 4 t + r, 1 for -1. What lies beyond m is arbitrary.
template <int kTiles>
struct FactorSigns {
  static constexpr int kQuads = (kTiles + 3) / 4;
  uint32_t word[kTiles * kQuads * kWarp];
};

// --- the product by H_m
// -------------------------------------------------------------------------------

// The type whose tensor-core instruction multiplies T.
template <class T>
using Multiplied = std::conditional_t<std::is_same_v<T, Half>, Half, BFloat16>;

__device__ uint32_t signed_ones(Half, uint32_t signs) { return signs ^ 0x3C003C00u; }
__device__ uint32_t signed_ones(BFloat16, uint32_t signs) { return signs ^ 0x3F803F80u; }

template <class T>
__device__ void expand_signs(uint32_t word, int tile_in_quad, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
    a[r] = signed_ones(Multiplied<T>{}, word << (15 - 4 * tile_in_quad - r) & 0x80008000u);
}

// Eight columns of one row.
template <class T>
struct RowPiece {
  uint4 raw[sizeof(T) / 2];
};

// Rows 2q, 2q + 1, 2q + 8, 2q + 9 of a tile of 16 input rows, eight columns from 8g of the warp's.
template <class T>
using TilePiece = RowPiece<T>[4];

// A warp's 64 columns, as far as one of its lane groups g loads them: eight columns of each row.
template <class T>
struct Columns {
  const T* in;          // row 0, null if the columns do not exist
  uint32_t row_stride;  // elements
  uint32_t first_col;   // of the array, for the signs

  // In the array, for 2^k >= 8.
  __device__ static Columns of_array(const Parameters& p, uint32_t column) {
    column += threadIdx.x % kWarp / 4 * 8;
    if (column >= p.columns) return {nullptr, 0, 0};
    const uint32_t width = 1u << p.log2, size = p.factor * width;
    const uint32_t block = column >> p.log2, j = column & (width - 1);
    return {static_cast<const T*>(p.in) + block * size + j, width,
            block % p.blocks_per_row * size + j};
  }
};

// `sign_table`, if given, holds the signs of eight columns as byte [row][table_stride].
struct SignTable {
  const uint8_t* bytes;
  int stride;
};

// The signs come from the table if there is one, otherwise they are computed if `p.signs_in`.
template <class T, bool kTable>
__device__ void load_tile(const Parameters& p, const Columns<T>& columns, int tile,
                          const SignTable& table, TilePiece<T>& piece) {
  constexpr int kVectors = sizeof(T) / 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tile * kTile + threadIdx.x % 4 * 2 + (i & 1) + (i & 2) * 4;
#pragma unroll
    for (uint4& raw : piece[i].raw) raw = make_uint4(0, 0, 0, 0);
    if (row >= p.factor || !columns.in) continue;
#pragma unroll
    for (int h = 0; h < kVectors; ++h)
      piece[i].raw[h] = load16(columns.in + row * columns.row_stride + h * (16 / sizeof(T)));
    uint32_t bits = 0;
    if constexpr (kTable) {
      if (table.bytes) bits = table.bytes[row * table.stride];
    } else {
      if (p.signs_in) bits = sign_bits(p.seed, columns.first_col + row * columns.row_stride);
    }
#pragma unroll
    for (int h = 0; h < kVectors; ++h)
      piece[i].raw[h] = flip_vector<T>(piece[i].raw[h], bits >> h * 4);
  }
}

__device__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The tensor core's second operand for column t: pairs of rows in a register.
template <class T>
__device__ uint32_t row_pair(const RowPiece<T>& upper, const RowPiece<T>& lower, int t) {
  return __byte_perm(word_of(upper.raw[0], t / 2), word_of(lower.raw[0], t / 2),
                     t % 2 ? 0x7632 : 0x5410);
}
// For float32: the leading 16 bits of each, which are then taken off.
__device__ uint32_t leading_pair(float& upper, float& lower) {
  const uint32_t u = __float_as_uint(upper), l = __float_as_uint(lower);
  upper -= __uint_as_float(u & 0xFFFF0000u);
  lower -= __uint_as_float(l & 0xFFFF0000u);
  return __byte_perm(u, l, 0x7632);
}

// sums[t] += (a tile of H_m) (a tile of the input), for the eight columns t of each lane group.
template <class T>
__device__ void multiply_tile(const uint32_t (&a)[4], const TilePiece<T>& piece,
                              float (&sums)[8][4]) {
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    if constexpr (sizeof(T) == 2) {
      mma(T{}, sums[t], a, row_pair<T>(piece[0], piece[1], t), row_pair<T>(piece[2], piece[3], t));
    } else {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(word_of(piece[i].raw[t / 4], t % 4));
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        const uint32_t b0 = leading_pair(x[0], x[1]), b1 = leading_pair(x[2], x[3]);
        mma(BFloat16{}, sums[t], a, b0, b1);
      }
    }
  }
}

// --- what the kernel prepares in shared memory where it does not hold its input
// ------------------------

// The signs of each row's columns, eight to a byte, [factor][cols / 8].
__device__ void fill_sign_table(const Parameters& p, uint32_t first_column, uint8_t* table) {
  const uint32_t width = 1u << p.log2, log2_stride = p.log2_cols - 3;
  for (uint32_t i = threadIdx.x; i < p.factor << log2_stride; i += blockDim.x) {
    const uint32_t row = i >> log2_stride;
    const uint32_t column = first_column + (i - (row << log2_stride)) * 8;
    const uint32_t block_in_row = (column >> p.log2) % p.blocks_per_row;
    const uint32_t col = (block_in_row * p.factor + row) * width + (column & (width - 1));
    table[i] = static_cast<uint8_t>(sign_bits(p.seed, col));
  }
}

// For 2^k < 8, where eight columns belong to several blocks: the input with its signs, as
// [factor][cols].
template <class T>
__device__ void gather_columns(const Parameters& p, uint32_t first_column, T* gathered) {
  const uint32_t width = 1u << p.log2, size = p.factor * width;
  const uint32_t first = first_column * p.factor, total = p.columns * p.factor;
  for (uint32_t i = threadIdx.x; i < p.factor << p.log2_cols; i += blockDim.x) {
    const uint32_t block = i / size, row = i % size / width, j = i % width;
    T x = T(0.f);
    if (first + i < total) x = static_cast<const T*>(p.in)[first + i];
    if (p.signs_in && (sign_bits(p.seed, (first + i) % (p.blocks_per_row * size)) & 1)) x = -x;
    gathered[(row << p.log2_cols) + block * width + j] = x;
  }
}

// --- the 2^k part
// -----------------------------------------------------------------------------------

// Where column `col` of row `row` stands in shared memory, [factor][cols]: 16-byte chunks (4
// columns) are permuted within 128 bytes so that eight lanes that write (two rows, chunks 4 apart)
// and sixteen that read pairs (two rows, 16 columns) meet every bank once.
__device__ int slot(int row, int col, int log2_cols) {
  const int chunk = (col >> 5 & 1) ^ (row & 1) * 6;
  return (row << log2_cols) + (col ^ chunk << 2);
}

// After the product a lane has, for rows g and g + 8 of a tile of output rows, the columns 16 q to
// 16 q + 15 of the warp's 64; sums[t][n] is row g + 8 (n / 2), column 8 (n % 2) + t.
// Butterflies of the stages below min(k, 4) + lane_stages; then to(row, column, four values).
template <class To>
__device__ void finish_rows(const Parameters& p, const float (&sums)[8][4], int tile,
                            bool butterfly, int lane_stages, To to) {
  const int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float v[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) v[i] = sums[i % 8][half * 2 + i / 8];
    if (butterfly) {
      if (p.log2 > 0) butterflies<4, 0, 1>(v);
      if (p.log2 > 1) butterflies<4, 1, 2>(v);
      if (p.log2 > 2) butterflies<4, 2, 3>(v);
      if (p.log2 > 3) butterflies<4, 3, 4>(v);
      if (lane_stages > 0) butterflies_between_lanes<16>(v, 1);
      if (lane_stages > 1) butterflies_between_lanes<16>(v, 2);
    }
    const int row = tile * kTile + g + half * 8;
    if (row >= p.factor) continue;
#pragma unroll
    for (int i = 0; i < 16; i += 4) to(row, 16 * q + i, v + i);
  }
}

// The signs of columns first_col + i * 2^log2_stride + h, h < kTogether, in bit i * kTogether + h.
template <int kTogether>
__device__ uint64_t output_signs(const Parameters& p, uint32_t first_col, int log2_stride) {
  const int width = 1 << p.log2, stride = 1 << log2_stride;
  uint64_t bits = 0;
  int at = 0;
#pragma unroll 1
  for (int col = 0; col < width; col += 64) {
    uint64_t word = sign_word(p.seed, (first_col + col) >> 6) >> (first_col & 63);
    for (int i = 0; i < min(64, width); i += stride, at += kTogether, word >>= stride)
      bits |= (word & ((1 << kTogether) - 1)) << at;
  }
  return bits;
}

// The last kStages stages of every row in shared memory, kTogether columns a thread, and the
// output.
template <class T, int kStages, int kTogether>
__device__ void last_stages(const Parameters& p, const float* data, uint32_t first_column,
                            int log2_stride) {
  constexpr int kCount = 1 << kStages, kLog2Together = kTogether - 1;
  static_assert(kTogether == 1 || kTogether == 2);
  const int log2_threads = log2_stride - kLog2Together;
  const uint32_t threads = p.factor << (p.log2_cols - p.log2) << log2_threads;
  const uint32_t size = p.factor << p.log2;
#pragma unroll 1
  for (uint32_t thread = threadIdx.x; thread < threads; thread += blockDim.x) {
    const int j = (thread & ((1 << log2_threads) - 1)) * kTogether;
    const uint32_t line = thread >> log2_threads;  // rows of one block, then of the next
    const uint32_t row = line % p.factor, local_block = line / p.factor;
    const uint32_t block = (first_column >> p.log2) + local_block;
    if (block << p.log2 >= p.columns) continue;

    float v[kCount * kTogether];
    const int col = (local_block << p.log2) + j;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float* from = data + slot(row, col + (i << log2_stride), p.log2_cols);
      if constexpr (kTogether == 2) {
        const float2 pair = *reinterpret_cast<const float2*>(from);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
      } else {
        v[i] = *from;
      }
    }
    butterflies<kStages + kLog2Together, kLog2Together, kStages + kLog2Together>(v);
#pragma unroll
    for (float& x : v) x *= p.scale;

    const uint32_t in_block = (row << p.log2) + j;
    if (p.signs_out) {
      const uint32_t first_col = block % p.blocks_per_row * size + in_block;
      const uint64_t bits = output_signs<kTogether>(p, first_col, log2_stride);
#pragma unroll
      for (int i = 0; i < kCount * kTogether; ++i)
        v[i] = flip(v[i], static_cast<uint32_t>(bits >> i));
    }
    T* out = static_cast<T*>(p.out) + block * size + in_block;
#pragma unroll
    for (int i = 0; i < kCount; ++i) store<kTogether>(out + (i << log2_stride), v + i * kTogether);
  }
}

// --- kernels
// ------------------------------------------------------------------------------------------

// kTiles = ceil(m / 16) if the input of a warp is held in registers for all output rows (2^k >= 8),
// 0 if it is loaded again for each tile of them (from L1, mostly) with the signs from a table.
// kPartial writes the product to global memory as float32 and stops there; it is for 2^k >= 8.
constexpr int kThreads = 512;

template <class T, int kTiles, bool kPartial>
__global__ void __launch_bounds__(kThreads)
    factor_kernel(const __grid_constant__ Parameters p,
                  const __grid_constant__ FactorSigns<kTiles ? kTiles : kMaxTiles> signs) {
  extern __shared__ uint4 shared[];
  float* data = reinterpret_cast<float*>(shared);
  const int cols = 1 << p.log2_cols, lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int column_tiles = cols / kWarpCols;
  const uint32_t first_column = blockIdx.x << p.log2_cols;
  const int lane_stages = max(0, p.log2 - 10);

  const auto put = [&](int column_tile) {
    return [&p, data, first_column, column_tile](int row, int col, const float* v) {
      col += column_tile * kWarpCols;
      if constexpr (kPartial) {
        const uint32_t column = first_column + col, width = 1u << p.log2;
        const uint32_t at = ((column >> p.log2) * p.factor + row) * width + (column & (width - 1));
        if (column < p.columns) store<4>(static_cast<float*>(p.out) + at, v);
      } else {
        store<4>(data + slot(row, col, p.log2_cols), v);
      }
    };
  };

  if constexpr (kTiles > 0) {
    uint32_t words[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) words[tile] = signs.word[tile * kWarp + lane];
    for (int column_tile = warp; column_tile < column_tiles; column_tile += warps) {
      const auto columns = Columns<T>::of_array(p, first_column + column_tile * kWarpCols);
      TilePiece<T> input[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        load_tile<T, false>(p, columns, tile, {}, input[tile]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float sums[8][4] = {};
#pragma unroll
        for (int depth = 0; depth < kTiles; ++depth) {
          uint32_t a[4];
          expand_signs<T>(words[tile], depth, a);
          multiply_tile<T>(a, input[depth], sums);
        }
        finish_rows(p, sums, tile, !kPartial, lane_stages, put(column_tile));
      }
    }
  } else {
    const int tiles = (p.factor + kTile - 1) / kTile, quads = (tiles + 3) / 4;
    uint32_t* words = reinterpret_cast<uint32_t*>(data + (kPartial ? 0 : p.factor * cols));
    for (int i = threadIdx.x; i < tiles * quads * kWarp; i += blockDim.x) {
      const int tile = i / (quads * kWarp), rest = i % (quads * kWarp);
      words[i] = signs.word[tile * (signs.kQuads * kWarp) + rest];
    }
    T* gathered = reinterpret_cast<T*>(words + tiles * quads * kWarp);
    uint8_t* table = reinterpret_cast<uint8_t*>(gathered);
    const bool gather = p.log2 < 3, has_table = p.signs_in && !gather;
    if (gather) gather_columns(p, first_column, gathered);
    if (has_table) fill_sign_table(p, first_column, table);
    __syncthreads();  // words, gathered, table
    for (int item = warp; item < column_tiles * tiles; item += warps) {
      const int column_tile = item % column_tiles, tile = item / column_tiles;
      const int group = column_tile * (kWarpCols / 8) + lane / 4;
      const Columns<T> columns =
          gather ? Columns<T>{gathered + group * 8, static_cast<uint32_t>(cols), 0}
                 : Columns<T>::of_array(p, first_column + column_tile * kWarpCols);
      const SignTable sign_table{has_table ? table + group : nullptr, cols / 8};
      float sums[8][4] = {};
#pragma unroll 1
      for (int depth = 0; depth < tiles; ++depth) {
        TilePiece<T> input;
        load_tile<T, true>(p, columns, depth, sign_table, input);
        uint32_t a[4];
        expand_signs<T>(words[(tile * quads + depth / 4) * kWarp + lane] >> depth % 4 * 4, 0, a);
        multiply_tile<T>(a, input, sums);
      }
      finish_rows(p, sums, tile, !kPartial, lane_stages, put(column_tile));
    }
  }

  if constexpr (!kPartial) {
    __syncthreads();   // data, and all of the input has been read: out may be in
    switch (p.log2) {  // 2^4 columns are done, or 2^(k - 6) if that is more
      case 5:
        return last_stages<T, 1, 2>(p, data, first_column, 4);
      case 6:
        return last_stages<T, 2, 2>(p, data, first_column, 4);
      case 7:
        return last_stages<T, 3, 2>(p, data, first_column, 4);
      case 8:
        return last_stages<T, 4, 2>(p, data, first_column, 4);
      case 9:
        return last_stages<T, 5, 2>(p, data, first_column, 4);
      case 10:
        return last_stages<T, 6, 1>(p, data, first_column, 4);
      case 11:
      case 12:
        return last_stages<T, 6, 1>(p, data, first_column, p.log2 - 6);
      default:
        return last_stages<T, 0, 1>(p, data, first_column, p.log2);
    }
  }
}

// --- launches
// -----------------------------------------------------------------------------------------

// Built once for each m and direction, then shared by all threads.
template <int kTiles>
const FactorSigns<kTiles>& signs_of(int m, bool transposed) {
  struct Entry {
    std::once_flag once;
    std::unique_ptr<FactorSigns<kTiles>> signs;
  };
  static Entry entries[kMaxHadamardFactor / 4 + 1][2];
  Entry& entry = entries[m / 4][transposed];
  std::call_once(entry.once, [&] {
    entry.signs = std::make_unique<FactorSigns<kTiles>>();
    const std::vector<int8_t> h = hadamard_factor(m);
    for (int row = 0; row < m; ++row)
      for (int col = 0; col < m; ++col) {
        if ((transposed ? h[col * m + row] : h[row * m + col]) > 0) continue;
        const int lane = row % 8 * 4 + col % 8 / 2, r = row % kTile / 8 + col % kTile / 8 * 2;
        const int tile = col / kTile, quad = tile / 4;
        const int at = (row / kTile * FactorSigns<kTiles>::kQuads + quad) * kWarp + lane;
        entry.signs->word[at] |= 1u << (tile % 4 * 4 + r + col % 2 * 16);
      }
  });
  return *entry.signs;
}

bool is_held(const FactorLaunch& launch) {
  return launch.factor <= kMaxHeldTiles * kTile && !launch.partial &&
         launch.task.type != HadamardType::kFloat32 && launch.log2 >= 3;
}

// One block, or for short rows several: 256 columns give enough warps work, as far as they take no
// more than 48 KB.
int log2_columns(const FactorLaunch& launch) {
  int log2 = 8;
  while (log2 > 6 && (launch.factor * 4) << log2 > 48 << 10) --log2;
  return launch.partial ? log2 : std::max(log2, launch.log2);
}

template <class T, int kTiles, bool kPartial>
cudaError_t launch_typed(const FactorLaunch& launch, cudaStream_t stream) {
  const HadamardCuda& task = launch.task;
  Parameters p{};
  p.in = task.in;
  p.out = kPartial ? launch.partial : task.out;
  p.columns = static_cast<uint32_t>(task.size / launch.factor);
  p.blocks_per_row = static_cast<uint32_t>(task.cols / task.block);
  p.factor = launch.factor;
  p.log2 = launch.log2;
  p.log2_cols = log2_columns(launch);
  p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(task.block)));
  p.signs_in = task.has_signs && !task.inverse;
  p.signs_out = task.has_signs && task.inverse;
  p.seed = task.seed;

  int device = 0, sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  const auto kernel = factor_kernel<T, kTiles, kPartial>;
  const void* function = reinterpret_cast<const void*>(kernel);
  const int shared_bytes = factor_shared_bytes(launch);
  if (error == cudaSuccess)
    error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess)  // so that two blocks of 28 * 1024 fit a multiprocessor of 228 KB
    error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;

  const uint32_t grid = (p.columns + (1u << p.log2_cols) - 1) >> p.log2_cols;
  // 256 threads leave room for two blocks a multiprocessor at 128 registers; where there is one
  // block at most, it takes them all.
  const int most_warps =
      grid <= static_cast<uint32_t>(sms) ? kThreads / kWarp : kThreads / kWarp / 2;
  const int work = (1 << p.log2_cols) / kWarpCols * (kTiles ? 1 : (p.factor + kTile - 1) / kTile);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(static_cast<unsigned>(std::clamp(work, 4, most_warps) * kWarp));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  constexpr int kSignTiles = kTiles ? kTiles : kMaxTiles;
  return cudaLaunchKernelEx(&config, kernel, p, signs_of<kSignTiles>(p.factor, task.inverse));
}

template <class T>
cudaError_t launch_any(const FactorLaunch& launch, cudaStream_t stream) {
  if (launch.partial) return launch_typed<T, 0, true>(launch, stream);
  if constexpr (sizeof(T) == 2)
    if (is_held(launch))
      return launch.factor <= kTile ? launch_typed<T, 1, false>(launch, stream)
                                    : launch_typed<T, 2, false>(launch, stream);
  return launch_typed<T, 0, false>(launch, stream);
}

}  // namespace

int factor_shared_bytes(const FactorLaunch& launch) {
  const int cols = 1 << log2_columns(launch), m = launch.factor;
  const int data = launch.partial ? 0 : m * cols * 4;
  if (is_held(launch)) return data;
  const int tiles = (m + kTile - 1) / kTile, quads = (tiles + 3) / 4;
  const int words = tiles * quads * kWarp * 4, table = m * cols / 8;
  const int gathered = m * cols * (launch.task.type == HadamardType::kFloat32 ? 4 : 2);
  return data + words + (launch.log2 < 3 ? gathered : table);
}

cudaError_t launch_factor(const FactorLaunch& launch, cudaStream_t stream) {
  switch (launch.task.type) {
    case HadamardType::kFloat16:
      return launch_any<Half>(launch, stream);
    case HadamardType::kBFloat16:
      return launch_any<BFloat16>(launch, stream);
    default:
      return launch_any<float>(launch, stream);
  }
}

}  // namespace pvq::hadamard
