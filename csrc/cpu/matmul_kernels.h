// The inner loops of the product, one table of functions for each instruction set.
//
// All work on vectors of 16 lanes. A lane is one column of a tile, and a tile is a small piece
// tile[i][l] of the matrix that is multiplied: reduction index i, lane l. What the lanes stand for
// (weight rows, or weight columns in the transposed product) is the caller's business.
#pragma once

#include <stdint.h>

namespace pvq {

constexpr int kLanes = 16;

struct MatmulKernels {
  // The most tokens that `multiply` takes at once: as many as keep all sums in registers.
  int max_tokens;
  // The most tokens that `direct4` and `direct8` take; for these few they are faster than tiles.
  int direct_tokens;

  // c[t][l] += sum over i of a[i][t] * tile[i][l], for t < tokens and l < width.
  // a is [depth][tokens], tile and c have rows of `width` floats, a multiple of 16.
  void (*multiply)(const float* tile, int64_t width, const float* a, int64_t depth, int tokens,
                   float* c);

  // One panel of planes (planes.h: 16 weight rows, one a lane), groups [begin, end), as a tile:
  // tile[i][lane] = scale * integer with i = column - begin * dim, rows of `stride` floats.
  void (*unpack4)(const int32_t* words, const float* scale, int dim, int64_t begin, int64_t end,
                  float* tile, int64_t stride);
  void (*unpack8)(const int8_t* bytes, const float* scale, int dim, int64_t begin, int64_t end,
                  float* tile, int64_t stride);

  // The product of a whole panel without a tile: c[t * stride + lane] =
  // sum over groups of scale * (sum over the group's columns of integer * a[column][t]).
  void (*direct4)(const int32_t* words, const float* scale, int dim, int64_t groups, const float* a,
                  int tokens, float* c, int64_t stride);
  void (*direct8)(const int8_t* bytes, const float* scale, int dim, int64_t groups, const float* a,
                  int tokens, float* c, int64_t stride);
};

// The table of the instruction set in use (isa.h).
const MatmulKernels& matmul_kernels();

extern const MatmulKernels matmul_kernels_portable;
#ifdef PVQ_X86
extern const MatmulKernels matmul_kernels_avx2;
extern const MatmulKernels matmul_kernels_avx512;

// bfloat16 tiles for AMX: b[l / 16][i / 32] is one block of 16 pairs of reduction indices, each
// pair 16 lanes of two bfloat16, so that a block is one tile register. Depths are padded with
// zeros to a multiple of 32.
constexpr int kAmxDepth = 32;
// Rounds 16 lanes of a tile (rows of `stride` floats) into ceil(depth / 32) blocks.
void round_tile_amx(const float* tile, int64_t stride, int64_t depth, uint16_t* b);
// c[t][l] += sum over i of a[t][i] * b[i][l] in float32, for a packed in blocks of 16 tokens x 32
// indices, a_stride elements from one 16 tokens to the next. `depth` is a multiple of 32; `tokens`
// is 16 and `width` a multiple of 64, or both are multiples of 32. The caller opens and closes the
// tile registers.
void multiply_amx(const uint16_t* b, int64_t width, const uint16_t* a, int64_t a_stride,
                  int64_t depth, int64_t tokens, float* c);
void open_amx();
void close_amx();
#endif

}  // namespace pvq
