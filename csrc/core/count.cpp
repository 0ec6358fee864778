#include "core/count.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/limbs.h"
#include "core/platform.h"

namespace pvq {
namespace {

// Row d of the recurrence from row d - 1, in place.
void advance(std::vector<uint32_t>& row, int pulses) {
  constexpr int n = limbs::kMax;
  uint32_t diagonal[n];  // N(d-1, k-1)
  limbs::copy(diagonal, n, row.data(), n);
  for (int k = 1; k <= pulses; ++k) {
    uint32_t* here = row.data() + size_t(k) * n;
    uint32_t above[n];
    limbs::copy(above, n, here, n);
    limbs::add(here, n, here - n, limbs::length(here - n, n));
    limbs::add(here, n, diagonal, limbs::length(diagonal, n));
    limbs::copy(diagonal, n, above, n);
  }
}

CountRow compact(const std::vector<uint32_t>& row, int dim, int pulses) {
  constexpr int n = limbs::kMax;
  CountRow result{dim, pulses, 0, {}};
  for (int k = 0; k <= pulses; ++k)
    result.limbs = std::max(result.limbs, limbs::length(row.data() + size_t(k) * n, n));
  result.values.resize(size_t(pulses + 1) * result.limbs);
  for (int k = 0; k <= pulses; ++k)
    limbs::copy(result.values.data() + size_t(k) * result.limbs, result.limbs,
                row.data() + size_t(k) * n, n);
  return result;
}

}  // namespace

void check_pyramid(int dim, int pulses) {
  if (dim < 1 || dim > kMaxDim)
    throw std::invalid_argument("dim is " + std::to_string(dim) + ", expected 1 to " +
                                std::to_string(kMaxDim));
  if (pulses < 0 || pulses > kMaxPulses)
    throw std::invalid_argument("pulses is " + std::to_string(pulses) + ", expected 0 to " +
                                std::to_string(kMaxPulses));
}

std::vector<CountRow> count_rows(const std::vector<int>& dims, int pulses) {
  for (int dim : dims) check_pyramid(dim, pulses);
  std::vector<uint32_t> row(size_t(pulses + 1) * limbs::kMax, 0);
  row[0] = 1;  // N(0, 0)
  std::vector<CountRow> result;
  int dim = 0;
  for (int wanted : dims) {
    for (; dim < wanted; ++dim) advance(row, pulses);
    result.push_back(compact(row, wanted, pulses));
  }
  return result;
}

std::vector<uint32_t> count(int dim, int pulses) {
  const CountRow row = count_rows({dim}, pulses).front();
  return {row[pulses], row[pulses] + limbs::length(row[pulses], row.limbs)};
}

int index_bits(int dim, int pulses) {
  const std::vector<uint32_t> n = count(dim, pulses);
  return limbs::bit_length(n.data(), int(n.size()));
}

}  // namespace pvq
