// How blocks share the groups of [rows, groups] and the rows' bit streams.
//
// A tile is a slice of a row, or as many whole rows as fit. Slices begin at multiples of 8 groups,
// so that every tile is a run of whole bytes in the stream and a run of groups:
//
//   slices of a row     |   tile 0   |   tile 1   | 2 |      whole rows    | row 0 | row 1 | row 2
//   |
//                                                                          |------ tile 0 -------|
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "core/bits.h"
#include "cuda/device_limits.h"

namespace pvq {

struct Tile {
  int64_t group;   // the first, of all rows' groups
  int64_t byte;    // the first, of the streams
  int64_t row;     // the first, and
  int64_t column;  // the first group's place in it
  int rows;        // 1 for a slice
  int groups;      // of each row in this tile
  int row_bytes;   // likewise

  __device__ int count() const { return rows * groups; }
  __device__ int bytes() const { return rows * row_bytes; }
  // The row of group t, counted in the tile.
  __device__ int row_of(int t) const { return rows == 1 ? 0 : unsigned(t) / unsigned(groups); }
  // The first bit of group t of the tile.
  __device__ int bit(int t, int width) const {
    const int r = row_of(t);
    return r * row_bytes * 8 + (t - r * groups) * width;
  }
};

class Tiling {
 public:
  Tiling() = default;
  // Tiles of at most `capacity` groups, a multiple of 8.
  Tiling(int64_t rows, int64_t groups, int width, int capacity)
      : rows_(rows),
        groups_(groups),
        stride_(bits::bytes_for(groups, width)),
        width_(width),
        capacity_(capacity),
        slices_(unsigned((groups + capacity - 1) / capacity)),
        tile_rows_(slices_ > 1 ? 1 : int(std::min<int64_t>(rows, capacity / groups))) {}

  __host__ __device__ unsigned tiles() const {
    return unsigned(slices_ > 1 ? rows_ * slices_ : (rows_ + tile_rows_ - 1) / tile_rows_);
  }

  __device__ Tile tile(unsigned number) const {
    if (slices_ > 1) {
      const int64_t row = number / slices_, column = int64_t(number % slices_) * capacity_;
      const int count = int(min(int64_t(capacity_), groups_ - column));
      return {row * groups_ + column,
              row * stride_ + column / 8 * width_,
              row,
              column,
              1,
              count,
              int(bits::bytes_for(count, width_))};
    }
    const int64_t row = int64_t(number) * tile_rows_;
    const int rows = int(min(int64_t(tile_rows_), rows_ - row));
    return {row * groups_, row * stride_, row, 0, rows, int(groups_), int(stride_)};
  }

  // Bytes of the largest tile.
  int tile_bytes() const {
    if (slices_ > 1) return int(bits::bytes_for(capacity_, width_));
    return int(tile_rows_ * stride_);
  }

 private:
  int64_t rows_ = 0, groups_ = 0, stride_ = 0;
  int width_ = 0, capacity_ = 0;
  unsigned slices_ = 0;  // of a row
  int tile_rows_ = 1;
};

// Blocks that keep the device full; each walks over the tiles with the grid's stride.
inline cudaError_t persistent_grid(const void* kernel, int threads, size_t shared_bytes,
                                   unsigned tiles, int* grid) {
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && shared_bytes > 32 * 1024)  // more than 48 KiB needs leave
    error = cudaError_t(allow_shared_memory(kernel));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes);
  *grid = int(std::min(tiles, unsigned(processors * std::max(1, resident))));
  return error;
}

}  // namespace pvq
