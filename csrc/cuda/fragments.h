// Fragments: weights in the order in which the lanes of a warp feed the tensor cores, made from the
// stored form once, when a layer is loaded.
//
// A chunk is 16 rows x 128 columns; its words lie together, 16 bytes a lane and load, so that
// nothing moves between lanes. Chunks of a tile (16 rows) follow each other by column, tiles by
// row. Rows are padded to 16, columns must be a multiple of 128.
#pragma once

#include <cstdint>

#include "cuda/real_type.h"

namespace pvq {

constexpr int kTileRows = 16;
constexpr int kChunkCols = 128;
constexpr int64_t kMaxProductTokens = 32768;

constexpr int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// True if the current device can multiply from fragments: compute capability 9.0 with 227 KB of
// shared memory a block, and a build for sm_90a.
bool products_supported();
// Blocks that a product rotates itself: powers of two up to 1024, and 0.
bool product_block_supported(int64_t block);

}  // namespace pvq
