// The block Hadamard transform with AVX2: 8 lanes, 8 registers across, so a pass takes 6 stages of
// a contiguous piece or 3 strided ones.
#ifdef PVQ_X86

#include <immintrin.h>

#include "cpu/hadamard_passes.h"

namespace pvq::hadamard {
namespace {

struct Avx2 {
  using Real = float;
  using Reg = __m256;
  static constexpr int kLog2Width = kLog2WidthAvx2, kLog2Registers = 3;

  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void store(Float16* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // Round to nearest even; a NaN stays one by setting its quiet bit.
  static void store(BFloat16* p, Reg v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }

  static Reg broadcast(float x) { return _mm256_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg subtract(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg add_signed(Reg sum, Reg sign, Reg v) { return _mm256_fmadd_ps(sign, v, sum); }

  // Lane i's bit is shifted into the sign bit.
  static Reg negate(Reg v, uint32_t bits) {
    const __m256i shifts = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i shifted = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(bits)), shifts);
    const __m256i sign = _mm256_and_si256(shifted, _mm256_set1_epi32(INT32_MIN));
    return _mm256_xor_ps(v, _mm256_castsi256_ps(sign));
  }

  // swapped + (+-1) v, minus in the upper lane of each pair.
  static Reg butterflies_within(Reg v) {
    const Reg one = _mm256_set1_ps(1), minus = _mm256_set1_ps(-1);
    v = _mm256_fmadd_ps(_mm256_blend_ps(one, minus, 0xAA), v, _mm256_permute_ps(v, 0xB1));
    v = _mm256_fmadd_ps(_mm256_blend_ps(one, minus, 0xCC), v, _mm256_permute_ps(v, 0x4E));
    return _mm256_fmadd_ps(_mm256_blend_ps(one, minus, 0xF0), v,
                           _mm256_permute2f128_ps(v, v, 0x01));
  }
};

}  // namespace

void run_avx2(const Plan& plan, const Job<float, float>& job) { Passes<Avx2>::run(plan, job); }
void run_avx2(const Plan& plan, const Job<Float16, float>& job) { Passes<Avx2>::run(plan, job); }
void run_avx2(const Plan& plan, const Job<BFloat16, float>& job) { Passes<Avx2>::run(plan, job); }

}  // namespace pvq::hadamard

#endif  // PVQ_X86
