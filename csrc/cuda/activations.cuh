// Activations for the products: rotated by blocks of a power of two up to 1024 columns, then
// narrowed to int8, or to float16 with a power of two as the scale, for each row and scale_cols
// columns.
//
// A warp rotates a piece of 256 columns on the tensor cores. A Hadamard transform is one 2 x 2
// transform for each bit of the position, so four bits can be one product with H_16 and the other
// four another: C = A1 X, an exact m16n8k16 product of X as it is, then C B2, m16n8k8 products in
// tf32, which cut C off after 10 bits (to round it would take three instructions a value). The
// fragment of the result of the first product is the left fragment of the second, so no value moves
// between lanes. Position bits (7 ... 0) that each index of the instructions stands for, l = 4 g +
// t a lane:
//
//   load    X[s][q] item i         7: s    6 5 4: g       3 2: t    1: q    0: i
//   first   contracts s, t, i      result rows g + 8 u: 7, 3, 2 and 0 (u); columns 6 5 4; q apart
//   second  contracts q, e, t      result columns e, t, p: 1, 5 4 and 6
//
// so that a lane loads four neighbouring values at a time and ends with four neighbouring values.
// Bits beyond the block are left alone: their factor is the identity. A piece of a block of 512 or
// 1024 columns is the transform of the sum or difference of its two or four pieces: the first
// product adds them up.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/signs.h"
#include "cuda/product_task.h"
#include "cuda/ptx.cuh"

namespace pvq {

constexpr int kPieceCols = 256;

// One entry of a Hadamard matrix over the position bits in `bits`, as the sign bit of one; false if
// it is zero, the identity's outside `block`.
__device__ __forceinline__ bool hadamard_entry(int out, int in, int block, int bits,
                                               uint32_t* negative) {
  const int inside = block > 0 ? block - 1 : 0;
  *negative = uint32_t(__popc(out & in & inside) & 1);
  return !((out ^ in) & bits & ~inside);
}

// The constant fragments of a lane.
struct PieceRotation {
  uint32_t a[4];        // of the first product
  uint32_t b[2][2][2];  // of the second: [k-step q][columns p]
  RealType type;
  float factor;  // of the rotated values, which the products leave out

  __device__ explicit PieceRotation(int block, RealType type)
      : type(type), factor(block > 0 ? reciprocal_root(static_cast<float>(block)) : 1.0f) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t one = type == RealType::kFloat16 ? 0x3C00 : 0x3F80;
    constexpr uint32_t kOne = 0x3F800000;
    if (block >= kPieceCols) {  // the general entries, bit by bit: few instructions
      const uint32_t first = __popc(g & 3 & t) & 1, top = uint32_t(g >> 2);
#pragma unroll
      for (int r = 0; r < 4; ++r)
        a[r] = one * 0x10001 ^ (first ^ (r >> 1 & top)) * 0x80008000u ^ (r & 1) << 31;
      const uint32_t g0 = uint32_t(g) << 31, g1 = uint32_t(g >> 1) << 31,
                     t1 = uint32_t(t >> 1) << 31;
      const uint32_t second = top << 31 & uint32_t(t) << 31;
#pragma unroll
      for (int k = 0; k < 8; ++k)
        b[k / 4][k / 2 % 2][k % 2] =
            kOne ^ second ^ (k / 4 ? g0 : 0) ^ (k % 2 ? g1 : 0) ^ (k / 2 % 2 ? t1 : 0);
      return;
    }
    constexpr int kFirst = 0b10001101, kSecond = 0b01110010;
    uint32_t negative;
#pragma unroll
    for (int r = 0; r < 4; ++r) {  // r = 2 s + u
      a[r] = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (hadamard_entry((r & 1) | (g & 3) << 2 | (g >> 2) << 7, i | t << 2 | (r >> 1) << 7,
                           block, kFirst, &negative))
          a[r] |= (one ^ negative << 15) << (16 * i);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int q = k / 4, p = k / 2 % 2, e = k % 2;
      b[q][p][e] = 0;
      if (hadamard_entry((g & 1) << 1 | (g >> 1) << 4 | p << 6, q << 1 | e << 4 | t << 5, block,
                         kSecond, &negative))
        b[q][p][e] = kOne ^ negative << 31;
    }
  }

  // c += A1 x, x[s] of columns 128 s + 16 g + 4 t ... + 3.
  __device__ __forceinline__ void add_first(const uint2 (&x)[2], float (&c)[2][4]) const {
    if (type == RealType::kFloat16) {
      mma_float16(c[0], a, x[0].x, x[1].x);
      mma_float16(c[1], a, x[0].y, x[1].y);
    } else {
      mma_bfloat16(c[0], a, x[0].x, x[1].x);
      mma_bfloat16(c[1], a, x[0].y, x[1].y);
    }
  }
  // v[p][i] of columns 128 (g / 4) + 64 p + 16 t + 4 (g % 4) + i.
  __device__ __forceinline__ void second(const float (&c)[2][4], float (&v)[2][4]) const {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float out[4] = {0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const uint32_t left[4] = {__float_as_uint(c[q][0]), __float_as_uint(c[q][2]),
                                  __float_as_uint(c[q][1]), __float_as_uint(c[q][3])};
        mma_tf32(out, left, b[q][p][0], b[q][p][1]);
      }
      v[p][0] = out[0], v[p][1] = out[2], v[p][2] = out[1], v[p][3] = out[3];
    }
  }
};

// Pieces of a block: 1, 2 or 4.
PVQ_HD constexpr int inputs_of(int block) { return block > kPieceCols ? block / kPieceCols : 1; }

// call(inputs) with those of a block as a constant; on the host.
template <class Call>
auto with_inputs(int block, const Call& call) {
  switch (inputs_of(block)) {
    case 1:
      return call(std::integral_constant<int, 1>{});
    case 2:
      return call(std::integral_constant<int, 2>{});
    default:
      return call(std::integral_constant<int, 4>{});
  }
}

// The signs of a lane's values in up to four pieces, in the order of load_piece: those of half h of
// piece k at bits j and 16 + j of `low` and of `high`, j = 2 k + h.
struct PieceSigns {
  uint32_t low = 0, high = 0;

  // Of `pieces`, at most kPieces, at `column` and every `distance` columns; times entry k of a row
  // of the Hadamard matrix of order four.
  template <int kPieces>
  static __device__ __forceinline__ PieceSigns of(const Activations& a, int column, int distance,
                                                  int pieces, int row) {
    PieceSigns signs;
    if (a.block == 0) return signs;
    // A lane finds 32 columns, of piece lane / 8.
    const int lane = threadIdx.x % 32, piece = lane / 8 & (kPieces - 1);
    const uint64_t word = sign_word(a.seed, (column + piece * distance) / 64 + (lane >> 1 & 3));
    uint32_t bits = uint32_t(lane & 1 ? word >> 32 : word);
    if (__popc(row & piece) & 1) bits = ~bits;
#pragma unroll 1
    for (int k = 0; k < min(pieces, kPieces); ++k)
#pragma unroll
      for (int j = 2 * k; j < 2 * k + 2; ++j) {
        // 16 g + 4 t = 4 lane columns into the half.
        const uint32_t four = __shfl_sync(~0u, bits, 4 * j + (lane >> 3)) >> (4 * (lane & 7));
        signs.low |= ((four & 1) | (four & 2) << 15) << j;
        signs.high |= ((four >> 2 & 1) | (four & 8) << 13) << j;
      }
    return signs;
  }
  __device__ __forceinline__ void flip(int piece, uint2 (&x)[2]) const {
    constexpr uint32_t kTops = 0x80008000u;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      x[h].x ^= low << (15 - 2 * piece - h) & kTops;
      x[h].y ^= high << (15 - 2 * piece - h) & kTops;
    }
  }
};

// The lane's values of the piece at x, of which `cols` columns are there; zeros for others.
__device__ __forceinline__ void load_piece(const uint16_t* x, int cols, uint2 (&raw)[2]) {
  const int column = 4 * (threadIdx.x % 32);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    raw[s] = make_uint2(0, 0);
    if (column + 128 * s < cols)
      raw[s] = __ldg(reinterpret_cast<const uint2*>(x + column + 128 * s));
  }
}

// The warps that narrow the columns of a scale: neighbours in a block, a piece each.
template <ActivationForm kForm>
struct ScaleTeam {
  static constexpr int kWarps = scale_cols(kForm) > kPieceCols ? scale_cols(kForm) / kPieceCols : 1;
  static_assert(kWarps == 1 || kWarps == 4);
  // Of shared memory, at a multiple of as many: two places for each warp of the block, which has a
  // power of two, in turn, so that one barrier a time is enough.
  static constexpr int bytes(int block_warps) {
    return kWarps == 1 ? 0 : 2 * block_warps * int(sizeof(float));
  }
  uint32_t place = 0;  // the warp's next
  int distance = 0;    // of its places

  __device__ __forceinline__ ScaleTeam(void* shared, int block_warps)
      : place(shared_address(shared) + threadIdx.x / 32 * int(sizeof(float))),
        distance(block_warps * int(sizeof(float))) {
    hold(place);
  }
  // A warp that is its own team.
  __device__ __forceinline__ ScaleTeam() { static_assert(kWarps == 1); }

  // The first warp of the calling one's team.
  static __device__ __forceinline__ int first_of(int warp) { return warp & -kWarps; }
  // Of all warps of the team.
  __device__ __forceinline__ float largest(float mine) {
    if constexpr (kWarps == 1) return mine;
    if (threadIdx.x % 32 == 0) store_shared_word(place, __float_as_uint(mine));
    barrier_of_team(threadIdx.x / 32 / kWarps);
    const uint4 all = load_shared_vector(place & ~15u);
    place ^= distance;
    return max_or_nan(max_or_nan(__uint_as_float(all.x), __uint_as_float(all.y)),
                      max_or_nan(__uint_as_float(all.z), __uint_as_float(all.w)));
  }
};

// The largest magnitude of the columns that share a scale and are in the piece: the 128 that a lane
// and 15 others hold, or all.
__device__ __forceinline__ float largest_of(ActivationForm form, const float (&v)[2][4]) {
  float four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = max_or_nan(fabsf(v[0][i]), fabsf(v[1][i]));
  float largest = max_or_nan(max_or_nan(four[0], four[1]), max_or_nan(four[2], four[3]));
  // Magnitudes are ordered as their bits are, NaN above all others.
  if (scale_cols(form) >= kPieceCols)
    return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)));
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2)
    largest = max_or_nan(largest, __shfl_xor_sync(~0u, largest, distance));
  return largest;
}

// The sums of the values of lanes 0 ... 15 and 16 ... 31, each for those, if they fit 16 bits.
__device__ __forceinline__ int sum_of_half(int value) {
  const bool upper = threadIdx.x & 16;
  const int both = __reduce_add_sync(~0u, upper ? value * 0x10000 : value);
  const int low = int16_t(both);
  return upper ? (both - low) >> 16 : low;
}

// Writes a piece of one token as int8, if it `writes` at all: v * unit * scale, v * unit rounded to
// the nearest integers in the first slot, what that leaves in steps kFiner times finer in the next.
template <ActivationForm kForm, int kFiner>
__device__ __forceinline__ void write_integers(const Activations& a,
                                               const QuantizedActivations& out, int token,
                                               int first, bool writes, float scale, float unit,
                                               float (&v)[2][4]) {
  // A number + kRound has the nearest integer in its last bits.
  constexpr float kRound = 12582912.0f;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int chunk = first / kChunkCols + g / 4;
  const bool inside = writes && chunk * kChunkCols < a.cols;
#pragma unroll 1
  for (int slot = 0; slot < a.slots; ++slot) {
    const int row = token * a.slots + slot;
    int total = 0;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float rounded[4];
      uint32_t q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rounded[i] = __fmaf_rn(v[p][i], unit, kRound);
        q[i] = __float_as_uint(rounded[i]);
      }
      if (slot + 1 < a.slots) {  // what is left, for the next slot
#pragma unroll
        for (int i = 0; i < 4; ++i) v[p][i] = __fmaf_rn(v[p][i], unit, kRound - rounded[i]);
      }
      const uint32_t word =
          byte_permute(byte_permute(q[0], q[1], 0x0040), byte_permute(q[2], q[3], 0x0040), 0x5410);
      total = __dp4a(int(word), 0x01010101, total);
      if (inside) {
        // Columns 64 p + 16 t + 4 (g % 4) + i of the chunk.
        constexpr bool kLanes = kForm == ActivationForm::kInt8Lanes;
        const int unit = kLanes ? t + 4 * p : 4 * (t & 1) + (g & 3);
        const int place = kLanes ? g & 3 : 2 * p + (t >> 1);
        *reinterpret_cast<uint32_t*>(out.section(chunk, 0, row) + out.unit(kForm, row, unit) +
                                     4 * place) = word;
      }
    }
    if (a.sums) total = sum_of_half(total);
    if (inside && lane % 16 == 0)
      out.scale(chunk, row) = scale, out.sum(chunk, row) = scale * static_cast<float>(total);
    scale *= 1.0f / kFiner;
    unit = kFiner;
  }
}

// Writes a rotated piece of one token as int8; `factor` is what the transform still lacks.
template <ActivationForm kForm>
__device__ __forceinline__ void write_int8(const Activations& a, const QuantizedActivations& out,
                                           int token, int first, bool writes, float factor,
                                           ScaleTeam<kForm>& team, float (&v)[2][4]) {
  const float largest = team.largest(largest_of(kForm, v));
  const float inverse = largest > 0 ? 127.0f * reciprocal(largest) : 0.0f;
  write_integers<kForm, 254>(a, out, token, first, writes, largest * factor * (1 / 127.0f), inverse,
                             v);
}

// Writes a piece of one token times `inverse` as float16, as far as the token has columns.
__device__ __forceinline__ void write_halves(const Activations& a, const QuantizedActivations& out,
                                             int token, int first, float inverse,
                                             const float (&v)[2][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int chunk = first / kChunkCols + g / 4;
  if (chunk * kChunkCols >= a.cols) return;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const __half2 low = __floats2half2_rn(v[p][0] * inverse, v[p][1] * inverse);
    const __half2 high = __floats2half2_rn(v[p][2] * inverse, v[p][3] * inverse);
    uint8_t* section = out.section(chunk, p, token);
    constexpr ActivationForm kForm = ActivationForm::kFloat16Steps;
    *reinterpret_cast<uint32_t*>(section + out.unit(kForm, token, 2 * (g & 3)) + 4 * t) =
        *reinterpret_cast<const uint32_t*>(&low);
    *reinterpret_cast<uint32_t*>(section + out.unit(kForm, token, 2 * (g & 3) + 1) + 4 * t) =
        *reinterpret_cast<const uint32_t*>(&high);
  }
}

// 2^exponent of a positive float, zero and infinity as they are.
__device__ __forceinline__ float power_of_two_below(float v) {
  return __uint_as_float(__float_as_uint(v) & 0x7F800000u);
}

// Writes a rotated piece of one token as float16, whose largest magnitude is from 1 to 2.
__device__ __forceinline__ void write_float16(const Activations& a, const QuantizedActivations& out,
                                              int token, int first, bool writes, float factor,
                                              const float (&v)[2][4]) {
  const float scale = power_of_two_below(largest_of(ActivationForm::kFloat16Steps, v) * factor);
  if (!writes) return;
  write_halves(a, out, token, first, scale > 0 ? factor / scale : 0.0f, v);
  const int lane = threadIdx.x % 32, chunk = first / kChunkCols + lane / 16;
  if (lane % 16 == 0 && chunk * kChunkCols < a.cols) out.scale(chunk, token) = scale;
}

// Code that runs once waits for its own instructions to arrive, a line of 128 bytes at a time. So
// loops over pieces are not unrolled, and may begin with a rehearsal, whose zeros are not written,
// where the kernel before still runs for so long:
//
//   turn -2   a rehearsal, nothing asked for
//   turn -1   waits for the kernel before, asks for the first pieces; else before the loop
//   turn i    piece i; asks for one that is two ahead, or the next one where pieces are large
//
// load(i, raw) the kInputs pieces of the block, signs(i, raw) flips them, write(i, v) narrows the
// rotated piece and writes it if i is one. Whole warps take part.
template <int kInputs, bool kRehearses, class Load, class Signs, class Write>
__device__ __forceinline__ void for_pieces(int count, const PieceRotation& rotation, Load load,
                                           Signs signs, Write write) {
  constexpr bool kTwoAhead = kInputs == 1;
  uint2 raw[kInputs][2] = {}, next[kInputs][2] = {};
  const auto start = [&] {
    wait_for_previous_kernel();
    if (count > 0) load(0, raw);
    if (kTwoAhead && count > 1) load(1, next);
  };
  if constexpr (!kRehearses) start();
#pragma unroll 1
  for (int i = kRehearses ? -2 : 0; i < count; ++i) {
    if (kRehearses && i == -1) {
      start();
      continue;
    }
    float c[2][4] = {}, v[2][4];
    signs(i, raw);
#pragma unroll
    for (int k = 0; k < kInputs; ++k) rotation.add_first(raw[k], c);
    if constexpr (kTwoAhead) {
#pragma unroll
      for (int k = 0; k < kInputs; ++k) raw[k][0] = next[k][0], raw[k][1] = next[k][1];
      if (i >= 0 && i + 2 < count) load(i + 2, next);
    } else {
      if (i >= 0 && i + 1 < count) load(i + 1, raw);
    }
    rotation.second(c, v);
    write(i, v);
  }
}

// Narrows and writes a rotated piece of one token; if not `writes`, all but the writing.
template <ActivationForm kForm>
__device__ __forceinline__ void write_piece(const Activations& a, const PieceRotation& rotation,
                                            const QuantizedActivations& out, int token, int first,
                                            bool writes, ScaleTeam<kForm>& team, float (&v)[2][4]) {
  if constexpr (kForm == ActivationForm::kFloat16Steps) {
    write_float16(a, out, token, first, writes, rotation.factor, v);
  } else {
    write_int8<kForm>(a, out, token, first, writes, rotation.factor, team, v);
  }
}

// A range of tokens.
struct TokenRange {
  int first, end;
};

// The piece of warp `warp` of several tokens. Warps of a team go on together, also where only the
// first of them have columns.
template <int kInputs, ActivationForm kForm, bool kRehearses>
__device__ __forceinline__ void quantize_tokens(const Activations& a, const PieceRotation& rotation,
                                                const QuantizedActivations& out, TokenRange tokens,
                                                int warp, ScaleTeam<kForm> team) {
  if (team.first_of(warp) * kPieceCols >= a.cols || tokens.first >= tokens.end)
    return wait_for_previous_kernel();
  const int first = warp * kPieceCols;
  const int column = first & -(kInputs * kPieceCols);  // of the block
  const PieceSigns signs =
      PieceSigns::of<kInputs>(a, column, kPieceCols, kInputs, warp & (kInputs - 1));
  const uint16_t* x = static_cast<const uint16_t*>(a.x) + int64_t(tokens.first) * a.cols + column;
  for_pieces<kInputs, kRehearses>(
      tokens.end - tokens.first, rotation,
      [&](int, uint2(&raw)[kInputs][2]) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k)
          load_piece(x + k * kPieceCols, a.cols - column - k * kPieceCols, raw[k]);
        x += a.cols;
      },
      [&](int, uint2(&raw)[kInputs][2]) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) signs.flip(k, raw[k]);
      },
      [&](int i, float (&v)[2][4]) {
        write_piece<kForm>(a, rotation, out, tokens.first + i, first, i >= 0, team, v);
      });
}

// Pieces warp, warp + warps, ... of the token whose columns are at x: write(first, v) gets each
// rotated, and its first column.
template <int kInputs, class Write>
__device__ __forceinline__ void rotate_share(const Activations& a, const uint16_t* x,
                                             const PieceRotation& rotation, int warp, int warps,
                                             Write write) {
  const int pieces = (a.cols + kPieceCols - 1) / kPieceCols;
  const int count = (pieces - warp + warps - 1) / warps;
  const auto first_of = [&](int n) { return (n * warps + warp) * kPieceCols; };
  const auto block_of = [&](int n) { return first_of(n) & -(kInputs * kPieceCols); };
  // Signs of the block's pieces, or of the next four.
  const auto signs_of = [&](int n) {
    return kInputs == 1
               ? PieceSigns::of<4>(a, first_of(n), warps * kPieceCols, count - n, 0)
               : PieceSigns::of<kInputs>(a, block_of(n), kPieceCols, kInputs, warp & (kInputs - 1));
  };
  PieceSigns signs = signs_of(0);
  for_pieces<kInputs, false>(
      count, rotation,
      [&](int n, uint2(&raw)[kInputs][2]) {
        const int column = block_of(n);
#pragma unroll
        for (int k = 0; k < kInputs; ++k)
          load_piece(x + column + k * kPieceCols, a.cols - column - k * kPieceCols, raw[k]);
      },
      [&](int n, uint2(&raw)[kInputs][2]) {
        if (n > 0 && (kInputs > 1 || n % 4 == 0)) signs = signs_of(n);
#pragma unroll
        for (int k = 0; k < kInputs; ++k) signs.flip(kInputs == 1 ? n & 3 : k, raw[k]);
      },
      [&](int n, float (&v)[2][4]) { write(first_of(n), v); });
}

// The share of a warp of the one token there is.
template <int kInputs, ActivationForm kForm>
__device__ __forceinline__ void quantize_share(const Activations& a, const PieceRotation& rotation,
                                               const QuantizedActivations& out, int warp,
                                               int warps) {
  ScaleTeam<kForm> team;
  rotate_share<kInputs>(a, static_cast<const uint16_t*>(a.x), rotation, warp, warps,
                        [&](int first, float (&v)[2][4]) {
                          write_piece<kForm>(a, rotation, out, 0, first, true, team, v);
                        });
}

template <ActivationForm kForm>
__device__ __forceinline__ void quantize_row(const Activations& a, const PieceRotation& rotation,
                                             const QuantizedActivations& out, int warp, int warps) {
  switch (inputs_of(a.block)) {
    case 1:
      return quantize_share<1, kForm>(a, rotation, out, warp, warps);
    case 2:
      return quantize_share<2, kForm>(a, rotation, out, warp, warps);
    default:
      return quantize_share<4, kForm>(a, rotation, out, warp, warps);
  }
}

// Zeros for all rows of a token that only pads the last group: the part of warp `warp` of `warps`.
template <ActivationForm kForm>
__device__ __forceinline__ void write_padding(const Activations& a, const QuantizedActivations& out,
                                              int token, int warp, int warps) {
  constexpr int kUnits = sections_of(kForm) * (kSectionBytes / 16);  // of a chunk
  for (int row = token * a.slots; row < min((token + 1) * a.slots, out.rows); ++row) {
    for (int i = warp * 32 + threadIdx.x % 32; i < a.cols / kChunkCols * kUnits; i += warps * 32) {
      const int unit = i % kUnits;
      uint8_t* section = out.section(i / kUnits, unit / (kSectionBytes / 16), row);
      reinterpret_cast<uint4*>(section)[unit % (kSectionBytes / 16)] = make_uint4(0, 0, 0, 0);
      if (unit == 0) out.scale(i / kUnits, row) = out.sum(i / kUnits, row) = 0;
    }
  }
}

}  // namespace pvq
