// Pyramid-table codes: codes that are fast in their stored form, because each word of it is a byte
// that names a point of a small table.
//
//   bits   a byte stands for       weight i of the byte
//   2      4 weights of a row      row_scale * T[byte][i]
//   3      4 magnitudes            row_scale * (2 T[byte][i] + 1), minus where the sign bit is set
//   4      2 weights               row_scale * T[byte][i]
//
// At 3 bits magnitudes lie on the half-odd grid: with a = T[byte][i], 0 to 127, the weights of one
// byte are 2 a + 1 and 2 (~a) + 1 = -(2 a + 1), so that a sign flip is a bitwise complement.
//
// Stored form of a matrix [R, n], n a multiple of 8: code uint8 [R, n * bits / 8], a byte for each
// group of consecutive weights; at 3 bits n / 4 bytes of magnitudes are followed by n / 8 bytes of
// signs, bit i % 8 of byte i / 8 for column i. row_scale bfloat16 [R]. A row of zeros has scale 0.
//
// A table is a union of permutation codes (Slepian, Proc. IEEE 53, 1965, page 228): every
// arrangement, and at 2 and 4 bits every choice of signs, of a few leaders, vectors with descending
// coordinates >= 0. Pyramids are such unions (the leaders of P(4, 2) are 2000 and 1100); here the
// coordinates of a leader are free, so the points lie closer where weights are dense. The symmetry
// makes the search for the nearest point cheap: an orbit's point nearest to x has its largest
// coordinate where x has, the second largest where x has, and so on, so that sorting |x| leaves one
// inner product a leader. benchmarks/table_design.py found the leaders, and shows that free points
// trained on a Gaussian source are no better than these.
#pragma once

#include "core/platform.h"

namespace pvq {

constexpr int kTablePoints = 256;
// Columns that the sign bytes of 3 bits, and 8 and 4 weights a byte, go into evenly.
constexpr int kTableStep = 8;

template <int kBits>
struct TableCode;

template <>
struct TableCode<2> {
  static constexpr int kDim = 4;  // weights that a byte stands for
  static constexpr bool kSignsApart = false;
  static constexpr float kGaussianScale = 1 / 48.0f;  // the scale for weights of variance 1
  static constexpr int8_t kLeaders[][kDim] = {
      {31, 0, 0, 0},    {25, 25, 25, 25}, {63, 34, 0, 0},  {46, 46, 46, 0},
      {84, 38, 38, 38}, {109, 0, 0, 0},   {109, 64, 0, 0}, {78, 78, 78, 0},
  };
};

template <>
struct TableCode<3> {
  static constexpr int kDim = 4;
  static constexpr bool kSignsApart = true;
  static constexpr float kGaussianScale = 1 / 76.0f;
  static constexpr int8_t kLeaders[][kDim] = {
      {7, 7, 7, 7},      {23, 7, 7, 7},    {20, 20, 20, 6},   {34, 21, 7, 7},   {22, 22, 22, 22},
      {46, 8, 8, 8},     {39, 25, 25, 9},  {40, 40, 8, 8},    {29, 29, 29, 29}, {54, 26, 9, 9},
      {49, 27, 27, 27},  {67, 9, 9, 9},    {45, 45, 27, 10},  {61, 29, 29, 8},  {37, 37, 37, 37},
      {62, 47, 10, 10},  {77, 30, 10, 10}, {48, 48, 48, 11},  {70, 29, 29, 29}, {52, 52, 32, 32},
      {70, 51, 33, 12},  {94, 11, 11, 11}, {51, 51, 51, 51},  {73, 73, 13, 13}, {94, 33, 33, 12},
      {93, 51, 11, 11},  {62, 62, 62, 14}, {82, 41, 41, 41},  {70, 70, 40, 40}, {121, 16, 16, 16},
      {94, 67, 43, 15},  {67, 67, 67, 67}, {126, 55, 21, 21}, {99, 99, 20, 20}, {82, 82, 82, 23},
      {109, 57, 57, 57},
  };
};

template <>
struct TableCode<4> {
  static constexpr int kDim = 2;
  static constexpr bool kSignsApart = false;
  static constexpr float kGaussianScale = 1 / 36.0f;
  static constexpr int8_t kLeaders[][kDim] = {
      {6, 0},   {7, 7},   {14, 4},  {13, 13},  {22, 0},   {21, 9},  {19, 19}, {29, 5},
      {27, 15}, {26, 26}, {37, 0},  {36, 10},  {34, 20},  {45, 5},  {44, 15}, {36, 30},
      {43, 24}, {55, 0},  {55, 11}, {40, 40},  {53, 22},  {48, 33}, {66, 6},  {65, 19},
      {60, 32}, {53, 44}, {79, 0},  {78, 15},  {74, 30},  {67, 45}, {58, 58}, {83, 44},
      {95, 9},  {93, 28}, {77, 62}, {106, 53}, {118, 18}, {86, 86},
  };
};

template <int kBits>
constexpr int table_leaders() {
  return int(sizeof(TableCode<kBits>::kLeaders) / sizeof(TableCode<kBits>::kLeaders[0]));
}

// The magnitude that a stored table entry means.
template <int kBits>
PVQ_HD constexpr int table_magnitude(int stored) {
  return TableCode<kBits>::kSignsApart ? 2 * stored + 1 : stored;
}

PVQ_HD constexpr int64_t table_row_bytes(int bits, int64_t cols) { return cols * bits / 8; }

template <int kDim>
struct PointTable {
  int8_t point[kTablePoints][kDim];
  int count;
};

// The arrangement of v's coordinates that follows in descending lexicographic order; false, and v
// as it was, after the last.
template <int kDim>
PVQ_HD constexpr bool next_arrangement(int8_t (&v)[kDim]) {
  int i = kDim - 2;
  while (i >= 0 && v[i] <= v[i + 1]) --i;
  if (i < 0) return false;
  int j = kDim - 1;
  while (v[j] >= v[i]) --j;
  const auto exchange = [&v](int a, int b) {
    const int8_t t = v[a];
    v[a] = v[b];
    v[b] = t;
  };
  exchange(i, j);
  for (int a = i + 1, b = kDim - 1; a < b; ++a, --b) exchange(a, b);
  return true;
}

// The table, leader after leader, arrangement after arrangement; of the signs of one arrangement,
// number s makes its nonzero coordinate k negative if bit k of s is set.
template <int kBits>
PVQ_HD constexpr PointTable<TableCode<kBits>::kDim> make_point_table() {
  using Code = TableCode<kBits>;
  constexpr int kDim = Code::kDim;
  PointTable<kDim> table = {};
  for (const auto& leader : Code::kLeaders) {
    int8_t v[kDim] = {};
    int nonzero = 0;
    for (int i = 0; i < kDim; ++i) {
      v[i] = leader[i];
      nonzero += v[i] != 0;
    }
    const int sign_choices = Code::kSignsApart ? 1 : 1 << nonzero;
    do {
      for (int signs = 0; signs < sign_choices; ++signs, ++table.count) {
        for (int i = 0, k = 0; i < kDim; ++i) {
          const bool negative = v[i] != 0 && (signs >> k & 1);
          k += v[i] != 0;
          table.point[table.count][i] = int8_t(negative ? -v[i] : v[i]);
        }
      }
    } while (next_arrangement(v));
  }
  return table;
}

// How the nearest point's byte is found: with k the number of the nearest leader, order the bits
// |x_i| < |x_j| for the pairs i < j (01, 02, 03, 12, 13, 23; the first lowest) and signs the bits
// x_i < 0 (none where signs are stored apart), it is table_names()[key] for
//   key = (k << kOrderBits | order) << kSignBits | signs.
template <int kBits>
struct TableKey {
  static constexpr int kDim = TableCode<kBits>::kDim;
  static constexpr int kOrderBits = kDim * (kDim - 1) / 2;
  static constexpr int kSignBits = TableCode<kBits>::kSignsApart ? 0 : kDim;
  static constexpr int kCount = table_leaders<kBits>() << (kOrderBits + kSignBits);
};

// --- for the CPU, by a width that is known at run time; bits is 2, 3 or 4
// ---------------------------

int table_dim(int bits);
const int8_t* table_points(int bits);  // [256][table_dim(bits)]
const uint8_t* table_names(int bits);  // [TableKey<bits>::kCount]

}  // namespace pvq
