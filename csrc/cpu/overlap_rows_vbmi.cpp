// OverlapRows for AVX-512 with byte permutes (VBMI): windows and points of 64 groups at a time.
//
// VPERMI2B looks 64 bytes up among 128, so two or four of them and their blends look a weight of a
// point up among all windows; VPMULTISHIFTQB cuts windows out of a stream of symbols. That gives a
// vector of int8 for each weight of a group, in the order of the groups. For products each int8
// goes to the top byte of an int32 of its own, which is 2^24 times its value and needs no sign
// extension; the input is packed in that order, times 2^-24.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/overlap_rows.h"

namespace {

#define PVQ_INLINE inline __attribute__((always_inline))
#include "cpu/byte_products_avx512.h"

using pvq::OverlapPlanes;

constexpr int kRing = pvq::kOverlapBlock;
constexpr int kReach = 112;  // bytes from a unit's first on that loads may touch

struct alignas(64) Bytes {
  uint8_t at[64];
};
template <class F>
constexpr Bytes make_bytes(F f) {
  Bytes bytes = {};
  for (int i = 0; i < 64; ++i) bytes.at[i] = uint8_t(f(i));
  return bytes;
}
PVQ_INLINE __m512i load(const Bytes& bytes) { return _mm512_load_si512(bytes.at); }
// `count` <= 64 bytes, and whatever is behind them. If that may not be read, zeros; but loads with
// a mask are slow where the bytes come from memory.
PVQ_INLINE __m512i load_bytes(const uint8_t* p, int count, bool more) {
  if (more || count == 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
}

template <int kPairBits>
struct Rate {
  static constexpr pvq::OverlapShape kShape = pvq::overlap_shape(kPairBits);
  static constexpr int kDim = kShape.dim, kStored = kPairBits * kDim / 2;  // bits of a symbol
  static constexpr int kRings = kDim / 2;                                  // of a unit
  static constexpr int kRingBytes = kRing / 2 * kPairBits / 8;
  static constexpr int kUnitBytes = kRings * kRingBytes;
  static constexpr int kUnitColumns = pvq::kUnitGroups * kDim;
  // Of group i: the one that its second points are of.
  static constexpr Bytes kBefore = make_bytes([](int i) {
    constexpr int kGroups = pvq::kUnitGroups / kRings;
    return i / kGroups * kGroups + (i - kShape.lag + kGroups) % kGroups;
  });
};

// The windows of 64 groups: their newest eight bits, and where the oldest of nine is set; of each
// group and of those that its second points are of.
struct Windows {
  __m512i own, before;
  __mmask64 own_old, before_old;
  __m512i behind;  // in each byte's lower half, the further bits of a group's weights
};

// Symbols are bytes, windows those and the top bit of the one before.
template <int kPairBits>
PVQ_INLINE Windows byte_windows(const uint8_t* from, int bytes, bool more) {
  const __m512i before = load(Rate<kPairBits>::kBefore);
  Windows w = {};
  w.own = load_bytes(from, bytes, more);
  w.before = _mm512_permutexvar_epi8(before, w.own);
  w.own_old = _mm512_movepi8_mask(w.before);
  w.before_old = _mm512_movepi8_mask(_mm512_permutexvar_epi8(before, w.before));
  return w;
}

// Eight symbols of a ring lie in 64 bits from the byte before the first one on. The newest eight
// bits of a window end with its symbol.
template <int kPairBits>
PVQ_INLINE Windows bit_windows(const uint8_t* from, bool more) {
  using Rate = ::Rate<kPairBits>;
  static_assert(Rate::kRings == 1);
  constexpr int kStep = Rate::kStored;
  static constexpr Bytes kPlaces = make_bytes(
      [](int i) { return (i / 8 * kStep - 1 + i % 8 + Rate::kRingBytes) % Rate::kRingBytes; });
  static constexpr Bytes kShifts = make_bytes([](int i) { return kStep * (i % 8 + 1); });
  const __m512i words =
      _mm512_permutexvar_epi8(load(kPlaces), load_bytes(from, Rate::kRingBytes, more));
  const __m512i before = load(Rate::kBefore);
  Windows w = {};
  w.own = _mm512_multishift_epi64_epi8(load(kShifts), words);
  w.before = _mm512_permutexvar_epi8(before, w.own);
  if constexpr (Rate::kShape.window_bits == 9) {
    static constexpr Bytes kOld = make_bytes([](int i) { return kStep * (i % 8 + 1) - 1; });
    const __m512i old = _mm512_multishift_epi64_epi8(load(kOld), words);
    const __m512i one = _mm512_set1_epi8(1);
    w.own_old = _mm512_test_epi8_mask(old, one);
    w.before_old = _mm512_test_epi8_mask(_mm512_permutexvar_epi8(before, old), one);
  }
  return w;
}

// Symbols are a window and four further bits; four of them lie in six bytes.
PVQ_INLINE Windows spread_windows(const uint8_t* from, int rings, bool more) {
  using Rate = ::Rate<6>;
  static constexpr Bytes kPlaces = make_bytes([](int i) {
    const int place = i / 8 * 6 + i % 8;
    return place < Rate::kRingBytes ? place : 0;
  });
  static constexpr Bytes kShifts =
      make_bytes([](int i) { return 12 * (i % 4) + (i % 8 < 4 ? 0 : 8); });
  const auto cut = [&](int ring) {
    const __m512i bytes =
        load_bytes(from + ring * Rate::kRingBytes, ring < rings ? Rate::kRingBytes : 0, more);
    return _mm512_multishift_epi64_epi8(load(kShifts),
                                        _mm512_permutexvar_epi8(load(kPlaces), bytes));
  };
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i first = cut(0), second = cut(1);
  Windows w = {};
  w.own = _mm512_permutex2var_epi32(first, even, second);
  w.behind = _mm512_permutex2var_epi32(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
  w.before = _mm512_permutexvar_epi8(load(Rate::kBefore), w.own);
  return w;
}

// The bytes of a plane that `byte`, with its top bits, names.
PVQ_INLINE __m512i look_up(const uint8_t* plane, __m512i byte, __mmask64 top) {
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_load_si512(plane), byte, _mm512_load_si512(plane + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), byte,
                                                _mm512_load_si512(plane + 192));
  return _mm512_mask_blend_epi8(top, low, high);
}
// The same for windows of eight bits, or of nine, whose oldest are `old`.
template <int kWindowBits>
PVQ_INLINE __m512i look_up(const uint8_t (&planes)[2][256], __m512i byte, __mmask64 top,
                           __mmask64 old) {
  const __m512i found = look_up(planes[0], byte, top);
  if constexpr (kWindowBits == 8) return found;
  return _mm512_mask_blend_epi8(old, found, look_up(planes[1], byte, top));
}

// The weights of a unit, y[d] those number d of its groups; of groups of a ring that is not there
// any. `more`: whether kReach bytes can be read.
template <int kPairBits>
PVQ_INLINE void decode_unit(const OverlapPlanes& planes, const uint8_t* from, int rings, bool more,
                            __m512i (&y)[Rate<kPairBits>::kDim]) {
  using Rate = ::Rate<kPairBits>;
  Windows w;
  if constexpr (Rate::kShape.spread) {
    w = spread_windows(from, rings, more);
  } else if constexpr (Rate::kStored == 8) {
    w = byte_windows<kPairBits>(from, rings * Rate::kRingBytes, more);
  } else {
    w = bit_windows<kPairBits>(from, more);
  }
  constexpr int kBits = Rate::kShape.window_bits;
  const __mmask64 own_top = _mm512_movepi8_mask(w.own);
  const __mmask64 before_top = _mm512_movepi8_mask(w.before);
#pragma GCC unroll 4
  for (int d = 0; d < Rate::kDim; ++d) {
    y[d] = _mm512_add_epi8(look_up<kBits>(planes.at[0][d], w.own, own_top, w.own_old),
                           look_up<kBits>(planes.at[1][d], w.before, before_top, w.before_old));
    if constexpr (Rate::kShape.spread) {
      const __m512i spread = _mm512_set1_epi8(char(planes.spread));
      const __mmask64 up = _mm512_test_epi8_mask(w.behind, _mm512_set1_epi8(char(1 << d)));
      y[d] = _mm512_mask_sub_epi8(_mm512_add_epi8(y[d], spread), ~up, y[d], spread);
    }
  }
}

// --- decode

// out: the bytes of 64 groups, one group after the other.
PVQ_INLINE void interleave(const __m512i (&y)[2], __m512i (&out)[2]) {
  const __m512i low = _mm512_unpacklo_epi8(y[0], y[1]), high = _mm512_unpackhi_epi8(y[0], y[1]);
  out[0] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
  out[1] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
}
PVQ_INLINE void interleave(const __m512i (&y)[4], __m512i (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(y[0], y[1]), high01 = _mm512_unpackhi_epi8(y[0], y[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(y[2], y[3]), high23 = _mm512_unpackhi_epi8(y[2], y[3]);
  // Part k of each, 16 bytes, has four groups of each 16: r[j] those from 4 j on.
  const __m512i r[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                        _mm512_unpacklo_epi16(high01, high23),
                        _mm512_unpackhi_epi16(high01, high23)};
  const __m512i first01 = _mm512_shuffle_i32x4(r[0], r[1], 0x44);
  const __m512i first23 = _mm512_shuffle_i32x4(r[2], r[3], 0x44);
  const __m512i last01 = _mm512_shuffle_i32x4(r[0], r[1], 0xEE);
  const __m512i last23 = _mm512_shuffle_i32x4(r[2], r[3], 0xEE);
  out[0] = _mm512_shuffle_i32x4(first01, first23, 0x88);
  out[1] = _mm512_shuffle_i32x4(first01, first23, 0xDD);
  out[2] = _mm512_shuffle_i32x4(last01, last23, 0x88);
  out[3] = _mm512_shuffle_i32x4(last01, last23, 0xDD);
}

template <int kPairBits>
void decode_rings(const OverlapPlanes& planes, const uint8_t* from, int rings, int64_t readable,
                  int8_t* y) {
  constexpr int kDim = Rate<kPairBits>::kDim;
  __m512i weight[kDim], out[kDim];
  decode_unit<kPairBits>(planes, from, rings, readable >= kReach, weight);
  interleave(weight, out);
  for (int i = 0; i < rings * (kRing / 64); ++i) _mm512_storeu_si512(y + 64 * i, out[i]);
}

// --- direct

// x as [units][tokens][dim][4][16]: number i of part (d, b) is of weight d of group 4 i + b, byte b
// of int32 number i of y[d].
template <int kPairBits>
void pack_units(const float* x, int64_t cols, int64_t columns, int tokens, int64_t first,
                int64_t end, float* packed) {
  using Rate = ::Rate<kPairBits>;
  for (int64_t unit = first; unit < end; ++unit)
    for (int t = 0; t < tokens; ++t) {
      float* out = packed + (unit * tokens + t) * Rate::kUnitColumns;
      const float* from = x + t * cols;
      for (int i = 0; i < Rate::kUnitColumns; ++i) {
        const int group = i % 16 * 4 + i / 16 % 4, d = i / 64;
        const int64_t column = unit * Rate::kUnitColumns + group * Rate::kDim + d;
        out[i] = column < columns ? from[column] * (1.0f / (1 << 24)) : 0.0f;
      }
    }
}

template <int kPairBits, int kTokens>
PVQ_INLINE void direct_row(const OverlapPlanes& planes, const uint8_t* row, const uint8_t* rows_end,
                           int64_t columns, int64_t first, int64_t end, float scale,
                           const float* packed, float* c, int64_t stride) {
  using Rate = ::Rate<kPairBits>;
  Sums<kTokens> sums;
  const float* from = packed + first * kTokens * Rate::kUnitColumns;
  for (int64_t unit = first; unit < end; ++unit, from += kTokens * Rate::kUnitColumns) {
    __m512i y[Rate::kDim];
    const int rings = (unit + 1) * Rate::kUnitColumns <= columns ? Rate::kRings : 1;
    const uint8_t* at = row + unit * Rate::kUnitBytes;
    decode_unit<kPairBits>(planes, at, rings, rows_end - at >= kReach, y);
#pragma GCC unroll 4
    for (int d = 0; d < Rate::kDim; ++d)
      for_each_byte([&](auto b) __attribute__((always_inline)) {
        sums.add(b, to_floats<b>(y[d]), from + d * 64 + b * 16, Rate::kUnitColumns);
      });
  }
  sums.add_to(c, stride, scale);
}

// call(pair_bits) with those of the code as a constant.
template <class Call>
PVQ_INLINE void with_rate(const OverlapPlanes& planes, const Call& call) {
  switch (planes.pair_bits) {
    case 4:
      return call(Constant<4>{});
    case 5:
      return call(Constant<5>{});
    case 6:
      return call(Constant<6>{});
    case 7:
      return call(Constant<7>{});
    default:
      return call(Constant<8>{});
  }
}

void decode(const OverlapPlanes& planes, const uint8_t* from, int rings, int64_t readable,
            int8_t* y) {
  with_rate(planes, [&](auto rate) { decode_rings<rate>(planes, from, rings, readable, y); });
}

void pack(const OverlapPlanes& planes, const float* x, int64_t cols, int64_t columns, int tokens,
          int64_t first, int64_t end, float* packed) {
  with_rate(planes,
            [&](auto rate) { pack_units<rate>(x, cols, columns, tokens, first, end, packed); });
}

void direct(const OverlapPlanes& planes, const uint8_t* rows, int64_t row_bytes, int64_t count,
            int64_t columns, int64_t first, int64_t end, const float* scale, const float* packed,
            int tokens, float* c, int64_t stride) {
  with_rate(planes, [&](auto rate) {
    with_tokens<pvq::kMostDirectTokens>(tokens, [&](auto n) {
      for (int64_t r = 0; r < count; ++r)
        direct_row<rate, n>(planes, rows + r * row_bytes, rows + count * row_bytes, columns, first,
                            end, scale[r], packed, c + r, stride);
    });
  });
}

}  // namespace

const pvq::OverlapRows pvq::overlap_rows_vbmi = {&decode, &pack, &direct};
#endif
