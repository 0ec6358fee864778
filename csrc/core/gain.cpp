#include "core/gain.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <tuple>

namespace pvq {
namespace {

// The law of one group's squared share of the row: x ~ Beta(a, b), amplitude = sqrt(n x).
struct ShareLaw {
  double a, b, n;
  double mean_root;  // E sqrt(x)

  ShareLaw(int dim, int64_t cols)
      : a(0.5 * dim),
        b(0.5 * double(cols - dim)),
        n(double(cols)),
        mean_root(std::exp(std::lgamma(a + 0.5) - std::lgamma(a) + std::lgamma(a + b) -
                           std::lgamma(a + b + 0.5))) {}

  double quantile(double p) const {
    double low = 0, high = 1;
    for (int i = 0; i < 200 && high - low > 1e-15 * high; ++i) {
      const double middle = 0.5 * (low + high);
      (incomplete_beta(a, b, middle) < p ? low : high) = middle;
    }
    return 0.5 * (low + high);
  }

  // E[sqrt(n x) | low < x < high]; sqrt(x) times the density of Beta(a, b) is mean_root times that
  // of Beta(a + 1/2, b).
  double centroid(double low, double high) const {
    const double mass = incomplete_beta(a, b, high) - incomplete_beta(a, b, low);
    const double moment =
        mean_root * (incomplete_beta(a + 0.5, b, high) - incomplete_beta(a + 0.5, b, low));
    return mass > 1e-300 ? std::sqrt(n) * moment / mass : std::sqrt(n * 0.5 * (low + high));
  }
};

std::vector<double> beta_levels(const ShareLaw& law, int count) {
  std::vector<double> levels;
  for (int i = 0; i < count; ++i)
    levels.push_back(std::sqrt(law.n * law.quantile((i + 0.5) / count)));
  return levels;
}

std::vector<double> lloyd_levels(const ShareLaw& law, int count) {
  std::vector<double> levels = beta_levels(law, count);
  for (int iteration = 0; iteration < 20000; ++iteration) {
    double largest_step = 0, low = 0;
    std::vector<double> next(count);
    for (int i = 0; i < count; ++i) {
      const double edge = i + 1 < count ? 0.5 * (levels[i] + levels[i + 1]) : 0;
      const double high = i + 1 < count ? std::min(1.0, edge * edge / law.n) : 1.0;
      next[i] = law.centroid(low, high);
      largest_step = std::max(largest_step, std::abs(next[i] - levels[i]));
      low = high;
    }
    levels = next;
    if (largest_step < 1e-9) break;
  }
  return levels;
}

// Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method; converges
// fast for x < (a + 1) / (a + b + 2).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  const auto guard = [](double v) { return std::abs(v) < kTiny ? kTiny : v; };
  double c = 1, d = 1 / guard(1 - (a + b) * x / (a + 1)), value = d;
  for (int m = 1; m < 20000; ++m) {
    for (const double numerator : {m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                                   -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))}) {
      d = 1 / guard(1 + numerator * d);
      c = guard(1 + numerator / c);
      value *= c * d;
    }
    if (std::abs(c * d - 1) < 1e-15) break;
  }
  return value;
}

std::vector<float> compute(int dim, int64_t cols, int gain_bits, GainLaw law) {
  const int count = 1 << gain_bits;
  std::vector<double> levels;
  if (dim == cols) {  // one group is the whole row: its amplitude is known
    levels.assign(count, std::sqrt(double(dim)));
  } else {
    const ShareLaw share(dim, cols);
    levels = law == GainLaw::kLloyd ? lloyd_levels(share, count) : beta_levels(share, count);
  }
  std::vector<float> rounded;
  for (double level : levels) rounded.push_back(float(std::round(level * 65536) / 65536));
  return rounded;
}

}  // namespace

double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

GainLaw gain_law(const std::string& name) {
  if (name == "lloyd") return GainLaw::kLloyd;
  if (name == "beta") return GainLaw::kBeta;
  throw std::invalid_argument("gain_law is '" + name + "', expected 'lloyd' or 'beta'");
}

const std::vector<float>& gain_levels(int dim, int64_t cols, int gain_bits, GainLaw law) {
  if (gain_bits < 0 || gain_bits > kMaxGainBits)
    throw std::invalid_argument("gain_bits is " + std::to_string(gain_bits) + ", expected 0 to " +
                                std::to_string(kMaxGainBits));
  if (dim < 1 || cols < dim)
    throw std::invalid_argument("cols is " + std::to_string(cols) +
                                ", expected at least dim = " + std::to_string(dim));
  using Key = std::tuple<int, int64_t, int, GainLaw>;
  static std::mutex mutex;
  static auto& cache = *new std::map<Key, std::unique_ptr<std::vector<float>>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[{dim, cols, gain_bits, law}];
  if (!entry) entry = std::make_unique<std::vector<float>>(compute(dim, cols, gain_bits, law));
  return *entry;
}

}  // namespace pvq
