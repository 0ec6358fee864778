// Sources: Paley, On orthogonal matrices (1933); Williamson, Hadamard's determinant theorem and the
// sum of four squares (1944). A Hadamard matrix has entries +-1 and H H^T = m I.
#include "core/hadamard_factors.h"

#include <cstddef>

namespace pvq {
namespace {

// The finite field GF(q), q = p^degree an odd prime power. Element sum of c_i t^i is the number
// sum of c_i p^i. The defining polynomial t^degree = c(t) is the one with the smallest number c for
// which the powers of t run through all nonzero elements (for degree 1: the smallest primitive
// root); the squares are then the even powers.
class Field {
 public:
  explicit Field(int q) : q_(q), p_(smallest_divisor(q)), chi_(q, 0) {
    for (int reduction = 1; !mark_powers(reduction);) ++reduction;
  }

  // True if q is an odd prime power.
  static bool exists(int q) {
    if (q < 3 || q % 2 == 0) return false;
    const int p = smallest_divisor(q);
    while (q % p == 0) q /= p;
    return q == 1;
  }

  // The quadratic character of a - b: 0 for zero, 1 for squares, -1 otherwise.
  int chi_of_difference(int a, int b) const {
    int difference = 0;
    for (int place = 1; place < q_; place *= p_) {
      const int digit = (a / place - b / place) % p_;
      difference += place * ((digit + p_) % p_);
    }
    return chi_[difference];
  }

 private:
  static int smallest_divisor(int n) {
    int divisor = 2;
    while (n % divisor) ++divisor;
    return divisor;
  }

  // t * element, where t^degree = reduction.
  int times_t(int element, int reduction) const {
    const int top = element / (q_ / p_);
    const int shifted = element % (q_ / p_) * p_;
    int product = 0;
    for (int place = 1; place < q_; place *= p_)
      product += place * ((shifted / place + top * (reduction / place % p_)) % p_);
    return product;
  }

  // Fills chi_ along the powers of t; false if they do not reach all nonzero elements.
  bool mark_powers(int reduction) {
    chi_.assign(q_, 0);
    int power = 1;
    for (int exponent = 0; exponent < q_ - 1; ++exponent) {
      if (power == 0 || chi_[power]) return false;
      chi_[power] = exponent % 2 ? -1 : 1;
      power = times_t(power, reduction);
    }
    return true;
  }

  int q_, p_;
  std::vector<int> chi_;
};

template <class Entry>
std::vector<int8_t> from_entries(int m, Entry entry) {
  std::vector<int8_t> h(static_cast<size_t>(m) * m);
  for (int row = 0; row < m; ++row)
    for (int col = 0; col < m; ++col)
      h[static_cast<size_t>(row) * m + col] = static_cast<int8_t>(entry(row, col));
  return h;
}

// Paley's matrix of order q + 1, rows and columns infinity, 0, 1, ...: zero on the diagonal, `edge`
// in the rest of the first column, 1 in the rest of the first row, chi(a - b) elsewhere.
int paley_core(const Field& field, int edge, int row, int col) {
  if (row == col) return 0;
  if (row == 0) return 1;
  if (col == 0) return edge;
  return field.chi_of_difference(row - 1, col - 1);
}

std::vector<int8_t> paley_one(int m) {
  const Field field(m - 1);
  return from_entries(
      m, [&](int row, int col) { return row == col ? 1 : paley_core(field, -1, row, col); });
}

// S (x) [1 1; 1 -1] + I (x) [1 -1; -1 -1] with the symmetric core S.
std::vector<int8_t> paley_two(int m) {
  const Field field(m / 2 - 1);
  return from_entries(m, [&](int row, int col) {
    const bool both_odd = row % 2 && col % 2, both_even = row % 2 == 0 && col % 2 == 0;
    if (row / 2 == col / 2) return both_even ? 1 : -1;
    return paley_core(field, 1, row / 2, col / 2) * (both_odd ? -1 : 1);
  });
}

// The first rows a, b, c, d of four symmetric circulants of order n with
// A^2 + B^2 + C^2 + D^2 = 4 n I: bit i - 1 is set where entry i (= entry n - i) is -1, entry 0
// is 1. Found by matching pairs: normalised like this a_i b_i c_i d_i = -1 (Williamson), so the
// pairs (a, b) and (c, d) of complementary product are searched for opposite autocorrelations.
struct WilliamsonRows {
  int n;
  uint32_t negative[4];
};
constexpr WilliamsonRows kWilliamson[] = {
    {23, {0x0ae, 0x434, 0x589, 0x6ec}},
    {29, {0x16e2, 0x16e5, 0x1a38, 0x25c0}},
    {39, {0x26b7e, 0x2fb92, 0x15e6e, 0x6317d}},
    {43, {0x9af63, 0xdc708, 0x192f1, 0x1a0565}},
};

const WilliamsonRows* find_williamson(int m) {
  for (const WilliamsonRows& rows : kWilliamson)
    if (4 * rows.n == m) return &rows;
  return nullptr;
}

//  A  B  C  D
// -B  A -D  C
// -C  D  A -B
// -D -C  B  A
std::vector<int8_t> williamson(const WilliamsonRows& rows) {
  constexpr int kCirculant[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
  constexpr int kSign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
  const int n = rows.n;
  return from_entries(4 * n, [&](int row, int col) {
    const uint32_t negative = rows.negative[kCirculant[row / n][col / n]];
    const int shift = (col % n - row % n + n) % n;
    const int i = shift < n - shift ? shift : n - shift;
    const int entry = i > 0 && (negative >> (i - 1) & 1) ? -1 : 1;
    return kSign[row / n][col / n] * entry;
  });
}

std::vector<int8_t> sylvester(int m) {
  return from_entries(m,
                      [](int row, int col) { return __builtin_popcount(row & col) % 2 ? -1 : 1; });
}

bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// For m = 4 * odd, m - 1 is 3 mod 4 and m / 2 - 1 is 1 mod 4, as Paley's constructions want.
bool has_factor(int m) {
  if (m < 1 || m > kMaxHadamardFactor) return false;
  if (is_power_of_two(m)) return true;
  return m % 8 == 4 && (Field::exists(m - 1) || Field::exists(m / 2 - 1) || find_williamson(m));
}

}  // namespace

std::vector<int8_t> hadamard_factor(int m) {
  if (!has_factor(m)) return {};
  if (is_power_of_two(m)) return sylvester(m);
  if (Field::exists(m - 1)) return paley_one(m);
  if (Field::exists(m / 2 - 1)) return paley_two(m);
  return williamson(*find_williamson(m));
}

bool split_hadamard_block(int64_t block, HadamardSplit* split) {
  if (block < 1 || block > kMaxHadamardBlock) return false;
  const int twos = __builtin_ctzll(static_cast<unsigned long long>(block));
  const int odd = static_cast<int>(block >> twos);
  const HadamardSplit result = odd == 1 ? HadamardSplit{1, twos} : HadamardSplit{4 * odd, twos - 2};
  if (result.log2 < 0 || result.log2 > kMaxHadamardPower || !has_factor(result.factor))
    return false;
  *split = result;
  return true;
}

int64_t default_hadamard_block(int64_t cols) {
  constexpr int64_t kLargest = 1024, kEnough = 256;
  for (int64_t block = kLargest; block >= kEnough; block /= 2)
    if (cols % block == 0) return block;
  HadamardSplit split;
  for (int64_t block = kLargest; block > 1; --block)
    if (cols % block == 0 && split_hadamard_block(block, &split)) return block;
  return 1;
}

std::vector<int8_t> hadamard_matrix(int block) {
  HadamardSplit split;
  if (!split_hadamard_block(block, &split)) return {};
  const std::vector<int8_t> factor = hadamard_factor(split.factor);
  const int mask = (1 << split.log2) - 1;
  return from_entries(block, [&](int row, int col) {
    const int entry = factor[(row >> split.log2) * split.factor + (col >> split.log2)];
    return __builtin_popcount(row & col & mask) % 2 ? -entry : entry;
  });
}

}  // namespace pvq
