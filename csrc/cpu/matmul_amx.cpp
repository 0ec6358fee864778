// The bfloat16 product on AMX tile registers (matmul_kernels.h gives the layouts).
//
// TDPBF16PS multiplies a [16 tokens, 32] tile with 16 x 16 pairs and adds to a [16, 16] tile of
// float32. One result takes 52 cycles, a new one may start every 16, so four sums go on at once:
// 2 x 2 tiles of tokens x lanes, or 1 x 4 where there are only 16 tokens.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

#include "cpu/matmul_kernels.h"

namespace pvq {
namespace {

constexpr int kTile = 16;                  // rows of a tile register, of 64 bytes each
constexpr int kBlock = kTile * kAmxDepth;  // elements of one block of b
constexpr int64_t kRowBytes = 64;

// All eight registers are full. Constant data, because GCC 12's intrinsic declares that it reads
// eight bytes only, and stores to a local object would be dropped.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
alignas(64) constexpr TileConfig kConfig;

// tmm0 to tmm3 hold sums, tmm4 and tmm5 tokens, tmm6 and tmm7 lanes. The intrinsics want literal
// register numbers, hence the two written-out blocks.

inline void prefetch_block(const uint16_t* a) {
  for (int row = 0; row < kTile; ++row) _mm_prefetch(a + row * kAmxDepth, _MM_HINT_T0);
}

void multiply_2x2(const uint16_t* b, int64_t b_stride, const uint16_t* a, int64_t a_stride,
                  int64_t blocks, float* c, int64_t width) {
  const int64_t c_bytes = width * 4;
  float* c1 = c + kTile * width;
  const uint16_t* a1 = a + a_stride;
  _tile_loadd(0, c, c_bytes);
  _tile_loadd(1, c + kTile, c_bytes);
  _tile_loadd(2, c1, c_bytes);
  _tile_loadd(3, c1 + kTile, c_bytes);
  for (int64_t i = 0; i < blocks; ++i, b += kBlock, a += kBlock, a1 += kBlock) {
    _tile_loadd(6, b, kRowBytes);
    _tile_loadd(4, a, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_stride, kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kTile, c_bytes);
  _tile_stored(2, c1, c_bytes);
  _tile_stored(3, c1 + kTile, c_bytes);
}

void multiply_1x4(const uint16_t* b, int64_t b_stride, const uint16_t* a, int64_t blocks, float* c,
                  int64_t width) {
  const int64_t c_bytes = width * 4;
  _tile_loadd(0, c, c_bytes);
  _tile_loadd(1, c + kTile, c_bytes);
  _tile_loadd(2, c + 2 * kTile, c_bytes);
  _tile_loadd(3, c + 3 * kTile, c_bytes);
  for (int64_t i = 0; i < blocks; ++i, b += kBlock, a += kBlock) {
    _tile_loadd(4, a, kRowBytes);
    _tile_loadd(6, b, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    prefetch_block(a + 2 * kBlock);
    _tile_loadd(7, b + b_stride, kRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, b + 2 * b_stride, kRowBytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, b + 3 * b_stride, kRowBytes);
    _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kTile, c_bytes);
  _tile_stored(2, c + 2 * kTile, c_bytes);
  _tile_stored(3, c + 3 * kTile, c_bytes);
}

}  // namespace

void open_amx() { _tile_loadconfig(&kConfig); }

void close_amx() { _tile_release(); }

// To nearest, ties away from zero: half a unit is added and the lower half of the word dropped.
// Four plain operations a pair; the conversion instruction with the permutation that it needs takes
// three times as long.
void round_tile_amx(const float* tile, int64_t stride, int64_t depth, uint16_t* b) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const auto store_pair = [&](int64_t i, __m512 even, __m512 odd) {
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    _mm512_storeu_si512(b + i * kTile, _mm512_mask_blend_epi16(0xAAAAAAAAu, low, high));
  };
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + 2 <= depth; i += 2)
    store_pair(i, _mm512_loadu_ps(tile + i * stride), _mm512_loadu_ps(tile + (i + 1) * stride));
  if (i < depth) {
    store_pair(i, _mm512_loadu_ps(tile + i * stride), _mm512_setzero_ps());
    i += 2;
  }
  for (; i % kAmxDepth != 0; i += 2) store_pair(i, _mm512_setzero_ps(), _mm512_setzero_ps());
}

void multiply_amx(const uint16_t* b, int64_t width, const uint16_t* a, int64_t a_stride,
                  int64_t depth, int64_t tokens, float* c) {
  const int64_t blocks = depth / kAmxDepth, b_stride = blocks * kBlock;
  if (tokens == kTile) {
    for (int64_t l = 0; l < width; l += 4 * kTile)
      multiply_1x4(b + l / kTile * b_stride, b_stride, a, blocks, c + l, width);
    return;
  }
  for (int64_t t = 0; t < tokens; t += 2 * kTile)
    for (int64_t l = 0; l < width; l += 2 * kTile)
      multiply_2x2(b + l / kTile * b_stride, b_stride, a + t / kTile * a_stride, a_stride, blocks,
                   c + t * width + l, width);
}

}  // namespace pvq
#endif
