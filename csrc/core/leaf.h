// Pyramids of up to four coordinates in closed form: the leaves of the index tree (index.h).
//
//   N(1, k) = 2            P(1, k) in the order +k, -k
//   N(2, k) = 4 k          split 1 + 1
//   N(3, k) = 4 k^2 + 2    split 2 + 1
//   N(4, k) = 8 k (k^2 + 2) / 3   split 2 + 2          each for k >= 1; N(d, 0) = 1
//
// A split orders the points by the pulses j of the left half, 0 first; `offset(k, j)` below is the
// number of points with fewer pulses there, sum over i < j of N(left, i) N(right, k - i), summed by
// hand with N(2, i) = 4 i. Within one j the rank is  rank(left) * N(right, k - j) + rank(right).
#pragma once

#include "core/platform.h"

namespace pvq::leaf {

PVQ_HD inline uint64_t count(int dim, uint64_t k) {
  if (k == 0) return 1;
  return dim == 1 ? 2 : dim == 2 ? 4 * k : dim == 3 ? 4 * k * k + 2 : 8 * k * (k * k + 2) / 3;
}

PVQ_HD inline uint64_t offset3(uint64_t j) { return j == 0 ? 0 : 2 + 4 * j * (j - 1); }

PVQ_HD inline uint64_t offset4(uint64_t k, uint64_t j) {
  return j == 0 ? 0 : 4 * k + 8 * k * (j - 1) * j - 8 * (j - 1) * j * (2 * j - 1) / 3;
}

PVQ_HD inline int magnitude(int v) { return v < 0 ? -v : v; }

PVQ_HD inline uint64_t rank1(const int16_t* y) { return y[0] < 0; }

PVQ_HD inline uint64_t rank2(const int16_t* y) {
  const int j = magnitude(y[0]);
  if (j == 0) return rank1(y + 1);
  if (y[1] == 0) return 4 * uint64_t(j) - 2 + rank1(y);
  return 2 + 4 * uint64_t(j - 1) + 2 * rank1(y) + rank1(y + 1);
}

PVQ_HD inline uint64_t rank3(const int16_t* y) {
  const int j = magnitude(y[0]) + magnitude(y[1]), k = j + magnitude(y[2]);
  return offset3(j) + rank2(y) * count(1, k - j) + rank1(y + 2);
}

PVQ_HD inline uint64_t rank4(const int16_t* y) {
  const int j = magnitude(y[0]) + magnitude(y[1]);
  const int right = magnitude(y[2]) + magnitude(y[3]);
  return offset4(j + right, j) + rank2(y) * count(2, right) + rank2(y + 2);
}

PVQ_HD inline uint64_t rank(int dim, const int16_t* y) {
  return dim == 1 ? rank1(y) : dim == 2 ? rank2(y) : dim == 3 ? rank3(y) : rank4(y);
}

PVQ_HD inline void unrank1(int k, uint64_t index, int16_t* y) { y[0] = int16_t(index ? -k : k); }

PVQ_HD inline void unrank2(int k, uint64_t index, int16_t* y) {
  if (index < 2) {
    y[0] = 0;
    unrank1(k, index, y + 1);
  } else if (index >= 4 * uint64_t(k) - 2) {
    unrank1(k, index - (4 * uint64_t(k) - 2), y);
    y[1] = 0;
  } else {
    const int j = 1 + int((index - 2) / 4);
    unrank1(j, (index - 2) >> 1 & 1, y);
    unrank1(k - j, (index - 2) & 1, y + 1);
  }
}

PVQ_HD inline void unrank3(int k, uint64_t index, int16_t* y) {
  int low = 0, high = k;  // largest j with offset3(j) <= index
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (offset3(middle) <= index)
      low = middle;
    else
      high = middle - 1;
  }
  index -= offset3(low);
  const uint64_t radix = count(1, k - low);
  unrank2(low, index / radix, y);
  unrank1(k - low, index % radix, y + 2);
}

PVQ_HD inline void unrank4(int k, uint64_t index, int16_t* y) {
  int low = 0, high = k;  // largest j with offset4(k, j) <= index
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (offset4(k, middle) <= index)
      low = middle;
    else
      high = middle - 1;
  }
  index -= offset4(k, low);
  const uint64_t radix = count(2, k - low);
  unrank2(low, index / radix, y);
  unrank2(k - low, index % radix, y + 2);
}

PVQ_HD inline void unrank(int dim, int k, uint64_t index, int16_t* y) {
  if (dim == 1)
    unrank1(k, index, y);
  else if (dim == 2)
    unrank2(k, index, y);
  else if (dim == 3)
    unrank3(k, index, y);
  else
    unrank4(k, index, y);
}

}  // namespace pvq::leaf
