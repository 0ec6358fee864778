// Hadamard transforms of blocks m * 2^k: H_m by tensor cores, the 2^k part by butterflies.
//
// A block is a matrix of m rows and 2^k columns. The columns of all blocks, one block after the
// other, are cut into powers of two; a block of threads works on a piece, of one or more whole
// blocks, at a time. H_m comes first (hadamard_product.cuh). A lane then holds 16 consecutive
// columns of a row: four stages in registers, for large 2^k one or two more between lanes, the rest
// after an exchange through shared memory.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "core/hadamard_factors.h"
#include "cuda/device_limits.h"
#include "cuda/hadamard_finish.cuh"
#include "cuda/hadamard_kernels.h"
#include "cuda/product_task.h"
#include "cuda/shared_memory.h"

namespace pvq::hadamard {
namespace {

constexpr int kMaxHeldTiles = 2;  // up to 2 * 16 rows the input of a warp stays in registers
constexpr int kThreads = 512;

// Pieces of 2^log2_cols columns.
PVQ_HD uint32_t pieces_of(const FactorParameters& p) {
  return (p.columns + (1u << p.log2_cols) - 1) >> p.log2_cols;
}

// --- kernels
// --------------------------------------------------------------------------------------

// kTiles = ceil(m / 16): the input of a warp is held in registers for all output rows. 2^k >= 8.
//
// A block of threads takes a piece of the columns after another. Once a warp has multiplied it asks
// for its next input, which comes while this one goes through the 2^k part: loads at the beginning
// of a piece were a fifth of the time.
template <class T, int kTiles, Stages kStages>
__global__ void __launch_bounds__(kThreads)
    held_kernel(const __grid_constant__ FactorParameters p,
                const __grid_constant__ FactorSigns<kTiles> signs) {
  extern __shared__ uint4 shared[];
  float* data = reinterpret_cast<float*>(shared);
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  const int column_tiles = (1 << p.log2_cols) / kWarpCols;
  const uint32_t pieces = pieces_of(p);
  uint32_t words[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) words[tile] = signs.word[tile * kWarp + lane];

  Columns<T> columns;
  TilePiece<T> input[kTiles];
  const auto load = [&](uint32_t piece, int column_tile) {
    columns = Columns<T>::of_array(p, (piece << p.log2_cols) + column_tile * kWarpCols);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) load_tile(p, columns, tile, input[tile]);
  };
  if (warp < column_tiles) load(blockIdx.x, warp);
#pragma unroll 1
  for (uint32_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
#pragma unroll 1
    for (int column_tile = warp; column_tile < column_tiles; column_tile += warps) {
      if (p.signs_in) sign_tiles<T, kTiles>(p, columns, input);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float sums[8][4] = {};
#pragma unroll
        for (int depth = 0; depth < kTiles; ++depth) {
          uint32_t a[4];
          expand_signs<T>(words[tile], depth, a);
          multiply_tile<T>(a, input[depth], sums);
        }
        if (tile == kTiles - 1) {
          const bool here = column_tile + warps < column_tiles;
          const uint32_t next = here ? piece : piece + gridDim.x;
          if (next < pieces) load(next, here ? column_tile + warps : warp);
        }
        finish_rows<kStages>(p, sums, tile, [&](int row, int col, const float* v) {
          store<4>(data + slot(row, column_tile * kWarpCols + col, p.log2_cols), v);
        });
      }
    }
    __syncthreads();  // data, and all of the piece's input has been read: out may be in
    finish_blocks<T>(p, data, piece << p.log2_cols);
    if (piece + gridDim.x < pieces) __syncthreads();  // data has been read
  }
}

// The input is loaded again for each tile of output rows (from L1, mostly), with the signs from a
// table. kPartial writes the product to global memory as float32 and stops there.
template <class T, bool kPartial>
__global__ void __launch_bounds__(kThreads)
    factor_kernel(const __grid_constant__ FactorParameters p,
                  const __grid_constant__ FactorSigns<kMaxTiles> signs) {
  extern __shared__ uint4 shared[];
  float* data = reinterpret_cast<float*>(shared);
  const int cols = 1 << p.log2_cols, lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int column_tiles = cols / kWarpCols;
  const uint32_t first_column = blockIdx.x << p.log2_cols;

  const auto finish = [&](const float (&sums)[8][4], int tile, int column_tile) {
    if constexpr (kPartial) {
      finish_rows<Stages::kNone>(p, sums, tile, [&](int row, int col, const float* v) {
        const uint32_t first = first_column + column_tile * kWarpCols + col, width = 1u << p.log2;
        const auto place = [&](uint32_t column) {
          return static_cast<float*>(p.out) + ((column >> p.log2) * p.factor + row) * width +
                 (column & (width - 1));
        };
        if (width >= 4) {
          if (first < p.columns) store<4>(place(first), v);
        } else {  // the four columns are of several blocks
          for (uint32_t i = 0; i < 4; ++i)
            if (first + i < p.columns) *place(first + i) = v[i];
        }
      });
    } else {
      finish_rows<Stages::kAny>(p, sums, tile, [&](int row, int col, const float* v) {
        store<4>(data + slot(row, column_tile * kWarpCols + col, p.log2_cols), v);
      });
    }
  };

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

FactorParameters parameters_of(const FactorLaunch& launch) {
  const HadamardCuda& task = launch.task;
  FactorParameters p{};
  p.in = task.in;
  p.out = launch.partial ? launch.partial : task.out;
  p.columns = static_cast<uint32_t>(task.size / launch.factor);
  p.blocks_per_row = static_cast<uint32_t>(task.cols / task.block);
  p.factor = launch.factor;
  p.log2 = launch.log2;
  p.log2_cols = log2_columns(launch);
  p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(task.block)));
  p.signs_in = task.has_signs && !task.inverse;
  p.signs_out = task.has_signs && task.inverse;
  p.seed = task.seed;
  return p;
}

// `work`: warps that have something to multiply. `repeats`: blocks of threads take one piece after
// another.
template <int kSignTiles>
cudaError_t launch_kernel(void (*kernel)(FactorParameters, FactorSigns<kSignTiles>),
                          const FactorLaunch& launch, int work, bool repeats, cudaStream_t stream) {
  const FactorParameters p = parameters_of(launch);
  const void* function = reinterpret_cast<const void*>(kernel);
  const int shared_bytes = factor_shared_bytes(launch);
  auto error = cudaError_t(allow_shared_memory(function));
  if (error == cudaSuccess)  // so that two blocks of 28 * 1024 fit a multiprocessor of 228 KB
    error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;

  const DeviceLimits& limits = device_limits();
  const int sms = std::max(1, limits.multiprocessors);
  uint32_t grid = pieces_of(p);
  // 256 threads leave room for two blocks a multiprocessor at 128 registers; where there is one
  // block at most, it takes them all.
  const int most_warps =
      grid <= static_cast<uint32_t>(sms) ? kThreads / kWarp : kThreads / kWarp / 2;
  const int warps = std::clamp(work, 4, most_warps);
  if (repeats) {
    const int of_sm = std::min(kThreads / kWarp / warps,
                               (limits.shared + kSystemBytes) / (shared_bytes + kSystemBytes));
    grid = std::min(grid, static_cast<uint32_t>(sms * std::max(1, of_sm)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(static_cast<unsigned>(warps * kWarp));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, p,
                            signs_of<kSignTiles>(p.factor, launch.task.inverse));
}

template <class T, int kTiles>
cudaError_t launch_held(const FactorLaunch& launch, int work, cudaStream_t stream) {
  const bool four = launch.log2 >= 4 && launch.log2 <= 10;
  return launch_kernel(
      four ? held_kernel<T, kTiles, Stages::kFour> : held_kernel<T, kTiles, Stages::kAny>, launch,
      work, true, stream);
}

template <class T>
cudaError_t launch_typed(const FactorLaunch& launch, cudaStream_t stream) {
  const int column_tiles = (1 << log2_columns(launch)) / kWarpCols;
  if constexpr (sizeof(T) == 2)
    if (is_held(launch))
      return launch.factor <= kTile ? launch_held<T, 1>(launch, column_tiles, stream)
                                    : launch_held<T, 2>(launch, column_tiles, stream);
  const int work = column_tiles * ((launch.factor + kTile - 1) / kTile);
  return launch_kernel(launch.partial ? factor_kernel<T, true> : factor_kernel<T, false>, launch,
                       work, false, stream);
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
      return launch_typed<Half>(launch, stream);
    case HadamardType::kBFloat16:
      return launch_typed<BFloat16>(launch, stream);
    default:
      return launch_typed<float>(launch, stream);
  }
}

}  // namespace pvq::hadamard
