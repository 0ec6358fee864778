// Hadamard transforms of blocks m * 2^k: H_m by tensor cores, the 2^k part by butterflies.
//
// A block is a matrix of m rows and 2^k columns. The columns of all blocks, one block after the
// other, are cut into powers of two; each piece, of one or more whole blocks, is a block of
// threads. H_m comes first (hadamard_product.cuh). A lane then holds 16 consecutive columns of a
// row: four stages in registers, for large 2^k one or two more between lanes, the rest after an
// exchange through shared memory.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "core/hadamard_factors.h"
#include "cuda/hadamard_kernels.h"
#include "cuda/hadamard_product.cuh"

namespace pvq::hadamard {
namespace {

constexpr int kMaxHeldTiles = 2;  // up to 2 * 16 rows the input of a warp stays in registers
constexpr int kThreads = 512;

// --- the 2^k part
// ---------------------------------------------------------------------------------

// Where column `col` of row `row` stands in shared memory, [factor][cols]: 16-byte chunks (4
// columns) are permuted within 128 bytes so that eight lanes that write (two rows, chunks 4 apart)
// and sixteen that read pairs (two rows, 16 columns) meet every bank once.
__device__ int slot(int row, int col, int log2_cols) {
  const int chunk = (col >> 5 & 1) ^ (row & 1) * 6;
  return (row << log2_cols) + (col ^ chunk << 2);
}
// The same for col + offset, given slot(row, col), if the two have no bit in common. The offset's
// high bits stay an immediate.
__device__ int slot_at(int base_slot, int offset) {
  const int moved = offset ^ (offset >> 5 & 1) << 2;
  return (base_slot ^ (moved & 31)) + (moved & ~31);
}

// After the product a lane has, for rows g and g + 8 of a tile of output rows, the columns 16 q to
// 16 q + 15 of the warp's 64; sums[t][n] is row g + 8 (n / 2), column 8 (n % 2) + t.
// Butterflies of the stages below min(k, 4) + lane_stages; then to(row, column, four values).
template <class To>
__device__ void finish_rows(const FactorParameters& p, const float (&sums)[8][4], int tile,
                            bool butterfly, int lane_stages, To to) {
  const int g = threadIdx.x % kWarp / 4, q = threadIdx.x % 4;
  float v[2][16];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 16; ++i) v[half][i] = sums[i % 8][half * 2 + i / 8];
    if (butterfly) {
      if (p.log2 > 0) butterflies<4, 0, 1>(v[half]);
      if (p.log2 > 1) butterflies<4, 1, 2>(v[half]);
      if (p.log2 > 2) butterflies<4, 2, 3>(v[half]);
      if (p.log2 > 3) butterflies<4, 3, 4>(v[half]);
      if (lane_stages > 0) butterflies_between_lanes<16>(v[half], 1);
      if (lane_stages > 1) butterflies_between_lanes<16>(v[half], 2);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile * kTile + g + half * 8;
    if (row >= p.factor) continue;
#pragma unroll
    for (int i = 0; i < 16; i += 4) to(row, 16 * q + i, v[half] + i);
  }
}

// The signs of columns first_col + i * 2^log2_stride + h, h < kTogether, in bit i * kTogether + h.
template <int kTogether>
__device__ uint64_t output_signs(const FactorParameters& p, uint32_t first_col, int log2_stride) {
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
// output. 2^log2_stride columns are done already.
template <class T, int kStages, int kTogether>
__device__ void last_stages(const FactorParameters& p, const float* data, uint32_t first_column,
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
    const uint32_t in_block = (row << p.log2) + j;
    uint64_t signs = 0;
    if (p.signs_out)
      signs = output_signs<kTogether>(p, block % p.blocks_per_row * size + in_block, log2_stride);

    float v[kCount * kTogether];
    const int base_slot = slot(row, (local_block << p.log2) + j, p.log2_cols);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float* from = data + slot_at(base_slot, i << log2_stride);
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
    if (p.signs_out) {
#pragma unroll
      for (int i = 0; i < kCount * kTogether; ++i)
        v[i] = flip(v[i], static_cast<uint32_t>(signs >> i));
    }
    T* out = static_cast<T*>(p.out) + block * size + in_block;
#pragma unroll
    for (int i = 0; i < kCount; ++i) store<kTogether>(out + (i << log2_stride), v + i * kTogether);
  }
}

template <class T>
__device__ void finish_blocks(const FactorParameters& p, const float* data, uint32_t first_column) {
  switch (p.log2) {  // 2^4 columns are done, or 2^(k - 6) if that is more; constants save registers
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
      return last_stages<T, 6, 1>(p, data, first_column, 5);
    case 12:
      return last_stages<T, 6, 1>(p, data, first_column, 6);
    default:
      return last_stages<T, 0, 1>(p, data, first_column, p.log2);
  }
}

// --- kernel
// ---------------------------------------------------------------------------------------

// kTiles = ceil(m / 16) if the input of a warp is held in registers for all output rows (2^k >= 8),
// 0 if it is loaded again for each tile of them (from L1, mostly) with the signs from a table.
// kPartial writes the product to global memory as float32 and stops there; it is for 2^k >= 8.
template <class T, int kTiles, bool kPartial>
__global__ void __launch_bounds__(kThreads)
    factor_kernel(const __grid_constant__ FactorParameters p,
                  const __grid_constant__ FactorSigns<kTiles ? kTiles : kMaxTiles> signs) {
  extern __shared__ uint4 shared[];
  float* data = reinterpret_cast<float*>(shared);
  const int cols = 1 << p.log2_cols, lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int column_tiles = cols / kWarpCols;
  const uint32_t first_column = blockIdx.x << p.log2_cols;

  const auto finish = [&](const float (&sums)[8][4], int tile, int column_tile) {
    if constexpr (kPartial) {
      finish_rows(p, sums, tile, false, 0, [&](int row, int col, const float* v) {
        const uint32_t column = first_column + column_tile * kWarpCols + col, width = 1u << p.log2;
        const uint32_t at = ((column >> p.log2) * p.factor + row) * width + (column & (width - 1));
        if (column < p.columns) store<4>(static_cast<float*>(p.out) + at, v);
      });
    } else {
      finish_rows(p, sums, tile, true, p.log2 - 10, [&](int row, int col, const float* v) {
        store<4>(data + slot(row, column_tile * kWarpCols + col, p.log2_cols), v);
      });
    }
  };

  if constexpr (kTiles > 0) {
    uint32_t words[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) words[tile] = signs.word[tile * kWarp + lane];
    for (int column_tile = warp; column_tile < column_tiles; column_tile += warps) {
      const auto columns = Columns<T>::of_array(p, first_column + column_tile * kWarpCols);
      TilePiece<T> input[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) load_tile(p, columns, tile, input[tile]);
      if (p.signs_in) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) sign_tile(p, columns, tile, input[tile]);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float sums[8][4] = {};
#pragma unroll
        for (int depth = 0; depth < kTiles; ++depth) {
          uint32_t a[4];
          expand_signs<T>(words[tile], depth, a);
          multiply_tile<T>(a, input[depth], sums);
        }
        finish(sums, tile, column_tile);
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
      float sums[8][4] = {};
#pragma unroll 1
      for (int depth = 0; depth < tiles; ++depth) {
        TilePiece<T> input;
        load_tile(p, columns, depth, input);
        if (has_table) sign_tile<T>(p, table + group, cols / 8, depth, input);
        uint32_t a[4];
        expand_signs<T>(words[(tile * quads + depth / 4) * kWarp + lane] >> depth % 4 * 4, 0, a);
        multiply_tile<T>(a, input, sums);
      }
      finish(sums, tile, column_tile);
    }
  }

  if constexpr (!kPartial) {
    __syncthreads();  // data, and all of the input has been read: out may be in
    finish_blocks<T>(p, data, first_column);
  }
}

// --- launches
// -------------------------------------------------------------------------------------

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
  FactorParameters p{};
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
