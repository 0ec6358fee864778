// How blocks share the groups of [rows, groups] and the rows' bit streams.
//
// A tile is a slice of a row, or as many whole rows as fit. Slices begin at multiples of 8 groups, so
// that every tile is a run of whole bytes in the stream and a run of groups:
//
//   slices of a row     |   tile 0   |   tile 1   | 2 |      whole rows    | row 0 | row 1 | row 2 |
//                                                                          |------ tile 0 -------|
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "core/bits.h"

namespace pvq {

struct Tile {
  int64_t group;   // the first, of rows * groups
  int64_t byte;    // the first, of the streams
  int rows;        // 1 for a slice
  int groups;      // of each row in this tile
  int row_bytes;   // likewise

  __device__ int count() const { return rows * groups; }
  __device__ int bytes() const { return rows * row_bytes; }
  // The first bit of group t of the tile.
  __device__ int bit(int t, int width) const {
    if (rows == 1) return t * width;
    return t / groups * row_bytes * 8 + t % groups * width;
  }
};

class Tiling {
 public:
  Tiling() = default;
  // Tiles of at most `capacity` groups, a multiple of 8.
  Tiling(int64_t rows, int64_t groups, int width, int capacity)
      : rows_(rows), groups_(groups), stride_(bits::bytes_for(groups, width)), width_(width),
        capacity_(capacity), slices_((groups + capacity - 1) / capacity),
        tile_rows_(slices_ > 1 ? 1 : int(std::min<int64_t>(rows, capacity / groups))) {}

  __host__ __device__ int64_t tiles() const {
    return slices_ > 1 ? rows_ * slices_ : (rows_ + tile_rows_ - 1) / tile_rows_;
  }

  __device__ Tile tile(int64_t number) const {
    if (slices_ > 1) {
      const int64_t row = number / slices_, first = number % slices_ * capacity_;
      const int count = int(min(int64_t(capacity_), groups_ - first));
      return {row * groups_ + first, row * stride_ + first / 8 * width_, 1, count,
              int(bits::bytes_for(count, width_))};
    }
    const int64_t row = number * tile_rows_;
    return {row * groups_, row * stride_, int(min(int64_t(tile_rows_), rows_ - row)), int(groups_),
            int(stride_)};
  }

  // Bytes of the largest tile.
  int tile_bytes() const {
    if (slices_ > 1) return int(bits::bytes_for(capacity_, width_));
    return int(tile_rows_ * stride_);
  }

 private:
  int64_t rows_ = 0, groups_ = 0, stride_ = 0;
  int width_ = 0, capacity_ = 0;
  int64_t slices_ = 0;  // of a row
  int tile_rows_ = 1;
};

// Blocks that keep the device full; each walks over the tiles with the grid's stride.
inline cudaError_t persistent_grid(const void* kernel, int threads, size_t shared_bytes,
                                   int64_t tiles, int* grid) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && shared_bytes > 32 * 1024)  // more than 48 KiB needs leave
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shared_bytes));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes);
  *grid = int(std::min<int64_t>(tiles, int64_t(processors) * std::max(1, resident)));
  return error;
}

}  // namespace pvq
