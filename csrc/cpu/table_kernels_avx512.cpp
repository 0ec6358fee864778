// TableKernels for AVX-512: the table stands in registers.
//
// VPERMI2W looks 32 words up among 64, so four of them and three blends look up the two int8 of 32
// bytes among all 256; a table takes eight registers, or sixteen where a byte stands for four
// weights. That gives the weights of 128 columns as two vectors of int8 in the order of the
// columns.
//
// Each int8 then goes to the top byte of an int32 of its own, which is 2^24 times its value and
// needs no sign extension. At 3 bits the bit below is set too: with a' = a or ~a the word is 2^24
// a' + 2^23 = 2^23 (2 a' + 1), the odd value with its sign. The powers of two are exact factors of
// the input (`pack`) or of the scale (`fill`).
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

#include "cpu/table_kernels.h"

#include "core/table_codes.h"

namespace {

#define PVQ_INLINE inline __attribute__((always_inline))

constexpr int kRun = 128;   // columns that `Table::expand` gives
constexpr int kChunk = 64;  // int8 in a vector

// 16 sums with two tables of 8 registers and the vectors in work are as many as there are
// registers.
constexpr int kDirectTokens = 6;

#include "cpu/byte_products_avx512.h"

struct alignas(64) Words {
  int16_t pair[2][pvq::kTablePoints];  // coordinates 0 and 1, 2 and 3, the even one in the low byte
};

template <int kBits>
constexpr Words make_words() {
  constexpr int kDim = pvq::TableCode<kBits>::kDim;
  const auto table = pvq::make_point_table<kBits>();
  Words words = {};
  for (int b = 0; b < pvq::kTablePoints; ++b)
    for (int i = 0; i < kDim; i += 2) {
      const int low = table.point[b][i] & 255, high = table.point[b][i + 1];
      words.pair[i / 2][b] = int16_t(high * 256 + low);
    }
  return words;
}

template <int kBits>
constexpr Words kWords = make_words<kBits>();

struct Pairs {
  __m512i part[8];

  explicit PVQ_INLINE Pairs(const int16_t* words) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) part[i] = _mm512_load_si512(words + 32 * i);
  }

  // For 32 bytes as words: bits 0 to 5 choose among 64 entries, bits 6 and 7 among the four 64s.
  PVQ_INLINE __m512i at(__m512i bytes, __mmask32 bit6, __mmask32 bit7) const {
    const __m512i first = _mm512_permutex2var_epi16(part[0], bytes, part[1]);
    const __m512i second = _mm512_permutex2var_epi16(part[2], bytes, part[3]);
    const __m512i third = _mm512_permutex2var_epi16(part[4], bytes, part[5]);
    const __m512i fourth = _mm512_permutex2var_epi16(part[6], bytes, part[7]);
    return _mm512_mask_blend_epi16(bit7, _mm512_mask_blend_epi16(bit6, first, second),
                                   _mm512_mask_blend_epi16(bit6, third, fourth));
  }
};

// `count` <= 32 bytes, zeros behind.
PVQ_INLINE __m256i load_bytes(const uint8_t* p, int64_t count) {
  if (count >= 32) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_maskz_loadu_epi8((1u << count) - 1, p);
}

template <int kBits>
class Table {
 public:
  // Columns [c, c + 128) of a row of `cols`, c < cols; columns behind the row are any.
  PVQ_INLINE void expand(const uint8_t* row, int64_t cols, int64_t c, __m512i (&out)[2]) const {
    // Lane i of the vectors of words holds bytes 4 i to 4 i + 3, and 16 + 4 i to 16 + 4 i + 3, so
    // that interleaving the pairs gives bytes 0 to 15, and 16 to 31.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = load_bytes(row + c / 4, (cols - c) / 4);
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_permutevar8x32_epi32(bytes, order));
    const __mmask32 bit6 = _mm512_test_epi16_mask(words, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(words, _mm512_set1_epi16(128));
    const __m512i low = low_.at(words, bit6, bit7), high = high_.at(words, bit6, bit7);
    out[0] = _mm512_unpacklo_epi16(low, high);
    out[1] = _mm512_unpackhi_epi16(low, high);
    if constexpr (kBits == 3) {
      uint64_t signs[2];
      if (cols - c >= kRun) {
        __builtin_memcpy(signs, row + (cols / 4 + c / 8), 16);
      } else {
        const auto mask = static_cast<__mmask16>((1u << (cols - c) / 8) - 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(signs),
                         _mm_maskz_loadu_epi8(mask, row + (cols / 4 + c / 8)));
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) out[i] = _mm512_xor_si512(out[i], _mm512_movm_epi8(signs[i]));
    }
  }

 private:
  Pairs low_{kWords<kBits>.pair[0]}, high_{kWords<kBits>.pair[1]};
};

template <>
class Table<4> {
 public:
  PVQ_INLINE void expand(const uint8_t* row, int64_t cols, int64_t c, __m512i (&out)[2]) const {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int64_t left = (cols - c) / 2 - 32 * i;
      const __m512i words =
          _mm512_cvtepu8_epi16(load_bytes(row + c / 2 + 32 * i, left > 0 ? left : 0));
      out[i] = pairs_.at(words, _mm512_test_epi16_mask(words, _mm512_set1_epi16(64)),
                         _mm512_test_epi16_mask(words, _mm512_set1_epi16(128)));
    }
  }

 private:
  Pairs pairs_{kWords<4>.pair[0]};
};

// 2^-kShift times these are the weights.
template <int kBits>
constexpr float kUnit = kBits == 3 ? 1.0f / (1 << 23) : 1.0f / (1 << 24);

// What to_floats adds to each: at 3 bits half of a byte's unit.
template <int kBits>
constexpr int kHalf = kBits == 3 ? 1 << 23 : 0;

// --- fill
// -------------------------------------------------------------------------------------------

template <int kBits>
void fill(const uint8_t* const* rows, int64_t cols, int64_t c0, int64_t c1, const float* scale,
          float* tile, int64_t stride) {
  const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(scale), _mm512_set1_ps(kUnit<kBits>));
  for (int64_t c = c0; c < c1; c += kRun) {
    __m512i bytes[2][pvq::kTileLanes];
    {
      const Table<kBits> table;
      for (int lane = 0; lane < pvq::kTileLanes; ++lane) {
        __m512i row[2];
        table.expand(rows[lane], cols, c, row);
        bytes[0][lane] = row[0];
        bytes[1][lane] = row[1];
      }
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t first = c + half * kChunk;
      if (first >= c1) break;
      __m512i fours[16];
      transpose(bytes[half], fours);
      for (int q = 0; q < 16 && first + 4 * q < c1; ++q) {
        float* out = tile + (first - c0 + 4 * q) * stride;
        for_each_byte([&](auto b) __attribute__((always_inline)) {
          _mm512_storeu_ps(out + b * stride,
                           _mm512_mul_ps(to_floats<b, kHalf<kBits>>(fours[q]), unit));
        });
      }
    }
  }
}

// --- direct
// -----------------------------------------------------------------------------------------

// x as [chunks of 64 columns][tokens][4][16]: number i of part b is column 4 i + b of the chunk,
// byte b of int32 number i. Zeros behind the last column, an even number of chunks.
int64_t packed_columns(int64_t cols) { return (cols + kRun - 1) / kRun * kRun; }

template <int kBits>
void pack(const float* a, int64_t cols, int64_t c0, int64_t c1, int tokens, float* packed) {
  if (c1 == cols) c1 = packed_columns(cols);
  for (int64_t c = c0; c < c1; ++c) {
    float* out = packed + c / kChunk * kChunk * tokens + (c % 4 * 16 + c % kChunk / 4);
    for (int t = 0; t < tokens; ++t)
      out[t * kChunk] = c < cols ? a[t * cols + c] * kUnit<kBits> : 0.0f;
  }
}

template <int kBits, int kTokens>
PVQ_INLINE void direct_row(const Table<kBits>& table, const uint8_t* row, int64_t cols, int64_t c0,
                           int64_t c1, float scale, const float* x, float* c, int64_t stride) {
  Sums<kTokens> sums;
  const float* from = x + c0 * kTokens;
  for (int64_t column = c0; column < c1; column += kRun) {
    __m512i bytes[2];
    table.expand(row, cols, column, bytes);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, from += kChunk * kTokens)
      for_each_byte([&](auto b) __attribute__((always_inline)) {
        sums.add(b, to_floats<b, kHalf<kBits>>(bytes[half]), from + b * 16, kChunk);
      });
  }
  sums.add_to(c, stride, scale);
}

template <int kBits>
void direct(const uint8_t* rows, int64_t row_bytes, int64_t count, int64_t cols, int64_t c0,
            int64_t c1, const float* scale, const float* x, int tokens, float* c, int64_t stride) {
  with_tokens<kDirectTokens>(tokens, [&](auto n) {
    const Table<kBits> table;
    for (int64_t r = 0; r < count; ++r)
      direct_row<kBits, n>(table, rows + r * row_bytes, cols, c0, c1, scale[r], x, c + r, stride);
  });
}

template <int kBits>
constexpr pvq::TableKernels kernels() {
  return {&fill<kBits>, kDirectTokens, kRun, &direct<kBits>, &pack<kBits>, &packed_columns};
}

}  // namespace

const pvq::TableKernels pvq::table_kernels_avx512[3] = {kernels<2>(), kernels<3>(), kernels<4>()};
#endif
