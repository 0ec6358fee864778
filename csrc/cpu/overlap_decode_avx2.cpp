// OverlapDecoder for AVX2: the windows of eight groups at a time, the rows of the table one by one
// (overlap_entries.h).
#ifdef PVQ_X86
#include <immintrin.h>

#include "cpu/overlap_decode.h"
#include "cpu/overlap_entries.h"

namespace {

[[gnu::always_inline]] inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// The windows of the eight groups from `i` on.
struct Windows {
  __m256i bytes, shift, mask;
  const uint8_t* stream;
  int stored_bits;

  [[gnu::always_inline]] inline Windows(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& w,
                                        const uint8_t* from)
      : bytes(load(w.byte)),
        shift(load(w.shift)),
        mask(_mm256_set1_epi32((1 << t.window_bits) - 1)),
        stream(from),
        stored_bits(t.stored_bits()) {}

  // With what comes above them in the stream.
  [[gnu::always_inline]] inline __m256i unmasked(int i) const {
    const uint8_t* from = stream + i / 8 * stored_bits - 2;
    const __m256i word =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_srlv_epi32(_mm256_shuffle_epi8(word, bytes), shift);
  }
  [[gnu::always_inline]] inline __m256i operator()(int i) const {
    return _mm256_and_si256(unmasked(i), mask);
  }
};

// In both functions `entry` has the rows of eight groups before, then of all: `lag` places back is
// the row of the other point.

void decode_pairs(const Windows& window, int lag, const int* table, int groups, int8_t* y) {
  alignas(32) int entry[8 + pvq::kMostBlockGroups];
  for (int i = -8; i < groups; i += 8) {
    alignas(32) uint32_t at[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), window(i));
    read_entries<8>(table, at, entry + 8 + i);
  }
  // The two bytes of each sum, from both halves of 16 bytes.
  const __m256i pairs = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,
                                         0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int i = 0; i < groups; i += 8) {
    const __m256i own = load(entry + 8 + i);
    const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entry + 8 + i - lag));
    const __m256i sum = _mm256_add_epi8(own, _mm256_srli_epi32(other, 16));
    const __m256i packed =
        _mm256_permute4x64_epi64(_mm256_shuffle_epi8(sum, pairs), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 2 * i), _mm256_castsi256_si128(packed));
  }
}

void decode_quads(const Windows& window, int lag, const long long* table, int groups, int8_t* y) {
  alignas(32) long long entry[8 + pvq::kMostBlockGroups / 2];
  for (int i = -8; i < groups; i += 8) {
    alignas(32) uint32_t at[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(at), window(i));
    read_entries<8>(table, at, entry + 8 + i);
  }
  for (int i = 0; i < groups; i += 4) {
    const __m256i own = load(entry + 8 + i);
    const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entry + 8 + i - lag));
    const __m256i sum = _mm256_add_epi8(own, _mm256_srli_epi64(other, 32));
    const __m256i low = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 4 * i),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(sum, low)));
  }
}

// Adds the spread or takes it off, by the four bits behind each symbol: a product spreads them over
// four bytes.
void add_spread(const Windows& window, int spread, int groups, int8_t* y) {
  for (int i = 0; i < groups; i += 8) {
    const __m256i bits =
        _mm256_and_si256(_mm256_srli_epi32(window.unmasked(i), 8), _mm256_set1_epi32(15));
    const __m256i ones = _mm256_and_si256(_mm256_mullo_epi32(bits, _mm256_set1_epi32(0x00204081)),
                                          _mm256_set1_epi32(0x01010101));
    const __m256i step = _mm256_sub_epi8(_mm256_mullo_epi32(ones, _mm256_set1_epi32(2 * spread)),
                                         _mm256_set1_epi8(char(spread)));
    alignas(32) int8_t steps[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(steps), step);
    for (int k = 0; k < 4 * (groups - i < 8 ? groups - i : 8); ++k) y[4 * i + k] += steps[k];
  }
}

void decode(const pvq::OverlapTrellis& t, const pvq::OverlapWindows& windows, const int8_t* table,
            int spread, const uint8_t* stream, int groups, int8_t* y) {
  const Windows window(t, windows, stream);
  if (t.dim == 2)
    decode_pairs(window, t.lag, reinterpret_cast<const int*>(table), groups, y);
  else
    decode_quads(window, t.lag, reinterpret_cast<const long long*>(table), groups, y);
  if (t.spread) add_spread(window, spread, groups, y);
}

void dot(const int8_t* y, int count, const float* x, int64_t stride, int tokens, float (*sum)[16]) {
  for (int t = 0; t < tokens; ++t) {
    const float* from = x + t * stride;
    __m256 low = _mm256_loadu_ps(sum[t]), high = _mm256_loadu_ps(sum[t] + 8);
    for (int c = 0; c < count; c += 16) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(y + c));
      low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sixteen)),
                            _mm256_loadu_ps(from + c), low);
      high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(sixteen, 8))),
                             _mm256_loadu_ps(from + c + 8), high);
    }
    _mm256_storeu_ps(sum[t], low);
    _mm256_storeu_ps(sum[t] + 8, high);
  }
}

}  // namespace

const pvq::OverlapDecoder pvq::overlap_decoder_avx2 = {&decode, &dot, nullptr};
#endif
