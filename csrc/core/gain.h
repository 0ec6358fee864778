// Codebooks for the amplitude of a group.
//
// A rotated row w of n weights points in a uniformly random direction, so the squared norm of D of
// its coordinates over ||w||^2 follows Beta(D/2, (n-D)/2). Levels are in units of the row's root
// mean square, ||w|| / sqrt(n): their mean square is about D.
//
//   beta    the quantiles sqrt(n * BetaPPF((i + 1/2) / 2^G)): equally likely cells, the codebook of
//           the pyramid vector quantization paper (arXiv 2410.16926)
//   lloyd   Lloyd-Max on the same law: least mean square error (Max 1960, Lloyd 1982; the density
//   is
//           log-concave, so the fixed point is the optimum)
//
// Levels are rounded to multiples of 2^-16, far below any effect on the error and far above the
// rounding of the functions behind them, so that every machine computes the same codebook and no
// file needs to carry it.
#pragma once

#include <string>
#include <vector>

namespace pvq {

constexpr int kMaxGainBits = 8;

enum class GainLaw { kLloyd, kBeta };

// std::invalid_argument for another name than "lloyd" and "beta".
GainLaw gain_law(const std::string& name);

// 2^gain_bits ascending levels. 1 <= dim <= cols, 0 <= gain_bits <= kMaxGainBits. Cached by its
// arguments for the life of the process.
const std::vector<float>& gain_levels(int dim, int64_t cols, int gain_bits, GainLaw law);

// Regularised incomplete beta function I_x(a, b), the distribution function of Beta(a, b).
double incomplete_beta(double a, double b, double x);

}  // namespace pvq
