// What products with weights of int8 do alike in AVX-512: bytes to floats, a transposition, and the
// sums of a row. Included inside the anonymous namespace of a file that defines PVQ_INLINE, as the
// loops of this directory are.

template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};

// f(0), f(1), f(2), f(3) with constants.
template <class F>
PVQ_INLINE void for_each_byte(const F& f) {
  f(Constant<0>{});
  f(Constant<1>{});
  f(Constant<2>{});
  f(Constant<3>{});
}

// call(tokens) with a constant, tokens from 1 to kMost.
template <int kMost, class Call>
void with_tokens(int tokens, const Call& call) {
  if constexpr (kMost > 1) {
    if (tokens < kMost) return with_tokens<kMost - 1>(tokens, call);
  }
  call(Constant<kMost>{});
}

// Byte kByte of each int32 as a float, 2^24 times its value, plus kHalf below 2^24.
template <int kByte, int kHalf = 0>
PVQ_INLINE __m512 to_floats(__m512i bytes) {
  const __m512i half = _mm512_set1_epi32(kHalf);
  constexpr __mmask64 kTop = 0x8888888888888888u;
  __m512i top;
  if constexpr (kByte == 3) {
    // (bytes & ff000000) | half
    top = _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi32(int(0xFF000000)), half, 0xEA);
  } else if constexpr (kByte == 0 && kHalf == 0) {
    top = _mm512_slli_epi32(bytes, 24);
  } else {
    const __m512i from =
        _mm512_set4_epi32((12 + kByte) << 24, (8 + kByte) << 24, (4 + kByte) << 24, kByte << 24);
    top = _mm512_mask_shuffle_epi8(half, kTop, bytes, from);
  }
  return _mm512_cvtepi32_ps(top);
}

// Of a row and kTokens tokens. Several a token while tokens are few: one chain of dependent
// additions would bound the speed.
template <int kTokens>
class Sums {
 public:
  PVQ_INLINE Sums() {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
      for (int n = 0; n < kChains; ++n) sum_[t][n] = _mm512_setzero_ps();
  }
  // Adds w times 16 numbers of each token, `distance` floats from one token's to the next one's.
  // Parts that follow each other go to different chains.
  PVQ_INLINE void add(int part, __m512 w, const float* x, int64_t distance) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      __m512& sum = sum_[t][part % kChains];
      sum = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + t * distance), sum);
    }
  }
  // c[t * stride] += scale times the sum of token t.
  PVQ_INLINE void add_to(float* c, int64_t stride, float scale) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int n = 1; n < kChains; ++n) sum_[t][0] = _mm512_add_ps(sum_[t][0], sum_[t][n]);
      c[t * stride] += scale * _mm512_reduce_add_ps(sum_[t][0]);
    }
  }

 private:
  static constexpr int kChains = kTokens == 1 ? 4 : kTokens <= 3 ? 2 : 1;
  __m512 sum_[kTokens][kChains];
};

// rows[lane] holds 16 int32, out[q] becomes int32 q of every lane.
PVQ_INLINE void transpose(const __m512i (&rows)[16], __m512i (&out)[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // Lane p of b[4 k + j] holds int32 4 p + j of rows 4 k to 4 k + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i odd0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xDD);
    const __m512i even1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xDD);
    out[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    out[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    out[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xDD);
    out[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
  }
}
