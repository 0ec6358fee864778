// MatmulKernels for AVX-512: a vector is one register.
#ifdef PVQ_X86
// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

#include "cpu/matmul_kernels.h"

namespace {

struct Vector {
  using Words = __m512i;
  // 24 sums, 2 tile vectors and a broadcast fill 27 of the 32 registers.
  static constexpr int kVectors = 2, kTokens = 12;
  static constexpr int kDirectTokens = 12, kSums = 8;

  __m512 v;

  static Vector zero() { return {_mm512_setzero_ps()}; }
  static Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vector broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  static Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  friend Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }

  static Words load_words(const int32_t* p) { return _mm512_loadu_si512(p); }
  // The permutation reads the low four bits of each index only: shift and look up, no mask.
  static Vector nibble(Words words, int t) {
    const __m512 value = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * t), value)};
  }
  static Vector bytes(const int8_t* p) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b))};
  }
};

#include "cpu/matmul_loops.h"

}  // namespace

const pvq::MatmulKernels pvq::matmul_kernels_avx512 = Loops<Vector>::table();
#endif
