// The block Hadamard transform with AVX-512: 16 lanes, 16 registers across, so a pass takes 8
// stages of a contiguous piece or 4 strided ones.
#ifdef PVQ_X86

// gcc 12 takes its own intrinsics' undefined operands for a mistake (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "cpu/hadamard_passes.h"

namespace pvq::hadamard {
namespace {

struct Avx512 {
  using Real = float;
  using Reg = __m512;
  static constexpr int kLog2Width = kLog2WidthAvx512, kLog2Registers = 4;

  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Reg load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void store(Float16* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // Round to nearest even; a NaN stays one by setting its quiet bit.
  static void store(BFloat16* p, Reg v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  static Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg subtract(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg add_signed(Reg sum, Reg sign, Reg v) { return _mm512_fmadd_ps(sign, v, sum); }

  static Reg negate(Reg v, uint32_t bits) {
    const __m512i raw = _mm512_castps_si512(v), sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_mask_xor_epi32(raw, static_cast<__mmask16>(bits), raw, sign));
  }

  // swapped + (+-1) v, minus in the upper lane of each pair.
  static Reg butterfly(Reg v, Reg swapped, __mmask16 upper) {
    const Reg sign = _mm512_mask_blend_ps(upper, _mm512_set1_ps(1), _mm512_set1_ps(-1));
    return _mm512_fmadd_ps(sign, v, swapped);
  }
  static Reg butterflies_within(Reg v) {
    v = butterfly(v, _mm512_permute_ps(v, 0xB1), 0xAAAA);
    v = butterfly(v, _mm512_permute_ps(v, 0x4E), 0xCCCC);
    v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0xB1), 0xF0F0);
    return butterfly(v, _mm512_shuffle_f32x4(v, v, 0x4E), 0xFF00);
  }
};

}  // namespace

void run_avx512(const Plan& plan, const Job<float, float>& job) { Passes<Avx512>::run(plan, job); }
void run_avx512(const Plan& plan, const Job<Float16, float>& job) {
  Passes<Avx512>::run(plan, job);
}
void run_avx512(const Plan& plan, const Job<BFloat16, float>& job) {
  Passes<Avx512>::run(plan, job);
}

}  // namespace pvq::hadamard

#endif  // PVQ_X86
