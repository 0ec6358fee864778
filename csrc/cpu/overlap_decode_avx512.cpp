// OverlapDecoder for AVX-512: the windows of 16 groups at a time, the rows of the table one by one
// (overlap_entries.h). overlap_rows_vbmi.cpp has the library's own codes.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/overlap_decode.h"
#include "cpu/overlap_entries.h"

namespace {

#define PVQ_INLINE inline __attribute__((always_inline))
#include "cpu/byte_products_avx512.h"

// Both halves of 32 bytes are the 16 bytes at p.
[[gnu::always_inline]] inline __m256i twice(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline __m512i both(__m256i v) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(v), v, 1);
}

// In both functions `entry` has the rows of as many groups before as are taken at a time, then of
// all: `lag` places back is the row of the other point.

// Sixteen groups of two weights at a time.
void decode_pairs(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& windows,
                  const int8_t* table, int, const uint8_t* stream, int groups, int8_t* y) {
  const __m512i bytes = both(load(windows.byte)), shift = both(load(windows.shift));
  const __m512i mask = _mm512_set1_epi32((1 << t.window_bits) - 1);
  alignas(64) int entry[16 + pvq::kMostBlockGroups];
  for (int i = -16; i < groups; i += 16) {
    const uint8_t* from = stream + i / 8 * t.step_bits - 2;
    const __m512i word =
        _mm512_inserti64x4(_mm512_castsi256_si512(twice(from)), twice(from + t.step_bits), 1);
    alignas(64) uint32_t at[16];
    _mm512_store_si512(
        at, _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(word, bytes), shift), mask));
    read_entries<16>(reinterpret_cast<const int*>(table), at, entry + 16 + i);
  }
  for (int i = 0; i < groups; i += 16) {
    const __m512i own = _mm512_load_si512(entry + 16 + i);
    const __m512i other = _mm512_loadu_si512(entry + 16 + i - t.lag);
    const __m512i sum = _mm512_add_epi8(own, _mm512_srli_epi32(other, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 2 * i), _mm512_cvtepi32_epi16(sum));
  }
}

// Eight groups of four weights at a time.
void decode_quads(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& windows,
                  const int8_t* table, int spread, const uint8_t* stream, int groups, int8_t* y) {
  const __m256i bytes = load(windows.byte), shift = load(windows.shift);
  const __m256i mask = _mm256_set1_epi32((1 << t.window_bits) - 1);
  alignas(64) long long entry[8 + pvq::kMostBlockGroups / 2];
  alignas(32) uint32_t behind[pvq::kMostBlockGroups / 2];  // and a window below
  for (int i = -8; i < groups; i += 8) {
    const __m256i word = twice(stream + i / 8 * t.stored_bits() - 2);
    const __m256i bits = _mm256_srlv_epi32(_mm256_shuffle_epi8(word, bytes), shift);
    alignas(32) uint32_t at[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm256_and_si256(bits, mask));
    if (i >= 0) _mm256_store_si256(reinterpret_cast<__m256i*>(behind + i), bits);
    read_entries<8>(reinterpret_cast<const long long*>(table), at, entry + 8 + i);
  }
  for (int i = 0; i < groups; i += 8) {
    const __m512i own = _mm512_load_si512(entry + 8 + i);
    const __m512i other = _mm512_loadu_si512(entry + 8 + i - t.lag);
    const __m512i sum = _mm512_add_epi8(own, _mm512_srli_epi64(other, 32));
    __m256i four = _mm512_cvtepi64_epi32(sum);
    if (t.spread) {  // a product spreads the four bits behind a symbol over four bytes
      const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(behind + i));
      const __m256i nibble = _mm256_and_si256(_mm256_srli_epi32(bits, 8), _mm256_set1_epi32(15));
      const __m256i ones = _mm256_and_si256(
          _mm256_mullo_epi32(nibble, _mm256_set1_epi32(0x00204081)), _mm256_set1_epi32(0x01010101));
      const __m256i up = _mm256_mullo_epi32(ones, _mm256_set1_epi32(2 * spread));
      four = _mm256_add_epi8(four, _mm256_sub_epi8(up, _mm256_set1_epi8(char(spread))));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 4 * i), four);
  }
}

// Vectors go by reference: GCC leaves the upper halves of registers behind where a function takes
// vectors as they are, and all SSE code after it is slow.
void decode(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& windows, const int8_t* table,
            int spread, const uint8_t* stream, int groups, int8_t* y) {
  const auto decode_groups = t.dim == 2 ? decode_pairs : decode_quads;
  decode_groups(t, windows, table, spread, stream, groups, y);
}

void dot(const int8_t* y, int count, const float* x, int64_t stride, int tokens, float (*sum)[16]) {
  const auto weights = [&](int c) __attribute__((always_inline)) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(y + c));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen));
  };
  for (int t = 0; t < tokens; ++t) {
    const float* from = x + t * stride;
    __m512 even = _mm512_loadu_ps(sum[t]), odd = _mm512_setzero_ps();  // two chains of additions
    int c = 0;
    for (; c + 32 <= count; c += 32) {
      even = _mm512_fmadd_ps(weights(c), _mm512_loadu_ps(from + c), even);
      odd = _mm512_fmadd_ps(weights(c + 16), _mm512_loadu_ps(from + c + 16), odd);
    }
    if (c < count) even = _mm512_fmadd_ps(weights(c), _mm512_loadu_ps(from + c), even);
    _mm512_storeu_ps(sum[t], _mm512_add_ps(even, odd));
  }
}

void tile(const int8_t* y, int64_t y_stride, int64_t count, const float* scale, float* tile,
          int64_t stride) {
  const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(scale), _mm512_set1_ps(1.0f / (1 << 24)));
  for (int64_t i = 0; i < count; i += 64) {
    const int64_t left = count - i;
    const __mmask16 there = left < 64 ? __mmask16((1u << left / 4) - 1) : __mmask16(0xFFFF);
    __m512i rows[16], fours[16];
    for (int lane = 0; lane < 16; ++lane)
      rows[lane] = _mm512_maskz_loadu_epi32(there, y + lane * y_stride + i);
    transpose(rows, fours);
    for (int64_t q = 0; q < 16 && 4 * q < left; ++q) {
      float* const out = tile + (i + 4 * q) * stride;
      for_each_byte([&](auto b) __attribute__((always_inline)) {
        _mm512_storeu_ps(out + b * stride, _mm512_mul_ps(to_floats<b>(fours[q]), unit));
      });
    }
  }
}

}  // namespace

const pvq::OverlapDecoder pvq::overlap_decoder_avx512 = {&decode, &dot, &tile};
#endif
