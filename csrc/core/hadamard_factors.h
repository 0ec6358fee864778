// Hadamard matrices of the orders that real layer sizes need, and how a block splits into them.
//
// A block is 2^k or m * 2^k with m = 4 * odd; its matrix is H = H_m (x) H_(2^k), element
// i * 2^k + j, with Sylvester's H_(2^k). H_m is part of the file format, so each order has one
// construction, the first of these that gives it:
//   Paley I      m = q + 1,       q = 3 mod 4 a prime power
//   Paley II     m = 2 (q + 1),   q = 1 mod 4 a prime power
//   Williamson   m = 4 n,         four symmetric circulants of order n
// That gives every odd factor up to 63 except 47 and 59.
#pragma once

#include <cstdint>
#include <vector>

namespace pvq {

constexpr int kMaxHadamardPower = 15;       // largest block 2^k
constexpr int kMaxHadamardBlock = 1 << 16;  // largest block m * 2^k
constexpr int kMaxHadamardFactor = 256;     // largest m

// block = factor << log2, with factor 1 or 4 * odd.
struct HadamardSplit {
  int factor;
  int log2;
};

// False if there is no matrix for this block; *split is then unchanged.
bool split_hadamard_block(int64_t block, HadamardSplit* split);

// The block for an input dimension of `cols` columns: the largest power of two up to 1024 that
// divides it if that is at least 256, otherwise the largest supported block up to 1024 that divides
// it (at worst its power-of-two part, 1 if cols is odd).
int64_t default_hadamard_block(int64_t cols);

// H_m as [m, m] entries of +1 and -1, row after row, for m = 1, a power of two or 4 * odd up to
// kMaxHadamardFactor. Empty if there is no construction.
std::vector<int8_t> hadamard_factor(int m);

// The whole matrix of a supported block, [block, block].
std::vector<int8_t> hadamard_matrix(int block);

}  // namespace pvq
