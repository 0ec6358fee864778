// The block Hadamard transform: the portable kernel, and the choice among the instruction sets.
#include "cpu/hadamard.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "core/hadamard_factors.h"
#include "cpu/hadamard_kernel.h"
#include "cpu/hadamard_passes.h"
#include "cpu/isa.h"

namespace pvq {
namespace hadamard {
namespace {

float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
// The exponents of float16's normal numbers are rebased by a multiplication, which also gives its
// subnormal ones; infinities and NaNs get the largest exponent.
float widen(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7FFFu, sign = (x.bits & 0x8000u) << 16;
  const float rebased = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(rebased) | special | sign);
}

// Round to nearest even; a NaN stays one by setting its quiet bit.
void narrow(float v, BFloat16* p) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = v != v ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1);
  p->bits = static_cast<uint16_t>(rounded >> 16);
}
void narrow(float v, Float16* p) {
  const uint32_t bits = std::bit_cast<uint32_t>(v), magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u | (magnitude >> 13 & 0x3FFu);
  } else if (magnitude >= 0x477FF000u) {  // 65520 and more round to infinity
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: the addition rounds to multiples of 2^-24
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude + 0xFFFu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
  }
  p->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

// One lane, for 2^k below four, and for float64.
template <class T>
struct Scalar {
  using Real = T;
  using Reg = T;
  static constexpr int kLog2Width = 0, kLog2Registers = 3;

  static T load(const T* p) { return *p; }
  template <class Element>
  static T load(const Element* p) {
    return widen(*p);
  }
  static void store(T* p, T v) { *p = v; }
  template <class Element>
  static void store(Element* p, T v) {
    narrow(v, p);
  }
  static T broadcast(T x) { return x; }
  static T add(T a, T b) { return a + b; }
  static T subtract(T a, T b) { return a - b; }
  static T multiply(T a, T b) { return a * b; }
  static T add_signed(T sum, T sign, T v) { return sum + sign * v; }
  static T negate(T v, uint32_t bits) { return bits & 1 ? -v : v; }
  static T butterflies_within(T v) { return v; }
};

// Four lanes: what every processor has, through the compiler's vector types.
struct Four {
  using Real = float;
  using Reg = float __attribute__((vector_size(16)));
  using Bits = uint32_t __attribute__((vector_size(16)));
  using Halves = uint16_t __attribute__((vector_size(8)));
  static constexpr int kLog2Width = 2, kLog2Registers = 3;

  static Reg load(const float* p) {
    Reg v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Reg load(const Float16* p) {
    return Reg{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  static Reg load(const BFloat16* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof(halves));
    return (Reg)(__builtin_convertvector(halves, Bits) << 16);
  }
  static void store(float* p, Reg v) { std::memcpy(p, &v, sizeof(v)); }
  static void store(Float16* p, Reg v) {
    for (int i = 0; i < 4; ++i) narrow(v[i], p + i);
  }
  static void store(BFloat16* p, Reg v) {  // narrow, four times
    const Bits bits = (Bits)v, nan = (Bits)(v != v);
    const Bits rounded = bits + 0x7FFFu + (bits >> 16 & 1);
    const Bits high = ((nan & (bits | 0x400000u)) | (~nan & rounded)) >> 16;
    const Halves halves = __builtin_convertvector(high, Halves);
    std::memcpy(p, &halves, sizeof(halves));
  }
  static Reg broadcast(float x) { return Reg{x, x, x, x}; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg subtract(Reg a, Reg b) { return a - b; }
  static Reg multiply(Reg a, Reg b) { return a * b; }
  static Reg add_signed(Reg sum, Reg sign, Reg v) { return sum + sign * v; }
  static Reg negate(Reg v, uint32_t bits) {
    return (Reg)((Bits)v ^ Bits{bits << 31, bits >> 1 << 31, bits >> 2 << 31, bits >> 3 << 31});
  }
  static Reg butterflies_within(Reg v) {
    v = Reg{v[1], v[0], v[3], v[2]} + Reg{1, -1, 1, -1} * v;
    return Reg{v[2], v[3], v[0], v[1]} + Reg{1, 1, -1, -1} * v;
  }
};

// The terms of H_m (or of its transpose) as hadamard_kernel.h numbers them.
std::vector<Term> make_terms(int m, bool transposed) {
  const std::vector<int8_t> h = hadamard_factor(m);
  std::vector<Term> terms;
  for (int row = 0; row < m; ++row)
    for (int col = 0; col < m; col += 4) {
      int e[4];
      for (int i = 0; i < 4; ++i) e[i] = transposed ? h[(col + i) * m + row] : h[row * m + col + i];
      const int s = (e[2] != e[0]) + 2 * (e[1] != e[0]) + 4 * (e[3] != e[2]);
      terms.push_back({col / 4 * 8 + s, static_cast<float>(e[0])});
    }
  return terms;
}

// Built once for each m and direction, then shared by all threads.
const Term* terms_of(int m, bool transposed) {
  struct Entry {
    std::once_flag once;
    std::vector<Term> terms;
  };
  static Entry entries[kMaxHadamardFactor / 4 + 1][2];
  Entry& entry = entries[m / 4][transposed];
  std::call_once(entry.once, [&] { entry.terms = make_terms(m, transposed); });
  return entry.terms.data();
}

template <class Element>
void choose(const Plan& plan, const Job<Element, float>& job) {
#ifdef PVQ_X86
  if (cpu_isa() >= Isa::kAvx512 && plan.log2 >= kLog2WidthAvx512) return run_avx512(plan, job);
  if (cpu_isa() >= Isa::kAvx2 && plan.log2 >= kLog2WidthAvx2) return run_avx2(plan, job);
#endif
  if (plan.log2 >= Four::kLog2Width) return Passes<Four>::run(plan, job);
  Passes<Scalar<float>>::run(plan, job);
}

void choose(const Plan& plan, const Job<double, double>& job) {
  Passes<Scalar<double>>::run(plan, job);
}

struct alignas(64) CacheLine {
  char bytes[64];
};

template <class Real, class Element>
void run(const Element* in, Element* out, int64_t cols, int block, const uint64_t* sign_words,
         bool inverse, int64_t first_block, int64_t last_block) {
  Plan plan{1, 0, 1 / std::sqrt(static_cast<double>(block)), nullptr};
  HadamardSplit split;
  if (first_block >= last_block || !split_hadamard_block(block, &split)) return;
  plan.factor = split.factor;
  plan.log2 = split.log2;
  if (plan.factor > 1) plan.terms = terms_of(plan.factor, inverse);

  const int64_t work = std::is_same_v<Real, Element> ? 0 : std::max(block, kWork);
  const int64_t sums = plan.factor > 1 ? int64_t{plan.factor} * 2 * kPanel : 0;
  const int64_t per_line = sizeof(CacheLine) / sizeof(Real);
  const int64_t work_lines = (work + per_line - 1) / per_line;
  const auto buffer = std::make_unique_for_overwrite<CacheLine[]>(
      static_cast<size_t>(work_lines + (sums + per_line - 1) / per_line));
  choose(plan, Job<Element, Real>{in, out, cols, sign_words, inverse, first_block, last_block,
                                  reinterpret_cast<Real*>(buffer.get()),
                                  reinterpret_cast<Real*>(buffer.get() + work_lines)});
}

}  // namespace
}  // namespace hadamard

void hadamard_blocks(const float* in, float* out, int64_t cols, int block,
                     const uint64_t* sign_words, bool inverse, int64_t first_block,
                     int64_t last_block) {
  hadamard::run<float>(in, out, cols, block, sign_words, inverse, first_block, last_block);
}

void hadamard_blocks(const double* in, double* out, int64_t cols, int block,
                     const uint64_t* sign_words, bool inverse, int64_t first_block,
                     int64_t last_block) {
  hadamard::run<double>(in, out, cols, block, sign_words, inverse, first_block, last_block);
}

void hadamard_blocks_float16(const uint16_t* in, uint16_t* out, int64_t cols, int block,
                             const uint64_t* sign_words, bool inverse, int64_t first_block,
                             int64_t last_block) {
  hadamard::run<float>(reinterpret_cast<const hadamard::Float16*>(in),
                       reinterpret_cast<hadamard::Float16*>(out), cols, block, sign_words, inverse,
                       first_block, last_block);
}

void hadamard_blocks_bfloat16(const uint16_t* in, uint16_t* out, int64_t cols, int block,
                              const uint64_t* sign_words, bool inverse, int64_t first_block,
                              int64_t last_block) {
  hadamard::run<float>(reinterpret_cast<const hadamard::BFloat16*>(in),
                       reinterpret_cast<hadamard::BFloat16*>(out), cols, block, sign_words, inverse,
                       first_block, last_block);
}

}  // namespace pvq
