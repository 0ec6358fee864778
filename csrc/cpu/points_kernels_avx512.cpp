// PointsKernels for AVX-512 with VNNI: an instruction adds four products of an unsigned and a
// signed byte to each of 16 sums, a lane a weight row.
//
// Weights become unsigned by adding `kShift` to them (a flipped sign bit), so each sum starts from
// -kShift * (sum of the group's activations).
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/point_rounding.h"
#include "cpu/points_kernels.h"

namespace {

#include "cpu/points_rounding.h"

__m512i broadcast4(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

struct Nibbles {
  static constexpr int kUnit = 8, kVectors = 2, kShift = 8;
  const int32_t* words;

  // Columns 0 2 4 6 and 1 3 5 7 of a unit, four bytes a lane.
  void load(int64_t unit, __m512i (&w)[2]) const {
    const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
    const __m512i flipped = _mm512_xor_si512(_mm512_loadu_si512(words + unit * 16),
                                             _mm512_set1_epi32(static_cast<int32_t>(0x88888888u)));
    w[0] = _mm512_and_si512(flipped, low);
    w[1] = _mm512_and_si512(_mm512_srli_epi32(flipped, 4), low);
  }
};

struct Bytes {
  static constexpr int kUnit = 4, kVectors = 1, kShift = 128;
  const int8_t* bytes;

  // Four columns of 16 rows, transposed to 16 lanes of four bytes: first rows 4q ... 4q+3 of all
  // columns into quarter q, then a transposition inside each quarter.
  void load(int64_t unit, __m512i (&w)[1]) const {
    const __m512i gather = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i within =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i columns = _mm512_loadu_si512(bytes + unit * 64);
    const __m512i lanes = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(gather, columns), within);
    w[0] = _mm512_xor_si512(lanes, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
};

template <int kTokens, class Plane>
void multiply(const Plane& plane, const float* scale, const pvq::PointsBlock& block, float* c,
              int64_t stride) {
  constexpr int kUnit = Plane::kUnit;
  const int64_t units = block.dim / kUnit;
  __m512 total[kTokens];
  for (int t = 0; t < kTokens; ++t) total[t] = _mm512_loadu_ps(c + t * stride);
  for (int64_t first = 0; first < block.groups; first += block.amplitude_groups) {
    __m512 part[kTokens];
    for (int t = 0; t < kTokens; ++t) part[t] = _mm512_setzero_ps();
    for (int64_t g = first; g < first + block.amplitude_groups; ++g) {
      __m512i sum[kTokens];
      for (int t = 0; t < kTokens; ++t)
        sum[t] = _mm512_set1_epi32(-Plane::kShift * block.offset[g * kTokens + t]);
      for (int64_t u = g * units; u < (g + 1) * units; ++u) {
        __m512i w[Plane::kVectors];
        plane.load(u, w);
        const int8_t* y = block.y + u * kTokens * kUnit;
        for (int t = 0; t < kTokens; ++t)
          for (int v = 0; v < Plane::kVectors; ++v)
            sum[t] = _mm512_dpbusd_epi32(sum[t], w[v], broadcast4(y + t * kUnit + 4 * v));
      }
      const __m512 s = _mm512_loadu_ps(scale + g * 16);
      for (int t = 0; t < kTokens; ++t)
        part[t] = _mm512_fmadd_ps(s, _mm512_cvtepi32_ps(sum[t]), part[t]);
    }
    const float* amplitude = block.amplitude + first / block.amplitude_groups * kTokens;
    for (int t = 0; t < kTokens; ++t)
      total[t] = _mm512_fmadd_ps(part[t], _mm512_set1_ps(amplitude[t]), total[t]);
  }
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(c + t * stride, total[t]);
}

// tokens is a template argument inside: walk down to the right instance.
template <class Plane, int kTokens = pvq::kPointTokens>
void multiply_any(const Plane& plane, const float* scale, const pvq::PointsBlock& block, float* c,
                  int64_t stride) {
  if constexpr (kTokens > 1) {
    if (block.tokens < kTokens)
      return multiply_any<Plane, kTokens - 1>(plane, scale, block, c, stride);
  }
  multiply<kTokens>(plane, scale, block, c, stride);
}

void multiply4(const int32_t* words, const float* scale, const pvq::PointsBlock& block, float* c,
               int64_t stride) {
  multiply_any(Nibbles{words}, scale, block, c, stride);
}

void multiply8(const int8_t* bytes, const float* scale, const pvq::PointsBlock& block, float* c,
               int64_t stride) {
  multiply_any(Bytes{bytes}, scale, block, c, stride);
}

}  // namespace

const pvq::PointsKernels pvq::points_kernels_avx512 = {&round_points, &multiply4, &multiply8};
#endif
