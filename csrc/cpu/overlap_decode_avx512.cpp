// OverlapDecoder for AVX-512: the rows of the table gathered, 64 bytes at a time.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/overlap_decode.h"

namespace {

// Both halves of 32 bytes are the 16 bytes at p.
[[gnu::always_inline]] inline __m256i twice(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline __m512i both(__m256i v) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(v), v, 1);
}

// Sixteen groups of two weights at a time.
void decode_pairs(const pvq::OverlapTrellis& t, __m256i bytes8, __m256i shift8, const int8_t* table,
                  int, const uint8_t* stream, int groups, int8_t* y) {
  const __m512i bytes = both(bytes8), shift = both(shift8);
  const __m512i mask = _mm512_set1_epi32((1 << t.window_bits) - 1);
  // Of 16 entries and the 16 before, those `lag` places back.
  const __m512i back =
      _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                       _mm512_set1_epi32(16 - t.lag));
  __m512i before = _mm512_setzero_si512();
  for (int i = -16; i < groups; i += 16) {
    const uint8_t* from = stream + i / 8 * t.step_bits - 2;
    const __m512i word =
        _mm512_inserti64x4(_mm512_castsi256_si512(twice(from)), twice(from + t.step_bits), 1);
    const __m512i window =
        _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(word, bytes), shift), mask);
    const __m512i entry = _mm512_i32gather_epi32(window, table, 4);
    if (i >= 0) {
      const __m512i other = _mm512_permutex2var_epi32(before, back, entry);
      const __m512i sum = _mm512_add_epi8(entry, _mm512_srli_epi32(other, 16));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 2 * i), _mm512_cvtepi32_epi16(sum));
    }
    before = entry;
  }
}

// Eight groups of four weights at a time.
void decode_quads(const pvq::OverlapTrellis& t, __m256i bytes, __m256i shift, const int8_t* table,
                  int spread, const uint8_t* stream, int groups, int8_t* y) {
  const __m256i mask = _mm256_set1_epi32((1 << t.window_bits) - 1);
  // Of 8 entries and the 8 before, those `lag` places back.
  const __m512i back =
      _mm512_add_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(8 - t.lag));
  __m512i before = _mm512_setzero_si512();
  for (int i = -8; i < groups; i += 8) {
    const __m256i word = twice(stream + i / 8 * t.stored_bits() - 2);
    const __m256i bits = _mm256_srlv_epi32(_mm256_shuffle_epi8(word, bytes), shift);
    const __m512i entry = _mm512_i32gather_epi64(_mm256_and_si256(bits, mask), table, 8);
    if (i >= 0) {
      const __m512i other = _mm512_permutex2var_epi64(before, back, entry);
      const __m512i sum = _mm512_add_epi8(entry, _mm512_srli_epi64(other, 32));
      __m256i four = _mm512_cvtepi64_epi32(sum);
      if (t.spread) {  // a product spreads the four bits behind a symbol over four bytes
        const __m256i behind = _mm256_and_si256(_mm256_srli_epi32(bits, 8), _mm256_set1_epi32(15));
        const __m256i ones =
            _mm256_and_si256(_mm256_mullo_epi32(behind, _mm256_set1_epi32(0x00204081)),
                             _mm256_set1_epi32(0x01010101));
        const __m256i up = _mm256_mullo_epi32(ones, _mm256_set1_epi32(2 * spread));
        four = _mm256_add_epi8(four, _mm256_sub_epi8(up, _mm256_set1_epi8(char(spread))));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 4 * i), four);
    }
    before = entry;
  }
}

void decode(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& windows, const int8_t* table,
            int spread, const uint8_t* stream, int groups, int8_t* y) {
  const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(windows.byte));
  const __m256i shift = _mm256_load_si256(reinterpret_cast<const __m256i*>(windows.shift));
  const auto decode_groups = t.dim == 2 ? decode_pairs : decode_quads;
  decode_groups(t, bytes, shift, table, spread, stream, groups, y);
}

void dot(const int8_t* y, int count, const float* x, int64_t stride, int tokens, float (*sum)[16]) {
  for (int t = 0; t < tokens; ++t) {
    const float* from = x + t * stride;
    __m512 total = _mm512_loadu_ps(sum[t]);
    for (int c = 0; c < count; c += 16) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(y + c));
      total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen)),
                              _mm512_loadu_ps(from + c), total);
    }
    _mm512_storeu_ps(sum[t], total);
  }
}

}  // namespace

const pvq::OverlapDecoder pvq::overlap_decoder_avx512 = {&decode, &dot};
#endif
