// Natural numbers of several 32-bit limbs, least significant first. Lengths are run-time arguments:
// counts of small sub-pyramids are short even where the whole index is long.
//
// 32-bit limbs because every product and every step of a long division then fits the 64-bit
// arithmetic that CPUs and GPUs have.
#pragma once

#include "core/platform.h"

namespace pvq::limbs {

// N(256, 4096) has 1641 bits; one more value (the zero group) and a carry fit beside it.
constexpr int kMax = 52;

PVQ_HD inline void set(uint32_t* a, int n, uint64_t value) {
  for (int i = 0; i < n; ++i) a[i] = i == 0 ? uint32_t(value) : i == 1 ? uint32_t(value >> 32) : 0;
}

PVQ_HD inline void copy(uint32_t* a, int n, const uint32_t* b, int nb) {
  for (int i = 0; i < n; ++i) a[i] = i < nb ? b[i] : 0;
}

PVQ_HD inline uint64_t low64(const uint32_t* a, int n) {
  return n == 0 ? 0 : a[0] | (n > 1 ? uint64_t(a[1]) << 32 : 0);
}

// Length without leading zero limbs.
PVQ_HD inline int length(const uint32_t* a, int n) {
  while (n > 0 && a[n - 1] == 0) --n;
  return n;
}

PVQ_HD inline int bit_length(const uint32_t* a, int n) {
  n = length(a, n);
  int bits = 32 * n;
  if (n > 0)
    for (uint32_t top = a[n - 1]; !(top >> 31); top <<= 1) --bits;
  return bits;
}

// -1, 0, 1 as a <, =, > b.
PVQ_HD inline int compare(const uint32_t* a, int na, const uint32_t* b, int nb) {
  na = length(a, na), nb = length(b, nb);
  if (na != nb) return na < nb ? -1 : 1;
  for (int i = na - 1; i >= 0; --i)
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

// a += b; the sum must fit n limbs, and nb <= n after leading zeros are dropped.
PVQ_HD inline void add(uint32_t* a, int n, const uint32_t* b, int nb) {
  uint64_t carry = 0;
  for (int i = 0; i < n && (i < nb || carry); ++i) {
    carry += uint64_t(a[i]) + (i < nb ? b[i] : 0);
    a[i] = uint32_t(carry);
    carry >>= 32;
  }
}

// a -= b, for a >= b.
PVQ_HD inline void subtract(uint32_t* a, int n, const uint32_t* b, int nb) {
  uint64_t borrow = 0;
  for (int i = 0; i < n && (i < nb || borrow); ++i) {
    const uint64_t difference = uint64_t(a[i]) - (i < nb ? b[i] : 0) - borrow;
    a[i] = uint32_t(difference);
    borrow = difference >> 63;
  }
}

// a += b * c; the sum must fit n limbs.
PVQ_HD inline void add_product(uint32_t* a, int n, const uint32_t* b, int nb, const uint32_t* c,
                               int nc) {
  nb = length(b, nb), nc = length(c, nc);
  for (int i = 0; i < nb; ++i) {
    uint64_t carry = 0;
    for (int j = 0; i + j < n && (j < nc || carry); ++j) {
      carry += (j < nc ? uint64_t(b[i]) * c[j] : 0) + a[i + j];
      a[i + j] = uint32_t(carry);
      carry >>= 32;
    }
  }
}

// quotient = a / b and a = a mod b, for b > 0; quotient has n <= kCapacity limbs. Schoolbook
// division (Knuth, The Art of Computer Programming 2, algorithm 4.3.1 D), normalised by a shift.
template <int kCapacity>
PVQ_HD inline void divide(uint32_t* a, int n, const uint32_t* b, int nb, uint32_t* quotient) {
  const int na = length(a, n);
  nb = length(b, nb);
  for (int i = 0; i < n; ++i) quotient[i] = 0;
  if (na < nb) return;
  if (nb == 1) {
    uint64_t rest = 0;
    for (int i = na - 1; i >= 0; --i) {
      rest = rest << 32 | a[i];
      quotient[i] = uint32_t(rest / b[0]);
      rest %= b[0];
      a[i] = 0;
    }
    a[0] = uint32_t(rest);
    return;
  }
  int shift = 0;
  while (!(b[nb - 1] << shift >> 31)) ++shift;
  uint32_t u[kCapacity + 1], v[kCapacity];
  for (int i = nb - 1; i >= 0; --i)
    v[i] = b[i] << shift | (shift && i ? b[i - 1] >> (32 - shift) : 0);
  u[na] = shift ? a[na - 1] >> (32 - shift) : 0;
  for (int i = na - 1; i >= 0; --i)
    u[i] = a[i] << shift | (shift && i ? a[i - 1] >> (32 - shift) : 0);

  for (int j = na - nb; j >= 0; --j) {
    const uint64_t top = uint64_t(u[j + nb]) << 32 | u[j + nb - 1];
    uint64_t q = top / v[nb - 1], rest = top % v[nb - 1];
    while (q >> 32 || q * v[nb - 2] > (rest << 32 | u[j + nb - 2])) {
      --q;
      rest += v[nb - 1];
      if (rest >> 32) break;
    }
    uint64_t carry = 0, borrow = 0;
    for (int i = 0; i < nb; ++i) {
      carry += q * v[i];
      const uint64_t difference = uint64_t(u[i + j]) - uint32_t(carry) - borrow;
      u[i + j] = uint32_t(difference);
      borrow = difference >> 63;
      carry >>= 32;
    }
    const uint64_t difference = uint64_t(u[j + nb]) - carry - borrow;
    u[j + nb] = uint32_t(difference);
    if (difference >> 63) {  // q was one too large
      --q;
      uint64_t sum = 0;
      for (int i = 0; i < nb; ++i) {
        sum += uint64_t(u[i + j]) + v[i];
        u[i + j] = uint32_t(sum);
        sum >>= 32;
      }
      u[j + nb] += uint32_t(sum);
    }
    quotient[j] = uint32_t(q);
  }
  for (int i = 0; i < na; ++i)
    a[i] = i < nb ? u[i] >> shift | (shift ? uint32_t(uint64_t(u[i + 1]) << (32 - shift)) : 0) : 0;
}

}  // namespace pvq::limbs
