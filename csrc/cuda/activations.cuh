// Activations for the products: rotated by blocks of a power of two up to 1024 columns, then
// narrowed to int8, or to float16 with a power of two as the scale, for each row and 128 columns.
//
// A warp rotates a piece of 256 columns on the tensor cores. A Hadamard transform is one 2 x 2
// transform for each bit of the position, so four bits can be one product with H_16 and the other
// four another: C = A1 X, then C B2, in m16n8k8 products whose inputs are exact in tf32 (H_16 is
// +-1, X has 11 significant bits at most); only C is rounded, to 2^-11. The fragment of the result
// of the first product is the left fragment of the second, so no value moves between lanes.
// Position bits (7 ... 0) that each index of the instructions stands for, l = 4 g + t a lane:
//
//   load    X[s][q] register h     7: s    6 5 4: g       3 2: t    1: q    0: h
//   first   contracts s, t, h      result rows g + 8 u: 7, 3, 2 and 0 (u); columns 6 5 4, 1
//   second  contracts q, e, t      result columns e, t, p: 1, 5 4 and 6
//
// so that a lane loads four neighbouring values at a time and ends with four neighbouring values.
// Bits beyond the block are left alone: their factor is the identity. Blocks of 512 and 1024 add
// two and four pieces up in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/signs.h"
#include "cuda/product_task.h"
#include "cuda/ptx.cuh"

namespace pvq {

constexpr int kPieceCols = 256;

// One entry of a Hadamard matrix over the position bits in `bits`; the identity outside `block`.
__device__ __forceinline__ uint32_t hadamard_entry(int out, int in, int block, int bits) {
  const int inside = block > 0 ? block - 1 : 0;
  if ((out ^ in) & bits & ~inside) return 0;
  return __float_as_uint(__popc(out & in & inside) & 1 ? -1.0f : 1.0f);
}

// The constant fragments of a lane.
struct PieceRotation {
  uint32_t a[2][4];     // of the first product, by k-step s
  uint32_t b[2][2][2];  // of the second: [k-step q][columns p]

  __device__ explicit PieceRotation(int block) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (block >= kPieceCols) {  // the general entries, bit by bit: few instructions
      const uint32_t first = uint32_t(__popc(g & 3 & t)) << 31, top = uint32_t(g >> 2) << 31;
      const uint32_t g0 = uint32_t(g) << 31, g1 = uint32_t(g >> 1) << 31,
                     t1 = uint32_t(t >> 1) << 31;
      const uint32_t second = top & uint32_t(t) << 31;
      constexpr uint32_t kOne = 0x3F800000;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        a[k / 4][k % 4] = kOne ^ first ^ (k % 4 == 3 ? 1u << 31 : 0) ^ (k / 4 ? top : 0);
        b[k / 4][k / 2 % 2][k % 2] =
            kOne ^ second ^ (k / 4 ? g0 : 0) ^ (k % 2 ? g1 : 0) ^ (k / 2 % 2 ? t1 : 0);
      }
      return;
    }
    constexpr int kFirst = 0b10001101, kSecond = 0b01110010;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int r = 0; r < 4; ++r)  // r = 2 h + u
        a[s][r] = hadamard_entry((r & 1) | (g & 3) << 2 | (g >> 2) << 7, (r >> 1) | t << 2 | s << 7,
                                 block, kFirst);
#pragma unroll
    for (int q = 0; q < 2; ++q)
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          b[q][p][e] = hadamard_entry((g & 1) << 1 | (g >> 1) << 4 | p << 6,
                                      q << 1 | e << 4 | t << 5, block, kSecond);
  }

  // x[s][i] of columns 128 s + 16 g + 4 t + i in, v[p][i] of columns
  // 128 (g / 4) + 64 p + 16 t + 4 (g % 4) + i out.
  __device__ void apply(const float (&x)[2][4], float (&v)[2][4]) const {
    float c[2][4];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      c[q][0] = c[q][1] = c[q][2] = c[q][3] = 0;
#pragma unroll
      for (int s = 0; s < 2; ++s)
        mma_tf32(c[q], a[s], __float_as_uint(x[s][2 * q]), __float_as_uint(x[s][2 * q + 1]));
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float out[4] = {0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const uint32_t left[4] = {to_tf32(c[q][0]), to_tf32(c[q][2]), to_tf32(c[q][1]),
                                  to_tf32(c[q][3])};
        mma_tf32(out, left, b[q][p][0], b[q][p][1]);
      }
      v[p][0] = out[0], v[p][1] = out[2], v[p][2] = out[1], v[p][3] = out[3];
    }
  }
};

// The lane's values of a piece, zeros beyond the last column.
__device__ __forceinline__ void load_piece(const Activations& a, int token, int64_t first,
                                           uint2 (&raw)[2]) {
  const int lane = threadIdx.x % 32;
  const uint16_t* x = static_cast<const uint16_t*>(a.x) + token * a.cols;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const int64_t column = first + 128 * s + 4 * lane;
    raw[s] = make_uint2(0, 0);
    if (column < a.cols) raw[s] = __ldg(reinterpret_cast<const uint2*>(x + column));
  }
}

__device__ __forceinline__ void widen(RealType type, uint2 raw, float (&v)[4]) {
  const uint32_t words[2] = {raw.x, raw.y};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float2 pair;
    if (type == RealType::kFloat16) {
      pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    } else {
      pair = make_float2(__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xFFFF0000u));
    }
    v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
  }
}

// The sign bits of a piece in the order of load_piece: 16 g + 4 t = 4 lane columns into word 2 s +
// lane / 16. A lane hashes one of the four words and keeps the half that others ask it for.
__device__ __forceinline__ void flip_signs(uint64_t seed, int64_t first, float (&x)[2][4]) {
  const int lane = threadIdx.x % 32;
  const uint64_t word = sign_word(seed, first / 64 + (lane >> 1 & 3));
  const uint32_t half = uint32_t(lane & 1 ? word >> 32 : word);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const uint32_t bits = __shfl_sync(~0u, half, 4 * s + (lane >> 3)) >> (4 * (lane & 7));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[s][i] = __uint_as_float(__float_as_uint(x[s][i]) ^ (bits >> i & 1) << 31);
  }
}

// The largest magnitude of the 128 columns that a lane and 15 others hold.
__device__ __forceinline__ float largest_of_chunk(const float (&v)[2][4]) {
  float largest = 0;
#pragma unroll
  for (int p = 0; p < 2; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max_or_nan(largest, fabsf(v[p][i]));
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2)
    largest = max_or_nan(largest, __shfl_xor_sync(~0u, largest, distance));
  return largest;
}

// Writes a rotated piece of one token as int8; `factor` is what the transform still lacks.
__device__ __forceinline__ void write_int8(const Activations& a, const QuantizedActivations& out,
                                           int token, int64_t first, float factor,
                                           float (&v)[2][4]) {
  // v * inverse + kRound has the nearest integer in its last bits.
  constexpr float kRound = 12582912.0f;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float largest = largest_of_chunk(v);
  const float inverse = largest > 0 ? 127.0f * reciprocal(largest) : 0.0f;
  const int chunk = int(first / kChunkCols) + g / 4;
  const bool inside = chunk * kChunkCols < a.cols;
  float scale = largest * factor * (1 / 127.0f);
#pragma unroll
  for (int p = 0; p < 2; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i) v[p][i] *= inverse;
#pragma unroll 1
  for (int slot = 0; slot < a.slots; ++slot) {
    const int row = token * a.slots + slot;
    int total = 0;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      uint32_t q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float rounded = v[p][i] + kRound;
        q[i] = __float_as_uint(rounded);
        v[p][i] = (v[p][i] - (rounded - kRound)) * 254.0f;  // what is left, for the next slot
      }
      const uint32_t word =
          byte_permute(byte_permute(q[0], q[1], 0x0040), byte_permute(q[2], q[3], 0x0040), 0x5410);
      total = __dp4a(int(word), 0x01010101, total);
      if (inside)
        *reinterpret_cast<uint32_t*>(out.piece(chunk, row, t + 4 * p) + 4 * (g & 3)) = word;
    }
    if (a.sums) {
#pragma unroll
      for (int distance = 1; distance < 16; distance *= 2)
        total += __shfl_xor_sync(~0u, total, distance);
    }
    if (inside && lane % 16 == 0)
      out.scales[chunk * out.stride + row] = {scale, scale * static_cast<float>(total)};
    scale *= 1 / 254.0f;
  }
}

// The same as float16, whose largest magnitude is from 1 to 2.
__device__ __forceinline__ void write_float16(const Activations& a, const QuantizedActivations& out,
                                              int token, int64_t first, float factor,
                                              const float (&v)[2][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float largest = largest_of_chunk(v) * factor;
  const float scale = __uint_as_float(__float_as_uint(largest) & 0x7F800000u);  // 2^exponent
  const float inverse = scale > 0 ? factor / scale : 0.0f;
  const int64_t chunk = first / kChunkCols + g / 4;
  if (chunk * kChunkCols >= a.cols) return;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const __half2 low = __floats2half2_rn(v[p][0] * inverse, v[p][1] * inverse);
    const __half2 high = __floats2half2_rn(v[p][2] * inverse, v[p][3] * inverse);
    *reinterpret_cast<uint2*>(out.piece(chunk, token, 8 * p + 2 * t + (g & 3) / 2) + 8 * (g & 1)) =
        make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                   *reinterpret_cast<const uint32_t*>(&high));
  }
  if (lane % 16 == 0) out.scales[chunk * out.stride + token] = {scale, 0.0f};
}

// Rotates and writes kPieces * 256 columns of one token, loaded already; a whole warp calls it.
// Blocks of 512 columns need two pieces, of 1024 four.
template <int kPieces, int kItemBytes>
__device__ __forceinline__ void rotate_and_write(const Activations& a,
                                                 const PieceRotation& rotation,
                                                 const QuantizedActivations& out, int token,
                                                 int64_t first, const uint2 (&raw)[kPieces][2]) {
  float v[kPieces][2][4];
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    float x[2][4];
#pragma unroll
    for (int s = 0; s < 2; ++s) widen(a.type, raw[k][s], x[s]);
    if (a.block > 0) flip_signs(a.seed, first + k * kPieceCols, x);
    rotation.apply(x, v[k]);
  }
#pragma unroll
  for (int distance = 1; distance < kPieces; distance *= 2) {
#pragma unroll
    for (int k = 0; k < kPieces; ++k)
      if (!(k & distance)) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& low = v[k][i / 4][i % 4];
          float& high = v[k | distance][i / 4][i % 4];
          const float difference = low - high;
          low += high;
          high = difference;
        }
      }
  }
  const float factor = a.block > 0 ? rsqrtf(static_cast<float>(a.block)) : 1.0f;
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    if constexpr (kItemBytes == 1) {
      write_int8(a, out, token, first + k * kPieceCols, factor, v[k]);
    } else {
      write_float16(a, out, token, first + k * kPieceCols, factor, v[k]);
    }
  }
}

// Warp `warp` of `warps` takes its share of a token's columns. The loop is not unrolled: code that
// runs once waits for its own instructions to arrive, at a line of 128 bytes a time.
template <int kPieces, int kItemBytes>
__device__ __forceinline__ void quantize_share(const Activations& a, const PieceRotation& rotation,
                                               const QuantizedActivations& out, int token, int warp,
                                               int warps) {
  constexpr int kCols = kPieces * kPieceCols;
  uint2 next[kPieces][2];
#pragma unroll
  for (int k = 0; k < kPieces; ++k)
    load_piece(a, token, int64_t(warp) * kCols + k * kPieceCols, next[k]);
#pragma unroll 1
  for (int64_t first = int64_t(warp) * kCols; first < a.cols; first += int64_t(warps) * kCols) {
    uint2 raw[kPieces][2];
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      raw[k][0] = next[k][0], raw[k][1] = next[k][1];
      load_piece(a, token, first + int64_t(warps) * kCols + k * kPieceCols, next[k]);
    }
    rotate_and_write<kPieces, kItemBytes>(a, rotation, out, token, first, raw);
  }
}

template <int kItemBytes>
__device__ __forceinline__ void quantize_token(const Activations& a, const PieceRotation& rotation,
                                               const QuantizedActivations& out, int token, int warp,
                                               int warps) {
  if (a.block <= kPieceCols) {
    quantize_share<1, kItemBytes>(a, rotation, out, token, warp, warps);
  } else if (a.block == 2 * kPieceCols) {
    quantize_share<2, kItemBytes>(a, rotation, out, token, warp, warps);
  } else {
    quantize_share<4, kItemBytes>(a, rotation, out, token, warp, warps);
  }
}

}  // namespace pvq
