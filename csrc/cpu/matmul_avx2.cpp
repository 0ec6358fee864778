// MatmulKernels for AVX2: a vector is two registers.
#ifdef PVQ_X86
#include <immintrin.h>
#include <stdint.h>

#include "cpu/matmul_kernels.h"

namespace {

struct Vector {
  struct Words {
    __m256i lo, hi;
  };
  // 12 sums, 2 tile registers and a broadcast fill 15 of the 16 registers.
  static constexpr int kVectors = 1, kTokens = 6;
  static constexpr int kDirectTokens = 6, kSums = 4;

  __m256 lo, hi;

  static Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vector load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Vector broadcast(const float* p) {
    const __m256 x = _mm256_broadcast_ss(p);
    return {x, x};
  }
  static Vector fma(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  friend Vector operator+(Vector a, Vector b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  friend Vector operator*(Vector a, Vector b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }

  static Words load_words(const int32_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
  }
  // Left until the nibble is on top, then right with its sign.
  static __m256 nibble(__m256i words, int t) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - 4 * t), 28));
  }
  static Vector nibble(Words words, int t) { return {nibble(words.lo, t), nibble(words.hi, t)}; }
  static Vector bytes(const int8_t* p) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(b, b)))};
  }
};

#include "cpu/matmul_loops.h"

}  // namespace

const pvq::MatmulKernels pvq::matmul_kernels_avx2 = Loops<Vector>::table();
#endif
